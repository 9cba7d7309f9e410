"""What is kept of one user: raw recent events and exact counters, never a running vector.

Everything derived (features, vectors, due times) is recomputed from this by pure functions, so training, which replays
history through the same fold, cannot see anything that serving does not.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Literal, TypeVar

import msgspec

STATE_VERSION = 1
RING_TOUCHES_MAX = 64  # the user encoder reads 50; the rest is room for merging a linked history
ORDERED_TOUCHES_MAX = 64  # ordered lines older than the ring: rules count them; no model reads them
ACTIVITIES_MAX = 32  # searches, pages and other events that rules of segments count; no model reads them
ACTIVITY_CHARS_MAX = 128  # of their text
ITEM_STATS_MAX = 160  # personal repeat frequency; beyond this the item touched longest ago is forgotten
SEEN_IDS_MAX = 128  # event-id hashes for duplicates; whole groups of one time are evicted, see `seen`
DAYS_MAX = 64  # distinct active days kept for gap statistics
DAY_MS = 86_400_000


class Kind(IntEnum):
    """What a user did to an item. The numbers are inputs of the user encoder: never renumber, only append."""

    PAD = 0
    VIEW = 1
    CLICK = 2
    CART = 3
    UNCART = 4
    WISH = 5
    ORDER = 6
    REFUND = 7
    REVIEW = 8
    SHARE = 9
    OTHER = 10


KINDS = len(Kind)


class Touch(msgspec.Struct, frozen=True, array_like=True, gc=False):  # holds no container, so it is in no cycle
    """One event's effect on one item. Order in the ring is (ts_ms, event_id, item_id): total, so replay-proof."""

    ts_ms: int
    event_id: str
    item_id: str
    kind: int
    value: float  # price × quantity where known, else 0

    def order(self) -> tuple[int, str, str]:
        return (self.ts_ms, self.event_id, self.item_id)


class Activity(msgspec.Struct, frozen=True, array_like=True, gc=False):  # what it holds is text: it is in no cycle
    """An event of which no touch tells its name: a search, a page, an event of the shop's own. Ordered like touches."""

    ts_ms: int
    mark: int  # hash of the event's id
    event: str
    text: str  # what was searched, or where: cut at ACTIVITY_CHARS_MAX
    properties: dict[str, str] | None = None  # of those that rules ask for, see `traits`; None: of most, and takes no room

    def order(self) -> tuple[int, int]:
        return (self.ts_ms, self.mark)


class Trait(msgspec.Struct, frozen=True, array_like=True, gc=False, order=True):
    """What a user was said to be. Of two statements the greater stands, so their order of arrival does not count."""

    ts_ms: int
    mark: int  # hash of the event's id
    text: str  # "": there is no such trait


Kept = TypeVar("Kept", Touch, Activity)


class ItemStat(msgspec.Struct, array_like=True, gc=False):
    """A user's exact dealings with one item."""

    touches: int = 0
    orders: int = 0
    last_ts_ms: int = 0
    last_order_ts_ms: int = 0
    order_span_ms: int = -1  # from the first order to the last; -1: none, or the first is older than this field


def count_item(items: dict[str, ItemStat], touch: Touch, again: bool = False) -> None:
    """Count a touch in a user's dealings; beyond ITEM_STATS_MAX the item touched longest ago is let go. Orders of an instant
    are lines of one; `again`: that there was such a line is known."""
    stat = items.get(touch.item_id)
    if stat is None:
        stat = items[touch.item_id] = ItemStat()
    stat.touches += 1
    if touch.ts_ms > stat.last_ts_ms:
        stat.last_ts_ms = touch.ts_ms
    if touch.kind == Kind.ORDER and not again and not (stat.orders and stat.last_order_ts_ms == touch.ts_ms):
        if stat.orders == 0:
            stat.order_span_ms = 0
        elif stat.order_span_ms >= 0:
            first_ms = min(touch.ts_ms, stat.last_order_ts_ms - stat.order_span_ms)
            stat.order_span_ms = max(touch.ts_ms, stat.last_order_ts_ms) - first_ms
        stat.orders += 1
        stat.last_order_ts_ms = max(stat.last_order_ts_ms, touch.ts_ms)
    if len(items) > ITEM_STATS_MAX:
        del items[min(items, key=lambda item: (items[item].last_ts_ms, item))]


