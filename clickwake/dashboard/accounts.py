"""Who may sign in to the dashboard: names, roles and hashes of passwords, in a file kept by `clickwake dashboard add-user`.

Unlike keys (`stream.http.keys`) passwords can be guessed, so their hash is slow and takes memory: scrypt (RFC 7914) of the
standard library, at the cost that OWASP's Password Storage Cheat Sheet names; argon2 would be a package more. The cost
stands beside each hash, so that it can be raised.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from schemas.events import Id
from schemas.unreadable import UNREADABLE

Role = Literal["read", "admin"]
Tenants = Annotated[tuple[Id, ...], msgspec.Meta(min_length=1)] | None
Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
PASSWORD_CHARS_MIN = 15  # NIST SP 800-63B-4, 3.1.1.2: where a password is all that is asked for
PASSWORD_CHARS_MAX = 1_024
NAME_CHARS_MAX = 64
GENERATED_BYTES = 18
SALT_BYTES, DIGEST_BYTES = 16, 32
N, R, P = 1 << 16, 8, 2  # 64 MiB and about a third of a second


class BadAccounts(ValueError):
    """The file, a name or a password is not what it should be; the message says which and what to do."""


class Account(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One person. `salt` and `digest` are base64 in the file. `tenants`: whose pages they may open; None: everybody's."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARS_MAX)]
    role: Role
    salt: bytes
    digest: bytes
    n: Positive
    r: Positive
    p: Positive
    tenants: Tenants = None


def new(name: str, role: Role, password: str, tenants: Tenants = None) -> Account:
    """Raises BadAccounts for a password that is too short or a name that nobody could type."""
    if not PASSWORD_CHARS_MIN <= len(password) <= PASSWORD_CHARS_MAX:
        raise BadAccounts(f"a password has {PASSWORD_CHARS_MIN} to {PASSWORD_CHARS_MAX} characters, this one has "
                          f"{len(password)}; --generate makes one")  # fmt: skip
    if not 1 <= len(name) <= NAME_CHARS_MAX or not name.isprintable() or name != name.strip():
        raise BadAccounts(f"{name!r} is no name: 1 to {NAME_CHARS_MAX} printable characters without space around them")
    salt = secrets.token_bytes(SALT_BYTES)
    return Account(name=name, role=role, salt=salt, digest=_hash(password, salt, N, R, P), n=N, r=R, p=P,
                   tenants=tenants)  # fmt: skip


def matches(account: Account | None, password: str) -> bool:
    """Whether it is the account's password; as slow for no account, so that names cannot be told from answers' times."""
    known = account or _NOBODY
    given = _hash(password[:PASSWORD_CHARS_MAX], known.salt, known.n, known.r, known.p)
    return hmac.compare_digest(given, known.digest) and account is not None


def _hash(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(password.encode("utf-8", "surrogatepass"), salt=salt, n=n, r=r, p=p, dklen=DIGEST_BYTES,
                          maxmem=256 * n * r)  # fmt: skip


_NOBODY = Account(name="-", role="read", salt=bytes(SALT_BYTES), digest=bytes(DIGEST_BYTES), n=N, r=R, p=P)


def read(path: Path) -> dict[str, Account]:
    """By name; empty when there is no file. Raises BadAccounts."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=list[Account])
    except FileNotFoundError:
        return {}
    except (OSError, *UNREADABLE) as error:
        raise BadAccounts(f"{path} cannot be read: {error}; mend it, or move it away and add the users again") from error
    return {one.name: one for one in found}


def write(path: Path, accounts: Mapping[str, Account]) -> None:
    """Replace the file at once; only its owner may read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(list(accounts.values())), indent=2) + b"\n")
    draft.replace(path)


class Accounts:
    """The file as it is now: who is taken out is out at the next look, without a restart."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_at: tuple[int, int] | None = None
        self._known: dict[str, Account] = {}

    def kept(self) -> bool:
        """Whether there is a file: with none nobody is asked, with an empty one nobody gets in."""
        return self.path.exists()

    def known(self) -> Mapping[str, Account]:
        """Raises BadAccounts: a file that somebody damaged lets nobody in."""
        try:
            stat = self.path.stat()
            at = (stat.st_mtime_ns, stat.st_size)
        except FileNotFoundError:
            at = None
        if at is None:
            self._known, self._read_at = {}, None
        elif at != self._read_at:
            self._known, self._read_at = read(self.path), at
        return self._known
