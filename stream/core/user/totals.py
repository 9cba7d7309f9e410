"""What a user did in all: their own totals, and what they did as a guest on devices that were joined to them.

Own totals are exact. Of a device's time as a guest is known what its answer tells (`identity.Answer`): its last touches,
older ordered lines, and last other events. Two bounds hold for both: ITEM_STATS_MAX items and DAYS_MAX days.
"""

from __future__ import annotations

from typing import NamedTuple

from stream.core.user.fold import id_hash
from stream.core.user.state import DAY_MS, DAYS_MAX, ITEM_STATS_MAX, Kind, Touch, UserState


class Totals(NamedTuple):
    """`days` and `order_days` since 1970, ascending. A time of 0: never."""

    events: int
    orders: int
    revenue: float  # less what was given back
    items: int
    days: list[int]
    order_days: list[int]
    first_ts_ms: int
    last_ts_ms: int
    ordered_ts_ms: int


def totals(state: UserState) -> Totals:
    """
    >>> guest = [Touch(5, "m1", "mug", Kind.VIEW, 0.0), Touch(DAY_MS, "m2", "mug", Kind.ORDER, 9.5),
    ...          Touch(DAY_MS, "m2", "pot", Kind.ORDER, 20.0)]
    >>> whole = totals(UserState(events=1, first_ts_ms=DAY_MS, last_ts_ms=DAY_MS, days=[1], linked={"device": guest}))
    >>> whole.events, whole.orders, whole.revenue, whole.items, whole.days, whole.order_days, whole.first_ts_ms
    (3, 1, 29.5, 2, [0, 1], [1], 5)
    """
    own = Totals(state.events, state.orders, state.revenue, len(state.items), state.days, state.order_days,
                 state.first_ts_ms, state.last_ts_ms, _ordered_ms(state))  # fmt: skip
    if not state.linked and not state.linked_activities:
        return own
    touches = _linked(state)
    activities = [one for some in state.linked_activities.values() for one in some]
    ordered = [touch for touch in touches if touch.kind == Kind.ORDER]
    times_ms = [touch.ts_ms for touch in touches] + [one.ts_ms for one in activities]
    return Totals(
        events=own.events + len({id_hash(touch.event_id) for touch in touches} | {one.mark for one in activities}),
        orders=own.orders + len({touch.event_id for touch in ordered}),
        revenue=own.revenue + sum(touch.value for touch in ordered)
        - sum(touch.value for touch in touches if touch.kind == Kind.REFUND),
        items=min(ITEM_STATS_MAX, len(dealt_with(state))),
        days=_days(own.days, times_ms),
        order_days=_days(own.order_days, [touch.ts_ms for touch in ordered]),
        first_ts_ms=min(filter(None, (own.first_ts_ms, *times_ms)), default=0),
        last_ts_ms=max((own.last_ts_ms, *times_ms)),
        ordered_ts_ms=max((own.ordered_ts_ms, *(touch.ts_ms for touch in ordered))),
    )  # fmt: skip


def dealt_with(state: UserState) -> list[str]:
    """Items of which a touch is known."""
    return list(dict.fromkeys([*state.items, *(touch.item_id for touch in _linked(state))]))


def bought(state: UserState) -> list[str]:
    """Items of which an order is known."""
    own = (item_id for item_id, stat in state.items.items() if stat.orders)
    return list(dict.fromkeys([*own, *(touch.item_id for touch in _linked(state) if touch.kind == Kind.ORDER)]))


def _linked(state: UserState) -> list[Touch]:
    return [touch for ring in state.linked.values() for touch in ring]


def _ordered_ms(state: UserState) -> int:
    """Where the field is not yet there, the items know it, and the day where it was an order without lines."""
    day_ms = state.order_days[-1] * DAY_MS if state.order_days else 0
    return max(state.ordered_ts_ms, day_ms, *(stat.last_order_ts_ms for stat in state.items.values()))


def _days(own: list[int], times_ms: list[int]) -> list[int]:
    return sorted({*own, *(ts_ms // DAY_MS for ts_ms in times_ms)})[-DAYS_MAX:]