class Alert(msgspec.Struct, array_like=True, gc=False):
    """Churn alert state: what was said is state, when it will be said is derived."""

    raised: bool = False
    silenced: bool = False  # lapsed before live began: not announced, cleared without a word
    raised_ts_ms: int = 0
    cleared_ts_ms: int = 0
    alert_event_id: str = ""  # last event folded when it was raised: part of the alert's id


class Reminded(msgspec.Struct, array_like=True, gc=False):
    """A reminder that was said, of an item or, where that is empty, of a category."""

    item_id: str
    category: str
    bought_ts_ms: int  # the purchase after which it is due again
    from_ts_ms: int  # when it was said
    until_ts_ms: int  # the end of the time in which it is due
    interval_days: float
    probability: float
    model_version: str
    outcome: Literal["", "bought", "lapsed"] = ""  # empty while it is open


class Reminders(msgspec.Struct, array_like=True):
    """What was said is state, when the next is due is derived."""

    due_ts_ms: int = 0  # the next reminder, or the end of one that is open; 0: never
    past_ts_ms: int = 0  # what was due until then has been said or decided against
    said: list[Reminded] = []  # open ones, and those of the last week
    orders: int = 0  # of the user when `due_ts_ms` was set: only another order moves it; -1: it is stale

    def look_anew(self, orders: int, clock_ms: int) -> None:
        """Another model moves what is due. What it would have said before now is no news, unless something that was due by
        now is still to be said, or an order to be looked at."""
        if self.orders == orders and not 0 < self.due_ts_ms <= clock_ms:
            self.past_ts_ms = max(self.past_ts_ms, clock_ms)
        self.orders = -1


class Stated(msgspec.Struct, frozen=True, array_like=True, gc=False, order=True):
    """What was said last about one purpose of consent. Of two statements the greater counts, so their order of arrival does
    not: the user's own word before what the tenant assumes (`own`), the later before the earlier, at the same time refusal.

    >>> max(Stated(True, 5, True), Stated(True, 9, False), Stated(False, 11, True)).refused
    False
    """

    own: bool = False
    ts_ms: int = 0  # 0: nothing was said, which is no refusal
    refused: bool = False


NOTHING_STATED = Stated()
ADS_REFUSED = "refused: ads consent"  # the reason that logs give


