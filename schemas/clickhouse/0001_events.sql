-- Events and what they carry. Every table that can see a replay is a ReplacingMergeTree by identity: read it with FINAL.
-- FINAL merges across partitions too, so a repeated message with another client time is still one row.
-- partition_time is the client's original timestamp (else the event's) clamped to 2000..2100: a retry does not change it.
-- first_wins is larger for the record the broker appended earlier, so the first of several equal ids is the one kept.
CREATE TABLE IF NOT EXISTS events
(
    tenant LowCardinality(String) COMMENT 'whose event it is; from the write key, never from the client',
    message_id String COMMENT 'identity within the tenant',
    lane LowCardinality(String) COMMENT 'live, import (history) or repair (dead letters replayed)',
    type LowCardinality(String) COMMENT 'track, identify, page, screen, group, alias',
    event LowCardinality(String) COMMENT 'name of a track event, for example Product Viewed; empty for other types without one',
    timestamp DateTime64(3, 'UTC') COMMENT 'event time',
    original_timestamp Nullable(DateTime64(3, 'UTC')) COMMENT 'the client clock when it happened',
    received_at Nullable(DateTime64(3, 'UTC')) COMMENT 'when the collector received it',
    partition_time DateTime('UTC') COMMENT 'original_timestamp, else timestamp, clamped to 2000..2100; only for partitioning',
    user_id String COMMENT 'known id; empty when there is none or analytics consent was refused',
    anonymous_id String COMMENT 'anonymous id; empty when there is none or analytics consent was refused',
    user String COMMENT 'user_id, else anonymous_id; empty when analytics consent was refused',
    session_id String COMMENT 'context.sessionId; empty when the client sends none (see the view sessions)',
    product_id String COMMENT 'properties.product_id; every product of the event is in event_products',
    quantity Nullable(Float64) COMMENT 'properties.quantity',
    price Nullable(Float64) COMMENT 'properties.price',
    currency LowCardinality(String) COMMENT 'properties.currency',
    order_id String COMMENT 'properties.order_id',
    revenue Nullable(Float64) COMMENT 'properties.revenue; for orders and refunds without it the sum of price × quantity of their lines',
    query String COMMENT 'properties.query',
    rating Nullable(Float64) COMMENT 'properties.rating',
    recommendation_id String COMMENT 'properties.recommendation_id: which recommendation led here',
    anonymised Bool COMMENT 'analytics consent was refused: ids and free-form parts were not stored',
    properties String COMMENT 'JSON as received' CODEC(ZSTD(3)),
    traits String COMMENT 'JSON as received' CODEC(ZSTD(3)),
    context String COMMENT 'JSON as received' CODEC(ZSTD(3)),
    source LowCardinality(String) DEFAULT multiIf(
        JSONExtractString(context, 'source') != '', JSONExtractString(context, 'source'),
        match(message_id, '^[A-Za-z0-9_.-]+:[0-9]+$'), splitByChar(':', message_id)[1],
        JSONExtractString(context, 'library', 'name') != '', JSONExtractString(context, 'library', 'name'),
        'api') COMMENT 'context.source, else the data set in a message id like name:row, else the client library, else api',
    kafka_partition Int32 COMMENT 'partition of the events topic',
    kafka_offset Int64 COMMENT 'offset in that partition',
    broker_time DateTime64(3, 'UTC') COMMENT 'when the broker appended the record',
    inserted_at DateTime64(3, 'UTC') DEFAULT now64(3) COMMENT 'last insertion; a replay changes it',
    first_wins UInt64 MATERIALIZED bitNot(toUInt64(bitShiftLeft(toUInt64(toUnixTimestamp64Milli(broker_time)), 20) + kafka_offset % 1048576))
        COMMENT 'version of the row: the earliest record wins'
)
ENGINE = ReplacingMergeTree(first_wins)
PARTITION BY toYYYYMM(partition_time)
ORDER BY (tenant, message_id)
SETTINGS non_replicated_deduplication_window = 1000
COMMENT 'Every event that could be decoded, one row an identity (tenant, message_id). Read with FINAL.';

CREATE TABLE IF NOT EXISTS event_products
(
    tenant LowCardinality(String) COMMENT 'as in events',
    message_id String COMMENT 'the event',
    line UInt16 COMMENT '0-based position in products[]; 0 for properties.product_id',
    lane LowCardinality(String) COMMENT 'as in events',
    event LowCardinality(String) COMMENT 'as in events',
    timestamp DateTime64(3, 'UTC') COMMENT 'event time',
    partition_time DateTime('UTC') COMMENT 'as in events',
    user String COMMENT 'as in events',
    session_id String COMMENT 'as in events',
    product_id String COMMENT 'the product of this line',
    name String COMMENT 'products[].name',
    category String COMMENT 'products[].category',
    brand String COMMENT 'products[].brand',
    quantity Nullable(Float64) COMMENT 'quantity of the line',
    price Nullable(Float64) COMMENT 'price of one',
    revenue Nullable(Float64) COMMENT 'price × quantity (1 when not sent), else the revenue of an order with this line only',
    order_id String COMMENT 'as in events',
    recommendation_id String COMMENT 'as in events',
    kafka_partition Int32 COMMENT 'as in events',
    kafka_offset Int64 COMMENT 'as in events',
    broker_time DateTime64(3, 'UTC') COMMENT 'as in events',
    first_wins UInt64 MATERIALIZED bitNot(toUInt64(bitShiftLeft(toUInt64(toUnixTimestamp64Milli(broker_time)), 20) + kafka_offset % 1048576))
        COMMENT 'version of the row: the earliest record wins'
)
ENGINE = ReplacingMergeTree(first_wins)
PARTITION BY toYYYYMM(partition_time)
ORDER BY (tenant, message_id, line)
SETTINGS non_replicated_deduplication_window = 1000
COMMENT 'One row a product line of an event, identity (tenant, message_id, line). Read with FINAL.';

CREATE TABLE IF NOT EXISTS items
(
    tenant LowCardinality(String) COMMENT 'whose catalog',
    item_id String COMMENT 'identity within the tenant; events call it product_id',
    title String COMMENT 'what the text encoder reads first',
    brand String COMMENT 'brand',
    category String COMMENT 'category',
    description String COMMENT 'description' CODEC(ZSTD(3)),
    price Nullable(Float64) COMMENT 'current price',
    url String COMMENT 'product page',
    image_url String COMMENT 'picture',
    in_stock Bool COMMENT 'may be recommended',
    blocked Bool COMMENT 'never recommended',
    pinned Bool COMMENT 'recommended first',
    updated_at Nullable(DateTime64(3, 'UTC')) COMMENT 'as the catalog says',
    removed UInt8 COMMENT '1: taken out of the catalog; FINAL leaves such rows out',
    kafka_partition Int32 COMMENT 'partition of the items topic',
    kafka_offset Int64 COMMENT 'offset in that partition',
    broker_time DateTime64(3, 'UTC') COMMENT 'when the broker appended the record',
    last_wins UInt64 MATERIALIZED bitShiftLeft(toUInt64(toUnixTimestamp64Milli(broker_time)), 20) + kafka_offset % 1048576
        COMMENT 'version of the row: the latest record wins'
)
ENGINE = ReplacingMergeTree(last_wins, removed)
ORDER BY (tenant, item_id)
SETTINGS non_replicated_deduplication_window = 1000
COMMENT 'The catalog as it is now, identity (tenant, item_id). Read with FINAL.';
