-- From a row to its trace: the record's traceparent, which is there only where the trace was sampled.
ALTER TABLE events ADD COLUMN IF NOT EXISTS trace_id String
    COMMENT 'trace in which it came, 32 hex digits; empty when it was not sampled';
ALTER TABLE recommendations ADD COLUMN IF NOT EXISTS trace_id String
    COMMENT 'trace of the event it answers; empty when it was not sampled';
ALTER TABLE decisions ADD COLUMN IF NOT EXISTS trace_id String
    COMMENT 'trace of the request it answers; empty when it was not sampled';
ALTER TABLE offer_decisions ADD COLUMN IF NOT EXISTS trace_id String
    COMMENT 'trace of the request it answers; empty when it was not sampled';
ALTER TABLE segment_changes ADD COLUMN IF NOT EXISTS trace_id String
    COMMENT 'trace of the event that caused it; empty when it was not sampled';
ALTER TABLE churn_alerts ADD COLUMN IF NOT EXISTS trace_id String
    COMMENT 'trace of the event that caused it; empty when it was not sampled, or silence did';
ALTER TABLE deliveries ADD COLUMN IF NOT EXISTS trace_id String
    COMMENT 'trace of what it delivers; empty when it was not sampled';
ALTER TABLE dead_letters ADD COLUMN IF NOT EXISTS trace_id String
    COMMENT 'trace in which the input came; empty when it was not sampled';
