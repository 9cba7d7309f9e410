"""A user's rows in ClickHouse: which they are, and how they go. Ids are bound by the server, never put into the SQL."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import closing
from datetime import datetime
from typing import NamedTuple

import msgspec
from clickhouse_connect.driver.client import Client

from schemas.erasure import Done
from schemas.events import ms
from stream.adapters.database import clickhouse
from stream.settings import Settings

HOLDS = """(arrayExists(one -> position(x, one) > 0, {quoted:Array(String)})
    OR arrayExists(one -> match(x, one), {numbers:Array(String)}))"""  # a text `x`, whatever it is
_FIELDS = ("userId", "anonymousId", "previousId", "user_id", "anonymous_id", "previous_id")  # refused things may be misnamed
_STANDS = " OR ".join(f"{read}(payload, '{field}') IN {{ids:Array(String)}}" for field in _FIELDS
                      for read in ("JSONExtractString", "JSONExtractRaw"))  # raw, numbers have no quotes, and texts do
# of nobody, as far as these say: then any place where the id stands may be the one that tells; so it is with what is no JSON
_NOBODYS = " AND ".join(f"JSONExtractRaw(payload, '{field}') IN ('', 'null', '\"\"')" for field in _FIELDS)
_LETTER = f"({_STANDS} OR ({_NOBODYS} AND arrayExists(x -> {HOLDS}, [payload])))"
_NUMBER = re.compile("-?[0-9]+([.][0-9]+)?")


class About(NamedTuple):
    """Rows of a table that are about users, and the column that says when. Of a decision it is when what it was made by
    happened: the read API may go on for a moment by a past that is being erased."""

    which: str
    at: str
    appended: str = "broker_time"

    @property
    def known_at(self) -> str:
        """A client's clock may be ahead: what the broker had is of then at the latest."""
        return f"least({self.at}, {self.appended})" if self.appended else self.at


ABOUT = {
    "events": About("user IN {ids:Array(String)}", "timestamp"),
    "event_products": About("user IN {ids:Array(String)}", "timestamp"),
    "recommendations": About("user_id IN {ids:Array(String)}", "as_of_ts"),
    "complements": About("user_id IN {ids:Array(String)}", "as_of_ts"),
    "decisions": About("user_id IN {ids:Array(String)}", "ifNull(as_of_ts, served_at)"),
    "segment_changes": About("user_id IN {ids:Array(String)}", "as_of_ts"),
    "churn_alerts": About("user_id IN {ids:Array(String)}", "as_of_ts"),
    "reminders": About("user_id IN {ids:Array(String)}", "as_of_ts"),
    "deliveries": About("user_id IN {ids:Array(String)}", "at"),
    "offer_decisions": About("user_id IN {ids:Array(String)}", "ifNull(as_of_ts, served_at)"),
    "opinions": About("user_id IN {ids:Array(String)}", "said_at"),
    "satisfaction_predictions": About("user_id IN {ids:Array(String)}", "as_of_ts", appended=""),
    "dead_letters": About(_LETTER, "first_seen"),
}


def quoted(ids: Sequence[str]) -> list[str]:
    """Ids as they stand in JSON."""
    return [msgspec.json.encode(one).decode() for one in ids]


def numbers(ids: Iterable[str]) -> list[str]:
    """Patterns, Python's and the server's, of those ids that may stand as numbers in JSON: by the names of ids, since a
    number alone is part of everything.

    >>> [bool(re.search(numbers(["4711"])[0], text)) for text in ('{"userId": 4711}', '{"user_id":47110}', '{"price":4711}')]
    [True, False, False]
    """
    return [f'"(user|anonymous|previous)(Id|_id)" *: *{one.replace(".", "[.]")}([^0-9.eE]|$)'
            for one in ids if _NUMBER.fullmatch(one)]  # fmt: skip


