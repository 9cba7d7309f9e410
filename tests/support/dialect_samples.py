"""Samples of other systems' own documentation, of each action that is taken, and what it is here: all of its properties, or
the event. Where they are from stands above each; keys are ours."""

from __future__ import annotations

from typing import Any

from schemas import events as names
from schemas.dialects import STEP_COMPLETED

Sample = tuple[str, dict[str, Any], str, dict[str, Any]]  # their name, what is sent, our name, what the properties are


# developers.google.com/analytics/devguides/collection/protocol/ga4/reference/events
TEE = {
    "item_id": "SKU_12345", "item_name": "Stan and Friends Tee", "affiliation": "Google Merchandise Store",
    "coupon": "SUMMER_FUN", "discount": 2.22, "index": 0, "item_brand": "Google", "item_category": "Apparel",
    "item_category2": "Adult", "item_category5": "Short sleeve", "item_list_id": "related_products",
    "item_list_name": "Related Products", "item_variant": "green", "location_id": "ChIJIQBpAG2ahYAR_6128GcTUEo",
    "price": 10.01, "quantity": 3,
}  # fmt: skip
OUR_TEE = {
    "product_id": "SKU_12345", "name": "Stan and Friends Tee", "affiliation": "Google Merchandise Store",
    "coupon": "SUMMER_FUN", "discount": 2.22, "position": 0, "brand": "Google", "category": "Apparel",
    "item_category2": "Adult", "item_category5": "Short sleeve", "list_id": "related_products",
    "item_list_name": "Related Products", "variant": "green", "location_id": "ChIJIQBpAG2ahYAR_6128GcTUEo",
    "price": 10.01, "quantity": 3,
}  # fmt: skip
GREY, OUR_GREY = ({key: "SKU_12346", title: "Google Grey Women's Tee", "price": 21.01, "quantity": 2}
                  for key, title in (("item_id", "item_name"), ("product_id", "name")))  # fmt: skip
WORTH = {"currency": "USD", "value": 30.03}
RELATED, OUR_RELATED = ({key: "related_products", "item_list_name": "Related products"}
                        for key in ("item_list_id", "list_id"))  # fmt: skip
ORDER, OUR_ORDER = ({key: "T_12345", "currency": "USD", worth: 30.03, "coupon": "SUMMER_FUN", "shipping": 3.33, "tax": 1.11}
                    for key, worth in (("transaction_id", "value"), ("order_id", "revenue")))  # fmt: skip
SALE = {"creative_name": "Summer Banner", "creative_slot": "featured_app_1", "promotion_id": "P_12345",
        "promotion_name": "Summer Sale"}  # fmt: skip
