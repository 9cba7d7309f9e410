-- Alerts about more support tickets than usual, beside those about opinions.
ALTER TABLE satisfaction_alerts
    ADD COLUMN IF NOT EXISTS reason LowCardinality(String)
        COMMENT 'opinions: they got worse or better; tickets: there are more than usual, or as few again; empty before 0.7.0: opinions',
    COMMENT COLUMN state 'raised: it got worse; cleared: it is as before again',
    COMMENT COLUMN changed_at 'time of the first opinion after the change; for tickets, beginning of the first day',
    COMMENT COLUMN as_of_ts 'time of the opinion or ticket that made it certain',
    COMMENT COLUMN before 'mean satisfaction before, 0 to 1; tickets a day',
    COMMENT COLUMN after 'mean satisfaction since, 0 to 1; tickets a day',
    COMMENT COLUMN opinions_before 'opinions, or tickets, behind before',
    COMMENT COLUMN opinions_after 'opinions, or tickets, behind after';

CREATE OR REPLACE VIEW satisfaction_alerts_served
(
    tenant String COMMENT 'whose',
    alert_id String COMMENT 'satisfaction_alerts.alert_id',
    about String COMMENT 'item or brand',
    name String COMMENT 'item id, or the brand',
    state String COMMENT 'raised: it got worse; cleared: it is as before again',
    reason String COMMENT 'opinions, or tickets: more than usual',
    changed_at DateTime64(3, 'UTC') COMMENT 'time of the first opinion after the change; for tickets, beginning of the first day',
    as_of_ts DateTime64(3, 'UTC') COMMENT 'time of the opinion or ticket that made it certain',
    before Float64 COMMENT 'mean satisfaction before, 0 to 1; tickets a day',
    after Float64 COMMENT 'mean satisfaction since, 0 to 1; tickets a day',
    opinions_after UInt32 COMMENT 'opinions, or tickets, behind after',
    quotes Array(String) COMMENT 'sentences that speak for it; those of erased users are gone'
)
AS WITH quoted AS
(
    SELECT alerts.tenant AS tenant, alerts.alert_id AS alert_id,
        arrayMap(one -> one.2, arraySort(groupArray((place, telling)))) AS quotes
    FROM
    (
        SELECT tenant, alert_id, opinion_id, place FROM satisfaction_alerts FINAL
        ARRAY JOIN evidence_ids AS opinion_id, arrayEnumerate(evidence_ids) AS place
    ) AS alerts
    INNER JOIN (SELECT tenant, opinion_id, telling FROM opinions FINAL) AS said
        ON said.tenant = alerts.tenant AND said.opinion_id = alerts.opinion_id
    GROUP BY tenant, alert_id
)
SELECT alerts.tenant AS tenant, alerts.alert_id AS alert_id, about, name, state,
    if(alerts.reason = '', 'opinions', alerts.reason) AS reason, changed_at, as_of_ts, before, after, opinions_after,
    quoted.quotes AS quotes
FROM (SELECT * FROM satisfaction_alerts FINAL) AS alerts
LEFT JOIN quoted ON quoted.tenant = alerts.tenant AND quoted.alert_id = alerts.alert_id
COMMENT 'Alerts about items and brands with the sentences that speak for them.';