class Rows:
    """One request's part in ClickHouse. Each method opens its own connection: minutes may lie between them."""

    def __init__(self, settings: Settings, tenant: str, requested_at: datetime, *, suppress: bool) -> None:
        self._settings, self._tenant = settings.clickhouse, tenant
        self._until = None if suppress else requested_at

    def devices(self, user: str) -> list[str]:
        """Anonymous ids that came with this user and with no other, and are no account: their histories are the user's. Of a
        shared device nobody can say whose its anonymous visits were; they stay."""
        theirs = "SELECT anonymous_id FROM events WHERE tenant = {tenant:String} AND user_id = {user:String}"
        with closing(clickhouse.open_client(self._settings)) as client:
            found = client.query(
                "SELECT anonymous_id FROM events WHERE tenant = {tenant:String} AND user_id != '' AND anonymous_id != '' "  # noqa: S608
                f"AND anonymous_id IN ({theirs}) AND anonymous_id NOT IN (SELECT user_id FROM events "
                f"WHERE tenant = {{tenant:String}} AND user_id IN ({theirs})) "
                "GROUP BY anonymous_id HAVING uniqExact(user_id) = 1 ORDER BY anonymous_id",
                parameters={"tenant": self._tenant, "user": user},
            )
            return [row[0] for row in found.result_rows]

    def shared(self, user: str, devices: Sequence[str]) -> list[str]:
        """Which of these anonymous ids came with somebody else, too, or are an account."""
        parameters = {"tenant": self._tenant, "user": user, "devices": list(devices)}
        with closing(clickhouse.open_client(self._settings)) as client:
            met, accounts = (client.query(sql, parameters=parameters).result_rows for sql in (
                "SELECT DISTINCT anonymous_id FROM events WHERE tenant = {tenant:String} "
                "AND anonymous_id IN {devices:Array(String)} AND user_id NOT IN ('', {user:String})",
                "SELECT DISTINCT user_id FROM events WHERE tenant = {tenant:String} AND user_id IN {devices:Array(String)}",
            ))  # fmt: skip
            return sorted({row[0] for row in (*met, *accounts)})

    def delete(self, ids: Sequence[str]) -> list[Done]:
        """Rewrite the parts that hold rows of these ids without them; returns once that is done on disk."""
        with closing(clickhouse.open_client(self._settings)) as client:
            done = [self._delete(client, table, about, ids) for table, about in ABOUT.items()]
            others = self._where(About("anonymous_id IN {ids:Array(String)}", "timestamp"))  # the device of another's event
            if self._count(client, "events", others, ids):
                self._mutate(client, f"events UPDATE anonymous_id = '' WHERE {others}", ids)
        return done

    def left(self, ids: Sequence[str]) -> int:
        """Rows of these ids that are there now."""
        with closing(clickhouse.open_client(self._settings)) as client:
            return sum(self._count(client, table, self._where(about), ids) for table, about in ABOUT.items())

    def _delete(self, client: Client, table: str, about: About, ids: Sequence[str]) -> Done:
        where = self._where(about)
        count = self._count(client, table, where, ids)
        if count:
            self._mutate(client, f"{table} DELETE WHERE {where}", ids)
        return Done(place=f"ClickHouse {table}", did="rows deleted", records=count)

    def _where(self, about: About) -> str:
        bound = "" if self._until is None else f" AND {about.known_at} <= fromUnixTimestamp64Milli({{until_ms:Int64}})"
        return f"tenant = {{tenant:String}} AND {about.which}{bound}"

    def _parameters(self, ids: Sequence[str]) -> dict[str, object]:
        known: dict[str, object] = {"tenant": self._tenant, "ids": list(ids), "quoted": quoted(ids), "numbers": numbers(ids)}
        return known if self._until is None else known | {"until_ms": ms(self._until)}

    def _count(self, client: Client, table: str, where: str, ids: Sequence[str]) -> int:
        sql = f"SELECT count() FROM {table} WHERE {where}"  # noqa: S608  # both are constants of this module
        found = client.query(sql, parameters=self._parameters(ids))
        return int(found.result_rows[0][0])

    def _mutate(self, client: Client, what: str, ids: Sequence[str]) -> None:
        client.command(f"ALTER TABLE {what}", parameters=self._parameters(ids), settings={"mutations_sync": 2})
