-- What was said to go with a basket, and whether it was taken.
CREATE TABLE IF NOT EXISTS complements
(
    tenant LowCardinality(String) COMMENT 'whose user',
    recommendation_id String COMMENT 'derived from as_of_event_id and the model version, so that a replay has the same one',
    user_id String COMMENT 'events.user',
    basket Array(String) COMMENT 'what was in it, oldest first',
    item_ids Array(String) COMMENT 'what goes with it, best first',
    scores Array(Float64) COMMENT 'share of each item in all scores',
    sources Array(LowCardinality(String)) COMMENT 'complements, or pinned',
    reasons Array(String) COMMENT 'for each item a JSON list of {event_id, item_id, share}: items of the basket' CODEC(ZSTD(3)),
    as_of_event_id String COMMENT 'the event that put something into the basket',
    as_of_ts DateTime64(3, 'UTC') COMMENT 'event time at which it was said',
    model_version LowCardinality(String) COMMENT 'released bundle',
    partition_time DateTime('UTC') COMMENT 'as_of_ts clamped to 2000..2100; only for partitioning',
    kafka_partition Int32 COMMENT 'partition of the complements topic',
    kafka_offset Int64 COMMENT 'offset in that partition',
    broker_time DateTime64(3, 'UTC') COMMENT 'when the broker appended the record',
    trace_id String COMMENT 'trace of the event that caused it; empty when it was not sampled'
)
ENGINE = ReplacingMergeTree(broker_time)
PARTITION BY toYYYYMM(partition_time)
ORDER BY (tenant, recommendation_id, kafka_partition, kafka_offset)
SETTINGS non_replicated_deduplication_window = 1000
COMMENT 'Every emission of what goes with a basket. Read complements_served: the first emission of each.';

CREATE OR REPLACE VIEW complements_served AS
SELECT * FROM complements FINAL
ORDER BY broker_time, kafka_partition, kafka_offset
LIMIT 1 BY tenant, recommendation_id
COMMENT 'The first emission of each. Later ones are replays. Columns as in complements.';

CREATE OR REPLACE VIEW complement_outcomes
(
    tenant String COMMENT 'whose user',
    recommendation_id String COMMENT 'as served',
    user_id String COMMENT 'events.user',
    basket Array(String) COMMENT 'what was in it',
    as_of_ts DateTime64(3, 'UTC') COMMENT 'event time at which it was said',
    model_version String COMMENT 'released bundle',
    added_at Nullable(DateTime64(3, 'UTC')) COMMENT 'first Product Added of an item that was said, within a day',
    ordered_at Nullable(DateTime64(3, 'UTC')) COMMENT 'first Order Completed with an item that was said, within a day',
    taken Array(String) COMMENT 'items that were said and then added or ordered, by name',
    outcome String COMMENT 'taken: something was added or ordered within the day; left: nothing; pending: it is not over'
)
AS WITH
    touches AS
    (
        SELECT tenant, user, product_id,
            groupArrayIf(timestamp, event = 'Product Added') AS adds, groupArrayIf(timestamp, event = 'Order Completed') AS orders
        FROM event_products FINAL
        WHERE event IN ('Product Added', 'Order Completed') AND (tenant, user) IN (SELECT tenant, user_id FROM complements)
        GROUP BY tenant, user, product_id
    ),
    clocks AS (SELECT tenant, max(timestamp) AS newest FROM events GROUP BY tenant),
    items AS
    (
        SELECT said.tenant AS tenant, said.recommendation_id AS recommendation_id, said.user_id AS user_id,
            said.basket AS basket, said.as_of_ts AS as_of_ts, said.model_version AS model_version, said.item_id AS item_id,
            arrayFilter(t -> t > said.as_of_ts AND t <= said.as_of_ts + INTERVAL 1 DAY, touches.adds) AS item_adds,
            arrayFilter(t -> t > said.as_of_ts AND t <= said.as_of_ts + INTERVAL 1 DAY, touches.orders) AS item_orders
        FROM (SELECT *, arrayJoin(item_ids) AS item_id FROM complements_served) AS said
        LEFT JOIN touches ON touches.tenant = said.tenant AND touches.user = said.user_id AND touches.product_id = said.item_id
    ),
    messages AS
    (
        SELECT tenant, recommendation_id, user_id, basket, as_of_ts, model_version,
            groupArrayArray(item_adds) AS adds, groupArrayArray(item_orders) AS orders,
            arraySort(groupArrayIf(item_id, notEmpty(item_adds) OR notEmpty(item_orders))) AS taken
        FROM items GROUP BY tenant, recommendation_id, user_id, basket, as_of_ts, model_version
    )
SELECT messages.tenant AS tenant, recommendation_id, user_id, basket, as_of_ts, model_version,
    if(empty(adds), NULL, arrayMin(adds)) AS added_at, if(empty(orders), NULL, arrayMin(orders)) AS ordered_at, taken,
    multiIf(clocks.newest <= as_of_ts + INTERVAL 1 DAY, 'pending', notEmpty(taken), 'taken', 'left') AS outcome
FROM messages LEFT JOIN clocks ON clocks.tenant = messages.tenant
COMMENT 'What came of what was said to go with a basket, judged when its day is over. An item said twice counts for both.';
