-- What came of telling the shop's own people about items and brands.
CREATE OR REPLACE VIEW staff_delivery_outcomes
(
    tenant String COMMENT 'whose items and brands',
    delivery String COMMENT 'name in the file of deliveries',
    status String COMMENT 'sent, failed, or capped: held back by a cap',
    messages UInt64 COMMENT 'decided about, one an alert',
    cleared_30d UInt64 COMMENT 'of these, whose item or brand was cleared of it within 30 days after the decision',
    clear_rate Nullable(Float64) COMMENT 'cleared within the 30 days / messages whose 30 days are over',
    days_to_clear Nullable(Float64) COMMENT 'median days from the decision to that, of those cleared',
    closed UInt64 COMMENT 'messages whose 30 days are over'
)
AS WITH
    alerts AS
    (
        SELECT tenant, alert_id, about, name, if(reason = '', 'opinions', reason) AS cause, state, as_of_ts
        FROM satisfaction_alerts FINAL
    ),
    ends AS
    (
        SELECT tenant, about, name, cause, groupArray(as_of_ts) AS times FROM alerts WHERE state = 'cleared'
        GROUP BY tenant, about, name, cause
    ),
    told AS
    (
        SELECT tenant, delivery, status, about_id, coalesce(decided_at, at) AS decided FROM deliveries FINAL
        WHERE thing != '' AND status IN ('sent', 'failed', 'capped')
    ),
    followed AS
    (
        SELECT told.tenant AS tenant, told.delivery AS delivery, told.status AS status,
            arrayFilter(t -> t > told.decided AND t <= told.decided + INTERVAL 30 DAY, ends.times) AS cleared_at,
            if(empty(cleared_at), NULL, dateDiff('second', told.decided, arrayMin(cleared_at)) / 86400) AS days,
            now64(3) > told.decided + INTERVAL 30 DAY AS is_over
        FROM told
        INNER JOIN alerts ON alerts.tenant = told.tenant AND alerts.alert_id = told.about_id
        LEFT JOIN ends ON ends.tenant = alerts.tenant AND ends.about = alerts.about AND ends.name = alerts.name
            AND ends.cause = alerts.cause
    )
SELECT tenant, delivery, status, count() AS messages, countIf(notEmpty(cleared_at)) AS cleared_30d,
    if(countIf(is_over) = 0, NULL, countIf(notEmpty(cleared_at) AND is_over) / countIf(is_over)) AS clear_rate,
    quantileExact(0.5)(days) AS days_to_clear, countIf(is_over) AS closed
FROM followed GROUP BY tenant, delivery, status
COMMENT 'What came of telling the shop''s own people: items and brands that were cleared of the alert within 30 days. Nobody is held out; what a cap held back came soon after another message, and is no comparison.';
