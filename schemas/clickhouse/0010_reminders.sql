-- Whom a purchase was due again for, whether it was bought then, and how a plain interval would have done.
CREATE TABLE IF NOT EXISTS reminders
(
    tenant LowCardinality(String) COMMENT 'whose user',
    reminder_id String COMMENT 'derived from user, item or category and the purchase it is after, so that a replay has the same one',
    user_id String COMMENT 'events.user',
    state LowCardinality(String) COMMENT 'due; later bought or lapsed, under the same reminder_id',
    item_id String COMMENT 'what is due; empty where it is anything of a category',
    category LowCardinality(String) COMMENT 'of the item, or what is due',
    last_bought_ts DateTime64(3, 'UTC') COMMENT 'event time of the purchase before it',
    interval_days Float64 COMMENT 'days after which it was expected again',
    window_from DateTime64(3, 'UTC') COMMENT 'due from',
    window_to DateTime64(3, 'UTC') COMMENT 'due until',
    probability Float64 COMMENT 'P(bought from window_from to window_to) as it was said',
    reasons Array(String) COMMENT 'why, in plain words',
    as_of_ts DateTime64(3, 'UTC') COMMENT 'event time at which it was due, or known what came of it',
    model_version LowCardinality(String) COMMENT 'released bundle',
    partition_time DateTime('UTC') COMMENT 'window_from clamped to 2000..2100; only for partitioning',
    kafka_partition Int32 COMMENT 'partition of the reminders topic',
    kafka_offset Int64 COMMENT 'offset in that partition',
    broker_time DateTime64(3, 'UTC') COMMENT 'when the broker appended the record',
    trace_id String COMMENT 'trace of the event that caused it; empty when it was not sampled, or silence did'
)
ENGINE = ReplacingMergeTree(broker_time)
PARTITION BY toYYYYMM(partition_time)
ORDER BY (tenant, reminder_id, state, kafka_partition, kafka_offset)
SETTINGS non_replicated_deduplication_window = 1000
COMMENT 'Every emission of every reminder. Read reminders_served: the first emission of each state.';

CREATE OR REPLACE VIEW reminders_served AS
SELECT * FROM reminders FINAL
ORDER BY broker_time, kafka_partition, kafka_offset
LIMIT 1 BY tenant, reminder_id, state
COMMENT 'The first emission of each state of each reminder. Later ones are replays. Columns as in reminders.';

CREATE OR REPLACE VIEW item_purchases
(
    tenant String COMMENT 'whose user',
    user_id String COMMENT 'events.user',
    item_id String COMMENT 'what was ordered',
    category String COMMENT 'of the item, as the catalog says now; empty where it says none',
    times Array(DateTime64(3, 'UTC')) COMMENT 'of its orders, ascending, each once'
)
AS SELECT bought.tenant AS tenant, bought.user AS user_id, bought.product_id AS item_id, catalog.category AS category, bought.times AS times
FROM
(
    SELECT tenant, user, product_id, arraySort(groupUniqArray(timestamp)) AS times
    FROM event_products FINAL WHERE event = 'Order Completed' AND user != '' GROUP BY tenant, user, product_id
) AS bought
LEFT JOIN (SELECT tenant, item_id, category FROM items FINAL) AS catalog
ON catalog.tenant = bought.tenant AND catalog.item_id = bought.product_id
COMMENT 'When each user ordered each item.';

CREATE OR REPLACE VIEW reminder_outcomes
(
    tenant String COMMENT 'whose user',
    reminder_id String COMMENT 'as served',
    user_id String COMMENT 'events.user',
    item_id String COMMENT 'what was due; empty where it was anything of the category',
    category String COMMENT 'of the item, or what was due',
    interval_days Float64 COMMENT 'days after which it was expected again',
    window_from DateTime64(3, 'UTC') COMMENT 'due from',
    window_to DateTime64(3, 'UTC') COMMENT 'due until',
    probability Float64 COMMENT 'as it was said',
    model_version String COMMENT 'released bundle',
    bought_at Nullable(DateTime64(3, 'UTC')) COMMENT 'first order of it in the window',
    outcome String COMMENT 'bought: in the window; lapsed: it was not; pending: the window is not over'
)
AS WITH
    purchases AS
    (
        SELECT tenant, user_id, item_id, '' AS of_category, times FROM item_purchases
        WHERE (tenant, user_id) IN (SELECT tenant, user_id FROM reminders)
        UNION ALL
        SELECT tenant, user_id, '' AS item_id, category AS of_category, groupArrayArray(times) AS times FROM item_purchases
        WHERE category != '' AND (tenant, user_id) IN (SELECT tenant, user_id FROM reminders) GROUP BY tenant, user_id, category
    ),
    clocks AS (SELECT tenant, max(timestamp) AS newest FROM events GROUP BY tenant),
    due AS (SELECT *, if(item_id = '', category, '') AS of_category FROM reminders_served WHERE state = 'due')
