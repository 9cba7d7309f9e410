"""What the sink stored of serving: recommendations and what came of them, and the events of a window."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import numpy as np
from clickhouse_connect.driver.exceptions import ClickHouseError

from stream.adapters.database.clickhouse import ClickHouseMissing, connect, missing
from stream.core.statistics.drift import Inputs
from stream.core.user.state import DAY_MS
from stream.settings import Settings

Horizon = Literal["1h", "1d", "7d"]
HORIZON_MS: dict[Horizon, int] = {"1h": DAY_MS // 24, "1d": DAY_MS, "7d": 7 * DAY_MS}
EVENTS_MAX = 500_000  # of a window; a few users who do very much may make it twice as many


class Hits(NamedTuple):
    """Recommendations by user and hour of the day (UTC), those whose horizon has passed."""

    served: Any  # (U, 24) recommendations
    hit: Any  # (U, 24) of these, with at least one item viewed or ordered

    @property
    def total(self) -> int:
        return int(self.served.sum())


class Served(NamedTuple):
    """One recommendation as it was served."""

    user: str
    as_of_ms: int


class Live:
    """A tenant's live data; one connection, to be closed. Raises ClickHouseMissing when no server answers, or it refuses."""

    def __init__(self, settings: Settings, tenant: str) -> None:
        self._client = connect(settings.clickhouse, wait_s=10.0)
        self._settings, self._tenant = settings.clickhouse, tenant

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def newest_ms(self) -> int:
        """Event time of the newest live event; 0 when there is none."""
        (found,) = self._rows("SELECT max(timestamp), count() FROM events WHERE tenant = {tenant:String} AND lane = 'live'")
        return _ms(found[0]) if found[1] else 0

    def hits(self, versions: Sequence[str], since_ms: int, horizon: Horizon) -> Hits:
        """What some bundles' recommendations since then led to within the horizon, those only whose horizon has passed."""
        sql = f"""
            SELECT dense_rank() OVER (ORDER BY user_id) - 1, hour, count(), sum(hit) FROM (
                SELECT user_id, recommendation_id, toHour(min(as_of_ts), 'UTC') AS hour,
                       max(hit_{horizon}) AS hit, max(closed_{horizon}) AS closed
                FROM recommendation_hits
                WHERE tenant = {{tenant:String}} AND has({{versions:Array(String)}}, model_version)
                    AND as_of_ts >= {{since:DateTime64(3)}}
                GROUP BY user_id, recommendation_id)
            WHERE closed GROUP BY user_id, hour"""  # noqa: S608 - the horizon is one of three words
        rows = np.array(self._rows(sql, versions=list(versions), since=_at(since_ms)), dtype=np.int64).reshape(-1, 4)
        found = Hits(*np.zeros((2, int(rows[:, 0].max(initial=-1)) + 1, 24), dtype=np.int64))
        found.served[rows[:, 0], rows[:, 1]], found.hit[rows[:, 0], rows[:, 1]] = rows[:, 2], rows[:, 3]
        return found

    def served(self, version: str, since_ms: int, until_ms: int, most: int) -> list[Served]:
        """At most so many of a bundle's recommendations made in [since, until), drawn by their ids, in time order."""
        sql = """
            SELECT user_id, as_of_ts FROM (
                SELECT user_id, as_of_ts, recommendation_id FROM recommendations_served
                WHERE tenant = {tenant:String} AND model_version = {version:String}
                    AND as_of_ts >= {since:DateTime64(3)} AND as_of_ts < {until:DateTime64(3)}
                ORDER BY cityHash64(recommendation_id) LIMIT {most:UInt32})
            ORDER BY as_of_ts, user_id"""
        rows = self._rows(sql, version=version, since=_at(since_ms), until=_at(until_ms), most=most)
        return [Served(user, _ms(at)) for user, at in rows]

    def inputs(self, from_ms: int, until_ms: int) -> Inputs:
        """Events with a user in (from, until], by user and time: of many, those of a part of the users, drawn by their hash,
        so that the whole window and all times between a user's events are in it."""
        within = """tenant = {tenant:String} AND user != ''
            AND timestamp > {from:DateTime64(3)} AND timestamp <= {until:DateTime64(3)}"""
        sql = f"""
            WITH (SELECT intDiv(count(), {{most:UInt64}}) + 1 FROM events WHERE {within}) AS parts
            SELECT user, event, timestamp FROM events FINAL
            WHERE {within} AND event != '' AND modulo(cityHash64(user), parts) = 0
            ORDER BY user, timestamp LIMIT {{rows:UInt64}}"""  # noqa: S608 - of constants
        most = {"most": EVENTS_MAX, "rows": 2 * EVENTS_MAX}
        rows = self._rows(sql, **{"from": _at(from_ms), "until": _at(until_ms)}, **most)
        times = np.array([_ms(row[2]) for row in rows], dtype=np.int64)
        return Inputs([row[0] for row in rows], [row[1] for row in rows], times)

    def _rows(self, sql: str, **parameters: Any) -> list[Any]:
        try:
            return list(self._client.query(sql, parameters={"tenant": self._tenant} | parameters).result_rows)
        except ClickHouseError as error:
            raise ClickHouseMissing(missing(self._settings, error)) from error


def _at(ts_ms: int) -> datetime:
    return datetime.fromtimestamp(max(0, ts_ms) / 1000, UTC)


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)
