"""Other systems' events as ours: each module reads one of them. Values in, values out; what cannot be understood is said.

What a dialect has no word for travels along under its own name: nothing is lost, and unknown events are kept.
"""

from __future__ import annotations

import base64
import hashlib
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

SINGLE = ("Product Viewed", "Product Clicked", "Product Added", "Product Removed", "Product Added to Wishlist",
          "Product Shared")  # fmt: skip
STEP_COMPLETED = "Checkout Step Completed"  # of Segment's names, without a meaning here

DERIVED = "derived-"  # how ids begin that are made of what was sent
_PLAIN = str.maketrans("-_ ", "+/+")


class DialectError(ValueError):
    """The body is none of this dialect's; `path` says where it is not."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


class Translated(NamedTuple):
    """Events as a client of ours would send them, and the write key where the dialect carries one in its body or address."""

    events: list[dict[str, Any]]
    key: str | None = None
    sent_at: Any = None


Translate = Callable[[Any, Mapping[str, str]], Translated]  # (JSON body, parameters of the address)


def object_of(value: Any, path: str) -> dict[str, Any]:
    """Raises DialectError for anything but an object."""
    if not isinstance(value, dict):
        raise DialectError(path, f"wanted is an object, not {type(value).__name__}")
    return value


def list_of(value: Any, path: str) -> list[dict[str, Any]]:
    """Raises DialectError for anything but a list of objects."""
    if not isinstance(value, list) or not value:
        raise DialectError(path, "wanted is a list with something in it")
    return [object_of(one, f"{path}[{at}]") for at, one in enumerate(value)]


def objects_in(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; none of what is no list.

    >>> objects_in([{"a": 1}, 2]), objects_in(3)
    ([{'a': 1}], [])
    """
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def instant(number: Any, per_s: int) -> str | None:
    """A time since 1970 in parts of a second, as number or digits, as it travels; None where it is none.

    >>> instant("1599391467000", 1_000)
    '2020-09-06T11:24:27+00:00'
    """
    try:
        return datetime.fromtimestamp(int(number) / per_s, UTC).isoformat()
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def from_base64(text: str) -> bytes:
    """Base64 as clients send it: of either alphabet, with or without its end, `+` taken for a space by the way of addresses.

    >>> from_base64("_-A"), from_base64("/ A=")
    (b'\\xff\\xe0', b'\\xff\\xe0')

    Raises ValueError for anything else.
    """
    plain = text.strip().translate(_PLAIN).rstrip("=")
    return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)


def derived_id(*parts: Any, at: Any) -> str:
    """An id for an event that has none: of its content where it says when it happened, so that sending it again does not
    count twice; else a new one.

    >>> derived_id("c1", {"name": "x"}, at=7) == derived_id("c1", {"name": "x"}, at=7)
    True
    """
    if at is None:
        return str(uuid.uuid4())
    content = msgspec.json.encode((parts, at), order="deterministic")
    return DERIVED + hashlib.blake2b(content, digest_size=16).hexdigest()


def with_products(name: str, properties: dict[str, Any], products: list[dict[str, Any]]) -> dict[str, Any]:
    """Properties of an event about products: one is part of them, several are a list."""
    if len(products) == 1 and name in SINGLE:
        return products[0] | properties
    return properties | {"products": products} if products else properties


def renamed(fields: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Fields under our names, those we have none for under their own.

    >>> renamed({"transaction_id": "T1", "tax": 1.1}, {"transaction_id": "order_id"})
    {'order_id': 'T1', 'tax': 1.1}
    """
    return {names.get(name, name): value for name, value in fields.items()}


def present(**fields: Any) -> dict[str, Any]:
    """Those that are there.

    >>> present(a=1, b=None, c="")
    {'a': 1}
    """
    return {name: value for name, value in fields.items() if value not in (None, "", {}, [])}
