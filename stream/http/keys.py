"""Keys of tenants: told apart by their SHA-256, compared in constant time, several a tenant so that they can be changed.

A key is 256 random bits, not a password: nobody can guess it, so a fast hash is right and a slow one would only let
strangers keep the service busy. Whoever reads the settings then learns no key that opens anything. In a browser a write
key is public all the same, as Segment's is: it lets others add events, never read. Read and admin keys belong on servers.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping

from pydantic import SecretStr

from stream.http.answers import Refused
from stream.settings import LOOPBACK, WriteKeys

HASHED = "sha256:"
WHOLE_HASH = re.compile(HASHED + "[0-9a-f]{64}")
KEY_BYTES = 32


def hashed(key: str) -> str:
    """
    >>> hashed("demo-write-key")[:15]
    'sha256:8c365d0d'
    """
    return HASHED + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def new() -> tuple[str, str]:
    """(the key, shown once and kept nowhere; what the settings hold of it)."""
    key = secrets.token_urlsafe(KEY_BYTES)
    return key, hashed(key)


def tenant_of(given_key: str | None, keys: Mapping[str, WriteKeys], what: str = "write") -> str:
    """The tenant a key belongs to; raises Refused 401, the same for an unknown key and for none. Every key of every tenant
    is compared, each in constant time. `what` they are good for is all an answer says of them."""
    found, given = None, hashed(given_key or "")
    for tenant, several in keys.items():
        for key in (several,) if isinstance(several, SecretStr) else several:
            held = key.get_secret_value()
            if hmac.compare_digest(given, held if held.startswith(HASHED) else hashed(held)):
                found = tenant
    if found is None or not given_key:
        where = " or as `writeKey` in the body" if what == "write" else ""
        raise Refused(401, "unauthorized", f"No known {what} key: send it as Basic auth user{where}.")
    return found


def refusal(
    name: str, what: str, host: str, behind_tls: bool, keys: Mapping[str, WriteKeys], documented: Mapping[str, WriteKeys]
) -> str | None:
    """Why the service `name` may not listen where it is told to, and what to do; None when it may. `documented` are the keys
    everybody knows."""
    if host in LOOPBACK:
        return None
    setting = f"CLICKWAKE_{name.upper()}__{what.upper()}_KEYS"
    if not behind_tls:
        return (f"plain HTTP on {host} would carry {what} keys and people's data in the clear: put a proxy that ends TLS "
                f"in front and say so with CLICKWAKE_{name.upper()}__BEHIND_TLS=true, or listen on 127.0.0.1")  # fmt: skip
    default = {hashed(key) for _, key in held_in(documented)}
    held = held_in(keys)
    if not held:
        return f"there is no {what} key: set {setting}; `clickwake key TENANT` makes one"
    for tenant, key in held:
        if not key or (key if key.startswith(HASHED) else hashed(key)) in default:
            return (f"a {what} key of tenant {tenant!r} is empty or the one of the documentation: set your own with "
                    f"{setting}; `clickwake key {tenant}` makes one")  # fmt: skip
        if not WHOLE_HASH.fullmatch(key):
            return (f"a {what} key of tenant {tenant!r} stands in {setting} in the clear, not as {HASHED}…: put "
                    f"its hash there; `clickwake key {tenant}` makes a key and prints both")  # fmt: skip
    return None


def held_in(keys: Mapping[str, WriteKeys]) -> list[tuple[str, str]]:
    """(tenant, key as the settings have it)"""
    return [(tenant, key.get_secret_value()) for tenant, several in keys.items()
            for key in ((several,) if isinstance(several, SecretStr) else several)]  # fmt: skip
