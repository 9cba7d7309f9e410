-- Whom a message persuades: what was known at the time of the alert, what was expected, and what came of it.
ALTER TABLE churn_alerts
    ADD COLUMN IF NOT EXISTS features Array(Float32)
        COMMENT 'what was known of the user when it was raised, see docs/deliveries.md; empty when cleared';

CREATE OR REPLACE VIEW churn_alerts_served AS
SELECT * FROM churn_alerts FINAL
ORDER BY broker_time, kafka_partition, kafka_offset
LIMIT 1 BY tenant, alert_id
COMMENT 'The first emission of each alert. Later ones are replays. Columns as in churn_alerts.';

ALTER TABLE deliveries
    ADD COLUMN IF NOT EXISTS decided_at Nullable(DateTime64(3, 'UTC')) COMMENT 'when its lot was drawn; NULL before 0.4.0',
    ADD COLUMN IF NOT EXISTS propensity Nullable(Float64) COMMENT 'the chance to be sent that the lot had',
    ADD COLUMN IF NOT EXISTS expected_value Nullable(Float64) COMMENT 'of the return of this user, where the delivery says',
    ADD COLUMN IF NOT EXISTS expected_cost Nullable(Float64) COMMENT 'of the message',
    ADD COLUMN IF NOT EXISTS expected_uplift Nullable(Float64)
        COMMENT 'P(back within 7 days) if sent minus if not; NULL without a model that knows',
    ADD COLUMN IF NOT EXISTS expected_gain Nullable(Float64) COMMENT 'expected_uplift * expected_value - expected_cost',
    ADD COLUMN IF NOT EXISTS gain_model LowCardinality(String) COMMENT 'released bundle that said so; empty for none',
    ADD COLUMN IF NOT EXISTS reason String COMMENT 'why it was sent or not, in words';

CREATE OR REPLACE VIEW delivery_trials
(
    tenant String COMMENT 'whose user',
    delivery String COMMENT 'name in the file of deliveries',
    user_id String COMMENT 'events.user',
    delivery_id String COMMENT 'the first decision about this user by this delivery',
    about_id String COMMENT 'the alert or change it is about',
    status String COMMENT 'sent, failed, held_out or left_out',
    told UInt8 COMMENT 'whether it was to be sent: sent or failed',
    decided_at DateTime64(3, 'UTC') COMMENT 'when its lot was drawn; both arms are watched from here',
    propensity Nullable(Float64) COMMENT 'the chance to be sent that the lot had',
    value Nullable(Float64) COMMENT 'deliveries.expected_value',
    cost Nullable(Float64) COMMENT 'deliveries.expected_cost',
    uplift Nullable(Float64) COMMENT 'deliveries.expected_uplift',
    gain Nullable(Float64) COMMENT 'deliveries.expected_gain',
    gain_model String COMMENT 'deliveries.gain_model',
    returned UInt8 COMMENT 'an event of the user within 7 days',
    ordered UInt8 COMMENT 'an Order Completed within 7 days',
    closed UInt8 COMMENT 'the 7 days are over'
)
AS WITH
    firsts AS
    (
        SELECT *, coalesce(decided_at, at) AS drawn_at FROM deliveries FINAL
        WHERE status IN ('sent', 'failed', 'held_out', 'left_out')
        ORDER BY drawn_at, delivery_id LIMIT 1 BY tenant, delivery, user_id
    ),
    acts AS
    (
        SELECT tenant, user, groupUniqArray(timestamp) AS times, groupUniqArrayIf(timestamp, event = 'Order Completed') AS orders
        FROM events FINAL WHERE (tenant, user) IN (SELECT tenant, user_id FROM deliveries) GROUP BY tenant, user
    )
SELECT firsts.tenant AS tenant, firsts.delivery AS delivery, firsts.user_id AS user_id, firsts.delivery_id AS delivery_id,
    firsts.about_id AS about_id, firsts.status AS status, firsts.status IN ('sent', 'failed') AS told,
    firsts.drawn_at AS decided_at, firsts.propensity AS propensity, firsts.expected_value AS value,
    firsts.expected_cost AS cost, firsts.expected_uplift AS uplift, firsts.expected_gain AS gain,
    firsts.gain_model AS gain_model,
    arrayExists(t -> t > firsts.drawn_at AND t <= firsts.drawn_at + INTERVAL 7 DAY, acts.times) AS returned,
    arrayExists(t -> t > firsts.drawn_at AND t <= firsts.drawn_at + INTERVAL 7 DAY, acts.orders) AS ordered,
    now64(3) > firsts.drawn_at + INTERVAL 7 DAY AS closed