OUR_SALE = {"creative": "Summer Banner", "position": "featured_app_1", "promotion_id": "P_12345", "name": "Summer Sale"}
ON_SALE = {"promotion_id": "P_12345", "promotion_name": "Summer Sale"}
GA4: list[Sample] = [
    ("add_payment_info", WORTH | {"coupon": "SUMMER_FUN", "payment_type": "Credit Card", "items": [TEE]},
     "Payment Info Entered", WORTH | {"coupon": "SUMMER_FUN", "payment_method": "Credit Card", "products": [OUR_TEE]}),
    ("add_shipping_info", WORTH | {"coupon": "SUMMER_FUN", "shipping_tier": "Ground", "items": [TEE]},
     STEP_COMPLETED, WORTH | {"coupon": "SUMMER_FUN", "shipping_method": "Ground", "products": [OUR_TEE]}),
    ("add_to_cart", WORTH | {"items": [TEE]}, names.PRODUCT_ADDED, OUR_TEE | WORTH),
    ("add_to_wishlist", WORTH | {"items": [TEE]}, names.PRODUCT_WISHLISTED, OUR_TEE | WORTH),
    ("begin_checkout", WORTH | {"coupon": "SUMMER_FUN", "items": [TEE]}, names.CHECKOUT_STARTED,
     WORTH | {"coupon": "SUMMER_FUN", "products": [OUR_TEE]}),
    ("purchase", ORDER | {"items": [TEE, GREY]}, names.ORDER_COMPLETED, OUR_ORDER | {"products": [OUR_TEE, OUR_GREY]}),
    ("refund", ORDER | {"items": [TEE]}, names.ORDER_REFUNDED, OUR_ORDER | {"products": [OUR_TEE]}),
    ("refund", ORDER, names.ORDER_REFUNDED, OUR_ORDER),  # of the whole order: its items need not be said
    ("remove_from_cart", WORTH | {"items": [TEE]}, names.PRODUCT_REMOVED, OUR_TEE | WORTH),
    ("search", {"search_term": "Clothing"}, names.PRODUCTS_SEARCHED, {"query": "Clothing"}),
    ("select_item", RELATED | {"items": [TEE]}, names.PRODUCT_CLICKED, OUR_TEE | OUR_RELATED),
    ("select_promotion", SALE | {"items": [TEE | ON_SALE]}, names.PROMOTION_CLICKED,
     OUR_SALE | {"products": [OUR_TEE | ON_SALE]}),
    ("share", {"method": "Twitter", "content_type": "image", "item_id": "C_12345"}, names.PRODUCT_SHARED,
     {"share_via": "Twitter", "content_type": "image", "product_id": "C_12345"}),
    ("view_cart", WORTH | {"items": [TEE]}, names.CART_VIEWED, WORTH | {"products": [OUR_TEE]}),
    ("view_item", WORTH | {"items": [TEE]}, names.PRODUCT_VIEWED, OUR_TEE | WORTH),
    ("view_item_list", RELATED | {"items": [TEE, GREY]}, names.PRODUCT_LIST_VIEWED,
     OUR_RELATED | {"products": [OUR_TEE, OUR_GREY]}),
    ("view_promotion", SALE | {"items": [TEE | ON_SALE]}, names.PROMOTION_VIEWED,
     OUR_SALE | {"products": [OUR_TEE | ON_SALE]}),
    ("view_search_results", {"search_term": "Clothing"}, names.PRODUCTS_SEARCHED, {"query": "Clothing"}),
    # a list and a promotion may be said by the items alone, an item by its name alone; other names are kept
    ("view_item_list", {"items": [TEE]}, names.PRODUCT_LIST_VIEWED, {"list_id": "related_products", "products": [OUR_TEE]}),
    ("view_promotion", {"items": [TEE | ON_SALE]}, names.PROMOTION_VIEWED,
     {"promotion_id": "P_12345", "products": [OUR_TEE | ON_SALE]}),
    ("view_item", {"items": [{"item_name": "Stan and Friends Tee"}]}, names.PRODUCT_VIEWED,
     {"product_id": "Stan and Friends Tee", "name": "Stan and Friends Tee"}),
    ("login", {"method": "Google"}, "login", {"method": "Google"}),
]  # fmt: skip


# docs.snowplow.io/docs/sources/web-trackers/tracking-events/ecommerce: what each function is called with; which entities
# that becomes is docs.snowplow.io/docs/events/ootb-data/ecommerce-events
ECOMMERCE = "iglu:com.snowplowanalytics.snowplow.ecommerce"


def shirt(key: str, **more: Any) -> dict[str, Any]:
    return {key: "P125", "name": "Baseball T", "brand": "Snowplow", "category": "Mens/Apparel", "price": 200,
            "currency": "USD"} | more  # fmt: skip


def listed(key: str) -> list[dict[str, Any]]:
    about = {"brand": "Snowplow", "category": "Mens/Apparel", "inventory_status": "in stock", "currency": "USD"}
    return [about | {key: ident, "name": name, "price": price, "position": at} for at, (ident, name, price) in enumerate(
        (("P123", "Fashion red", 100), ("P124", "Fashion green", 119), ("P125", "Baseball T", 200)), 1)]  # fmt: skip


PROMO, OUR_PROMO = ({key: "IP1234", "name": "promo_winter", "type": "carousel", "position": 1, "product_ids": ["P1234"]}
                    for key in ("id", "promotion_id"))  # fmt: skip
TRANSACTION, OUR_TRANSACTION = ({key: "T12345", "revenue": 230, "currency": "USD", "payment_method": "credit_card",
                                 "total_quantity": 1, "tax": 20, "shipping": 10}
                                for key in ("transaction_id", "order_id"))  # fmt: skip
