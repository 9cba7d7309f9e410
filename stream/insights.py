"""What people think: events to opinions, opinions to what is known of items and brands, and to alerts when it changes.

Two loops, each at least once with derived ids, so that a second reading says the same (`workers/insights.py` runs them):

events    1 take records; 2 keep those that are opinions, of people who let them be analysed and are not erased; 3 read their
          texts; 4 send the opinions, acknowledged; 5 commit.
opinions  1 take records, those of one brand are in one partition and so always in the same order; 2 fold each into its item
          and its brand; 3 send alerts, acknowledged; 4 send the changed states, whole, acknowledged; 5 commit.

A crash before 4 leaves nothing but alerts that are said again with the same ids. Within or after 4: a state that was written
knows the opinions it has folded by their ids. At its start, and whenever partitions are assigned, the worker reads the
states from their compacted topic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import msgspec
import structlog

from schemas.events import Event, EventTexts, ms
from schemas.events import key as user_key
from schemas.opinions import About, Opinion, Quote, SatisfactionAlert
from schemas.outputs import output_id
from schemas.unreadable import UNREADABLE
from stream.adapters.models.opinion_reader import Read
from stream.core.decode import Drop, Ok, decode
from stream.core.opinions import opinions
from stream.core.opinions.opinions import COUNTED, FORMS, Said
from stream.core.opinions.satisfaction import Change, Place, Subject, fold, fold_ticket
from stream.core.statistics.changes import Policy
from stream.outbox import utc
from stream.ports import Erasures
from stream.tracing import port as tracing

log = structlog.get_logger()
BATCH_RECORDS_MAX = 500  # of one commit: a state remembers the ids of twice as many opinions
QUOTES_MAX = 5
QUOTED_MAX = 12  # opinions looked up for them: some are gone, erased or without words

_texts = msgspec.json.Decoder(EventTexts)
_opinion = msgspec.json.Decoder(Opinion)
_subject = msgspec.msgpack.Decoder(Subject)


class Named(msgspec.Struct, frozen=True, gc=False):
    """As little of an event as tells whether it is looked at."""

    event: str | None = None


_named = msgspec.json.Decoder(Named)


class Record(tracing.Record, Protocol):
    """What is read of a Kafka record; `timestamp` is the broker's append time in ms."""

    timestamp: int
    value: bytes | None


class Heard(NamedTuple):
    """An event that is an opinion, not yet read, and its record."""

    event: Event
    said: Said
    record: Record


class Listener:
    """Step 2 of events. `brand_of(tenant, item)` asks the catalog, where the event names no brand."""

    def __init__(self, skew_max_ms: int, erasures: Erasures, brand_of: Callable[[str, str], str]) -> None:
        self._skew_max_ms, self._erasures, self._brand_of = skew_max_ms, erasures, brand_of
        self.outcomes: Counter[str] = Counter()

    def hear(self, records: Iterable[Record]) -> list[Heard]:
        """The opinions among events. What cannot be decoded has its dead letter from personalize."""
        found = []
        for record in records:
            if record.value is None or not _may_be_opinion(record.value):
                continue
            heard, outcome = self._hear(record, record.value)
            self.outcomes[outcome] += 1
            if heard is not None:
                found.append(heard)
        return found

    def _hear(self, record: Record, raw: bytes) -> tuple[Heard | None, str]:
        decoded = decode(raw, record.timestamp, self._skew_max_ms)
        if isinstance(decoded, Ok):
            event = decoded.event
        elif isinstance(decoded, Drop) and decoded.event is not None:
            event = decoded.event  # no profile is made here: consent to analytics decides
        else:
            return None, "rejected"
        consent = event.context.consent
        if consent is not None and consent.analytics is False:
            return None, "no_analytics"
        if self._erasures.covers(user_key(event.tenant, event.user), event.ts_ms):
            return None, "erased"
        said = opinions.said(event.event, bytes(_texts.decode(raw).properties))
        if said is None:
            return None, "empty"
        if not said.brand and said.item_id:
            said = said._replace(brand=self._brand_of(event.tenant, said.item_id))
        return Heard(event, said, record), "opinion"


def _may_be_opinion(raw: bytes) -> bool:
    """By the name alone: nearly all events are something else."""
    try:
        return _named.decode(raw).event in FORMS
    except UNREADABLE:
        return False


