-- How satisfied users will be with items under each strategy, as `clickwake strategies store` predicted it.
CREATE TABLE IF NOT EXISTS satisfaction_predictions
(
    tenant LowCardinality(String) COMMENT 'whose user',
    user_id String COMMENT 'events.user',
    item_id String COMMENT 'items.item_id',
    strategy LowCardinality(String) COMMENT 'offer/PLACEMENT/OFFER, delivery/NAME, held out/NAME, or none, as in strategy_opinions',
    satisfaction Float64 COMMENT 'expected, 0 to 1',
    low Float64 COMMENT 'lower end of the 95% credible interval of what is expected',
    high Float64 COMMENT 'upper end',
    opinions UInt64 COMMENT 'said under this strategy, of those that were learned from',
    by_lot Bool COMMENT 'chances of this strategy are known: compared with those of its placement or delivery it is by lot',
    model_version LowCardinality(String) COMMENT 'stands for the opinions that were learned from',
    learned_until DateTime64(3, 'UTC') COMMENT 'the newest of these opinions',
    as_of_ts DateTime64(3, 'UTC') COMMENT 'the user''s newest one among these; 1970 where they have said nothing',
    predicted_at DateTime64(3, 'UTC') COMMENT 'when it was predicted, with the segments and categories of that time',
    partition_time DateTime('UTC') COMMENT 'predicted_at; only for partitioning'
)
ENGINE = ReplacingMergeTree(predicted_at)
PARTITION BY toYYYYMM(partition_time)
ORDER BY (tenant, user_id, item_id, strategy, model_version, predicted_at)
SETTINGS non_replicated_deduplication_window = 1000
COMMENT 'Every prediction that was stored: what was expected when. Read satisfaction_predicted: the newest of each.';

CREATE OR REPLACE VIEW satisfaction_predicted
(
    tenant LowCardinality(String) COMMENT 'whose user',
    user_id String COMMENT 'events.user',
    item_id String COMMENT 'items.item_id',
    strategy LowCardinality(String) COMMENT 'as in strategy_opinions',
    satisfaction Float64 COMMENT 'expected, 0 to 1',
    low Float64 COMMENT 'lower end of its 95% credible interval',
    high Float64 COMMENT 'upper end',
    opinions UInt64 COMMENT 'said under this strategy, of those that were learned from',
    by_lot Bool COMMENT 'chances of this strategy are known',
    model_version LowCardinality(String) COMMENT 'stands for the opinions that were learned from',
    learned_until DateTime64(3, 'UTC') COMMENT 'the newest of these opinions',
    as_of_ts DateTime64(3, 'UTC') COMMENT 'the user''s newest one among these; 1970 where they have said nothing',
    predicted_at DateTime64(3, 'UTC') COMMENT 'when it was predicted'
)
AS SELECT tenant, user_id, item_id, strategy, satisfaction, low, high, opinions, by_lot, model_version, learned_until,
    as_of_ts, predicted_at
FROM satisfaction_predictions FINAL
ORDER BY predicted_at DESC, model_version
LIMIT 1 BY tenant, user_id, item_id, strategy
COMMENT 'The newest prediction of each user, item and strategy.';
