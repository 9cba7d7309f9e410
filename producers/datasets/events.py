"""A shop's own history: events as a client would send them to the collector, one JSON object a line, each with its own time.

They are admitted as the collector admits events, but for what makes an event one of now (`Arrival.history`). The same line
is the same event, whenever it is sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import msgspec

from producers.collector.admission import Admitted, Arrival, admit
from producers.datasets import table
from producers.datasets.table import Accepted, Invalid, Rejected, Row
from schemas.catalog import Item
from schemas.events import EVENT_BYTES_MAX, Instant, Lane
from schemas.unreadable import UNREADABLE

NAME = "events"
HEADER = None
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Said(msgspec.Struct, rename="camel"):
    """When an event happened."""

    timestamp: Instant | None = None
    original_timestamp: Instant | None = None


_said = msgspec.json.Decoder(_Said)


def _time(line: bytes) -> int:
    """Whole milliseconds since 1970, as they travel; raises Invalid."""
    try:
        said = _said.decode(line)
    except UNREADABLE as error:
        raise Invalid("timestamp", "format", str(error)) from error
    at = said.timestamp or said.original_timestamp
    if at is None:
        raise Invalid("timestamp", "required", "there is no time")
    return (at - EPOCH) // timedelta(milliseconds=1)


def _row(arrival: Arrival, row: int, line: bytes) -> Row:
    found = admit(line, arrival)
    if isinstance(found, Admitted):
        return Accepted(row, msgspec.json.decode(found.value), found.ts_ms)
    first = found.messages[0]
    return Rejected(row, first.path, first.keyword, first.message, found.payload, found.user, found.ts_ms,
                    found.kind)  # fmt: skip


def rows(path: Path, tenant: str = "demo", lane: Lane = "import") -> Iterator[Row]:
    """Every line, in event-time order; none is dropped. Ids are those of the file: pseudonyms come with the sending."""
    arrival = Arrival(tenant=tenant, received_at=datetime.now(UTC), event_bytes_max=EVENT_BYTES_MAX, history=lane)
    return table.lines_in_event_time(path, HEADER, _time, partial(_row, arrival))


def items(path: Path, tenant: str = "demo") -> Iterator[Item]:
    """None: the catalog comes by `clickwake catalog`."""
    return iter(())
