"""What the delivery worker counts, for Prometheus. A message counts when its record is on the log."""

from __future__ import annotations

from datetime import datetime

from prometheus_client import Counter, Gauge, Histogram

from schemas.outputs import DeliveryRecord
from stream.delivery.rules import DeliveryFile

MESSAGES = Counter("clickwake_deliveries", "Messages by what became of them; reason: which cap, why suppressed, or what a "
                                           "deferred one waits for", ["delivery", "status", "reason"])
RETRIES = Counter("clickwake_delivery_retries", "Tries repeated at once, since the channel did not take the message",
                  ["delivery", "channel"])
WAITING = Gauge("clickwake_deliveries_waiting", "Messages that wait for the end of quiet hours, or for their channel",
                ["delivery", "waits_for"])
SECONDS = Histogram("clickwake_delivery_seconds", "From the time that what was said is about to its message, sent",
                    ["delivery", "waited_for"], buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600, 3_600, 43_200, 86_400))
CHANNEL_UP = Gauge("clickwake_delivery_channel_up", "1 while a channel is asked; 0 from the third message in a row that it "
                                                    "did not take until it answers", ["channel"])
LAG = Gauge("clickwake_delivery_lag", "Records that are not handled yet", ["topic"])


def begin(file: DeliveryFile) -> None:
    """What can be alerted on is there before it first happens: a counter that begins at 1 has not increased. Of deliveries
    and channels that a file before this one had, nothing stands still."""
    WAITING.clear()
    CHANNEL_UP.clear()
    for one in file.deliveries:
        for status in ("sent", "failed"):
            MESSAGES.labels(one.name, status, "")
        RETRIES.labels(one.name, one.channel)
        CHANNEL_UP.labels(one.channel).set(1)


def became(record: DeliveryRecord, waits_for: str) -> None:
    """A record has been logged. `waits_for`: what a deferred one does."""
    reason = record.reason if record.status in ("capped", "suppressed") else ""  # other reasons name amounts
    MESSAGES.labels(record.delivery, record.status, waits_for if record.status == "deferred" else reason).inc()


def sent(record: DeliveryRecord, said_at: datetime, waited_for: str) -> None:
    """A message has been sent. `waited_for`: what it did last, if it did."""
    SECONDS.labels(record.delivery, waited_for or "nothing").observe(max(0.0, (record.at - said_at).total_seconds()))
