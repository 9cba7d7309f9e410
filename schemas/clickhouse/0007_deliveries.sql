-- What went out to people's tools, and what came of it.
CREATE TABLE IF NOT EXISTS deliveries
(
    tenant LowCardinality(String) COMMENT 'whose user',
    delivery_id String COMMENT 'derived from the delivery and what it is about',
    user_id String COMMENT 'events.user',
    delivery LowCardinality(String) COMMENT 'name in the file of deliveries',
    channel LowCardinality(String) COMMENT 'name of the way out',
    about_kind LowCardinality(String) COMMENT 'churn-alert or segment-change',
    about_id String COMMENT 'churn_alerts.alert_id or segment_changes.change_id',
    status LowCardinality(String) COMMENT 'sent, held_out, capped, suppressed, deferred or failed',
    at DateTime64(3, 'UTC') COMMENT 'when, by the clock of the delivery worker',
    attempts UInt32 COMMENT 'how often it was tried',
    error String COMMENT 'what the channel said last; empty when nothing',
    partition_time DateTime('UTC') COMMENT 'at clamped to 2000..2100; only for partitioning',
    kafka_partition Int32 COMMENT 'partition of the deliveries topic',
    kafka_offset Int64 COMMENT 'offset in that partition',
    broker_time DateTime64(3, 'UTC') COMMENT 'when the broker appended the record',
    last_wins UInt64 MATERIALIZED bitShiftLeft(toUInt64(toUnixTimestamp64Milli(broker_time)), 20) + kafka_offset % 1048576
        COMMENT 'version of the row: the latest record wins'
)
ENGINE = ReplacingMergeTree(last_wins)
PARTITION BY toYYYYMM(partition_time)
ORDER BY (tenant, delivery_id)
SETTINGS non_replicated_deduplication_window = 1000
COMMENT 'One row a message and its present status, identity (tenant, delivery_id). Read with FINAL.';

CREATE OR REPLACE VIEW delivery_outcomes
(
    tenant String COMMENT 'whose users',
    delivery String COMMENT 'name in the file of deliveries',
    status String COMMENT 'sent, or held_out for comparison',
    users UInt64 COMMENT 'users, each by their first message of this delivery',
    returned_7d UInt64 COMMENT 'of these, with an event within 7 days after it',
    ordered_7d UInt64 COMMENT 'of these, with an Order Completed within 7 days',
    return_rate Nullable(Float64) COMMENT 'returned_7d / users whose 7 days are over',
    closed UInt64 COMMENT 'users whose 7 days are over'
)
AS WITH
    firsts AS
    (
        SELECT tenant, delivery, user_id, argMin(status, at) AS outcome, min(at) AS told_at
        FROM deliveries FINAL WHERE status IN ('sent', 'held_out') GROUP BY tenant, delivery, user_id
    ),
    acts AS
    (
        SELECT tenant, user, groupUniqArray(timestamp) AS times, groupUniqArrayIf(timestamp, event = 'Order Completed') AS orders
        FROM events FINAL WHERE (tenant, user) IN (SELECT tenant, user_id FROM deliveries) GROUP BY tenant, user
    ),
    judged AS
    (
        SELECT firsts.tenant AS tenant, firsts.delivery AS delivery, firsts.outcome AS status,
            arrayExists(t -> t > told_at AND t <= told_at + INTERVAL 7 DAY, acts.times) AS returned,
            arrayExists(t -> t > told_at AND t <= told_at + INTERVAL 7 DAY, acts.orders) AS bought,
            now64(3) > told_at + INTERVAL 7 DAY AS is_closed
        FROM firsts LEFT JOIN acts ON acts.tenant = firsts.tenant AND acts.user = firsts.user_id
    )
SELECT tenant, delivery, status, count() AS users, countIf(returned) AS returned_7d, countIf(bought) AS ordered_7d,
    if(countIf(is_closed) = 0, NULL, countIf(returned AND is_closed) / countIf(is_closed)) AS return_rate,
    countIf(is_closed) AS closed
FROM judged GROUP BY tenant, delivery, status
COMMENT 'Does telling help? Who was told beside who was held out, by what they did in the week after.';