FAILED = {"resolution": "rejection", "error_code": "E123", "error_shortcode": "CARD_DECLINE",
          "error_description": "Card has been declined by the issuing bank.", "error_type": "hard"}  # fmt: skip
# action, the list's name, entities, our name, our properties, and the entities that are no part of it
Action = tuple[str, str, list[tuple[str, dict[str, Any]]], str, dict[str, Any], dict[str, Any]]
SNOWPLOW: list[Action] = [
    ("product_view", "", [("product", shirt("id"))], names.PRODUCT_VIEWED, shirt("product_id"), {}),
    ("add_to_cart", "", [("product", shirt("id")), ("cart", {"total_value": 200, "currency": "USD"})], names.PRODUCT_ADDED,
     shirt("product_id", total_value=200), {}),
    ("remove_from_cart", "", [("product", shirt("id")), ("cart", {"total_value": 0, "currency": "USD"})],
     names.PRODUCT_REMOVED, shirt("product_id", total_value=0), {}),
    ("list_view", "Recommended Products", [("product", one) for one in listed("id")], names.PRODUCT_LIST_VIEWED,
     {"list_id": "Recommended Products", "products": listed("product_id")}, {}),
    ("list_click", "Recommended Products", [("product", listed("id")[1])], names.PRODUCT_CLICKED,
     listed("product_id")[1] | {"list_id": "Recommended Products"}, {}),
    ("promo_view", "", [("promotion", PROMO)], names.PROMOTION_VIEWED, OUR_PROMO, {}),
    ("promo_click", "", [("promotion", PROMO)], names.PROMOTION_CLICKED, OUR_PROMO, {}),
    ("checkout_step", "", [("checkout_step", {"step": 1, "account_type": "guest checkout"})], names.CHECKOUT_STARTED,
     {"step": 1, "account_type": "guest checkout"}, {}),
    ("checkout_step", "", [("checkout_step", {"step": 2, "payment_method": "credit card", "proof_of_payment": "invoice"})],
     STEP_COMPLETED, {"step": 2, "payment_method": "credit card", "proof_of_payment": "invoice"}, {}),
    ("transaction", "", [("transaction", TRANSACTION), ("product", shirt("id", quantity=1))], names.ORDER_COMPLETED,
     OUR_TRANSACTION | {"products": [shirt("product_id", quantity=1)]}, {}),
    ("refund", "", [("refund", {"transaction_id": "T12345", "currency": "USD", "refund_amount": 200,
                                "refund_reason": "return"}), ("product", shirt("id", quantity=1))], names.ORDER_REFUNDED,
     {"order_id": "T12345", "currency": "USD", "revenue": 200, "refund_reason": "return",
      "products": [shirt("product_id", quantity=1)]}, {}),
    ("trns_error", "", [("transaction", TRANSACTION), ("transaction_error", FAILED)], "trns_error", {},  # nothing was earned
     {"transaction": [TRANSACTION], "transaction_error": [FAILED]}),
    ("product_view", "", [("product", shirt("id")), ("page", {"type": "product page"}), ("user", {"id": "U12345"})],
     names.PRODUCT_VIEWED, shirt("product_id"), {"page": [{"type": "product page"}], "user": [{"id": "U12345"}]}),
]  # fmt: skip


