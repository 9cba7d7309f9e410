-- Messages to the shop's own people, about items and brands.
ALTER TABLE deliveries
    ADD COLUMN IF NOT EXISTS thing String
        COMMENT 'item or brand that a message to the shop''s own people is about, brand/Clay; user_id is empty then';

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
        WHERE user_id != '' AND status IN ('sent', 'failed', 'held_out', 'left_out')
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
COMMENT 'Each user by the first decision of each delivery: drawn by lot, with what the user did in the week after it. Messages about things have no user.';
