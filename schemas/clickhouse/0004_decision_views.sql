-- How good the decisions were, and whether every input is accounted for.
CREATE OR REPLACE VIEW recommendation_hits
(
    tenant String COMMENT 'whose user',
    recommendation_id String COMMENT 'as served',
    user_id String COMMENT 'events.user',
    position UInt16 COMMENT 'rank of the item, 1 is the best',
    item_id String COMMENT 'the recommended item',
    score Float64 COMMENT 'its score',
    source String COMMENT 'part of the blend that contributed most',
    as_of_ts DateTime64(3, 'UTC') COMMENT 'event time at which it was served',
    model_version String COMMENT 'released bundle',
    degraded String COMMENT 'shortcut that was taken; empty for none',
    viewed_at Nullable(DateTime64(3, 'UTC')) COMMENT 'first Product Viewed or Product Clicked after it, within 7 days',
    ordered_at Nullable(DateTime64(3, 'UTC')) COMMENT 'first Order Completed after it, within 7 days',
    hit_1h Bool COMMENT 'viewed or ordered within an hour',
    hit_1d Bool COMMENT 'viewed or ordered within a day',
    hit_7d Bool COMMENT 'viewed or ordered within 7 days',
    closed_1h Bool COMMENT 'the tenant''s newest event is later than the hour, so hit_1h is final',
    closed_1d Bool COMMENT 'hit_1d is final',
    closed_7d Bool COMMENT 'hit_7d is final'
)
AS WITH
    touches AS
    (
        SELECT tenant, user, product_id,
            groupArrayIf(timestamp, event IN ('Product Viewed', 'Product Clicked')) AS views,
            groupArrayIf(timestamp, event = 'Order Completed') AS orders
        FROM event_products FINAL
        WHERE event IN ('Product Viewed', 'Product Clicked', 'Order Completed')
            AND (tenant, user) IN (SELECT tenant, user_id FROM recommendations)
        GROUP BY tenant, user, product_id
    ),
    clocks AS (SELECT tenant, max(timestamp) AS newest FROM events GROUP BY tenant),
    served AS
    (
        SELECT tenant, recommendation_id, user_id, as_of_ts, model_version, degraded, position, item_id, score, source
        FROM recommendations_served
        ARRAY JOIN arrayEnumerate(item_ids) AS position, item_ids AS item_id, scores AS score, sources AS source
    )
SELECT
    served.tenant AS tenant, recommendation_id, user_id, position, item_id, score, source, as_of_ts, model_version, degraded,
    arrayFilter(t -> t > as_of_ts AND t <= as_of_ts + INTERVAL 7 DAY, touches.views) AS later_views,
    arrayFilter(t -> t > as_of_ts AND t <= as_of_ts + INTERVAL 7 DAY, touches.orders) AS later_orders,
    if(empty(later_views), NULL, arrayMin(later_views)) AS viewed_at,
    if(empty(later_orders), NULL, arrayMin(later_orders)) AS ordered_at,
    arrayExists(t -> t <= as_of_ts + INTERVAL 1 HOUR, arrayConcat(later_views, later_orders)) AS hit_1h,
    arrayExists(t -> t <= as_of_ts + INTERVAL 1 DAY, arrayConcat(later_views, later_orders)) AS hit_1d,
    notEmpty(later_views) OR notEmpty(later_orders) AS hit_7d,
    clocks.newest > as_of_ts + INTERVAL 1 HOUR AS closed_1h,
    clocks.newest > as_of_ts + INTERVAL 1 DAY AS closed_1d,
    clocks.newest > as_of_ts + INTERVAL 7 DAY AS closed_7d
FROM served
LEFT JOIN touches ON touches.tenant = served.tenant AND touches.user = served.user_id AND touches.product_id = served.item_id
LEFT JOIN clocks ON clocks.tenant = served.tenant
COMMENT 'One row a recommended item: what the user did with it afterwards. The event that led to the recommendation does not count.';

