-- The words of what was shown, so that texts which a caller gave are known by more than their hash.
ALTER TABLE offer_decisions
    ADD COLUMN IF NOT EXISTS text String
        COMMENT 'words of what was shown: a given text, or the offer''s in the file; empty before 0.7.0' CODEC(ZSTD(3)),
    COMMENT COLUMN about 'what was shown, as features of the model; near=1 to near=5 say how near a text was to the user';

CREATE OR REPLACE VIEW offer_decisions_served AS
SELECT * FROM offer_decisions FINAL
ORDER BY broker_time, kafka_partition, kafka_offset
LIMIT 1 BY tenant, recommendation_id
COMMENT 'The first logging of each decision about an offer. Columns as in offer_decisions.';

CREATE OR REPLACE VIEW offer_outcomes
(
    tenant String COMMENT 'whose user',
    recommendation_id String COMMENT 'as served, and as clients sent it back',
    user_id String COMMENT 'events.user',
    placement String COMMENT 'name in the file of offers',
    offer_id String COMMENT 'what was shown; empty for nothing',
    propensity Float64 COMMENT 'the chance of this choice',
    holdout Bool COMMENT 'the user is kept out for comparison',
    groups Array(String) COMMENT 'groups the user was in',
    policy_version String COMMENT 'stands for what had been learned',
    served_at DateTime64(3, 'UTC') COMMENT 'when it was answered first',
    seen_at Nullable(DateTime64(3, 'UTC')) COMMENT 'first Promotion Viewed with its id, or what implies it',
    clicked_at Nullable(DateTime64(3, 'UTC')) COMMENT 'first Promotion Clicked with its id',
    ordered_at Nullable(DateTime64(3, 'UTC')) COMMENT 'first Order Completed with its id',
    revenue Float64 COMMENT 'of that order; 0 for none',
    spent Float64 COMMENT 'what impression, click and order cost',
    text String COMMENT 'words of what was shown; empty before 0.7.0',
    about Array(String) COMMENT 'what was shown, as features of the model: near=1 to near=5 say how near a text was to the user'
)
AS WITH
    -- the broker's times, as the worker counts: from ten minutes before the decision was logged until its window is over
    reactions AS
    (
        SELECT served.tenant AS tenant, served.recommendation_id AS recommendation_id,
            minOrNull(done.broker_time) AS seen_at,
            minOrNullIf(done.broker_time, done.event = 'Promotion Clicked') AS clicked_at,
            minOrNullIf(done.broker_time, done.event = 'Order Completed') AS ordered_at,
            argMinOrNullIf(done.revenue, done.broker_time, done.event = 'Order Completed') AS revenue
        FROM offer_decisions_served AS served INNER JOIN
        (
            SELECT tenant, user, recommendation_id, event, revenue, broker_time FROM events FINAL
            WHERE startsWith(recommendation_id, 'offer-') AND event IN ('Promotion Viewed', 'Promotion Clicked', 'Order Completed')
        ) AS done
        ON done.tenant = served.tenant AND done.user = served.user_id AND done.recommendation_id = served.recommendation_id
        WHERE served.offer_id != '' AND done.broker_time >= served.broker_time - INTERVAL 10 MINUTE
            AND done.broker_time <= served.broker_time + toIntervalSecond(served.window_s)
        GROUP BY tenant, recommendation_id
    )
SELECT served.tenant AS tenant, served.recommendation_id AS recommendation_id, user_id, placement, offer_id, propensity, holdout,
    groups, policy_version, served_at, reactions.seen_at AS seen_at, reactions.clicked_at AS clicked_at,
    reactions.ordered_at AS ordered_at, ifNull(reactions.revenue, 0) AS revenue,
    if(isNull(seen_at), 0, cost_impression) + if(isNull(clicked_at), 0, cost_click) + if(isNull(ordered_at), 0, cost_order) AS spent,
    text, about
FROM offer_decisions_served AS served
LEFT JOIN reactions ON reactions.tenant = served.tenant AND reactions.recommendation_id = served.recommendation_id
COMMENT 'One row a decision about an offer: what people did with it, as far as their events name its id.';

