"""When the watchdog bites, and each reason for it not to."""

from __future__ import annotations

from dataclasses import replace

from stream.adapters.faust.faust_batches import TP
from stream.adapters.health.watchdog import Observation, Watchdog

A, B = TP("events", 0), TP("events", 1)
STUCK = Observation(0, {A: 10, B: 5}, {A: 4, B: 5})


def bites(*observations: Observation) -> bool:
    dog = Watchdog(stall_s=100)
    return [dog.judge(seen) for seen in observations][-1] is not None


def at(at_s: float, seen: Observation = STUCK) -> Observation:
    return replace(seen, at_s=at_s)


def test_it_bites_when_records_wait_and_nothing_moves() -> None:
    assert bites(at(0), at(50), at(100))
    assert not bites(at(0), at(99))


def test_progress_on_the_partition_starts_the_time_again() -> None:
    moved = replace(STUCK, positions={A: 5, B: 5})
    assert not bites(at(0), at(90, moved), at(150, moved))
    assert bites(at(0), at(90, moved), at(190, moved))


def test_progress_elsewhere_does_not_excuse_a_partition() -> None:
    assert bites(at(0), at(100, replace(STUCK, end_offsets={A: 10, B: 50}, positions={A: 4, B: 50})))


def test_an_outage_a_pause_and_a_rebalance_start_the_time_again() -> None:
    for excuse in (replace(STUCK, end_offsets=None), replace(STUCK, busy="recovering")):
        assert not bites(at(0), at(90, excuse), at(150))
        assert not bites(at(0, excuse), at(500, excuse))


def test_no_lag_and_lost_partitions_are_fine() -> None:
    assert not bites(at(0, replace(STUCK, positions={A: 10, B: 5})), at(500, replace(STUCK, positions={A: 10, B: 5})))
    assert not bites(at(0), at(500, replace(STUCK, positions={B: 5})))


def test_a_rebalance_that_does_not_end_while_others_are_answered_is_given_longer() -> None:
    dog = Watchdog(stall_s=600, deaf_s=60)
    for at_s in range(0, 600, 10):
        assert dog.judge(Observation(at_s, None, {}, "rebalancing", deaf=True)) is None
    assert dog.judge(Observation(600, None, {}, "rebalancing", deaf=True)) == "the consumer has had no answer for 600 s"
    dog = Watchdog(stall_s=600, deaf_s=60)
    away = [Observation(at_s, None, {}, "rebalancing") for at_s in range(0, 6_000, 10)]  # the broker answers nobody
    assert not any(dog.judge(one) for one in away)


def test_a_consumer_that_alone_has_no_answer_is_given_as_long_and_an_outage_is_none() -> None:
    dog = Watchdog(stall_s=600, deaf_s=60)
    assert dog.judge(Observation(0, None, {}, deaf=True)) is None
    assert dog.judge(Observation(50, None, {})) is None  # the broker is away for everybody: the time starts again
    assert dog.judge(Observation(60, None, {}, deaf=True)) is None
    assert dog.judge(Observation(119, None, {}, deaf=True)) is None
    assert dog.judge(Observation(120, None, {}, deaf=True)) == "the consumer has had no answer for 60 s"
