"""The collector's description of itself: OpenAPI 3.1 from the schemas, and a page for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from producers.collector.dialects import DIALECTS
from producers.collector.regulations import Regulation, Regulations, Status
from schemas.events import Event
from stream.http import page
from stream.http.answers import Complaint, Error
from stream.settings import Collector

SET_BY_COLLECTOR = ("tenant", "lane", "receivedAt")
CALLS = {
    "track": "Something a user did: `event` names it, `properties` says more.",
    "identify": "Who the user is: `userId` and `traits`.",
    "page": "A page was seen.",
    "screen": "A screen of an app was seen.",
    "group": "The user belongs to a group.",
    "alias": "`previousId` and `userId` are one person.",
    "batch": "Up to 500 events of any type in `batch`, each with its `type`.",
}
ALIASES = {"t": "track", "i": "identify", "p": "page", "s": "screen", "g": "group", "a": "alias", "b": "batch"}
SPOKEN: Mapping[str, tuple[str, Mapping[str, str]]] = {  # dialect → summary, parameters of the address
    "ga4": ("GA4's Measurement Protocol.", {"api_secret": "The write key."}),
    "snowplow": ("Snowplow's tracker protocol; `aid` of an event is the write key.", {}),
    "snowplow_pixel": ("One event in Snowplow's tracker protocol, a parameter a field; the answer is a picture.", {
        "e": "Kind of event.", "aid": "The write key.", "uid": "Whose it is; else `duid` or `tnuid`."}),
    "posthog": ("PostHog's capture API; `api_key` or `token` in it is the write key.", {
        "compression": "`gzip-js`: the body is in gzip, without a header that says so.",
        "data": "Of a GET: the events as JSON in base64."}),
    "metarank": ("Metarank's feedback API: users' events and rankings, not items.", {}),
}  # fmt: skip
EXAMPLE = {
    "userId": "u1", "event": "Product Viewed", "properties": {"product_id": "85123A", "price": 2.55},
    "timestamp": "2026-01-31T12:00:00.000Z",
}
EXAMPLES = {"identify": {"userId": "u1", "traits": {"plan": "pro"}}, "alias": {"userId": "u1", "previousId": "a1"},
            "group": {"userId": "u1", "groupId": "g1", "traits": {"seats": 5}}}  # fmt: skip


class Rejected(msgspec.Struct, rename="camel"):
    index: int
    message_id: str | None
    messages: list[Complaint]


class Accepted(msgspec.Struct):
    success: bool
    accepted: int
    rejected: list[Rejected]


class AcceptedOne(msgspec.Struct, rename="camel"):
    success: bool
    message_id: str


def _schemas() -> dict[str, Any]:
    (_, *_), components = msgspec.json.schema_components(
        [Event, Error, Accepted, AcceptedOne, Regulation, Regulations, Status], ref_template="#/components/schemas/{name}"
    )
    event = components["Event"]
    for name in SET_BY_COLLECTOR:
        event["properties"].pop(name)
    event["properties"]["traits"] = {"type": "object"}
    event.pop("required", None)
    event["description"] = ("An event as a client sends it. Unknown fields are kept. Needs userId or anonymousId. `type` is "
                            "said by the address where that names a call.")  # fmt: skip
    components["Batch"] = {
        "type": "object", "required": ["batch"],
        "properties": {
            "batch": {"type": "array", "minItems": 1,
                      "items": {"allOf": [{"$ref": "#/components/schemas/Event"}, {"required": ["type"]}]}},
            "sentAt": {"type": "string", "format": "date-time"}, "writeKey": {"type": "string"},
        },
    }
    return dict(components)


def _answers(ok: str) -> dict[str, Any]:
    def answer(description: str, name: str) -> dict[str, Any]:
        schema = {"$ref": f"#/components/schemas/{name}"}
        return {"description": description, "content": {"application/json": {"schema": schema}}}

    return {
        "200": answer("Acknowledged by Kafka; events that are not are listed in `rejected` and kept as dead letters.", ok),
        "400": answer("Nothing was accepted; `messages` names each field and reason. Do not retry.", "Error"),
        "401": answer("No or an unknown write key.", "Error"),
        "408": answer("The body did not come in time.", "Error"),
        "413": answer("Larger than the limits.", "Error"),
        "415": answer("Another media type or encoding than JSON, text/plain, gzip.", "Error"),
        "429": answer("Too many requests at once, or events a second: retry after Retry-After seconds.", "Error"),
        "503": answer("Kafka has not acknowledged: retry after Retry-After seconds, with the same messageId.", "Error"),
    }


def _dialects() -> dict[str, Any]:
    """Other systems' ways in: `schemas.dialects` is the mapping to events."""
    paths: dict[str, Any] = {}
    for path, dialect in DIALECTS.items():
        summary, asked = SPOKEN[dialect.name]
        errors = {status: answer for status, answer in _answers("Accepted").items() if status != "200"}
        taken = dialect.accepted(1)
        said: dict[str, Any] = {} if taken.media_type is None else {"content": {taken.media_type: {}}}
        for method in dialect.methods:
            body = {"requestBody": {"required": True, "content": {"application/json": {}}}} if method == "POST" else {}
            paths.setdefault(path, {})[method.lower()] = {
                "operationId": f"{dialect.name}{method.title()}{path.replace('/', '_')}", "summary": summary,
                "security": [{"writeKey": []}, {}],
                "parameters": [{"name": name, "in": "query", "description": what, "schema": {"type": "string"}}
                               for name, what in asked.items()],
                "responses": {str(taken.status_code): {"description": "Acknowledged by Kafka."} | said} | errors,
            } | body  # fmt: skip
    return paths


