"""Mess on purpose: what really arrives over a network. Every deed is recorded, so that what a pipeline says about its
input (duplicates, dead letters) can be checked.

Every event still arrives whole once: duplicates, malformed bytes and impossible times are additional records; what is
out of order is only late.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Self

import numpy as np

from producers.simulate.planted import MessRecord, Mischief
from schemas.events import encode, key, user_of

KINDS: tuple[Mischief, ...] = ("duplicate", "out_of_order", "malformed", "future", "epoch")
DELAY_RECORDS_MAX = 200  # a duplicate or late event comes at most so many records after its place
FUTURE = "2099-"  # no clock is that wrong by accident
EPOCH = "1970-01-01T00:00:00.000Z"


class Record(NamedTuple):
    """One record for the events topic; `what` is None for an event in its place."""

    key: bytes
    value: bytes
    what: Mischief | None = None

    @classmethod
    def of(cls, event: dict[str, Any]) -> Self:
        """A canonical event as it stands on the topic."""
        return cls(key(event["tenant"], user_of(event)), encode(event))


class Mess:
    """Spoils a `share` of the events it passes on; deterministic by seed. `records` grows while it runs."""

    def __init__(self, share: float, seed: int) -> None:
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"mess is a share of the events between 0 and 1, not {share}")
        self.share = share
        self.records: list[MessRecord] = []
        self._rng = np.random.default_rng([seed, 0x3E55])
        self._later: list[tuple[int, int, Record, str]] = []  # due position, tie-breaker, record, message id
        self._position = 0

    def apply(self, events: Iterable[dict[str, Any]]) -> Iterator[Record]:
        """The events as records, with the mess in between."""
        for count, event in enumerate(events):
            record = Record.of(event)
            if self.share and self._rng.random() < self.share:
                yield from self._spoil(event, record, count)
            else:
                yield self._put(record, "")
            while self._later and self._later[0][0] <= self._position:
                _, _, due, message_id = heapq.heappop(self._later)
                yield self._put(due, message_id)
        while self._later:
            _, _, due, message_id = heapq.heappop(self._later)
            yield self._put(due, message_id)

    def _put(self, record: Record, message_id: str) -> Record:
        if record.what is not None:
            self.records.append(MessRecord(what=record.what, position=self._position, message_id=message_id))
        self._position += 1
        return record

    def _spoil(self, event: dict[str, Any], record: Record, count: int) -> Iterator[Record]:
        what = KINDS[int(self._rng.integers(len(KINDS)))]
        message_id = event["messageId"]
        if what in ("duplicate", "out_of_order"):
            due = self._position + 1 + int(self._rng.integers(DELAY_RECORDS_MAX))
            heapq.heappush(self._later, (due, count, record._replace(what=what), message_id))
            if what == "duplicate":
                yield self._put(record, "")
            return
        yield self._put(record, "")
        if what == "malformed":
            value = self._malformed(record.value)
        else:
            stamp = FUTURE + event["timestamp"][5:] if what == "future" else EPOCH
            value = encode({**event, "messageId": f"{message_id}-{what}", "timestamp": stamp, "originalTimestamp": stamp})
        yield self._put(Record(record.key, value, what), message_id)

    def _malformed(self, value: bytes) -> bytes:
        """Cut off, not UTF-8, not an object, a field of the wrong type, a required field missing."""
        match int(self._rng.integers(5)):
            case 0:
                return value[: len(value) // 2]
            case 1:
                return value.replace(b'"messageId":"', b'"messageId":"\xff\xfe', 1)
            case 2:
                return b"[" + value + b"]"
            case 3:
                return value.replace(b'"messageId":"', b'"messageId":7,"was":"', 1)
            case _:
                return value.replace(b'"type":"', b'"kind":"', 1)
