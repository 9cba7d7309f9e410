"""Partitions side by side: one that waits does not hold up another, and one that failed acknowledges nothing more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from schemas import topics
from stream.endings import Stray
from stream.fleet import BATCHES_MAX, TOGETHER_RECORDS_MAX, Fleet, Opened
from stream.personalize import Input
from stream.settings import Personalize


class Batch:
    """A batch as the transport hands it over; its records are names."""

    topic = "events"
    stale = False

    def __init__(self, partition: int, *records: str) -> None:
        self.partition, self.records, self.acked = partition, list(records), 0

    def ack(self) -> None:
        self.acked += 1


class FakePersonalizer:
    """Notes what it folds; a record named `wait` waits for `go`, one named `fail` raises."""

    def __init__(self) -> None:
        self.settings = Personalize()
        self.serving = SimpleNamespace(current=SimpleNamespace(version="v"), take_counts=lambda: None)
        self.segments = SimpleNamespace(look=lambda serving: None, rules=SimpleNamespace(rules=()))
        self.go = asyncio.Event()
        self.folded: list[str] = []
        self.calls: list[list[str]] = []
        self.closed: list[int] = []
        self.lost = -1  # the partition that is lost while it is written
        self.ticked: list[int] = []

    async def process(self, part: Any, source: Input, records: list[str], waiting: int) -> None:
        if "fail" in records:
            raise ConnectionError("the broker is away")
        if "wait" in records:
            await self.go.wait()
        self.calls.append(records)
        self.folded += records

    async def close_interval(self, part: Any, waiting: int = 0) -> bool:
        self.closed.append(part.partition)
        return bool(part.partition != self.lost)

    async def tick(self, part: Any, caught_up: bool, waiting: int = 0) -> None:
        assert not self.go.is_set() or caught_up
        self.ticked.append(part.partition)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # one turn of the loop: the conditions are about tasks, not events
            await asyncio.sleep(0)


@pytest.fixture
async def fleet() -> Fleet:
    async def opener(partition: int) -> Opened:
        state: Any = SimpleNamespace(partition=partition, outcomes={}, refresh=lambda keys: None, swept="",
                                     meta=SimpleNamespace(live_since_ms=0),
                                     given_again=lambda topic, records: "again" in records)
        return Opened(state, lambda: None, list)

    async def source_of(topic: str) -> Input:
        return Input(topic, "id", topics.EVENTS)

    async def check_input(state: Any) -> None:
        raise LookupError("the topic was made again")

    made = Fleet(FakePersonalizer(), opener, source_of, lambda partition: 0, lambda: True, 10, check_input)  # type: ignore[arg-type]
    await made.assigned({0, 1})
    return made


async def test_a_partition_that_waits_holds_up_only_itself(fleet: Fleet) -> None:
    fake: Any = fleet.personalizer
    for batch in (Batch(0, "wait"), Batch(0, "after"), Batch(1, "other")):
        await fleet.handle(batch)
    await until(lambda: fake.folded == ["other"])
    fake.go.set()
    await until(lambda: fake.folded == ["other", "wait", "after"])


async def test_no_more_batches_are_held_than_there_is_room_for(fleet: Fleet) -> None:
    for _ in range(BATCHES_MAX):
        await fleet.handle(Batch(0, *["wait"] * TOGETHER_RECORDS_MAX))
    more = asyncio.create_task(fleet.handle(Batch(1, "other")))
    await asyncio.sleep(0)
    assert not more.done()
    fake: Any = fleet.personalizer
    fake.go.set()
    await more


async def test_small_batches_that_came_meanwhile_are_worked_on_as_one_up_to_a_limit(fleet: Fleet) -> None:
    fake: Any = fleet.personalizer
    await fleet.handle(Batch(0, "wait"))
    await until(lambda: fleet.owned[0].lock.locked())
    small = [Batch(0, f"small {n}") for n in range(3)]
    identity, large = Batch(0, "identity"), Batch(0, *["large"] * TOGETHER_RECORDS_MAX)
    identity.topic = "identity"
    for batch in (*small, identity, Batch(0, "last"), large):
        await fleet.handle(batch)
    fake.go.set()
    await until(lambda: len(fake.calls) == 5)
    assert [call[0] for call in fake.calls] == ["wait", "small 0", "identity", "last", "large"]
    assert [len(call) for call in fake.calls] == [1, 3, 1, 1, TOGETHER_RECORDS_MAX]
    await fleet.revoked({0})
    assert all(batch.acked == 1 for batch in (*small, identity, large))


async def test_a_stale_batch_among_others_is_left_out(fleet: Fleet) -> None:
    fake: Any = fleet.personalizer
    await fleet.handle(Batch(0, "wait"))
    await until(lambda: fleet.owned[0].lock.locked())
    stale, fresh = Batch(0, "stale"), Batch(0, "fresh")
    for batch in (stale, fresh):
        await fleet.handle(batch)
    stale.stale = True
    fake.go.set()
    await until(lambda: len(fake.calls) == 2)
    assert fake.folded == ["wait", "fresh"]
    await fleet.revoked({0})
    assert (stale.acked, fresh.acked) == (0, 1)


async def test_work_that_is_cancelled_by_nobody_is_a_failure(fleet: Fleet) -> None:
    fake: Any = fleet.personalizer

    async def leaks(*_: Any) -> None:
        raise asyncio.CancelledError

    fake.process = leaks
    await fleet.handle(Batch(0, "one"))
    with pytest.raises(Stray, match="partition 0"):
        await fleet.run_timer()


async def test_what_waited_for_a_partition_that_went_away_before_it_was_open_leaves_room(fleet: Fleet) -> None:
    async def never(partition: int) -> Opened:
        await asyncio.Event().wait()
        raise AssertionError

    fleet.opener = never
    await fleet.assigned({0, 1, 2})
    for _ in range(BATCHES_MAX):
        await fleet.handle(Batch(2, *["lost"] * TOGETHER_RECORDS_MAX))
    await fleet.revoked({2})
    async with asyncio.timeout(5):
        await fleet.handle(Batch(0, "kept"))
    fake: Any = fleet.personalizer
    await until(lambda: fake.folded == ["kept"])


async def test_after_a_failure_nothing_is_written_or_acknowledged_and_the_timer_says_why(fleet: Fleet) -> None:
    fake: Any = fleet.personalizer
    good, bad, behind = Batch(0, "good"), Batch(0, "fail"), Batch(0, "behind")
    await fleet.handle(good)
    await until(lambda: fake.folded == ["good"])
    for batch in (bad, behind):
        await fleet.handle(batch)
    with pytest.raises(ConnectionError):
        await fleet.run_timer()
    with pytest.raises(ConnectionError):
        await fleet.handle(Batch(1, "other"))
    await fleet.revoked({0, 1})
    assert fake.folded == ["good"] and fake.closed == [] and good.acked == bad.acked == behind.acked == 0


@pytest.mark.parametrize("what", ["tick", "close_interval"])
async def test_who_gives_a_partition_away_writes_nothing_after_what_the_timer_failed_to_say(fleet: Fleet, what: str) -> None:
    """The state has moved by then, so who came next would believe that it was said."""
    fake: Any = fleet.personalizer
    begun, fails = asyncio.Event(), asyncio.Event()

    async def failing(*_: object) -> bool:
        begun.set()
        await fails.wait()
        raise ConnectionError("the broker refuses it")

    await fleet.handle(Batch(0, "good"))
    await until(lambda: fake.folded == ["good"])
    closing = fake.close_interval
    setattr(fake, what, failing)
    timer = asyncio.create_task(fleet.run_timer())
    await begun.wait()
    fake.close_interval = closing
    closed = len(fake.closed)
    leaving = asyncio.create_task(fleet.revoked({0}))
    await until(lambda: 0 not in fleet.owned)
    fails.set()
    await leaving
    assert len(fake.closed) == closed
    with pytest.raises(ConnectionError):
        await timer


async def test_batches_still_waiting_when_the_partition_is_taken_away_are_left_to_its_next_owner(fleet: Fleet) -> None:
    fake: Any = fleet.personalizer
    first, second = Batch(0, "wait"), Batch(0, "after")
    await fleet.handle(first)
    await until(lambda: fleet.owned[0].lock.locked())
    await fleet.handle(second)
    leaving = asyncio.create_task(fleet.revoked({0}))
    await until(lambda: 0 not in fleet.owned)
    fake.go.set()
    await leaving
    assert fake.folded == ["wait"] and (first.acked, second.acked) == (1, 0)


async def test_batches_keep_their_order_while_their_partition_opens(fleet: Fleet) -> None:
    """A batch that arrives in the very turn in which the opening ends came before those that had waited for it. What was
    folded is told by offset, so they then counted as folded already, and were lost."""
    gate, opener = asyncio.Event(), fleet.opener

    async def slow(partition: int) -> Opened:
        await gate.wait()
        return await opener(partition)

    fleet.opener = slow
    await fleet.assigned({0, 1, 2})
    fake: Any = fleet.personalizer
    await fleet.handle(Batch(2, "first"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gate.set()
    await fleet.handle(Batch(2, "second"))
    await until(lambda: len(fake.folded) == 2)
    assert fake.folded == ["first", "second"]


async def test_an_interval_whose_partition_was_lost_while_it_was_written_acknowledges_nothing(fleet: Fleet) -> None:
    fake: Any = fleet.personalizer
    fake.lost = 1
    kept, lost = Batch(0, "kept"), Batch(1, "lost")
    for batch in (kept, lost):
        await fleet.handle(batch)
    await until(lambda: len(fake.folded) == 2)
    await fleet.revoked({0, 1})
    assert (kept.acked, lost.acked) == (1, 0)


async def test_an_opening_that_ends_although_nobody_took_its_partition_away_is_a_failure(fleet: Fleet) -> None:
    async def leaks(partition: int) -> Opened:
        raise asyncio.CancelledError

    fleet.opener = leaks
    await fleet.assigned({0, 1, 2})
    await fleet.handle(Batch(2, "never folded"))
    with pytest.raises(Stray, match="opening partition 2"):
        async with asyncio.timeout(5):
            await fleet.run_timer()
    fake: Any = fleet.personalizer
    assert fake.folded == []


async def test_an_opening_has_let_go_of_its_store_when_its_partition_is_taken_away(fleet: Fleet) -> None:
    begun, closed = asyncio.Event(), []

    async def slow(partition: int) -> Opened:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # the client is stopped
            closed.append(partition)
        raise AssertionError

    fleet.opener = slow
    await fleet.assigned({0, 1, 2})
    await begun.wait()
    await fleet.revoked({2})
    assert closed == [2]


async def test_a_failed_opening_is_told_by_the_timer_and_keeps_no_other_partition_from_being_let_go(fleet: Fleet) -> None:
    closed: list[int] = []
    opener = fleet.opener

    async def third_fails(partition: int) -> Opened:
        if partition == 2:
            raise ConnectionError("the broker is away")
        return (await opener(partition))._replace(close=lambda: closed.append(partition))

    fleet.opener = third_fails
    await fleet.assigned({0, 1, 2, 3})
    await until(lambda: fleet.paused() == "")
    await fleet.revoked({2, 3})
    assert closed == [3]
    with pytest.raises(ConnectionError):
        await fleet.run_timer()


async def test_who_may_not_write_works_on_nothing_until_the_group_has_answered(fleet: Fleet) -> None:
    """A worker that was asleep: its partitions may be another's, where users whose silence it counts have come back."""
    fake: Any = fleet.personalizer
    awake, fleet.may_write = fleet.may_write, lambda: False
    kept, lost = Batch(0, "kept"), Batch(1, "lost")
    for batch in (kept, lost):
        await fleet.handle(batch)
    timer = asyncio.create_task(fleet.run_timer())
    await until(lambda: fleet.owned[0].lock.locked() and fleet.owned[1].lock.locked())
    await fleet.revoked({1})
    assert fake.folded == fake.ticked == fake.closed == []
    fleet.may_write = awake
    await until(lambda: 0 in fake.ticked)
    timer.cancel()
    assert fake.folded == ["kept"] and 1 not in fake.ticked and lost.acked == 0


