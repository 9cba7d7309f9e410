"""One event into one user's state: idempotent, and indifferent to order within the window of remembered ids."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from enum import Enum

from schemas import events as names
from schemas.events import Event
from stream.core.user.state import (
    ACTIVITIES_MAX,
    ACTIVITY_CHARS_MAX,
    DAY_MS,
    DAYS_MAX,
    NOTHING_STATED,
    ORDERED_TOUCHES_MAX,
    RING_TOUCHES_MAX,
    SEEN_IDS_MAX,
    Activity,
    Kept,
    Kind,
    Stated,
    Touch,
    UserState,
    count_item,
)
from stream.core.user.traits import NOTHING_SAID, Described, note

KIND_OF_NAME = {
    names.PRODUCT_VIEWED: Kind.VIEW,
    names.PRODUCT_CLICKED: Kind.CLICK,
    names.PRODUCT_ADDED: Kind.CART,
    names.PRODUCT_REMOVED: Kind.UNCART,
    names.PRODUCT_WISHLISTED: Kind.WISH,
    names.ORDER_COMPLETED: Kind.ORDER,
    names.ORDER_REFUNDED: Kind.REFUND,
    names.PRODUCT_REVIEWED: Kind.REVIEW,
    names.PRODUCT_SHARED: Kind.SHARE,
}

COUNTED_TYPES = ("page", "screen")  # beside `track`, by these names; the others say who one is

ORDER_SPREAD_MS_MAX = DAY_MS  # between the lines of one order; an id that comes again later is another order's, or no id


class Outcome(Enum):
    """What became of an event; every input has exactly one."""

    FOLDED = "folded"
    DUPLICATE = "duplicate"
    LATE = "late"


def id_hash(message_id: str) -> int:
    """63-bit hash of an event id, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(message_id.encode(), digest_size=8).digest(), "big") >> 1


def touches(event: Event, ts_ms: int) -> list[Touch]:
    """The item touches of an event at its time `ts_ms`: one a product line, none for events without an item."""
    properties = event.properties
    kind = KIND_OF_NAME.get(event.event or "", Kind.OTHER)
    if properties.products:
        if kind == Kind.OTHER:
            return []  # lists that were merely shown (Product List Viewed) are exposure, not interest
        return [
            Touch(ts_ms, event.message_id, line.product_id, kind, _value(line.price, line.quantity))
            for line in properties.products
        ]
    if properties.product_id is None:
        return []
    value = _value(properties.price, properties.quantity)
    return [Touch(ts_ms, event.message_id, properties.product_id, kind, value)]


def _value(price: float | None, quantity: float | None) -> float:
    """One piece, where nobody says how many."""
    return (price or 0.0) * (1.0 if quantity is None else quantity)


def activity(event: Event, ts_ms: int, mark: int, said: Described = NOTHING_SAID) -> Activity | None:
    """What rules can count of an event of another name than KIND_OF_NAME; None for those, and where nobody did anything.
    Text is kept of nobody who refused analytics."""
    name = event.event if event.type == "track" else event.type if event.type in COUNTED_TYPES else None
    if name is None or name in KIND_OF_NAME:
        return None
    consent, about = event.context.consent, event.properties
    told = () if consent is not None and consent.analytics is False else (about.query, about.path, about.url, about.name)
    text = next((one for one in told if isinstance(one, str) and one), "")
    return Activity(ts_ms, mark, name, text[:ACTIVITY_CHARS_MAX], dict(said.properties) or None)


def ads_stated(event: Event) -> Stated:
    """What an event says about advertising."""
    consent = event.context.consent
    if consent is None or consent.ads is None:
        return NOTHING_STATED
    return Stated(not consent.assumed, event.ts_ms, not consent.ads)


def fold(
    state: UserState, event: Event, clock_ms: int, lateness_max_ms: int, said: Described = NOTHING_SAID
) -> tuple[Outcome, list[Touch]]:
    """Fold `event`, and what of it rules ask for, into `state` in place; return what became of it and the touches it added.

    `clock_ms` is the partition's clock; a live event older than it by more than `lateness_max_ms` is late. Import and
    repair are never late against the clock, but an event from before the remembered ids is: it may have been folded. What an
    event says about advertising counts in any case: of statements the greatest stands, so none can count twice or too late.
    """
    ts_ms = event.ts_ms
    if event.context.consent is not None:
        state.ads = max(state.ads, ads_stated(event))
    hashed = id_hash(event.message_id)
    if hashed in state.seen:
        return Outcome.DUPLICATE, []
    if ts_ms <= state.seen_horizon_ms or (event.lane == "live" and clock_ms - ts_ms > lateness_max_ms):
        return Outcome.LATE, []
    state.seen[hashed] = ts_ms
    added = touches(event, order_began(state.seen, event, ts_ms))
    _bound_seen(state)
    for touch in added:
        again = touch.kind == Kind.ORDER and _ordered_then(state, touch)
        _insert(state.ring, touch)
        count_item(state.items, touch, again)
    _bound_ring(state)
    note(state, said, ts_ms, hashed)
    if (did := activity(event, ts_ms, hashed, said)) is not None:
        _insert(state.activities, did)
        del state.activities[:-ACTIVITIES_MAX]
    _advance(state, event, ts_ms, added)
    return Outcome.FOLDED, added


