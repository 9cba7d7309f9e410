"""What could not be processed, why, and where it came from (the shape of Snowplow's bad rows)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from schemas.events import Instant
from schemas.unreadable import UNREADABLE

PAYLOAD_BYTES_MAX = 64 * 1024  # enough to repair any event the collector would take; more is cut and said so

# undecodable: not JSON or not the right types. unprocessable: well formed, but cannot be folded.
# dropped: a row a data set adapter leaves out on purpose. late: older than what can still be told from a duplicate.
Kind = Literal["undecodable", "unprocessable", "too_large", "dropped", "sink_rejected"]


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One complaint: where in the input, which rule, in words."""

    path: str
    keyword: str
    message: str


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    timestamp: Instant
    messages: tuple[Message, ...]


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """`topic` is a Kafka topic, or the name of a file or endpoint when the input never reached one."""

    topic: str
    partition: int
    offset: int


class Repair(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How an event that is sent again has fared so far: its field `repair`."""

    attempts: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    first_seen: Instant


class _Tried(msgspec.Struct, frozen=True):
    repair: Repair | None = None


_tried = msgspec.json.Decoder(_Tried)


def repair_of(raw: bytes) -> Repair | None:
    """What an event's bytes say of earlier attempts; None where they say nothing that can be read.

    >>> repair_of(b'{"repair": {"attempts": 2, "firstSeen": "2026-01-01T00:00:00Z"}}').attempts, repair_of(b"{")
    (2, None)
    """
    try:
        return _tried.decode(raw).repair
    except UNREADABLE:
        return None


class _Consent(msgspec.Struct, frozen=True):
    analytics: Any = None


class _Context(msgspec.Struct, frozen=True):
    consent: _Consent | None = None


class _Allowed(msgspec.Struct, frozen=True):
    context: _Context | None = None


_allowed = msgspec.json.Decoder(_Allowed)


def analytics_of(raw: bytes) -> bool | None:
    """Whether an event's bytes consent to analytics, which a word that is neither yes nor no does not; None where nothing
    is said, or can be read.

    >>> [analytics_of(b'{"context": {"consent": {"analytics": %s}}}' % one) for one in (b"true", b"false", b'"no"', b"null")]
    [True, False, False, None]
    """
    try:
        said = _allowed.decode(raw)
    except UNREADABLE:
        return None
    consent = said.context.consent if said.context else None
    return None if consent is None or consent.analytics is None else consent.analytics is True


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """`dead_letter_id` is derived from source and payload, so that reading twice gives one row."""

    dead_letter_id: str
    tenant: str
    kind: Kind
    failure: Failure
    payload: bytes  # base64 in JSON
    payload_bytes: int  # before it was cut
    source: Source
    attempts: int = 1
    first_seen: Instant
