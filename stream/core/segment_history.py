"""The past of segments: when users would have come and gone, had a rule been there from the beginning.

Events go in as they happened, are folded by the stream's own fold and judged by its own rules. Between two events only
time moves a user: counts within windows step at known moments, and the ages (`segments.AGES`) grow, so that a condition's
bounds (`stream.core.spans`) say of a whole stretch of silence that nothing turns in it; where they do not, it is halved
until the turn is found, to the millisecond. The live sweep looks every few minutes instead, and finds it that much later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from schemas.events import Event
from stream.core import identity, segments
from stream.core.expression import Expression
from stream.core.fold import Outcome, ads_stated, fold
from stream.core.measures import Catalog, no_catalog
from stream.core.segments import AGES, COUNTED_DAYS, Rules
from stream.core.state import DAY_MS, NOTHING_STATED, Stated, UserState

MODELLED = ("churn", "alerted", "cluster")  # what a model said then nobody can say now
SWEEP_MS = 300_000  # who comes and goes within it may be passed over, as the live sweep does


class Turn(NamedTuple):
    """A user would have come into a segment or gone out of it; `values` are the numbers that its rule reads."""

    user: str
    segment: str
    at_ms: int
    entered: bool
    values: dict[str, float]
    as_of_event_id: str


class Handover(NamedTuple):
    """From when on the stream's own word about a user and segment counts. `outside`: its word is that they are not in."""

    at_ms: int
    outside: bool


def handover(first_ms: int | None, begun_ms: int | None, sweep_ms: int, clock_ms: int) -> Handover:
    """`first_ms`: the user's first live change; `begun_ms`: the first of anybody in this segment; `clock_ms`: how far events
    go. Whoever has no live change was not in when everybody was looked at, a sweep after the first one.

    >>> handover(5, 3, 10, 100), handover(None, 3, 10, 100), handover(None, 95, 10, 100), handover(None, None, 10, 100)
    (Handover(at_ms=5, outside=False), Handover(at_ms=13, outside=True), Handover(at_ms=100, outside=False), \
Handover(at_ms=100, outside=False))
    """
    if first_ms is not None:
        return Handover(first_ms, outside=False)
    if begun_ms is not None and begun_ms + sweep_ms <= clock_ms:
        return Handover(begun_ms + sweep_ms, outside=True)
    return Handover(clock_ms, outside=False)


def before(turns: Iterable[Turn], until: Handover) -> list[Turn]:
    """Of one user's turns in one segment, in their order, those before the stream took over."""
    kept = [turn for turn in turns if turn.at_ms < until.at_ms]
    if until.outside and kept and kept[-1].entered:
        kept.append(kept[-1]._replace(at_ms=until.at_ms, entered=False))
    return kept


def refusals(rules: Rules) -> dict[str, str]:
    """Segments whose past cannot be known, and why."""
    found = {}
    for at, (rule, condition) in enumerate(zip(rules.rules, rules.conditions, strict=True)):
        if asked := [name for name in MODELLED if name in condition.names]:
            found[rule.name] = f"it reads {', '.join(asked)}, and what a model said of the past is not known"
        elif at in rules.unknown:
            found[rule.name] = "it asks for a quantile that the release does not know"
    return found


class _Seen:
    """What is known of a user as of the last look."""

    def __init__(self) -> None:
        self.at_ms = 0
        self.inside: frozenset[str] = frozenset()
        self.values: Mapping[str, Any] = {}
        self.ordered_ms = 0


