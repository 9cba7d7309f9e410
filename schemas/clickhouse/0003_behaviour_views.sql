-- What users did. Each view reads with FINAL, so a replay or a repeated message changes nothing.
CREATE OR REPLACE VIEW items_by_hour
(
    tenant String COMMENT 'whose shop',
    hour DateTime('UTC') COMMENT 'start of the hour, event time',
    product_id String COMMENT 'the product',
    views UInt64 COMMENT 'Product Viewed',
    clicks UInt64 COMMENT 'Product Clicked',
    carts UInt64 COMMENT 'Product Added',
    orders UInt64 COMMENT 'distinct orders with the product',
    units Float64 COMMENT 'pieces ordered; 1 a line without a quantity',
    revenue Float64 COMMENT 'of Order Completed, before refunds',
    refunds Float64 COMMENT 'of Order Refunded'
)
AS SELECT
    tenant,
    toStartOfHour(toDateTime(timestamp, 'UTC')) AS hour,
    product_id,
    countIf(event = 'Product Viewed') AS views,
    countIf(event = 'Product Clicked') AS clicks,
    countIf(event = 'Product Added') AS carts,
    uniqExactIf(if(order_id = '', message_id, order_id), event = 'Order Completed') AS orders,
    sumIf(ifNull(quantity, 1), event = 'Order Completed') AS units,
    sumIf(ifNull(event_products.revenue, 0), event = 'Order Completed') AS revenue,
    sumIf(ifNull(event_products.revenue, 0), event = 'Order Refunded') AS refunds
FROM event_products FINAL
GROUP BY tenant, hour, product_id
COMMENT 'What happened to each product, hour by hour of event time.';

CREATE OR REPLACE VIEW funnel_daily
(
    tenant String COMMENT 'whose shop',
    day Date COMMENT 'event time, UTC',
    viewing UInt64 COMMENT 'users with a Product Viewed on that day',
    adding UInt64 COMMENT 'users with a Product Added',
    checking_out UInt64 COMMENT 'users with a Checkout Started',
    ordering UInt64 COMMENT 'users with an Order Completed',
    viewed_added UInt64 COMMENT 'users who viewed, then added',
    viewed_added_checkout UInt64 COMMENT 'users who viewed, then added, then started the checkout',
    viewed_added_checkout_ordered UInt64 COMMENT 'users who went through all four steps in this order',
    viewed_ordered UInt64 COMMENT 'users who viewed, then ordered, whatever lay between',
    conversion Nullable(Float64) COMMENT 'viewed_ordered / viewing; null when nobody viewed'
)
AS SELECT
    tenant,
    day,
    countIf(viewed) AS viewing,
    countIf(added) AS adding,
    countIf(started_checkout) AS checking_out,
    countIf(ordered) AS ordering,
    countIf(steps >= 2) AS viewed_added,
    countIf(steps >= 3) AS viewed_added_checkout,
    countIf(steps >= 4) AS viewed_added_checkout_ordered,
    countIf(shortcut >= 2) AS viewed_ordered,
    if(viewing = 0, NULL, viewed_ordered / viewing) AS conversion
FROM
(
    SELECT
        tenant,
        user,
        toDate(timestamp, 'UTC') AS day,
        max(event = 'Product Viewed') AS viewed,
        max(event = 'Product Added') AS added,
        max(event = 'Checkout Started') AS started_checkout,
        max(event = 'Order Completed') AS ordered,
        windowFunnel(86400000)(toUInt64(toUnixTimestamp64Milli(timestamp)),
            event = 'Product Viewed', event = 'Product Added', event = 'Checkout Started', event = 'Order Completed') AS steps,
        windowFunnel(86400000)(toUInt64(toUnixTimestamp64Milli(timestamp)),
            event = 'Product Viewed', event = 'Order Completed') AS shortcut
    FROM events FINAL
    WHERE user != '' AND event IN ('Product Viewed', 'Product Added', 'Checkout Started', 'Order Completed')
    GROUP BY tenant, user, day
)
GROUP BY tenant, day
COMMENT 'How many users reached each step on a day, and how many in order. A user counts once a day.';

