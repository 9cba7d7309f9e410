-- What a decision was made by, and with which chance: for judging another way to decide by what was logged.
ALTER TABLE decisions
    ADD COLUMN IF NOT EXISTS applied String
        COMMENT 'JSON of what it was made by, the experiment''s arm included: n, exclude, category_cap, filter, boost, explore; empty before 0.5.0'
        CODEC(ZSTD(3)),
    ADD COLUMN IF NOT EXISTS propensities Array(Float64)
        COMMENT 'for each item the chance, over users, that its place holds it: below 1 where exploration drew; empty before 0.5.0',
    COMMENT COLUMN scenario 'for_you, again, similar, complements, popular, trending, due; rank: of given items';

CREATE OR REPLACE VIEW decisions_served AS
SELECT * FROM decisions FINAL
ORDER BY broker_time, kafka_partition, kafka_offset
LIMIT 1 BY tenant, recommendation_id
COMMENT 'The first logging of each answer of the read API. Columns as in decisions.';
