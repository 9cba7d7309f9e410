"""Whom to forget, and the list by which everybody recognises them afterwards.

An `Erasure` names the user until everything is done. Then the same key is written again without the name: what stays for
ever is a hash, by which late events are told, and the signed receipt of what was done where.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec

from schemas.events import Id, Instant, ms

SUBJECT_BYTES = 16


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What one place held and what became of it. `seen`: whoever signs the receipt saw it done; else `did` says who does it,
    and `until`, where that is known, when it is done for certain."""

    place: str
    did: str
    records: int = 0
    until: Instant | None = None
    seen: bool = True


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """Signed as its JSON stands. `subjects` are hashes, see `subject`: who knows an id can check it, nobody can read it.
    `signed`: whether there is a signature beside it; not said in receipts from before 0.9.0."""

    erasure_id: str
    tenant: Id
    subjects: tuple[str, ...]
    requested_at: Instant
    done_at: Instant
    done: tuple[Done, ...]
    signed: bool | msgspec.UnsetType = msgspec.UNSET


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """One record of `clickwake.erasures.v1`. Events at or before `requested_at` are never taken again; with `suppress` no
    event is. `user_id` None: nothing is left to be done.

    A request to delete lifts no suppression, and since compaction leaves the last record of a user alone, whoever writes one
    says in it again that the user is suppressed."""

    erasure_id: str
    tenant: Id
    requested_at: Instant
    suppress: bool = False
    user_id: Id | None = None
    devices: tuple[Id, ...] = ()  # anonymous ids that only this user had: erased with them; of a device, itself until then
    receipt: Annotated[str, msgspec.Meta(description="JSON of a Receipt, exactly as it was signed")] | None = None
    signature: Annotated[str, msgspec.Meta(description="ed25519, base64; None where no key was set")] | None = None
    device: bool | msgspec.UnsetType = msgspec.UNSET  # an anonymous id that goes with a user: no request of its own

    @property
    def lifts(self) -> bool:
        """Whether this ends a suppression: it asks for nothing to be deleted and says of nothing that it was."""
        return not (self.suppress or self.user_id or self.receipt or self.device)


def subject(user_key: bytes) -> bytes:
    """The key of the topic: the tenant, and a hash of `tenant/user`. Guessable only where ids are: pseudonyms are not.

    >>> subject(b"shop/u1")
    b'shop/217836361031674d2f715ee58389ad66'
    """
    tenant, _, _ = user_key.partition(b"/")
    return tenant + b"/" + hashlib.blake2b(user_key, digest_size=SUBJECT_BYTES).hexdigest().encode()


class Erased:
    """The list. `covers` costs nothing while it is empty, a hash after that.

    >>> from datetime import datetime
    >>> erased, at = Erased(), datetime.fromisoformat("2026-01-01T00:00:00Z")
    >>> erased.note(subject(b"t/u"), Erasure(erasure_id="e", tenant="t", requested_at=at, user_id="u"))
    >>> [erased.covers(b"t/u", 0), erased.covers(b"t/u", 1_800_000_000_000), erased.covers(b"t/v", 0)]
    [True, False, False]
    """

    def __init__(self) -> None:
        self._until_ms: dict[bytes, int] = {}  # subject → time up to which nothing is taken
        self._erased_ms: dict[bytes, int] = {}  # … and up to which all was erased: not by a lift
        self._suppressed: set[bytes] = set()  # subjects of whom nothing is taken at all
        self._open: dict[bytes, dict[str, Erasure]] = {}  # subject → by request, what is not done and names somebody

    def __len__(self) -> int:
        return len(self._until_ms)

    def note(self, record_key: bytes, erasure: Erasure | None) -> None:
        """One record of the topic, None for a tombstone, in the topic's order; read again they come to the same."""
        if erasure is None:
            self._until_ms.pop(record_key, None)
            self._erased_ms.pop(record_key, None)
            self._suppressed.discard(record_key)
            self._open.pop(record_key, None)
            return
        self._until_ms[record_key] = max(ms(erasure.requested_at), self._until_ms.get(record_key, 0))
        if not erasure.lifts:
            self._erased_ms[record_key] = max(ms(erasure.requested_at), self._erased_ms.get(record_key, 0))
        if erasure.suppress:
            self._suppressed.add(record_key)
        elif erasure.lifts:
            self._suppressed.discard(record_key)
        if erasure.user_id is not None or erasure.devices:
            self._open.setdefault(record_key, {})[erasure.erasure_id] = erasure
        elif not erasure.lifts and (known := self._open.get(record_key)) is not None:
            known.pop(erasure.erasure_id, None)
            if not known:
                del self._open[record_key]

    @property
    def under_way(self) -> bool:
        """Whether any request is not done."""
        return bool(self._open)

    def request(self, user_key: bytes) -> Erasure | None:
        """The oldest request to forget the user that is not done: the one that is carried out."""
        known = self._open.get(subject(user_key), {}) if self._open else {}
        named = [one for one in known.values() if one.user_id is not None]
        return min(named, key=lambda one: one.requested_at, default=None)

    def devices(self, erasure_id: str) -> list[str]:
        """Anonymous ids that the owners of states have put on the list, by name, for this request."""
        entries = (known[erasure_id] for known in self._open.values() if erasure_id in known)
        return [one for entry in entries if entry.device is True for one in entry.devices]

    def suppresses(self, user_key: bytes) -> bool:
        """Whether nothing of the user is taken, whenever they did it."""
        return bool(self._suppressed) and subject(user_key) in self._suppressed

    def covers(self, user_key: bytes, ts_ms: int) -> bool:
        """Whether what the user did at this time is not to be taken."""
        if not self._until_ms:
            return False
        whom = subject(user_key)
        return whom in self._suppressed or ts_ms <= self._until_ms.get(whom, -1)

    def until_ms(self, user_key: bytes) -> int:
        """Up to when the user was erased, -1 for never."""
        return self._erased_ms.get(subject(user_key), -1) if self._erased_ms else -1

    def takes(self, user_key: bytes, began_ms: int) -> bool:
        """Whether the profile that began then is one that an erasure takes, so that nothing more is to be said of it."""
        return began_ms <= self.until_ms(user_key) or self.suppresses(user_key)


decode = msgspec.json.Decoder(Erasure).decode
