"""Raw bytes to an event or the reason why not. Total: any bytes give a value, never an exception."""

from __future__ import annotations

import re

import msgspec

from schemas.dead_letter import Kind, Message
from schemas.events import EVENT_BYTES_MAX, Event
from schemas.unreadable import UNREADABLE

OLDEST_MS = 946_684_800_000  # 2000-01-01: earlier is a broken clock, and ClickHouse's partitions start there
TENANT_SEPARATOR = "/"
OWN_MARK = "#"  # `#due/t/u` in the state store is the timer of a user of tenant t, and must not be another tenant's user


class Ok(msgspec.Struct, frozen=True, gc=False):
    event: Event
    ts_ms: int  # the event's time, worked out once


class Reject(msgspec.Struct, frozen=True):
    """Goes to the dead letters."""

    kind: Kind
    messages: tuple[Message, ...]


class Drop(msgspec.Struct, frozen=True):
    """Left out on purpose and only counted. `event`: by which a user withdraws consent to a profile."""

    reason: str
    event: Event | None = None


Decoded = Ok | Reject | Drop

_decoder = msgspec.json.Decoder(Event)
_PATH = re.compile(r" - at `\$?\.?([^`]*)`")


def decode(raw: bytes | None, append_ms: int, skew_max_ms: int) -> Decoded:
    """Decode and check one record; `append_ms` is the broker's time for it.

    >>> decode(b"{", 0, 0).messages[0].keyword
    'json'
    >>> event = b'{"messageId":"m","type":"track","tenant":"t","userId":"u","timestamp":"2026-01-02T03:04:05Z","other":"%s"}'
    >>> now_ms = 1_800_000_000_000
    >>> type(decode(event % b"x", now_ms, 0)).__name__, type(decode(event % bytes([255]), now_ms, 0)).__name__
    ('Ok', 'Reject')
    """
    if raw is None:
        return Drop("tombstone")
    if len(raw) > 2 * EVENT_BYTES_MAX:  # the collector refuses above EVENT_BYTES_MAX; twice leaves room for its stamps
        text = f"{len(raw)} bytes, at most {2 * EVENT_BYTES_MAX}"
        return Reject("too_large", (Message(path="", keyword="maxBytes", message=text),))
    try:
        event = _decoder.decode(raw)
        raw.decode()  # what the schema does not name was passed over unread, but goes to ClickHouse
    except msgspec.ValidationError as error:
        return Reject("undecodable", (message_of(error),))
    except UNREADABLE as error:
        return Reject("undecodable", (Message(path="", keyword="json", message=str(error)),))
    return _check(event, append_ms, skew_max_ms)


def _check(event: Event, append_ms: int, skew_max_ms: int) -> Decoded:
    def reject(path: str, keyword: str, text: str) -> Reject:
        return Reject("unprocessable", (Message(path=path, keyword=keyword, message=text),))

    if not event.user:
        return reject("userId", "required", "neither userId nor anonymousId is given")
    if TENANT_SEPARATOR in event.tenant:
        return reject("tenant", "pattern", f"'{TENANT_SEPARATOR}' separates tenant and user in keys")
    if event.tenant.startswith(OWN_MARK):
        return reject("tenant", "pattern", f"'{OWN_MARK}' begins the keys of the partition's own records")
    ts_ms = event.ts_ms
    if ts_ms < OLDEST_MS:
        return reject("timestamp", "minimum", f"{event.timestamp.isoformat()} is before 2000-01-01")
    if ts_ms > append_ms + skew_max_ms:
        ahead_s = (ts_ms - append_ms) // 1000
        return reject("timestamp", "maximum", f"{event.timestamp.isoformat()} is {ahead_s} s ahead of the broker's clock")
    consent = event.context.consent
    if consent is not None and consent.personalization is False:
        return Drop("no_consent", event)
    return Ok(event, ts_ms)


def message_of(error: Exception) -> Message:
    """Path, rule and words of a decoding error.

    >>> try: msgspec.json.decode(b'{"messageId": 1}', type=Event)
    ... except msgspec.ValidationError as error: message_of(error).path
    'messageId'
    """
    text = str(error)
    found = _PATH.search(text)
    path = found.group(1) if found else ""
    text = _PATH.sub("", text)
    missing = re.search(r"missing required field `([^`]*)`", text)
    if missing:
        return Message(path=f"{path}.{missing.group(1)}".removeprefix("."), keyword="required", message=text)
    return Message(path=path, keyword="type", message=text)