class Placed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The cluster that a release found for a history (`audience.history_mark`); kept so that it is not asked again."""

    release: str = ""
    mark: int = 0
    cluster: str = ""  # its name; empty: none


class UserState(msgspec.Struct, array_like=True):
    """State of one user. Times are event times in ms since 1970.

    `seen` maps event-id hash → ts. When it outgrows its bound, the oldest whole group of equal times is evicted and
    `seen_horizon_ms` rises to that time: an event at or before the horizon cannot be told from a duplicate any more and
    counts as late. Evicting whole groups keeps long baskets of one timestamp exact. Orders' ids are kept there too, see
    `fold.order_began`.
    """

    version: int = STATE_VERSION
    ring: list[Touch] = []
    items: dict[str, ItemStat] = {}
    seen: dict[int, int] = {}
    seen_horizon_ms: int = 0
    first_ts_ms: int = 0
    last_ts_ms: int = 0
    last_event_id: str = ""
    events: int = 0
    orders: int = 0
    revenue: float = 0.0
    days: list[int] = []  # distinct active days since 1970, ascending, the last DAYS_MAX
    order_days: list[int] = []
    alert: Alert = msgspec.field(default_factory=Alert)
    recommended_ts_ms: int = 0
    due_ts_ms: int = 0  # when silence alone crosses the churn threshold; 0: never
    linked: dict[str, list[Touch]] = {}  # anonymous id → its touches, as last answered; replaced whole, so repeatable
    claims: list[tuple[int, str]] = []  # on an anonymous state: (claimed up to ts, user), ascending
    claimed: dict[str, int] = {}  # on a known state: anonymous id → event time of the last claim sent for it
    known: bool = False  # an event named this id as userId: it is a person, never an anonymous history to be claimed
    segments: dict[str, tuple[int, int]] = {}  # segment → (number of changes, when the last was): inside while it is odd
    reminders: Reminders = msgspec.field(default_factory=Reminders)
    placed: Placed = Placed()
    put_event_id: str = ""  # of the last live event that put something into the basket, until complements are looked for
    ads: Stated = NOTHING_STATED  # whether advertising may be shown or sent
    activities: list[Activity] = []
    linked_activities: dict[str, list[Activity]] = {}  # as `linked`, of those that have any
    ordered: list[Touch] = []  # ordered lines that the ring let go of, so that views do not push orders out
    ordered_ts_ms: int = 0  # the last order, also one without lines; 0: none, or before this field: see `totals`
    since_ms: int = 0  # when the broker took the event that began the profile: tells it from one that was cleared before it
    traits: dict[str, Trait] = {}  # those that rules of segments ask for, by name
    linked_traits: dict[str, dict[str, Trait]] = {}  # anonymous id → those said there, of those that have any
    # on an anonymous state: up to when something of it was let go with its user; 0: nothing, or before 0.10.0
    forgot_ms: int = 0

    @property
    def began_ms(self) -> int:
        """When the profile began: as the broker knows it, before 0.9.0 by its first event.

        >>> UserState(first_ts_ms=5).began_ms, UserState(first_ts_ms=9, since_ms=7).began_ms
        (5, 7)
        """
        return self.since_ms or self.first_ts_ms

    def next_due_ms(self) -> int:
        """When silence alone brings about the next thing, an alert or a reminder; 0: never.

        >>> UserState(due_ts_ms=7).next_due_ms(), UserState(due_ts_ms=7, reminders=Reminders(due_ts_ms=5)).next_due_ms()
        (7, 5)
        """
        churn, other = self.due_ts_ms, self.reminders.due_ts_ms
        return min(churn, other) if churn and other else churn or other

    def history(self) -> list[Touch]:
        """Own ring and linked rings in total order, at most RING_TOUCHES_MAX, oldest first."""
        return _merged(self.ring, self.linked)[-RING_TOUCHES_MAX:] if self.linked else self.ring

    def own_touches(self) -> list[Touch]:
        """The ring, and before it the ordered lines that it let go of, oldest first."""
        return sorted([*self.ordered, *self.ring], key=Touch.order) if self.ordered else self.ring

    def remembered(self) -> list[Touch]:
        """What rules count: `history`, and before it ORDERED_TOUCHES_MAX ordered lines, own and linked, oldest first."""
        if not self.linked:
            return self.own_touches()
        merged = _merged(self.own_touches(), self.linked)
        ordered = [touch for touch in merged[:-RING_TOUCHES_MAX] if touch.kind == Kind.ORDER]
        return ordered[-ORDERED_TOUCHES_MAX:] + merged[-RING_TOUCHES_MAX:]

    def trait(self, name: str) -> str:
        """What was said last, here or on a linked device; "" where nothing was.

        >>> UserState(traits={"plan": Trait(5, 0, "pro")}, linked_traits={"a": {"plan": Trait(7, 0, "free")}}).trait("plan")
        'free'
        """
        said = [traits[name] for traits in (self.traits, *self.linked_traits.values()) if name in traits]
        return max(said).text if said else ""

    def activity(self) -> list[Activity]:
        """Own activities and linked ones in total order, at most ACTIVITIES_MAX, oldest first."""
        linked = self.linked_activities
        return _merged(self.activities, linked)[-ACTIVITIES_MAX:] if linked else self.activities


def _merged(own: list[Kept], linked: dict[str, list[Kept]]) -> list[Kept]:
    rings = [own]
    rings.extend(linked.values())
    merged: dict[Any, Kept] = {one.order(): one for ring in rings for one in ring}
    return [merged[order] for order in sorted(merged)]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(UserState)


def encode(state: UserState) -> bytes:
    """
    >>> decode(encode(UserState(events=3))).events
    3
    """
    return _encoder.encode(state)


def decode(data: bytes) -> UserState:
    """Inverse of `encode`; raises msgspec.ValidationError for bytes that no version wrote."""
    return _decoder.decode(data)
