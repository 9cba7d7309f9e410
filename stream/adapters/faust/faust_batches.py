"""Batches of raw records and the ledger that says which offsets may be committed.

Pure bookkeeping, without Faust: `faust_compat` issues a batch when it fetched one, delivers it when the agent asks for
it, and commits what the ledger says. The rules the ledger keeps:

1. A batch counts from delivery, not from the fetch: Faust may drop it in between, and it must not hold up commits.
2. If one in between was dropped, later ones are refused (`GAP`) until the consumer has rewound.
3. The committable offset moves over contiguous acknowledged batches only, never past an open one.
4. Every rewind and every assignment starts a new epoch. Batches of an older one are stale: they are not delivered, and
   acknowledging them moves nothing, because their records are read again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

Record = Any  # aiokafka's ConsumerRecord: key, value, offset, timestamp (append time in ms), headers


class TP(NamedTuple):
    """Topic and partition; equal to and hashed like Faust's and aiokafka's own, which are tuples too."""

    topic: str
    partition: int


class Delivery(Enum):
    OK = "ok"
    STALE = "stale"
    GAP = "gap"


@dataclass(frozen=True, slots=True, eq=False)
class RecordBatch:
    """The records of one partition from one poll, in offset order, never empty.

    `generation` is the consumer group's generation in which they were read; check it with
    `faust_compat.owns(app, batch.generation)` before writing anything on their behalf.
    """

    topic: str
    partition: int
    generation: int
    records: Sequence[Record] = field(repr=False)
    epoch: int
    sequence: int
    _ledger: Ledger = field(repr=False)

    @property
    def tp(self) -> TP:
        return TP(self.topic, self.partition)

    @property
    def first_offset(self) -> int:
        return int(self.records[0].offset)

    @property
    def next_offset(self) -> int:
        """The offset after the last record: what a commit of this batch says."""
        return int(self.records[-1].offset) + 1

    @property
    def stale(self) -> bool:
        """True once its records will be read again by whoever owns the partition now; acknowledging does nothing."""
        return self.epoch != self._ledger.epoch

    def ack(self) -> None:
        """Everything this batch stands for is safe. Call it from the event loop's thread; twice does no harm."""
        self._ledger.ack(self)


@dataclass(slots=True)
class _Lane:
    """One partition in one epoch. Open batches are in delivery order, which is offset order."""

    issued: int = 0
    delivered: int = 0
    open: deque[RecordBatch] = field(default_factory=deque)
    finished: set[int] = field(default_factory=set)
    committable: int | None = None
    committed: int | None = None


class Ledger:
    """Which batches are open and which offset each partition may commit. Not thread-safe: the event loop owns it."""

    def __init__(self) -> None:
        self.epoch = 0
        self.records_delivered = 0
        self.stale_acks = 0
        self.stale_batches = 0
        self._lanes: dict[TP, _Lane] = {}

    def begin_epoch(self) -> int:
        """Forget every open batch; what they held is read again."""
        self.epoch += 1
        self._lanes = {}
        return self.epoch

    def issue(self, tp: TP, generation: int, records: Sequence[Record]) -> RecordBatch:
        """A batch of freshly fetched records. It binds nothing before it is delivered."""
        lane = self._lanes.setdefault(TP(*tp), _Lane())
        batch = RecordBatch(tp[0], tp[1], generation, records, self.epoch, lane.issued, self)
        lane.issued += 1
        return batch

    def deliver(self, batch: RecordBatch) -> Delivery:
        """Open the batch, unless it is stale or one before it never arrived."""
        if batch.epoch != self.epoch:
            self.stale_batches += 1
            return Delivery.STALE
        lane = self._lanes[batch.tp]
        if batch.sequence != lane.delivered:
            return Delivery.GAP
        lane.delivered += 1
        lane.open.append(batch)
        self.records_delivered += len(batch.records)
        return Delivery.OK

    def ack(self, batch: RecordBatch) -> None:
        if batch.epoch != self.epoch:
            self.stale_acks += 1
            return
        lane = self._lanes[batch.tp]
        if not any(other is batch for other in lane.open):
            return  # acknowledged before
        lane.finished.add(batch.sequence)
        while lane.open and lane.open[0].sequence in lane.finished:
            done = lane.open.popleft()
            lane.finished.discard(done.sequence)
            lane.committable = done.next_offset

    def pending(self) -> dict[TP, int]:
        """Offsets to commit: acknowledged contiguously and not committed yet."""
        return {tp: lane.committable for tp, lane in self._lanes.items()
                if lane.committable is not None and lane.committable != lane.committed}

    def mark_committed(self, epoch: int, offsets: Mapping[TP, int]) -> None:
        """The broker holds these offsets. A commit begun in an older epoch is not this epoch's business."""
        if epoch != self.epoch:
            return
        for tp, offset in offsets.items():
            self._lanes[tp].committed = offset

    def open_batches(self) -> int:
        return sum(len(lane.open) for lane in self._lanes.values())

    def acknowledged(self) -> dict[TP, int]:
        """The next offset each partition needs, for those that acknowledged anything in this epoch."""
        return {tp: lane.committable for tp, lane in self._lanes.items() if lane.committable is not None}
