"""What is known of one user at a time, by name: the fields that rules of segments, and of offers, read.

All of it is a function of the state and the time. Counts within windows come from the ring of recent touches, of which there
are RING_TOUCHES_MAX: a user who does more within a window is counted up to there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from stream.core.expressions.expression import Kind
from stream.core.expressions.measures import Catalog, Measure, measured, no_catalog
from stream.core.ranking.scenarios import basket
from stream.core.user.state import DAY_MS, UserState
from stream.core.user.state import Kind as Did

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