SELECT due.tenant AS tenant, reminder_id, due.user_id AS user_id, due.item_id AS item_id, due.category AS category, interval_days,
    window_from, window_to, probability, model_version,
    arrayFilter(t -> t > window_from AND t <= window_to, purchases.times) AS later,
    if(empty(later), NULL, arrayMin(later)) AS bought_at,
    multiIf(notEmpty(later) AND clocks.newest > window_to, 'bought', clocks.newest > window_to, 'lapsed', 'pending') AS outcome
FROM due
LEFT JOIN purchases ON purchases.tenant = due.tenant AND purchases.user_id = due.user_id AND purchases.item_id = due.item_id
    AND purchases.of_category = due.of_category
LEFT JOIN clocks ON clocks.tenant = due.tenant
COMMENT 'What came of each reminder, judged when its window is over: purchases come early, their absence late.';

CREATE OR REPLACE VIEW interval_due
(
    tenant String COMMENT 'whose user',
    user_id String COMMENT 'events.user',
    item_id String COMMENT 'what was due',
    category String COMMENT 'of the item; the item itself where the catalog says none',
    interval_days Float64 COMMENT 'average days between two orders of one item of the category by one user',
    window_from DateTime64(3, 'UTC') COMMENT 'due from',
    window_to DateTime64(3, 'UTC') COMMENT 'due until: windows are as long as those of reminders',
    outcome String COMMENT 'bought, lapsed or pending'
)
AS WITH
    purchases AS
    (
        SELECT tenant, user_id, item_id, if(category = '', item_id, category) AS kind,
            arrayMap(t -> toUnixTimestamp64Milli(t), times) AS at_ms FROM item_purchases
        WHERE tenant IN (SELECT tenant FROM reminders)
    ),
    averages AS
    (
        SELECT tenant, kind, avg(gap_ms) AS interval_ms FROM purchases
        ARRAY JOIN arrayPopFront(arrayDifference(at_ms)) AS gap_ms GROUP BY tenant, kind
    ),
    said AS
    (
        SELECT tenant, avg(toUnixTimestamp64Milli(window_to) - toUnixTimestamp64Milli(window_from)) AS window_ms,
            toUnixTimestamp64Milli(min(window_from)) AS since_ms
        FROM reminders_served WHERE state = 'due' GROUP BY tenant
    ),
    clocks AS (SELECT tenant, toUnixTimestamp64Milli(max(timestamp)) AS newest_ms FROM events GROUP BY tenant),
    steps AS
    (
        SELECT tenant, user_id, item_id, kind, bought_ms, next_ms FROM purchases
        ARRAY JOIN at_ms AS bought_ms, arrayPushBack(arrayPopFront(at_ms), toInt64(0)) AS next_ms
    )
SELECT steps.tenant AS tenant, user_id, item_id, steps.kind AS category, interval_ms / 86400000 AS interval_days,
    bought_ms + toInt64(greatest(interval_ms - window_ms / 2, interval_ms / 2)) AS from_ms, from_ms + toInt64(window_ms) AS until_ms,
    fromUnixTimestamp64Milli(from_ms, 'UTC') AS window_from, fromUnixTimestamp64Milli(until_ms, 'UTC') AS window_to,
    multiIf(newest_ms <= until_ms, 'pending', next_ms > 0 AND next_ms <= until_ms, 'bought', 'lapsed') AS outcome
FROM steps
INNER JOIN averages ON averages.tenant = steps.tenant AND averages.kind = steps.kind
INNER JOIN said ON said.tenant = steps.tenant
INNER JOIN clocks ON clocks.tenant = steps.tenant
WHERE from_ms >= since_ms AND from_ms <= newest_ms AND (next_ms = 0 OR next_ms > from_ms)
COMMENT 'What the average interval of the category would have called due since the first reminder, in hindsight: its average knows all orders.';

CREATE OR REPLACE VIEW reminder_precision
(
    tenant String COMMENT 'whose users',
    method String COMMENT 'reminders, or the category''s average interval as it would have been',
    model_version String COMMENT 'released bundle; empty for the interval',
    said UInt64 COMMENT 'reminders said',
    judged UInt64 COMMENT 'of these, with the window over',
    bought UInt64 COMMENT 'of these, bought in the window',
    precision Nullable(Float64) COMMENT 'bought / judged; null when none is judged yet',
    probability Nullable(Float64) COMMENT 'mean probability of the judged ones: equals precision when calibrated; null for the interval',
    pending UInt64 COMMENT 'reminders whose window is not over'
)
AS SELECT tenant, method, model_version, count() AS said, countIf(outcome != 'pending') AS judged, countIf(outcome = 'bought') AS bought,
    if(judged = 0, NULL, bought / judged) AS precision, if(judged = 0, NULL, avgIf(p, outcome != 'pending')) AS probability,
    countIf(outcome = 'pending') AS pending
FROM
(
    SELECT tenant, 'reminders' AS method, model_version, outcome, toNullable(probability) AS p FROM reminder_outcomes
    UNION ALL
    SELECT tenant, 'average interval' AS method, '' AS model_version, outcome, NULL AS p FROM interval_due
)
GROUP BY tenant, method, model_version
COMMENT 'How many reminders were bought in their window, beside what the category''s average interval would have reached.';
