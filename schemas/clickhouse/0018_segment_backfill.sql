-- The past of segments: changes that a rule would have made before it was there, written by clickwake segments backfill.
ALTER TABLE segment_changes ADD COLUMN IF NOT EXISTS backfilled Bool DEFAULT false
    COMMENT 'worked out afterwards from stored events, by the rules of rules_version; never said on the topic (partition and offset are -1)';

CREATE OR REPLACE VIEW segment_changes_served AS
SELECT * FROM segment_changes FINAL
ORDER BY broker_time, kafka_partition, kafka_offset
LIMIT 1 BY tenant, change_id
COMMENT 'The first emission of each change, and what was back-filled. Later ones are replays. Columns as in segment_changes.';

-- Who was in when the stream took over enters there once more: that is no second entry, hence `change_before`.
CREATE OR REPLACE VIEW segment_intervals
(
    tenant String COMMENT 'whose user',
    segment String COMMENT 'name of the rule',
    user_id String COMMENT 'events.user',
    entered_at DateTime64(3, 'UTC') COMMENT 'event time',
    left_at Nullable(DateTime64(3, 'UTC')) COMMENT 'event time; NULL for who is in it now',
    values Map(String, Float64) COMMENT 'the fields that the rule reads, at entry',
    backfilled Bool COMMENT 'the entry was worked out afterwards: before the rule was there, and no decision was made by it'
)
AS SELECT tenant, segment, user_id, as_of_ts AS entered_at, left_at, values, backfilled
FROM
(
    SELECT tenant, segment, user_id, change, as_of_ts, values, backfilled,
        leadInFrame(toNullable(as_of_ts)) OVER (PARTITION BY tenant, segment, user_id ORDER BY backfilled DESC, number
            ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS left_at
    FROM
    (
        SELECT tenant, segment, user_id, change, number, as_of_ts, values, backfilled,
            lagInFrame(CAST(change, 'String')) OVER (PARTITION BY tenant, segment, user_id ORDER BY backfilled DESC, number
                ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS change_before
        FROM segment_changes_served
    )
    WHERE change != change_before
)
WHERE change = 'entered'
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
SELECT intervals.tenant AS tenant, intervals.segment AS segment, countIf(intervals.left_at IS NULL) AS members,
    countIf(intervals.entered_at > clocks.newest - INTERVAL 1 DAY) AS entered_1d,
    countIf(ifNull(intervals.left_at > clocks.newest - INTERVAL 1 DAY, false)) AS left_1d,
    max(coalesce(intervals.left_at, intervals.entered_at)) AS changed_at
FROM segment_intervals AS intervals
LEFT JOIN clocks ON clocks.tenant = intervals.tenant
GROUP BY tenant, segment
COMMENT 'How many are in each segment, and how that moves.';
