"""Discovered clusters and relative thresholds in the stream: who is where, when a release moves people, and that a batch
says the same."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.events import Event
from stream import placing
from stream.core.ranking.counts import CountsPolicy, PartitionCounts
from stream.core.segments import audience, segments
from stream.core.segments.audience import (
    CALM_MS,
    STEPS,
    Audience,
    Cluster,
    before_last_visit_ms,
    from_bytes,
    history_mark,
    to_bytes,
)
from stream.core.segments.segment_fields import values_of
from stream.core.segments.segment_rules import Rule, RulesError, RulesFile, compiled
from stream.core.segments.segments import members, move
from stream.core.user.fold import fold
from stream.core.user.state import Placed, UserState
from tests.support.fakes import DAY_MS, T0_MS, FakeModels, event, run_inline
from tests.unit.test_personalize import Bench


def cluster(name: str, axis: int, id_: str = "") -> Cluster:
    centroid = tuple(float(at == axis) for at in range(4))
    return Cluster(id=id_ or f"c{axis}", name=name, terms=(name, "things"), users=10, items=(f"i{axis}",), centroid=centroid)


KITCHEN_GARDEN = Audience(users=20, clusters=(cluster("kitchen", 0), cluster("garden", 1)))
RULES = "lifecycle: false\nsegments:\n  - {name: keen gardeners, cluster: garden, when: views_7d >= 3}\n"


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "segments.yml"
    path.write_text(RULES)
    return path


def bench_of(rules: Path, **models: Any) -> Bench:
    bench = Bench(FakeModels(**({"audience": KITCHEN_GARDEN} | models)), rules=rules, recommend_interval_ms=5_000)
    bench.items()
    return bench


def release(bench: Bench, **models: Any) -> None:
    """A worker takes another bundle, and looks at everybody."""
    bench.serving.current = bench.serving.prepare(FakeModels(**models))
    sweep(bench)


def sweep(bench: Bench) -> None:
    bench.personalizer.segments.look(bench.serving.current)
    bench.part.unsorted |= {key: True for key in bench.store.values if not key.startswith(b"#")}


def said(bench: Bench) -> list[tuple[str, str, str]]:
    return [(one["user_id"], one["segment"], one["change"]) for one in bench.outputs.values("segment-changes")]


async def test_a_user_is_in_the_nearest_cluster_as_soon_as_they_are_encoded(rules: Path) -> None:
    bench = bench_of(rules)
    await bench.feed(event(item="i0"))
    await bench.close()
    assert said(bench) == [("u", "cluster/kitchen", "entered")]
    later = [event(item="i1", ts_ms=T0_MS + DAY_MS + n * 6_000) for n in range(3)]
    for one in later:
        await bench.feed(one)
        await bench.close()
    assert said(bench)[1:] == [("u", "cluster/garden", "entered"), ("u", "keen gardeners", "entered"),
                               ("u", "cluster/kitchen", "left")]  # fmt: skip
    entered = bench.outputs.values("segment-changes")[2]
    assert entered["values"] == {"views_7d": 3.0}, "a text explains nothing as a number"
    again = bench.opened(PartitionCounts(CountsPolicy()))
    assert members(again.read(b"t/u")) == ["cluster/garden", "keen gardeners"]


async def test_who_strays_before_the_next_recommendation_is_moved_as_the_interval_closes(
    rules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ahead of those whom a release moves, as they are of other users' past."""
    bench = bench_of(rules, hazard_per_day=10.0)  # silence alarms nobody
    await bench.feed(*(event(user=f"u{n}", item="i0", ts_ms=T0_MS + n) for n in range(4)))
    await bench.close()
    release(bench, audience=KITCHEN_GARDEN, version="fake-2", hazard_per_day=10.0)
    monkeypatch.setattr(placing, "PLACED_USERS_MAX", 1)
    await bench.close()
    assert len(bench.part.unplaced) == 3
    await bench.feed(*(event(user="u3", item="i1", ts_ms=T0_MS + 1_000 + n, id=f"m{n}") for n in range(2)))
    await bench.close()
    assert said(bench)[4:] == [("u3", "cluster/garden", "entered"), ("u3", "keen gardeners", "entered"),
                               ("u3", "cluster/kitchen", "left")]  # fmt: skip
    assert len(bench.outputs.values("recommendations")) == 4 and bench.part.owed.waits(b"t/u3"), "of the first events alone"
    assert len(bench.part.unplaced) == 2 and not bench.part.strayed
    await bench.feed(*(event(user=f"u{n}", item="i1", ts_ms=T0_MS + 2_000 + n) for n in (1, 2)))
    await bench.close()
    assert [*bench.part.strayed] == [b"t/u2"], "one an interval here"
    assert await recommended(bench, 4_000) == 7
    assert (bench.part.read(b"t/u2").placed.release, bench.part.read(b"t/u0").placed.release) == ("fake-2", "fake-2")


