"""Segments by rules: which users are in, from their state and the time alone, so that a stream and a batch agree.

What a rule says relative to everybody (`quantile(revenue, 0.8)`) and the clusters it names are constants of the release, see
`stream.core.audience`; each discovered cluster is a rule too.

A rule is a condition over FIELDS (`stream.core.expression`). Counts within windows come from the ring of recent touches, of
which there are RING_TOUCHES_MAX: a user who does more within a window is counted up to there. Lifecycle stages and groups by
recency, frequency and money are rules like any other; Hughes, "Strategic Database Marketing" (1994), for the latter.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from stream.core import measures
from stream.core.audience import POPULATIONS, Audience, Cluster
from stream.core.expression import Expression, ExpressionError, Kind, parse
from stream.core.measures import Catalog, Measure, measured, no_catalog
from stream.core.scenarios import basket
from stream.core.spans import joined
from stream.core.state import DAY_MS, UserState
from stream.core.state import Kind as Did

SEGMENTS_MAX = 200
NEVER_DAYS = 36_500.0  # since something that has never happened
CLUSTER_GROUP = "cluster/"  # before a discovered cluster's name: its segment
WINDOWS_DAYS = (1, 7, 30)
_COUNTED: Mapping[str, tuple[Did, ...]] = MappingProxyType({
    "views": (Did.VIEW, Did.CLICK), "carts": (Did.CART,), "orders": (Did.ORDER,), "touches": tuple(Did),
})

COUNTED_DAYS: Mapping[str, int] = MappingProxyType({f"{name}_{days}d": days for name in _COUNTED for days in WINDOWS_DAYS})
AGES = ("days_since_first", "days_since_seen", "days_since_order")  # grow with time; nothing else does without an event

FIELDS: Mapping[str, Kind] = MappingProxyType({
    "events": "number", "orders": "number", "revenue": "number", "average_order": "number", "items": "number",
    "active_days": "number", "order_days": "number", "cart_items": "number", "days_since_first": "number",
    "days_since_seen": "number", "days_since_order": "number", "churn": "number", "alerted": "flag", "known": "flag",
    "ads_refused": "flag", "cluster": "text",
    **dict.fromkeys(COUNTED_DAYS, "number"),
})  # fmt: skip

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9 _/.-]{0,63}$")]


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One segment as it is written: who is in `cluster`, if it names one, and is as `when` says. `tenant`: whose users it is
    about; everybody's without."""

    name: Name
    when: str = ""
    cluster: str = ""
    description: str = ""
    tenant: str | None = None


class RulesFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of rules. `lifecycle`, `rfm`, `fifths`, `clusters`: whether the built-in ones are wanted."""

    segments: Annotated[tuple[Rule, ...], msgspec.Meta(max_length=SEGMENTS_MAX)] = ()
    lifecycle: bool = True
    rfm: bool = False
    fifths: bool = False
    clusters: bool = True


def _rules(group: str, *rules: tuple[str, str, str]) -> tuple[Rule, ...]:
    return tuple(Rule(name=f"{group}/{name}", when=when, description=text) for name, when, text in rules)


LIFECYCLE = _rules(
    "lifecycle",
    ("new", "days_since_first <= 7", "first seen within a week"),
    ("active", "days_since_first > 7 and days_since_seen <= 14", "seen within two weeks"),
    ("cooling", "days_since_seen > 14 and days_since_seen <= 60", "silent for two weeks"),
    ("lapsed", "days_since_seen > 60", "silent for two months"),
    ("prospect", "orders == 0", "never bought"),
    ("repeat buyer", "order_days >= 2", "bought on two days or more"),
)
RFM = _rules(
    "rfm",
    ("champions", "days_since_order <= 30 and orders >= 4", "bought lately and often"),
    ("loyal", "days_since_order <= 90 and orders >= 3", "bought often within three months"),
    ("promising", "days_since_order <= 30 and orders in [1, 2]", "bought lately, not often"),
    ("at risk", "days_since_order > 90 and days_since_order < 36500 and orders >= 3", "bought often, not for three months"),
    ("lost", "days_since_order > 180 and days_since_order < 36500", "no order for half a year"),
)
_FIFTHS = (0.2, 0.4, 0.6, 0.8)


def _fifth(field: str, fifth: int, *, less_is_better: bool = False) -> str:
    """A condition: of the buyers, who is in a fifth by a field; the 5th is the best."""
    low, high = (None, *_FIFTHS)[fifth - 1], (*_FIFTHS, None)[fifth - 1]
    if less_is_better:
        low, high = (None if high is None else 1 - high), (None if low is None else 1 - low)
    over = [] if low is None else [f"{field} > buyers_quantile({field}, {low:g})"]
    return " and ".join(["orders > 0", *over, *([] if high is None else [f"{field} <= buyers_quantile({field}, {high:g})"])])


FIFTHS = _rules(
    "fifths",
    *((f"{name} {fifth}", _fifth(field, fifth, less_is_better=field == "days_since_order"),
       f"of the buyers' fifths by {text} the {('worst', 'second', 'middle', 'fourth', 'best')[fifth - 1]}")
      for name, field, text in (("recency", "days_since_order", "last order"), ("frequency", "orders", "orders"),
                                ("money", "revenue", "revenue"))
      for fifth in (1, 2, 3, 4, 5)),
)  # fmt: skip


class RulesError(ValueError):
    """The rules cannot be used; the message names the rule and what is wrong with it."""


class Rules(NamedTuple):
    """Rules that were understood, in their order. `version` stands for all of them, and for the release if one is asked."""

    version: str
    rules: tuple[Rule, ...]
    conditions: tuple[Expression, ...]
    reads_churn: bool
    reads_cluster: bool = False
    relative: frozenset[str] = frozenset()  # names of rules that ask the release
    measures: tuple[Measure, ...] = ()
    unknown: frozenset[int] = frozenset()  # places of rules that ask what the release does not know: nobody is in

    def inside(self, tenant: str, values: Mapping[str, Any]) -> list[str]:
        """Names of the segments that a user with these values is in."""
        return [
            rule.name for at, (rule, condition) in enumerate(zip(self.rules, self.conditions, strict=True))
            if (rule.tenant is None or rule.tenant == tenant) and at not in self.unknown and bool(condition.evaluate(values))
        ]  # fmt: skip

    def only(self, places: Sequence[int]) -> Rules:
        """The rules at these places, as if the others were not there; the version stays that of all."""
        rules, conditions = tuple(self.rules[at] for at in places), tuple(self.conditions[at] for at in places)
        unknown = frozenset(new for new, at in enumerate(places) if at in self.unknown)
        read = frozenset[str]().union(*(condition.names for condition in conditions))
        return self._replace(rules=rules, conditions=conditions, unknown=unknown,
                             measures=tuple(one for one in self.measures if one.name in read))  # fmt: skip

    def read_by(self, name: str) -> list[str]:
        """The fields that are numbers and that a segment's rule reads: what an entry is explained by."""
        names = next((condition.names for rule, condition in zip(self.rules, self.conditions, strict=True)
                      if rule.name == name), frozenset[str]())  # fmt: skip
        return sorted(one for one in names if FIELDS.get(one) != "text")