class SegmentHistory:
    """Follows one tenant's users through `take`, in event-time order, and then `finish`. Holds the states of all it was
    given; only `wanted` users are judged. Nothing is said before `since_ms`: who is in by then enters then."""

    def __init__(
        self, tenant: str, rules: Rules, wanted: Callable[[str], bool] = lambda user: True, since_ms: int = 0,
        catalog: Catalog = no_catalog,
    ) -> None:  # fmt: skip
        about = [at for at, rule in enumerate(rules.rules) if rule.tenant in (None, tenant)]
        self.tenant, self.rules, self.wanted, self.since_ms = tenant, rules.only(about), wanted, since_ms
        self.catalog = catalog
        self.states: dict[str, UserState] = {}
        self.turns: dict[str, list[Turn]] = {}
        self._seen: dict[str, _Seen] = {}
        self._clock_ms = 0
        self._touched: dict[str, None] = {}  # at `_clock_ms`: judged once all of that time is folded
        named = [(rule.name, condition) for rule, condition in zip(self.rules.rules, self.rules.conditions, strict=True)]
        windows_ms = {name: days * DAY_MS for name, days in COUNTED_DAYS.items()}
        windows_ms |= {one.name: one.window_ms for one in self.rules.measures if one.window_ms}
        self._stepping = [one for one in named if one[1].names & windows_ms.keys()]
        self._ageing = [one for one in named if one[1].names.intersection(AGES) and one not in self._stepping]
        self._windows_ms = {windows_ms[name] for _, one in self._stepping for name in one.names & windows_ms.keys()}
        self._reads = {name: self.rules.read_by(name) for name, _ in named}

    def take(self, event: Event) -> None:
        """An event, none earlier than the one before. Who refuses a profile has none from then on, and had none before."""
        at_ms, user = event.ts_ms, event.user
        if at_ms != self._clock_ms:
            self._judge_touched()
            self._clock_ms = at_ms
        if event.context.consent is not None and event.context.consent.personalization is False:
            self._forget(user, ads_stated(event))
            return
        near = self._near(event)
        for one in near:
            self._pass_time(one, at_ms - 1)
        outcome, _ = fold(self.states.setdefault(user, UserState()), event, at_ms, 0)  # in this order nothing is late
        if outcome is Outcome.FOLDED:
            identity.join(self.states, event)
            self._touched |= near

    def finish(self, end_ms: int) -> dict[str, list[Turn]]:
        """What time brings about until then; returns each user's turns in their order."""
        self._judge_touched()
        for user in self.states:
            self._pass_time(user, end_ms)
        return {user: sorted(turns, key=lambda turn: turn.at_ms) for user, turns in self.turns.items()}

    def _near(self, event: Event) -> dict[str, None]:
        """Users whose state this event may change: its own, its devices', and who claimed these."""
        devices = [one for one in (event.anonymous_id, event.previous_id) if one is not None]
        own = dict.fromkeys([event.user, *devices])
        known = (self.states[one] for one in own if one in self.states)
        return own | dict.fromkeys(user for state in known for _, user in state.claims)

    def _forget(self, user: str, ads: Stated = NOTHING_STATED) -> None:
        """As when consent is withdrawn: no profile any more, but what was said of advertising stays."""
        state = self.states.pop(user, None) or UserState()
        self.turns.pop(user, None)
        self._seen.pop(user, None)
        self._touched.pop(user, None)
        for other in identity.others(state):
            holder = self.states.get(other)
            if holder is None:
                continue
            self._pass_time(other, self._clock_ms - 1)
            if identity.forget(holder, user, ads_stay=True):
                if holder.claims or holder.known:
                    self._touched[other] = None
                else:
                    self._forget(other)
        if (stays := max(state.ads, ads)) != NOTHING_STATED:
            self.states[user] = UserState(ads=stays)

    def _judge_touched(self) -> None:
        for user in self._touched:
            self._judge(user, self._clock_ms)
        self._touched.clear()

    def _judge(self, user: str, at_ms: int) -> None:
        """Look at a user as the stream does when an interval closes."""
        state = self.states.get(user)
        if state is None or not state.events or at_ms < self.since_ms or not self.wanted(user):
            return
        seen = self._seen.setdefault(user, _Seen())
        seen.at_ms, seen.ordered_ms = at_ms, segments.ordered_ms(state)
        seen.values = segments.values_of(state, at_ms, 0.0, self.rules.measures, self.catalog)
        inside = frozenset() if state.claims else frozenset(self.rules.inside(self.tenant, seen.values))
        for name in sorted(inside ^ seen.inside):
            self._turn(user, name, at_ms, seen.values)

    def _pass_time(self, user: str, to_ms: int) -> None:
        """What silence brings about until then, after the last look."""
        state = self.states.get(user)
        if state is None or not state.events or to_ms < self.since_ms or not self.wanted(user):
            return
        if user in self._touched:
            return  # to be judged as of now, which is not before `to_ms`
        if user not in self._seen:
            self._judge(user, self.since_ms)
        seen = self._seen.get(user)
        if seen is None or state.claims:
            return  # whoever was claimed is in nothing, whatever the time
        self._grow_older(user, seen, self._ageing, to_ms)
        for step_ms in self._steps(state, seen.at_ms, to_ms):
            self._grow_older(user, seen, self._stepping, step_ms - 1)
            seen.at_ms = step_ms
            seen.values = segments.values_of(state, step_ms, 0.0, self.rules.measures, self.catalog)
            for name, condition in self._stepping:
                if bool(condition.evaluate(seen.values)) != (name in seen.inside):
                    self._turn(user, name, step_ms, seen.values)
        self._grow_older(user, seen, self._stepping, to_ms)
        if to_ms > seen.at_ms:
            seen.at_ms, seen.values = to_ms, self._older(user, seen, to_ms)

    def _steps(self, state: UserState, after_ms: int, to_ms: int) -> list[int]:
        """When a touch leaves a window that a rule counts."""
        if not self._windows_ms:
            return []
        left = {touch.ts_ms + window_ms + 1 for touch in state.history() for window_ms in self._windows_ms}
        return sorted(at_ms for at_ms in left if after_ms < at_ms <= to_ms)

    def _older(self, user: str, seen: _Seen, at_ms: int) -> Mapping[str, Any]:
        """The user's values at a time up to which only the ages grow."""
        return {**seen.values, **segments.ages(self.states[user], seen.ordered_ms, at_ms)}

    def _grow_older(self, user: str, seen: _Seen, conditions: Sequence[tuple[str, Expression]], to_ms: int) -> None:
        """What nothing but the ages turns from the last look until then."""
        if to_ms <= seen.at_ms or not conditions:
            return
        lows, highs = seen.values, self._older(user, seen, to_ms)
        for name, condition in conditions:
            low, high = condition.bounds(lows, highs)
            if low != high:
                at = partial(self._older, user, seen)
                for at_ms in turning_points(condition, at, seen.at_ms, to_ms):
                    self._turn(user, name, at_ms, at(at_ms))

    def _turn(self, user: str, segment: str, at_ms: int, values: Mapping[str, Any]) -> None:
        seen, entered = self._seen[user], segment not in self._seen[user].inside
        seen.inside ^= {segment}
        read = {name: round(float(values[name]), 6) for name in self._reads[segment]}
        event_id = self.states[user].last_event_id
        self.turns.setdefault(user, []).append(Turn(user, segment, at_ms, entered, read, event_id))


