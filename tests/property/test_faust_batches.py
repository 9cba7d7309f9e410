"""The ledger against a simple model: whatever the order of delivery, loss and acknowledgement."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from stream.adapters.faust.faust_batches import TP, Delivery, Ledger, RecordBatch
from stream.adapters.kafka.kafka_clients import partition_of

EVENTS = TP("events", 0)


@dataclass
class Record:
    offset: int


Step = tuple[str, int]
STEPS = st.lists(st.tuples(st.sampled_from(["issue", "deliver", "drop", "ack", "commit", "rewind"]), st.integers(0, 5)),
                 max_size=60)


@given(STEPS)
def test_a_commit_covers_acknowledged_records_only_and_never_goes_back_in_an_epoch(steps: list[Step]) -> None:
    ledger = Ledger()
    position, committed = 0, 0
    queue: list[RecordBatch] = []
    held: list[RecordBatch] = []
    acknowledged: set[int] = set()
    for step, number in steps:
        if step == "issue":
            offsets = range(position, position + number + 1)
            queue.append(ledger.issue(EVENTS, 1, [Record(offset) for offset in offsets]))
            position = offsets.stop
        elif step == "deliver" and queue:
            batch = queue.pop(0)
            if ledger.deliver(batch) is Delivery.OK:
                held.append(batch)
        elif step == "drop" and queue:
            queue.pop(0)  # as Faust does when flow is suspended
        elif step == "ack" and held:
            batch = held[number % len(held)]
            batch.ack()
            if not batch.stale:
                acknowledged.update(range(batch.first_offset, batch.next_offset))
        elif step == "commit":
            pending = ledger.pending()
            ledger.mark_committed(ledger.epoch, pending)
            assert pending.get(EVENTS, committed) >= committed
            committed = pending.get(EVENTS, committed)
        elif step == "rewind":
            ledger.begin_epoch()
            position = committed
        assert set(range(ledger.pending().get(EVENTS, committed))) <= acknowledged


@given(st.permutations(range(6)))
def test_everything_acknowledged_in_any_order_is_committable(order: list[int]) -> None:
    ledger = Ledger()
    batches = [ledger.issue(EVENTS, 1, [Record(2 * n), Record(2 * n + 1)]) for n in range(6)]
    assert [ledger.deliver(batch) for batch in batches] == [Delivery.OK] * 6
    assert ledger.pending() == {}
    for n in order:
        batches[n].ack()
        batches[n].ack()
    assert ledger.pending() == {EVENTS: 12}
    assert ledger.open_batches() == 0


def test_after_a_dropped_batch_nothing_is_delivered_before_the_rewind() -> None:
    ledger = Ledger()
    first, _dropped, third = (ledger.issue(EVENTS, 1, [Record(n)]) for n in range(3))
    assert ledger.deliver(first) is Delivery.OK
    assert ledger.deliver(third) is Delivery.GAP
    ledger.begin_epoch()
    assert ledger.deliver(third) is Delivery.STALE
    first.ack()
    assert (first.stale, ledger.stale_acks, ledger.pending()) == (True, 1, {})


@given(st.binary(max_size=40), st.integers(1, 500))
def test_partitions_are_those_of_kafka_python(key: bytes, partitions: int) -> None:
    from kafka.partitioner.default import murmur2

    assert partition_of(key, partitions) == (murmur2(key) & 0x7FFFFFFF) % partitions