CREATE OR REPLACE VIEW recommendation_hit_rate
(
    tenant String COMMENT 'whose users',
    model_version String COMMENT 'released bundle',
    horizon String COMMENT '1h, 1d or 7d after it was served',
    emissions UInt64 COMMENT 'recommendations whose horizon has passed: only these count',
    hits UInt64 COMMENT 'of these, with at least one item viewed or ordered within the horizon',
    ordered UInt64 COMMENT 'of these, with at least one item ordered within the horizon',
    hit_rate Nullable(Float64) COMMENT 'hits / emissions; null when there are none yet',
    pending UInt64 COMMENT 'recommendations whose horizon has not passed yet'
)
AS SELECT
    tenant, model_version, horizon,
    countIf(closed) AS emissions,
    countIf(closed AND hit) AS hits,
    countIf(closed AND item_ordered) AS ordered,
    if(emissions = 0, NULL, hits / emissions) AS hit_rate,
    countIf(NOT closed) AS pending
FROM
(
    SELECT tenant, model_version, recommendation_id,
        [max(hit_1h), max(hit_1d), max(hit_7d)] AS hit_by_horizon,
        [max(closed_1h), max(closed_1d), max(closed_7d)] AS closed_by_horizon,
        [max(ifNull(ordered_at <= as_of_ts + INTERVAL 1 HOUR, false)),
         max(ifNull(ordered_at <= as_of_ts + INTERVAL 1 DAY, false)),
         max(isNotNull(ordered_at))] AS ordered_by_horizon
    FROM recommendation_hits
    GROUP BY tenant, model_version, recommendation_id
)
ARRAY JOIN ['1h', '1d', '7d'] AS horizon, hit_by_horizon AS hit, closed_by_horizon AS closed, ordered_by_horizon AS item_ordered
GROUP BY tenant, model_version, horizon
COMMENT 'Share of recommendations with at least one hit. A recommendation without items has no row in recommendation_hits and does not count.';

CREATE OR REPLACE VIEW alert_outcomes
(
    tenant String COMMENT 'whose user',
    alert_id String COMMENT 'as served',
    user_id String COMMENT 'events.user',
    probability Float64 COMMENT 'P(no event within the horizon) as it was said',
    horizon_days UInt16 COMMENT 'days it was said about',
    as_of_ts DateTime64(3, 'UTC') COMMENT 'event time at which it was raised',
    last_event_ts DateTime64(3, 'UTC') COMMENT 'last event before it',
    model_version String COMMENT 'released bundle',
    returned_at Nullable(DateTime64(3, 'UTC')) COMMENT 'first event after it, if any',
    outcome String COMMENT 'correct: no event in the horizon; wrong: one came; pending: the horizon has not passed yet'
)
AS WITH
    histories AS
    (
        SELECT tenant, user, groupUniqArray(timestamp) AS times
        FROM events FINAL
        WHERE (tenant, user) IN (SELECT tenant, user_id FROM churn_alerts)
        GROUP BY tenant, user
    ),
    clocks AS (SELECT tenant, max(timestamp) AS newest FROM events GROUP BY tenant)
SELECT
    alerts.tenant AS tenant, alert_id, user_id, probability, horizon_days, as_of_ts, last_event_ts, model_version,
    arrayFilter(t -> t > as_of_ts, histories.times) AS later,
    if(empty(later), NULL, arrayMin(later)) AS returned_at,
    multiIf(
        clocks.newest <= as_of_ts + toIntervalDay(horizon_days), 'pending',
        notEmpty(later) AND arrayMin(later) <= as_of_ts + toIntervalDay(horizon_days), 'wrong',
        'correct') AS outcome
FROM churn_alerts_served AS alerts
LEFT JOIN histories ON histories.tenant = alerts.tenant AND histories.user = alerts.user_id
LEFT JOIN clocks ON clocks.tenant = alerts.tenant
WHERE state = 'raised'
COMMENT 'What came of each raised alert. Judged only when the newest event of the tenant is past the horizon: those who return early would otherwise be counted before those who stay away.';

