"""CDNOW: purchases of customers who bought first in early 1997, followed for 18 months; days and amounts, no items.

Times are moved by 28 years, after which the calendar repeats: events from before 2000 count as those of a broken clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from producers.datasets import table
from producers.datasets.table import Invalid, Row
from schemas.catalog import Item
from schemas.events import ORDER_COMPLETED, Lane

NAME = "cdnow"
HEADER = ("customer_id", "date", "quantity", "value_usd")
MOVED = timedelta(days=28 * 365 + 7)  # the same days of the week and of the month


def _day(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y%m%d").replace(tzinfo=UTC) + MOVED
    except (ValueError, OverflowError):
        raise Invalid("date", "format", f"{text[:80]!r} is not a day such as 19970101") from None


def _event(row: int, fields: list[str], tenant: str, lane: Lane) -> tuple[dict[str, Any], int]:
    day = _day(fields[1])
    table.number(fields[2], "quantity")
    return {
        "messageId": f"{NAME}:{row}",
        "type": "track",
        "event": ORDER_COMPLETED,
        "userId": table.required(fields[0], "customer_id"),
        "tenant": tenant,
        "lane": lane,
        "timestamp": day.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "properties": {"order_id": f"{NAME}-{row}", "currency": "USD", "revenue": table.number(fields[3], "value_usd")},
    }, int(day.timestamp() * 1000)


def rows(path: Path, tenant: str = "demo", lane: Lane = "import") -> Iterator[Row]:
    """Every purchase, in event-time order; none is dropped."""
    return table.in_event_time(path, HEADER, lambda fields: int(_day(fields[1]).timestamp() * 1000),
                               lambda row, fields: _event(row, fields, tenant, lane))  # fmt: skip


def items(path: Path, tenant: str = "demo") -> Iterator[Item]:
    """None: the set does not say what was bought."""
    return iter(())
