"""Which announcement of the models topic counts: of a release, or of a way back to one.

Where keys are set, one counts that a trusted key signed, in a header of its record, and that is newer than all such before
it. So who can write to the topic, and has no key, can announce nothing: neither a bundle that was signed once nor what was
once announced, said again. The topic keeps every announcement (`min.compaction.lag.ms`), else a record put there last would
be all that a process without a memory reads. Without keys the last record counts, whoever wrote it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from schemas.headers import header
from schemas.release import ModelRelease
from schemas.unreadable import UNREADABLE
from stream.adapters.models import signing
from stream.adapters.models.signing import Keys, SignatureRefused, Signer

KEY = b"current"
HEADER = "signature"

_release = msgspec.json.Decoder(ModelRelease)


class NotBelieved(ValueError):
    """An announcement that does not count; the message says why, `version` which bundle it names, if that can be read."""

    def __init__(self, why: str, version: str = "?") -> None:
        super().__init__(why)
        self.version = version


class Announcements:
    """The newest announcement that counts, of those it was shown in the order of the topic."""

    def __init__(self, keys: Keys = ()) -> None:
        self._keys = keys
        self.newest: ModelRelease | None = None

    def note(self, record: Any) -> bool:
        """Whether a record of the topic, of either Kafka client, changed which is the newest. Raises `NotBelieved`."""
        if record.key != KEY or record.value is None:
            return False
        try:
            said = _release.decode(record.value)
        except UNREADABLE as error:
            raise NotBelieved(f"the announcement at offset {record.offset} is unreadable: {error}") from error
        if self._keys:
            if said == self.newest:
                return False
            self._check(record, said)
        self.newest = said
        return True

    def _check(self, record: Any, said: ModelRelease) -> None:
        where = f"the announcement at offset {record.offset}"
        signature = header(record.headers, HEADER)
        if signature is None:
            raise NotBelieved(f"{where} is not signed: who holds CLICKWAKE_MODELS__SIGNING_KEY announces what is to run: "
                              f"clickwake release {said.model_version}", said.model_version)  # fmt: skip
        try:
            signing.check(record.value, signature, self._keys, signing.ANNOUNCEMENT)
        except SignatureRefused as error:
            raise NotBelieved(f"{where}: {error}", said.model_version) from error
        if self.newest is not None and said.released_at <= self.newest.released_at:
            raise NotBelieved(f"{where} was made at {said.released_at.isoformat()} and is said again: that of "
                              f"{self.newest.model_version}, made at {self.newest.released_at.isoformat()}, counts",
                              said.model_version)  # fmt: skip


def signed(value: bytes, signer: Signer | None) -> Sequence[tuple[str, bytes]]:
    """The headers of an announcement."""
    return () if signer is None else ((HEADER, signer.sign(value, signing.ANNOUNCEMENT)),)