async def recommended(bench: Bench, after_ms: int) -> int:
    """How many there are when so much time has passed in silence."""
    await bench.personalizer.tick(bench.part, caught_up=True)
    bench.clock.at_ms += after_ms
    await bench.personalizer.tick(bench.part, caught_up=True)
    return len(bench.outputs.values("recommendations"))


async def test_between_two_that_are_as_near_a_user_stays_where_the_last_visit_left_them(rules: Path) -> None:
    bench = bench_of(rules)
    for n, item in enumerate(("i0", "i0", "i1", "i1")):  # half and half: as near to one as to the other
        await bench.feed(event(item=item, ts_ms=T0_MS + (n >= 2) * 7 * 3_600_000 + n * 6_000, id=f"m{n}"))
        await bench.close()
    assert members(bench.part.read(b"t/u")) == ["cluster/kitchen"]
    other = bench_of(rules)
    for n, item in enumerate(("i1", "i1", "i0", "i0")):
        await other.feed(event(item=item, ts_ms=T0_MS + (n >= 2) * 7 * 3_600_000 + n * 6_000, id=f"m{n}"))
        await other.close()
    assert "cluster/garden" in members(other.part.read(b"t/u"))
    assert said(bench) == [("u", "cluster/kitchen", "entered")], "nobody flapped"


visits = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.sampled_from([1_000, 20_000, CALM_MS, DAY_MS])),
                  min_size=1, max_size=25)  # fmt: skip


@settings(max_examples=40)
@given(visits, st.sets(st.integers(0, 24)))
def test_a_batch_over_the_log_says_what_the_stream_said_whenever_it_looked(
    tmp_path_factory: pytest.TempPathFactory, visits: list[tuple[int, int, int]], cuts: set[int]
) -> None:
    rules = tmp_path_factory.mktemp("rules") / "segments.yml"
    rules.write_text(RULES)
    events, at_ms = [], T0_MS
    for n, (user, item, pause_ms) in enumerate(visits):
        at_ms += pause_ms
        events.append(event(user=f"u{user}", item=f"i{item}", ts_ms=at_ms, id=f"m{n}"))

    async def streamed() -> tuple[Bench, int]:
        bench = bench_of(rules)
        for n, one in enumerate(events):
            await bench.feed(one)
            if n in cuts:
                await bench.close()
        bench.clock.at_ms += 10_000  # silence, so that the last events are answered
        await bench.personalizer.tick(bench.part, caught_up=True)
        bench.clock.at_ms += 10_000
        await bench.personalizer.tick(bench.part, caught_up=True)
        await bench.close()
        return bench, bench.part.carried_clock_ms(bench.clock.now_ms(), caught_up=True)

    async def batch(bench: Bench, now_ms: int) -> dict[str, list[str]]:
        states: dict[str, UserState] = {}
        for one in sorted(events, key=lambda one: one["timestamp"], reverse=True):  # the order of arrival does not matter
            fold(states.setdefault(one["userId"], UserState()), msgspec.convert(one, Event), 0, 1 << 60)
        await placing.place(bench.serving.current, "t", list(states.values()), run_inline)
        known = bench.personalizer.segments.rules
        return {user: sorted(known.inside("t", values_of(state, now_ms, 0.0))) for user, state in states.items()}

    bench, now_ms = asyncio.run(streamed())
    expected = asyncio.run(batch(bench, now_ms))
    assert {user: members(bench.part.read(f"t/{user}".encode())) for user in expected} == expected


