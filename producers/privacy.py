"""What of an event is nobody's business downstream: ids become pseudonyms (`stream.pseudonyms`), addresses lose their end,
and consent is stated.

Ids and addresses are found by their names, wherever in the event they stand and whatever system's names they are. The ids
that were found, and the addresses, are then looked for in every text of the event, as they are and as addresses of pages
have them: a page's `?uid=…` is no place to keep what became a pseudonym elsewhere.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import quote, quote_plus

import msgspec

from schemas.dead_letter import analytics_of
from schemas.dialects import DERIVED
from schemas.events import Event
from stream.pseudonyms import Pseudonyms
from stream.settings import ConsentDefault
from stream.settings import Privacy as Settings

IDS = ("userId", "anonymousId", "previousId")
# of a person or of their device, in Segment's words, GA4's, Snowplow's, PostHog's and telephones'; spelled in any way
ID_NAMES = frozenset({
    "userid", "anonymousid", "previousid", "uid", "distinctid", "anondistinctid", "deviceid", "clientid", "appinstanceid",
    "duid", "nuid", "tnuid", "domainuserid", "networkuserid", "visitorid", "externalids", "advertisingid",
    "idfa", "idfv", "gaid",
})  # fmt: skip
ADDRESS_NAMES = frozenset({
    "ip", "ipaddress", "useripaddress", "userip", "clientip", "remoteip", "remoteaddr", "remoteaddress", "ipoverride",
    "xforwardedfor", "xrealip",
})  # fmt: skip
SESSION = "sessionid"  # some systems know a visitor by the session alone
PATHS = (("traits", "id"), ("context", "traits", "id"), ("context", "device", "id"))  # where a plain `id` is a person's
FIELDS = frozenset(field.encode_name for field in msgspec.structs.fields(Event))  # an event's own, whoever is called so
LOOKED_FOR_CHARS_MIN = 8  # in texts: shorter ones are part of everything
ADDRESS_CHARS_MIN, ADDRESS_CHARS_MAX = len("1.2.3.4"), 64
NAME_CHARS_MAX = 64  # longer ones have no meaning here, and are not remembered
NAMES_MAX = ADDRESSES_MAX = 4_096  # that are remembered, with what they come to

_PUNCTUATION = str.maketrans("", "", "$_-. ")
# What may be an address in bytes that cannot be read. Runs are bounded, so that no byte is looked at more than some fifty
# times; the letter of a JSON escape before one is none of a word.
_IPV6 = re.compile(rb"(?:(?<![0-9A-Za-z])|(?<=\\[bfnrt]))"
                   rb"(?=[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:)[0-9A-Fa-f:.]{7,45}(?![0-9A-Za-z])")  # fmt: skip
_IPV4 = re.compile(rb"(?<![0-9.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9]|\.[0-9])")
_SAME_IN_ADDRESSES = re.compile(r"[A-Za-z0-9_.~-]*")


Meaning = Literal["id", "address", "session"]


@lru_cache(maxsize=NAMES_MAX)
def _meaning(name: str) -> Meaning | None:
    """
    >>> [_meaning(one) for one in ("$user_id", "X-Forwarded-For", "sessionId", "product_id")]
    ['id', 'address', 'session', None]
    """
    plain = name.lower().translate(_PUNCTUATION)
    if plain in ID_NAMES:
        return "id"
    if plain in ADDRESS_NAMES:
        return "address"
    return "session" if plain == SESSION else None


def id_text(value: Any) -> str:
    """An id as it is told by: numbers, and whatever else clients send for one, by their JSON; "" for what is none.

    >>> id_text("u1"), id_text(4711), id_text(None), id_text(True)
    ('u1', '4711', '', '')
    """
    if value is None or isinstance(value, bool):
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value, order="deterministic").decode()


def _named(holder: dict[str, Any], what: Meaning) -> list[str]:
    return [one for one in holder if len(one) <= NAME_CHARS_MAX and _meaning(one) == what]


class Privacy:
    """The settings at work, the same for every event."""

    def __init__(self, settings: Settings) -> None:
        self.names = Pseudonyms(settings)
        fields = [tuple(path.split(".")) for path in settings.pseudonym_fields]
        self._paths = list(dict.fromkeys((*fields, *PATHS)))
        self._ip = settings.ip
        self._consent = {tenant: _allowed(one) for tenant, one in settings.consent.items()}

    @property
    def pseudonyms(self) -> bool:
        """Whether ids are replaced: then what cannot be read may not be kept either."""
        return bool(self.names)

    def ids_of(self, tenant: str, user: str) -> list[str]:
        """What a user may be called downstream: their pseudonym under every key, newest first; else the id itself."""
        return self.names.ids_of(tenant, user)

    def clean(self, event: dict[str, Any], tenant: str) -> bool:
        """Change the event in place; whether anything was. Raises RecursionError for what is nested too deeply to look
        through, and leaves an event then that must not be kept."""
        gone: dict[str, str] = {}  # what must be nowhere in the event → what stands for it
        changed = False
        if self._ip != "keep":
            changed |= self._clean_addresses(event, gone)
        if self.names:
            self._replace_ids(event, tenant, gone)
            changed = True
        if gone:
            _look_through(event, gone)
        default = self._consent.get(tenant)
        if default is not None:
            context = event.setdefault("context", {})
            if isinstance(context, dict):
                changed |= _state_consent(context, default)
        return changed

    def refuses_analytics(self, tenant: str, raw: bytes) -> bool:
        """Whether an event's bytes do: by their own word, else by the tenant's default."""
        said, default = analytics_of(raw), self._consent.get(tenant, {})
        return not (default.get("analytics", True) if said is None else said)

    def without_addresses(self, raw: bytes) -> bytes:
        """Bytes that nobody could read as JSON, without what looks like an address there; in time that grows as they do."""
        if self._ip == "keep":
            return raw

        def of(match: re.Match[bytes]) -> bytes:
            found = match[0]
            for address in (found, found.rstrip(b":."), found.lstrip(b":."), found.strip(b":.")):
                if (network := truncated(address.decode())) is not None:
                    return found.replace(address, network.encode() if self._ip == "truncate" else b"")
            return found

        return _IPV4.sub(of, _IPV6.sub(of, raw))

    def _clean_addresses(self, event: dict[str, Any], gone: dict[str, str]) -> bool:
        found = False
        for holder in _objects(event):
            for name in _named(holder, "address"):
                found, given = True, holder.pop(name)
                network = truncated(given) if isinstance(given, str) and len(given) <= ADDRESS_CHARS_MAX else None
                if network is None:
                    continue
                if self._ip == "truncate":
                    holder[name] = network
                if len(given) >= ADDRESS_CHARS_MIN and given != network:
                    gone[given] = network if self._ip == "truncate" else ""
        return found

    def _replace_ids(self, event: dict[str, Any], tenant: str, gone: dict[str, str]) -> None:
        known: dict[str, str] = {}  # id as it was → pseudonym
        ours: set[str] = set()  # a listed field may have an id's name, too

        def replaced(holder: dict[str, Any], name: str) -> None:
            value = holder.get(name)
            text = id_text(value)
            if not text or (isinstance(value, str) and value in ours):
                return
            known[text] = holder[name] = self.names.of(tenant, text)
            ours.add(known[text])

        for path in self._paths:
            holder: Any = event
            for name in path[:-1]:
                holder = holder.get(name) if isinstance(holder, dict) else None
            if isinstance(holder, dict):
                replaced(holder, path[-1])
        holders = list(_objects(event))
        for holder in holders:
            for name in _named(holder, "id"):
                replaced(holder, name)
        for holder in holders:
            for name in _named(holder, "session"):
                if isinstance(holder[name], str):
                    holder[name] = known.get(holder[name], holder[name])
        message = event.get("messageId")
        if isinstance(message, str) and message.startswith(DERIVED):  # a hash of all that was sent: ids could be tried out
            event["messageId"] = self.names.of(tenant, message)
        for text, pseudonym in known.items():
            if len(text) >= LOOKED_FOR_CHARS_MIN:
                gone[text] = pseudonym
                if not _SAME_IN_ADDRESSES.fullmatch(text):
                    gone |= dict.fromkeys((quote(text), quote(text, safe=""), quote_plus(text)), pseudonym)


def _objects(event: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All objects of the event, itself first."""
    left: list[Any] = [event]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            yield one
            left += [value for value in one.values() if isinstance(value, dict | list)]
        else:
            left += [value for value in one if isinstance(value, dict | list)]