FROM firsts LEFT JOIN acts ON acts.tenant = firsts.tenant AND acts.user = firsts.user_id
COMMENT 'Each user by the first decision of each delivery: drawn by lot, with what the user did in the week after it.';

CREATE OR REPLACE VIEW delivery_outcomes
(
    tenant String COMMENT 'whose users',
    delivery String COMMENT 'name in the file of deliveries',
    status String COMMENT 'sent, held_out for comparison, or left_out since it would not pay',
    users UInt64 COMMENT 'users, each by the first decision of this delivery',
    returned_7d UInt64 COMMENT 'of these, with an event within 7 days after it',
    ordered_7d UInt64 COMMENT 'of these, with an Order Completed within 7 days',
    return_rate Nullable(Float64) COMMENT 'returned_7d / users whose 7 days are over',
    closed UInt64 COMMENT 'users whose 7 days are over'
)
AS SELECT tenant, delivery, status, count() AS users, countIf(returned) AS returned_7d, countIf(ordered) AS ordered_7d,
    if(countIf(is_over) = 0, NULL, countIf(returned AND is_over) / countIf(is_over)) AS return_rate, countIf(is_over) AS closed
FROM (SELECT *, closed AS is_over FROM delivery_trials) WHERE status != 'failed' GROUP BY tenant, delivery, status
COMMENT 'Does telling help? Who was told beside who was held out, by what they did in the week after the decision. For a delivery with a gain, where the told are chosen, see delivery_campaigns.';

CREATE OR REPLACE VIEW delivery_campaigns
(
    tenant String COMMENT 'whose users',
    delivery String COMMENT 'name in the file of deliveries',
    users UInt64 COMMENT 'decided about, not held out, their 7 days over',
    told UInt64 COMMENT 'of these, those it was to be sent',
    held_out UInt64 COMMENT 'held out, whatever was expected of them, their 7 days over',
    return_rate Nullable(Float64) COMMENT 'of the users',
    held_out_rate Nullable(Float64) COMMENT 'of the held out',
    returns_gained Nullable(Float64) COMMENT 'users * (return_rate - held_out_rate)',
    returns_low Nullable(Float64) COMMENT 'lower end of its 95% interval',
    returns_high Nullable(Float64) COMMENT 'upper end of its 95% interval',
    costs Nullable(Float64) COMMENT 'of the messages told; NULL where the delivery says no value',
    expected_gain Nullable(Float64) COMMENT 'sum over the told, where a model said so',
    realised_gain Nullable(Float64) COMMENT 'value of returns, less that of as many held out, less costs',
    realised_low Nullable(Float64) COMMENT 'lower end of its 95% interval',
    realised_high Nullable(Float64) COMMENT 'upper end of its 95% interval'
)
AS WITH
    arms AS
    (
        SELECT tenant, delivery,
            toFloat64(countIf(status != 'held_out')) AS n, countIf(told) AS n_told, toFloat64(countIf(status = 'held_out')) AS m,
            avgIf(toFloat64(returned), status != 'held_out') AS rate, avgIf(toFloat64(returned), status = 'held_out') AS held_rate,
            varPopIf(toFloat64(returned), status != 'held_out') AS spread,
            varPopIf(toFloat64(returned), status = 'held_out') AS held_spread,
            countIf(value IS NOT NULL) = count() AS valued, sumIf(cost, told) AS spent, sumIf(gain, told) AS foreseen,
            avgIf(returned * coalesce(value, 0) - told * coalesce(cost, 0), status != 'held_out') AS money,
            avgIf(returned * coalesce(value, 0), status = 'held_out') AS held_money,
            varPopIf(returned * coalesce(value, 0) - told * coalesce(cost, 0), status != 'held_out') AS money_spread,
            varPopIf(returned * coalesce(value, 0), status = 'held_out') AS held_money_spread
        FROM delivery_trials WHERE closed GROUP BY tenant, delivery
    ),
    judged AS
    (
        SELECT *, if(n > 0 AND m > 0, n * (rate - held_rate), NULL) AS returns,
            1.96 * n * sqrt(spread / n + held_spread / m) AS returns_half,
            if(n > 0 AND m > 0 AND valued, n * (money - held_money), NULL) AS realised,
            1.96 * n * sqrt(money_spread / n + held_money_spread / m) AS realised_half
        FROM arms
    )
