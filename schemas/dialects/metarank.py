"""Metarank's feedback, `POST /feedback`; the write key comes as Basic auth, as it has none of its own.

A ranking is a list that was shown, so its id is what interactions name as `ranking`. Item events are refused: one holds some
fields of an item, and the items topic holds whole items, so that it would take away what others had said; and a write key,
which is in a page, must not change the catalog. Items come with `clickwake catalog`.
docs.metarank.ai/reference/event-schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas import events as names
from schemas.dialects import Translated, instant, list_of, object_of, objects_in, present, renamed

TYPES = {
    "view": names.PRODUCT_VIEWED, "click": names.PRODUCT_CLICKED, "cart": names.PRODUCT_ADDED,
    "add_to_cart": names.PRODUCT_ADDED, "like": names.PRODUCT_WISHLISTED, "wishlist": names.PRODUCT_WISHLISTED,
    "purchase": names.ORDER_COMPLETED, "buy": names.ORDER_COMPLETED, "order": names.ORDER_COMPLETED,
    "share": names.PRODUCT_SHARED,
}  # fmt: skip
_WHO = ("user", "session")  # said above, in our words
UNSUPPORTED = "items are no events of people: send them with `clickwake catalog`"


def translate(body: Any, query: Mapping[str, str]) -> Translated:
    """One event or a list of them. Raises DialectError."""
    given = list_of(body, "") if isinstance(body, list) else [object_of(body, "")]
    return Translated([_event(one) for one in given])


def _event(one: dict[str, Any]) -> dict[str, Any]:
    fields = {str(field["name"]): field.get("value") for field in objects_in(one.get("fields")) if "name" in field}
    about = present(
        messageId=one.get("id"), userId=one.get("user"), anonymousId=one.get("session"),
        originalTimestamp=instant(one.get("timestamp"), 1_000) or one.get("timestamp"),
        context=present(sessionId=one.get("session")),
    )  # fmt: skip
    kind = one.get("event")
    if kind == "user":
        return about | {"type": "identify", "traits": fields}
    if kind == "ranking":
        products = [{"position": at} | renamed(item, {"id": "product_id"})
                    for at, item in enumerate(objects_in(one.get("items")), 1)]  # fmt: skip
        return about | {"type": "track", "event": names.PRODUCT_LIST_VIEWED,
                        "properties": fields | {"recommendation_id": one.get("id"), "products": products}}  # fmt: skip
    if kind == "interaction":
        theirs = str(one.get("type"))
        ours = TYPES.get(theirs, theirs)
        properties = fields | present(product_id=one.get("item"), recommendation_id=one.get("ranking"))
        if ours == names.ORDER_COMPLETED:
            properties.setdefault("order_id", one.get("id"))
        return about | {"type": "track", "event": ours, "properties": properties}
    rest = {name: value for name, value in one.items() if name not in _WHO} | present(fields=fields)
    return about | {"type": kind, "metarank": rest, "error": UNSUPPORTED if kind == "item" else "no event of Metarank's"}