async def test_a_release_moves_people_a_few_at_a_time_and_whose_name_stays_is_not_moved(
    rules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "PLACED_USERS_MAX", 2)
    bench = bench_of(rules)
    await bench.feed(*(event(user=f"u{n}", item=f"i{n % 2}", ts_ms=T0_MS + n) for n in range(8)))
    await bench.close()
    assert len(said(bench)) == 8
    vectors = FakeModels.encode
    encoded: list[int] = []

    def counting(self: FakeModels, arrays: Any) -> Any:
        encoded.append(len(arrays["mask"]))
        return vectors(self, arrays)

    monkeypatch.setattr(FakeModels, "encode", counting)
    moved = Audience(users=20, clusters=(cluster("kitchen", 0), cluster("balcony", 1, "c9")))
    release(bench, audience=moved, version="fake-2")
    await bench.close()
    assert {one[0] for one in said(bench)[8:]} == {"u1"}, "who has not been placed yet is where they were"
    for _ in range(3):
        await bench.close()
    assert encoded == [2, 2, 2, 2]
    await bench.close()
    changes = said(bench)[8:]
    assert {one for one in changes if one[2] == "entered"} == {(f"u{n}", "cluster/balcony", "entered") for n in (1, 3, 5, 7)}
    assert {one for one in changes if one[2] == "left"} == {(f"u{n}", "cluster/garden", "left") for n in (1, 3, 5, 7)}
    sweep(bench)
    await bench.close()
    assert encoded == [2, 2, 2, 2], "who has been placed is not asked again"
    release(bench, version="fake-3")
    for _ in range(4):
        await bench.close()
    assert not any(members(bench.part.read(f"t/u{n}".encode())) for n in range(8)), "a release without clusters has none"


async def test_a_worker_without_a_model_leaves_people_where_they_are(rules: Path) -> None:
    bench = bench_of(rules)
    await bench.feed(event(item="i0"))
    await bench.close()
    bench.serving.current = type(bench.serving.current)(None)
    sweep(bench)
    await bench.feed(event(item="i1", ts_ms=T0_MS + DAY_MS))
    await bench.close()
    assert members(bench.part.read(b"t/u")) == ["cluster/kitchen"]


async def test_nothing_is_encoded_for_clusters_nobody_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "segments.yml"
    path.write_text("clusters: false\nlifecycle: false\nsegments: [{name: any, when: events > 0}]")
    bench = bench_of(path)
    await bench.feed(event(item="i0"))
    await bench.close()
    assert members(bench.part.read(b"t/u")) == ["any"] and bench.part.read(b"t/u").placed == Placed()


def table(**fields: float) -> Audience:
    """Quantiles that rise evenly from 0 to the given value."""
    of = {name: tuple(top * at / STEPS for at in range(STEPS + 1)) for name, top in fields.items()}
    buyers = {name: tuple(2 * value for value in one) for name, one in of.items()}
    return Audience(users=100, quantiles={"everybody": of, "buyers": buyers})


def test_a_threshold_relative_to_everybody_is_a_number_of_the_release() -> None:
    file = RulesFile(lifecycle=False, segments=(
        Rule(name="best tenth", when="revenue >= quantile(revenue, 0.9)"),
        Rule(name="best buyers", when="revenue >= buyers_quantile(revenue, 0.9)"),
        Rule(name="plain", when="revenue > 10")))  # fmt: skip
    rules = compiled(file, table(revenue=100.0), "r1")
    assert rules.inside("t", {"revenue": 90.0}) == ["best tenth", "plain"]
    assert rules.inside("t", {"revenue": 180.0}) == ["best tenth", "best buyers", "plain"]
    assert rules.read_by("best tenth") == ["revenue"] and rules.relative == {"best tenth", "best buyers"}
    assert compiled(file, table(revenue=100.0), "r2").version != rules.version, "another release: everybody is looked at"
    nothing = compiled(file)
    assert nothing.inside("t", {"revenue": 180.0}) == ["plain"], "without a release nobody is in the best tenth"
    negated = RulesFile(lifecycle=False, segments=(Rule(name="not best", when="not revenue >= quantile(revenue, 0.9)"),))
    assert compiled(negated).inside("t", {"revenue": 0.0}) == [], "nor in what is not the best tenth"
    fixed = RulesFile(segments=(Rule(name="plain", when="revenue > 10"),))
    assert compiled(fixed, None, "r1").version == compiled(fixed, None, "r2").version


