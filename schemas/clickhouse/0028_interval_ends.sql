-- Intervals that are not sure of themselves where an arm's users all did the same: its variance says nothing then. Rates have
-- that of one success and one failure more, as in offer_results; of money, and of too few, ends are not said.
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
    greatest(0, click_rate - sqrt(click_p * (1 - click_p)) * width) AS click_low,
    least(1, click_rate + sqrt(click_p * (1 - click_p)) * width) AS click_high,
    ordered / users AS order_rate,
    greatest(0, order_rate - sqrt(order_p * (1 - order_p)) * width) AS order_low,
    least(1, order_rate + sqrt(order_p * (1 - order_p)) * width) AS order_high
FROM
(
    SELECT *, (clicked + 1) / (users + 2) AS click_p, (ordered + 1) / (users + 2) AS order_p,
        sqrt(2 * (users * rho2 + 1) / (users * users * rho2) * log(sqrt(users * rho2 + 1) / 0.05)) AS width
    FROM totals
)
COMMENT 'Arms beside each other. Two arms differ when their sequences do not overlap (a strict rule), whenever somebody looks.';

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
    low Nullable(Float64) COMMENT 'lower end of the mean''s 95% confidence sequence: valid at any time, also for who looks every day; NULL of orders and revenue below 100 users, or 30 with more or less than 0',
    high Nullable(Float64) COMMENT 'upper end'
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
    multiIf(is_share, greatest(0, mean - half), is_enough, mean - half, NULL) AS low,
    multiIf(is_share, least(1, mean + half), is_enough, mean + half, NULL) AS high
