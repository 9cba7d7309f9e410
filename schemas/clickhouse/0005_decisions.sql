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
    experiment LowCardinality(String) COMMENT 'that the user is in; empty for none',
    arm LowCardinality(String) COMMENT 'of the experiment',
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
    experiment String COMMENT 'that the user is in; empty for none',
    arm String COMMENT 'of the experiment',
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
SELECT served.tenant AS tenant, served.recommendation_id AS recommendation_id, user_id, scenario, model_version, degraded, experiment, arm,
    length(item_ids) AS items, served_at, shown_at, clicked_at, added_at, ordered_at
FROM decisions_served AS served
LEFT JOIN reactions ON reactions.tenant = served.tenant AND reactions.recommendation_id = served.recommendation_id
COMMENT 'One row an answer of the read API: what people did with it, as far as their events name its id.';

CREATE OR REPLACE VIEW experiment_results
(
    tenant String COMMENT 'whose users',
    experiment String COMMENT 'name in the file of experiments',
    arm String COMMENT 'name of the arm',
    users UInt64 COMMENT 'users who saw an answer (Product List Viewed with its id); each counts once',
    clicked UInt64 COMMENT 'of these, who clicked or viewed an item of one',
    ordered UInt64 COMMENT 'of these, who ordered with the id of one',
    click_rate Float64 COMMENT 'clicked / users',
    click_low Float64 COMMENT 'lower end of its 95% confidence sequence: valid at any time, also for who looks every day',
    click_high Float64 COMMENT 'upper end',
    order_rate Float64 COMMENT 'ordered / users',
    order_low Float64 COMMENT 'lower end of its 95% confidence sequence',
    order_high Float64 COMMENT 'upper end'
)
AS WITH
    -- asymptotic confidence sequence, Waudby-Smith et al. 2024, theorem 2.2, tightest at about 1,000 users (rho = 0.085)
    0.085 * 0.085 AS rho2,
    people AS
    (
        SELECT tenant, experiment, arm, user_id, max(isNotNull(clicked_at)) AS has_clicked, max(isNotNull(ordered_at)) AS has_ordered
        FROM decision_outcomes WHERE experiment != '' AND isNotNull(shown_at) GROUP BY tenant, experiment, arm, user_id
    ),
    totals AS
    (
        SELECT tenant, experiment, arm, count() AS users, sum(has_clicked) AS clicked, sum(has_ordered) AS ordered
        FROM people GROUP BY tenant, experiment, arm
    )
SELECT tenant, experiment, arm, users, clicked, ordered,
    clicked / users AS click_rate,
    greatest(0, click_rate - sqrt(click_rate * (1 - click_rate)) * width) AS click_low,
    least(1, click_rate + sqrt(click_rate * (1 - click_rate)) * width) AS click_high,
    ordered / users AS order_rate,
    greatest(0, order_rate - sqrt(order_rate * (1 - order_rate)) * width) AS order_low,
    least(1, order_rate + sqrt(order_rate * (1 - order_rate)) * width) AS order_high
FROM
(
    SELECT *, sqrt(2 * (users * rho2 + 1) / (users * users * rho2) * log(sqrt(users * rho2 + 1) / 0.05)) AS width FROM totals
)
COMMENT 'Arms beside each other. Two arms differ when their sequences do not overlap (a strict rule), whenever somebody looks.';
