"""How much one person gets of all deliveries together. Pure.

What counts is advertising to users: what was sent, what waits and will be sent, and what would have been sent to somebody
held out of it. The last so that the lot of one delivery changes nothing else: were the held-out given another
message in its place, they would be compared by that one too. What failed, or was left out since it would not pay, leaves its
place to others. Services and messages to the shop's own people neither count nor are held back.

A cap is asked before the lot is drawn, so the held-out of a delivery are a random share of those for whom there was room. As
what waits has its place, nothing that was drawn for sending is taken back for another message.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from schemas.outputs import DeliveryRecord
from stream.delivery.decide import would_be_sent
from stream.delivery.rules import Cap, Delivery


class Counted(NamedTuple):
    """A message that counts. `at`: when it was sent, or held out; None while it waits."""

    at: datetime | None
    channel: str
    important: bool


def counted(delivery: Delivery | None, record: DeliveryRecord) -> Counted | None:
    """What a record of the log counts as; None for nothing. `delivery`: as the file has it now, None where it has it no
    more: what it sent was received all the same, as advertising."""
    if not record.user_id or (delivery is not None and not delivery.advertises):
        return None
    important = delivery is not None and delivery.priority == "high"
    if record.status in ("held_out", "deferred"):
        has_place = delivery is None or would_be_sent(delivery, record.subject, record.propensity)
    else:
        has_place = record.status == "sent"
    at = None if record.status == "deferred" else record.at
    return Counted(at, record.channel, important) if has_place else None


def full(caps: Sequence[Cap], delivery: Delivery, got: Iterable[Counted], now: datetime) -> str:
    """The first cap, in words, that leaves no room for one more message of a delivery to who got so many; empty when all do.

    >>> from datetime import UTC
    >>> now, news = datetime(2026, 1, 2, tzinfo=UTC), Delivery(name="news", channel="crm", about="churn")
    >>> full([Cap(messages=1, days=1)], news, [Counted(None, "crm", False)], now)
    'cap over all: at most 1 message to a person in 1 day'
    >>> full([Cap(messages=1, days=1)], news, [Counted(now - timedelta(days=1), "crm", False)], now)
    ''
    """
    got = list(got)
    for cap in caps:
        if not cap.holds(delivery):
            continue
        since = now - timedelta(days=cap.days)
        inside = [one for one in got
                  if (not cap.channels or one.channel in cap.channels) and (one.at is None or one.at > since)]  # fmt: skip
        if len(inside) >= cap.messages:
            return f"cap over all: {cap}"
        if delivery.priority != "high" and sum(not one.important for one in inside) >= cap.messages - cap.kept:
            return f"cap over all: {cap}, {cap.kept} of them kept for high priority"
    return ""
