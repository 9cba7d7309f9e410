-- What people think of items and brands, and when it changed.
CREATE TABLE IF NOT EXISTS opinions
(
    tenant LowCardinality(String) COMMENT 'whose user',
    opinion_id String COMMENT 'derived from tenant and event',
    user_id String COMMENT 'events.user',
    event_id String COMMENT 'events.message_id, which holds the whole text',
    source LowCardinality(String) COMMENT 'review, survey, mention or ticket; tickets count in no mean',
    lane LowCardinality(String) COMMENT 'live, import or repair',
    said_at DateTime64(3, 'UTC') COMMENT 'time of the event',
    item_id String COMMENT 'what it is about; empty when it is about no item',
    brand LowCardinality(String) COMMENT 'of the event, else of the catalog; empty when unknown',
    language LowCardinality(String) COMMENT 'ISO 639-1, und when nobody can say',
    satisfaction Nullable(Float64) COMMENT '0 to 1: of stars given, else of stars read, else p_satisfied',
    stars Nullable(Float64) COMMENT 'given, on the scale of 1 to 5',
    stars_read Nullable(Float64) COMMENT 'read from the text: mean of the distribution',
    p_satisfied Nullable(Float64) COMMENT 'chance that the writer recommends it, from the text alone',
    aspects Array(LowCardinality(String)) COMMENT 'what its sentences are about, one entry a sentence and aspect',
    aspect_words Array(String) COMMENT 'the words that say so',
    aspect_sentences Array(String) COMMENT 'the sentence',
    aspect_p_satisfied Array(Nullable(Float64)) COMMENT 'chance of a recommendation, from the sentence alone',
    telling String COMMENT 'the sentence that says most',
    model_version LowCardinality(String) COMMENT 'satisfaction model of the language; empty without one',
    partition_time DateTime('UTC') COMMENT 'said_at clamped to 2000..2100; only for partitioning',
    kafka_partition Int32 COMMENT 'partition of the opinions topic',
    kafka_offset Int64 COMMENT 'offset in that partition',
    broker_time DateTime64(3, 'UTC') COMMENT 'when the broker appended the record',
    first_wins UInt64 MATERIALIZED 18446744073709551615 - bitShiftLeft(toUInt64(toUnixTimestamp64Milli(broker_time)), 20)
        - kafka_offset % 1048576 COMMENT 'version of the row: the first record wins'
)
ENGINE = ReplacingMergeTree(first_wins)
PARTITION BY toYYYYMM(partition_time)
ORDER BY (tenant, opinion_id)
SETTINGS non_replicated_deduplication_window = 1000
COMMENT 'One row an opinion, identity (tenant, opinion_id). Read with FINAL.';

CREATE TABLE IF NOT EXISTS satisfaction_alerts
(
    tenant LowCardinality(String) COMMENT 'whose item or brand',
    alert_id String COMMENT 'derived from what it is about and the number of the change',
    about LowCardinality(String) COMMENT 'item or brand',
    name String COMMENT 'item id, or the brand',
    state LowCardinality(String) COMMENT 'raised: it fell; cleared: it rose again',
    number UInt32 COMMENT 'of the change of this item or brand',
    changed_at DateTime64(3, 'UTC') COMMENT 'time of the first opinion after the change',
    as_of_ts DateTime64(3, 'UTC') COMMENT 'time of the opinion that made it certain',
    before Float64 COMMENT 'mean satisfaction before, 0 to 1',
    after Float64 COMMENT 'mean satisfaction since',
    opinions_before UInt32 COMMENT 'opinions behind before',
    opinions_after UInt32 COMMENT 'opinions behind after',
    evidence_ids Array(String) COMMENT 'opinions that are quoted: opinions.opinion_id',
    opinions_per_false_alarm UInt32 COMMENT 'so many on average, at least, until a false alarm about something stable',
    partition_time DateTime('UTC') COMMENT 'as_of_ts clamped to 2000..2100; only for partitioning',
    kafka_partition Int32 COMMENT 'partition of the satisfaction-alerts topic',
    kafka_offset Int64 COMMENT 'offset in that partition',
    broker_time DateTime64(3, 'UTC') COMMENT 'when the broker appended the record',
    first_wins UInt64 MATERIALIZED 18446744073709551615 - bitShiftLeft(toUInt64(toUnixTimestamp64Milli(broker_time)), 20)
        - kafka_offset % 1048576 COMMENT 'version of the row: the first record wins'
)
ENGINE = ReplacingMergeTree(first_wins)
PARTITION BY toYYYYMM(partition_time)
ORDER BY (tenant, alert_id)
SETTINGS non_replicated_deduplication_window = 1000
COMMENT 'One row an alert, identity (tenant, alert_id); no text of anybody. Read with FINAL, or with quotes by satisfaction_alerts_served.';

CREATE OR REPLACE VIEW satisfaction_daily
(
    tenant String COMMENT 'whose',
    day Date COMMENT 'of the event, UTC',
    item_id String COMMENT 'what it is about; empty for a brand as a whole',
    brand String COMMENT 'empty when unknown',
    opinions UInt64 COMMENT 'that count in the mean: no tickets',
    satisfaction Nullable(Float64) COMMENT 'mean, 0 to 1',
    stars Nullable(Float64) COMMENT 'mean of the stars that were given',
    tickets UInt64 COMMENT 'support tickets beside'
)
AS SELECT tenant, toDate(said_at) AS day, item_id, brand,
    countIf(said.satisfaction IS NOT NULL AND source != 'ticket') AS opinions,
    avgIf(said.satisfaction, source != 'ticket') AS satisfaction, avg(said.stars) AS stars,
    countIf(source = 'ticket') AS tickets
