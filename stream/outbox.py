"""What one batch wants to say, as data: nothing is sent before the whole batch has been decided."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple, Protocol

import msgspec

from schemas import topics
from schemas.dead_letter import PAYLOAD_BYTES_MAX, DeadLetter, Failure, Source, analytics_of, repair_of
from schemas.erasure import Erasure
from schemas.erasure import subject as erased_subject
from schemas.events import key as user_key
from schemas.outputs import AdsRefusal, ChurnAlert, Complements, Recommendation, Reminder, SegmentChange, output_id
from schemas.topics import Topic
from stream.core.decode import Reject
from stream.core.user import identity
from stream.core.user.state import Stated

Headers = list[tuple[str, bytes]]
CLOUDEVENTS_SOURCE = "clickwake/personalize"


class OutRecord(NamedTuple):
    key: bytes
    value: bytes | None
    headers: Headers


class Outputs(Protocol):
    """Sends records to a topic's partitions and returns once the broker has acknowledged all of them (acks=all)."""

    async def send(self, topic: Topic, records: dict[int, list[OutRecord]]) -> dict[int, int]:
        """Returns the last offset written to each partition."""
        ...


def utc(ts_ms: int) -> datetime:
    """Milliseconds since 1970 as an aware UTC datetime."""
    return datetime.fromtimestamp(ts_ms / 1000, tz=UTC)


def cloud_event(kind: str, ident: str, subject: str, ts_ms: int, source: str = CLOUDEVENTS_SOURCE) -> Headers:
    """CloudEvents 1.0 headers, binary mode of the Kafka protocol binding."""
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", ident.encode()),
        ("ce_source", source.encode()),
        ("ce_type", f"clickwake.{kind}.v1".encode()),
        ("ce_time", utc(ts_ms).isoformat().encode()),
        ("ce_subject", subject.encode()),
        ("ce_dataschema", f"schemas/json/{kind}.json".encode()),
        ("content-type", b"application/json"),
    ]


class Outbox:
    """Output records of one batch, by topic."""

    def __init__(self) -> None:
        self.records: dict[str, tuple[Topic, list[OutRecord]]] = {}

    def add(self, topic: Topic, key: bytes, value: bytes | None, headers: Headers | None = None) -> None:
        self.records.setdefault(topic.entity, (topic, []))[1].append(OutRecord(key, value, headers or []))

    def recommendation(self, value: Recommendation, ts_ms: int) -> None:
        headers = cloud_event("recommendation", value.recommendation_id, f"{value.tenant}/{value.user_id}", ts_ms)
        self.add(topics.RECOMMENDATIONS, user_key(value.tenant, value.user_id), msgspec.json.encode(value), headers)

    def complements(self, value: Complements, ts_ms: int) -> None:
        headers = cloud_event("complements", value.recommendation_id, f"{value.tenant}/{value.user_id}", ts_ms)
        self.add(topics.COMPLEMENTS, user_key(value.tenant, value.user_id), msgspec.json.encode(value), headers)

    def segment_change(self, value: SegmentChange, ts_ms: int) -> None:
        headers = cloud_event("segment-change", value.change_id, f"{value.tenant}/{value.user_id}", ts_ms)
        self.add(topics.SEGMENT_CHANGES, user_key(value.tenant, value.user_id), msgspec.json.encode(value), headers)

    def alert(self, value: ChurnAlert, ts_ms: int) -> None:
        headers = cloud_event("churn-alert", value.alert_id, f"{value.tenant}/{value.user_id}", ts_ms)
        self.add(topics.CHURN_ALERTS, user_key(value.tenant, value.user_id), msgspec.json.encode(value), headers)

    def reminder(self, value: Reminder, ts_ms: int) -> None:
        ident = f"{value.reminder_id}-{value.state}"  # an event of its own for each state
        headers = cloud_event("reminder", ident, f"{value.tenant}/{value.user_id}", ts_ms)
        self.add(topics.REMINDERS, user_key(value.tenant, value.user_id), msgspec.json.encode(value), headers)

    def ads_refusal(self, key: bytes, said: Stated) -> None:
        """Whether a user refuses advertising from now on."""
        tenant, user = key.decode().split("/", 1)
        value = AdsRefusal(tenant=tenant, user_id=user, stated_at=utc(said.ts_ms), assumed=not said.own)
        headers = cloud_event("ads-refusal", output_id("ads-refusal", tenant, user, str(said.ts_ms)), f"{tenant}/{user}",
                              said.ts_ms)  # fmt: skip
        if said.refused:
            self.add(topics.ADS_REFUSALS, key, msgspec.json.encode(value), headers)
        else:
            self.add(topics.ADS_REFUSALS, key, None)

    def claim(self, value: identity.Claim) -> None:
        self.add(topics.IDENTITY, user_key(value.tenant, value.anonymous), identity.encode(value))

    def answer(self, value: identity.Answer) -> None:
        self.add(topics.IDENTITY, user_key(value.tenant, value.user), identity.encode(value))

    def forget(self, value: identity.Forget) -> None:
        self.add(topics.IDENTITY, user_key(value.tenant, value.holder), identity.encode(value))

    def erased_device(self, value: Erasure, key: bytes) -> None:
        """An anonymous id that goes with an erased user, onto the list."""
        self.add(topics.ERASURES, erased_subject(key), msgspec.json.encode(value))

    def dead_letter(self, reject: Reject, raw: bytes, key: bytes | None, source: Source, append_ms: int) -> None:
        """The tenant is read off the record's key, since the payload may be unreadable; times are the broker's, so that
        a second reading gives the same letter, and another record under the same offset another one. Without consent to
        analytics it says neither what was refused nor whose it was."""
        before, kept = repair_of(raw), raw
        ident = output_id("dead-letter", source.topic, str(source.partition), str(source.offset), str(append_ms))
        tenant = (key or b"").decode(errors="replace").split("/", 1)[0]
        if analytics_of(raw) is False:
            kept, key = b"", user_key(tenant, "")
        letter = DeadLetter(
            dead_letter_id=ident,
            tenant=tenant,
            kind=reject.kind,
            failure=Failure(timestamp=utc(append_ms), messages=reject.messages),
            payload=kept[:PAYLOAD_BYTES_MAX],
            payload_bytes=len(kept),
            source=source,
            attempts=1 if before is None else before.attempts + 1,
            first_seen=utc(append_ms) if before is None else before.first_seen,
        )
        headers = cloud_event("dead-letter", ident, letter.tenant, append_ms)
        self.add(topics.DEAD_LETTERS, key or ident.encode(), msgspec.json.encode(letter), headers)
