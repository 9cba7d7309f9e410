"""The read API's description of itself: OpenAPI 3.1 from the structs it answers with."""

from __future__ import annotations

from typing import Any

import msgspec

from stream.api.answers import AS_OF, STALE, Answer, Explained, Items, OfferServed, Ranked, User
from stream.api.nearest import Nearest
from stream.api.offers import AskOffer, AskOfferFor
from stream.api.requests import Ask, AskForMany, AskWhy, Neighbors, ToRank
from stream.core.ranking.index import FIELDS
from stream.http import page
from stream.http.answers import Error
from stream.settings import Api

CURL = "curl -u YOUR_READ_KEY: 'http://HOST:PORT/v1/recommendations/USER?n=5&fields=title,price'"
EXPRESSIONS = (f"An expression over {', '.join(FIELDS)}: comparisons, arithmetic, and, or, not, in [...], a if b else c, "
               "contains(text, 'part'), number(text).")
SAID = {
    "scenario": "for_you; again (of what was bought); similar (to `items`); complements (of `items`, else of the cart); "
                "popular; trending; due (what the user buys again about now); due_categories (the best of the categories "
                "that the user buys of again about now; `categories` of the answer names them).",
    "n": "How many items at most.",
    "items": "What the scenario is about, separated by commas.",
    "filter": f"Which items to choose from. {EXPRESSIONS}",
    "boost": f"A factor of each item's score. {EXPRESSIONS}",
    "exclude": "Items of the user's past that are left out.",
    "category_cap": "Items of one category at most.",
    "diversity": "How much the items are to differ: 0, by score alone, to 1.",
    "explore": "The share of places that go to items nobody knows yet; scenarios that are scored for the user.",
    "reasons": "How many events, or given items, are named at most, the largest shares first; `rest` says the others.",
    "placement": "Where it is to be shown: a placement of the file of offers.",
    "id": "What stands for the moment of the decision (a page view, a message): asking again with it chooses alike.",
    "offers": "Only from these offers, separated by commas.",
    "fields": "What of the catalog comes along with each item, separated by commas.",
    "log": "false: the answer is looked at and not shown to the user, so it is not logged as a decision.",
}
FRESHNESS = {
    STALE: {"description": "`stale_ms` of now, of a 304, too.", "schema": {"type": "integer"}},
    AS_OF: {"description": "`as_of_ts` of now; missing where it is null.",
            "schema": {"type": "string", "format": "date-time"}},
}  # fmt: skip
POSTED = ("400", "408", "413", "415")  # what a request with a body may be told
BODIES = (AskForMany, ToRank, AskOfferFor)  # another field than theirs is refused


def _parameters(kind: type[msgspec.Struct]) -> list[dict[str, Any]]:
    (_,), components = msgspec.json.schema_components([kind])
    properties = components[kind.__name__]["properties"]
    found = []
    for name, schema in properties.items():
        listed = {"style": "form", "explode": False} if schema.get("type") == "array" else {}
        needed = {"required": True} if name in components[kind.__name__].get("required", ()) else {}
        found.append({"name": name, "in": "query", "description": SAID[name], "schema": schema} | needed | listed)
    return found


def _in_path(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "in": "path", "required": True, "schema": {"type": "string"},
             "description": "The id, percent-encoded as one segment: `12/AB` is `12%2FAB`."} for name in names]


def _answers(description: str, schema: dict[str, Any], *others: str) -> dict[str, Any]:
    said = {
        "304": "The client has this answer (If-None-Match).",
        "400": "The request cannot be understood; `messages` says where.",
        "401": "No or an unknown read key.", "404": "Nobody knows this user, item or placement.",
        "408": "The body did not come in time.", "413": "Larger than the limits.",
        "415": "Another media type or encoding than JSON, gzip.",
        "429": "Too many requests at once, or answers a second: retry after Retry-After seconds.",
        "503": "Not ready: it is reading what the workers have written.",
    }  # fmt: skip
    found: dict[str, Any] = {"200": {"description": description, "content": {"application/json": {"schema": schema}}}}
    error = {"application/json": {"schema": _ref("Error")}}
    for status in sorted({"401", "429", "503", *others}):
        found[status] = {"description": said[status]} | ({} if status == "304" else {"content": error})
    if "304" in others:
        found["200"]["headers"] = found["304"]["headers"] = FRESHNESS
    return found


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _body(name: str) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": _ref(name)}}}


