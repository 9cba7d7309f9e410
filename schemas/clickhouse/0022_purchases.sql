-- Purchases as the stream counts them (order_began in stream/core/fold.py). item_purchases took each time of an order's lines
-- for a purchase of its own: an invoice whose lines are events minutes apart counted several times, and the average interval
-- that reminders are held against shrank towards minutes. interval_due, reminder_outcomes and reminder_precision read it.
CREATE OR REPLACE VIEW item_purchases
(
    tenant String COMMENT 'whose user',
    user_id String COMMENT 'events.user',
    item_id String COMMENT 'what was ordered',
    category String COMMENT 'of the item, as the catalog says now; empty where it says none',
    times Array(DateTime64(3, 'UTC')) COMMENT 'when its orders began, ascending, each once: events with one order_id within a day of the first that came are one order, as are those of one instant'
)
AS WITH
    -- a user's events of one order_id as they came; of an event without an id, itself
    orders AS
    (
        SELECT tenant, arraySort(groupArray((broker_time, kafka_partition, kafka_offset, message_id, toUnixTimestamp64Milli(timestamp)))) AS arrived
        FROM events FINAL WHERE event = 'Order Completed' AND user != ''
        GROUP BY tenant, user, order_id, if(order_id = '', message_id, '')
    ),
    -- an id that comes again more than a day from the order's beginning is another order's
    began AS
    (
        SELECT tenant, arrived_one.4 AS message_id, fromUnixTimestamp64Milli(began_ms, 'UTC') AS began_at
        FROM orders
        ARRAY JOIN arrived AS arrived_one,
            arrayFold((starts, one) -> arrayPushBack(starts, if(notEmpty(starts) AND abs(one.5 - starts[-1]) <= 86400000, starts[-1], one.5)),
                arrived, emptyArrayInt64()) AS began_ms
    ),
    bought AS
    (
        SELECT lines.tenant AS tenant, lines.user AS user, lines.product_id AS product_id, arraySort(groupUniqArray(began.began_at)) AS times
        FROM (SELECT tenant, user, product_id, message_id FROM event_products FINAL WHERE event = 'Order Completed' AND user != '') AS lines
        INNER JOIN began ON began.tenant = lines.tenant AND began.message_id = lines.message_id
        GROUP BY lines.tenant, lines.user, lines.product_id
    )
SELECT bought.tenant AS tenant, bought.user AS user_id, bought.product_id AS item_id, catalog.category AS category, bought.times AS times
FROM bought
LEFT JOIN (SELECT tenant, item_id, category FROM items FINAL) AS catalog
ON catalog.tenant = bought.tenant AND catalog.item_id = bought.product_id
COMMENT 'When each user ordered each item, as the stream counts it.';