def turning_points(
    condition: Expression, at: Callable[[int], Mapping[str, Any]], from_ms: int, to_ms: int
) -> Iterator[int]:
    """When a condition becomes another one after `from_ms`, up to `to_ms`; `at` gives the values at a time, none of which
    shrinks. What comes and goes within SWEEP_MS may be passed over.

    >>> from stream.core.expression import parse
    >>> condition = parse("5 < age < 9", {"age": "number"}, "flag")
    >>> list(turning_points(condition, lambda ms: {"age": ms / 1e9}, 0, 10**11))
    [5000000001, 9000000000]
    """
    low, high = condition.bounds(at(from_ms), at(to_ms))
    if low == high or to_ms <= from_ms:
        return
    if to_ms - from_ms <= SWEEP_MS:
        first, last = bool(condition.evaluate(at(from_ms))), bool(condition.evaluate(at(to_ms)))
        if first != last:
            yield _turned(condition, at, from_ms, to_ms, last)
        return
    middle_ms = (from_ms + to_ms) // 2
    yield from turning_points(condition, at, from_ms, middle_ms)
    yield from turning_points(condition, at, middle_ms, to_ms)


def _turned(
    condition: Expression, at: Callable[[int], Mapping[str, Any]], from_ms: int, to_ms: int, last: bool
) -> int:
    """A moment at which a condition that differs at the two ends becomes what it is at the later one."""
    while to_ms - from_ms > 1:
        middle_ms = (from_ms + to_ms) // 2
        if bool(condition.evaluate(at(middle_ms))) == last:
            to_ms = middle_ms
        else:
            from_ms = middle_ms
    return to_ms
