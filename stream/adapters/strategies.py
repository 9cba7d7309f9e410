"""Opinions and the strategies they came of, and users and items to ask about, from ClickHouse."""

from __future__ import annotations

from contextlib import closing
from typing import Any, NamedTuple

from stream.adapters import clickhouse
from stream.core.strategies import Rated
from stream.settings import ClickHouse

OPINIONS_MAX = 200_000  # the newest ones: some 60 MB

OPINIONS = """SELECT user_id, item_id, category, groups, strategy, context, propensity,
    toUnixTimestamp64Milli(decided_at), toUnixTimestamp64Milli(said_at), satisfaction
FROM strategy_opinions WHERE tenant = {tenant:String} ORDER BY said_at DESC, opinion_id LIMIT {limit:UInt32}"""
USERS = """SELECT user_id, arraySort(groupArray(DISTINCT segment)) FROM segment_intervals
WHERE tenant = {tenant:String} AND left_at IS NULL GROUP BY user_id"""
ITEMS = """SELECT item_id, trimBoth(splitByChar('>', category)[1]) FROM items FINAL WHERE tenant = {tenant:String}"""


class Known(NamedTuple):
    """What a comparison is made from. `users`: groups they are in now; `items`: first level of their categories."""

    rows: list[Rated]
    users: dict[str, tuple[str, ...]]
    items: dict[str, str]


def read(server: ClickHouse, tenant: str) -> Known:
    """The newest opinions of a tenant, oldest first. Raises ClickHouseMissing."""
    with closing(clickhouse.connect(server, wait_s=0)) as client:
        def rows(sql: str, **more: Any) -> list[Any]:
            return list(client.query(sql, parameters={"tenant": tenant, **more}).result_rows)

        said = [Rated(user, item, category, tuple(groups), strategy, context, propensity, decided_ms, said_ms, satisfaction)
                for user, item, category, groups, strategy, context, propensity, decided_ms, said_ms, satisfaction
                in rows(OPINIONS, limit=OPINIONS_MAX)]  # fmt: skip
        users = {user: tuple(groups) for user, groups in rows(USERS)}
        return Known(said[::-1], users, dict(rows(ITEMS)))
