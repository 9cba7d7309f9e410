"""One record to its rows. Total: any bytes give rows, a complaint or a reason to skip, never an exception.

What personalize rejects is not stored as an event: its dead letter is the one trace of it, so that every input is in
exactly one of the two tables. Both call the same `stream.core.decode` with the broker's time, so both decide alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol, TypeVar

import msgspec

from schemas.catalog import Item
from schemas.dead_letter import DeadLetter, Message
from schemas.events import ORDER_COMPLETED, ORDER_REFUNDED, Event, EventTexts, Product, key, ms, number
from schemas.opinions import Opinion, SatisfactionAlert
from schemas.outputs import (
    ChurnAlert,
    Complements,
    Decision,
    DeliveryRecord,
    Expected,
    Offered,
    Recommendation,
    Reminder,
    SegmentChange,
)
from schemas.traceparent import trace_id
from schemas.unreadable import UNREADABLE
from stream.core.decode import Drop, Ok, Reject, decode, message_of
from stream.sink.tables import (
    CHURN_ALERTS,
    COMPLEMENTS,
    DEAD_LETTERS,
    DECISIONS,
    DELIVERIES,
    EVENT_PRODUCTS,
    EVENTS,
    ITEMS,
    OFFER_DECISIONS,
    OPINIONS,
    RECOMMENDATIONS,
    REMINDERS,
    SATISFACTION_ALERTS,
    SEGMENT_CHANGES,
    Row,
    Table,
)

CLAMP_FIRST_S = 946_684_800  # 2000-01-01: a broken client clock must not open a partition for every month since 1970
CLAMP_LAST_S = 4_102_444_799  # 2099-12-31 23:59:59
MINUTE_MS = 60_000
OF_DATA_SET = re.compile(r"[A-Za-z0-9_.-]+:[0-9]+")  # a message id, as the column `source` reads it
NO_JSON = "{}"
T = TypeVar("T")


class Record(Protocol):
    """What is read of a Kafka record; `timestamp` is the broker's append time in ms."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


class Rows(msgspec.Struct, frozen=True):
    """`user`: key of the user they are about, at `ts_ms`; empty where they are about nobody. `device`: key of the anonymous
    id that stands beside a user's in a row of events."""

    rows: tuple[tuple[Table, Row], ...]
    user: bytes = b""
    ts_ms: int = 0
    device: bytes = b""

    def without_device(self) -> Rows:
        """The same without that id, which stands in the first row alone."""
        (table, row), *others = self.rows
        row = tuple("" if name == "anonymous_id" else value for name, value in zip(table.columns, row, strict=True))
        return msgspec.structs.replace(self, rows=((table, row), *others), device=b"")


class Skip(msgspec.Struct, frozen=True):
    """Nothing to store and nobody to tell: `reason` is counted."""

    reason: str


class Complaint(msgspec.Struct, frozen=True):
    """Becomes a dead letter of kind sink_rejected: nobody else reads this topic and would write one."""

    messages: tuple[Message, ...]


Outcome = Rows | Skip | Complaint
ToRows = Callable[[Record], Outcome]

_texts_decoder = msgspec.json.Decoder(EventTexts)


def _place(record: Record) -> tuple[int, int, int, str]:
    return record.partition, record.offset, record.timestamp, trace_id(record.headers)


def _ms_or_none(instant: datetime | None) -> int | None:
    return None if instant is None else ms(instant)


