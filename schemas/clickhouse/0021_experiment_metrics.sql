-- What users in an experiment did, whatever answer led them there: money, orders, and what must not get worse.
ALTER TABLE decisions
    COMMENT COLUMN applied 'JSON of what it was made by, the experiment''s arm included: n, exclude, category_cap, filter, boost, explore, diversity; empty before 0.5.0';

CREATE OR REPLACE VIEW experiment_users
(
    tenant String COMMENT 'whose user',
    experiment String COMMENT 'name in the file of experiments',
    arm String COMMENT 'of the first answer that the user saw: who changes sides later counts there',
    user_id String COMMENT 'events.user',
    seen_at DateTime64(3, 'UTC') COMMENT 'first Product List Viewed with the id of an answer of the experiment',
    closed Bool COMMENT 'the tenant''s newest event is 7 days past seen_at: what follows is final, and only such users are compared',
    clicked Bool COMMENT 'within the 7 days after seen_at: clicked or viewed an item of an answer, by its id',
    orders UInt64 COMMENT 'within the 7 days: orders of any items, with or without an id',
    revenue Float64 COMMENT 'within the 7 days: of these orders, less refunds',
    alerted Bool COMMENT 'within the 7 days: a churn alert was raised',
    dissatisfied Bool COMMENT 'within the 7 days: gave an opinion with a satisfaction below a half',
    orders_before UInt64 COMMENT 'orders of the 28 days until seen_at',
    revenue_before Float64 COMMENT 'their revenue, less refunds'
)
AS WITH
    seen AS
    (
        SELECT tenant, experiment, user_id, argMin(arm, (assumeNotNull(shown_at), recommendation_id)) AS arm, min(assumeNotNull(shown_at)) AS seen_at,
            groupArrayIf(assumeNotNull(clicked_at), isNotNull(clicked_at)) AS clicks
        FROM decision_outcomes WHERE experiment != '' AND isNotNull(shown_at)
        GROUP BY tenant, experiment, user_id
    ),
    bought AS
    (
        SELECT tenant, user, groupArray((timestamp, if(event = 'Order Refunded', -1, 1) * ifNull(revenue, 0),
            if(event = 'Order Refunded', '', if(order_id = '', message_id, order_id)))) AS acts
        FROM events FINAL
        WHERE event IN ('Order Completed', 'Order Refunded') AND (tenant, user) IN (SELECT tenant, user_id FROM seen)
        GROUP BY tenant, user
    ),
    alerts AS
    (
        SELECT tenant, user_id, groupArray(as_of_ts) AS raised FROM churn_alerts_served
        WHERE state = 'raised' AND (tenant, user_id) IN (SELECT tenant, user_id FROM seen)
        GROUP BY tenant, user_id
    ),
    complaints AS
    (
        SELECT tenant, user_id, groupArray(said_at) AS said FROM opinions FINAL
        WHERE satisfaction < 0.5 AND (tenant, user_id) IN (SELECT tenant, user_id FROM seen)
        GROUP BY tenant, user_id
    ),
    clocks AS (SELECT tenant, max(timestamp) AS newest FROM events GROUP BY tenant)
SELECT
    seen.tenant AS tenant, seen.experiment AS experiment, seen.arm AS arm, seen.user_id AS user_id, seen.seen_at AS seen_at,
    clocks.newest > seen_at + INTERVAL 7 DAY AS closed,
    arrayExists(t -> t <= seen_at + INTERVAL 7 DAY, clicks) AS clicked,
    arrayFilter(act -> act.1 > seen_at AND act.1 <= seen_at + INTERVAL 7 DAY, bought.acts) AS after,
    arrayFilter(act -> act.1 <= seen_at AND act.1 > seen_at - INTERVAL 28 DAY, bought.acts) AS earlier,
    arrayUniq(arrayFilter(id -> id != '', arrayMap(act -> act.3, after))) AS orders,
    arraySum(act -> act.2, after) AS revenue,
    arrayExists(t -> t > seen_at AND t <= seen_at + INTERVAL 7 DAY, alerts.raised) AS alerted,
    arrayExists(t -> t > seen_at AND t <= seen_at + INTERVAL 7 DAY, complaints.said) AS dissatisfied,
    arrayUniq(arrayFilter(id -> id != '', arrayMap(act -> act.3, earlier))) AS orders_before,
    arraySum(act -> act.2, earlier) AS revenue_before
FROM seen
LEFT JOIN bought ON bought.tenant = seen.tenant AND bought.user = seen.user_id
LEFT JOIN alerts ON alerts.tenant = seen.tenant AND alerts.user_id = seen.user_id
LEFT JOIN complaints ON complaints.tenant = seen.tenant AND complaints.user_id = seen.user_id
LEFT JOIN clocks ON clocks.tenant = seen.tenant
COMMENT 'One row a user who saw an answer of an experiment. Everybody has the same 7 days, so outcomes do not grow with the time somebody has been in it.';

CREATE OR REPLACE VIEW experiment_metrics
(
    tenant String COMMENT 'whose users',
    experiment String COMMENT 'name in the file of experiments',
    arm String COMMENT 'name of the arm',
    metric String COMMENT 'clicked, orders, revenue; alerted, dissatisfied: shares of users that are better when lower',
    users UInt64 COMMENT 'users whose 7 days are over',
    pending UInt64 COMMENT 'users whose 7 days are not over: they do not count yet',
    some UInt64 COMMENT 'of users, those with more or less than 0',
    mean Float64 COMMENT 'a user; 0 while there are none',
    variance Float64 COMMENT 'between users',
    mean_before Float64 COMMENT 'of the 28 days before; 0 where it is not asked for',
    variance_before Float64 COMMENT 'between users',
    covariance Float64 COMMENT 'of the two',
    low Float64 COMMENT 'lower end of the mean''s 95% confidence sequence: valid at any time, also for who looks every day',
    high Float64 COMMENT 'upper end'
)
AS WITH
    -- asymptotic confidence sequence, Waudby-Smith et al. 2024, theorem 2.2, as in experiment_results
    0.085 * 0.085 AS rho2,
    totals AS
    (
        SELECT tenant, experiment, arm, metric, countIf(closed) AS users, countIf(NOT closed) AS pending,
            countIf(closed AND value != 0) AS some,
            ifNotFinite(avgIf(value, closed), 0) AS mean, ifNotFinite(varSampStableIf(value, closed), 0) AS variance,
            ifNotFinite(avgIf(past, closed), 0) AS mean_before, ifNotFinite(varSampStableIf(past, closed), 0) AS variance_before,
            ifNotFinite(covarSampStableIf(value, past, closed), 0) AS covariance
        FROM experiment_users
        ARRAY JOIN
            ['clicked', 'orders', 'revenue', 'alerted', 'dissatisfied'] AS metric,
            [toFloat64(clicked), toFloat64(orders), revenue, toFloat64(alerted), toFloat64(dissatisfied)] AS value,
            [0., toFloat64(orders_before), revenue_before, 0., 0.] AS past
        GROUP BY tenant, experiment, arm, metric
    )
SELECT tenant, experiment, arm, metric, users, pending, some, mean, variance, mean_before, variance_before, covariance,
    mean - half AS low, mean + half AS high
FROM
(
    SELECT *, sqrt(variance) * sqrt(2 * (users * rho2 + 1) / (users * users * rho2) * log(sqrt(users * rho2 + 1) / 0.05)) AS spread,
        if(users = 0, 0, spread) AS half
    FROM totals
)
COMMENT 'Every measure of every arm, a user at a time. Arms are compared by `clickwake experiments`, with what the file says is primary.';