NO_RULES = Rules("", (), (), False)


def discovered(clusters: Sequence[Cluster]) -> tuple[Rule, ...]:
    """The rules that discovered clusters are."""
    return tuple(Rule(name=CLUSTER_GROUP + one.name, cluster=one.name,
                      description=", ".join(one.terms)) for one in clusters)  # fmt: skip


def compiled(file: RulesFile, audience: Audience | None = None, release: str = "") -> Rules:
    """Raises RulesError. `audience`: of the release that is served; without one, rules that ask it hold nobody.

    >>> rules = compiled(RulesFile(segments=(Rule(name="big spenders", when="revenue > 500"),), lifecycle=False))
    >>> rules.inside("shop", {"revenue": 700.0})
    ['big spenders']
    """
    known = audience or Audience()
    rules = (*(LIFECYCLE if file.lifecycle else ()), *(RFM if file.rfm else ()), *(FIFTHS if file.fifths else ()),
             *(discovered(known.clusters) if file.clusters else ()), *file.segments)  # fmt: skip
    conditions: list[Expression] = []
    counted: dict[str, Measure] = {}
    names: set[tuple[str, str | None]] = set()
    relative: set[str] = set()
    unknown: set[int] = set()
    for at, rule in enumerate(rules):
        if any(name == rule.name and (tenant == rule.tenant or None in (tenant, rule.tenant)) for name, tenant in names):
            raise RulesError(f"segment {rule.name!r}: there are two of this name; give one another name")
        names.add((rule.name, rule.tenant))
        asked: list[float] = []
        conditions.append(_condition(rule, known, asked, counted))
        if asked or "cluster" in conditions[-1].names:
            relative.add(rule.name)
        if any(one != one for one in asked):  # NaN
            unknown.add(at)
    for rule in file.segments:
        if rule.name.startswith(CLUSTER_GROUP):
            raise RulesError(f"segment {rule.name!r}: names with {CLUSTER_GROUP!r} are of discovered clusters")
    whole = msgspec.json.encode(rules) + (release.encode() if relative else b"")
    return Rules(
        hashlib.blake2b(whole, digest_size=6).hexdigest(), rules, tuple(conditions),
        any("churn" in one.names for one in conditions), any("cluster" in one.names for one in conditions),
        frozenset(relative), tuple(counted.values()), frozenset(unknown),
    )  # fmt: skip