def _regulations() -> dict[str, Any]:
    def answer(description: str, name: str) -> dict[str, Any]:
        return {"description": description,
                "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}}  # fmt: skip

    refused = {"401": answer("No or an unknown admin key.", "Error"),
               "429": answer("Too many requests at once: retry after Retry-After seconds.", "Error")}  # fmt: skip
    body = {"required": True, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Regulation"}}}}
    return {
        "/v1/regulations": {"post": {
            "operationId": "regulate", "summary": "Users to be forgotten; needs an admin key.",
            "security": [{"adminKey": []}], "requestBody": body, "responses": refused | {
                "202": answer("Taken; the erasure worker carries it out.", "Regulations"),
                "400": answer("The request cannot be read.", "Error"),
                "408": answer("The body did not come in time.", "Error"),
                "413": answer("Larger than the limits.", "Error"),
                "415": answer("Another media type or encoding than JSON, text/plain, gzip.", "Error"),
                "429": answer("Too many requests at once, or users to forget: retry after Retry-After seconds.", "Error"),
                "503": answer("Kafka has not acknowledged: retry after Retry-After seconds.", "Error"),
            },
        }},
        "/v1/regulations/{regulateId}": {"get": {
            "operationId": "regulation", "summary": "How far a request is, and its signed receipt; needs an admin key.",
            "security": [{"adminKey": []}],
            "parameters": [{"name": "regulateId", "in": "path", "required": True, "schema": {"type": "string"}}],
            "responses": refused | {
                "200": answer("Known.", "Status"), "404": answer("No such request of this tenant.", "Error"),
            },
        }},
    }  # fmt: skip


def document(settings: Collector) -> dict[str, Any]:
    """The OpenAPI document, with the limits this collector runs with."""
    paths: dict[str, Any] = {}
    for name, summary in CALLS.items():
        batch = name == "batch"
        schema = {"$ref": f"#/components/schemas/{'Batch' if batch else 'Event'}"}
        example = {"batch": [{"type": "track"} | EXAMPLE]} if batch else EXAMPLES.get(name, EXAMPLE)
        if name == "batch":
            summary = summary.replace("500", str(settings.batch_events_max))
        paths[f"/v1/{name}"] = {"post": {
            "operationId": name, "summary": summary, "security": [{"writeKey": []}, {}],
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": example}}},
            "responses": _answers("Accepted" if batch else "AcceptedOne"),
        }}
    for short, name in ALIASES.items():
        call = paths[f"/v1/{name}"]["post"]
        paths[f"/v1/{short}"] = {"post": call | {"operationId": f"{name}Short", "summary": f"Short for /v1/{name}."}}
    paths |= _dialects() | _regulations() | page.plain_paths({
        "/health/ready": ("Kafka answers.", "application/json"),
        "/clickwake.js": ("The tracker for browsers; no dependency.", "text/javascript"),
    })
    limits = (f"{settings.event_bytes_max:,} bytes an event; {settings.batch_bytes_max:,} bytes and "
              f"{settings.batch_events_max} events a batch, after decompression.")
    return {
        "openapi": "3.1.0",
        "info": {"title": "Clickwake collector", "version": "1", "description":
                 f"Takes events as Segment's SDKs send them and answers once Kafka has acknowledged them. Limits: {limits}"},
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"writeKey": {"type": "http", "scheme": "basic", "description":
                                             "Write key as user, empty password; or `writeKey` in the body."},
                                "adminKey": {"type": "http", "scheme": "basic", "description":
                                             "Admin key as user, empty password."}},
        },
    }


def page_of(document: dict[str, Any]) -> str:
    """The same for people."""
    fields = [(name, msgspec.json.encode(schema).decode())
              for name, schema in document["components"]["schemas"]["Event"]["properties"].items()]  # fmt: skip
    body = msgspec.json.encode(EXAMPLE).decode()
    curl = f"curl -u YOUR_WRITE_KEY: -H 'Content-Type: application/json' \\\n  -d '{body}' \\\n  http://HOST:PORT/v1/track"
    more = ("<p>Segment's SDKs work unchanged: point them at this host. <code>/v1/t i p s g a b</code> are short forms; "
            "gzip and text/plain bodies (sendBeacon) are taken.</p><h2>Fields of an event that are checked</h2>"
            f"<p>Others are kept as they are.</p>{page.table(fields)}")  # fmt: skip
    return page.html_of(document, curl, more)
