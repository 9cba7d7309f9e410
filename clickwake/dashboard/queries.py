"""What the pages ask of ClickHouse: one constant a question, all of them over the documented views. `of_all`: how many rows
there are, of which LIMIT leaves the first."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from schemas.events import ID_CHARS_MAX
from stream.adapters.database import clickhouse
from stream.settings import ClickHouse

Rows = list[dict[str, Any]]
TOO_LONG = (159, 160)  # what ClickHouse answers beyond `max_execution_time`, or where it would get there
LIMITS = {"max_execution_time": 20, "max_result_rows": 10_000, "result_overflow_mode": "break"}

TENANTS = "SELECT tenant FROM events GROUP BY tenant ORDER BY count() DESC, tenant LIMIT 50"
# dead letters without those whose event is stored on the lane `repair`, under the id of `producers.repair.event_id`
UNSENT = """SELECT kind, paths, messages, failed_at, dead_letter_id, JSONExtractString(payload, 'messageId') AS own_id,
    if(JSONType(payload, 'messageId') = 'String' AND lengthUTF8(own_id) BETWEEN 1 AND """ + str(ID_CHARS_MAX) + """,
       own_id, concat('dead-letter-', dead_letter_id)) AS event_id
FROM dead_letters FINAL WHERE tenant = {tenant:String}
    AND event_id NOT IN (SELECT message_id FROM events WHERE tenant = {tenant:String} AND lane = 'repair')"""  # noqa: S608
TOTALS = """SELECT
    (SELECT count() FROM events FINAL WHERE tenant = {tenant:String}) AS events,
    (SELECT uniqExact(user) FROM events WHERE tenant = {tenant:String}) AS users,
    (SELECT count() FROM recommendations_served WHERE tenant = {tenant:String})
        + (SELECT count() FROM decisions_served WHERE tenant = {tenant:String}) AS recommendations,
    (SELECT countIf(state = 'raised') FROM churn_alerts_served WHERE tenant = {tenant:String}) AS alerts,
    (SELECT count() FROM (""" + UNSENT + """)) AS letters"""  # noqa: S608  # constants of this module
TRAFFIC = """SELECT toStartOfInterval(broker_time, INTERVAL 10 SECOND) AS at, count() AS events
FROM events WHERE tenant = {tenant:String} AND broker_time > now64(3) - INTERVAL 15 MINUTE
GROUP BY at ORDER BY at WITH FILL FROM toStartOfInterval(now64(3) - INTERVAL 15 MINUTE, INTERVAL 10 SECOND)
TO toStartOfInterval(now64(3), INTERVAL 10 SECOND) STEP INTERVAL 10 SECOND"""
FUNNEL = """SELECT sum(viewing) AS viewed, sum(viewed_added) AS added, sum(viewed_added_checkout) AS checkout,
    sum(viewed_added_checkout_ordered) AS ordered
FROM funnel_daily WHERE tenant = {tenant:String}
    AND day > (SELECT toDate(max(timestamp), 'UTC') FROM events WHERE tenant = {tenant:String}) - 30"""
ACTIVE = """SELECT day, active, new, returning FROM active_users_daily WHERE tenant = {tenant:String}
ORDER BY day DESC LIMIT 60"""
SEGMENTS = """SELECT segment, members, entered_1d, left_1d, changed_at FROM segment_sizes WHERE tenant = {tenant:String}
ORDER BY members DESC, segment"""
MEMBERS = """SELECT user_id, entered_at, left_at, values, count() OVER () AS of_all FROM segment_intervals
WHERE tenant = {tenant:String} AND segment = {segment:String} AND entered_at <= {at:DateTime64(3, 'UTC')}
    AND (left_at IS NULL OR left_at > {at:DateTime64(3, 'UTC')})
ORDER BY entered_at DESC, user_id LIMIT 500"""
ALERTS = """SELECT alerts.as_of_ts AS as_of_ts, alerts.user_id AS user_id, alerts.probability AS probability,
    alerts.horizon_days AS horizon_days, alerts.reasons AS reasons, outcomes.outcome AS outcome,
    count() OVER () AS of_all
