"""What a user is called downstream of the collector, where ids are nobody's business there.

A pseudonym is HMAC-SHA256 (RFC 2104) of tenant and id under a secret key: the same id gives the same pseudonym, so that
histories stay whole, and nobody without the key can tell whose they are, or try ids out. With a new key everybody begins
anew, which is the point of it; the old keys stay in the settings, so that whoever was written under them is found: to be
erased, to be left out, and to be answered about.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re

from stream.settings import Privacy as Settings

PREFIX = "pn_"
DIGEST_BYTES = 16  # 22 characters: two of a billion ids meet with a chance of 10^-21
_MADE = re.compile(PREFIX + r"[A-Za-z0-9_-]{22}")


class Pseudonyms:
    """The keys at work, the newest first."""

    def __init__(self, settings: Settings) -> None:
        self._keys = [one.get_secret_value().encode() for one in settings.pseudonym_keys]

    def __bool__(self) -> bool:
        """Whether ids are replaced at all."""
        return bool(self._keys)

    def of(self, tenant: str, value: str) -> str:
        """By the newest key, of an id or of any other value. Raises IndexError without a key."""
        return pseudonym(self._keys[0], tenant, value)

    def ids_of(self, tenant: str, user: str) -> list[str]:
        """What a user may be called downstream: their pseudonym under every key, newest first; the id itself without keys,
        or where it is a pseudonym, as people who look downstream know their users."""
        if not self._keys or _MADE.fullmatch(user):
            return [user]
        return [pseudonym(one, tenant, user) for one in self._keys]

    def names_of(self, tenant: str, user: str) -> list[str]:
        """The pseudonyms under every key, newest first, and the id itself: what was written before there were keys, or by a
        producer of one's own, is under that."""
        return [*(pseudonym(one, tenant, user) for one in self._keys), user]


def pseudonym(secret: bytes, tenant: str, value: str) -> str:
    """
    >>> pseudonym(b"k" * 32, "shop", "u1")
    'pn_g5FSNtbdYlYik9g1m2FfTw'
    """
    message = f"{tenant}\x1f{value}".encode("utf-8", "surrogatepass")
    digest = hmac.digest(secret, message, hashlib.sha256)[:DIGEST_BYTES]
    return PREFIX + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
