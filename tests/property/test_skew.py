"""Clocks that are wrong: a day behind, a day ahead, events twice and out of order. Counts stay exact, and nobody's wrong
clock moves the partition's, makes others late, or raises their alerts."""

from __future__ import annotations

from collections import Counter

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.core.user.state import DAY_MS
from stream.outbox import utc
from tests.support.fakes import T0_MS, FakeModels, FakeRecord, event
from tests.unit.test_personalize import EVENTS, Bench

MINUTE_MS = 60_000
USERS = 6
SKEWS_MS = (0, 0, 0, -DAY_MS, DAY_MS, -3 * DAY_MS, MINUTE_MS, 2 * DAY_MS)
SKEW_MAX_MS, LATENESS_MAX_MS = 5 * MINUTE_MS, 2 * DAY_MS


@st.composite
def logs(draw: st.DrawFn) -> list[tuple[str, int, int, str]]:
    """(user, event time, append time, id) in the order of the log; a tenth is there twice."""
    log = []
    append_ms = T0_MS
    for number in range(draw(st.integers(5, 40))):
        append_ms += draw(st.integers(0, 10 * MINUTE_MS))
        user = draw(st.integers(0, USERS - 1))
        ts_ms = append_ms + draw(st.sampled_from(SKEWS_MS)) - draw(st.integers(0, 20 * MINUTE_MS))
        log.append((f"u{user}", ts_ms, append_ms, f"m{number}"))
        if draw(st.integers(0, 9)) == 0:
            log.append((*log[draw(st.integers(0, len(log) - 1))][:2], append_ms, log[-1][3]))
    return log


@settings(max_examples=60)
@given(logs(), st.integers(1, 7))
async def test_wrong_clocks_poison_nothing(log: list[tuple[str, int, int, str]], batch: int) -> None:
    bench = Bench(FakeModels(hazard_per_day=0.0), skew_max_ms=SKEW_MAX_MS, lateness_max_ms=LATENESS_MAX_MS)
    records = [
        FakeRecord(f"t/{user}".encode(), msgspec.json.encode(event(user=user, ts_ms=ts_ms, id=ident)), offset, append_ms)
        for offset, (user, ts_ms, append_ms, ident) in enumerate(log)
    ]
    for start in range(0, len(records), batch):
        some = records[start : start + batch]
        await bench.personalizer.process(bench.part, EVENTS, some)
        assert bench.part.meta.clock_ms <= some[-1].timestamp + SKEW_MAX_MS, "the clock is bounded by the broker's"
    await bench.close()

    wanted, clock_ms, seen, folded = Counter[str](), 0, set[tuple[str, str]](), dict[str, set[str]]()
    for user, ts_ms, append_ms, ident in log:
        if ts_ms > append_ms + SKEW_MAX_MS:
            wanted["rejected"] += 1
            continue
        clock_ms = max(clock_ms, ts_ms)
        if (user, ident) in seen:
            wanted["duplicate"] += 1
        elif clock_ms - ts_ms > LATENESS_MAX_MS:
            wanted["late"] += 1
        else:
            seen.add((user, ident))
            folded.setdefault(user, set()).add(ident)
            wanted["folded"] += 1
    found = bench.part.outcomes
    assert {name: found[name] for name in ("folded", "duplicate", "late", "rejected")} == {
        name: wanted[name] for name in ("folded", "duplicate", "late", "rejected")
    }
    for user, ids in folded.items():
        state = bench.part.read(f"t/{user}".encode())
        assert state.events == len(ids) and state.last_ts_ms <= clock_ms
    for alert in bench.outputs.values("churn-alerts"):
        assert alert["user_id"] in folded, "nobody is alerted of who was never seen"
        assert alert["as_of_ts"] <= _iso(clock_ms), "no alert from a future that has not come"


def _iso(ts_ms: int) -> str:
    return str(msgspec.to_builtins(utc(ts_ms)))
