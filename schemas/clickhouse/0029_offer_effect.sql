-- What came after an offer: an import and an event that comes late told of orders that were made before it.
CREATE OR REPLACE VIEW offer_effect
(
    tenant String COMMENT 'whose users',
    placement String COMMENT 'name in the file of offers',
    offered UInt64 COMMENT 'users for whom an offer was asked for, and who are not held out; each counts once',
    held_out UInt64 COMMENT 'users for whom one was asked for, and who are',
    offered_rate Float64 COMMENT 'of the former, who ordered after their first decision and within its window, with its id or without; imports and orders made before it do not count',
    held_out_rate Float64 COMMENT 'of the latter',
    offered_revenue Float64 COMMENT 'of these orders, less refunds of the same time, a user',
    held_out_revenue Float64 COMMENT 'of these orders, less refunds of the same time, a user',
    effect Float64 COMMENT 'offered_rate - held_out_rate',
    effect_low Float64 COMMENT 'lower end of its 95% confidence sequence: valid at any time, also for who looks every day',
    effect_high Float64 COMMENT 'upper end'
)
AS WITH
    0.085 * 0.085 AS rho2,
    people AS
    (
        SELECT tenant, placement, user_id, argMin(holdout, served_at) AS out, min(served_at) AS asked_at, min(broker_time) AS from_at,
            argMin(window_s, served_at) AS within_s
        FROM offer_decisions_served GROUP BY tenant, placement, user_id
    ),
    bought AS
    (
        SELECT tenant, user, groupArray((broker_time, timestamp, event = 'Order Completed',
            if(event = 'Order Refunded', -1, 1) * ifNull(revenue, 0))) AS acts
        FROM events FINAL
        WHERE lane = 'live' AND event IN ('Order Completed', 'Order Refunded')
            AND (tenant, user) IN (SELECT tenant, user_id FROM offer_decisions)
        GROUP BY tenant, user
    ),
    judged AS
    (
        SELECT people.tenant AS tenant, people.placement AS placement, people.out AS out,
            arrayFilter(act -> act.1 > from_at AND act.1 <= from_at + toIntervalSecond(within_s) AND act.2 > asked_at, bought.acts) AS counted,
            arrayExists(act -> act.3, counted) AS has_ordered, arraySum(act -> act.4, counted) AS money
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
            countIf(NOT out AND has_ordered) AS offered_ordered, countIf(out AND has_ordered) AS held_ordered,
            sumIf(money, NOT out) AS offered_sum, sumIf(money, out) AS held_sum
        FROM judged GROUP BY tenant, placement
    )
)
COMMENT 'Do offers help? Everybody for whom one was asked for, whatever they saw, beside those who are held out.';
