"""Dead letters mended: grouped by cause, with a fix where one is known, and what the mended event would look like. Pure.

A letter's payload is what a client sent, or an event as it stood on the topic. Mended, it goes through the collector's own
`admit`, so what passes here passes there. Its id is the client's, else made from the letter's: sent twice it is one event.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from producers.collector.admission import EARLIEST, NO_PRIVACY, SKEW_MAX_MS, Admitted, Arrival, admit, depth
from producers.datasets import events
from producers.privacy import Privacy
from schemas.dead_letter import DeadLetter, Message, Repair
from schemas.events import EVENT_BYTES_MAX, ID_CHARS_MAX, Instant, Lane
from schemas.unreadable import UNREADABLE

REPAIRABLE = ("undecodable", "unprocessable", "too_large", "late")
RENAMES = {"userId": ("user_id", "userid", "uid"), "anonymousId": ("anonymous_id",), "messageId": ("message_id",),
           "event": ("event_name", "name"), "product_id": ("productId", "sku", "item_id", "id")}  # fmt: skip
SHOWN_DEPTH_MAX = 256  # levels; what writes the difference recurses
SECONDS_BELOW = 1e11  # as milliseconds that would be 1973
_INDEX = re.compile(r"\[\d+\]|\[\.\.\.\]")


class Cause(NamedTuple):
    """What letters of one group have in common; an index in the path is any."""

    kind: str
    path: str
    keyword: str
    source: str

    @property
    def handle(self) -> str:
        """What it is called in commands: the same whatever other letters there are, and which of them are listed."""
        return hashlib.blake2b(json.dumps(self).encode(), digest_size=4).hexdigest()


class Change(NamedTuple):
    """`set` path to a value, `rename` path's last name, or `drop` it. Paths are dotted, `[n]` is an index."""

    what: str
    path: str
    value: Any = None

    def __str__(self) -> str:
        if self.what == "drop":
            return f"--drop {self.path}"
        said = self.value if self.what == "rename" else json.dumps(self.value)
        return f"--{self.what} {self.path}={said}"


class Mended(NamedTuple):
    """What became of a letter's payload."""

    letter: DeadLetter
    changes: tuple[Change, ...]
    event: Admitted | None  # None: it still cannot be taken, `messages` say why
    messages: tuple[Message, ...]
    diff: str


class NoPath(LookupError):
    """The payload has nothing at a path."""


def cause(letter: DeadLetter) -> Cause:
    first = letter.failure.messages[0] if letter.failure.messages else Message(path="", keyword="", message="")
    return Cause(letter.kind, _INDEX.sub("[]", first.path), first.keyword, letter.source.topic)


def groups(letters: Iterable[DeadLetter]) -> list[tuple[Cause, list[DeadLetter]]]:
    """Largest first, the newest letter of each group first."""
    found: dict[Cause, list[DeadLetter]] = {}
    for letter in sorted(letters, key=lambda one: one.failure.timestamp, reverse=True):
        found.setdefault(cause(letter), []).append(letter)
    return sorted(found.items(), key=lambda group: -len(group[1]))


def suggest(letter: DeadLetter) -> tuple[Change, ...]:
    """The fix of the first complaint, where one is known; none is a guess about what the client meant beyond its form."""
    payload = _object(letter)
    if payload is None or not letter.failure.messages:
        return ()
    first = letter.failure.messages[0]
    try:
        return _fix(payload, first)
    except (NoPath, ValueError):
        return ()


def _fix(payload: dict[str, Any], first: Message) -> tuple[Change, ...]:
    path, leaf = first.path, re.split(r"[.\]]", first.path)[-1]
    if first.keyword == "required":
        holder, _ = _holder(payload, path)
        for other in RENAMES.get(leaf, ()):
            if isinstance(holder, dict) and other in holder:
                return (Change("rename", f"{path.removesuffix(leaf)}{other}", leaf),)
        return ()
    value = _at(payload, path)
    if first.keyword == "format":
        return (Change("set", path, _time(value)),)
    if first.keyword == "type" and "Expected `str" in first.message and isinstance(value, int | float):
        return (Change("set", path, str(value)),)
    if first.keyword == "type" and isinstance(value, str) and re.search(r"Expected `(float|int)", first.message):
        return (Change("set", path, float(value.replace(",", ".").strip(" €$£"))),)
    return ()


def _time(value: Any) -> str:
    """A time as it should have been sent. Raises ValueError.

    >>> _time(1795602600), _time("2026-11-25 10:30:00")
    ('2026-11-25T10:30:00+00:00', '2026-11-25T10:30:00+00:00')
    """
    if isinstance(value, int | float):
        try:
            return datetime.fromtimestamp(value if value < SECONDS_BELOW else value / 1000, UTC).isoformat()
        except (OverflowError, OSError) as error:
            raise ValueError(f"{value} is no time") from error
    at = datetime.fromisoformat(str(value).strip())
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).isoformat()


