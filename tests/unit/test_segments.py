"""Segments by rules: what rules may say, what moves people, and that a second reading says the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from clickwake.cli import app
from clickwake.segments_backfill import chosen
from schemas.events import Event
from stream.core.ranking.counts import CountsPolicy, PartitionCounts
from stream.core.segments.segment_fields import NEVER_DAYS, values_of
from stream.core.segments.segment_rules import Rule, RulesError, RulesFile, compiled
from stream.core.segments.segments import members, move
from stream.core.user import identity
from stream.core.user.fold import fold
from stream.core.user.state import UserState
from stream.segments import load
from tests.support.fakes import DAY_MS, T0_MS, FakeModels, event
from tests.unit.test_forgetting import IDENTITY, told
from tests.unit.test_personalize import Bench

RULES = """
lifecycle: false
segments:
  - name: lookers
    when: views_7d >= 2 and orders == 0
    description: look and do not buy
  - name: buyers
    when: orders >= 1
  - name: slipping
    when: churn > 0.99 and days_since_seen > 3
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "segments.yml"
    path.write_text(RULES)
    return path


def rewrite(path: Path, text: str) -> None:
    path.write_text(text)


def said(bench: Bench) -> list[tuple[str, str, int]]:
    return [(one["segment"], one["change"], one["number"]) for one in bench.outputs.values("segment-changes")]


async def test_users_enter_and_leave_with_the_values_that_moved_them(rules: Path) -> None:
    bench = Bench(FakeModels(), rules=rules)
    bench.items()
    await bench.feed(event(item="i1"))
    await bench.close()
    assert said(bench) == []
    await bench.feed(event(item="i2", ts_ms=T0_MS + 1_000))
    await bench.close()
    (entered,) = bench.outputs.values("segment-changes")
    assert (entered["segment"], entered["change"]) == ("lookers", "entered")
    assert entered["values"] == {"orders": 0.0, "views_7d": 2.0} and entered["as_of_event_id"].endswith("i2")
    await bench.feed(event(item="i2", ts_ms=T0_MS + 2_000, name="Order Completed"))
    await bench.close()
    assert said(bench) == [("lookers", "entered", 1), ("buyers", "entered", 1), ("lookers", "left", 2)]
    assert members(bench.part.read(b"t/u")) == ["buyers"]
    again = bench.opened(PartitionCounts(CountsPolicy()))
    assert members(again.read(b"t/u")) == ["buyers"], "memberships are state"


async def test_time_alone_moves_people_at_its_moment_once_they_were_looked_at_before_it(rules: Path) -> None:
    """The bench's sweep comes every 300 s; nobody is looked at by it here but at the beginning of the last ten minutes."""
    bench = Bench(FakeModels(hazard_per_day=1.0), rules=rules)
    bench.items()
    seen_ms = T0_MS + 1
    await bench.feed(event(item="i1"), event(item="i2", ts_ms=seen_ms))
    await bench.close()
    out_ms = T0_MS + 7 * DAY_MS + 1  # the older of the two views is more than seven days old
    bench.part.unsorted[b"t/u"] = True
    await bench.feed(event(user="other", ts_ms=out_ms - 400_000))
    await bench.close()
    assert [at_ms for at_ms, key in bench.part.turns if key == b"t/u"] == [out_ms]
    for apart_ms, left in ((-1, False), (0, True)):
        await bench.feed(event(user="other", ts_ms=out_ms + apart_ms, id=f"m{apart_ms}"))
        await bench.close()
        assert (("lookers", "left", 2) in said(bench)) == left
    assert bench.part.turns == []


async def test_time_alone_moves_people_when_everybody_is_looked_at(rules: Path) -> None:
    bench = Bench(FakeModels(hazard_per_day=1.0), rules=rules)  # all come back: no alert is raised, which would be looked at
    bench.items()
    await bench.feed(event(item="i1"), event(item="i2", ts_ms=T0_MS + 1))
    await bench.close()
    later = event(user="other", item="i1", ts_ms=T0_MS + 30 * DAY_MS)
    await bench.feed(later)
    await bench.close()
    assert ("lookers", "left", 2) not in said(bench)
    bench.part.unsorted[b"t/u"] = True  # what a sweep does
    await bench.close()
    assert ("lookers", "left", 2) in said(bench)


