"""The canonical event: Segment's common fields, its e-commerce names, and what the collector adds.

On the topic an event is one JSON object. Unknown fields stay in those bytes and are never refused; `Event` types only
what Clickwake reads, so decoding it validates exactly that much. Source of the names: Segment Spec, "Common Fields"
and "E-Commerce Events v2".
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

EventType = Literal["track", "identify", "page", "screen", "group", "alias"]
Lane = Literal["live", "import", "repair"]

EVENT_BYTES_MAX = 32 * 1024  # Segment's documented limit for one event
ID_CHARS_MAX = 256  # ids become Kafka keys and RocksDB keys; longer ones are payloads in disguise

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_CHARS_MAX)]
Instant = Annotated[datetime, msgspec.Meta(tz=True)]


class Product(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `products[]`."""

    product_id: Id
    price: float | None = None
    quantity: float | None = None
    name: str | None = None
    category: str | None = None
    brand: str | None = None


class Properties(msgspec.Struct, frozen=True, kw_only=True):
    """The properties that mean something to Clickwake; every other one is kept in the raw event."""

    product_id: Id | None = None
    products: tuple[Product, ...] = ()
    order_id: Id | None = None
    price: float | None = None
    quantity: float | None = None
    currency: str | None = None
    revenue: float | None = None
    total: Any = None  # of Order Refunded: what is given back; of other events whatever their sender means by it
    query: str | None = None
    path: Any = None  # where a page or screen is, and what it is called: only texts are read
    url: Any = None
    name: Any = None
    rating: float | str | None = None  # Segment's specification has it as text
    review_body: str | None = None
    promotion_id: Id | None = None
    coupon: str | None = None
    recommendation_id: Id | None = None


class Consent(msgspec.Struct, frozen=True, kw_only=True):
    """What the user allowed; where an event says nothing the collector puts the tenant's default in, if it has one: `None`
    is yes. `assumed`: of `ads` it is the default, no word of the user's."""

    analytics: bool | None = None
    personalization: bool | None = None
    ads: bool | None = None
    assumed: bool = False


class Context(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    session_id: str | None = None
    consent: Consent | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One canonical event as it stands on `clickwake.events.v1`.

    `timestamp` is the event's time: receivedAt - (sentAt - originalTimestamp), set by whoever puts the event in.
    """

    message_id: Id
    type: EventType
    timestamp: Instant
    tenant: Id
    lane: Lane = "live"
    event: Annotated[str, msgspec.Meta(min_length=1, max_length=ID_CHARS_MAX)] | None = None
    user_id: Id | None = None
    anonymous_id: Id | None = None
    previous_id: Id | None = None
    properties: Properties = Properties()
    context: Context = Context()
    original_timestamp: Instant | None = None
    sent_at: Instant | None = None
    received_at: Instant | None = None

    @property
    def user(self) -> str:
        """The known id, else the anonymous one; empty when the event carries neither."""
        return self.user_id or self.anonymous_id or ""

    @property
    def ts_ms(self) -> int:
        """Event time in milliseconds since 1970."""
        return ms(self.timestamp)


class EventTexts(msgspec.Struct, frozen=True, kw_only=True):
    """The free-form parts of the same event, which the sink stores as the JSON text they were."""

    properties: msgspec.Raw = msgspec.Raw(b"{}")
    traits: msgspec.Raw = msgspec.Raw(b"{}")
    context: msgspec.Raw = msgspec.Raw(b"{}")


# Names Clickwake gives a meaning to; any other name is kept and counted as activity.
PRODUCT_VIEWED = "Product Viewed"
PRODUCT_CLICKED = "Product Clicked"
PRODUCT_ADDED = "Product Added"
PRODUCT_REMOVED = "Product Removed"
PRODUCT_WISHLISTED = "Product Added to Wishlist"
PRODUCT_SHARED = "Product Shared"
PRODUCT_REVIEWED = "Product Reviewed"
PRODUCTS_SEARCHED = "Products Searched"
PRODUCT_LIST_VIEWED = "Product List Viewed"
CART_VIEWED = "Cart Viewed"
CHECKOUT_STARTED = "Checkout Started"
ORDER_COMPLETED = "Order Completed"
ORDER_REFUNDED = "Order Refunded"
PROMOTION_VIEWED = "Promotion Viewed"
PROMOTION_CLICKED = "Promotion Clicked"
COUPON_APPLIED = "Coupon Applied"


def number(value: object) -> float | None:
    """A number that counts, also one written as text; None for anything else.

    >>> number("4.5"), number(3), number("many"), number(True), number("nan"), number(10**400)
    (4.5, 3.0, None, None, None, None)
    """
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):  # an integer of some four hundred digits
        return None
    return found if math.isfinite(found) else None


def ms(instant: datetime) -> int:
    """Milliseconds since 1970."""
    return round(instant.timestamp() * 1000)


def key(tenant: str, user: str) -> bytes:
    """The Kafka key of every user topic.

    >>> key("shop", "u1")
    b'shop/u1'
    """
    return f"{tenant}/{user}".encode()


def user_of(event: dict[str, Any]) -> str:
    """Whose a canonical event is: the user's, or the visitor's while nobody has signed in.

    >>> user_of({"anonymousId": "a1"}), user_of({"userId": "u1", "anonymousId": "a1"})
    ('a1', 'u1')
    """
    user: str = event.get("userId") or event["anonymousId"]
    return user


def encode(event: dict[str, Any]) -> bytes:
    """A canonical event as it travels. Producers pass a plain dict, so that unknown fields survive."""
    return msgspec.json.encode(event)
