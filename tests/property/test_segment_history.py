"""Stream = batch for segments: what a rule would have said, had it been there, is what it says when it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.catalog import Item
from schemas.events import Event
from stream.core.segments import segments
from stream.core.segments.segment_fields import values_of
from stream.core.segments.segment_history import Handover, SegmentHistory, Turn, before, handover, refusals
from stream.core.segments.segment_rules import Rule, Rules, RulesFile, compiled
from stream.core.segments.segments import move
from stream.core.user import identity
from stream.core.user.fold import fold
from stream.core.user.replay import Recorded
from stream.core.user.state import DAY_MS, UserState
from tests.support.fakes import T0_MS, event

HOUR_MS = 3_600_000
SWEEP_MS = 12 * HOUR_MS
DAYS = 50
RULES = compiled(RulesFile(segments=(
    Rule(name="lookers", when="views_7d >= 2 and orders == 0"),
    Rule(name="back again", when="days_since_first - days_since_seen > 5 and touches_1d >= 1"),
    Rule(name="slow", when="days_since_first / (active_days + 1) > 2"),
    Rule(name="cold cart", when="cart_items > 0 and 2 < days_since_seen < 9", tenant="t"),
    Rule(name="elsewhere", when="events > 0", tenant="another"),
    Rule(name="gardeners",
         when="count('Product Viewed', category == 'garden', days=4.5) > distinct('Order Completed', days=9)"),
    Rule(name="seekers", when="count('Searched', text == 'a', days=3) >= 1 or distinct('Searched') > 1"),
), rfm=True))  # fmt: skip
CATALOG = {"a": Item(item_id="a", tenant="t", category="garden")}.get
NAMES = ["Product Viewed", "Product Viewed", "Product Added", "Order Completed", "Searched"]
WHO: list[dict[str, Any]] = [
    {"userId": "u"}, {"userId": "v"}, {"userId": None, "anonymousId": "a"}, {"userId": "u", "anonymousId": "a"},
    {"userId": "v", "anonymousId": "a"},
]  # fmt: skip


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Some weeks of two users and a device that both may have; some events at one time."""
    rows = draw(st.lists(st.tuples(st.integers(0, 45 * DAY_MS), st.integers(0, 4), st.sampled_from("abc"),
                                   st.sampled_from(NAMES)), min_size=1, max_size=25))  # fmt: skip
    rows.sort(key=lambda row: row[0])
    return [msgspec.convert(event(ts_ms=T0_MS + at_ms // draw(st.sampled_from([1, DAY_MS])) * 1, item=item, name=name,
                                  id=f"m{n:02}", properties={"product_id": item, "name": item}, **WHO[who]), Event)
            for n, (at_ms, who, item, name) in enumerate(rows)]  # fmt: skip


def in_order(events: Sequence[Event]) -> list[Event]:
    return sorted(events, key=lambda one: (one.ts_ms, one.message_id))


def looks(events: Sequence[Event]) -> Iterator[tuple[int, list[Event]]]:
    """The moments at which a worker looks: after all events of a time, and in sweeps; with what is to be folded before."""
    at = defaultdict[int, list[Event]](list)
    for one in in_order(events):
        at[one.ts_ms].append(one)
    sweeps = range(T0_MS + 1, T0_MS + DAYS * DAY_MS, SWEEP_MS)
    for now_ms in sorted({*at, *sweeps}):
        yield now_ms, at.get(now_ms, [])


class Live:
    """What the stream does, with a rule that is there from a time on."""

    def __init__(self, rules: Rules, from_ms: int = 0) -> None:
        self.rules, self.from_ms = rules, from_ms
        self.states: dict[str, UserState] = {}
        self.changes: list[Turn] = []

    def look(self, now_ms: int, events: Sequence[Event]) -> None:
        for one in events:
            fold(self.states.setdefault(one.user, UserState()), one, one.ts_ms, 0)
            identity.join(self.states, one)
        if now_ms < self.from_ms:
            return
        for user, state in self.states.items():
            if state.events:
                values = values_of(state, now_ms, 0.0, self.rules.measures, CATALOG)
                inside = [] if state.claims else self.rules.inside("t", values)
                self.changes += [Turn(user, change.segment, now_ms, change.entered, {}, "")
                                 for change in move(state, inside, now_ms)]  # fmt: skip

    def members(self, user: str) -> set[str]:
        return set(segments.members(self.states[user]))


def inside_at(turns: Sequence[Turn], user: str, now_ms: int) -> set[str]:
    found: dict[str, bool] = {}
    for turn in turns:
        if turn.user == user and turn.at_ms <= now_ms:
            assert found.get(turn.segment, False) != turn.entered, "in and out by turns"
            found[turn.segment] = turn.entered
    return {segment for segment, inside in found.items() if inside}


