"""From what a client sent to what travels: types checked, stamps set, nothing else touched. Pure but for the new id.

The original object travels, so unknown fields survive; `schemas.events.Event` decides which types are right.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from producers.privacy import IDS as USER_IDS
from producers.privacy import Privacy, id_text
from schemas.dead_letter import Kind, Message
from schemas.dialects import derived_id
from schemas.events import ID_CHARS_MAX, Event, EventType, Instant, Lane, encode, key, ms
from stream.settings import Personalize
from stream.settings import Privacy as Settings

DEPTH_MAX = 32  # no real event is deeper, and every reader downstream recurses
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)  # a clock before it is a clock that was never set
AHEAD_MAX = timedelta(days=1)  # covers time zones taken for UTC
SKEW_MAX_MS = Personalize().skew_max_ms  # as shipped
IDS = ("messageId", *USER_IDS)
OWN_TIMES = ("timestamp", "originalTimestamp")  # of an event of the past, and of one that is refused

_PATH = re.compile(r"^(?P<what>.*?)(?: - at (?:the key path )?`(?P<path>[^`]*)`)?$", re.DOTALL)
_KEYWORDS = (("missing required", "required"), ("RFC3339", "format"), ("timezone", "format"), ("length", "length"),
             ("enum", "enum"), ("range", "range"))


Keys = tuple[bytes, ...]


class Admitted(msgspec.Struct, frozen=True):
    """One record for the events topic. `whose`: the user's key under every name they may ever have had downstream, by which
    the list of erasures is asked whether it may go there; `beside`: the same of the ids that came with the user's, by their
    fields; `ts_ms`: the event's time."""

    message_id: str
    key: bytes
    value: bytes
    whose: Keys
    beside: dict[str, Keys]
    ts_ms: int


class NotAdmitted(msgspec.Struct, frozen=True):
    """Why an event is refused, and what of it to keep. `whose`, `beside` and `ts_ms` as of what is admitted; the time of
    receipt where the event's own cannot be read, 0 where it is of the past."""

    kind: Kind
    messages: tuple[Message, ...]
    payload: bytes
    message_id: str | None = None
    user: str = ""
    whose: Keys = ()
    beside: dict[str, Keys] = {}
    ts_ms: int = 0


NO_PRIVACY = Privacy(Settings(ip="keep"))
WITHHELD = "; the payload is not kept, because ids in it could not be replaced by pseudonyms"
UNCONSENTED = "; the payload is not kept, because there is no consent to analytics"


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """What all events of a request share."""

    tenant: str
    received_at: datetime
    event_bytes_max: int
    type: EventType | None = None  # set by the endpoint; None in a batch
    sent_at: Any = None  # of the batch, for events without their own
    privacy: Privacy = NO_PRIVACY
    skew_max_ms: int = SKEW_MAX_MS  # personalize's: what is taken here, the engine takes too
    history: Lane | None = None  # of events of the past, whose own times stand: the lane they get; None: they happen now


class Complaint(ValueError):
    def __init__(self, path: str, keyword: str, message: str) -> None:
        super().__init__(message)
        self.message = Message(path=path, keyword=keyword, message=message)


def complaint(error: Exception, path: str = "") -> Message:
    """A decoding or validation error as path, keyword and words.

    >>> complaint(msgspec.ValidationError("Expected `str`, got `int` - at `$.userId`"))
    Message(path='userId', keyword='type', message='Expected `str`, got `int`')
    """
    if isinstance(error, Complaint):
        return error.message
    if isinstance(error, RecursionError):
        return Message(path=path, keyword="depth", message="the JSON is nested too deeply")
    if isinstance(error, UnicodeError):
        return Message(path=path, keyword="encoding", message=f"not UTF-8: {error}")
    match = _PATH.match(str(error))
    what, found = (match["what"], match["path"]) if match else (str(error), None)
    if not isinstance(error, msgspec.ValidationError):
        return Message(path=path, keyword="json", message=what)
    keyword = next((keyword for text, keyword in _KEYWORDS if text in what), "type")
    named = path or (found or "").removeprefix("$").removeprefix(".")
    if missing := re.search(r"missing required field `([^`]*)`", what):
        named = f"{named}.{missing[1]}".removeprefix(".")
    return Message(path=named, keyword=keyword, message=what)


def depth(value: Any) -> int:
    """How deeply objects and arrays are nested.

    >>> depth({"a": [1, {}]})
    3
    """
    deepest, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        deepest += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return deepest