def _look_through(event: dict[str, Any], gone: Mapping[str, str]) -> None:
    """Replace in every text, and in every name but an event's own, what must not be there."""
    pairs = sorted(gone.items(), key=lambda pair: -len(pair[0]))  # one may be part of another

    def text_of(text: str) -> str:
        for old, new in pairs:
            if old in text:
                text = text.replace(old, new)
        return text

    def without(value: Any) -> Any:
        if isinstance(value, str):
            return text_of(value)
        if isinstance(value, list):
            return [without(one) for one in value]
        if isinstance(value, dict):
            return {text_of(name): without(one) for name, one in value.items()}
        return value

    given = dict(event)
    event.clear()
    for name, value in given.items():
        event[name if name in FIELDS else text_of(name)] = value if name == "type" else without(value)


@lru_cache(maxsize=ADDRESSES_MAX)
def truncated(ip: str) -> str | None:
    """The network of an address, None for what is no address.

    >>> truncated("203.0.113.77"), truncated("2001:db8:1:2::5"), truncated("localhost")
    ('203.0.113.0', '2001:db8:1::', None)
    """
    for family, kept_bytes in ((socket.AF_INET, 3), (socket.AF_INET6, 6)):
        try:
            packed = socket.inet_pton(family, ip.partition("%")[0])  # %eth0: by which of a machine's networks
        except (OSError, ValueError):
            continue
        return socket.inet_ntop(family, packed[:kept_bytes].ljust(len(packed), b"\0"))
    return None


def _state_consent(context: dict[str, Any], default: dict[str, bool]) -> bool:
    """Put the default in where the event says nothing; whether it was. What is no object is refused by its decoder.

    >>> context = {"consent": {"ads": True}}
    >>> _state_consent(context, {"personalization": False, "ads": False, "assumed": True}), context
    (True, {'consent': {'personalization': False, 'ads': True}})
    """
    said = context.get("consent")
    if said is not None and not isinstance(said, dict):
        return False
    own = {name: value for name, value in (said or {}).items() if value is not None}
    stated = {name: value for name, value in default.items() if name != "assumed" or "ads" not in own} | own
    if stated == said:
        return False
    context["consent"] = stated
    return True


def _allowed(default: ConsentDefault) -> dict[str, bool]:
    return {"analytics": default.analytics, "personalization": default.personalization, "ads": default.ads, "assumed": True}
