"""GA4 Measurement Protocol, `POST /mp/collect?measurement_id=…&api_secret=WRITE_KEY`.

Names and parameters: developers.google.com/analytics/devguides/collection/protocol/ga4/reference/events.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas import events as names
from schemas.dialects import Translated, derived_id, instant, list_of, object_of, objects_in, present, with_products

NAMES = {
    "view_item": names.PRODUCT_VIEWED, "select_item": names.PRODUCT_CLICKED, "add_to_cart": names.PRODUCT_ADDED,
    "remove_from_cart": names.PRODUCT_REMOVED, "add_to_wishlist": names.PRODUCT_WISHLISTED, "view_cart": names.CART_VIEWED,
    "begin_checkout": names.CHECKOUT_STARTED, "purchase": names.ORDER_COMPLETED, "refund": names.ORDER_REFUNDED,
    "view_item_list": names.PRODUCT_LIST_VIEWED, "search": names.PRODUCTS_SEARCHED,
    "view_search_results": names.PRODUCTS_SEARCHED, "view_promotion": names.PROMOTION_VIEWED,
    "select_promotion": names.PROMOTION_CLICKED, "share": names.PRODUCT_SHARED,
}  # fmt: skip
_RENAMED = {"transaction_id": "order_id", "search_term": "query", "item_id": "product_id"}
_ITEM = {"item_id": "product_id", "item_name": "name", "item_brand": "brand", "item_category": "category"}
_CONSENT = {"analytics_storage": "analytics", "ad_user_data": "ads", "ad_personalization": "personalization"}
_REVENUE = ("purchase", "refund")


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
            messageId=derived_id(body.get("client_id"), at, one, at=micros), originalTimestamp=instant(micros, 1_000_000),
            context=present(sessionId=_text(params.get("session_id")), ip=body.get("ip_override"), consent=consent),
        ))  # fmt: skip
    return Translated(found, query.get("api_secret"))


def _event(name: Any, params: dict[str, Any]) -> dict[str, Any]:
    if name == "page_view":
        return {"type": "page", "properties": present(url=params.get("page_location"), title=params.get("page_title"),
                                                      referrer=params.get("page_referrer"))}  # fmt: skip
    theirs = str(name)
    ours = NAMES.get(theirs, theirs) if name is not None else None
    products = [{_ITEM.get(key, key): value for key, value in item.items()} for item in objects_in(params.get("items"))]
    properties = {_RENAMED.get(key, key): value for key, value in params.items() if key != "items"}
    if name in _REVENUE and "value" in properties:
        properties["revenue"] = properties.pop("value")
    return {"type": "track", "event": ours, "properties": with_products(str(ours), properties, products)}


def _consent(given: dict[str, Any]) -> dict[str, bool]:
    """`ad_user_data` and `ad_personalization` of the protocol, and `analytics_storage` of the browser's."""
    found = {}
    for theirs, ours in _CONSENT.items():
        if isinstance(given.get(theirs), str):
            found[ours] = given[theirs].lower() == "granted"
    return found


def _text(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None
