-- Which offers were chosen for whom, with which chance, and what came of it.
CREATE TABLE IF NOT EXISTS offer_decisions
(
    tenant LowCardinality(String) COMMENT 'whose user',
    recommendation_id String COMMENT 'derived from what was answered; clients send it back',
    user_id String COMMENT 'whom it was made for: events.user',
    placement LowCardinality(String) COMMENT 'name in the file of offers',
    offer_id LowCardinality(String) COMMENT 'what was shown; empty for nothing',
    propensity Float64 COMMENT 'the chance of this choice',
    candidates Map(String, Float64) COMMENT 'offer to its chance, of those that might have been shown',
    refused Map(String, String) COMMENT 'offer to the reason why it might not',
    holdout Bool COMMENT 'the user is kept out for comparison: sees the control, or nothing',
    about Array(String) COMMENT 'what the offer is: features of the model',
    groups Array(LowCardinality(String)) COMMENT 'groups the user was in',
    reward LowCardinality(String) COMMENT 'what is learned from: click or order',
    window_s UInt32 COMMENT 'what the user does counts for so long',
    cost_impression Float64 COMMENT 'money an impression costs',
    cost_click Float64 COMMENT 'money a click costs',
    cost_order Float64 COMMENT 'money an order costs',
    budget_impressions Nullable(UInt64) COMMENT 'of the offer, in all, as the file said then',
    budget_impressions_per_day Nullable(UInt64) COMMENT 'a day (UTC)',
    budget_money Nullable(Float64) COMMENT 'in all',
    budget_money_per_day Nullable(Float64) COMMENT 'a day (UTC)',
    rules_version LowCardinality(String) COMMENT 'stands for the file of offers',
    policy_version LowCardinality(String) COMMENT 'stands for what had been learned',
    as_of_event_id String COMMENT 'the last event of the user that was known',
    as_of_ts Nullable(DateTime64(3, 'UTC')) COMMENT 'its event time; NULL for a user of whom nothing was known',
    served_at DateTime64(3, 'UTC') COMMENT 'when it was answered first, by the clock of the API',
    partition_time DateTime('UTC') COMMENT 'served_at clamped to 2000..2100; only for partitioning',
    kafka_partition Int32 COMMENT 'partition of the decisions topic',
    kafka_offset Int64 COMMENT 'offset in that partition',
    broker_time DateTime64(3, 'UTC') COMMENT 'when the broker appended the record'
)
ENGINE = ReplacingMergeTree(broker_time)
PARTITION BY toYYYYMM(partition_time)
ORDER BY (tenant, recommendation_id, kafka_partition, kafka_offset)
SETTINGS non_replicated_deduplication_window = 1000
COMMENT 'Every logging of every decision; several replicas log the same one. Read offer_decisions_served: the first of each.';

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
    spent Float64 COMMENT 'what impression, click and order cost'
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
    if(isNull(seen_at), 0, cost_impression) + if(isNull(clicked_at), 0, cost_click) + if(isNull(ordered_at), 0, cost_order) AS spent
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
    last_seen_at DateTime64(3, 'UTC') COMMENT 'broker time'
)
AS SELECT tenant, user_id, placement, offer_id, count() AS impressions, countIf(isNotNull(clicked_at)) AS clicks,
    countIf(isNotNull(ordered_at)) AS orders, min(assumeNotNull(seen_at)) AS first_seen_at, max(assumeNotNull(seen_at)) AS last_seen_at
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
    order_high Float64 COMMENT 'upper end'
)
AS WITH 0.085 * 0.085 AS rho2
SELECT tenant, placement, offer_id, holdout, decisions, users, impressions, clicks, orders, revenue, spent,
    if(impressions = 0, 0, clicks / impressions) AS click_rate,
    if(impressions = 0, 0, greatest(0, click_rate - sqrt(click_p * (1 - click_p)) * width)) AS click_low,
    if(impressions = 0, 1, least(1, click_rate + sqrt(click_p * (1 - click_p)) * width)) AS click_high,
    if(impressions = 0, 0, orders / impressions) AS order_rate,
    if(impressions = 0, 0, greatest(0, order_rate - sqrt(order_p * (1 - order_p)) * width)) AS order_low,
    if(impressions = 0, 1, least(1, order_rate + sqrt(order_p * (1 - order_p)) * width)) AS order_high