CREATE OR REPLACE VIEW offer_exposure
(
    tenant String COMMENT 'whose user',
    user_id String COMMENT 'events.user',
    placement String COMMENT 'name in the file of offers',
    offer_id String COMMENT 'what was shown',
    impressions UInt64 COMMENT 'decisions of which it was seen',
    clicks UInt64 COMMENT 'of these, clicked',
    orders UInt64 COMMENT 'of these, ordered from',
    first_seen_at DateTime64(3, 'UTC') COMMENT 'broker time',
    last_seen_at DateTime64(3, 'UTC') COMMENT 'broker time',
    text String COMMENT 'words of what was shown, the last ones under this id; empty before 0.7.0'
)
AS SELECT tenant, user_id, placement, offer_id, count() AS impressions, countIf(isNotNull(clicked_at)) AS clicks,
    countIf(isNotNull(ordered_at)) AS orders, min(assumeNotNull(seen_at)) AS first_seen_at, max(assumeNotNull(seen_at)) AS last_seen_at,
    argMax(offer_outcomes.text, (served_at, recommendation_id)) AS text
FROM offer_outcomes WHERE isNotNull(seen_at) GROUP BY tenant, user_id, placement, offer_id
COMMENT 'Who saw what, and how often.';

CREATE OR REPLACE VIEW offer_results
(
    tenant String COMMENT 'whose users',
    placement String COMMENT 'name in the file of offers',
    offer_id String COMMENT 'what was shown',
    holdout Bool COMMENT 'of users who are held out, who see the control; else of the others',
    decisions UInt64 COMMENT 'times it was chosen',
    users UInt64 COMMENT 'users who saw it',
    impressions UInt64 COMMENT 'decisions of which it was seen',
    clicks UInt64 COMMENT 'of these, clicked',
    orders UInt64 COMMENT 'of these, ordered from',
    revenue Float64 COMMENT 'of these orders',
    spent Float64 COMMENT 'what all of this cost',
    click_rate Float64 COMMENT 'clicks / impressions',
    click_low Float64 COMMENT 'lower end of its 95% confidence sequence: valid at any time, also for who looks every day',
    click_high Float64 COMMENT 'upper end',
    order_rate Float64 COMMENT 'orders / impressions',
    order_low Float64 COMMENT 'lower end of its 95% confidence sequence',
    order_high Float64 COMMENT 'upper end',
    text String COMMENT 'words of what was shown, the last ones under this id; empty before 0.7.0'
)
AS WITH 0.085 * 0.085 AS rho2
SELECT tenant, placement, offer_id, holdout, decisions, users, impressions, clicks, orders, revenue, spent,
    if(impressions = 0, 0, clicks / impressions) AS click_rate,
    if(impressions = 0, 0, greatest(0, click_rate - sqrt(click_p * (1 - click_p)) * width)) AS click_low,
    if(impressions = 0, 1, least(1, click_rate + sqrt(click_p * (1 - click_p)) * width)) AS click_high,
    if(impressions = 0, 0, orders / impressions) AS order_rate,
    if(impressions = 0, 0, greatest(0, order_rate - sqrt(order_p * (1 - order_p)) * width)) AS order_low,
    if(impressions = 0, 1, least(1, order_rate + sqrt(order_p * (1 - order_p)) * width)) AS order_high,
    text
FROM
(
    -- as experiment_results, but for the variance: with one success and one failure more, a rate of 0 is not sure of itself
    SELECT *, (clicks + 1) / (impressions + 2) AS click_p, (orders + 1) / (impressions + 2) AS order_p,
        sqrt(2 * (impressions * rho2 + 1) / (impressions * impressions * rho2) * log(sqrt(impressions * rho2 + 1) / 0.05)) AS width
    FROM
    (
        SELECT tenant, placement, offer_id, holdout, count() AS decisions, uniqExactIf(user_id, isNotNull(seen_at)) AS users,
            countIf(isNotNull(seen_at)) AS impressions, countIf(isNotNull(clicked_at)) AS clicks,
            countIf(isNotNull(ordered_at)) AS orders, sum(offer_outcomes.revenue) AS revenue, sum(offer_outcomes.spent) AS spent,
            argMax(offer_outcomes.text, (served_at, recommendation_id)) AS text
        FROM offer_outcomes WHERE offer_id != '' GROUP BY tenant, placement, offer_id, holdout
    )
)
COMMENT 'Offers beside each other. The policy gives each to those it suits: rates are not those of users drawn by lot.';
