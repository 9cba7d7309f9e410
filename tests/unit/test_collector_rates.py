"""Rates of write keys and users: what fits passes, what does not is told when to come back, and memory is bounded."""

from __future__ import annotations

import pytest

from producers.collector.rates import Rates
from stream.http import rates
from stream.http.answers import Refused
from stream.http.rates import Buckets
from stream.settings import Collector


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def made(clock: Clock, key_per_s: float = 1_000.0) -> Rates:
    own = Collector(key_events_per_s_max=key_per_s, user_events_per_s_max=2.0, user_events_burst=10, batch_events_max=5,
                    key_regulations_per_s_max=2.0, key_regulations_burst=10)  # fmt: skip
    return Rates(own, forgotten_at_once_max=5, clock_s=clock)


def test_a_burst_fits_then_the_rate_holds_and_the_wait_is_said(clock: Clock) -> None:
    some = made(clock)
    for _ in range(10):
        some.admit("t", "k", [b"t/u"])
    with pytest.raises(Refused) as refused:
        some.admit("t", "k", [b"t/u"])
    assert refused.value.status == 429 and refused.value.retry_after_s == 1 and "t/u" in refused.value.message
    some.admit("t", "k", [b"t/other"])  # nobody else is held up
    clock.now_s += 0.5
    some.admit("t", "k", [b"t/u"])
    clock.now_s += 3_600
    some.admit("t", "k", [b"t/u"] * 10)
    with pytest.raises(Refused):
        some.admit("t", "k", [b"t/u"])


def test_what_names_nobody_counts_for_its_key_alone(clock: Clock) -> None:
    some = made(clock, key_per_s=50.0)
    some.admit("t", "k", [None] * 40)
    some.admit("t", "k", [b"t/u"] * 10)
    with pytest.raises(Refused, match="A write key of t"):
        some.admit("t", "k", [None])


def test_a_request_passes_whole_or_takes_nothing(clock: Clock) -> None:
    some = made(clock)
    some.admit("t", "k", [b"t/bot"] * 9)
    for _ in range(3):
        with pytest.raises(Refused) as refused:
            some.admit("t", "k", [b"t/bot", b"t/bot", b"t/u"])
        assert refused.value.retry_after_s == 1
    some.admit("t", "k", [b"t/u"] * 10)  # of the refused ones nothing was counted


def test_who_makes_users_up_is_held_by_the_rate_of_the_key_and_other_keys_of_the_tenant_are_not(clock: Clock) -> None:
    some = made(clock, key_per_s=50.0)
    for number in range(50):
        some.admit("t", "k", [f"t/{number}".encode()])
    with pytest.raises(Refused, match="A write key of t sends more than 50"):
        some.admit("t", "k", [b"t/next"])
    some.admit("t", "of its servers", [b"t/next"])
    some.admit("s", "other", [b"s/u"])


def test_memory_is_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "BUCKETS_MAX", 100)
    some = Buckets(per_s=1.0, burst=2)
    for number in range(1_000):
        some.take(f"t/{number}", 1, clock.now_s)
    assert len(some._paid_at) == 100
    assert some.wait_s("t/999", 2, clock.now_s) == pytest.approx(1.0) and some.wait_s("t/0", 2, clock.now_s) == 0.0


def test_a_whole_batch_of_one_user_fits_at_first(clock: Clock) -> None:
    own = Collector(key_events_per_s_max=1.0, user_events_per_s_max=1.0, user_events_burst=1, batch_events_max=500)
    Rates(own, 500, clock).admit("t", "k", [b"t/u"] * 500)


def test_users_to_forget_are_limited_by_admin_key_and_one_whole_request_fits_at_first(clock: Clock) -> None:
    some = made(clock)
    some.regulate("t", "admin", 10)
    with pytest.raises(Refused, match="An admin key of t names more than 2 users to forget/s") as refused:
        some.regulate("t", "admin", 5)
    assert (refused.value.status, refused.value.retry_after_s) == (429, 3)
    some.regulate("t", "another", 5)
    clock.now_s += 3
    some.regulate("t", "admin", 5)
    own = Collector(key_regulations_per_s_max=0.1, key_regulations_burst=1)
    Rates(own, forgotten_at_once_max=1_000, clock_s=clock).regulate("t", "admin", 1_000)
