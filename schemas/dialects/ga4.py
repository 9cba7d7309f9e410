"""GA4 Measurement Protocol, `POST /mp/collect?measurement_id=…&api_secret=WRITE_KEY`.

Names and parameters: developers.google.com/analytics/devguides/collection/protocol/ga4/reference/events.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas import events as names
from schemas.dialects import (
    STEP_COMPLETED,
    Translated,
    derived_id,
    instant,
    list_of,
    object_of,
    objects_in,
    present,
    renamed,
    with_products,
)

NAMES = {
    "view_item": names.PRODUCT_VIEWED, "select_item": names.PRODUCT_CLICKED, "add_to_cart": names.PRODUCT_ADDED,
    "remove_from_cart": names.PRODUCT_REMOVED, "add_to_wishlist": names.PRODUCT_WISHLISTED, "view_cart": names.CART_VIEWED,
    "begin_checkout": names.CHECKOUT_STARTED, "purchase": names.ORDER_COMPLETED, "refund": names.ORDER_REFUNDED,
    "view_item_list": names.PRODUCT_LIST_VIEWED, "search": names.PRODUCTS_SEARCHED,
    "view_search_results": names.PRODUCTS_SEARCHED, "view_promotion": names.PROMOTION_VIEWED,
    "select_promotion": names.PROMOTION_CLICKED, "share": names.PRODUCT_SHARED, "add_shipping_info": STEP_COMPLETED,
    "add_payment_info": "Payment Info Entered",
}  # fmt: skip
_PARAMS = {"transaction_id": "order_id", "search_term": "query", "item_id": "product_id", "item_list_id": "list_id",
           "payment_type": "payment_method", "shipping_tier": "shipping_method"}  # fmt: skip
_ORDER = {"value": "revenue"}  # elsewhere it is what the items are worth
_PROMOTION = {"promotion_name": "name", "creative_name": "creative", "creative_slot": "position"}
_OF_ONE = {"purchase": _ORDER, "refund": _ORDER, "view_promotion": _PROMOTION, "select_promotion": _PROMOTION,
           "share": {"method": "share_via"}}  # fmt: skip
_ITEM = {"item_id": "product_id", "item_name": "name", "item_brand": "brand", "item_category": "category",
         "item_variant": "variant", "index": "position", "item_list_id": "list_id"}  # fmt: skip
_OF_ITS_ITEMS = {"view_item_list": "list_id", "select_item": "list_id", "view_promotion": "promotion_id",
                 "select_promotion": "promotion_id"}  # fmt: skip
_PAGE = {"page_location": "url", "page_title": "title", "page_referrer": "referrer"}
_CONSENT = {"analytics_storage": "analytics", "ad_user_data": "ads", "ad_personalization": "personalization"}


def translate(body: Any, query: Mapping[str, str]) -> Translated:
    """One request. Raises DialectError."""
    body = object_of(body, "")
    about = present(
        userId=body.get("user_id"), anonymousId=body.get("client_id") or body.get("app_instance_id"),
        traits={name: one.get("value") if isinstance(one, dict) else one
                for name, one in object_of(body.get("user_properties") or {}, "user_properties").items()},
    )  # fmt: skip
    consent = _consent(object_of(body.get("consent") or {}, "consent"))
    found = []
    for at, one in enumerate(list_of(body.get("events"), "events")):
        params = object_of(one.get("params") or {}, f"events[{at}].params")
        micros = one.get("timestamp_micros") or body.get("timestamp_micros")
        found.append(about | _event(one.get("name"), params) | present(
            messageId=derived_id(about.get("anonymousId"), about.get("userId"), at, one, at=micros),
            originalTimestamp=instant(micros, 1_000_000),
            context=present(sessionId=_text(params.get("session_id")), ip=body.get("ip_override"), consent=consent),
        ))  # fmt: skip
    return Translated(found, query.get("api_secret"))


def _event(name: Any, params: dict[str, Any]) -> dict[str, Any]:
    if name == "page_view":
        return {"type": "page", "properties": renamed(params, _PAGE)}
    theirs = str(name)
    ours = NAMES.get(theirs, theirs) if name is not None else None
    products = [_product(item) for item in objects_in(params.get("items"))]
    own = {key: value for key, value in params.items() if key != "items"}
    properties = renamed(own, _PARAMS | _OF_ONE.get(theirs, {}))
    said_by_items = _OF_ITS_ITEMS.get(theirs)  # a list or promotion may be named by each item instead
    if said_by_items and products and said_by_items in products[0]:
        properties.setdefault(said_by_items, products[0][said_by_items])
    return {"type": "track", "event": ours, "properties": with_products(str(ours), properties, products)}


def _product(item: dict[str, Any]) -> dict[str, Any]:
    """Of an item's id and its name one is required."""
    found = renamed(item, _ITEM)
    return found if found.get("product_id") or not found.get("name") else found | {"product_id": found["name"]}


def _consent(given: dict[str, Any]) -> dict[str, bool]:
    """`ad_user_data` and `ad_personalization` of the protocol, and `analytics_storage` of the browser's."""
    found = {}
    for theirs, ours in _CONSENT.items():
        if isinstance(given.get(theirs), str):
            found[ours] = given[theirs].lower() == "granted"
    return found


def _text(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None
