"""Opinions and the strategies they came of, users and items to ask about, from ClickHouse; and what was predicted, to it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import closing
from itertools import repeat
from typing import Any, NamedTuple

import msgspec

from stream.adapters.database import clickhouse
from stream.core.opinions.strategies import Model, Predicted, Rated
from stream.settings import ClickHouse

OPINIONS_MAX = 200_000  # the newest ones: some 60 MB

OPINIONS = """SELECT user_id, item_id, category, groups, strategy, context, propensity,
    toUnixTimestamp64Milli(decided_at), toUnixTimestamp64Milli(said_at), satisfaction
FROM strategy_opinions WHERE tenant = {tenant:String} ORDER BY said_at DESC, opinion_id LIMIT {limit:UInt32}"""
USERS = """SELECT user_id, arraySort(groupArray(DISTINCT segment)) FROM segment_intervals
WHERE tenant = {tenant:String} AND left_at IS NULL AND ({user:String} = '' OR user_id = {user:String}) GROUP BY user_id"""
REFUSING = """SELECT user FROM events FINAL WHERE tenant = {tenant:String} AND user IN (
    SELECT user FROM events WHERE tenant = {tenant:String} AND user != '' AND ({user:String} = '' OR user = {user:String})
        AND JSONExtractRaw(context, 'consent', 'personalization') = 'false')
GROUP BY user HAVING argMax(JSONExtractRaw(context, 'consent', 'personalization'), (timestamp, message_id)) = 'false'"""
ITEMS = """SELECT item_id, trimBoth(splitByChar('>', category)[1]) FROM items FINAL WHERE tenant = {tenant:String}"""

PREDICTIONS = "satisfaction_predictions"
_MS = "DateTime64(3, 'UTC')"
COLUMNS = {"tenant": "String", "user_id": "String", "item_id": "String", "strategy": "String", "satisfaction": "Float64",
           "low": "Float64", "high": "Float64", "opinions": "UInt64", "by_lot": "Bool", "model_version": "String",
           "learned_until": _MS, "as_of_ts": _MS, "predicted_at": _MS, "partition_time": "DateTime('UTC')"}  # fmt: skip
ROWS_A_INSERT = 50_000


class Known(NamedTuple):
    """What a comparison is made from. `users`: groups they are in now; `items`: first level of their categories;
    `refusing`: who refuses a profile in their newest event, so that nothing is predicted of them. What they said counts
    with everybody's: consent to analytics decides about that. `users` and `refusing` are of one user where one was named."""

    rows: list[Rated]
    users: dict[str, tuple[str, ...]]
    items: dict[str, str]
    refusing: frozenset[str] = frozenset()


def read(server: ClickHouse, tenant: str, user: str = "") -> Known:
    """The newest opinions of a tenant, oldest first. `user`: the only one who is asked about. Raises ClickHouseMissing."""
    with closing(clickhouse.connect(server, wait_s=0)) as client:
        def rows(sql: str, **more: Any) -> list[Any]:
            return list(client.query(sql, parameters={"tenant": tenant, **more}).result_rows)

        said = [Rated(who, item, category, tuple(groups), strategy, context, propensity, decided_ms, said_ms, satisfaction)
                for who, item, category, groups, strategy, context, propensity, decided_ms, said_ms, satisfaction
                in rows(OPINIONS, limit=OPINIONS_MAX)]  # fmt: skip
        users = {who: tuple(groups) for who, groups in rows(USERS, user=user)}
        return Known(said[::-1], users, dict(rows(ITEMS)), frozenset(who for (who,) in rows(REFUSING, user=user)))


def version_of(rows: list[Rated]) -> str:
    """What stands for a model: the opinions that it was learned from."""
    return hashlib.blake2b(msgspec.msgpack.encode(rows), digest_size=6).hexdigest()


class Store:
    """Where predictions go: all of one moment, by one model."""

    def __init__(self, server: ClickHouse, tenant: str, known: Known, model: Model, now_ms: int) -> None:
        self._server, self._tenant, self._model, self._now_ms = server, tenant, model, now_ms
        self.version = version_of(known.rows)
        self.learned_until_ms = max(row.said_ms for row in known.rows)
        self._spoke_ms: Mapping[str, int] = {row.user: row.said_ms for row in known.rows}  # oldest first: the newest stays
        self._columns: list[list[Any]] = [[] for _ in COLUMNS]

    def write(self, predicted: Iterable[Predicted]) -> int:
        """Returns how many rows were stored. What was stored before a failure stays, and comes again under its own time.
        Raises ClickHouseMissing and clickhouse-connect's errors."""
        count = 0
        with closing(clickhouse.connect(self._server, wait_s=0)) as client:
            for one in predicted:
                count += self._add(one)
                if len(self._columns[0]) >= ROWS_A_INSERT:
                    self._insert(client)
            self._insert(client)
        return count

    def _add(self, one: Predicted) -> int:
        names, items = self._model.levels.strategies, len(one.items)
        n = items * len(names)
        carried = [self._model.carried[name] for name in names]
        values, low, high = one.values.reshape(n, 3).T.tolist()
        added: list[Iterable[Any]] = [
            repeat(self._tenant, n), repeat(one.user, n), (item for item in one.items for _ in names), names * items,
            values, low, high, [own.opinions for own in carried] * items, [own.by_lot for own in carried] * items,
            repeat(self.version, n), repeat(self.learned_until_ms, n), repeat(self._spoke_ms.get(one.user, 0), n),
            repeat(self._now_ms, n), repeat(self._now_ms // 1000, n),
        ]  # fmt: skip
        for column, more in zip(self._columns, added, strict=True):
            column.extend(more)
        return n

    def _insert(self, client: Any) -> None:
        if self._columns[0]:
            token = hashlib.sha256(msgspec.msgpack.encode(self._columns)).hexdigest()
            clickhouse.insert(client, PREDICTIONS, COLUMNS, self._columns, token)
        self._columns = [[] for _ in COLUMNS]