FROM churn_alerts_served AS alerts
LEFT JOIN alert_outcomes AS outcomes ON outcomes.tenant = alerts.tenant AND outcomes.alert_id = alerts.alert_id
WHERE alerts.tenant = {tenant:String} AND alerts.state = 'raised' ORDER BY as_of_ts DESC LIMIT 500"""
PRECISION = """SELECT model_version, horizon_days, raised, judged, correct, precision, said, pending
FROM alert_precision WHERE tenant = {tenant:String} ORDER BY model_version DESC"""
HIT_RATE = """SELECT model_version, horizon, emissions, hits, hit_rate, ordered, pending, count() OVER () AS of_all
FROM recommendation_hit_rate WHERE tenant = {tenant:String} ORDER BY model_version DESC, horizon LIMIT 60"""
HIT_RATE_DAILY = """SELECT toDate(as_of_ts) AS day, model_version, uniqExact(recommendation_id) AS emissions,
    uniqExactIf(recommendation_id, hit_1d) / emissions AS hit_rate
FROM recommendation_hits WHERE tenant = {tenant:String} AND closed_1d
GROUP BY day, model_version ORDER BY day DESC LIMIT 400"""
SCENARIOS = """SELECT scenario, count() AS answers, countIf(isNotNull(shown_at)) AS shown,
    countIf(isNotNull(clicked_at)) AS clicked, countIf(isNotNull(added_at)) AS added,
    countIf(isNotNull(ordered_at)) AS ordered
FROM decision_outcomes WHERE tenant = {tenant:String} GROUP BY scenario ORDER BY answers DESC"""
MODELS_SERVED = """SELECT model_version, count() AS emissions, min(as_of_ts) AS first, max(as_of_ts) AS last
FROM recommendations_served WHERE tenant = {tenant:String} GROUP BY model_version ORDER BY last DESC LIMIT 60"""
NEWEST = """SELECT toUnixTimestamp64Milli(max(timestamp)) AS newest_ms FROM events
WHERE tenant = {tenant:String} AND lane = 'live'"""
# whole users, drawn by their hash, so that the times between a user's events are all there
DRIFT = """WITH (SELECT intDiv(count(), {most:UInt64}) + 1 FROM events WHERE tenant = {tenant:String} AND user != ''
    AND timestamp > fromUnixTimestamp64Milli({from:Int64}) AND timestamp <= fromUnixTimestamp64Milli({until:Int64})) AS parts
SELECT user, event, toUnixTimestamp64Milli(timestamp) AS ts_ms FROM events FINAL
WHERE tenant = {tenant:String} AND user != '' AND event != '' AND modulo(cityHash64(user), parts) = 0
    AND timestamp > fromUnixTimestamp64Milli({from:Int64}) AND timestamp <= fromUnixTimestamp64Milli({until:Int64})
ORDER BY user, timestamp"""
OFFER_EFFECT = """SELECT placement, offered, held_out, offered_rate, held_out_rate, effect, effect_low, effect_high
FROM offer_effect WHERE tenant = {tenant:String} ORDER BY placement"""
OFFER_RESULTS = """SELECT placement, offer_id, holdout, users, impressions, clicks, click_rate, click_low, click_high,
    orders, order_rate, revenue, spent, text, count() OVER () AS of_all
FROM offer_results WHERE tenant = {tenant:String} ORDER BY placement, holdout, impressions DESC LIMIT 100"""
OFFER_SPEND = """SELECT offer_id, day, spent, impressions, spent_so_far, impressions_so_far, budget_money_per_day,
    budget_money, budget_impressions
FROM offer_spend WHERE tenant = {tenant:String} ORDER BY day DESC, offer_id LIMIT 1000"""
SATISFACTION_ALERTS = """SELECT alerts.about AS about, alerts.name AS name, alerts.state AS state, alerts.before AS before,
    alerts.reason AS reason,
    alerts.changed_at AS changed_at, alerts.after AS after, alerts.opinions_after AS opinions_after, items.title AS title,
    arrayStringConcat(alerts.quotes, '\\n') AS quotes
FROM satisfaction_alerts_served AS alerts
LEFT JOIN (SELECT tenant, item_id, title FROM items FINAL) AS items
    ON items.tenant = alerts.tenant AND items.item_id = alerts.name AND alerts.about = 'item'
WHERE alerts.tenant = {tenant:String} ORDER BY alerts.as_of_ts DESC LIMIT 30"""
# of the brands spoken of most
SATISFACTION_WEEKLY = """SELECT toMonday(daily.day) AS week, daily.brand AS brand, sum(daily.opinions) AS said,
    sum(daily.satisfaction * daily.opinions) / said AS mean
