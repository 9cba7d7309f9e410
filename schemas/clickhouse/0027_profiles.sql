-- Who withdrew consent and comes back has a new profile, whose changes count from 1 again: they lie behind the old one's.
ALTER TABLE segment_changes ADD COLUMN IF NOT EXISTS profile_since DateTime64(3, 'UTC')
    COMMENT 'when the broker took the event that began the profile; number counts within it. 1970: before 0.9.0, or back-filled';

CREATE OR REPLACE VIEW segment_changes_served AS
SELECT * FROM segment_changes FINAL
ORDER BY broker_time, kafka_partition, kafka_offset
LIMIT 1 BY tenant, change_id
COMMENT 'The first emission of each change, and what was back-filled. Later ones are replays. Columns as in segment_changes.';

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
        leadInFrame(toNullable(as_of_ts)) OVER (PARTITION BY tenant, segment, user_id
            ORDER BY backfilled DESC, profile_since, number ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS left_at
    FROM
    (
        SELECT tenant, segment, user_id, change, profile_since, number, as_of_ts, values, backfilled,
            lagInFrame(CAST(change, 'String')) OVER (PARTITION BY tenant, segment, user_id
                ORDER BY backfilled DESC, profile_since, number
                ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS change_before
        FROM segment_changes_served
    )
    WHERE change != change_before
)
WHERE change = 'entered'
COMMENT 'Who was in which segment when. At a time T: entered_at <= T AND (left_at IS NULL OR left_at > T).';