def clamp_s(ts_ms: int) -> int:
    """Seconds since 1970 within 2000..2099.

    >>> clamp_s(-5), clamp_s(1_700_000_000_999), clamp_s(10**15)
    (946684800, 1700000000, 4102444799)
    """
    return min(max(ts_ms // 1000, CLAMP_FIRST_S), CLAMP_LAST_S)


def event_rows(skew_max_ms: int, hashed: Callable[[str, str], str]) -> ToRows:
    """Rows of the events topic; `skew_max_ms` must be personalize's. `hashed(tenant, message id)`: the id of an event that
    is kept without whose it is."""

    def to_rows(record: Record) -> Outcome:
        raw = record.value
        decoded = decode(raw, record.timestamp, skew_max_ms)
        if isinstance(decoded, Ok):
            event, ts_ms = decoded.event, decoded.ts_ms
        elif isinstance(decoded, Reject):
            return Skip(decoded.kind)  # personalize writes its dead letter
        elif isinstance(decoded, Drop) and decoded.event is not None:
            event = decoded.event  # no profile without consent to personalization, but the statistics
            ts_ms = event.ts_ms
        else:
            return Skip(decoded.reason)
        assert raw is not None
        return _event(event, ts_ms, _texts_decoder.decode(raw), record, hashed)

    return to_rows


def line_revenue(line: Product) -> float | None:
    """
    >>> line_revenue(Product(product_id="a", price=2.5, quantity=2)), line_revenue(Product(product_id="a", price=2.5))
    (5.0, 2.5)
    """
    return None if line.price is None else line.price * (1 if line.quantity is None else line.quantity)


def _revenues(event: Event, lines: tuple[Product, ...]) -> tuple[float | None, list[float | None]]:
    """Revenue of the event and of each line; each is filled from the other where that is exact."""
    total, of_lines = event.properties.revenue, [line_revenue(line) for line in lines]
    if total is None and event.event == ORDER_REFUNDED:
        total = number(event.properties.total)
    if event.event in (ORDER_COMPLETED, ORDER_REFUNDED) and lines:
        known = [amount for amount in of_lines if amount is not None]
        if total is None and len(known) == len(lines):
            total = sum(known)
        elif total is not None and of_lines == [None]:
            of_lines = [total]
    return total, of_lines


def _minute(at_ms: int) -> int:
    """Where the time itself would say, beside what was recommended as of it, whose an event is."""
    return at_ms - at_ms % MINUTE_MS


def _hidden_id(event: Event, hashed: Callable[[str, str], str]) -> str:
    """The name of the data set stays before the hash: by that, `accounting` counts what an import has brought."""
    ident = hashed(event.tenant, event.message_id)
    if event.lane != "import" or not OF_DATA_SET.fullmatch(event.message_id):
        return ident
    return f"{event.message_id.partition(':')[0]}:{int.from_bytes(ident.encode())}"


def _event(
    event: Event, ts_ms: int, texts: EventTexts, record: Record, hashed: Callable[[str, str], str]
) -> Rows:  # fmt: skip
    p, context = event.properties, event.context
    anonymised = context.consent is not None and context.consent.analytics is False  # only counts that name nobody are kept
    user_id, anonymous_id = ("", "") if anonymised else (event.user_id or "", event.anonymous_id or "")
    user, session_id = user_id or anonymous_id, "" if anonymised else context.session_id or ""
    happened_ms, original_ms, received_ms = ts_ms, _ms_or_none(event.original_timestamp), _ms_or_none(event.received_at)
    message_id = event.message_id
    if anonymised:
        message_id, happened_ms = _hidden_id(event, hashed), _minute(ts_ms)
        original_ms, received_ms = (None if one is None else _minute(one) for one in (original_ms, received_ms))
    partition_s = clamp_s(happened_ms if original_ms is None else original_ms)
    order_id, name = "" if anonymised else p.order_id or "", event.event or ""
    kafka = (record.partition, record.offset, record.timestamp)
    trace = trace_id(record.headers) if record.headers and not anonymised else ""
    lines = p.products
    if not lines and p.product_id is not None:
        lines = (Product(product_id=p.product_id, price=p.price, quantity=p.quantity),)
    revenue, revenues = _revenues(event, lines)
    recommendation_id = "" if anonymised else p.recommendation_id or ""
    properties, traits, free = (NO_JSON,) * 3 if anonymised else (
        str(texts.properties, "utf-8"), str(texts.traits, "utf-8"), str(texts.context, "utf-8"))
    row = (
        event.tenant, message_id, event.lane, event.type, name,
        happened_ms, original_ms, received_ms, partition_s,
        user_id, anonymous_id, user, session_id,
        p.product_id or "", p.quantity, p.price, p.currency or "",
        order_id, revenue, "" if anonymised else p.query or "", number(p.rating),
        recommendation_id, anonymised, properties, traits, free, *kafka, trace,
    )
    products = tuple(
        (EVENT_PRODUCTS, (
            event.tenant, message_id, number, event.lane, name, happened_ms, partition_s, user, session_id,
            line.product_id, line.name or "", line.category or "", line.brand or "", line.quantity, line.price, amount,
            order_id, recommendation_id, *kafka))
        for number, (line, amount) in enumerate(zip(lines, revenues, strict=True)))
    device = key(event.tenant, anonymous_id) if user_id and anonymous_id else b""
    return Rows(((EVENTS, row), *products), key(event.tenant, event.user), ts_ms, device)


def _typed(kind: type[T], make: Callable[[T, Record], Rows], tombstone: ToRows | None = None) -> ToRows:
    """Rows of a topic of `kind` as JSON."""
    decoder = msgspec.json.Decoder(kind)

    def to_rows(record: Record) -> Outcome:
        if record.value is None:
            return Skip("tombstone") if tombstone is None else tombstone(record)
        try:
            return make(decoder.decode(record.value), record)
        except msgspec.ValidationError as error:
            return Complaint((message_of(error),))
        except UNREADABLE as error:
            return Complaint((Message(path="", keyword="json", message=str(error)),))

    return to_rows


def _recommendation(value: Recommendation, record: Record) -> Rows:
    as_of_ms = ms(value.as_of_ts)
    items = value.items
    return Rows(((RECOMMENDATIONS, (
        value.tenant, value.recommendation_id, value.user_id, [item.item_id for item in items],
        [item.score for item in items], [item.source for item in items],
        [msgspec.json.encode(item.reasons).decode() for item in items], value.as_of_event_id,
        as_of_ms, value.model_version, value.degraded or "", clamp_s(as_of_ms),
        *_place(record))),), key(value.tenant, value.user_id), as_of_ms)


def _complements(value: Complements, record: Record) -> Rows:
    as_of_ms, items = ms(value.as_of_ts), value.items
    return Rows(((COMPLEMENTS, (
        value.tenant, value.recommendation_id, value.user_id, list(value.basket), [item.item_id for item in items],
        [item.score for item in items], [item.source for item in items],
        [msgspec.json.encode(item.reasons).decode() for item in items], value.as_of_event_id, as_of_ms,
        value.model_version, clamp_s(as_of_ms),
        *_place(record))),), key(value.tenant, value.user_id), as_of_ms)


def _decision(value: Decision, record: Record) -> Rows:
    items, as_of, served_ms = value.items, value.as_of_ts, ms(value.served_at)
    known_ms = served_ms if as_of is None else ms(as_of)  # made by what was before an erasure, it is not stored after that
    if value.offer is not None:
        return _offer_decision(value, value.offer, record, known_ms)
    return Rows(((DECISIONS, (
        value.tenant, value.recommendation_id, value.user_id, value.scenario, [item.item_id for item in items],
        [item.score for item in items], [item.source for item in items],
        [msgspec.json.encode(item.reasons).decode() for item in items], value.candidates,
        msgspec.json.encode(value.request).decode(), value.as_of_event_id, None if as_of is None else ms(as_of), served_ms,
        value.model_version, value.degraded or "", value.experiment, value.arm, clamp_s(served_ms),
        *_place(record), NO_JSON if value.applied is None else msgspec.json.encode(value.applied).decode(),
        list(value.propensities))),), key(value.tenant, value.user_id), known_ms)


def _offer_decision(value: Decision, offer: Offered, record: Record, known_ms: int) -> Rows:
    as_of, served_ms, cost, budget = value.as_of_ts, ms(value.served_at), offer.cost, offer.budget
    return Rows(((OFFER_DECISIONS, (
        value.tenant, value.recommendation_id, value.user_id, offer.placement, offer.offer_id, offer.propensity,
        offer.candidates, offer.refused, offer.holdout, list(offer.about), list(offer.groups), offer.reward,
        offer.window_ms // 1000, cost.impression, cost.click, cost.order, budget.impressions, budget.impressions_per_day,
        budget.money, budget.money_per_day, offer.rules_version, offer.policy_version,
        value.as_of_event_id, None if as_of is None else ms(as_of), served_ms, clamp_s(served_ms),
        *_place(record), offer.text)),), key(value.tenant, value.user_id), known_ms)


def _segment_change(value: SegmentChange, record: Record) -> Rows:
    row = segment_change_row(value, _place(record))
    return Rows(((SEGMENT_CHANGES, row),), key(value.tenant, value.user_id), ms(value.as_of_ts))


def segment_change_row(value: SegmentChange, place: tuple[int, int, int, str]) -> Row:
    """`place`: partition, offset, broker's time and trace."""
    as_of_ms = ms(value.as_of_ts)
    return (
        value.tenant, value.change_id, value.user_id, value.segment, value.change, value.number, value.values,
        value.as_of_event_id, as_of_ms, value.rules_version, value.model_version, clamp_s(as_of_ms), *place,
        0 if value.profile_since is None else ms(value.profile_since),
    )  # fmt: skip


def _churn_alert(value: ChurnAlert, record: Record) -> Rows:
    as_of_ms = ms(value.as_of_ts)
    return Rows(((CHURN_ALERTS, (
        value.tenant, value.alert_id, value.user_id, value.state, value.probability,
        value.interval[0], value.interval[1], value.horizon_days, list(value.reasons),
        ms(value.last_event_ts), as_of_ms, value.model_version, clamp_s(as_of_ms),
        *_place(record), list(value.features))),),
        key(value.tenant, value.user_id), as_of_ms)


def _expected(value: Expected | None) -> tuple[float | None, float | None, float | None, float | None, str]:
    if value is None:
        return None, None, None, None, ""
    return value.value, value.cost, value.uplift, value.gain, value.model_version


def _reminder(value: Reminder, record: Record) -> Rows:
    as_of_ms, from_ms = ms(value.as_of_ts), ms(value.window_from)
    return Rows(((REMINDERS, (
        value.tenant, value.reminder_id, value.user_id, value.state, value.item_id, value.category,
        ms(value.last_bought_ts), value.interval_days, from_ms, ms(value.window_to), value.probability,
        list(value.reasons), as_of_ms, value.model_version, clamp_s(from_ms),
        *_place(record))),), key(value.tenant, value.user_id), as_of_ms)


def _delivery(value: DeliveryRecord, record: Record) -> Rows:
    at_ms = ms(value.at)
    return Rows(((DELIVERIES, (
        value.tenant, value.delivery_id, value.user_id, value.delivery, value.channel, value.about_kind, value.about_id,
        value.status, at_ms, value.attempts, value.error, clamp_s(at_ms),
        *_place(record), _ms_or_none(value.decided_at), value.propensity,
        *_expected(value.expected), value.reason, value.thing)),),
        key(value.tenant, value.user_id) if value.user_id else b"", at_ms)


def _opinion(value: Opinion, record: Record) -> Rows:
    said_ms, about = ms(value.said_at), value.aspects
    return Rows(((OPINIONS, (
        value.tenant, value.opinion_id, value.user_id, value.event_id, value.source, value.lane, said_ms, value.item_id,
        value.brand, value.language, value.satisfaction, value.stars, value.stars_read, value.p_satisfied,
        [one.aspect for one in about], [", ".join(one.words) for one in about], [one.sentence for one in about],
        [one.p_satisfied for one in about], value.telling, value.model_version, clamp_s(said_ms),
        record.partition, record.offset, record.timestamp)),), key(value.tenant, value.user_id), said_ms)


def _satisfaction_alert(value: SatisfactionAlert, record: Record) -> Rows:
    """Quotes are not stored: they are found by their ids in the opinions, and go with them when a user is erased."""
    as_of_ms = ms(value.as_of_ts)
    return Rows(((SATISFACTION_ALERTS, (
        value.tenant, value.alert_id, value.about, value.name, value.state, value.number, ms(value.changed_at), as_of_ms,
        value.before, value.after, value.opinions_before, value.opinions_after,
        [one.opinion_id for one in value.evidence], value.opinions_per_false_alarm, clamp_s(as_of_ms),
        record.partition, record.offset, record.timestamp, value.reason)),))


def _dead_letter(value: DeadLetter, record: Record) -> Rows:
    complaints = value.failure.messages
    first_seen_ms = ms(value.first_seen)
    return Rows(((DEAD_LETTERS, (
        value.tenant, value.dead_letter_id, value.kind, ms(value.failure.timestamp), [c.path for c in complaints],
        [c.keyword for c in complaints], [c.message for c in complaints], value.payload.decode(errors="replace"),
        value.payload_bytes, value.source.topic, value.source.partition, value.source.offset, value.attempts,
        first_seen_ms, clamp_s(first_seen_ms), *_place(record))),),
        record.key or b"", first_seen_ms)


def _item(value: Item, record: Record) -> Rows:
    return Rows(((ITEMS, (
        value.tenant, value.item_id, value.title, value.brand, value.category,
        value.description, value.price, value.url or "", value.image_url or "", value.in_stock,
        value.blocked, value.pinned, _ms_or_none(value.updated_at), 0,
        record.partition, record.offset, record.timestamp)),))


def _item_removed(record: Record) -> Outcome:
    """A tombstone: the key `tenant/item` says which item left the catalog."""
    tenant, separator, item_id = (record.key or b"").decode(errors="replace").partition("/")
    if not (tenant and separator and item_id):
        return Skip("tombstone_without_key")
    return Rows(((ITEMS, (
        tenant, item_id, "", "", "", "", None, "", "", False, False, False, None, 1,
        record.partition, record.offset, record.timestamp)),))


recommendation_rows = _typed(Recommendation, _recommendation)
complements_rows = _typed(Complements, _complements)
decision_rows = _typed(Decision, _decision)
segment_change_rows = _typed(SegmentChange, _segment_change)
churn_alert_rows = _typed(ChurnAlert, _churn_alert)
reminder_rows = _typed(Reminder, _reminder)
delivery_rows = _typed(DeliveryRecord, _delivery)
opinion_rows = _typed(Opinion, _opinion)
satisfaction_alert_rows = _typed(SatisfactionAlert, _satisfaction_alert)
dead_letter_rows = _typed(DeadLetter, _dead_letter)
item_rows = _typed(Item, _item, tombstone=_item_removed)