async def test_a_rule_may_count_by_what_the_catalog_says(rules: Path) -> None:
    rewrite(rules, """
lifecycle: false
segments: [{name: gardeners, when: 'count("Product Viewed", category == "c1", days=7) >= 2'}]
""")
    bench = Bench(FakeModels(), rules=rules)
    bench.items()  # every other one is of category c1
    await bench.feed(event(item="i1"), event(item="i2", ts_ms=T0_MS + 1), event(item="i4", ts_ms=T0_MS + 2))
    await bench.close()
    assert said(bench) == []
    await bench.feed(event(item="i3", ts_ms=T0_MS + 3))
    await bench.close()
    (entered,) = bench.outputs.values("segment-changes")
    assert entered["values"] == {"count('Product Viewed', category == 'c1', days=7)": 2.0}


async def test_a_second_reading_gives_the_same_ids(rules: Path) -> None:
    async def run(cuts: list[int]) -> set[str]:
        """The same events in intervals of another length, from a state that was never written."""
        bench = Bench(FakeModels(), rules=rules)
        bench.items()
        events = [event(item="i1"), event(item="i2", ts_ms=T0_MS + 1_000),
                  event(item="i2", ts_ms=T0_MS + 2_000, name="Order Completed"), event(item="i3", ts_ms=T0_MS + 3_000)]
        for number, one in enumerate(events):
            await bench.feed(one)
            if number in cuts:
                await bench.close()
        return {one["change_id"] for one in bench.outputs.values("segment-changes")}

    assert await run([1, 3]) == await run([1, 2, 3]) and await run([3]) < await run([1, 3])


async def test_nothing_is_said_while_history_is_imported_and_a_changed_file_is_taken_over(rules: Path) -> None:
    bench = Bench(FakeModels(), rules=rules)
    bench.items()
    await bench.feed(event(item="i1", lane="import"), event(item="i2", ts_ms=T0_MS + 1, lane="import"))
    await bench.close()
    assert said(bench) == []
    await bench.feed(event(item="i3", ts_ms=T0_MS + 2))
    await bench.close()
    assert said(bench) == [("lookers", "entered", 1)]
    rewrite(rules, "lifecycle: false\nsegments: [{name: all, when: events > 0}]")
    bench.personalizer.segments.look()
    bench.part.unsorted[b"t/u"] = True
    await bench.close()
    assert said(bench)[1:] == [("all", "entered", 1), ("lookers", "left", 2)]
    rewrite(rules, "segments: [{name: all, when: evnets > 0}]")
    bench.personalizer.segments.look()
    assert [rule.name for rule in bench.personalizer.segments.rules.rules] == ["all"], "the rules before stay"


