-- What Clickwake decided and what it could not process.
CREATE TABLE IF NOT EXISTS recommendations
(
    tenant LowCardinality(String) COMMENT 'whose user',
    recommendation_id String COMMENT 'derived from the event and the model version, so that a replay has the same one',
    user_id String COMMENT 'whom it was made for: events.user',
    item_ids Array(String) COMMENT 'best first',
    scores Array(Float64) COMMENT 'score of each item',
    sources Array(LowCardinality(String)) COMMENT 'part of the blend that contributed most to each item',
    reasons Array(String) COMMENT 'for each item a JSON list of {event_id, item_id, share}' CODEC(ZSTD(3)),
    as_of_event_id String COMMENT 'the event it answers',
    as_of_ts DateTime64(3, 'UTC') COMMENT 'event time at which it was made',
    model_version LowCardinality(String) COMMENT 'released bundle',
    degraded LowCardinality(String) COMMENT 'shortcut that was taken; empty for none',
    partition_time DateTime('UTC') COMMENT 'as_of_ts clamped to 2000..2100; only for partitioning',
    kafka_partition Int32 COMMENT 'partition of the recommendations topic',
    kafka_offset Int64 COMMENT 'offset in that partition',
    broker_time DateTime64(3, 'UTC') COMMENT 'when the broker appended the record'
)
ENGINE = ReplacingMergeTree(broker_time)
PARTITION BY toYYYYMM(partition_time)
ORDER BY (tenant, recommendation_id, kafka_partition, kafka_offset)
SETTINGS non_replicated_deduplication_window = 1000
COMMENT 'Every emission of every recommendation. Read recommendations_served: the first emission of each.';

CREATE TABLE IF NOT EXISTS churn_alerts
(
    tenant LowCardinality(String) COMMENT 'whose user',
    alert_id String COMMENT 'derived from the user, the last event and the kind',
    user_id String COMMENT 'events.user',
    state LowCardinality(String) COMMENT 'raised or cleared',
    probability Float64 COMMENT 'P(no event within horizon_days) at as_of_ts',
    probability_low Float64 COMMENT 'lower end of its 90% interval',
    probability_high Float64 COMMENT 'upper end of its 90% interval',
    horizon_days UInt16 COMMENT 'days the probability is about',
    reasons Array(String) COMMENT 'in plain words',
    last_event_ts DateTime64(3, 'UTC') COMMENT 'the last event of the user when it was raised',
    as_of_ts DateTime64(3, 'UTC') COMMENT 'event time at which it was raised or cleared',
    model_version LowCardinality(String) COMMENT 'released bundle',
    partition_time DateTime('UTC') COMMENT 'as_of_ts clamped to 2000..2100; only for partitioning',
    kafka_partition Int32 COMMENT 'partition of the churn-alerts topic',
    kafka_offset Int64 COMMENT 'offset in that partition',
    broker_time DateTime64(3, 'UTC') COMMENT 'when the broker appended the record'
)
ENGINE = ReplacingMergeTree(broker_time)
PARTITION BY toYYYYMM(partition_time)
ORDER BY (tenant, alert_id, kafka_partition, kafka_offset)
SETTINGS non_replicated_deduplication_window = 1000
COMMENT 'Every emission of every churn alert. Read churn_alerts_served: the first emission of each.';

CREATE TABLE IF NOT EXISTS dead_letters
(
    tenant LowCardinality(String) COMMENT 'as far as the key told it',
    dead_letter_id String COMMENT 'derived from where the input came from',
    kind LowCardinality(String) COMMENT 'undecodable, unprocessable, too_large, dropped (on purpose) or sink_rejected',
    failed_at DateTime64(3, 'UTC') COMMENT 'when it was refused',
    paths Array(String) COMMENT 'where in the input, one a complaint',
    keywords Array(String) COMMENT 'which rule, one a complaint',
    messages Array(String) COMMENT 'in words, one a complaint',
    payload String COMMENT 'the input, cut to 64 KiB' CODEC(ZSTD(3)),
    payload_bytes UInt64 COMMENT 'its length before it was cut',
    source_topic LowCardinality(String) COMMENT 'Kafka topic, or the file or endpoint of an input that never reached one',
    source_partition Int32 COMMENT 'partition there',
    source_offset Int64 COMMENT 'offset or row there',
    attempts UInt32 COMMENT 'how often it was tried',
    first_seen DateTime64(3, 'UTC') COMMENT 'when it was refused for the first time',
    partition_time DateTime('UTC') COMMENT 'first_seen clamped to 2000..2100; only for partitioning',
    kafka_partition Int32 COMMENT 'partition of the dead-letters topic',
    kafka_offset Int64 COMMENT 'offset in that partition',
    broker_time DateTime64(3, 'UTC') COMMENT 'when the broker appended the record',
    last_wins UInt64 MATERIALIZED bitShiftLeft(toUInt64(toUnixTimestamp64Milli(broker_time)), 20) + kafka_offset % 1048576
        COMMENT 'version of the row: the latest record wins, it has the most attempts'
)
ENGINE = ReplacingMergeTree(last_wins)
PARTITION BY toYYYYMM(partition_time)
ORDER BY (tenant, dead_letter_id)
SETTINGS non_replicated_deduplication_window = 1000
COMMENT 'Inputs that could not be processed, identity (tenant, dead_letter_id). Read with FINAL.';

CREATE OR REPLACE VIEW recommendations_served AS
SELECT * FROM recommendations FINAL
ORDER BY broker_time, kafka_partition, kafka_offset
LIMIT 1 BY tenant, recommendation_id
COMMENT 'The first emission of each recommendation: what the user was shown. Later ones are replays. Columns as in recommendations.';

CREATE OR REPLACE VIEW churn_alerts_served AS
SELECT * FROM churn_alerts FINAL
ORDER BY broker_time, kafka_partition, kafka_offset
LIMIT 1 BY tenant, alert_id
COMMENT 'The first emission of each alert. Later ones are replays. Columns as in churn_alerts.';
