"""Stream = batch for rules about what models say: a worker's own word at every moment is what a replay says of it later."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.events import Event, ms
from stream.core.segments import segments
from stream.core.segments.audience import CALM_MS, Audience
from stream.core.segments.segment_history import SegmentHistory, Turn
from stream.core.segments.segment_rules import Rule, Rules, RulesFile, compiled
from stream.core.survival.churn import EDGES_DAYS, ChurnPolicy, bends_days, p_after
from stream.core.user.replay import Recorded, Told, in_order
from stream.core.user.state import UserState
from stream.segment_models import Ahead, ReleaseAsked
from tests.property.test_segment_history import inside_at
from tests.support.fakes import DAY_MS, T0_MS, FakeModels, event
from tests.unit.test_clusters_live import cluster, sweep
from tests.unit.test_personalize import Bench

RULES = """
lifecycle: false
segments:
  - {name: alerted, when: alerted}
  - {name: leaving, when: 0.65 < churn < 0.78}
  - {name: lookers in doubt, when: churn > 0.7 and views_7d >= 1}
  - {name: left the garden, cluster: garden, when: alerted or days_since_seen > 9}
  - {name: more likely than most, when: "churn >= quantile(churn, 0.6)"}
"""
POLICY = {"horizon_days": 14.0, "raise_at": 0.8, "clear_at": 0.45, "cooldown_days": 3.0}
CLUSTERS = (cluster("kitchen", 0), cluster("garden", 1), cluster("cellar", 2))
AUDIENCE = Audience(users=9, clusters=CLUSTERS, quantiles={"everybody": {"churn": tuple(n / 100 for n in range(101))}})


class Fading(FakeModels):
    """Who did more stays longer, and the longer anybody is silent, the less likely they come back."""

    def __init__(self) -> None:
        super().__init__(audience=AUDIENCE)
        self.manifest = msgspec.structs.replace(self.manifest, churn=POLICY)

    def survival(self, features: Any) -> Any:
        pull = 0.1 + 0.2 * features[:, 3:4]  # of log_events
        return (-pull * np.log1p(EDGES_DAYS / 2)).astype(np.float32)  # (B, E)


class Look(NamedTuple):
    """Who was in what when the worker had looked at everybody."""

    now_ms: int
    members: dict[str, set[str]]


steps = st.lists(
    st.tuples(st.sampled_from([1_000, CALM_MS, DAY_MS, 3 * DAY_MS, 8 * DAY_MS]),
              st.one_of(st.none(), st.tuples(st.integers(0, 2), st.integers(0, 4),
                                             st.sampled_from(["Product Viewed", "Product Viewed", "Order Completed"])))),
    min_size=1, max_size=25,
)  # fmt: skip


async def streamed(rules: Path, steps: list[Any]) -> tuple[Bench, list[dict[str, Any]], list[Look]]:
    """A worker that lives through the steps: somebody does something, or nobody."""
    bench = Bench(Fading(), rules=rules, recommend_interval_ms=100)
    bench.items()
    events: list[dict[str, Any]] = []
    looks = []
    for n, (pause_ms, done) in enumerate(steps):
        bench.clock.at_ms += pause_ms
        if done is not None:
            user, item, name = done
            events.append(event(user=f"u{user}", item=f"i{item}", name=name, ts_ms=bench.clock.at_ms, id=f"m{n}"))
            await bench.feed(events[-1])
            await bench.personalizer.tick(bench.part, caught_up=True)
            bench.clock.at_ms += 200
        await bench.personalizer.tick(bench.part, caught_up=True)
        sweep(bench)
        await bench.close()
        users = {key.decode().split("/")[1]: key for key in bench.store.values if not key.startswith(b"#")}
        now_ms = bench.part.carried_clock_ms(bench.clock.now_ms(), caught_up=True)
        looks.append(Look(now_ms, {user: set(segments.members(bench.part.read(key))) for user, key in users.items()}))
    return bench, events, looks


def replayed(bench: Bench, rules: Rules, events: list[dict[str, Any]], end_ms: int, *, ahead: bool) -> list[Turn]:
    told = [Told(one["user_id"], ms(datetime.fromisoformat(one["as_of_ts"])), one["state"] == "raised")
            for one in bench.outputs.values("churn-alerts")]  # fmt: skip
    known = [Recorded(msgspec.convert(one, Event)) for one in events]
    asked = ReleaseAsked(bench.serving.current, "t", rules)
    if ahead:
        first = Ahead(asked, lambda user: end_ms + 1, 0)
        first.replay.follow(known)
        first.finish()
        asked.on_asked = lambda n: pytest.fail("all was asked ahead")
    history = SegmentHistory("t", rules, asked=asked)
    history.replay.follow(known, in_order(told))
    return [turn for turns in history.finish(end_ms).values() for turn in turns]


@settings(max_examples=30, deadline=None)
@given(steps, st.booleans())
def test_what_a_worker_said_is_what_a_replay_says(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any], ahead: bool
) -> None:
    rules = tmp_path_factory.mktemp("rules") / "segments.yml"
    rules.write_text(RULES)
    bench, events, looks = asyncio.run(streamed(rules, steps))
    turns = replayed(bench, bench.personalizer.segments.rules, events, looks[-1].now_ms, ahead=ahead)
    for look in looks:
        for user, members in look.members.items():
            assert inside_at(turns, user, look.now_ms) == members, (user, look.now_ms - T0_MS)


def test_the_rules_of_the_law_above_hold_somebody_at_some_time(tmp_path: Path) -> None:
    """Else it would be about nobody."""
    rules = tmp_path / "segments.yml"
    rules.write_text(RULES)
    visit = [(DAY_MS, (0, 1, "Product Viewed")), (1_000, (1, 0, "Product Viewed")), (1_000, (1, 0, "Order Completed"))]
    bench, _, looks = asyncio.run(streamed(rules, [*visit, *[(DAY_MS, None)] * 12, (DAY_MS, (0, 1, "Product Viewed"))]))
    somebody = {name for look in looks for members in look.members.values() for name in members}
    assert somebody == {rule.name for rule in bench.personalizer.segments.rules.rules} - {"cluster/cellar"}
    assert [one["state"] for one in bench.outputs.values("churn-alerts")] == ["raised", "raised"]


@given(st.lists(st.floats(0, 0.2), min_size=len(EDGES_DAYS) - 1, max_size=len(EDGES_DAYS) - 1), st.integers(0, 99),
       st.floats(0, 1), st.floats(0.1, 400), st.floats(-2, 2))  # fmt: skip
def test_between_two_bends_a_chance_goes_in_one_direction(
    hazards: list[float], at: int, share: float, horizon: float, calib_a: float
) -> None:
    curve = np.concatenate([[0.0], -np.cumsum(np.array(hazards) * np.diff(EDGES_DAYS))]).astype(np.float32)
    policy, bends = ChurnPolicy(horizon_days=horizon, calib_a=calib_a), [*bends_days(horizon), 2_000.0]
    low, high = bends[at % (len(bends) - 1)], bends[at % (len(bends) - 1) + 1]
    days = np.array([low, low + share * (high - low), high])
    first, between, last = p_after(np.tile(curve, (3, 1)), days, policy).tolist()
    assert min(first, last) - 1e-6 <= between <= max(first, last) + 1e-6


def test_only_what_rules_read_is_asked(tmp_path: Path) -> None:
    rules = tmp_path / "segments.yml"
    rules.write_text("lifecycle: false\nclusters: false\nsegments: [{name: a, when: churn > 0.5}]\n")
    bench = Bench(Fading(), rules=rules)
    bench.personalizer.segments.look(bench.serving.current)
    asked = ReleaseAsked(bench.serving.current, "t", bench.personalizer.segments.rules)
    said = asked(UserState(events=1, first_ts_ms=5, last_ts_ms=5, days=[0]))
    assert said.cluster == "" and said.log_survival is not None


def test_an_alert_stands_until_it_is_taken_back_or_its_user_is_forgotten() -> None:
    rules = compiled(RulesFile(lifecycle=False, segments=(Rule(name="alerted", when="alerted"),)))
    seen, back = event(user="u", id="1"), event(user="u", id="2", ts_ms=T0_MS + 20)
    refuses = event(user="u", id="3", ts_ms=T0_MS + 10, context={"consent": {"personalization": False}})
    alerts = [Told("nobody", T0_MS + 1, True), Told("u", T0_MS + 5, True), Told("u", T0_MS + 20, False)]

    def turned(*events: dict[str, Any], alerts: list[Told]) -> list[tuple[str, int, bool]]:
        history = SegmentHistory("t", rules)
        history.replay.follow([Recorded(msgspec.convert(one, Event)) for one in events], alerts)
        return [(one.user, one.at_ms - T0_MS, one.entered) for some in history.finish(T0_MS + 99).values() for one in some]

    assert turned(seen, back, alerts=alerts) == [("u", 5, True), ("u", 20, False)]
    assert turned(seen, back, alerts=alerts[:2]) == [("u", 5, True)], "to come back takes nothing back by itself"
    assert turned(seen, refuses, back, alerts=alerts[:2]) == []