FROM
(
    -- as experiment_results, but for the variance: with one success and one failure more, a rate of 0 is not sure of itself
    SELECT *, (clicks + 1) / (impressions + 2) AS click_p, (orders + 1) / (impressions + 2) AS order_p,
        sqrt(2 * (impressions * rho2 + 1) / (impressions * impressions * rho2) * log(sqrt(impressions * rho2 + 1) / 0.05)) AS width
    FROM
    (
        SELECT tenant, placement, offer_id, holdout, count() AS decisions, uniqExactIf(user_id, isNotNull(seen_at)) AS users,
            countIf(isNotNull(seen_at)) AS impressions, countIf(isNotNull(clicked_at)) AS clicks,
            countIf(isNotNull(ordered_at)) AS orders, sum(offer_outcomes.revenue) AS revenue, sum(offer_outcomes.spent) AS spent
        FROM offer_outcomes WHERE offer_id != '' GROUP BY tenant, placement, offer_id, holdout
    )
)
COMMENT 'Offers beside each other. The policy gives each to those it suits: rates are not those of users drawn by lot.';

CREATE OR REPLACE VIEW offer_effect
(
    tenant String COMMENT 'whose users',
    placement String COMMENT 'name in the file of offers',
    offered UInt64 COMMENT 'users for whom an offer was asked for, and who are not held out; each counts once',
    held_out UInt64 COMMENT 'users for whom one was asked for, and who are',
    offered_rate Float64 COMMENT 'of the former, who ordered within the window after their first decision, with its id or without',
    held_out_rate Float64 COMMENT 'of the latter',
    offered_revenue Float64 COMMENT 'of these orders, a user',
    held_out_revenue Float64 COMMENT 'of these orders, a user',
    effect Float64 COMMENT 'offered_rate - held_out_rate',
    effect_low Float64 COMMENT 'lower end of its 95% confidence sequence: valid at any time, also for who looks every day',
    effect_high Float64 COMMENT 'upper end'
)
AS WITH
    0.085 * 0.085 AS rho2,
    people AS
    (
        SELECT tenant, placement, user_id, argMin(holdout, served_at) AS out, min(broker_time) AS from_at,
            argMin(window_s, served_at) AS within_s
        FROM offer_decisions_served GROUP BY tenant, placement, user_id
    ),
    bought AS
    (
        SELECT tenant, user, groupArray((broker_time, ifNull(revenue, 0))) AS orders
        FROM events FINAL WHERE event = 'Order Completed' AND (tenant, user) IN (SELECT tenant, user_id FROM offer_decisions)
        GROUP BY tenant, user
    ),
    judged AS
    (
        SELECT people.tenant AS tenant, people.placement AS placement, people.out AS out,
            arrayFilter(one -> one.1 > from_at AND one.1 <= from_at + toIntervalSecond(within_s), bought.orders) AS counted
        FROM people LEFT JOIN bought ON bought.tenant = people.tenant AND bought.user = people.user_id
    )
SELECT tenant, placement, offered, held_out,
    if(offered = 0, 0, offered_ordered / offered) AS offered_rate,
    if(held_out = 0, 0, held_ordered / held_out) AS held_out_rate,
    if(offered = 0, 0, offered_sum / offered) AS offered_revenue,
    if(held_out = 0, 0, held_sum / held_out) AS held_out_revenue,
    offered_rate - held_out_rate AS effect,
    if(offered * held_out = 0, -1, greatest(-1, effect - offered_half - held_half)) AS effect_low,
    if(offered * held_out = 0, 1, least(1, effect + offered_half + held_half)) AS effect_high
