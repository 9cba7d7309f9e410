-- What the read API answered.
CREATE TABLE IF NOT EXISTS decisions
(
    tenant LowCardinality(String) COMMENT 'whose user',
    recommendation_id String COMMENT 'derived from what was answered: the same answer has the same one. Clients send it back',
    user_id String COMMENT 'whom it was made for: events.user',
    scenario LowCardinality(String) COMMENT 'for_you, again, similar, complements, popular, trending',
    item_ids Array(String) COMMENT 'best first',
    scores Array(Float64) COMMENT 'score of each item',
    sources Array(LowCardinality(String)) COMMENT 'what contributed most to each item',
    reasons Array(String) COMMENT 'for each item a JSON list of {event_id, item_id, share}' CODEC(ZSTD(3)),
    candidates UInt32 COMMENT 'items that rules and filter let through',
    request String COMMENT 'JSON of what was asked beyond the user' CODEC(ZSTD(3)),
    as_of_event_id String COMMENT 'the last event of the user that was known',
    as_of_ts Nullable(DateTime64(3, 'UTC')) COMMENT 'its event time; NULL for a user of whom nothing was known',
    served_at DateTime64(3, 'UTC') COMMENT 'when it was answered first, by the clock of the API',
    model_version LowCardinality(String) COMMENT 'released bundle',
    degraded LowCardinality(String) COMMENT 'shortcut that was taken; empty for none',
    partition_time DateTime('UTC') COMMENT 'served_at clamped to 2000..2100; only for partitioning',
    kafka_partition Int32 COMMENT 'partition of the decisions topic',
    kafka_offset Int64 COMMENT 'offset in that partition',
    broker_time DateTime64(3, 'UTC') COMMENT 'when the broker appended the record'
)
ENGINE = ReplacingMergeTree(broker_time)
PARTITION BY toYYYYMM(partition_time)
ORDER BY (tenant, recommendation_id, kafka_partition, kafka_offset)
SETTINGS non_replicated_deduplication_window = 1000
COMMENT 'Every logging of every answer; several replicas log the same one. Read decisions_served: the first of each.';

CREATE OR REPLACE VIEW decisions_served AS
SELECT * FROM decisions FINAL
ORDER BY broker_time, kafka_partition, kafka_offset
LIMIT 1 BY tenant, recommendation_id
COMMENT 'The first logging of each answer of the read API. Columns as in decisions.';

CREATE OR REPLACE VIEW decision_outcomes
(
    tenant String COMMENT 'whose user',
    recommendation_id String COMMENT 'as served, and as clients sent it back',
    user_id String COMMENT 'events.user',
    scenario String COMMENT 'what was asked for',
    model_version String COMMENT 'released bundle',
    degraded String COMMENT 'shortcut that was taken; empty for none',
    items UInt64 COMMENT 'how many were answered',
    served_at DateTime64(3, 'UTC') COMMENT 'when it was answered first',
    shown_at Nullable(DateTime64(3, 'UTC')) COMMENT 'first Product List Viewed with its id: a person saw it',
    clicked_at Nullable(DateTime64(3, 'UTC')) COMMENT 'first Product Clicked or Product Viewed with its id',
    added_at Nullable(DateTime64(3, 'UTC')) COMMENT 'first Product Added with its id',
    ordered_at Nullable(DateTime64(3, 'UTC')) COMMENT 'first Order Completed with its id'
)
AS WITH reactions AS
(
    SELECT tenant, recommendation_id,
        minOrNullIf(timestamp, event = 'Product List Viewed') AS shown_at,
        minOrNullIf(timestamp, event IN ('Product Clicked', 'Product Viewed')) AS clicked_at,
        minOrNullIf(timestamp, event = 'Product Added') AS added_at,
        minOrNullIf(timestamp, event = 'Order Completed') AS ordered_at
    FROM events FINAL
    WHERE recommendation_id != ''
    GROUP BY tenant, recommendation_id
)
SELECT served.tenant AS tenant, served.recommendation_id AS recommendation_id, user_id, scenario, model_version, degraded,
    length(item_ids) AS items, served_at, shown_at, clicked_at, added_at, ordered_at
FROM decisions_served AS served
LEFT JOIN reactions ON reactions.tenant = served.tenant AND reactions.recommendation_id = served.recommendation_id
COMMENT 'One row an answer of the read API: what people did with it, as far as their events name its id.';