FROM (SELECT * FROM satisfaction_daily WHERE tenant = {tenant:String}) AS daily
WHERE daily.opinions > 0 AND daily.brand IN (SELECT brand FROM satisfaction_by_brand
    WHERE tenant = {tenant:String} AND brand != '' ORDER BY opinions DESC, brand LIMIT {most:UInt64})
GROUP BY week, brand ORDER BY week DESC, brand LIMIT 2000"""
SATISFACTION_ITEMS = """SELECT by_item.item_id AS item_id, items.title AS title, by_item.opinions AS opinions,
    by_item.satisfaction AS satisfaction, by_item.shrunk AS shrunk, by_item.unhappy AS unhappy, by_item.tickets AS tickets,
    count() OVER () AS of_all
FROM satisfaction_by_item AS by_item
LEFT JOIN (SELECT tenant, item_id, title FROM items FINAL) AS items
    ON items.tenant = by_item.tenant AND items.item_id = by_item.item_id
WHERE by_item.tenant = {tenant:String} ORDER BY shrunk, item_id LIMIT 500"""
SATISFACTION_BRANDS = """SELECT brand, items, opinions, satisfaction, unhappy, tickets, count() OVER () AS of_all
FROM satisfaction_by_brand
WHERE tenant = {tenant:String} AND brand != '' ORDER BY satisfaction, brand LIMIT 500"""
LETTERS = """SELECT kind, arrayStringConcat(paths, ', ') AS where, any(messages[1]) AS why, count() AS letters,
    max(failed_at) AS newest, any(dead_letter_id) AS example, count() OVER () AS of_all
FROM (""" + UNSENT + """) GROUP BY kind, where ORDER BY letters DESC LIMIT 200"""
LETTERS_OF = """SELECT dead_letter_id, count() OVER () AS of_all FROM (""" + UNSENT + """)
WHERE kind = {kind:String} AND arrayStringConcat(paths, ', ') = {where:String}
ORDER BY failed_at DESC, dead_letter_id LIMIT 1000"""  # noqa: S608
TIMELINE = """SELECT timestamp, if(event = '', type, event) AS event, product_id, revenue, lane, count() OVER () AS of_all
FROM events FINAL
WHERE tenant = {tenant:String} AND user = {user:String} ORDER BY timestamp DESC LIMIT 200"""
USER_SEGMENTS = """SELECT segment, entered_at, left_at, count() OVER () AS of_all FROM segment_intervals
WHERE tenant = {tenant:String} AND user_id = {user:String} ORDER BY entered_at DESC LIMIT 200"""


class Database:
    """ClickHouse, asked from the event loop without holding it up."""

    def __init__(self, settings: ClickHouse) -> None:
        self._settings = settings

    async def columns(self, sql: str, rows_max: int, **parameters: Any) -> list[Sequence[Any]]:
        """Values as they are, a sequence a column, of more rows than a page shows. Raises as `rows`."""
        return await asyncio.to_thread(self._columns, sql, parameters, rows_max)

    def _columns(self, sql: str, parameters: dict[str, Any], rows_max: int) -> list[Sequence[Any]]:
        with closing(clickhouse.open_client(self._settings)) as client:
            found = client.query(sql, parameters=parameters, settings=LIMITS | {"max_result_rows": rows_max})
        return list(found.result_columns) or [[] for _ in found.column_names]

    async def rows(self, sql: str, **parameters: Any) -> Rows:
        """Raises `clickhouse.ClickHouseError`, which says what to do."""
        return await asyncio.to_thread(self._rows, sql, parameters)

    def _rows(self, sql: str, parameters: dict[str, Any]) -> Rows:
        with closing(clickhouse.open_client(self._settings)) as client:
            found = client.query(sql, parameters=parameters, settings=LIMITS)
        return [dict(zip(found.column_names, map(_plain, row), strict=True)) for row in found.result_rows]


def _plain(value: Any) -> Any:
    """As a table shows it; times are UTC, as the columns' names say.

    >>> _plain(datetime(2026, 1, 2, 3, 4, 5, 600_000)), _plain(0.123456), _plain(["a", "b"]), _plain({"orders": 2.0})
    ('2026-01-02 03:04:05', 0.1235, 'a; b', 'orders 2')
    """
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC) if value.tzinfo else value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, list | tuple):
        return "; ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {number:g}" for name, number in value.items())
    return value if isinstance(value, int | str) or value is None else str(value)
