"""The language of segments: rules as they are written, those that are built in, and what becomes of them when they are read.

A rule is a condition over FIELDS (`stream.core.expressions.expression`). What it says relative to everybody
(`quantile(revenue, 0.8)`) and the clusters it names are constants of the release, see `stream.core.segments.audience`; each
discovered cluster is a rule too. Lifecycle stages and groups by recency, frequency and money are rules like any other;
Hughes, "Strategic Database Marketing" (1994), for the latter.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from stream.core.expressions import measures
from stream.core.expressions.expression import Calls, Expression, ExpressionError, parse
from stream.core.expressions.measures import Measure, field_of
from stream.core.expressions.spans import ANY, joined
from stream.core.segments.audience import POPULATIONS, Audience, Cluster
from stream.core.segments.segment_fields import FIELDS, SPANS
from stream.core.user.traits import NAMES_MAX, NO_NAMES, Names

SEGMENTS_MAX = 200
CLUSTER_GROUP = "cluster/"  # before a discovered cluster's name: its segment

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
RFM = _rules(  # every buyer is in exactly one
    "rfm",
    ("champions", "orders >= 4 and days_since_order <= 30", "bought lately and often"),
    ("loyal", "orders >= 3 and days_since_order <= 90 and not (orders >= 4 and days_since_order <= 30)",
     "bought often within three months"),
    ("promising", "orders in [1, 2] and days_since_order <= 30", "bought lately, not often"),
    ("about to sleep", "orders in [1, 2] and 30 < days_since_order <= 90", "bought once or twice, not for a month"),
    ("at risk", "orders >= 3 and 90 < days_since_order <= 180", "bought often, not for three months"),
    ("hibernating", "orders in [1, 2] and 90 < days_since_order <= 180", "bought once or twice, not for three months"),
    ("lost", "orders >= 1 and days_since_order > 180", "no order for half a year"),
)  # fmt: skip
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
    reads: frozenset[str] = frozenset()  # fields, and counts of their own
    relative: frozenset[str] = frozenset()  # names of rules that ask the release
    measures: tuple[Measure, ...] = ()
    unknown: frozenset[int] = frozenset()  # places of rules that ask what the release does not know: nobody is in
    kept: Names = NO_NAMES  # traits of users and properties of events that they ask for
    kept_by: Mapping[str | None, Names] = MappingProxyType({})  # by tenant, with everybody's rules; None: whom no rule names

    def kept_of(self, tenant: str) -> Names:
        """What is kept of a tenant's users: what rules about them ask for, and nothing else."""
        return self.kept_by.get(tenant, self.kept_by.get(None, NO_NAMES))

    def inside(self, tenant: str, values: Mapping[str, Any]) -> list[str]:
        """Names of the segments that a user with these values is in."""
        return [
            rule.name for at, (rule, condition) in enumerate(zip(self.rules, self.conditions, strict=True))
            if (rule.tenant is None or rule.tenant == tenant) and at not in self.unknown and bool(condition.evaluate(values))
        ]  # fmt: skip

    def condition(self, name: str) -> Expression:
        """When one is in the segment of that name."""
        return next(condition for rule, condition in zip(self.rules, self.conditions, strict=True) if rule.name == name)

    def only(self, places: Sequence[int]) -> Rules:
        """The rules at these places, as if the others were not there; the version stays that of all."""
        rules, conditions = tuple(self.rules[at] for at in places), tuple(self.conditions[at] for at in places)
        unknown = frozenset(new for new, at in enumerate(places) if at in self.unknown)
        read = _read_by(conditions)
        return self._replace(rules=rules, conditions=conditions, unknown=unknown, reads=read,
                             measures=tuple(one for one in self.measures if one.name in read))  # fmt: skip

    def never(self) -> list[str]:
        """Segments that nobody can be in: their conditions ask for more than a state keeps."""
        spans = {**SPANS, **{one.name: one.span() for one in self.measures}, **dict.fromkeys(self._asked(), ANY["text"])}
        lows, highs = ({name: span[end] for name, span in spans.items()} for end in (0, 1))
        return [rule.name for rule, condition in zip(self.rules, self.conditions, strict=True)
                if not condition.bounds(lows, highs)[1]]  # fmt: skip

    def read_by(self, name: str) -> list[str]:
        """The fields that are numbers and that a segment's rule reads: what an entry is explained by."""
        names = next((condition.names for rule, condition in zip(self.rules, self.conditions, strict=True)
                      if rule.name == name), frozenset[str]())  # fmt: skip
        return sorted(one for one in names - self._asked() if FIELDS.get(one) != "text")

    def _asked(self) -> set[str]:
        """The fields that traits are read by."""
        return {field_of("trait", name) for name in self.kept.traits}