CREATE OR REPLACE VIEW alert_precision
(
    tenant String COMMENT 'whose users',
    model_version String COMMENT 'released bundle',
    horizon_days UInt16 COMMENT 'days the alerts were about',
    raised UInt64 COMMENT 'alerts raised',
    judged UInt64 COMMENT 'of these, with the horizon passed',
    correct UInt64 COMMENT 'of these, without an event in the horizon',
    precision Nullable(Float64) COMMENT 'correct / judged; null when none is judged yet',
    said Nullable(Float64) COMMENT 'mean probability of the judged ones: equals precision when calibrated',
    pending UInt64 COMMENT 'alerts whose horizon has not passed yet'
)
AS SELECT
    tenant, model_version, horizon_days,
    count() AS raised,
    countIf(outcome != 'pending') AS judged,
    countIf(outcome = 'correct') AS correct,
    if(judged = 0, NULL, correct / judged) AS precision,
    if(judged = 0, NULL, avgIf(probability, outcome != 'pending')) AS said,
    countIf(outcome = 'pending') AS pending
FROM alert_outcomes
GROUP BY tenant, model_version, horizon_days
COMMENT 'How often a raised alert was right, against how often it said it would be.';

CREATE OR REPLACE VIEW event_freshness
(
    tenant String COMMENT 'whose events',
    lane String COMMENT 'live, import or repair',
    newest_event_at DateTime64(3, 'UTC') COMMENT 'event time',
    newest_received_at Nullable(DateTime64(3, 'UTC')) COMMENT 'by the collector',
    newest_broker_time DateTime64(3, 'UTC') COMMENT 'appended by the broker',
    newest_inserted_at DateTime64(3, 'UTC') COMMENT 'stored here; the only column a replay changes'
)
AS SELECT tenant, lane, max(timestamp) AS newest_event_at, max(received_at) AS newest_received_at,
    max(broker_time) AS newest_broker_time, max(inserted_at) AS newest_inserted_at
FROM events
GROUP BY tenant, lane
COMMENT 'How new the newest event is on each clock.';

CREATE OR REPLACE VIEW accounting
(
    tenant String COMMENT 'whose inputs',
    source String COMMENT 'as in events; of a dead letter the same read from its payload, else the file it came from, else unreadable',
    lane String COMMENT 'live, import or repair; of a dead letter read from its payload, empty when that is unreadable',
    events UInt64 COMMENT 'distinct events stored',
    undecodable UInt64 COMMENT 'dead letters: not JSON, or not the right types',
    unprocessable UInt64 COMMENT 'dead letters: well formed, but cannot be folded',
    too_large UInt64 COMMENT 'dead letters: above the size limit',
    dropped UInt64 COMMENT 'dead letters: left out on purpose',
    sink_rejected UInt64 COMMENT 'dead letters: refused by ClickHouse'
)
AS SELECT tenant, source, lane, sum(is_event) AS events, countIf(kind = 'undecodable') AS undecodable,
    countIf(kind = 'unprocessable') AS unprocessable, countIf(kind = 'too_large') AS too_large,
    countIf(kind = 'dropped') AS dropped, countIf(kind = 'sink_rejected') AS sink_rejected
FROM
(
    SELECT tenant, source, lane, 1 AS is_event, '' AS kind FROM events FINAL
    UNION ALL
    SELECT tenant, multiIf(
            source_topic NOT LIKE '%.v%', source_topic,
            JSONExtractString(payload, 'context', 'source') != '', JSONExtractString(payload, 'context', 'source'),
            match(JSONExtractString(payload, 'messageId'), '^[A-Za-z0-9_.-]+:[0-9]+$'),
                splitByChar(':', JSONExtractString(payload, 'messageId'))[1],
            JSONExtractString(payload, 'context', 'library', 'name') != '', JSONExtractString(payload, 'context', 'library', 'name'),
            JSONExtractString(payload, 'messageId') != '', 'api',
            'unreadable') AS source,
        JSONExtractString(payload, 'lane') AS lane, 0 AS is_event, kind
    FROM dead_letters FINAL
)
GROUP BY tenant, source, lane
COMMENT 'Every input is an event or a dead letter: in = events + dead letters by kind. Repeated messages count once.';