def iso(instant: datetime) -> str:
    """An instant in milliseconds, UTC, as it travels."""
    return instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _instant(value: Any, path: str) -> datetime:
    try:
        return msgspec.convert(value, Instant)
    except msgspec.ValidationError as error:
        raise Complaint(path, "format", f"{error}; send a time such as 2026-01-31T12:00:00.000Z") from None


def event_time(original: datetime | None, sent: datetime | None, received: datetime, skew_max: timedelta) -> datetime:
    """receivedAt - (sentAt - originalTimestamp), which takes the error of the client's clock out.

    Without a send time, or when the result is not plausible (sent before it happened, far from now), the client's own
    time stands; without that, or where it is ahead by more than `skew_max`, the time of receipt. Raises Complaint when
    nothing plausible is left.

    >>> at, skew_max = datetime(2026, 1, 1, tzinfo=UTC), timedelta(minutes=5)
    >>> event_time(datetime(1970, 1, 1, 0, 0, tzinfo=UTC), datetime(1970, 1, 1, 0, 1, tzinfo=UTC), at, skew_max)
    datetime.datetime(2025, 12, 31, 23, 59, tzinfo=datetime.timezone.utc)
    >>> event_time(at + timedelta(hours=1), None, at, skew_max) == at
    True
    """
    if original is None:
        return received
    if sent is not None and sent >= original:
        try:
            corrected = received - (sent - original)
        except OverflowError:
            corrected = EARLIEST - timedelta(days=1)
        if corrected >= EARLIEST:
            return corrected
    if not EARLIEST <= original <= received + AHEAD_MAX:
        raise Complaint("timestamp", "range", f"{original.isoformat()} is before 2000 or more than a day ahead")
    return original if original <= received + skew_max else received


def _stamp(event: dict[str, Any], arrival: Arrival) -> None:
    """Sets what the collector decides: type, tenant, lane, id and times."""
    if arrival.type is not None:
        event["type"] = arrival.type
    for name in IDS:
        if event.get(name, 0) in (None, ""):  # SDKs send these for "not known"
            del event[name]
    if arrival.history is not None:
        _stamp_past(event, arrival, arrival.history)
        return
    event.setdefault("messageId", str(uuid.uuid4()))
    event["tenant"], event["lane"], event["receivedAt"] = arrival.tenant, "live", iso(arrival.received_at)
    source = "originalTimestamp" if event.get("originalTimestamp") is not None else "timestamp"
    given, sent = event.get(source), event.get("sentAt")
    original = None if given is None else _instant(given, source)
    sent_at: datetime | None = None
    if sent is not None:
        sent_at = _instant(sent, "sentAt")
    elif arrival.sent_at is not None:
        sent_at = _instant(arrival.sent_at, "sentAt")
        event["sentAt"] = arrival.sent_at
    if given is not None:
        event["originalTimestamp"] = given
    skew_max = timedelta(milliseconds=arrival.skew_max_ms)
    event["timestamp"] = iso(event_time(original, sent_at, arrival.received_at, skew_max))


def _stamp_past(event: dict[str, Any], arrival: Arrival, lane: Lane) -> None:
    """The same for an event of the past: of its content alone, so that it is the same one whenever its file is sent."""
    name = next((one for one in OWN_TIMES if event.get(one) is not None), None)
    if name is None:
        raise Complaint("timestamp", "required", "an event of the past needs the time when it happened")
    at, now = _instant(event[name], name), arrival.received_at + timedelta(milliseconds=arrival.skew_max_ms)
    if not EARLIEST <= at <= now:
        raise Complaint(name, "range", f"{at.isoformat()} is before 2000 or still to come")
    if "messageId" not in event:
        event["messageId"] = derived_id(event, at=event[name])
    event["tenant"], event["lane"], event["timestamp"] = arrival.tenant, lane, iso(at)


def _check(event: Event) -> None:
    """What the types do not say; raises Complaint."""
    if not event.user:
        raise Complaint("userId", "required", "userId or anonymousId is required")
    if event.type == "track" and event.event is None:
        raise Complaint("event", "required", "a track call needs the name of the event")
    if event.type == "alias" and not (event.previous_id and event.user_id):
        raise Complaint("previousId", "required", "an alias call needs previousId and userId")


def _known(event: dict[str, Any], name: str) -> str | None:
    value = event.get(name)
    return value if isinstance(value, str) and 0 < len(value) <= ID_CHARS_MAX else None


def _wrong_id(event: dict[str, Any]) -> Complaint | None:
    """About an id that is no text, while that can be seen: pseudonyms are texts whatever the ids were."""
    for name in USER_IDS:
        try:
            msgspec.convert(event.get(name), str | None)
        except msgspec.ValidationError as error:
            return Complaint(name, "type", str(error))
    return None