SELECT tenant, delivery, toUInt64(n) AS users, n_told AS told, toUInt64(m) AS held_out, if(n > 0, rate, NULL) AS return_rate,
    if(m > 0, held_rate, NULL) AS held_out_rate, returns AS returns_gained, returns - returns_half AS returns_low,
    returns + returns_half AS returns_high, if(valued, spent, NULL) AS costs, foreseen AS expected_gain,
    realised AS realised_gain, realised - realised_half AS realised_low, realised + realised_half AS realised_high
FROM judged
COMMENT 'What a campaign is worth: all who were decided about, told or left out as it pays, beside the random share held out.';

CREATE OR REPLACE VIEW delivery_gains
(
    tenant String COMMENT 'whose users',
    delivery String COMMENT 'name in the file of deliveries',
    gain_model String COMMENT 'released bundle that foresaw the gain',
    tenth UInt8 COMMENT '1: the tenth of users with the greatest expected gain',
    users UInt64 COMMENT 'users whose 7 days are over, and whom the lot could have put on either side',
    told UInt64 COMMENT 'of these, those it was to be sent',
    expected_uplift Float64 COMMENT 'mean of what the model said',
    uplift Nullable(Float64) COMMENT 'return rate of the told minus that of the others, each weighted by 1 / its chance',
    uplift_low Nullable(Float64) COMMENT 'lower end of its 95% interval',
    uplift_high Nullable(Float64) COMMENT 'upper end of its 95% interval',
    expected_gain Float64 COMMENT 'mean, of telling one user',
    realised_gain Nullable(Float64) COMMENT 'uplift * mean value - mean cost',
    realised_low Nullable(Float64) COMMENT 'lower end of its 95% interval',
    realised_high Nullable(Float64) COMMENT 'upper end of its 95% interval'
)
AS WITH
    known AS
    (
        SELECT tenant, delivery, gain_model, told, returned, assumeNotNull(value) AS worth, assumeNotNull(cost) AS price,
            assumeNotNull(gain) AS foreseen, assumeNotNull(uplift) AS said,
            if(told, 1 / assumeNotNull(propensity), 1 / (1 - assumeNotNull(propensity))) AS weight,
            intDiv(10 * (row_number() OVER (PARTITION BY tenant, delivery, gain_model ORDER BY gain DESC, delivery_id) - 1),
                count() OVER (PARTITION BY tenant, delivery, gain_model)) + 1 AS part
        FROM delivery_trials
        WHERE closed AND gain IS NOT NULL AND propensity > 0 AND propensity < 1
    ),
    sums AS
    (
        SELECT tenant, delivery, gain_model, part, count() AS n, countIf(told) AS n_told, avg(said) AS mean_said,
            avg(foreseen) AS mean_foreseen, avg(worth) AS mean_worth, avg(price) AS mean_price,
            sumIf(weight, told) AS w, sumIf(weight * returned, told) / w AS rate,
            sumIf(weight, NOT told) AS v, sumIf(weight * returned, NOT told) / v AS other,
            sumIf(weight * weight * returned, told) AS ww_hit, sumIf(weight * weight, told) AS ww,
            sumIf(weight * weight * returned, NOT told) AS vv_hit, sumIf(weight * weight, NOT told) AS vv
        FROM known GROUP BY tenant, delivery, gain_model, part
    ),
    judged AS
    (
        SELECT *, if(w > 0 AND v > 0, rate - other, NULL) AS found, -- returned is 0 or 1, so (y - r)^2 = y (1 - 2 r) + r^2
            1.96 * sqrt((ww_hit * (1 - 2 * rate) + rate * rate * ww) / (w * w)
                + (vv_hit * (1 - 2 * other) + other * other * vv) / (v * v)) AS half
        FROM sums
    )
SELECT tenant, delivery, gain_model, toUInt8(part) AS tenth, n AS users, n_told AS told, mean_said AS expected_uplift,
    found AS uplift, found - half AS uplift_low, found + half AS uplift_high, mean_foreseen AS expected_gain,
    found * mean_worth - mean_price AS realised_gain, (found - half) * mean_worth - mean_price AS realised_low,
    (found + half) * mean_worth - mean_price AS realised_high
FROM judged
COMMENT 'Does the model know whom it persuades? Expected beside realised effect, by tenths of the expected gain.';