def opinion(heard: Heard, read: Read) -> tuple[bytes, Opinion]:
    """The record of an opinion: its key, by which a brand has one order, and its value."""
    event, said = heard.event, heard.said
    ident = output_id("opinion", event.tenant, event.message_id)
    value = Opinion(
        opinion_id=ident, tenant=event.tenant, user_id=event.user, event_id=event.message_id, source=said.source,
        lane=event.lane, said_at=event.timestamp, item_id=said.item_id, brand=said.brand, language=read.language,
        satisfaction=read.satisfaction, stars=said.stars, stars_read=read.stars_read, p_satisfied=read.p_satisfied,
        aspects=read.aspects, telling=read.telling, model_version=read.model_version,
    )  # fmt: skip
    return f"{event.tenant}/{said.brand or said.item_id or ident}".encode(), value


class Alerted(NamedTuple):
    """An alert, its key, and that of the opinion that made it certain."""

    key: bytes
    alert: SatisfactionAlert
    cause: bytes | None


class Folded(NamedTuple):
    """What a batch of opinions comes to: `states` are whole, by their keys on the satisfaction topic."""

    alerts: list[Alerted]
    states: dict[bytes, bytes]


class Tracker:
    """Step 2 of opinions. `quote` looks opinions up where they are on their topic; what is gone is left out."""

    def __init__(
        self, policy: Policy, erasures: Erasures, quote: Callable[[Sequence[Place]], Awaitable[list[Opinion]]]
    ) -> None:
        self._policy, self._erasures, self._quote = policy, erasures, quote
        self.states: dict[bytes, bytes] = {}
        self.outcomes: Counter[str] = Counter()

    def load(self, records: Iterable[Record]) -> None:
        """Records of the satisfaction topic, the last of a key wins."""
        self.states.update((record.key, record.value) for record in records if record.key and record.value is not None)

    async def fold(self, records: Iterable[Record]) -> Folded:
        """Nothing is kept before `keep` is told that it was written."""
        subjects: dict[bytes, Subject] = {}
        alerts = []
        for record in records:
            try:
                one = _opinion.decode(record.value or b"")
            except UNREADABLE as error:  # the sink writes its dead letter
                self.outcomes["undecodable"] += 1
                log.error("not understood", partition=record.partition, offset=record.offset, why=str(error))
                continue
            ticket = one.source not in COUNTED
            if one.satisfaction is None and not ticket:
                self.outcomes["uncounted"] += 1
                continue
            self.outcomes["ticket" if ticket else "folded"] += 1
            step = fold_ticket if ticket else fold
            counts = 0.0 if ticket or one.satisfaction is None else one.satisfaction
            place = Place(record.partition, record.offset, one.opinion_id, counts)
            for about, name in _subjects(one):
                key = f"{one.tenant}/{about}/{name}".encode()
                subject = subjects.get(key) or self._read(key)
                subjects[key] = subject
                change = step(subject, place, ms(one.said_at), self._policy, live=one.lane == "live")
                if change is not None:
                    alerts.append(Alerted(key, await self._alert(one, about, name, change), record.key))
        return Folded(alerts, {key: msgspec.msgpack.encode(one) for key, one in subjects.items()})

    def keep(self, folded: Folded) -> None:
        """The states were written."""
        self.states.update(folded.states)

    def _read(self, key: bytes) -> Subject:
        raw = self.states.get(key)
        try:
            return Subject() if raw is None else _subject.decode(raw)
        except UNREADABLE as error:  # whoever wrote it: ending would stop at the same opinion at every start
            log.error("state left out", key=key, why=str(error), next="what is thought of it is counted from here on")
            return Subject()

    async def _alert(self, last: Opinion, about: About, name: str, change: Change) -> SatisfactionAlert:
        quotes: list[Quote] = []
        for one in await self._quote(change.places[:QUOTED_MAX]):
            erased = self._erasures.covers(user_key(one.tenant, one.user_id), ms(one.said_at))
            earlier = change.reason == "tickets" and ms(one.said_at) < change.since_ms
            if one.telling and not erased and not earlier:
                quotes.append(Quote(opinion_id=one.opinion_id, sentence=one.telling, satisfaction=one.satisfaction,
                                    said_at=one.said_at))  # fmt: skip
        return SatisfactionAlert(
            alert_id=output_id("satisfaction-alert", last.tenant, about, name, str(change.number)), tenant=last.tenant,
            about=about, name=name, state="raised" if change.worse else "cleared", number=change.number,
            changed_at=utc(change.since_ms), as_of_ts=last.said_at, before=round(change.before, 4),
            after=round(change.after, 4), opinions_before=change.n_before, opinions_after=change.n_after,
            evidence=tuple(quotes[:QUOTES_MAX]), opinions_per_false_alarm=self._policy.opinions_per_false_alarm,
            reason=change.reason,
        )  # fmt: skip


def _subjects(one: Opinion) -> list[tuple[About, str]]:
    found: list[tuple[About, str]] = []
    if one.item_id:
        found.append(("item", one.item_id))
    if one.brand:
        found.append(("brand", one.brand))
    return found
