"""What users, and events of other names, were said to be: traits and properties, of those that rules of segments ask for.

What no rule names is not kept, and no model reads any of it. A value is kept as text, a number or a flag as JSON writes
it. Traits come with `identify`, and in `context.traits` of any event (Segment's specification); those of `group` are a
company's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from schemas.events import Event, EventTexts
from schemas.unreadable import UNREADABLE
from stream.core.user.state import ACTIVITY_CHARS_MAX, Trait, UserState

NAMES_MAX = 32  # of traits, and of properties: more is a copy of a database


class Names(NamedTuple):
    """What rules ask for."""

    traits: frozenset[str] = frozenset()
    properties: frozenset[str] = frozenset()


NO_NAMES = Names()
_NONE: Mapping[str, str] = MappingProxyType({})


class Described(NamedTuple):
    """What one event said of its user, and of itself."""

    traits: Mapping[str, str] = _NONE
    properties: Mapping[str, str] = _NONE


NOTHING_SAID = Described()


class Said(msgspec.Struct, frozen=True, array_like=True):
    """A trait of a user, and when the broker took the event that said it, ms."""

    name: str
    trait: Trait
    append_ms: int


_texts = msgspec.json.Decoder(EventTexts)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def described(event: Event, texts: EventTexts | bytes, names: Names) -> Described:
    """What an event says by these names; `texts` may be the whole event as it travels. Nothing is kept of what is no text,
    number or flag, nor of anybody who refused analytics; null says that there is no such trait.

    >>> from datetime import UTC, datetime
    >>> told = Event(message_id="m", type="identify", timestamp=datetime.now(UTC), tenant="t")
    >>> described(told, b'{"traits": {"plan": "pro", "age": 42, "seats": null, "tags": []}}',
    ...           Names(frozenset({"plan", "age", "seats", "tags"}))).traits
    {'plan': 'pro', 'age': '42', 'seats': ''}
    """
    consent = event.context.consent
    if not (names.traits or names.properties) or (consent is not None and consent.analytics is False):
        return NOTHING_SAID
    if isinstance(texts, bytes):
        try:
            texts = _texts.decode(texts)
        except UNREADABLE:  # what nobody asked for before was passed over unread
            return NOTHING_SAID
    about: dict[str, str] = {}
    if names.traits:
        about = _said(_read(texts.context).get("traits"), names.traits)
        if event.type == "identify":
            about |= _said(texts.traits, names.traits)
    return Described(about, _said(texts.properties, names.properties) if names.properties else _NONE)


def note(state: UserState, said: Described, ts_ms: int, mark: int) -> None:
    """Keep what an event says of its user; `mark` is the hash of its id."""
    if said.traits:
        state.traits = merged(state.traits, {name: Trait(ts_ms, mark, text) for name, text in said.traits.items()})


def recall(state: UserState, said: Iterable[Said], names: Names) -> bool:
    """Keep what was said before a rule asked for it; False when it changes nothing. What the broker took before the profile
    began is of one that its user withdrew, and what was said up to `forgot_ms` may be of who was forgotten here.

    >>> names = Names(frozenset({"plan", "age"}))
    >>> state = UserState(events=1, since_ms=5, traits={"plan": Trait(7, 0, "pro")})
    >>> recall(state, [Said("age", Trait(4, 0, "41"), 4), Said("plan", Trait(6, 0, "free"), 6)], names)
    False
    >>> recall(state, [Said("age", Trait(8, 0, "42"), 8)], names), {name: one.text for name, one in state.traits.items()}
    (True, {'plan': 'pro', 'age': '42'})
    """
    if not state.events:
        return False
    told = {one.name: one.trait for one in said if one.name in names.traits and one.append_ms >= state.since_ms
            and one.trait.ts_ms > state.forgot_ms}  # fmt: skip
    known, state.traits = state.traits, merged(state.traits, told)
    return state.traits != known


def merged(known: Mapping[str, Trait], told: Mapping[str, Trait]) -> dict[str, Trait]:
    """Of two statements the greater stands."""
    return {**known, **{name: max(trait, known.get(name, trait)) for name, trait in told.items()}}


def let_go(state: UserState, names: Names) -> bool:
    """Forget traits that no rule asks for any more; False when there are none."""
    every = (state.traits, *state.linked_traits.values())
    if all(traits.keys() <= names.traits for traits in every):
        return False
    for traits in every:
        for name in traits.keys() - names.traits:
            del traits[name]
    state.linked_traits = {device: traits for device, traits in state.linked_traits.items() if traits}
    return True


def _said(raw: msgspec.Raw | None, names: frozenset[str]) -> dict[str, str]:
    found = {}
    for name, value in _read(raw).items():
        if name in names and (text := _text(value)) is not None:
            found[name] = text
    return found


def _read(raw: msgspec.Raw | None) -> dict[str, msgspec.Raw]:
    """The members of an object; none of anything else."""
    try:
        return _members.decode(raw) if raw else {}
    except UNREADABLE:
        return {}


def _text(raw: msgspec.Raw) -> str | None:
    try:
        value = msgspec.json.decode(raw)
    except UNREADABLE:
        return None
    if isinstance(value, str):
        return value[:ACTIVITY_CHARS_MAX]
    if value is None:
        return ""
    return bytes(raw).decode()[:ACTIVITY_CHARS_MAX] if isinstance(value, bool | int | float) else None