def _schemas() -> dict[str, Any]:
    _, components = msgspec.json.schema_components(
        [Answer, Items, Ranked, User, Explained, OfferServed, Error, *BODIES], ref_template="#/components/schemas/{name}",
    )  # fmt: skip
    for kind in BODIES:
        components[kind.__name__]["additionalProperties"] = False
    many = {"recommendations": {"type": "array", "items": _ref("Answer")}}
    return dict(components) | {"Answers": {"type": "object", "properties": many, "required": [*many]}}


def document(settings: Api) -> dict[str, Any]:
    """The OpenAPI document, with the limits this process runs with."""
    key: list[dict[str, list[str]]] = [{"readKey": []}]
    paths: dict[str, Any] = {
        "/v1/recommendations/{user}": {"get": {
            "operationId": "recommendations", "summary": "The best items for a user now.", "security": key,
            "parameters": _in_path("user") + _parameters(Ask),
            "responses": _answers("Best first, each with the events that speak for it.", _ref("Answer"), "304",
                                  "400", "404"),
        }},
        "/v1/recommendations": {"post": {
            "operationId": "recommendationsOfMany", "summary": f"The same for up to {settings.users_max} users at once.",
            "security": key, "requestBody": _body("AskForMany"),
            "responses": _answers("In the order of the users.", _ref("Answers"), "404", *POSTED),
        }},
        "/v1/rank": {"post": {
            "operationId": "rank", "summary": "Given items in the order in which they suit the user.", "security": key,
            "requestBody": _body("ToRank"), "responses": _answers("Best first.", _ref("Ranked"), *POSTED),
        }},
        "/v1/offers/{user}": {"get": {
            "operationId": "offer", "summary": "Which offer a user is to see at a placement, with the chance of it.",
            "security": key, "parameters": _in_path("user") + _parameters(AskOffer),
            "responses": _answers("Chosen, and logged as a decision.", _ref("OfferServed"), "400", "404"),
        }},
        "/v1/offers": {"post": {
            "operationId": "offerFor", "summary": "The same by a request's body.", "security": key,
            "requestBody": _body("AskOfferFor"),
            "responses": _answers("Chosen, and logged as a decision.", _ref("OfferServed"), "404", *POSTED),
        }},
        "/v1/users/{user}": {"get": {
            "operationId": "user", "summary": "What is known of a user: history, cart, and the curve of survival.",
            "security": key, "parameters": _in_path("user"),
            "responses": _answers("Known.", _ref("User"), "304", "400", "404"),
        }},
        "/v1/users/{user}/nearest": {"get": {
            "operationId": "nearest", "summary": "Items nearest to the user's vector, by the cosine.", "security": key,
            "parameters": _in_path("user") + _parameters(Nearest),
            "responses": _answers("Nearest first.", _ref("Items"), "304", "400"),
        }},
        "/v1/items/{item}/neighbors": {"get": {
            "operationId": "neighbors", "summary": "Items like a given one.", "security": key,
            "parameters": _in_path("item") + _parameters(Neighbors),
            "responses": _answers("Nearest first.", _ref("Items"), "304", "400", "404"),
        }},
        "/v1/why/{user}/{item}": {"get": {
            "operationId": "why", "security": key, "summary": "Why an item is recommended to a user by the same request, or "
            "is not: its place, what its score is made of, the events that speak for it, what removed it.",
            "parameters": _in_path("user", "item") + _parameters(AskWhy),
            "responses": _answers("Explained.", _ref("Explained"), "304", "400", "404"),
        }},
    }  # fmt: skip
    paths |= page.plain_paths({"/health/ready": ("It has read what the workers wrote.", "application/json")})
    return {
        "openapi": "3.1.0",
        "info": {"title": "Clickwake read API", "version": "1", "description":
                 "Answers from a replica of what the workers write; `stale_ms` says how old at most it is. A read key opens "
                 "everything of a tenant's users: it belongs on a server, never in a browser."},
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"readKey": {"type": "http", "scheme": "basic", "description":
                                            "Read key as user, empty password."}},
        },
    }  # fmt: skip