FROM
(
    SELECT *, metric IN ('clicked', 'alerted', 'dissatisfied') AS is_share,
        users >= 100 AND some >= 30 AS is_enough, -- as stream/core/statistics/confidence.py asks of a difference
        (some + 1) / (users + 2) AS p, if(is_share, p * (1 - p), variance) AS spread,
        if(users = 0, 1,
            sqrt(spread * 2 * (users * rho2 + 1) / (users * users * rho2) * log(sqrt(users * rho2 + 1) / 0.05))) AS half
    FROM totals
)
COMMENT 'Every measure of every arm, a user at a time. Arms are compared by `clickwake experiments`, with what the file says is primary.';

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
    returns_low Nullable(Float64) COMMENT 'lower end of its 95% interval; NULL below 30 users or 30 held out',
    returns_high Nullable(Float64) COMMENT 'upper end of its 95% interval',
    costs Nullable(Float64) COMMENT 'of the messages told; NULL where the delivery says no value',
    expected_gain Nullable(Float64) COMMENT 'sum over the told, where a model said so',
    realised_gain Nullable(Float64) COMMENT 'value of returns, less that of as many held out, less costs',
    realised_low Nullable(Float64) COMMENT 'lower end of its 95% interval; NULL below 30 users or 30 held out',
    realised_high Nullable(Float64) COMMENT 'upper end of its 95% interval'
)
AS WITH
    arms AS
    (
        SELECT tenant, delivery,
            toFloat64(countIf(status != 'held_out')) AS n, countIf(told) AS n_told, toFloat64(countIf(status = 'held_out')) AS m,
            avgIf(toFloat64(returned), status != 'held_out') AS rate, avgIf(toFloat64(returned), status = 'held_out') AS held_rate,
            countIf(value IS NOT NULL) = count() AS valued, sumIf(cost, told) AS spent, sumIf(gain, told) AS foreseen,
            avgIf(coalesce(value, 0), status != 'held_out') AS worth, avgIf(coalesce(value, 0), status = 'held_out') AS held_worth,
            avgIf(told * coalesce(cost, 0), status != 'held_out') AS price,
            avgIf(returned * coalesce(value, 0) - told * coalesce(cost, 0), status != 'held_out') AS money,
            avgIf(returned * coalesce(value, 0), status = 'held_out') AS held_money,
            varPopIf(returned * coalesce(value, 0) - told * coalesce(cost, 0), status != 'held_out') AS money_spread,
            varPopIf(returned * coalesce(value, 0), status = 'held_out') AS held_money_spread
        FROM delivery_trials WHERE closed GROUP BY tenant, delivery
    ),
    -- variances with one user more who came back and one who did not, of the mean value and cost
    spreads AS
    (
        SELECT *, (n * rate + 1) / (n + 2) AS p, (m * held_rate + 1) / (m + 2) AS held_p,
            p * (1 - p) AS spread, held_p * (1 - held_p) AS held_spread,
            (n * money_spread + worth * worth / 2) / (n + 2) + 2 * n * pow((money + price - worth / 2) / (n + 2), 2) AS wider,
            (m * held_money_spread + held_worth * held_worth / 2) / (m + 2)
                + 2 * m * pow((held_money - held_worth / 2) / (m + 2), 2) AS held_wider
        FROM arms
    ),
    judged AS
    (
        SELECT *, n >= 30 AND m >= 30 AS is_enough,
            if(n > 0 AND m > 0, n * (rate - held_rate), NULL) AS returns,
            if(is_enough, 1.96 * n * sqrt(spread / n + held_spread / m), NULL) AS returns_half,
            if(n > 0 AND m > 0 AND valued, n * (money - held_money), NULL) AS realised,
            if(is_enough, 1.96 * n * sqrt(wider / n + held_wider / m), NULL) AS realised_half
        FROM spreads
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
    uplift_low Nullable(Float64) COMMENT 'lower end of its 95% interval; NULL below 30 told or 30 others',
    uplift_high Nullable(Float64) COMMENT 'upper end of its 95% interval',
    expected_gain Float64 COMMENT 'mean, of telling one user',
    realised_gain Nullable(Float64) COMMENT 'uplift * mean value - mean cost',
    realised_low Nullable(Float64) COMMENT 'lower end of its 95% interval; NULL below 30 told or 30 others',
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
        SELECT tenant, delivery, gain_model, part, count() AS n, countIf(told) AS n_told, n - n_told AS n_other,
            avg(said) AS mean_said, avg(foreseen) AS mean_foreseen, avg(worth) AS mean_worth, avg(price) AS mean_price,
            sumIf(weight, told) AS w, sumIf(weight * returned, told) / w AS rate,
            sumIf(weight, NOT told) AS v, sumIf(weight * returned, NOT told) / v AS other,
            sumIf(weight * weight * returned, told) AS ww_hit, sumIf(weight * weight, told) AS ww,
            sumIf(weight * weight * returned, NOT told) AS vv_hit, sumIf(weight * weight, NOT told) AS vv
        FROM known GROUP BY tenant, delivery, gain_model, part
    ),
    -- with one user more on either side who came back and one who did not, of the mean weight
    spreads AS
    (
        SELECT *, (n_told * rate + 1) / (n_told + 2) AS p, (n_other * other + 1) / (n_other + 2) AS q,
            -- returned is 0 or 1, so (y - p)^2 = y (1 - 2 p) + p^2
            (ww_hit * (1 - 2 * p) + p * p * ww) / (w * w) + (1 - 2 * p + 2 * p * p) / (n_told * n_told) AS spread,
            (vv_hit * (1 - 2 * q) + q * q * vv) / (v * v) + (1 - 2 * q + 2 * q * q) / (n_other * n_other) AS other_spread
        FROM sums
    ),
    judged AS
    (
        SELECT *, if(w > 0 AND v > 0, rate - other, NULL) AS found,
            if(n_told >= 30 AND n_other >= 30, 1.96 * sqrt(spread + other_spread), NULL) AS half
        FROM spreads
    )
SELECT tenant, delivery, gain_model, toUInt8(part) AS tenth, n AS users, n_told AS told, mean_said AS expected_uplift,
    found AS uplift, found - half AS uplift_low, found + half AS uplift_high, mean_foreseen AS expected_gain,
    found * mean_worth - mean_price AS realised_gain, (found - half) * mean_worth - mean_price AS realised_low,
    (found + half) * mean_worth - mean_price AS realised_high
FROM judged
COMMENT 'Does the model know whom it persuades? Expected beside realised effect, by tenths of the expected gain.';
