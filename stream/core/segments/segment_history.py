"""The past of segments: when users would have come and gone, had a rule been there from the beginning.

A replay (`stream.core.user.replay`) shows every state as it was, and the stream's own rules judge it. Between two events
only time moves a user: counts within windows step at known moments, the ages (`AGES`) grow, and the chance of churn follows
a curve, so that a condition's bounds (`stream.core.expressions.spans`) say of a whole stretch of silence that nothing turns
in it; where they do not, it is halved until the turn is found, to the millisecond. The live sweep looks every few minutes
instead, and finds it that much later.

Of what models say: an alert stood if it was said then; the chance of churn and the cluster are what the release that is
asked says of the state as it was, as of its last event, like the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np

from stream.core.expressions.expression import Expression
from stream.core.expressions.measures import Catalog, no_catalog
from stream.core.expressions.turning import Values, extremes, turning_points
from stream.core.segments.segment_fields import AGES, COUNTED_DAYS, ages, values_of
from stream.core.segments.segment_rules import Rules
from stream.core.survival.churn import ChurnPolicy, bends_days, p_after
from stream.core.user.featurize import Float32
from stream.core.user.replay import Replay
from stream.core.user.state import DAY_MS, Placed, UserState
from stream.core.user.totals import totals

MODELLED = frozenset({"churn", "cluster"})  # fields that a model is asked for
FOR_EVER_MS = 1 << 62


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


class Said(NamedTuple):
    """What the models say of a state as of its last event; it stands until the next one."""

    cluster: str = ""
    log_survival: Float32 | None = None  # (E,) at `churn.EDGES_DAYS`; None where nobody asks: the chance is 0


class Asked(Protocol):
    """The models of a release."""

    @property
    def churn(self) -> ChurnPolicy: ...

    def __call__(self, state: UserState) -> Said: ...


class NobodyAsked:
    """No model is asked: no rule is about what one says."""

    churn = ChurnPolicy()

    def __call__(self, state: UserState) -> Said:
        return Said()


def refusals(rules: Rules, *, released: bool) -> dict[str, str]:
    """Segments whose past cannot be known, and why. `released`: whether there is a release whose models can be asked."""
    found = {}
    for at, (rule, condition) in enumerate(zip(rules.rules, rules.conditions, strict=True)):
        asked = condition.names & MODELLED
        if asked and not released:
            found[rule.name] = f"it reads {', '.join(sorted(asked))}, and there is no release whose models could be asked"
        elif at in rules.unknown:
            found[rule.name] = "it asks for a quantile that the release does not know"
    return found


class _Seen:
    """What is known of a user as of the last look."""

    def __init__(self) -> None:
        self.at_ms = 0
        self.inside: frozenset[str] = frozenset()
        self.values: Values = {}
        self.whole = totals(UserState())
        self.said = Said()


class SegmentHistory:
    """Watches a replay of one tenant's users. `until(user)`: before when a user is judged, ms; 0 for never. Nothing is said
    before `since_ms`: who is in by then enters then."""

    def __init__(
        self, tenant: str, rules: Rules, until: Callable[[str], int] = lambda user: FOR_EVER_MS, since_ms: int = 0,
        catalog: Catalog = no_catalog, asked: Asked | None = None,
    ) -> None:  # fmt: skip
        about = [at for at, rule in enumerate(rules.rules) if rule.tenant in (None, tenant)]
        self.tenant, self.rules, self.until, self.since_ms = tenant, rules.only(about), until, since_ms
        self.catalog, self.asked = catalog, asked or NobodyAsked()
        self.replay = Replay(self)
        self.turns: dict[str, list[Turn]] = {}
        self._seen: dict[str, _Seen] = {}
        named = [(rule.name, condition) for rule, condition in zip(self.rules.rules, self.rules.conditions, strict=True)]
        windows_ms = {name: days * DAY_MS for name, days in COUNTED_DAYS.items()}
        windows_ms |= {one.name: one.window_ms for one in self.rules.measures if one.window_ms}
        self._stepping = [one for one in named if one[1].names & windows_ms.keys()]
        self._ageing = [one for one in named if one[1].names.intersection((*AGES, "churn")) and one not in self._stepping]
        self._windows_ms = {windows_ms[name] for _, one in self._stepping for name in one.names & windows_ms.keys()}
        self._counts_events = any(one.kind is None for one in self.rules.measures)
        self._reads = {name: self.rules.read_by(name) for name, _ in named}

    def finish(self, end_ms: int) -> dict[str, list[Turn]]:
        """What time brings about until then; returns each user's turns in their order."""
        self.replay.finish(end_ms)
        return {user: sorted(turns, key=lambda turn: turn.at_ms) for user, turns in self.turns.items()}

    def forgets(self, user: str) -> None:
        self.turns.pop(user, None)
        self._seen.pop(user, None)

    def looks(self, user: str, at_ms: int) -> None:
        """Judge a user as the stream does when an interval closes."""
        state, until_ms = self.replay.states[user], self.until(user)
        if not state.events or at_ms < self.since_ms or not until_ms:
            return
        seen = self._seen.setdefault(user, _Seen())
        seen.at_ms = at_ms
        if at_ms >= until_ms:
            return
        seen.whole = totals(state)
        seen.said = Said() if state.claims else self.asked(state)
        seen.values = self._values(state, seen.said, at_ms)
        inside = frozenset() if state.claims else frozenset(self.rules.inside(self.tenant, seen.values))
        for name in sorted(inside ^ seen.inside):
            self._turn(user, name, at_ms, seen.values)

    def passes(self, user: str, to_ms: int) -> None:
        """What silence brings about until then, after the last look."""
        state, to_ms = self.replay.states[user], min(to_ms, self.until(user) - 1)
        if not state.events or to_ms < self.since_ms:
            return
        if user not in self._seen:
            self.looks(user, self.since_ms)
        seen = self._seen[user]
        if state.claims or to_ms <= seen.at_ms:
            return  # whoever was claimed is in nothing, whatever the time
        self._grow_older(user, seen, self._ageing, to_ms)
        for step_ms in self._steps(state, seen.at_ms, to_ms):
            self._grow_older(user, seen, self._stepping, step_ms - 1)
            seen.at_ms, seen.values = step_ms, self._values(state, seen.said, step_ms)
            for name, condition in self._stepping:
                if bool(condition.evaluate(seen.values)) != (name in seen.inside):
                    self._turn(user, name, step_ms, seen.values)
        self._grow_older(user, seen, self._stepping, to_ms)
        if to_ms > seen.at_ms:
            seen.at_ms, seen.values = to_ms, self._at(user, seen, True, to_ms)

    def _values(self, state: UserState, said: Said, at_ms: int) -> Values:
        state.placed = Placed(cluster=said.cluster)
        return values_of(state, at_ms, self._chances(state, said, [at_ms])[0], self.rules.measures, self.catalog,
                         self.rules.kept.traits)  # fmt: skip

    def _chances(self, state: UserState, said: Said, times_ms: Sequence[int]) -> list[float]:
        """P(no return within the horizon) at each time, by the same call as live."""
        if said.log_survival is None:
            return [0.0] * len(times_ms)
        silence_days = np.maximum(0.0, (np.array(times_ms) - state.last_ts_ms) / DAY_MS)
        curves = np.broadcast_to(said.log_survival, (len(times_ms), len(said.log_survival)))
        return [float(p) for p in p_after(curves, silence_days, self.asked.churn)]

    def _steps(self, state: UserState, after_ms: int, to_ms: int) -> list[int]:
        """When something leaves a window that a rule counts."""
        if not self._windows_ms:
            return []
        done_ms = [touch.ts_ms for touch in state.remembered()]
        if self._counts_events:
            done_ms += [one.ts_ms for one in state.activity()]
        left = {at_ms + window_ms + 1 for at_ms in done_ms for window_ms in self._windows_ms}
        return sorted(at_ms for at_ms in left if after_ms < at_ms <= to_ms)

    def _bends(self, state: UserState, said: Said, after_ms: int, before_ms: int) -> list[int]:
        """When the chance of churn may begin to go in another direction."""
        if said.log_survival is None:
            return []
        found = state.last_ts_ms + np.rint(bends_days(self.asked.churn.horizon_days) * DAY_MS).astype(np.int64)
        return [int(at_ms) for at_ms in found[(found > after_ms) & (found < before_ms)]]

    def _older(self, user: str, seen: _Seen, times_ms: Sequence[int], *, churn: bool) -> Sequence[Values]:
        """The user's values at times up to which nothing but time moves them; `churn`: whether its chance is read."""
        state = self.replay.states[user]
        grown = [{**seen.values, **ages(seen.whole, at_ms)} for at_ms in times_ms]
        if churn:
            for values, chance in zip(grown, self._chances(state, seen.said, times_ms), strict=True):
                values["churn"] = chance
        return grown

    def _grow_older(self, user: str, seen: _Seen, conditions: Sequence[tuple[str, Expression]], to_ms: int) -> None:
        """What time turns from the last look until then, while it steps over no window's end."""
        if to_ms <= seen.at_ms or not conditions:
            return
        bends = self._bends(self.replay.states[user], seen.said, seen.at_ms, to_ms)
        whole = [seen.at_ms, *bends, to_ms]
        moments = list(zip(whole, self._older(user, seen, whole, churn=True), strict=True))
        for name, condition in conditions:
            churn = "churn" in condition.names
            parts = moments if churn else [moments[0], moments[-1]]
            low, high = condition.bounds(*extremes([values for _, values in parts]))
            if low == high:
                continue
            at = partial(self._at, user, seen, churn)
            for first, last in pairwise(parts):
                for at_ms in turning_points(condition, at, first, last):
                    self._turn(user, name, at_ms, at(at_ms))

    def _at(self, user: str, seen: _Seen, churn: bool, at_ms: int) -> Values:
        return self._older(user, seen, [at_ms], churn=churn)[0]

    def _turn(self, user: str, segment: str, at_ms: int, values: Values) -> None:
        seen, entered = self._seen[user], segment not in self._seen[user].inside
        seen.inside ^= {segment}
        read = {name: round(float(values[name]), 6) for name in self._reads[segment]}
        event_id = self.replay.states[user].last_event_id
        self.turns.setdefault(user, []).append(Turn(user, segment, at_ms, entered, read, event_id))
