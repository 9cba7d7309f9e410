"""The topic table: the one place that says which topics exist, how they are keyed, kept and cut up.

The admin client creates them from here (`clickwake topics`); Faust declares nothing.
"""

from __future__ import annotations

from typing import Literal

import msgspec

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
FOREVER_MS = 2**63 - 1


class Topic(msgspec.Struct, frozen=True, kw_only=True):
    """`by_user` topics share the partition count, so that one worker owns a user in all of them."""

    entity: str
    version: int = 1
    key: str
    by_user: bool = False
    partitions: int = 1  # for topics that are not by_user
    cleanup: Literal["delete", "compact"] = "delete"
    retention_ms: int = 7 * DAY_MS
    retention_days_min: int = 2  # settings may name no fewer: a segment is open for a day
    compaction_lag_ms: int = 0  # how long a record stays although a later one of its key is there
    message_bytes_max: int = 1_048_576
    why: str

    def name(self, prefix: str) -> str:
        """
        >>> EVENTS.name("clickwake")
        'clickwake.events.v1'
        """
        return f"{prefix}.{self.entity}.v{self.version}"

    def config(self, segment_ms: int = DAY_MS, delete_retention_ms: int = DAY_MS) -> dict[str, str]:
        """Topic configuration for the admin client. LogAppendTime always: event time travels in the payload only,
        because the broker deletes by record time and refuses records from the future with their whole batch."""
        config = {
            "cleanup.policy": self.cleanup,
            "message.timestamp.type": "LogAppendTime",
            "max.message.bytes": str(self.message_bytes_max),
            "segment.ms": str(segment_ms),
        }
        if self.cleanup == "compact":
            config["max.compaction.lag.ms"] = str(max(DAY_MS, self.compaction_lag_ms))  # the broker refuses less
            config["min.compaction.lag.ms"] = str(self.compaction_lag_ms)
            config["delete.retention.ms"] = str(delete_retention_ms)
            config["min.cleanable.dirty.ratio"] = "0.1"
        else:
            config["retention.ms"] = str(self.retention_ms)
        return config


EVENTS = Topic(entity="events", key="tenant/user", by_user=True, retention_ms=30 * DAY_MS, retention_days_min=8,
               why="every accepted event; long enough to rebuild the sink after a lost ClickHouse")
IDENTITY = Topic(entity="identity", key="tenant/user", by_user=True, retention_ms=30 * DAY_MS,
                 why="claims of anonymous histories and the answers to them; traits of before a rule")
ITEMS = Topic(entity="items", key="tenant/item", partitions=4, cleanup="compact", why="the catalog")
ITEM_VECTORS = Topic(entity="item-vectors", key="space/tenant/item", partitions=4, cleanup="compact",
                     why="encoded once in the fleet, read by everybody")
ITEM_COUNTS = Topic(entity="item-counts", key="partition/tenant/item", partitions=4, cleanup="compact",
                    compaction_lag_ms=HOUR_MS,
                    why="absolute totals a partition owner publishes; readers sum over partitions")
RECOMMENDATIONS = Topic(entity="recommendations", key="tenant/user", by_user=True, why="outputs")
COMPLEMENTS = Topic(entity="complements", key="tenant/user", by_user=True, why="outputs")
DECISIONS = Topic(entity="decisions", key="tenant/user", by_user=True, retention_ms=30 * DAY_MS, retention_days_min=8,
                  why="answers of the read API, as served; what comes of an offer counts for a week at most")
SEGMENT_CHANGES = Topic(entity="segment-changes", key="tenant/user", by_user=True, retention_ms=30 * DAY_MS, why="outputs")
CHURN_ALERTS = Topic(entity="churn-alerts", key="tenant/user", by_user=True, retention_ms=30 * DAY_MS, why="outputs")
REMINDERS = Topic(entity="reminders", key="tenant/user", by_user=True, retention_ms=30 * DAY_MS, why="outputs")
ADS_REFUSALS = Topic(entity="ads-refusals", key="tenant/user", by_user=True, cleanup="compact",
                     why="who refuses advertising, read whole by who sends it; a tombstone where that is over")
DELIVERIES = Topic(entity="deliveries", key="tenant/user", by_user=True, retention_ms=30 * DAY_MS, retention_days_min=30,
                   why="what went to whom, and what waits: caps are known from it")
OFFERS = Topic(entity="offers", key="tenant/user, or #placement/tenant/placement, or #positions", cleanup="compact",
               message_bytes_max=4 * 1_048_576,
               why="what was learned and spent by placement, and what users saw: absolute, in transactions with the offsets")
OPINIONS = Topic(entity="opinions", key="tenant/brand, else tenant/item", partitions=4, retention_ms=30 * DAY_MS,
                 why="what people think, read from events; a brand's in one order, so that changes are found the same again")
SATISFACTION = Topic(entity="satisfaction", key="tenant/about/name", partitions=4, cleanup="compact",
                     why="satisfaction with each item and brand: state of the insights worker, and what ranking reads")
SATISFACTION_ALERTS = Topic(entity="satisfaction-alerts", key="tenant/about/name", partitions=4, retention_ms=30 * DAY_MS,
                            why="outputs")
DEAD_LETTERS = Topic(entity="dead-letters", key="tenant/user", by_user=True, retention_ms=30 * DAY_MS,
                     message_bytes_max=2 * 1_048_576, why="inputs that could not be processed, with the reason")
ERASURES = Topic(entity="erasures", key="tenant/hash of tenant/user", partitions=4, cleanup="compact",
                 why="users to forget, and the list by which late events are told")
MODELS = Topic(entity="models", key="current", cleanup="compact", compaction_lag_ms=FOREVER_MS,
               why="which bundle is to run; old announcements stay, so that none of them said again is all that is left")
STATE = Topic(entity="personalize-state", key="tenant/user", by_user=True, cleanup="compact", compaction_lag_ms=HOUR_MS,
              message_bytes_max=2 * 1_048_576, why="changelog of the user state: the store is rebuilt from it")

OUTPUTS = (RECOMMENDATIONS, COMPLEMENTS, DECISIONS, SEGMENT_CHANGES, CHURN_ALERTS, REMINDERS, DELIVERIES, OPINIONS,
           SATISFACTION_ALERTS, DEAD_LETTERS)
TOPICS = (EVENTS, IDENTITY, ITEMS, ITEM_VECTORS, ITEM_COUNTS, RECOMMENDATIONS, COMPLEMENTS, DECISIONS, SEGMENT_CHANGES,
          CHURN_ALERTS, REMINDERS, ADS_REFUSALS, DELIVERIES, OFFERS, OPINIONS, SATISFACTION, SATISFACTION_ALERTS,
          DEAD_LETTERS, ERASURES, MODELS, STATE)
KEPT_FOR_A_TIME = {one.entity: one for one in TOPICS if one.cleanup == "delete"}
