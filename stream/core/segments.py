"""Segments by rules: which users are in, from their state and the time alone, so that a stream and a batch agree.

A rule is a condition over FIELDS (`stream.core.expression`). Counts within windows come from the ring of recent touches, of
which there are RING_TOUCHES_MAX: a user who does more within a window is counted up to there. Lifecycle stages and groups by
recency, frequency and money are rules like any other; Hughes, "Strategic Database Marketing" (1994), for the latter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import msgspec

from stream.core.expression import Expression, ExpressionError, Kind, parse
from stream.core.scenarios import basket
from stream.core.state import DAY_MS, UserState
from stream.core.state import Kind as Did

SEGMENTS_MAX = 200
NEVER_DAYS = 36_500.0  # since something that has never happened
WINDOWS_DAYS = (1, 7, 30)
_COUNTED: Mapping[str, tuple[Did, ...]] = MappingProxyType({
    "views": (Did.VIEW, Did.CLICK), "carts": (Did.CART,), "orders": (Did.ORDER,), "touches": tuple(Did),
})

FIELDS: Mapping[str, Kind] = MappingProxyType({
    "events": "number", "orders": "number", "revenue": "number", "average_order": "number", "items": "number",
    "active_days": "number", "order_days": "number", "cart_items": "number", "days_since_first": "number",
    "days_since_seen": "number", "days_since_order": "number", "churn": "number", "alerted": "flag", "known": "flag",
    **{f"{name}_{days}d": "number" for name in _COUNTED for days in WINDOWS_DAYS},
})  # fmt: skip

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9 _/.-]{0,63}$")]


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One segment as it is written. `tenant`: whose users it is about; everybody's without."""

    name: Name
    when: str
    description: str = ""
    tenant: str | None = None


class RulesFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of rules. `lifecycle`, `rfm`: whether the built-in ones are wanted."""

    segments: Annotated[tuple[Rule, ...], msgspec.Meta(max_length=SEGMENTS_MAX)] = ()
    lifecycle: bool = True
    rfm: bool = False


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


class RulesError(ValueError):
    """The rules cannot be used; the message names the rule and what is wrong with it."""


class Rules(NamedTuple):
    """Rules that were understood, in their order. `version` stands for all of them."""

    version: str
    rules: tuple[Rule, ...]
    conditions: tuple[Expression, ...]
    reads_churn: bool

    def inside(self, tenant: str, values: Mapping[str, Any]) -> list[str]:
        """Names of the segments that a user with these values is in."""
        return [
            rule.name for rule, condition in zip(self.rules, self.conditions, strict=True)
            if (rule.tenant is None or rule.tenant == tenant) and bool(condition.evaluate(values))
        ]  # fmt: skip

    def read_by(self, name: str) -> list[str]:
        """The fields that a segment's rule reads: what an entry is explained by."""
        return next((sorted(condition.names) for rule, condition in zip(self.rules, self.conditions, strict=True)
                     if rule.name == name), [])  # fmt: skip


NO_RULES = Rules("", (), (), False)


def compiled(file: RulesFile) -> Rules:
    """Raises RulesError.

    >>> rules = compiled(RulesFile(segments=(Rule(name="big spenders", when="revenue > 500"),), lifecycle=False))
    >>> rules.inside("shop", {"revenue": 700.0})
    ['big spenders']
    """
    rules = (*(LIFECYCLE if file.lifecycle else ()), *(RFM if file.rfm else ()), *file.segments)
    conditions, names = [], set()
    for rule in rules:
        if (rule.name, rule.tenant) in names:
            raise RulesError(f"segment {rule.name!r}: there are two of this name; give one another name")
        names.add((rule.name, rule.tenant))
        try:
            conditions.append(parse(rule.when, FIELDS, "flag"))
        except ExpressionError as error:
            raise RulesError(f"segment {rule.name!r}: {error}") from error
    version = hashlib.blake2b(msgspec.json.encode(rules), digest_size=6).hexdigest()
    return Rules(version, rules, tuple(conditions), any("churn" in one.names for one in conditions))


def values_of(state: UserState, now_ms: int, churn: float) -> dict[str, float | bool]:
    """FIELDS of one user at a time. `churn`: P(no return within the model's horizon), 0 without a model."""
    counted = _counted(state, now_ms)
    ordered_ms = max((stat.last_order_ts_ms for stat in state.items.values()), default=0)
    return {
        "events": float(state.events), "orders": float(state.orders), "revenue": state.revenue,
        "average_order": state.revenue / state.orders if state.orders else 0.0, "items": float(len(state.items)),
        "active_days": float(len(state.days)), "order_days": float(len(state.order_days)),
        "cart_items": float(len(basket(state))), "days_since_first": _days(state.first_ts_ms, now_ms),
        "days_since_seen": _days(state.last_ts_ms, now_ms), "days_since_order": _days(ordered_ms, now_ms), "churn": churn,
        "alerted": state.alert.raised and not state.alert.silenced, "known": state.known, **counted,
    }  # fmt: skip


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


def members(state: UserState) -> list[str]:
    """Segments the user is in.

    >>> members(UserState(segments={"new": (1, 5), "loyal": (2, 9)}))
    ['new']
    """
    return sorted(name for name, (number, _) in state.segments.items() if number % 2 == 1)