FROM
(
    -- two sequences of 97.5% each, so that both hold at once in 95%
    SELECT *, (offered_ordered + 1) / (offered + 2) AS offered_p, (held_ordered + 1) / (held_out + 2) AS held_p,
        sqrt(offered_p * (1 - offered_p)
            * 2 * (offered * rho2 + 1) / (offered * offered * rho2) * log(sqrt(offered * rho2 + 1) / 0.025)) AS offered_half,
        sqrt(held_p * (1 - held_p)
            * 2 * (held_out * rho2 + 1) / (held_out * held_out * rho2) * log(sqrt(held_out * rho2 + 1) / 0.025)) AS held_half
    FROM
    (
        SELECT tenant, placement, countIf(NOT out) AS offered, countIf(out) AS held_out,
            countIf(NOT out AND notEmpty(counted)) AS offered_ordered, countIf(out AND notEmpty(counted)) AS held_ordered,
            sumIf(arraySum(one -> one.2, counted), NOT out) AS offered_sum, sumIf(arraySum(one -> one.2, counted), out) AS held_sum
        FROM judged GROUP BY tenant, placement
    )
)
COMMENT 'Do offers help? Everybody for whom one was asked for, whatever they saw, beside those who are held out.';

CREATE OR REPLACE VIEW offer_spend
(
    tenant String COMMENT 'whose offers',
    offer_id String COMMENT 'at all placements',
    day Date COMMENT 'UTC, by broker time',
    impressions UInt64 COMMENT 'on this day',
    spent Float64 COMMENT 'money, on this day',
    impressions_so_far UInt64 COMMENT 'up to this day',
    spent_so_far Float64 COMMENT 'money, up to this day',
    budget_impressions_per_day Nullable(UInt64) COMMENT 'as the newest decision has it',
    budget_money_per_day Nullable(Float64) COMMENT 'as the newest decision has it',
    budget_impressions Nullable(UInt64) COMMENT 'as the newest decision has it',
    budget_money Nullable(Float64) COMMENT 'as the newest decision has it'
)
AS WITH
    costs AS
    (
        SELECT tenant, recommendation_id, cost_impression AS seen, cost_click AS clicked, cost_order AS ordered
        FROM offer_decisions_served
    ),
    budgets AS
    (
        SELECT tenant, offer_id, argMax(tuple(budget_impressions_per_day), served_at).1 AS of_day,
            argMax(tuple(budget_money_per_day), served_at).1 AS money_of_day,
            argMax(tuple(budget_impressions), served_at).1 AS of_all, argMax(tuple(budget_money), served_at).1 AS money_of_all
        FROM offer_decisions_served WHERE offer_id != '' GROUP BY tenant, offer_id
    ),
    days AS
    (
        SELECT tenant, offer_id, toDate(assumeNotNull(step.1)) AS day, sum(step.2) AS impressions, sum(step.3) AS spent
        FROM
        (
            SELECT outcomes.tenant AS tenant, outcomes.offer_id AS offer_id,
                [(seen_at, 1, costs.seen), (clicked_at, 0, costs.clicked), (ordered_at, 0, costs.ordered)] AS steps
            FROM offer_outcomes AS outcomes
            INNER JOIN costs ON costs.tenant = outcomes.tenant AND costs.recommendation_id = outcomes.recommendation_id
            WHERE isNotNull(seen_at)
        )
        ARRAY JOIN steps AS step
        WHERE isNotNull(step.1)
        GROUP BY tenant, offer_id, day
    )
SELECT days.tenant AS tenant, days.offer_id AS offer_id, days.day AS day, days.impressions AS impressions, days.spent AS spent,
    sum(days.impressions) OVER so_far AS impressions_so_far, sum(days.spent) OVER so_far AS spent_so_far,
    of_day AS budget_impressions_per_day, money_of_day AS budget_money_per_day, of_all AS budget_impressions,
    money_of_all AS budget_money
FROM days LEFT JOIN budgets ON budgets.tenant = days.tenant AND budgets.offer_id = days.offer_id
WINDOW so_far AS (PARTITION BY days.tenant, days.offer_id ORDER BY days.day)
COMMENT 'What each offer has spent a day, against its budgets.';
