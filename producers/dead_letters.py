"""Dead letters as producers write them: inputs that never became an event."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime

import msgspec

from schemas.dead_letter import PAYLOAD_BYTES_MAX, DeadLetter, Failure, Kind, Message, Source
from schemas.outputs import output_id


def dead_letter(*, tenant: str, kind: Kind, messages: Sequence[Message], payload: bytes, source: Source,
                at: datetime, first_seen: datetime | None = None, told_by: bytes | None = None) -> DeadLetter:
    """A dead letter whose id depends on tenant, source and payload only: the same input again gives the same id.

    `payload` is cut to PAYLOAD_BYTES_MAX; `payload_bytes` keeps its length, the id its whole content. `told_by` takes the
    payload's place in the id where the payload is not kept.
    """
    content = hashlib.blake2b(payload if told_by is None else told_by, digest_size=16).hexdigest()
    return DeadLetter(
        dead_letter_id=output_id("dead-letter", tenant, source.topic, str(source.partition), str(source.offset), content),
        tenant=tenant,
        kind=kind,
        failure=Failure(timestamp=at, messages=tuple(messages)),
        payload=payload[:PAYLOAD_BYTES_MAX],
        payload_bytes=len(payload),
        source=source,
        first_seen=first_seen or at,
    )


def encode(letter: DeadLetter) -> bytes:
    return msgspec.json.encode(letter)
