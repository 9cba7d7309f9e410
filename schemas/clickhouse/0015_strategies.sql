-- What was said of an item, and the strategy under which its user had come to it: what comparing strategies learns from.
CREATE OR REPLACE VIEW strategy_opinions
(
    tenant String COMMENT 'whose user',
    opinion_id String COMMENT 'opinions.opinion_id',
    user_id String COMMENT 'events.user',
    item_id String COMMENT 'what it is about',
    category String COMMENT 'first level of the item''s category, as the catalog has it now; empty when unknown',
    satisfaction Float64 COMMENT '0 to 1',
    said_at DateTime64(3, 'UTC') COMMENT 'time of the opinion',
    strategy String COMMENT 'offer/PLACEMENT/OFFER, delivery/NAME, held out/NAME, or none',
    context String COMMENT 'placement/NAME or delivery/NAME: its strategies are alternatives; empty for none',
    propensity Nullable(Float64) COMMENT 'the chance of this choice; NULL where nobody logged it',
    decided_at DateTime64(3, 'UTC') COMMENT 'when; for none the last order of the item, else the opinion itself',
    groups Array(String) COMMENT 'segments the user was in then'
)
AS WITH
    said AS
    (
        SELECT tenant, opinion_id, user_id, item_id, said_at, assumeNotNull(opinions.satisfaction) AS stated
        FROM opinions FINAL WHERE item_id != '' AND isNotNull(opinions.satisfaction) AND source != 'ticket'
    ),
    touches AS
    (
        SELECT tenant, user, product_id, event, timestamp, recommendation_id FROM event_products FINAL
        WHERE (event = 'Order Completed' OR startsWith(recommendation_id, 'offer-'))
            AND (tenant, user, product_id) IN (SELECT tenant, user_id, item_id FROM opinions)
    ),
    before AS -- what the user had done with the item by then
    (
        SELECT said.tenant AS tenant, said.opinion_id AS opinion_id, said.user_id AS user_id, said.said_at AS said_at,
            touches.event = 'Order Completed' AS ordered, touches.timestamp AS at, touches.recommendation_id AS recommendation_id
        FROM said INNER JOIN touches
        ON touches.tenant = said.tenant AND touches.user = said.user_id AND touches.product_id = said.item_id
        WHERE touches.timestamp <= said.said_at
    ),
    told AS
    (
        SELECT tenant, delivery, user_id, delivery_id, status IN ('sent', 'failed') AS meant, coalesce(decided_at, at) AS drawn_at,
            if(meant, propensity, 1 - propensity) AS chance
        FROM deliveries FINAL WHERE status IN ('sent', 'failed', 'held_out', 'left_out')
    ),
    choices AS -- all that an opinion may have come of: an order under an offer before anything else under one, then messages
    (
        SELECT before.tenant AS tenant, before.opinion_id AS opinion_id, toUInt8(if(before.ordered, 3, 2)) AS rank, before.at AS at,
            served.recommendation_id AS id, served.served_at AS decided,
            concat('offer/', served.placement, '/', served.offer_id) AS plan, concat('placement/', served.placement) AS within,
            toNullable(served.propensity) AS chance
        FROM before INNER JOIN offer_decisions_served AS served
        ON served.tenant = before.tenant AND served.recommendation_id = before.recommendation_id
            AND served.user_id = before.user_id
        WHERE served.offer_id != ''
        UNION ALL
        SELECT before.tenant AS tenant, before.opinion_id AS opinion_id, toUInt8(1) AS rank, told.drawn_at AS at,
            told.delivery_id AS id, told.drawn_at AS decided,
            concat(if(told.meant, 'delivery/', 'held out/'), told.delivery) AS plan,
            concat('delivery/', told.delivery) AS within, told.chance AS chance
        FROM before INNER JOIN told ON told.tenant = before.tenant AND told.user_id = before.user_id
        WHERE before.ordered AND before.at > told.drawn_at AND before.at <= told.drawn_at + INTERVAL 7 DAY
        UNION ALL
        SELECT said.tenant AS tenant, said.opinion_id AS opinion_id, toUInt8(0) AS rank, said.said_at AS at,
            said.opinion_id AS id, if(orders.n = 0, said.said_at, orders.newest) AS decided, 'none' AS plan, '' AS within,
            CAST(NULL AS Nullable(Float64)) AS chance
        FROM said LEFT JOIN
        (
            SELECT tenant, opinion_id, count() AS n, max(at) AS newest FROM before WHERE ordered GROUP BY tenant, opinion_id
        ) AS orders
        ON orders.tenant = said.tenant AND orders.opinion_id = said.opinion_id
    ),
    chosen AS
    (
        SELECT tenant, opinion_id, argMax(tuple(plan, within, chance, decided), tuple(rank, at, id)) AS choice,
            choice.1 AS strategy, choice.2 AS context, choice.3 AS propensity, choice.4 AS decided_at
        FROM choices GROUP BY tenant, opinion_id
    ),
    inside AS
    (
        SELECT tenant, user_id, groupArray(tuple(segment, entered_at, left_at)) AS spans FROM segment_intervals
        WHERE (tenant, user_id) IN (SELECT tenant, user_id FROM opinions) GROUP BY tenant, user_id
    )
SELECT said.tenant AS tenant, said.opinion_id AS opinion_id, said.user_id AS user_id, said.item_id AS item_id,
    trimBoth(splitByChar('>', catalog.category)[1]) AS category, said.stated AS satisfaction, said.said_at AS said_at,
    chosen.strategy AS strategy, chosen.context AS context, chosen.propensity AS propensity, chosen.decided_at AS decided_at,
    arraySort(arrayDistinct(arrayMap(one -> one.1, arrayFilter(
        one -> one.2 <= chosen.decided_at AND ifNull(one.3 > chosen.decided_at, 1), inside.spans)))) AS groups
FROM said
INNER JOIN chosen ON chosen.tenant = said.tenant AND chosen.opinion_id = said.opinion_id
LEFT JOIN inside ON inside.tenant = said.tenant AND inside.user_id = said.user_id
LEFT JOIN (SELECT tenant, item_id, category FROM items FINAL) AS catalog
    ON catalog.tenant = said.tenant AND catalog.item_id = said.item_id
COMMENT 'One row an opinion about an item, with the offer or message by which its user had come to it, as of then.';
