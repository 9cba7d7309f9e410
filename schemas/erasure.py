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
    """What one place held and what became of it. `until`: when the last copies go by the topic's own bounds."""

    place: str
    did: str
    records: int = 0
    until: Instant | None = None


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """Signed as its JSON stands. `subjects` are hashes, see `subject`: who knows an id can check it, nobody can read it."""

    erasure_id: str
    tenant: Id
    subjects: tuple[str, ...]
    requested_at: Instant
    done_at: Instant
    done: tuple[Done, ...]


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """One record of `clickwake.erasures.v1`. Events at or before `requested_at` are never taken again; with `suppress` no
    event is. `user_id` None: nothing is left to be done."""

    erasure_id: str
    tenant: Id
    requested_at: Instant
    suppress: bool = False
    user_id: Id | None = None
    devices: tuple[Id, ...] = ()  # anonymous ids that only this user had: erased with them
    receipt: Annotated[str, msgspec.Meta(description="JSON of a Receipt, exactly as it was signed")] | None = None
    signature: Annotated[str, msgspec.Meta(description="ed25519, base64; None where no key was set")] | None = None


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
    >>> erased.note(subject(b"t/u"), Erasure(erasure_id="e", tenant="t", requested_at=at))
    >>> [erased.covers(b"t/u", 0), erased.covers(b"t/u", 1_800_000_000_000), erased.covers(b"t/v", 0)]
    [True, False, False]
    """

    def __init__(self) -> None:
        self._until_ms: dict[bytes, float] = {}  # subject → time up to which nothing is taken; infinity: suppressed

    def __len__(self) -> int:
        return len(self._until_ms)

    def note(self, record_key: bytes, erasure: Erasure | None) -> None:
        """One record of the topic, None for a tombstone; the last of a key wins."""
        if erasure is None:
            self._until_ms.pop(record_key, None)
        else:
            self._until_ms[record_key] = float("inf") if erasure.suppress else ms(erasure.requested_at)

    def covers(self, user_key: bytes, ts_ms: int) -> bool:
        """Whether what the user did at this time is not to be taken."""
        return bool(self._until_ms) and ts_ms <= self._until_ms.get(subject(user_key), -1.0)


decode = msgspec.json.Decoder(Erasure).decode