@pytest.mark.parametrize(("text", "complaint"), [
    ("segments: [{name: a}]", "segment 'a': it says neither `when` nor `cluster`"),
    ("segments: [{name: a, when: orders > 1, colour: red}]", "unknown field `colour`"),
    ("segments: [{name: a, when: evnets > 1}]", "segment 'a': there is no field 'evnets'"),
    ("segments: [{name: a, when: orders}]", "segment 'a': 'orders' gives a number, wanted is a flag"),
    ("segments: [{name: a, when: orders > 1}, {name: a, when: orders > 2}]", "there are two of this name"),
    ("segments: [{name: a, when: orders > 1}, {name: a, when: orders > 2, tenant: t}]", "there are two of this name"),
    ("segments: [{name: a, when: count(7) > 1}]", "segment 'a': 'count(7)': the first is the name of an event"),
    ("segments: [{name: 'A B!', when: orders > 1}]", "matching regex"),
    ("segments: {", "segments.yml"),
])
def test_what_is_wrong_with_rules_is_said(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "segments.yml"
    path.write_text(text)
    with pytest.raises(RulesError) as refused:
        load(path)
    assert complaint in str(refused.value) and str(path) in str(refused.value)


def test_built_in_stages_cover_everybody_once() -> None:
    rules = compiled(RulesFile(rfm=True))
    stages = ["lifecycle/new", "lifecycle/active", "lifecycle/cooling", "lifecycle/lapsed"]
    for first in (0.0, 6.9, 7.1, 400.0):
        for seen in (0.0, 13.0, 15.0, 61.0):
            values = values_of(UserState(first_ts_ms=1, last_ts_ms=1), 1, 0.0) | {
                "days_since_first": max(first, seen), "days_since_seen": seen}
            inside = [name for name in rules.inside("t", values) if name in stages]
            assert len(inside) == 1 or inside == ["lifecycle/new", "lifecycle/active"], (first, seen, inside)
    assert values_of(UserState(), T0_MS, 0.0)["days_since_order"] == NEVER_DAYS


RFM = {  # days since the last order, orders
    "champions": [(0, 4), (30, 4), (30, 50)], "loyal": [(0, 3), (30, 3), (31, 4), (90, 3), (90, 9)],
    "promising": [(0, 1), (30, 2)], "about to sleep": [(31, 1), (90, 2)], "at risk": [(91, 3), (180, 20)],
    "hibernating": [(91, 2), (180, 1)], "lost": [(181, 1), (181, 3), (4_000, 50)],
}  # fmt: skip


def rfm_of(days: float, orders: int) -> list[str]:
    """Groups of who has ordered once a day, so many days ago for the last time."""
    rules = compiled(RulesFile(lifecycle=False, rfm=True))
    now_ms = T0_MS + 10_000 * DAY_MS
    last_ms = now_ms - round(days * DAY_MS)
    state = UserState(events=orders, orders=orders, ordered_ts_ms=last_ms if orders else 0,
                      order_days=[last_ms // DAY_MS - ago for ago in range(orders)][::-1])  # fmt: skip
    return rules.inside("t", values_of(state, now_ms, 0.0))


@pytest.mark.parametrize("group", RFM)
def test_who_is_in_which_group_by_recency_and_frequency(group: str) -> None:
    for days, orders in RFM[group]:
        assert rfm_of(days, orders) == [f"rfm/{group}"], (days, orders)


@given(st.floats(0, 9_000), st.integers(0, 64))
def test_every_buyer_is_in_exactly_one_group(days: float, orders: int) -> None:
    assert len(rfm_of(days, orders)) == (orders > 0)


def test_when_the_last_order_was_is_known_of_every_buyer() -> None:
    """Also of an order without lines; of what an earlier version wrote to the day."""
    ordered_ms, now_ms = T0_MS + 7, T0_MS + 2 * DAY_MS
    state = UserState()
    raw = event(ts_ms=ordered_ms, name="Order Completed", item=None, properties={"revenue": 5.0})
    fold(state, msgspec.convert(raw, Event), 0, 1 << 60)
    assert values_of(state, now_ms, 0.0)["days_since_order"] == (now_ms - ordered_ms) / DAY_MS
    state.ordered_ts_ms = 0
    assert values_of(state, now_ms, 0.0)["days_since_order"] == (now_ms - ordered_ms // DAY_MS * DAY_MS) / DAY_MS


names = st.sampled_from(["a", "b", "c"])


@given(st.lists(st.lists(names, unique=True), max_size=12))
def test_changes_tell_who_is_inside(turns: list[list[str]]) -> None:
    state, inside, seen = UserState(), set[str](), set[tuple[str, int]]()
    for at, wanted in enumerate(turns):
        for change in move(state, wanted, at):
            assert (change.segment, change.number) not in seen
            seen.add((change.segment, change.number))
            (inside.add if change.entered else inside.discard)(change.segment)
        assert inside == set(wanted) == set(members(state))


def test_a_batch_over_the_log_says_what_the_stream_says() -> None:
    """Memberships are of state and time alone: folding the log in another order of arrival gives the same."""
    rules = compiled(RulesFile(segments=(Rule(name="x", when="views_7d >= 3 or revenue > 20"),)))
    events: list[dict[str, Any]] = [event(item=f"i{n % 4}", id=f"m{n}", ts_ms=T0_MS + n * 3_600_000,
                                          name="Order Completed" if n % 5 == 0 else "Product Viewed") for n in range(30)]

    def inside(order: list[dict[str, Any]]) -> list[str]:
        state = UserState()
        for one in order:
            fold(state, msgspec.convert(one, Event), 0, 1 << 60)
        return rules.inside("t", values_of(state, T0_MS + 3 * DAY_MS, 0.0))

    assert inside(events) == inside([*events[15:], *events[:15]])


async def test_what_a_guest_bought_counts_once_they_say_who_they_are(rules: Path) -> None:
    rewrite(rules, "segments: [{name: buyers, when: orders >= 1}]")
    bench = Bench(FakeModels(), rules=rules)
    bench.items()
    guest: dict[str, Any] = {"userId": None, "anonymousId": "a"}
    await bench.feed(event(item="i1", name="Order Completed", **guest), event(item="i2", ts_ms=T0_MS + 1, **guest))
    await bench.feed(event(type="identify", event=None, item=None, ts_ms=T0_MS + 1_000, anonymousId="a"))
    await bench.close()
    assert "lifecycle/prospect" in members(bench.part.read(b"t/u")), "the device has not answered yet"
    await told(bench)
    await bench.close()
    assert members(bench.part.read(b"t/u")) == ["buyers", "lifecycle/new"]
    assert members(bench.part.read(b"t/a")) == []
    await bench.feed(event(item="i3", ts_ms=T0_MS + 10_000))
    said = bench.outputs.values("recommendations")[-1]
    assert said["user_id"] == "u" and "i1" not in {one["item_id"] for one in said["items"]} != set()
    await bench.close()
    await bench.feed(identity.encode(identity.Forget("t", holder="u", other="a")), source=IDENTITY)
    await bench.close()
    assert "lifecycle/prospect" in members(bench.part.read(b"t/u")), "what the device told is forgotten"


async def test_who_is_alerted_is_in_a_segment_about_alerts_at_once_and_not_in_the_next_sweep(rules: Path) -> None:
    rewrite(rules, "lifecycle: false\nsegments: [{name: call them, when: alerted}]\n")
    bench = Bench(FakeModels(hazard_per_day=0.01), rules=rules)
    bench.items()
    await bench.feed(event(user="u"))
    await bench.close()
    assert bench.part.read(b"t/u").due_ts_ms == T0_MS
    await bench.personalizer.tick(bench.part, caught_up=True)
    await bench.close()
    assert said(bench) == [("call them", "entered", 1)]


def test_what_is_filled_in_is_chosen_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = compiled(RulesFile(segments=(Rule(name="slipping", when="churn > 0.5"), Rule(name="all", when="events > 0"))))
    every, left_out = chosen(rules, [], released=False)
    assert "all" in {rule.name for rule in every.rules} and len(every.rules) == len(rules.rules) - 1
    assert list(left_out) == ["slipping"] and "there is no release" in left_out["slipping"]
    assert chosen(rules, [], released=True) == (rules, {})
    only, left_out = chosen(rules, ["all"], released=False)
    assert [rule.name for rule in only.rules] == ["all"] and left_out == {} and only.reads == {"events"}
    for name, complaint in (("slipping", "cannot be filled in: it reads churn"), ("al", "no segment .al.")):
        with pytest.raises(RulesError, match=complaint):
            chosen(rules, [name], released=False)
    monkeypatch.setenv("CLICKWAKE_HOME", str(tmp_path))
    done = CliRunner().invoke(app, ["segments", "backfill", "--json"])
    assert done.exit_code == 1 and "segments.yml" in msgspec.json.decode(done.stdout)["error"]
