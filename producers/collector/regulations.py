"""`POST /v1/regulations`: users who want to be forgotten. Named as in Segment's Public API, so that a consent tool which
speaks to Segment can speak to this. The erasure worker does what is asked and signs a receipt.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Literal

import msgspec

from producers.privacy import Privacy
from schemas.erasure import Erasure, subject
from schemas.events import Id, key

SUBJECTS_MAX = 500


class Regulation(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What is asked. DELETE_ONLY: forget what was done until now; SUPPRESS_WITH_DELETE: and take nothing in future;
    UNSUPPRESS: take what is done from now on, which nothing else does."""

    regulation_type: Literal["DELETE_ONLY", "SUPPRESS_WITH_DELETE", "UNSUPPRESS"]
    subject_ids: Annotated[tuple[Id, ...], msgspec.Meta(min_length=1, max_length=SUBJECTS_MAX)]
    subject_type: Literal["USER_ID", "ANONYMOUS_ID"] = "USER_ID"


class Asked(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One request; several for a user whose pseudonyms were made with several keys."""

    subject_id: str
    regulate_ids: tuple[str, ...]


class Regulations(msgspec.Struct, frozen=True, kw_only=True):
    """The answer: ids to ask `GET /v1/regulations/{id}` about."""

    regulations: tuple[Asked, ...]


class Status(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """How far one request is. FINISHED: there is a receipt, which says of each place whether it was `seen` done, or who does
    it. `receipt` is JSON, exactly as it was signed."""

    regulate_id: str
    status: Literal["RUNNING", "FINISHED"]
    receipt: str | None = None
    signature: str | None = None


def erasures(
    asked: Regulation, tenant: str, at: datetime, privacy: Privacy, suppressed: Callable[[bytes], bool]
) -> tuple[Regulations, list[tuple[bytes, bytes]]]:  # fmt: skip
    """The answer, and the records (key, value) for the erasures topic. `suppressed`: whether a user is by now, which a
    request to delete does not end, see `Erasure`."""
    answer, records = [], []
    for one in asked.subject_ids:
        made = []
        for user in privacy.ids_of(tenant, one):
            erasure = Erasure(
                erasure_id=str(uuid.uuid4()), tenant=tenant, requested_at=at,
                suppress=asked.regulation_type == "SUPPRESS_WITH_DELETE" or (
                    asked.regulation_type == "DELETE_ONLY" and suppressed(key(tenant, user))),
                user_id=None if asked.regulation_type == "UNSUPPRESS" else user,
            )  # fmt: skip
            made.append(erasure.erasure_id)
            records.append((subject(key(tenant, user)), msgspec.json.encode(erasure)))
        answer.append(Asked(subject_id=one, regulate_ids=tuple(made)))
    return Regulations(regulations=tuple(answer)), records
