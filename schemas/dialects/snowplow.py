"""Snowplow's tracker protocol, `POST /com.snowplowanalytics.snowplow/tp2` and, an event a picture, `GET /i?e=…`; the app id
`aid` is the write key.

Page views and e-commerce actions are read, an action with its products and the one entity that it is about; any other
self-describing event is kept under its schema's name, and all other entities in `context.entities`.
docs.snowplow.io/docs/events/ootb-data/ecommerce-events.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from schemas import events as names
from schemas.dialects import (
    STEP_COMPLETED,
    DialectError,
    Translated,
    from_base64,
    instant,
    list_of,
    object_of,
    objects_in,
    present,
    renamed,
    with_products,
)

ACTION = "snowplow_ecommerce_action"
ACTIONS = {
    "product_view": names.PRODUCT_VIEWED, "list_click": names.PRODUCT_CLICKED, "list_view": names.PRODUCT_LIST_VIEWED,
    "add_to_cart": names.PRODUCT_ADDED, "remove_from_cart": names.PRODUCT_REMOVED, "checkout_step": names.CHECKOUT_STARTED,
    "transaction": names.ORDER_COMPLETED, "refund": names.ORDER_REFUNDED, "promo_view": names.PROMOTION_VIEWED,
    "promo_click": names.PROMOTION_CLICKED,
}  # fmt: skip
PRODUCT = "product"
_ABOUT = {  # action → the entity whose fields are the event's own
    "add_to_cart": "cart", "remove_from_cart": "cart", "checkout_step": "checkout_step", "transaction": "transaction",
    "refund": "refund", "promo_view": "promotion", "promo_click": "promotion",
}  # fmt: skip
_FIELDS = {
    PRODUCT: {"id": "product_id"}, "promotion": {"id": "promotion_id", "creative_id": "creative"},
    "transaction": {"transaction_id": "order_id", "discount_code": "coupon", "discount_amount": "discount"},
    "refund": {"transaction_id": "order_id", "refund_amount": "revenue"},
    "checkout_step": {"coupon_code": "coupon", "delivery_method": "shipping_method"}, ACTION: {"name": "list_id"},
}
Entities = dict[str, list[dict[str, Any]]]


def translate(body: Any, query: Mapping[str, str]) -> Translated:
    """One request. Raises DialectError."""
    payloads = list_of(object_of(body, "").get("data"), "data")
    found = [_event(one, f"data[{at}]") for at, one in enumerate(payloads)]
    return Translated(found, next((one["aid"] for one in payloads if isinstance(one.get("aid"), str)), None))


def _event(payload: dict[str, Any], path: str) -> dict[str, Any]:
    entities = _entities(payload, path)
    said = _said(payload, entities, path)
    return said | present(
        messageId=payload.get("eid"), userId=payload.get("uid"),
        anonymousId=payload.get("duid") or payload.get("tnuid") or payload.get("nuid"),
        originalTimestamp=instant(payload.get("ttm") or payload.get("dtm"), 1_000),
        sentAt=instant(payload.get("stm"), 1_000),
        context=present(
            sessionId=payload.get("sid"), locale=payload.get("lang"), userAgent=payload.get("ua"), ip=payload.get("ip"),
            page=present(url=payload.get("url"), title=payload.get("page"), referrer=payload.get("refr")),
            entities=entities,
        ),
    )  # fmt: skip


def _said(payload: dict[str, Any], entities: Entities, path: str) -> dict[str, Any]:
    """What happened; takes the entities out that are part of it."""
    kind = payload.get("e")
    if kind == "pv":
        return {"type": "page", "properties": present(url=payload.get("url"), title=payload.get("page"))}
    if kind == "ue":
        return _described(payload, entities, path)
    if kind == "se":
        return {"type": "track", "event": payload.get("se_ac"), "properties": present(
            category=payload.get("se_ca"), label=payload.get("se_la"), property=payload.get("se_pr"),
            value=payload.get("se_va"))}  # fmt: skip
    return {"type": "track", "event": f"snowplow {kind}"}


def _described(payload: dict[str, Any], entities: Entities, path: str) -> dict[str, Any]:
    """A self-describing event."""
    outer = object_of(_json(payload, "ue_px", "ue_pr", path), f"{path}.ue")
    inner = object_of(outer.get("data"), f"{path}.ue.data")
    name, data = _name(inner), object_of(inner.get("data") or {}, f"{path}.ue.data.data")
    if name != ACTION:
        return {"type": "track", "event": name, "properties": data}
    action = str(data.pop("type", None))
    properties = renamed(data, _FIELDS[ACTION])
    about = _ABOUT.get(action, "")
    for one in entities.pop(about, ()):
        properties |= renamed(one, _FIELDS.get(about, {}))
    ours = STEP_COMPLETED if _is_later_step(action, properties) else ACTIONS.get(action, action)
    products = [renamed(one, _FIELDS[PRODUCT]) for one in entities.pop(PRODUCT, ())]
    return {"type": "track", "event": ours, "properties": with_products(ours, properties, products)}


def _is_later_step(action: str, properties: dict[str, Any]) -> bool:
    """Checkouts are told step by step; the first one starts them."""
    step = properties.get("step")
    return action == "checkout_step" and isinstance(step, int) and step > 1


def _entities(payload: dict[str, Any], path: str) -> Entities:
    """What the event is told with, by schema name."""
    if "cx" not in payload and "co" not in payload:
        return {}
    found: Entities = {}
    for one in objects_in(object_of(_json(payload, "cx", "co", path), f"{path}.contexts").get("data")):
        if isinstance(one.get("data"), dict):
            found.setdefault(_name(one), []).append(one["data"])
    return found


def _name(described: dict[str, Any]) -> str:
    """`name` of `iglu:vendor/name/jsonschema/1-0-0`."""
    parts = str(described.get("schema", "")).split("/")
    return parts[1] if len(parts) > 1 else "unknown"


def _json(payload: dict[str, Any], encoded: str, plain: str, path: str) -> Any:
    """A part that is JSON in base64 or as it is."""
    try:
        if isinstance(payload.get(encoded), str):
            return msgspec.json.decode(from_base64(payload[encoded]))
        return msgspec.json.decode(str(payload.get(plain, "")))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise DialectError(f"{path}.{encoded if encoded in payload else plain}", f"no JSON: {error}") from error