# posthog.com/docs/api/capture
WHO = "user distinct id"
POSTHOG: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"event": "event name", "distinct_id": WHO, "properties": {"account_type": "pro"}},
     {"type": "track", "event": "event name", "userId": WHO, "properties": {"account_type": "pro"}}),
    ({"event": "event name", "distinct_id": WHO, "properties": {"$process_person_profile": False},
      "timestamp": "2020-08-16T09:03:11.913767"},
     {"type": "track", "event": "event name", "userId": None, "anonymousId": WHO,
      "properties": {"$process_person_profile": False},
      "timestamp": "2020-08-16T09:03:11.913Z"}),
    ({"event": "$create_alias", "distinct_id": "123", "properties": {"alias": "456"}},
     {"type": "alias", "userId": "123", "previousId": "456"}),
    ({"event": "$groupidentify", "distinct_id": "groups_setup_id", "properties": {
        "$group_type": "company", "$group_key": "PostHog", "$group_set": {"name": "PostHog", "subscription": "premium"}}},
     {"type": "group", "groupId": "PostHog", "traits": {"name": "PostHog", "subscription": "premium"}}),
    ({"event": "event name", "distinct_id": WHO, "properties": {"$groups": {"company": "PostHog"}}},
     {"type": "track", "event": "event name", "userId": WHO, "properties": {"$groups": {"company": "PostHog"}}}),
    ({"event": "$identify", "distinct_id": WHO, "properties": {"$set": {"is_cool": "true"}},
      "timestamp": "2020-08-16T09:03:11.913767"},
     {"type": "identify", "userId": WHO, "traits": {"is_cool": "true"}, "timestamp": "2020-08-16T09:03:11.913Z"}),
    ({"event": "$pageview", "distinct_id": WHO, "properties": {
        "$current_url": "/docs/api/capture", "$session_id": "019a0ccb-408c-728a-9df9-1ef51b742b36"}},
     {"type": "page", "userId": WHO, "context": {"sessionId": "019a0ccb-408c-728a-9df9-1ef51b742b36",
                                                 "page": {"url": "/docs/api/capture"}}}),
    ({"event": "$screen", "distinct_id": WHO, "properties": {"$screen_name": "TheScreen"}},
     {"type": "screen", "userId": WHO, "name": "TheScreen"}),
    ({"event": "survey sent", "distinct_id": WHO, "properties": {"$survey_id": "survey_id", "$survey_response": "Awesome!"}},
     {"type": "track", "event": "survey sent", "userId": WHO,
      "properties": {"$survey_id": "survey_id", "$survey_response": "Awesome!"}}),
]  # fmt: skip


# posthog.com/docs/data/event-spec/ecommerce-events, without the addresses of pages and pictures
DANGER = {"product_id": "101c66c0b37f47bc9c75561f", "sku": "94839-23", "category": "merch", "name": "Danger t-shirt",
          "brand": "PostHog", "variant": "blue", "price": 30, "quantity": 1, "coupon": "BLACKFRIDAY",
          "position": 3}  # fmt: skip
HOUSE = {"product_id": "c6e74d89b70b4972b867eb62", "sku": "18499-12", "name": "Data warehouse t-shirt", "price": 30,
         "quantity": 1, "position": 3}  # fmt: skip
BANNER = {"promotion_id": "promo_1", "creative": "top_banner_2", "name": "50% store-wide sale",
          "position": "home_banner_top"}  # fmt: skip
CHECKOUT = {"order_id": "3e94e72c0a7443e9b51155a3", "affiliation": "Shopify", "revenue": 90.0, "shipping": 3, "tax": 2,
            "discount": 15, "coupon": "BLACKFRIDAY", "currency": "USD",
            "products": [HOUSE, DANGER | {"quantity": 2}]}  # fmt: skip
