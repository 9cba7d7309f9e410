"""What the id of an event becomes that is kept without whose it is.

The id itself stands in what was recommended and decided by it, beside the user: one join would say whose event it was. A
keyed hash is the same whenever the event comes again, so that it stays one row, and leads nowhere without the key.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import tempfile
from functools import cached_property
from pathlib import Path

from stream.pseudonyms import pseudonym
from stream.settings import Settings

PURPOSE = b"ids of events without consent to analytics"  # so that no pseudonym of a user is one of these


class MessageIds:
    """By `privacy.message_key`; else by the oldest pseudonym key that is held, since a new one comes before it and changes
    nothing then; else by a secret of this installation, made when it is first asked for."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self, tenant: str, message_id: str) -> str:
        return pseudonym(self._key, tenant, message_id)

    @cached_property
    def _key(self) -> bytes:
        privacy = self._settings.privacy
        given = privacy.message_key or next(reversed(privacy.pseudonym_keys), None)
        secret = _kept(self._settings.message_key_file) if given is None else given.get_secret_value().encode()
        return hmac.digest(secret, PURPOSE, hashlib.sha256)


def _kept(path: Path) -> bytes:
    """The secret in this file, for its owner alone; whoever comes first makes it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        file, draft = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(file, "wb") as out:
                out.write(secrets.token_hex().encode())
                out.flush()
                os.fsync(out.fileno())
            with contextlib.suppress(FileExistsError):  # another process was first: both go by what it wrote
                os.link(draft, path)
        finally:
            Path(draft).unlink()
    return path.read_bytes()
