"""A batch, frozen: which rows go into which table in which insert. The same records always give the same inserts."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import msgspec

from schemas.dead_letter import PAYLOAD_BYTES_MAX, DeadLetter, Failure, Message, Source
from schemas.outputs import output_id
from stream.core.user.identity import nobody
from stream.outbox import utc
from stream.sink.rows import Complaint, Record, Rows, Skip, ToRows
from stream.sink.tables import Row, Table

PARTITIONS_PER_INSERT_MAX = 90  # ClickHouse refuses an insert into more than 100 (code 252); some room for a lower setting
MESSAGE_CHARS_MAX = 2_000  # ClickHouse may quote the whole row in its complaint


class Insert:
    """Rows for one INSERT into one table, with the record each row came from. Never changed once made."""

    def __init__(self, table: Table, rows: list[Row], records: list[Record]) -> None:
        self.table, self.rows, self.records = table, rows, records

    @cached_property
    def data(self) -> list[list[Any]]:
        """The rows as columns."""
        return [list(column) for column in zip(*self.rows, strict=True)]

    @cached_property
    def token(self) -> str:
        """Hash of the records the rows were made of: equal tokens mean equal rows, so that the server may skip a repeated
        insert. (Hashing the rows themselves took as long as decoding the events.) But for a device that was erased between
        two readings, which may stand in the rows of the first: those the erasure has yet to change, or has changed."""
        found = hashlib.blake2b(digest_size=16, key=self.table.name.encode())
        for record in self.records:
            found.update(b"%d/%d/%d/" % (record.partition, record.offset, record.timestamp))
            found.update(record.key or b"")
            found.update(record.value or b"")
        return found.hexdigest()

    def halves(self) -> tuple[Insert, Insert]:
        middle = len(self.rows) // 2
        return (Insert(self.table, self.rows[:middle], self.records[:middle]),
                Insert(self.table, self.rows[middle:], self.records[middle:]))


class Rejection(msgspec.Struct, frozen=True):
    """A record that has to become a dead letter."""

    record: Record
    messages: tuple[Message, ...]


class Batch:
    """`inserts` in the order they are made; `outcomes` counts records by (topic, what became of them)."""

    def __init__(self, inserts: list[Insert], rejections: list[Rejection], outcomes: Counter[tuple[str, str]]) -> None:
        self.inserts, self.rejections, self.outcomes = inserts, rejections, outcomes
        self.frozen_at = time.time()


def freeze(
    records: Iterable[Record], to_rows: Mapping[str, ToRows], erased: Callable[[bytes, int], bool] = nobody
) -> Batch:  # fmt: skip
    """Decode every record by its topic's function and sort the rows into inserts. Left out is what is about a user at a
    time of which `erased(user key, ts_ms)` says so, and such a device that came with another user."""
    by_table: dict[str, tuple[Table, list[Row], list[Record]]] = {}
    rejections: list[Rejection] = []
    outcomes: Counter[tuple[str, str]] = Counter()
    for record in records:
        outcome = to_rows[record.topic](record)
        known_ms = min(outcome.ts_ms, record.timestamp) if isinstance(outcome, Rows) else 0  # a clock may be ahead
        if isinstance(outcome, Rows) and erased(outcome.user, known_ms):
            outcomes[record.topic, "skipped_erased"] += 1
        elif isinstance(outcome, Rows):
            outcomes[record.topic, "rows"] += 1
            if outcome.device and erased(outcome.device, known_ms):
                outcome = outcome.without_device()
            for table, row in outcome.rows:
                found = by_table.get(table.name)
                if found is None:
                    found = by_table[table.name] = (table, [], [])
                found[1].append(row)
                found[2].append(record)
        elif isinstance(outcome, Skip):
            outcomes[record.topic, f"skipped_{outcome.reason}"] += 1
        else:
            assert isinstance(outcome, Complaint)
            outcomes[record.topic, "rejected"] += 1
            rejections.append(Rejection(record, outcome.messages))
    inserts = [insert for name in sorted(by_table) for insert in _by_months(*by_table[name])]
    return Batch(inserts, rejections, outcomes)


def _by_months(table: Table, rows: list[Row], records: list[Record]) -> list[Insert]:
    """One insert, or several when the rows span more months than one insert may touch."""
    parts = by_months(table, rows)
    if len(parts) == 1:
        return [Insert(table, rows, records)]
    return [Insert(table, [rows[p] for p in positions], [records[p] for p in positions]) for positions in parts]


def by_months(table: Table, rows: Sequence[Row]) -> Sequence[Sequence[int]]:
    """Positions of rows that may go into one insert each."""
    index, whole = table.month_index, range(len(rows))
    if index is None or _month(min(row[index] for row in rows)) == _month(max(row[index] for row in rows)):  # nearly always
        return [whole]
    months: dict[tuple[int, int], list[int]] = {}
    for position, row in enumerate(rows):
        months.setdefault(_month(row[index]), []).append(position)
    if len(months) <= PARTITIONS_PER_INSERT_MAX:
        return [whole]
    ordered = sorted(months)
    return [[p for month in ordered[start : start + PARTITIONS_PER_INSERT_MAX] for p in months[month]]
            for start in range(0, len(ordered), PARTITIONS_PER_INSERT_MAX)]  # fmt: skip


def _month(at_s: int) -> tuple[int, int]:
    clock = time.gmtime(at_s)
    return clock.tm_year, clock.tm_mon


def dead_letter(rejection: Rejection) -> DeadLetter:
    """Its id and times depend on the record only, so that a second reading gives the same letter; on when it was appended,
    too, as a topic that is made again gives offsets away anew."""
    record = rejection.record
    raw, at = record.value or b"", utc(record.timestamp)
    return DeadLetter(
        dead_letter_id=output_id("sink-rejected", record.topic, str(record.partition), str(record.offset),
                                 str(record.timestamp)),
        tenant=(record.key or b"").decode(errors="replace").split("/", 1)[0],
        kind="sink_rejected",
        failure=Failure(timestamp=at, messages=tuple(
            Message(path=m.path, keyword=m.keyword, message=m.message[:MESSAGE_CHARS_MAX]) for m in rejection.messages)),
        payload=raw[:PAYLOAD_BYTES_MAX],
        payload_bytes=len(raw),
        source=Source(topic=record.topic, partition=record.partition, offset=record.offset),
        first_seen=at,
    )
