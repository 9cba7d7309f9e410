-- Who entered and left which segment, and who was in it at any time.
CREATE TABLE IF NOT EXISTS segment_changes
(
    tenant LowCardinality(String) COMMENT 'whose user',
    change_id String COMMENT 'derived from user, segment and number, so that a replay has the same one',
    user_id String COMMENT 'events.user',
    segment LowCardinality(String) COMMENT 'name of the rule',
    change LowCardinality(String) COMMENT 'entered or left',
    number UInt32 COMMENT 'of the changes of this user and segment, from 1: odd ones are entries',
    values Map(String, Float64) COMMENT 'the fields that the rule reads, as they were',
    as_of_event_id String COMMENT 'the last event of the user at that time',
    as_of_ts DateTime64(3, 'UTC') COMMENT 'event time of the change',
    rules_version LowCardinality(String) COMMENT 'of all rules',
    model_version LowCardinality(String) COMMENT 'released bundle, by which churn is judged',
    partition_time DateTime('UTC') COMMENT 'as_of_ts clamped to 2000..2100; only for partitioning',
    kafka_partition Int32 COMMENT 'partition of the segment-changes topic',
    kafka_offset Int64 COMMENT 'offset in that partition',
    broker_time DateTime64(3, 'UTC') COMMENT 'when the broker appended the record'
)
ENGINE = ReplacingMergeTree(broker_time)
PARTITION BY toYYYYMM(partition_time)
ORDER BY (tenant, segment, user_id, number, kafka_partition, kafka_offset)
SETTINGS non_replicated_deduplication_window = 1000
COMMENT 'Every emission of every change. Read segment_changes_served: the first emission of each.';

CREATE OR REPLACE VIEW segment_changes_served AS
SELECT * FROM segment_changes FINAL
ORDER BY broker_time, kafka_partition, kafka_offset
LIMIT 1 BY tenant, change_id
COMMENT 'The first emission of each change. Later ones are replays. Columns as in segment_changes.';

CREATE OR REPLACE VIEW segment_intervals
(
    tenant String COMMENT 'whose user',
    segment String COMMENT 'name of the rule',
    user_id String COMMENT 'events.user',
    entered_at DateTime64(3, 'UTC') COMMENT 'event time',
    left_at Nullable(DateTime64(3, 'UTC')) COMMENT 'event time; NULL for who is in it now',
    values Map(String, Float64) COMMENT 'the fields that the rule reads, at entry'
)
AS SELECT entries.tenant AS tenant, entries.segment AS segment, entries.user_id AS user_id, entries.as_of_ts AS entered_at,
    exits.left_at AS left_at, entries.values AS values
FROM (SELECT tenant, segment, user_id, number, as_of_ts, values FROM segment_changes_served WHERE change = 'entered') AS entries
LEFT JOIN
(
    SELECT tenant, segment, user_id, number, toNullable(as_of_ts) AS left_at FROM segment_changes_served WHERE change = 'left'
) AS exits
ON exits.tenant = entries.tenant AND exits.segment = entries.segment AND exits.user_id = entries.user_id
    AND exits.number = entries.number + 1
COMMENT 'Who was in which segment when. At a time T: entered_at <= T AND (left_at IS NULL OR left_at > T).';

CREATE OR REPLACE VIEW segment_sizes
(
    tenant String COMMENT 'whose users',
    segment String COMMENT 'name of the rule',
    members UInt64 COMMENT 'in it now',
    entered_1d UInt64 COMMENT 'entries within a day before the newest change',
    left_1d UInt64 COMMENT 'exits within that day',
    changed_at DateTime64(3, 'UTC') COMMENT 'newest change'
)
AS WITH clocks AS (SELECT tenant, max(as_of_ts) AS newest FROM segment_changes GROUP BY tenant)
SELECT served.tenant AS tenant, served.segment AS segment, sum(if(change = 'entered', 1, -1)) AS members,
    countIf(change = 'entered' AND as_of_ts > clocks.newest - INTERVAL 1 DAY) AS entered_1d,
    countIf(change = 'left' AND as_of_ts > clocks.newest - INTERVAL 1 DAY) AS left_1d,
    max(as_of_ts) AS changed_at
FROM segment_changes_served AS served
LEFT JOIN clocks ON clocks.tenant = served.tenant
GROUP BY tenant, segment
COMMENT 'How many are in each segment, and how that moves.';
