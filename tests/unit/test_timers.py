"""A partition's timers: those that came are found once, and those that were put off take no room."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stream.core.ranking.counts import CountsPolicy, PartitionCounts
from stream.partition import VOID_TIMERS_MAX, PartitionState
from tests.support.fakes import FakeStore

USERS = [b"t/a", b"t/b", b"t/c"]


def partition() -> PartitionState:
    return PartitionState(0, FakeStore(), PartitionCounts(CountsPolicy()), 10, 0)


def put_off(part: PartitionState, user: bytes, due_ms: int) -> None:
    part.change(user).due_ts_ms = due_ms
    part.set_timer(user)


actions = st.one_of(
    st.tuples(st.just("set"), st.sampled_from(USERS), st.integers(0, 30)),
    st.tuples(st.just("pass"), st.just(b""), st.integers(0, 30)),
    st.tuples(st.just("erase"), st.sampled_from(USERS), st.just(0)),
)


@given(opened=st.dictionaries(st.sampled_from(USERS), st.integers(1, 30)), steps=st.lists(actions, max_size=40))
def test_who_is_due_is_whoever_a_plain_search_finds(opened: dict[bytes, int], steps: list[tuple[str, bytes, int]]) -> None:
    part, armed = partition(), dict(opened)
    for user, due_ms in opened.items():
        part.change(user).due_ts_ms = due_ms
    part.load_timers(list(opened.items()))
    for what, user, at in steps:
        if what == "set":
            put_off(part, user, at)
            armed[user] = at
        elif what == "erase":
            part.dirty.pop(user, None)
            part.erase(user)
            armed.pop(user, None)
        else:
            come = sorted(key for key, due_ms in armed.items() if 0 < due_ms <= at)
            assert sorted(part.pop_due(at, 10)) == come
            for key in come:
                armed[key] = 0


def test_a_user_who_comes_back_all_day_leaves_no_timers_behind() -> None:
    part = partition()
    part.load_timers([(b"t/old", 5)])
    part.change(b"t/old").due_ts_ms = 5
    for n in range(20_000):
        put_off(part, USERS[n % 2], 1_000_000 + n)
    assert len(part._timers) <= 2 * 3 + VOID_TIMERS_MAX
    assert part.pop_due(2_000_000, 10) == [b"t/old", USERS[0], USERS[1]]


def test_what_is_read_again_after_a_rewind_takes_nothing_back() -> None:
    part = partition()
    part.mark_folded("events", "id", 20, 1_000)
    part.mark_folded("events", "id", 12, 900)
    assert part.meta.offsets["events"] == ("id", 20) and part.meta.marks["events"] == 1_000
    part.mark_folded("events", "made again", 3, 2_000)
    assert part.meta.offsets["events"] == ("made again", 3) and part.meta.marks["events"] == 2_000