def _insert(ring: list[Kept], one: Kept) -> None:
    if not ring or one.ts_ms > ring[-1].ts_ms:  # nearly always: no search
        ring.append(one)
    else:
        insort(ring, one, key=lambda known: known.order())


def _bound_ring(state: UserState) -> None:
    for touch in state.ring[:-RING_TOUCHES_MAX]:
        if touch.kind == Kind.ORDER:
            _insert(state.ordered, touch)
    del state.ring[:-RING_TOUCHES_MAX], state.ordered[:-ORDERED_TOUCHES_MAX]


def order_began(known: dict[int, int], event: Event, ts_ms: int) -> int:
    """When the order began that an event completes, or is one line of: the time of the first of its lines that came, so that
    all its lines are of one instant. `known` maps hash → ts_ms and is told of an order that is new; any other event, and an
    order without an id, is of its own time.

    >>> from datetime import UTC, datetime
    >>> line = Event(message_id="m", type="track", timestamp=datetime.now(UTC), tenant="t", event=names.ORDER_COMPLETED,
    ...              properties=names.Properties(order_id="o"))
    >>> known = {}
    >>> [order_began(known, line, ts_ms) for ts_ms in (1_000, 4_000, 3 * DAY_MS)], list(known.values()) == [3 * DAY_MS]
    ([1000, 1000, 259200000], True)
    """
    order_id = event.properties.order_id
    if event.event != names.ORDER_COMPLETED or not order_id:
        return ts_ms
    mark = id_hash(f"order\0{order_id}")  # unlike any event id
    began_ms = known.get(mark)
    if began_ms is None or abs(ts_ms - began_ms) > ORDER_SPREAD_MS_MAX:
        began_ms = known[mark] = ts_ms
    return began_ms


def _ordered_then(state: UserState, touch: Touch) -> bool:
    """Whether the ring knows of an order of the same item at the same instant: another line of one order."""
    if touch.item_id not in state.items:
        return False
    ring = state.ring
    at = bisect_left(ring, touch.ts_ms, key=lambda one: one.ts_ms)
    while at < len(ring) and ring[at].ts_ms == touch.ts_ms:
        if ring[at].item_id == touch.item_id and ring[at].kind == Kind.ORDER:
            return True
        at += 1
    return False


def _bound_seen(state: UserState) -> None:
    seen = state.seen
    while len(seen) > SEEN_IDS_MAX:
        oldest = min(seen.values())
        if oldest == max(seen.values()):
            return  # one long basket: kept whole until time moves on
        for known in [known for known, at in seen.items() if at == oldest]:  # in place: a new dict an event is 4 KB of churn
            del seen[known]
        state.seen_horizon_ms = max(state.seen_horizon_ms, oldest)


def _advance(state: UserState, event: Event, ts_ms: int, added: list[Touch]) -> None:
    state.events += 1
    state.known = state.known or event.user_id is not None
    state.first_ts_ms = ts_ms if state.first_ts_ms == 0 else min(state.first_ts_ms, ts_ms)
    if (ts_ms, event.message_id) > (state.last_ts_ms, state.last_event_id):
        state.last_ts_ms, state.last_event_id = ts_ms, event.message_id
    day = ts_ms // DAY_MS
    _add_day(state.days, day)
    if event.event == names.ORDER_COMPLETED:
        state.orders += 1
        state.revenue += _amount(event, added)
        state.ordered_ts_ms = max(state.ordered_ts_ms, ts_ms)
        _add_day(state.order_days, day)
    elif event.event == names.ORDER_REFUNDED:
        state.revenue -= _amount(event, added)


def _amount(event: Event, added: list[Touch]) -> float:
    """Money of an order, or given back for one."""
    said = event.properties
    total = names.number(said.total) if event.event == names.ORDER_REFUNDED else None
    named = (amount for amount in (said.revenue, total) if amount is not None)  # 0 is an amount: a coupon paid for it all
    return next(named, sum(touch.value for touch in added))


def _add_day(days: list[int], day: int) -> None:
    if days and days[-1] == day:
        return
    at = bisect_left(days, day)
    if at < len(days) and days[at] == day:
        return
    days.insert(at, day)
    if len(days) > DAYS_MAX:
        del days[0]