async def test_who_slept_in_the_middle_of_a_batch_waits_for_the_group_or_until_the_partition_is_gone(fleet: Fleet) -> None:
    awake, fleet.may_write = fleet.may_write, lambda: False
    kept, lost = (asyncio.create_task(fleet.regained(partition)) for partition in (0, 1))
    await fleet.revoked({1})
    assert await lost is False and not kept.done()
    fleet.may_write = awake
    assert await kept is True


async def test_a_timer_that_overslept_leaves_a_round_out(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fake: Any = fleet.personalizer
    asked: list[float] = []

    def monotonic() -> float:
        asked.append(0.0 if not asked else 100.0)  # the second time is after the first pause
        return asked[-1]

    looked: list[int] = []
    fake.segments.look = lambda serving: looked.append(len(asked))
    monkeypatch.setattr("stream.fleet.time", SimpleNamespace(monotonic=monotonic, perf_counter=time.perf_counter))
    timer = asyncio.create_task(fleet.run_timer())
    await until(lambda: len(fake.ticked) >= 2)
    timer.cancel()
    assert looked[0] >= 4, "before and after two pauses"


async def test_an_input_that_is_another_than_was_folded_ends_the_worker(fleet: Fleet) -> None:
    """Records left out as folded that came after what was folded: the broker gave their offsets away a second time."""
    fake: Any = fleet.personalizer
    batch = Batch(0, "again")
    await fleet.handle(batch)
    with pytest.raises(LookupError):
        await fleet.run_timer()
    await fleet.revoked({0})
    assert fake.folded == fake.closed == [] and batch.acked == 0


async def test_a_look_at_all_inputs_that_finds_another_than_was_folded_ends_the_worker(fleet: Fleet) -> None:
    fake: Any = fleet.personalizer
    batch = Batch(0, "folded before")
    await fleet.handle(batch)
    await until(lambda: fake.folded == ["folded before"])
    with pytest.raises(LookupError):
        await fleet.check_inputs()
    with pytest.raises(LookupError):
        await fleet.run_timer()
    await fleet.revoked({0, 1})
    assert fake.closed == [] and batch.acked == 0


async def test_everybody_is_gone_through_for_a_model_or_a_setting_and_not_for_a_restart(fleet: Fleet) -> None:
    fake: Any = fleet.personalizer
    refreshed: list[bytes] = []

    async def once(settings: Personalize, version: str, swept: str) -> str:
        """Until two rounds of a fleet's timer are over; returns what is kept."""
        fake.settings, fake.serving.current.version, fake.ticked = settings, version, []
        state: Any = SimpleNamespace(partition=0, outcomes={}, refresh=refreshed.extend, swept=swept,
                                     meta=SimpleNamespace(live_since_ms=0))  # fmt: skip

        async def opener(partition: int) -> Opened:
            return Opened(state, lambda: None, lambda: iter([b"t/u"]))

        one = Fleet(fake, opener, fleet.source_of, lambda partition: 0, lambda: True, 10, fleet.check_input)
        await one.assigned({0})
        timer = asyncio.create_task(one.run_timer())
        await until(lambda: len(fake.ticked) > 2)
        timer.cancel()
        return str(state.swept)

    kept = await once(Personalize(), "v", "")
    assert refreshed == [b"t/u"] and await once(Personalize(), "v", kept) == kept and refreshed == [b"t/u"]
    for settings, version in ((Personalize(), "w"), (Personalize(reminders_week_max=9), "v")):
        assert await once(settings, version, kept) != kept
    assert refreshed == [b"t/u"] * 3
