"""Taobao UserBehavior: page views, carts, favourites and purchases of nine days; ids only, no text, not sorted.

The set covers 2017-11-25 to 2017-12-03 in China's time; the few rows outside it have damaged clocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from producers.datasets import table
from producers.datasets.table import Drop, Invalid, Row
from schemas.catalog import Item
from schemas.events import ORDER_COMPLETED, PRODUCT_ADDED, PRODUCT_VIEWED, PRODUCT_WISHLISTED, Lane

NAME = "taobao"
HEADER = ("user_id", "item_id", "category_id", "behavior", "ts_s")
EVENTS = {"pv": PRODUCT_VIEWED, "cart": PRODUCT_ADDED, "fav": PRODUCT_WISHLISTED, "buy": ORDER_COMPLETED}
WINDOW_S = (1_511_539_200, 1_512_316_800)  # 2017-11-25 00:00 to 2017-12-04 00:00 at UTC+8


def _event(row: int, fields: list[str], tenant: str, lane: Lane) -> tuple[dict[str, Any], int]:
    user = table.required(fields[0], "user_id")
    product = {"product_id": table.required(fields[1], "item_id"), "category": fields[2]}
    event = EVENTS.get(fields[3])
    if event is None:
        raise Invalid("behavior", "enum", f"{fields[3][:80]!r} is none of {', '.join(EVENTS)}")
    ts_s = table.unix_seconds(fields[4], "ts_s")
    if not WINDOW_S[0] <= ts_s < WINDOW_S[1]:
        raise Drop("out_of_window")
    bought = event == ORDER_COMPLETED
    return {
        "messageId": f"{NAME}:{row}",
        "type": "track",
        "event": event,
        "userId": user,
        "tenant": tenant,
        "lane": lane,
        "timestamp": datetime.fromtimestamp(ts_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        # The set knows no orders: what a user bought in one second is taken as one.
        "properties": {"order_id": f"{user}-{ts_s}", "products": [product]} if bought else product,
    }, ts_s * 1000


def _time(fields: list[str]) -> int:
    return table.unix_seconds(fields[4], "ts_s")


def rows(path: Path, tenant: str = "demo", lane: Lane = "import") -> Iterator[Row]:
    """Every row, in event-time order. Drops: out_of_window."""
    return table.in_event_time(path, HEADER, _time, lambda row, fields: _event(row, fields, tenant, lane))


def items(path: Path, tenant: str = "demo") -> Iterator[Item]:
    """Each item once, with its last category; there is no text."""
    categories: dict[str, str] = {}
    for row in rows(path, tenant):
        if isinstance(row, table.Accepted):
            properties = row.event["properties"]
            product = properties["products"][0] if "products" in properties else properties
            categories[product["product_id"]] = product["category"]
    for item_id, category in categories.items():
        yield Item(item_id=item_id, tenant=tenant, category=category)
