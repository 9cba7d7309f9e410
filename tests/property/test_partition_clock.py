"""The clock of a partition: events say what time it is, and the wall carries it on from the last of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stream.core.ranking.counts import CountsPolicy, PartitionCounts
from stream.partition import PartitionState
from tests.support.fakes import T0_MS, FakeStore

HOUR_MS = 3_600_000


@given(st.lists(st.tuples(st.integers(1, 40 * HOUR_MS), st.integers(0, 5_000), st.booleans()), min_size=1, max_size=20))
def test_in_a_quiet_shop_it_goes_as_the_wall_does(steps: list[tuple[int, int, bool]]) -> None:
    """However long the worker has been up: silence is counted from the last event, not from the first."""
    part = PartitionState(0, FakeStore(), PartitionCounts(CountsPolicy()), 10, 5_000)
    part.meta.live_since_ms, wall_ms, latency_ms = T0_MS, T0_MS, 0
    part.advance_clock(wall_ms)
    assert part.carried_clock_ms(wall_ms, caught_up=True) == wall_ms
    for pause_ms, delay_ms, is_event in steps:
        wall_ms += pause_ms
        if is_event and wall_ms - delay_ms > part.meta.clock_ms:
            latency_ms = delay_ms  # from the event to the worker
            part.advance_clock(wall_ms - delay_ms)
        assert part.carried_clock_ms(wall_ms, caught_up=True) == wall_ms - latency_ms