NO_RULES = Rules("", (), ())


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
    traits: set[str] = set()
    names: set[tuple[str, str | None]] = set()
    relative: set[str] = set()
    unknown: set[int] = set()
    for at, rule in enumerate(rules):
        if any(name == rule.name and (tenant == rule.tenant or None in (tenant, rule.tenant)) for name, tenant in names):
            raise RulesError(f"segment {rule.name!r}: there are two of this name; give one another name")
        names.add((rule.name, rule.tenant))
        asked: list[float] = []
        conditions.append(_condition(rule, known, asked, counted, traits))
        if asked or "cluster" in conditions[-1].names:
            relative.add(rule.name)
        if any(one != one for one in asked):  # NaN
            unknown.add(at)
    for rule in file.segments:
        if rule.name.startswith(CLUSTER_GROUP):
            raise RulesError(f"segment {rule.name!r}: names with {CLUSTER_GROUP!r} are of discovered clusters")
    kept_by = {tenant: _kept([condition for rule, condition in zip(rules, conditions, strict=True)
                              if rule.tenant in (None, tenant)], counted, traits)
               for tenant in {None, *(rule.tenant for rule in rules)}}  # fmt: skip
    for tenant, kept in kept_by.items():
        for what, several in kept._asdict().items():
            if len(several) > NAMES_MAX:
                whose = f" about tenant {tenant!r}" if tenant is not None else ""
                raise RulesError(f"rules{whose} ask for {len(several)} {what}; at most {NAMES_MAX} are kept")
    whole = msgspec.json.encode(rules) + (release.encode() if relative else b"")
    version = hashlib.blake2b(whole, digest_size=6).hexdigest()
    return Rules(version, rules, tuple(conditions), _read_by(conditions), frozenset(relative), tuple(counted.values()),
                 frozenset(unknown), _kept(conditions, counted, traits), kept_by)  # fmt: skip


def _kept(conditions: Iterable[Expression], counted: Mapping[str, Measure], traits: Iterable[str]) -> Names:
    """What some conditions ask for."""
    names = frozenset[str]().union(*(condition.names for condition in conditions))
    properties = frozenset(one for name in names & counted.keys() for one in counted[name].properties)
    return Names(frozenset(trait for trait in traits if field_of("trait", trait) in names), properties)


def _read_by(conditions: Iterable[Expression]) -> frozenset[str]:
    return frozenset[str]().union(*(one.names for one in conditions))


def _condition(
    rule: Rule, audience: Audience, asked: list[float], counted: dict[str, Measure], traits: set[str]
) -> Expression:  # fmt: skip
    """What a rule says, as one expression; the quantiles it asked for go into `asked`, its own counts into `counted`, and
    the names of traits into `traits`."""

    def count(call: ast.Call) -> str:
        measure = measures.read(call)
        counted[measure.name] = measure
        return measure.name

    def look_up(population: str, field: str, share: float) -> float:
        asked.append(audience.quantile(population, field, share))
        return asked[-1]

    if not rule.when and not rule.cluster:
        raise RulesError(f"segment {rule.name!r}: it says neither `when` nor `cluster`")
    calls: Calls = {**dict.fromkeys(measures.FUNCTIONS, ("number", count)),
                    "trait": ("text", partial(measures.named, traits))}  # fmt: skip
    tables = {name: partial(look_up, population) for name, population in POPULATIONS.items()}
    try:
        when = parse(rule.when, FIELDS, "flag", tables, calls) if rule.when else None
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
