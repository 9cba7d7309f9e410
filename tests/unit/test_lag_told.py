"""How far personalize is behind is told while nothing is folded, and by a partition's owner alone."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry, Gauge

from stream.adapters.faust.faust_compat import TP
from stream.adapters.health.metrics import Metrics
from stream.fleet import Owned
from stream.topology import Personalize


def worker(openings: dict[int, asyncio.Task[Any]], highwaters: dict[int, int | None], registry: CollectorRegistry) -> Any:
    """One that owns partitions, without Faust; its metrics are not the process's own."""
    async def revoked(partitions: set[int]) -> None:
        for partition in partitions:
            del made.fleet.owned[partition]

    made: Any = object.__new__(Personalize)
    made.metrics = object.__new__(Metrics)
    for name in ("unaccounted", "lag", "owed"):
        setattr(made.metrics, name, Gauge(name, name, ["partition"], registry=registry))
    made.metrics.accounts = Gauge("accounts", "accounts", ["end", "partition"], registry=registry)
    made.events, made.left_behind = "events", SimpleNamespace(handing_out=lambda: None)
    made.app = SimpleNamespace(consumer=SimpleNamespace(highwater=lambda tp: highwaters[tp.partition]))
    made.fleet = SimpleNamespace(owned={number: Owned(number, one) for number, one in openings.items()}, revoked=revoked)
    return made


async def test_lag_is_told_of_open_partitions_until_they_are_taken_away() -> None:
    async def opened(folded: int) -> Any:
        return SimpleNamespace(state=SimpleNamespace(folded={"events": folded}.__getitem__))

    never: Any = asyncio.Event().wait()
    openings = {number: asyncio.create_task(one) for number, one in enumerate((opened(99), opened(-1), opened(5), never))}
    await asyncio.wait([openings[number] for number in range(3)])
    registry = CollectorRegistry()
    made = worker(openings, {0: 500, 1: 20, 2: None, 3: 9}, registry)
    saying = asyncio.create_task(made.say_lag())
    await asyncio.sleep(0)

    def told() -> dict[str, float]:
        return {one.labels["partition"]: one.value for metric in registry.collect() for one in metric.samples}

    assert not saying.done()
    assert told() == {"0": 400, "1": 20}, "nobody knows it of one that is not open, or that the broker was not asked about"
    for gauge in (made.metrics.owed, made.metrics.unaccounted):
        gauge.labels("0").set(7)
    made.metrics.accounts.labels("folded", "0").set(7)
    await made.on_revoked({TP("events", 0), TP("identity", 1)})
    assert told() == {"1": 20}, "the next owner of partition 0 says what is true of it"
    for task in (saying, openings[3]):
        task.cancel()