FROM (SELECT tenant, said_at, item_id, brand, satisfaction, source, stars FROM opinions FINAL) AS said
GROUP BY tenant, day, item_id, brand
COMMENT 'Satisfaction by day, item and brand.';

CREATE OR REPLACE VIEW satisfaction_by_item
(
    tenant String COMMENT 'whose',
    item_id String COMMENT 'items.item_id',
    opinions UInt64 COMMENT 'that count in the mean: no tickets',
    satisfaction Nullable(Float64) COMMENT 'mean, 0 to 1',
    shrunk Float64 COMMENT 'pulled to the tenant''s mean by ten opinions of an average item',
    unhappy Float64 COMMENT 'share with a satisfaction below a half',
    tickets UInt64 COMMENT 'support tickets beside'
)
AS WITH
    said AS (SELECT tenant, item_id, satisfaction, source FROM opinions FINAL WHERE item_id != ''),
    means AS (SELECT tenant, avg(satisfaction) AS mean FROM said WHERE source != 'ticket' GROUP BY tenant),
    by_item AS
    (
        SELECT tenant, item_id, countIf(satisfaction IS NOT NULL AND source != 'ticket') AS n,
            sumIf(satisfaction, source != 'ticket') AS total,
            countIf(satisfaction < 0.5 AND source != 'ticket') AS bad, countIf(source = 'ticket') AS complaints
        FROM said GROUP BY tenant, item_id
    )
SELECT by_item.tenant AS tenant, item_id, n AS opinions, if(n = 0, NULL, total / n) AS satisfaction,
    (ifNull(total, 0) + 10 * ifNull(mean, 0)) / (n + 10) AS shrunk, bad / greatest(n, 1) AS unhappy, complaints AS tickets
FROM by_item LEFT JOIN means ON means.tenant = by_item.tenant
COMMENT 'Satisfaction by item, of all times.';

CREATE OR REPLACE VIEW satisfaction_by_brand
(
    tenant String COMMENT 'whose',
    brand String COMMENT 'of the event, else of the catalog',
    opinions UInt64 COMMENT 'that count in the mean: no tickets',
    satisfaction Nullable(Float64) COMMENT 'mean, 0 to 1',
    unhappy Float64 COMMENT 'share with a satisfaction below a half',
    items UInt64 COMMENT 'items that were spoken of',
    tickets UInt64 COMMENT 'support tickets beside'
)
AS SELECT tenant, brand, countIf(said.satisfaction IS NOT NULL AND source != 'ticket') AS opinions,
    avgIf(said.satisfaction, source != 'ticket') AS satisfaction,
    countIf(said.satisfaction < 0.5 AND source != 'ticket')
        / greatest(countIf(said.satisfaction IS NOT NULL AND source != 'ticket'), 1) AS unhappy,
    uniqExactIf(item_id, item_id != '') AS items, countIf(source = 'ticket') AS tickets
FROM (SELECT tenant, brand, satisfaction, source, item_id FROM opinions FINAL WHERE brand != '') AS said
GROUP BY tenant, brand
COMMENT 'Satisfaction by brand, of all times.';

CREATE OR REPLACE VIEW satisfaction_by_aspect
(
    tenant String COMMENT 'whose',
    day Date COMMENT 'of the event, UTC',
    item_id String COMMENT 'empty when it is about no item',
    brand String COMMENT 'empty when unknown',
    aspect String COMMENT 'quality, size, comfort, looks, delivery, price or service',
    sentences UInt64 COMMENT 'about it',
    p_satisfied Nullable(Float64) COMMENT 'mean chance of a recommendation, from each sentence alone',
    unhappy UInt64 COMMENT 'sentences with a chance below a half'
)
AS SELECT tenant, toDate(said_at) AS day, item_id, brand, about AS aspect, count() AS sentences, avg(p) AS p_satisfied,
    countIf(p < 0.5) AS unhappy
FROM (SELECT tenant, said_at, item_id, brand, aspects, aspect_p_satisfied FROM opinions FINAL)
ARRAY JOIN aspects AS about, aspect_p_satisfied AS p
GROUP BY tenant, day, item_id, brand, aspect
COMMENT 'What sentences are about, and how pleased they are.';

CREATE OR REPLACE VIEW satisfaction_alerts_served
(
    tenant String COMMENT 'whose',
    alert_id String COMMENT 'satisfaction_alerts.alert_id',
    about String COMMENT 'item or brand',
    name String COMMENT 'item id, or the brand',
    state String COMMENT 'raised: it fell; cleared: it rose again',
    changed_at DateTime64(3, 'UTC') COMMENT 'time of the first opinion after the change',
    as_of_ts DateTime64(3, 'UTC') COMMENT 'time of the opinion that made it certain',
    before Float64 COMMENT 'mean satisfaction before, 0 to 1',
    after Float64 COMMENT 'mean satisfaction since',
    opinions_after UInt32 COMMENT 'opinions behind after',
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
SELECT alerts.tenant AS tenant, alerts.alert_id AS alert_id, about, name, state, changed_at, as_of_ts, before, after,
    opinions_after, quoted.quotes AS quotes
FROM (SELECT * FROM satisfaction_alerts FINAL) AS alerts
LEFT JOIN quoted ON quoted.tenant = alerts.tenant AND quoted.alert_id = alerts.alert_id
COMMENT 'Alerts about items and brands with the sentences that speak for them.';