@given(st.floats(0, 300), st.integers(1, 12), st.floats(0, 400))
def test_every_buyer_is_in_one_fifth_of_each_kind(revenue: float, orders: int, silence: float) -> None:
    rules = compiled(RulesFile(lifecycle=False, fifths=True), table(revenue=150.0, orders=6.0, days_since_order=200.0))
    values = {"revenue": revenue, "orders": float(orders), "days_since_order": silence}
    inside = rules.inside("t", values)
    assert sorted(name.split(" ")[0] for name in inside) == ["fifths/frequency", "fifths/money", "fifths/recency"]
    assert rules.inside("t", values | {"orders": 0.0}) == []
    if silence < 70:
        assert "fifths/recency 5" in inside
    if revenue > 250:
        assert "fifths/money 5" in inside


@pytest.mark.parametrize(("when", "complaint"), [
    ("revenue > quantile(revenue, 1.2)", "the share is a number between 0 and 1"),
    ("revenue > quantile(revenue)", "write quantile(field, share)"),
    ("revenue > quantile(known, 0.5)", "a field that is a number"),
    ("revenue > quantile(evnets, 0.5)", "a field that is a number"),
    ("revenue > quantiles(revenue, 0.5)", "functions are contains(text, part), number(text), quantile(field, share)"),
    ("cluster > 'a'", "only numbers are smaller or larger"),
])
def test_what_is_wrong_with_a_relative_rule_is_said(when: str, complaint: str) -> None:
    with pytest.raises(RulesError) as refused:
        compiled(RulesFile(segments=(Rule(name="x", when=when),)))
    assert complaint in str(refused.value)


def test_names_of_clusters_are_taken_and_clusters_work_in_expressions() -> None:
    with pytest.raises(RulesError, match="of discovered clusters"):
        compiled(RulesFile(segments=(Rule(name="cluster/mine", when="orders > 1"),)))
    rules = compiled(RulesFile(lifecycle=False, segments=(
        Rule(name="either", when="cluster in ['kitchen', 'garden'] and orders > 0"),)), KITCHEN_GARDEN)  # fmt: skip
    assert rules.inside("t", {"cluster": "garden", "orders": 1.0}) == ["cluster/garden", "either"]
    assert rules.inside("t", {"cluster": "", "orders": 1.0}) == []


def test_what_a_bundle_says_of_everybody_comes_back_equal_or_is_refused() -> None:
    whole = Audience(users=3, clusters=KITCHEN_GARDEN.clusters, quantiles=table(revenue=9.0).quantiles)
    assert from_bytes(to_bytes(whole), 4) == whole
    twice = Audience(clusters=(cluster("a", 0), cluster("a", 1)))
    with pytest.raises(ValueError, match="one name"):
        from_bytes(to_bytes(twice), 4)
    with pytest.raises(ValueError, match="8 dimensions"):
        from_bytes(to_bytes(whole), 8)
    falling = Audience(quantiles={"everybody": {"revenue": tuple(float(-at) for at in range(STEPS + 1))}})
    with pytest.raises(ValueError, match="rising"):
        from_bytes(to_bytes(falling), 4)


def test_a_visit_ends_with_calm_and_the_mark_stands_for_the_history() -> None:
    state = UserState()
    for n, at_ms in enumerate((0, 1_000, CALM_MS + 1_000, CALM_MS + 2_000)):
        before = history_mark(state)
        fold(state, msgspec.convert(event(ts_ms=T0_MS + at_ms, id=f"m{n}"), Event), 0, 1 << 60)
        assert history_mark(state) != before
    assert before_last_visit_ms(state) == T0_MS + 1_000
    assert before_last_visit_ms(UserState(ring=state.ring[2:])) == 0
    near = np.array([[0.5, 0.52]], dtype=np.float32)
    assert audience.unsure([state], near) == ([0], [T0_MS + 1_000])
    assert audience.unsure([state], np.array([[0.5, 0.9]], dtype=np.float32)) == ([], [])


def test_memberships_a_release_must_judge_are_kept_without_one() -> None:
    rules = compiled(RulesFile(lifecycle=False, segments=(Rule(name="best", when="revenue > quantile(revenue, 0.9)"),
                                                          Rule(name="buyers", when="orders > 0"))))  # fmt: skip
    state = UserState()
    move(state, ["best", "buyers", "cluster/x"], 5)
    assert segments.kept(state, [], rules) == ["best", "cluster/x"]
