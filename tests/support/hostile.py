"""Payloads nobody should send: real events, damaged in ways that were seen or can be thought of. The same for a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from tests.support.fakes import T0_MS, event

NAMES = ("Product Viewed", "Order Completed", "Product Added", "Product Reviewed", "Order Refunded", "x", "")
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1 << 63, -(1 << 70), 10**400, 0.1, -0.0, 1e308, float("nan"), float("inf"), float("-inf"),
    "", " ", "\x00", "\x1b[31m", "\ud800", "\u202e", "i" * 257, "\U0001f4a5" * 300, "1e999", "NaN",
    [], {}, [[]], [None], {"a": {"b": []}}, "2026-01-01", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999Z",
    "2026-02-30T00:00:00Z", "1969-12-31T23:59:59-23:59",
)  # fmt: skip
PATHS = (
    "messageId", "type", "event", "userId", "anonymousId", "previousId", "tenant", "lane", "timestamp", "originalTimestamp",
    "sentAt", "receivedAt", "properties", "context", "traits", "properties.product_id", "properties.products",
    "properties.price", "properties.quantity", "properties.revenue", "properties.rating", "properties.order_id",
    "properties.currency", "properties.query", "properties.recommendation_id", "context.sessionId", "context.consent",
    "context.consent.personalization", "context.ip", "unknown",
)  # fmt: skip


def payloads(seed: int, count: int) -> Iterator[bytes]:
    """`count` payloads, some of them still good."""
    draw = random.Random(seed)  # nothing secret
    for number in range(count):
        yield _payload(draw, number)


def _payload(draw: random.Random, number: int) -> bytes:
    found = event(user=f"u{draw.randrange(50)}", ts_ms=T0_MS + draw.randrange(10**9), name=draw.choice(NAMES),
                  item=f"i{draw.randrange(30)}", id=f"m{number}")  # fmt: skip
    if draw.random() < 0.2:
        found["properties"]["products"] = [{"product_id": f"i{n}", "price": draw.random()} for n in range(draw.randrange(4))]
    for _ in range(draw.choice((0, 1, 1, 1, 2, 5))):
        _spoil(draw, found)
    raw = json.dumps(found, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    raw = raw.replace(b'"1e999"', b"1e999")  # a number that no float holds
    return _damage(draw, raw) if draw.random() < 0.4 else raw


def _spoil(draw: random.Random, found: dict[str, Any]) -> None:
    """Put an odd value at a place, or take the place away."""
    *way, last = draw.choice(PATHS).split(".")
    holder: Any = found
    for name in way:
        holder = holder.get(name) if isinstance(holder, dict) else None
    if not isinstance(holder, dict):
        return
    if draw.random() < 0.15:
        holder.pop(last, None)
    else:
        holder[last] = deepcopy(draw.choice(ODD))


def _damage(draw: random.Random, raw: bytes) -> bytes:
    """As bytes: cut, flipped, repeated, wrapped, blown up, or nothing that was ever JSON."""
    kind = draw.randrange(8)
    if kind == 0:
        return raw[: draw.randrange(len(raw))]
    if kind == 1:
        flipped = bytearray(raw)
        for _ in range(draw.randrange(1, 6)):
            flipped[draw.randrange(len(flipped))] = draw.randrange(256)
        return bytes(flipped)
    if kind == 2:
        return raw + raw
    if kind == 3:
        return b"[" * draw.choice((1, 40, 5_000)) + raw
    if kind == 4:
        return raw.replace(b'"type"', b'"userId": "second", "type"', 1)  # a key twice
    if kind == 5:
        return draw.choice((b"", b"null", b"[]", b"7", b'""', b"\xff\xfe", b"\x00" * 9, b"\xef\xbb\xbf" + raw))
    if kind == 6 and draw.random() < 0.05:
        return raw[:-1] + b', "pad": "' + b"x" * 70_000 + b'"}'
    return bytes(draw.randrange(256) for _ in range(draw.randrange(60)))
