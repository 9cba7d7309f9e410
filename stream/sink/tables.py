"""The columns the sink writes, in order, with the types it sends them as.

Plain String stands in for LowCardinality(String): the server builds the dictionary faster than Python does. Times are
sent as integers (ms since 1970), for the same reason. A test compares the names with the migrations.
"""

from __future__ import annotations

from typing import Any

import msgspec

_MS, _MS_OR_NULL, _S = "DateTime64(3, 'UTC')", "Nullable(DateTime64(3, 'UTC'))", "DateTime('UTC')"
_KAFKA = {"kafka_partition": "Int32", "kafka_offset": "Int64", "broker_time": _MS}
_TRACE = {"trace_id": "String"}

Row = tuple[Any, ...]


class Table(msgspec.Struct, frozen=True):
    """`month_column` is the column that PARTITION BY reads, None for a table without partitions."""

    name: str
    columns: dict[str, str]
    month_column: str | None = "partition_time"

    @property
    def month_index(self) -> int | None:
        return None if self.month_column is None else list(self.columns).index(self.month_column)


EVENTS = Table("events", {
    "tenant": "String", "message_id": "String", "lane": "String", "type": "String", "event": "String",
    "timestamp": _MS, "original_timestamp": _MS_OR_NULL, "received_at": _MS_OR_NULL, "partition_time": _S,
    "user_id": "String", "anonymous_id": "String", "user": "String", "session_id": "String",
    "product_id": "String", "quantity": "Nullable(Float64)", "price": "Nullable(Float64)", "currency": "String",
    "order_id": "String", "revenue": "Nullable(Float64)", "query": "String", "rating": "Nullable(Float64)",
    "recommendation_id": "String", "anonymised": "Bool", "properties": "String", "traits": "String", "context": "String",
    **_KAFKA, **_TRACE,
})
EVENT_PRODUCTS = Table("event_products", {
    "tenant": "String", "message_id": "String", "line": "UInt16", "lane": "String", "event": "String", "timestamp": _MS,
    "partition_time": _S, "user": "String", "session_id": "String", "product_id": "String", "name": "String",
    "category": "String", "brand": "String", "quantity": "Nullable(Float64)", "price": "Nullable(Float64)",
    "revenue": "Nullable(Float64)", "order_id": "String", "recommendation_id": "String",
    **_KAFKA,
})
ITEMS = Table("items", {
    "tenant": "String", "item_id": "String", "title": "String", "brand": "String", "category": "String",
    "description": "String", "price": "Nullable(Float64)", "url": "String", "image_url": "String", "in_stock": "Bool",
    "blocked": "Bool", "pinned": "Bool", "updated_at": _MS_OR_NULL, "removed": "UInt8",
    **_KAFKA,
}, month_column=None)
RECOMMENDATIONS = Table("recommendations", {
    "tenant": "String", "recommendation_id": "String", "user_id": "String", "item_ids": "Array(String)",
    "scores": "Array(Float64)", "sources": "Array(String)", "reasons": "Array(String)", "as_of_event_id": "String",
    "as_of_ts": _MS, "model_version": "String", "degraded": "String", "partition_time": _S,
    **_KAFKA, **_TRACE,
})
COMPLEMENTS = Table("complements", {
    "tenant": "String", "recommendation_id": "String", "user_id": "String", "basket": "Array(String)",
    "item_ids": "Array(String)", "scores": "Array(Float64)", "sources": "Array(String)", "reasons": "Array(String)",
    "as_of_event_id": "String", "as_of_ts": _MS, "model_version": "String", "partition_time": _S,
    **_KAFKA, **_TRACE,
})
DECISIONS = Table("decisions", {
    "tenant": "String", "recommendation_id": "String", "user_id": "String", "scenario": "String",
    "item_ids": "Array(String)", "scores": "Array(Float64)", "sources": "Array(String)", "reasons": "Array(String)",
    "candidates": "UInt32", "request": "String", "as_of_event_id": "String", "as_of_ts": _MS_OR_NULL, "served_at": _MS,
    "model_version": "String", "degraded": "String", "experiment": "String", "arm": "String", "partition_time": _S,
    **_KAFKA, **_TRACE, "applied": "String", "propensities": "Array(Float64)",
})
SEGMENT_CHANGES = Table("segment_changes", {
    "tenant": "String", "change_id": "String", "user_id": "String", "segment": "String", "change": "String",
    "number": "UInt32", "values": "Map(String, Float64)", "as_of_event_id": "String", "as_of_ts": _MS,
    "rules_version": "String", "model_version": "String", "partition_time": _S,
    **_KAFKA, **_TRACE, "profile_since": _MS,
})
CHURN_ALERTS = Table("churn_alerts", {
    "tenant": "String", "alert_id": "String", "user_id": "String", "state": "String", "probability": "Float64",
    "probability_low": "Float64", "probability_high": "Float64", "horizon_days": "UInt16", "reasons": "Array(String)",
    "last_event_ts": _MS, "as_of_ts": _MS, "model_version": "String", "partition_time": _S,
    **_KAFKA, **_TRACE, "features": "Array(Float32)",
})
REMINDERS = Table("reminders", {
    "tenant": "String", "reminder_id": "String", "user_id": "String", "state": "String", "item_id": "String",
    "category": "String", "last_bought_ts": _MS, "interval_days": "Float64", "window_from": _MS, "window_to": _MS,
    "probability": "Float64", "reasons": "Array(String)", "as_of_ts": _MS, "model_version": "String", "partition_time": _S,
    **_KAFKA, **_TRACE,
})
DELIVERIES = Table("deliveries", {
    "tenant": "String", "delivery_id": "String", "user_id": "String", "delivery": "String", "channel": "String",
    "about_kind": "String", "about_id": "String", "status": "String", "at": _MS, "attempts": "UInt32", "error": "String",
    "partition_time": _S,
    **_KAFKA, **_TRACE, "decided_at": _MS_OR_NULL, "propensity": "Nullable(Float64)", "expected_value": "Nullable(Float64)",
    "expected_cost": "Nullable(Float64)", "expected_uplift": "Nullable(Float64)", "expected_gain": "Nullable(Float64)",
    "gain_model": "String", "reason": "String", "thing": "String",
})
OFFER_DECISIONS = Table("offer_decisions", {
    "tenant": "String", "recommendation_id": "String", "user_id": "String", "placement": "String", "offer_id": "String",
    "propensity": "Float64", "candidates": "Map(String, Float64)", "refused": "Map(String, String)", "holdout": "Bool",
    "about": "Array(String)", "groups": "Array(String)", "reward": "String", "window_s": "UInt32",
    "cost_impression": "Float64", "cost_click": "Float64", "cost_order": "Float64",
    "budget_impressions": "Nullable(UInt64)", "budget_impressions_per_day": "Nullable(UInt64)",
    "budget_money": "Nullable(Float64)", "budget_money_per_day": "Nullable(Float64)", "rules_version": "String",
    "policy_version": "String", "as_of_event_id": "String", "as_of_ts": _MS_OR_NULL, "served_at": _MS, "partition_time": _S,
    **_KAFKA, **_TRACE, "text": "String",
})
OPINIONS = Table("opinions", {
    "tenant": "String", "opinion_id": "String", "user_id": "String", "event_id": "String", "source": "String",
    "lane": "String", "said_at": _MS, "item_id": "String", "brand": "String", "language": "String",
    "satisfaction": "Nullable(Float64)", "stars": "Nullable(Float64)", "stars_read": "Nullable(Float64)",
    "p_satisfied": "Nullable(Float64)", "aspects": "Array(String)", "aspect_words": "Array(String)",
    "aspect_sentences": "Array(String)", "aspect_p_satisfied": "Array(Nullable(Float64))", "telling": "String",
    "model_version": "String", "partition_time": _S,
    **_KAFKA,
})
SATISFACTION_ALERTS = Table("satisfaction_alerts", {
    "tenant": "String", "alert_id": "String", "about": "String", "name": "String", "state": "String", "number": "UInt32",
    "changed_at": _MS, "as_of_ts": _MS, "before": "Float64", "after": "Float64", "opinions_before": "UInt32",
    "opinions_after": "UInt32", "evidence_ids": "Array(String)", "opinions_per_false_alarm": "UInt32", "partition_time": _S,
    **_KAFKA, "reason": "String",
})
DEAD_LETTERS = Table("dead_letters", {
    "tenant": "String", "dead_letter_id": "String", "kind": "String", "failed_at": _MS, "paths": "Array(String)",
    "keywords": "Array(String)", "messages": "Array(String)", "payload": "String", "payload_bytes": "UInt64",
    "source_topic": "String", "source_partition": "Int32", "source_offset": "Int64", "attempts": "UInt32",
    "first_seen": _MS, "partition_time": _S,
    **_KAFKA, **_TRACE,
})

TABLES = (EVENTS, EVENT_PRODUCTS, ITEMS, RECOMMENDATIONS, COMPLEMENTS, DECISIONS, SEGMENT_CHANGES, CHURN_ALERTS,
          REMINDERS, DELIVERIES, OFFER_DECISIONS, OPINIONS, SATISFACTION_ALERTS, DEAD_LETTERS)
