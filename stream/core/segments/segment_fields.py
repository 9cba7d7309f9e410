"""What is known of one user at a time, by name: the fields that rules of segments, and of offers, read.

All of it is a function of the state and the time, what was done as a guest included. Counts within windows come from the
touches that a state remembers, RING_TOUCHES_MAX of all kinds and before them ORDERED_TOUCHES_MAX ordered lines: a user who
does more within a window is counted up to there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from types import MappingProxyType

from stream.core.expressions.expression import Kind
from stream.core.expressions.measures import Catalog, Measure, field_of, measured, no_catalog, touches_max
from stream.core.expressions.spans import ANY, Span
from stream.core.ranking.scenarios import basket
from stream.core.user.state import DAY_MS, DAYS_MAX, ITEM_STATS_MAX, RING_TOUCHES_MAX, UserState
from stream.core.user.state import Kind as Did
from stream.core.user.totals import Totals, totals

NEVER_DAYS = 36_500.0  # since something that has never happened
WINDOWS_DAYS = (1, 7, 30)
_COUNTED: Mapping[str, tuple[Did, ...]] = MappingProxyType({
    "views": (Did.VIEW, Did.CLICK), "carts": (Did.CART,), "orders": (Did.ORDER,), "touches": tuple(Did),
})

COUNTED_DAYS: Mapping[str, int] = MappingProxyType({f"{name}_{days}d": days for name in _COUNTED for days in WINDOWS_DAYS})
AGES = ("days_since_first", "days_since_seen", "days_since_order")  # grow with time, `churn` moves; else only events do

FIELDS: Mapping[str, Kind] = MappingProxyType({
    "events": "number", "orders": "number", "revenue": "number", "average_order": "number", "items": "number",
    "active_days": "number", "order_days": "number", "cart_items": "number", "days_since_first": "number",
    "days_since_seen": "number", "days_since_order": "number", "churn": "number", "alerted": "flag", "known": "flag",
    "ads_refused": "flag", "cluster": "text",
    **dict.fromkeys(COUNTED_DAYS, "number"),
})  # fmt: skip
SPANS: Mapping[str, Span] = MappingProxyType({
    **{name: ANY[kind] for name, kind in FIELDS.items()},
    "events": (0.0, inf), "orders": (0.0, inf), "items": (0.0, float(ITEM_STATS_MAX)), "churn": (0.0, 1.0),
    **dict.fromkeys(("active_days", "order_days"), (0.0, float(DAYS_MAX))), "cart_items": (0.0, float(RING_TOUCHES_MAX)),
    **dict.fromkeys(AGES, (0.0, NEVER_DAYS)),
    **{f"{name}_{days}d": (0.0, float(max(map(touches_max, kinds)))) for name, kinds in _COUNTED.items()
       for days in WINDOWS_DAYS},
})  # fmt: skip  # the least and the greatest that each can be of what a state keeps


def values_of(
    state: UserState, now_ms: int, churn: float, counted: Sequence[Measure] = (), catalog: Catalog = no_catalog,
    traits: Iterable[str] = (),
) -> dict[str, float | bool | str]:  # fmt: skip
    """FIELDS of one user at a time, and what rules count (`Rules.measures`) and ask (`traits`) for themselves. `churn`: P(no
    return within the model's horizon), 0 without a model. The cluster is where the state was placed last."""
    whole = totals(state)
    return {
        "events": float(whole.events), "orders": float(whole.orders), "revenue": whole.revenue,
        "average_order": whole.revenue / whole.orders if whole.orders else 0.0, "items": float(whole.items),
        "active_days": float(len(whole.days)), "order_days": float(len(whole.order_days)),
        "cart_items": float(len(basket(state))), **ages(whole, now_ms), "churn": churn,
        "alerted": state.alert.raised and not state.alert.silenced, "known": state.known, "cluster": state.placed.cluster,
        "ads_refused": state.ads.refused, **_counted(state, now_ms),
        **(measured(state, now_ms, counted, catalog) if counted else {}),
        **{field_of("trait", name): state.trait(name) for name in traits},
    }  # fmt: skip


def ages(whole: Totals, now_ms: int) -> dict[str, float]:
    """AGES at a time.

    >>> ages(totals(UserState(first_ts_ms=1, last_ts_ms=DAY_MS)), 3 * DAY_MS)["days_since_seen"]
    2.0
    """
    return {"days_since_first": _days(whole.first_ts_ms, now_ms), "days_since_seen": _days(whole.last_ts_ms, now_ms),
            "days_since_order": _days(whole.ordered_ts_ms, now_ms)}  # fmt: skip


def _counted(state: UserState, now_ms: int) -> dict[str, float]:
    """Touches of each kind within each window: one walk back through them, which took four fifths of the time when every
    touch was held against every window and kind."""
    by_window = [[0] * len(Did) for _ in WINDOWS_DAYS]
    day, week, month = by_window
    day_ms, week_ms, month_ms = (now_ms - days * DAY_MS for days in WINDOWS_DAYS)
    for touch in reversed(state.remembered()):
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