def _whose(event: dict[str, Any], arrival: Arrival) -> tuple[Keys, dict[str, Keys]]:
    """Of an event whose ids are as they came, texts or not: the keys of its user, and of the ids beside."""
    texts = {name: text for name in USER_IDS if (text := id_text(event.get(name)))}
    keys = {name: tuple(key(arrival.tenant, one) for one in arrival.privacy.names.names_of(arrival.tenant, text))
            for name, text in texts.items()}  # fmt: skip
    return keys.pop("userId", ()) or keys.pop("anonymousId", ()), keys


def without(result: Admitted | NotAdmitted, names: Collection[str]) -> Admitted | NotAdmitted:
    """The same with none of these ids beside the user's."""
    what = "value" if isinstance(result, Admitted) else "payload"
    said = msgspec.json.decode(getattr(result, what))
    kept = msgspec.json.encode({name: value for name, value in said.items() if name not in names})
    return msgspec.structs.replace(result, **{what: kept})


def _said_ms(event: dict[str, Any], arrival: Arrival) -> int:
    """When a refused event happened, as far as it can be read: one of the past else at any time, another when it came."""
    for name in OWN_TIMES:
        try:
            return ms(msgspec.convert(event.get(name), Instant))
        except msgspec.ValidationError:
            continue
    return ms(arrival.received_at) if arrival.history is None else 0


def _kept(refused: NotAdmitted, arrival: Arrival, *, read: bool) -> NotAdmitted:
    """What a letter may keep of it: nothing without consent to analytics, nor where ids are pseudonyms and it could not be
    `read`, or nothing in it says whose it is, so that an id may stand in any field. Of what was not looked through,
    addresses are told by their looks."""
    why = None
    if arrival.privacy.refuses_analytics(arrival.tenant, refused.payload):
        why = UNCONSENTED
    elif arrival.privacy.pseudonyms and not (read and refused.whose):
        why = WITHHELD
    if why is None:
        payload = refused.payload if read else arrival.privacy.without_addresses(refused.payload)
        return msgspec.structs.replace(refused, payload=payload)
    first, *others = refused.messages
    said = (msgspec.structs.replace(first, message=first.message + why), *others)
    return msgspec.structs.replace(refused, messages=said, payload=b"", beside={})


def admit(raw: bytes, arrival: Arrival) -> Admitted | NotAdmitted:
    """Any bytes give a record or the reason why not; never an exception. With pseudonyms, what is kept of a refused event
    holds no raw id either."""
    withheld = arrival.privacy.pseudonyms
    if len(raw) > arrival.event_bytes_max:
        text = f"the event has {len(raw):,} bytes, at most {arrival.event_bytes_max:,} are taken"
        refused = NotAdmitted("too_large", (Message(path="", keyword="maxBytes", message=text),), raw)
        return _kept(refused, arrival, read=False)
    event: Any = None
    message_id: str | None = None  # as given; one drawn here would tell the client nothing
    whose: Keys = ()
    beside: dict[str, Keys] = {}
    payload: bytes | None = None
    try:
        event = msgspec.json.decode(raw)
        if not isinstance(event, dict):
            raise Complaint("", "type", "an event is a JSON object")
        keyed = event.pop("writeKey", None) is not None  # a secret, which ends here
        (whose, beside), message_id = _whose(event, arrival), _known(event, "messageId")
        wrong = _wrong_id(event) if withheld else None
        changed = arrival.privacy.clean(event, arrival.tenant) or keyed or withheld
        payload = msgspec.json.encode(event) if changed else raw
        if wrong is not None:
            raise wrong
        if raw.count(b"{") + raw.count(b"[") > DEPTH_MAX and depth(event) > DEPTH_MAX:
            raise Complaint("", "depth", f"the JSON is nested deeper than {DEPTH_MAX} levels")
        _stamp(event, arrival)
        typed = msgspec.convert(event, Event)
        _check(typed)
        return Admitted(typed.message_id, key(arrival.tenant, typed.user), encode(event), whose, beside, typed.ts_ms)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, Complaint) as error:
        ids, said = event if isinstance(event, dict) else {}, complaint(error)
        user = _known(ids, "userId") or _known(ids, "anonymousId") or ""
        if payload is None:  # nor can it be read once more, to be kept without an id beside
            refused = NotAdmitted("undecodable", (said,), raw, message_id, "" if withheld else user, whose,
                                  ts_ms=_said_ms(ids, arrival))  # fmt: skip
            return _kept(refused, arrival, read=False)
        return _kept(NotAdmitted("undecodable", (said,), payload, message_id, user, whose, beside, _said_ms(ids, arrival)),
                     arrival, read=True)  # fmt: skip