CREATE OR REPLACE VIEW sessions
(
    tenant String COMMENT 'whose shop',
    user String COMMENT 'events.user',
    session_id String COMMENT 'the client''s session id, else gap- and the start in ms since 1970',
    origin String COMMENT 'client, or gap: events without a session id, split where 30 minutes pass without one',
    started_at DateTime64(3, 'UTC') COMMENT 'first event',
    ended_at DateTime64(3, 'UTC') COMMENT 'last event',
    duration_s Float64 COMMENT 'between the two',
    events UInt64 COMMENT 'of any kind',
    views UInt64 COMMENT 'Product Viewed',
    carts UInt64 COMMENT 'Product Added',
    orders UInt64 COMMENT 'distinct orders',
    revenue Float64 COMMENT 'of Order Completed'
)
AS SELECT
    tenant,
    user,
    if(client_session != '', client_session, concat('gap-', toString(toUnixTimestamp64Milli(started_at)))) AS session_id,
    if(client_session != '', 'client', 'gap') AS origin,
    min(timestamp) AS started_at,
    max(timestamp) AS ended_at,
    dateDiff('millisecond', started_at, ended_at) / 1000 AS duration_s,
    count() AS events,
    countIf(event = 'Product Viewed') AS views,
    countIf(event = 'Product Added') AS carts,
    uniqExactIf(order_key, event = 'Order Completed') AS orders,
    sumIf(amount, event = 'Order Completed') AS revenue
FROM
(
    SELECT *, sum(starts) OVER (PARTITION BY tenant, user, client_session = '' ORDER BY timestamp, message_id
                                ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS gap
    FROM
    (
        SELECT
            tenant, user, message_id, timestamp, event,
            events.session_id AS client_session,
            if(order_id = '', message_id, order_id) AS order_key,
            ifNull(events.revenue, 0) AS amount,
            client_session = '' AND dateDiff('millisecond', lagInFrame(timestamp, 1, timestamp)
                OVER (PARTITION BY tenant, user, client_session = '' ORDER BY timestamp, message_id
                      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW), timestamp) > 1800000 AS starts
        FROM events FINAL
        WHERE user != ''
    )
)
GROUP BY tenant, user, client_session, if(client_session = '', gap, 0)
COMMENT 'Visits: by the client''s session id, else by gaps of more than 30 minutes.';

CREATE OR REPLACE VIEW active_users_daily
(
    tenant String COMMENT 'whose shop',
    day Date COMMENT 'event time, UTC',
    active UInt64 COMMENT 'users with any event',
    new UInt64 COMMENT 'of these, seen on that day for the first time',
    returning UInt64 COMMENT 'of these, seen on an earlier day'
)
AS SELECT tenant, day, count() AS active, countIf(day = first_day) AS new, countIf(day > first_day) AS returning
FROM
(
    SELECT tenant, user, groupUniqArray(toDate(timestamp, 'UTC')) AS days, arrayMin(days) AS first_day
    FROM events FINAL
    WHERE user != ''
    GROUP BY tenant, user
)
ARRAY JOIN days AS day
GROUP BY tenant, day
COMMENT 'Active, new and returning users a day. An anonymous visitor who logs in later counts under both ids.';

CREATE OR REPLACE VIEW cohort_retention
(
    tenant String COMMENT 'whose shop',
    cohort_week Date COMMENT 'Monday of the week in which the users were first seen, UTC',
    week_number UInt32 COMMENT 'weeks after it; 0 is the first',
    cohort_size UInt64 COMMENT 'users first seen in cohort_week',
    users UInt64 COMMENT 'of these, with any event in that week; weeks with none have no row',
    retention Float64 COMMENT 'users / cohort_size'
)
AS SELECT tenant, cohort_week, week_number, max(users) OVER (PARTITION BY tenant, cohort_week) AS cohort_size, users,
    users / cohort_size AS retention
FROM
(
    SELECT tenant, cohort_week, intDiv(dateDiff('day', cohort_week, week), 7) AS week_number, count() AS users
    FROM
    (
        SELECT tenant, user, groupUniqArray(toMonday(timestamp, 'UTC')) AS weeks, arrayMin(weeks) AS cohort_week
        FROM events FINAL
        WHERE user != ''
        GROUP BY tenant, user
    )
    ARRAY JOIN weeks AS week
    GROUP BY tenant, cohort_week, week_number
)
COMMENT 'Users by the week they were first seen, and how many came back in each later week. All of a cohort is active in week 0.';