POSTHOG_ECOMMERCE: list[tuple[str, dict[str, Any]]] = [
    (names.PRODUCTS_SEARCHED, {"query": "blue roses"}),
    (names.PRODUCT_LIST_VIEWED, {"list_id": "list1", "category": "merch", "products": [
        {"product_id": "dc2046c33b104932851dbcf4", "sku": "37890-12", "price": 80, "position": 1}]}),
    (names.PROMOTION_VIEWED, BANNER), (names.PROMOTION_CLICKED, BANNER | {"name": "75% store-wide shoe sale"}),
    (names.PRODUCT_CLICKED, HOUSE | {"coupon": "BLACKFRIDAY"}),
    (names.PRODUCT_VIEWED, HOUSE | {"currency": "usd", "value": 30}),
    (names.PRODUCT_ADDED, DANGER | {"cart_id": "2249490906054e33aabc2983"}),
    (names.PRODUCT_REMOVED, DANGER | {"cart_id": "2249490906054e33aabc2983"}),
    (names.CART_VIEWED, {"cart_id": "e1f17b1ed3ec47a298a05838", "products": [HOUSE, DANGER]}),
    (names.CHECKOUT_STARTED, CHECKOUT | {"value": 80}),
    (STEP_COMPLETED, {"checkout_id": "e461659ed1714b9ebc3299ae", "step": 2, "shipping_method": "DHL",
                      "payment_method": "Visa"}),
    ("Payment Info Entered", {"checkout_id": "e461659ed1714b9ebc3299ae", "order_id": "f9300932fbc04887aa775997"}),
    (names.ORDER_COMPLETED, CHECKOUT | {"checkout_id": "e461659ed1714b9ebc3299ae", "total": 80, "subtotal": 75}),
    (names.ORDER_REFUNDED, {"order_id": "3e94e72c0a7443e9b51155a3", "total": 30, "currency": "USD", "products": [HOUSE]}),
    (names.COUPON_APPLIED, {"order_id": "a239ebb8404c4ac29950756f", "cart_id": "cb271d41bc2140ea8d076c50",
                            "coupon_id": "blackfriday_2025", "coupon_name": "Black Friday 2025", "discount": 25}),
    (names.PRODUCT_WISHLISTED, DANGER | {"wishlist_id": "5cf4804e6cb645f99ab05be3", "wishlist_name": "Loved Merch"}),
    (names.PRODUCT_SHARED, DANGER | {"share_via": "email", "share_message": "Hey, check out this item",
                                     "recipient": "max@posthog.com"}),
    (names.PRODUCT_REVIEWED, {"product_id": "dc2046c33b104932851dbcf4", "review_id": "e6b795d687884d0b8b59b4de",
                              "review_body": "They are shipping things, like, almost every day.", "rating": "5"}),
]  # fmt: skip


# docs.metarank.ai/reference/event-schema
RANKING = {
    "event": "ranking", "id": "81f46c34-a4bb-469c-8708-f8127cd67d27", "timestamp": "1599391467000", "user": "user1",
    "session": "session1", "fields": [{"name": "query", "value": "cat"}, {"name": "source", "value": "search"}],
    "items": [{"id": "item3", "relevancy": 2.0}, {"id": "item1", "relevancy": 1.0}, {"id": "item2", "relevancy": 0.5}],
}  # fmt: skip
INTERACTION = {
    "event": "interaction", "id": "0f4c0036-04fb-4409-b2c6-7163a59f6b7d", "ranking": "81f46c34-a4bb-469c-8708-f8127cd67d27",
    "timestamp": "1599391467000", "user": "user1", "session": "session1", "type": "purchase", "item": "item1",
    "fields": [{"name": "count", "value": 1}, {"name": "shipping", "value": "DHL"}],
}  # fmt: skip
USER = {"event": "user", "id": "81f46c34-a4bb-469c-8708-f8127cd67d27", "timestamp": "1599391467000", "user": "user1",
        "fields": [{"name": "age", "value": 33}, {"name": "gender", "value": "m"}]}  # fmt: skip
ITEM = {"event": "item", "id": "81f46c34-a4bb-469c-8708-f8127cd67d27", "timestamp": "1599391467000", "item": "item1",
        "fields": [{"name": "title", "value": "You favourite cat"}, {"name": "color", "value": ["white", "black"]},
                   {"name": "is_cute", "value": True}]}  # fmt: skip
SHOWN = {"query": "cat", "source": "search", "recommendation_id": RANKING["id"], "products": [
    {"product_id": ident, "position": at, "relevancy": score}
    for at, (ident, score) in enumerate((("item3", 2.0), ("item1", 1.0), ("item2", 0.5)), 1)]}  # fmt: skip
TYPES = {  # anybody's own names; those that are usual become ours
    "view": names.PRODUCT_VIEWED, "click": names.PRODUCT_CLICKED, "cart": names.PRODUCT_ADDED,
    "add_to_cart": names.PRODUCT_ADDED, "like": names.PRODUCT_WISHLISTED, "wishlist": names.PRODUCT_WISHLISTED,
    "purchase": names.ORDER_COMPLETED, "buy": names.ORDER_COMPLETED, "order": names.ORDER_COMPLETED,
    "share": names.PRODUCT_SHARED, "wave": "wave",
}  # fmt: skip
DONE = {"count": 1, "shipping": "DHL", "product_id": "item1", "recommendation_id": RANKING["id"]}