def mend(
    letter: DeadLetter, changes: Sequence[Change], event_bytes_max: int = EVENT_BYTES_MAX, skew_max_ms: int = SKEW_MAX_MS,
    privacy: Privacy = NO_PRIVACY,
) -> Mended:  # fmt: skip
    """The letter's event with changes made, as the collector would take it, on the lane `repair`. `privacy`: without keys,
    since what a letter keeps has its pseudonyms already."""

    def failed(keyword: str, text: str, diff: str = "") -> Mended:
        return Mended(letter, tuple(changes), None, (Message(path="", keyword=keyword, message=text),), diff)

    if letter.kind not in REPAIRABLE:
        return failed("kind", f"a letter of kind {letter.kind} holds no event")
    payload = _object(letter)
    if payload is None:
        cut = letter.payload_bytes > len(letter.payload)
        return failed("json", "the payload was cut when it was kept" if cut
                      else "the payload is no JSON object" if letter.payload else "the payload was not kept")  # fmt: skip
    if depth(payload) > SHOWN_DEPTH_MAX:
        return failed("depth", f"the payload is nested deeper than {SHOWN_DEPTH_MAX} levels, too deeply to be shown")
    before = _text(payload)
    try:
        for change in changes:
            _make(payload, change)
    except NoPath as error:
        return failed("path", str(error))
    payload["messageId"] = _event_id(payload, letter)
    shown = copy.deepcopy(payload)
    privacy.clean(shown, letter.tenant)  # as `admit` will: what the tenant's consent and settings make of it is shown, too
    after = _text(shown)
    diff = "\n".join(difflib.unified_diff(before.splitlines(), after.splitlines(), "kept", "mended", lineterm="", n=1))
    history: Lane | None = "repair" if letter.source.topic == events.NAME else None
    arrival = Arrival(tenant=letter.tenant, received_at=_received(payload, letter), event_bytes_max=event_bytes_max,
                      skew_max_ms=skew_max_ms, history=history, privacy=privacy)  # fmt: skip
    result = admit(msgspec.json.encode({"type": "track"} | payload), arrival)
    if not isinstance(result, Admitted):
        return Mended(letter, tuple(changes), None, result.messages, diff)
    fared = Repair(attempts=letter.attempts, first_seen=letter.first_seen)  # a letter about it goes on from there
    value = msgspec.json.encode(msgspec.json.decode(result.value) | {"lane": "repair", "repair": fared})
    return Mended(letter, tuple(changes), msgspec.structs.replace(result, value=value), (), diff)


def _received(payload: dict[str, Any], letter: DeadLetter) -> datetime:
    """When the event came, by what it says of that itself, else the letter: both may be a client's words, which hold where
    they are no later than its refusal."""
    refused = letter.failure.timestamp
    try:
        said = msgspec.convert(payload.get("receivedAt"), Instant)
    except msgspec.ValidationError:
        said = letter.first_seen
    return next((one for one in (said, letter.first_seen) if EARLIEST <= one <= refused), refused)


def event_id(letter: DeadLetter) -> str:
    """The id its event has once it is mended."""
    return _event_id(_object(letter) or {}, letter)


def _event_id(payload: dict[str, Any], letter: DeadLetter) -> str:
    known = payload.get("messageId")
    return known if isinstance(known, str) and 0 < len(known) <= ID_CHARS_MAX else f"dead-letter-{letter.dead_letter_id}"


def parse(what: str, text: str) -> Change:
    """An option as a change. Raises ValueError.

    >>> parse("set", "properties.price=9.5").value, parse("set", "userId=u1").value
    (9.5, 'u1')
    """
    path, equals, value = text.partition("=")
    if not path or (what != "drop" and not (equals and value)):
        raise ValueError(f"--{what} {text!r}: expected {'PATH' if what == 'drop' else 'PATH=VALUE'}")
    if what == "set":
        try:
            return Change(what, path, msgspec.json.decode(value))
        except UNREADABLE:
            return Change(what, path, value)
    return Change(what, path, value or None)


def _object(letter: DeadLetter) -> dict[str, Any] | None:
    if letter.payload_bytes > len(letter.payload):
        return None
    try:
        found = msgspec.json.decode(letter.payload)
    except UNREADABLE:
        return None
    return found if isinstance(found, dict) else None


def _steps(path: str) -> list[str | int]:
    return [int(one[1:-1]) if one.startswith("[") else one for one in re.findall(r"\[\d+\]|[^.\[\]]+", path)]


def _holder(payload: dict[str, Any], path: str) -> tuple[Any, str | int]:
    """What holds the last step of a path, and that step. Raises `NoPath`."""
    steps = _steps(path)
    if not steps:
        raise NoPath("the path is empty")
    at: Any = payload
    for step in steps[:-1]:
        try:
            at = at[step]
        except (KeyError, IndexError, TypeError):
            raise NoPath(f"there is nothing at {path}") from None
    return at, steps[-1]


def _at(payload: dict[str, Any], path: str) -> Any:
    holder, last = _holder(payload, path)
    try:
        return holder[last]
    except (KeyError, IndexError, TypeError):
        raise NoPath(f"there is nothing at {path}") from None


def _make(payload: dict[str, Any], change: Change) -> None:
    holder, last = _holder(payload, change.path)
    fits = isinstance(holder, dict) if isinstance(last, str) else isinstance(holder, list) and last < len(holder)
    if not fits or (change.what != "set" and isinstance(holder, dict) and last not in holder):
        raise NoPath(f"there is nothing at {change.path}")
    if change.what == "rename" and isinstance(holder, list):
        raise NoPath(f"{change.path} is a place in an array: it has no name to change")
    if change.what == "set":
        holder[last] = change.value
    elif change.what == "rename":
        holder[str(change.value)] = holder.pop(last)
    else:
        del holder[last]


def _text(payload: dict[str, Any]) -> str:
    """For a terminal: whatever a client put in is escaped."""
    return json.dumps(payload, indent=1, sort_keys=True)
