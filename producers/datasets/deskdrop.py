"""CI&T Deskdrop: what employees did with shared articles, with session, agent and country; no article text.

An article is the product here. Names of ours where Segment has none (Product Liked, Product Followed): they are kept
and count as activity with their product.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from producers.datasets import table
from producers.datasets.table import Invalid, Row
from schemas.catalog import Item
from schemas.events import PRODUCT_REVIEWED, PRODUCT_VIEWED, PRODUCT_WISHLISTED, Lane

NAME = "deskdrop"
HEADER = ("timestamp", "eventType", "contentId", "personId", "sessionId", "userAgent", "userRegion", "userCountry")
EVENTS = {
    "VIEW": PRODUCT_VIEWED,
    "BOOKMARK": PRODUCT_WISHLISTED,
    "COMMENT CREATED": PRODUCT_REVIEWED,
    "LIKE": "Product Liked",
    "FOLLOW": "Product Followed",
}


def _event(row: int, fields: list[str], tenant: str, lane: Lane) -> tuple[dict[str, Any], int]:
    event = EVENTS.get(fields[1])
    if event is None:
        raise Invalid("eventType", "enum", f"{fields[1][:80]!r} is none of {', '.join(EVENTS)}")
    ts_s = table.unix_seconds(fields[0], "timestamp")
    context: dict[str, Any] = {"sessionId": fields[4]}
    if fields[5]:
        context["userAgent"] = fields[5]
    if location := {name: value for name, value in (("region", fields[6]), ("country", fields[7])) if value}:
        context["location"] = location
    return {
        "messageId": f"{NAME}:{row}",
        "type": "track",
        "event": event,
        "userId": table.required(fields[3], "personId"),
        "tenant": tenant,
        "lane": lane,
        "timestamp": datetime.fromtimestamp(ts_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "properties": {"product_id": table.required(fields[2], "contentId")},
        "context": context,
    }, ts_s * 1000


def _time(fields: list[str]) -> int:
    return table.unix_seconds(fields[0], "timestamp")


def rows(path: Path, tenant: str = "demo", lane: Lane = "import") -> Iterator[Row]:
    """Every row, in event-time order; none is dropped."""
    return table.in_event_time(path, HEADER, _time, lambda row, fields: _event(row, fields, tenant, lane))


def items(path: Path, tenant: str = "demo") -> Iterator[Item]:
    """Each article once; there is no text."""
    seen: dict[str, None] = {}
    for row in rows(path, tenant):
        if isinstance(row, table.Accepted):
            seen[row.event["properties"]["product_id"]] = None
    for item_id in seen:
        yield Item(item_id=item_id, tenant=tenant)