def _condition(rule: Rule, audience: Audience, asked: list[float], counted: dict[str, Measure]) -> Expression:
    """What a rule says, as one expression; the quantiles it asked for go into `asked`, its own counts into `counted`."""

    def count(call: ast.Call) -> str:
        measure = measures.read(call)
        counted[measure.name] = measure
        return measure.name

    def look_up(population: str, field: str, share: float) -> float:
        asked.append(audience.quantile(population, field, share))
        return asked[-1]

    if not rule.when and not rule.cluster:
        raise RulesError(f"segment {rule.name!r}: it says neither `when` nor `cluster`")
    tables = {name: partial(look_up, population) for name, population in POPULATIONS.items()}
    try:
        when = parse(rule.when, FIELDS, "flag", tables, dict.fromkeys(measures.FUNCTIONS, count)) if rule.when else None
        if not rule.cluster:
            assert when is not None
            return when
        inside = parse(f"cluster == {rule.cluster!r}", FIELDS, "flag")
    except ExpressionError as error:
        raise RulesError(f"segment {rule.name!r}: {error}") from error
    if when is None:
        return inside
    told = when.evaluate
    return Expression(f"{inside.text} and ({when.text})", "flag", inside.names | when.names,
                      lambda values: bool(inside.evaluate(values)) and bool(told(values)),
                      lambda lows, highs: joined(np.logical_and, [one.bounds(lows, highs) for one in (inside, when)]))


def values_of(
    state: UserState, now_ms: int, churn: float, counted: Sequence[Measure] = (), catalog: Catalog = no_catalog
) -> dict[str, float | bool | str]:
    """FIELDS of one user at a time, and what rules count for themselves (`Rules.measures`). `churn`: P(no return within the
    model's horizon), 0 without a model. The cluster is where the state was placed last."""
    return {
        "events": float(state.events), "orders": float(state.orders), "revenue": state.revenue,
        "average_order": state.revenue / state.orders if state.orders else 0.0, "items": float(len(state.items)),
        "active_days": float(len(state.days)), "order_days": float(len(state.order_days)),
        "cart_items": float(len(basket(state))), **ages(state, ordered_ms(state), now_ms), "churn": churn,
        "alerted": state.alert.raised and not state.alert.silenced, "known": state.known, "cluster": state.placed.cluster,
        "ads_refused": state.ads.refused, **_counted(state, now_ms),
        **(measured(state, now_ms, counted, catalog) if counted else {}),
    }  # fmt: skip


def ordered_ms(state: UserState) -> int:
    """When the last order was; 0 for none."""
    return max((stat.last_order_ts_ms for stat in state.items.values()), default=0)


def ages(state: UserState, last_order_ms: int, now_ms: int) -> dict[str, float]:
    """AGES at a time.

    >>> ages(UserState(first_ts_ms=1, last_ts_ms=DAY_MS), 0, 3 * DAY_MS)["days_since_seen"]
    2.0
    """
    return {"days_since_first": _days(state.first_ts_ms, now_ms), "days_since_seen": _days(state.last_ts_ms, now_ms),
            "days_since_order": _days(last_order_ms, now_ms)}  # fmt: skip


def _counted(state: UserState, now_ms: int) -> dict[str, float]:
    """Touches of each kind within each window: one walk back through the ring, which took four fifths of the time when every
    touch was held against every window and kind."""
    by_window = [[0] * len(Did) for _ in WINDOWS_DAYS]
    day, week, month = by_window
    day_ms, week_ms, month_ms = (now_ms - days * DAY_MS for days in WINDOWS_DAYS)
    for touch in reversed(state.history()):
        at_ms, kind = touch.ts_ms, touch.kind
        if at_ms < month_ms:
            break
        if at_ms <= now_ms:
            month[kind] += 1
            if at_ms >= week_ms:
                week[kind] += 1
                if at_ms >= day_ms:
                    day[kind] += 1
    return {
        f"{name}_{days}d": float(sum(counts[kind] for kind in kinds)) for name, kinds in _COUNTED.items()
        for days, counts in zip(WINDOWS_DAYS, by_window, strict=True)
    }  # fmt: skip


def _days(then_ms: int, now_ms: int) -> float:
    return max(0.0, (now_ms - then_ms) / DAY_MS) if then_ms else NEVER_DAYS


class Change(NamedTuple):
    """A user has come into a segment or gone out of it; `number` counts the changes of this user and segment from 1, so odd
    ones are entries. A replay that decides at another moment gives the same number."""

    segment: str
    number: int

    @property
    def entered(self) -> bool:
        return self.number % 2 == 1


def move(state: UserState, inside: Sequence[str], now_ms: int) -> list[Change]:
    """Bring the state's memberships to `inside`; returns what changed. Names that no rule has any more are left."""
    changes = []
    for name in inside:
        number, _ = state.segments.get(name, (0, 0))
        if number % 2 == 0:
            changes.append(Change(name, number + 1))
    wanted = set(inside)
    changes += [Change(name, number + 1) for name, (number, _) in state.segments.items()
                if number % 2 == 1 and name not in wanted]  # fmt: skip
    for change in changes:
        state.segments[change.segment] = (change.number, now_ms)
    return changes


def kept(state: UserState, inside: Sequence[str], rules: Rules) -> list[str]:
    """`inside`, and the memberships that only a release can judge, as they are: for a user whom none has judged yet."""
    held = (name for name in members(state) if name in rules.relative or name.startswith(CLUSTER_GROUP))
    return [*inside, *(name for name in held if name not in inside)]


def members(state: UserState) -> list[str]:
    """Segments the user is in.

    >>> members(UserState(segments={"new": (1, 5), "loyal": (2, 9)}))
    ['new']
    """
    return sorted(name for name, (number, _) in state.segments.items() if number % 2 == 1)