def replayed(events: Sequence[Event], since_ms: int = 0) -> list[Turn]:
    history = SegmentHistory("t", RULES, since_ms=since_ms, catalog=CATALOG)
    for one in in_order(events):
        history.replay.take(one)
    return [turn for turns in history.finish(T0_MS + DAYS * DAY_MS).values() for turn in turns]


@settings(max_examples=40, deadline=None)
@given(histories(), st.one_of(st.just(0), st.integers(T0_MS, T0_MS + 45 * DAY_MS)))
def test_the_past_is_what_the_stream_would_have_said(events: list[Event], since_ms: int) -> None:
    """At whatever moment somebody looks, and so from and until the same moments up to how often they do."""
    turns, live = replayed(events, since_ms), Live(RULES)
    for now_ms, some in looks(events):
        live.look(now_ms, some)
        for user in live.states:
            expected = live.members(user) if now_ms >= since_ms else set()
            assert inside_at(turns, user, now_ms) == expected, (user, now_ms - T0_MS)


@settings(max_examples=25, deadline=None)
@given(histories(), st.integers(0, 100))
def test_a_rule_that_came_later_has_the_same_past_and_present(events: list[Event], sweeps: int) -> None:
    """What is filled in until the stream takes over, and the stream's own word after that, are one whole."""
    begun_ms = T0_MS + 1 + sweeps * SWEEP_MS
    always, late = Live(RULES), Live(RULES, begun_ms)
    for now_ms, some in looks(events):
        always.look(now_ms, some)
        late.look(now_ms, some)
    turns = replayed(events)
    clock_ms = T0_MS + DAYS * DAY_MS
    for user, segment in {(one.user, one.segment) for one in [*always.changes, *late.changes, *turns]}:
        own = [one for one in late.changes if (one.user, one.segment) == (user, segment)]
        begun = min((one.at_ms for one in late.changes if one.segment == segment), default=None)
        until = handover(own[0].at_ms if own else None, begun, SWEEP_MS, clock_ms)
        past = before([one for one in turns if (one.user, one.segment) == (user, segment)], until)
        for now_ms, _ in looks(events):
            told = inside_at(past, user, now_ms) if now_ms < until.at_ms else inside_at(own, user, now_ms)
            wanted = [one for one in always.changes if (one.user, one.segment) == (user, segment)]
            if own or begun is None or not begun <= now_ms:  # who was never in since is out, at the latest a sweep later
                assert told == inside_at(wanted, user, now_ms), (user, segment, now_ms - T0_MS, until)
        assert len(past) % 2 == 0 or not until.outside


def test_an_order_that_views_pushed_out_leaves_its_window_at_its_moment() -> None:
    rules = compiled(RulesFile(lifecycle=False, segments=(Rule(name="buyers", when="orders_7d >= 1"),)))
    rows = [event(id="o", name="Order Completed"), *(event(id=f"m{n:02}", ts_ms=T0_MS + n) for n in range(1, 90))]
    history = SegmentHistory("t", rules)
    history.replay.follow(Recorded(msgspec.convert(row, Event)) for row in rows)
    (turns,) = history.finish(T0_MS + 30 * DAY_MS).values()
    assert [(turn.at_ms - T0_MS, turn.entered) for turn in turns] == [(0, True), (7 * DAY_MS + 1, False)]


def test_only_what_is_certain_is_filled_in() -> None:
    rules = compiled(RulesFile(lifecycle=False, segments=(
        Rule(name="a", when="churn > 0.5"), Rule(name="b", when="revenue > quantile(revenue, 0.9)"),
        Rule(name="c", cluster="x"), Rule(name="d", when="orders > 0"),
    )))  # fmt: skip
    assert refusals(rules, released=False).keys() == {"a", "b", "c"} and refusals(rules, released=True).keys() == {"b"}
    one = Turn("u", "d", 5, entered=True, values={"orders": 1.0}, as_of_event_id="m")
    assert before([one], Handover(9, outside=True)) == [one, one._replace(at_ms=9, entered=False)]
    assert before([one], Handover(9, outside=False)) == [one] and before([one], Handover(5, outside=True)) == []


def test_who_refuses_a_profile_has_no_past() -> None:
    refusing: dict[str, Any] = {"context": {"consent": {"personalization": False}}}
    events = [event(id="1"), event(id="2", ts_ms=T0_MS + 5, userId=None, anonymousId="a"),
              event(id="3", ts_ms=T0_MS + 6, anonymousId="a"), event(id="4", ts_ms=T0_MS + 9, **refusing)]
    turns = replayed([msgspec.convert(one, Event) for one in events])
    assert turns == [], "neither of the user nor of the device that only they had"
    again = replayed([msgspec.convert(one, Event) for one in [*events, event(id="5", ts_ms=T0_MS + 20)]])
    assert {turn.at_ms for turn in again if turn.entered and turn.segment == "lifecycle/new"} == {T0_MS + 20}
