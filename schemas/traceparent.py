"""`traceparent` of W3C Trace Context (w3.org/TR/trace-context), as it travels in the headers of a record.

A record carries one only if its trace is sampled: most records carry none, and cost nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from schemas.headers import header

HEADER = "traceparent"
_FORM = re.compile(rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_SAMPLED = 1


class Trace(NamedTuple):
    """A place in a trace; ids in lower-case hex, 32 and 16 digits."""

    trace_id: str
    span_id: str
    sampled: bool


def parse(raw: bytes) -> Trace | None:
    """None for anything that the standard does not allow; what a later version of it adds is passed over.

    >>> parse(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    Trace(trace_id='4bf92f3577b34da6a3ce929d0e0e4736', span_id='00f067aa0ba902b7', sampled=True)
    >>> parse(b"00-00000000000000000000000000000000-00f067aa0ba902b7-01") is None
    True
    """
    found = _FORM.fullmatch(raw)
    if found is None or (found[1] == b"00" and found[5] is not None):
        return None
    return Trace(found[2].decode(), found[3].decode(), bool(int(found[4], 16) & _SAMPLED))


def encode(trace: Trace) -> bytes:
    """
    >>> encode(Trace("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", True))
    b'00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'
    """
    return f"00-{trace.trace_id}-{trace.span_id}-{trace.sampled:02x}".encode()


def of(headers: Iterable[tuple[str, bytes | None]]) -> Trace | None:
    """The sampled trace that a record belongs to.

    >>> of([("ce_id", b"r1")]) is None
    True
    """
    value = header(headers, HEADER)
    found = None if value is None else parse(value)
    return found if found is not None and found.sampled else None


def trace_id(headers: Iterable[tuple[str, bytes | None]]) -> str:
    """As it is stored in a row; empty for none.

    >>> trace_id([("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")])
    '4bf92f3577b34da6a3ce929d0e0e4736'
    """
    found = of(headers) if headers else None
    return "" if found is None else found.trace_id
