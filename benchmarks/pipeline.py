"""`clickwake bench pipeline`: the rate of the whole system beside a bare Faust agent's on the same events, and its latency.

1 start broker, ClickHouse, catalog, personalize and sink; the catalog worker encodes the shop, a real bundle is released,
  the shoppers' histories are folded and stored;
2 personalize and sink are held (SIGSTOP) while a backlog of live events is put on the topic; then they are let go. The
  time runs from there until every event is folded, stored as state and committed, and every event and output is stored
  in ClickHouse and committed. Recommendations that still wait for the end of a user's interval are made after that;
3 the same shoppers go on at a fixed pace (open loop): event → recommendation as a consumer of the topic sees it,
  event → row as a query sees it, both from the event's due time;
4 counts by SQL must be what was sent and what is on the topics;
5 all workers end; a bare Faust agent, which only counts, reads the backlog's very records.

Everything runs in `<home>/bench/run`, which is emptied first; the trained bundle is kept in `<home>/bench/models`.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks import transport
from benchmarks.bundle import train_once
from benchmarks.observe import BenchFailed, Places, cpu_seconds, expect, number, spent, stopped, until_zero
from benchmarks.open_loop import OpenLoop
from benchmarks.rush import Moved, Rush, backlog, rush
from benchmarks.stage import Stage, Tell, bench_folder
from clickwake.local.kafka_jars import KAFKA_VERSION
from clickwake.local.observe import metric
from clickwake.local.process import StartError
from clickwake.local.up import Local
from producers.simulate.mess import Record
from producers.simulate.world import World
from schemas import topics
from schemas.outputs import Recommendation
from stream import settings as settings_module
from stream.adapters.database import clickhouse

SEED, TENANT, ITEMS = 7, "demo", 2_400
WORLD_DAYS = 5  # one or two earlier visits a shopper
EVENTS_PER_SHOPPER = 9  # in the rush, at least: the last visit on each of one or two devices
RUSH_EVENTS_PER_S = 200.0  # of the shoppers together: some 5,000 at once, with an event every 25 s each
VERSIONS = ("faust-streaming", "aiokafka", "onnxruntime", "numpy", "msgspec", "rocksdict", "clickhouse-connect", "chdb")


@dataclass(frozen=True)
class Options:
    """`events` in the backlog; then `rate` events/s for `seconds`; `workers` personalize processes."""

    events: int
    rate: float
    seconds: float
    workers: int

    @property
    def paced(self) -> int:
        return round(self.rate * self.seconds)


def run(home: Path, options: Options, console: Console) -> dict[str, Any]:
    """The measurement, see the module. Raises `BenchFailed` for a wrong count or a step that does not end, `StartError`."""
    described = machine()
    with bench_folder(home) as folder, console.status("simulating") as status:
        end = datetime.now(UTC) - timedelta(hours=1)
        shoppers = (options.events + options.paced) // EVENTS_PER_SHOPPER
        world = World(SEED, shoppers, WORLD_DAYS, end - timedelta(days=WORLD_DAYS), items=ITEMS, tenant=TENANT)
        shop = rush(world.history(), RUSH_EVENTS_PER_S)
        needed = options.events + options.paced
        if len(shop.moved) < needed:
            raise BenchFailed(f"{shoppers} shoppers make {len(shop.moved)} events, {needed} are needed")
        model = train_once(folder, home / "bench" / "models", seed=SEED, items=ITEMS, tenant=TENANT, end=end,
                           say=status.update)
        names = ("catalog", "personalize", "sink")
        with (Local(folder, processes=names, workers=options.workers, say=status.update) as local,
              Places(local.settings) as offsets):  # fmt: skip
            return {"machine": described} | _Bench(local, options, world, shop, offsets, status.update).measure(model)


class _Bench(Stage):
    """A run over an installation that is up."""

    def __init__(self, local: Local, options: Options, world: World, shop: Rush, offsets: Places, tell: Tell) -> None:
        super().__init__(local, world, offsets, tell)
        self.options, self.shop = options, shop
        self.workers = [name for name in local.names() if name.startswith(("personalize", "sink"))]
        self.live = 0  # events sent in the live lane

    def measure(self, model: str) -> dict[str, Any]:
        self.prepare(model, self.shop.history)
        whole, before = self._backlog()
        paced = self._paced()
        for name in (*self.workers, "catalog"):
            self.local.end(name)
        bare = self._bare(before)
        return {
            "versions": versions(), "settings": self._settings(), "bare_agent": bare,
            "pipeline": whole, "ratio": round(whole["events_per_s"] / bare["events_per_s"], 2), "open_loop": paced,
        }

    def _backlog(self) -> tuple[dict[str, Any], dict[Any, int]]:
        count = self.options.events
        self.tell(f"putting {count:,} events on the topic")
        before, outcomes = self.offsets.ends(topics.EVENTS), self._outcomes()
        recommended = self.offsets.ends(topics.RECOMMENDATIONS)
        with stopped(self.local, self.workers):
            records = [Record.of(event) for event in backlog(self.shop.moved[:count], time.time_ns() // 1_000_000)]
            self.send(topics.EVENTS, records)
            cpu = cpu_seconds(self.local)
            started = time.monotonic()
        folded, stored = self.await_done("backlog")
        cpu = spent(cpu, cpu_seconds(self.local))
        seconds = stored - started
        in_time = self._recommended(recommended)
        settled = self.settle()
        self.live += count
        made = self._check()
        recommendations = self._recommended(recommended)
        after = self._outcomes()
        became = {name: more for name, now in after.items() if (more := now - outcomes.get(name, 0))}
        return {
            "events": count, "users": len({one.key for one in records}), "history_events": len(self.shop.history),
            "event_bytes": round(sum(len(one.value) for one in records) / count),
            "seconds": round(seconds, 2), "events_per_s": round(count / seconds, 1),
            "folded_seconds": round(folded - started, 2), "settled_seconds": round(settled - started, 2),
            "recommendations_in_time": in_time, "recommendations": recommendations,
            "recommendations_per_event": round(recommendations / count, 4),
            "outcomes": became, "cpu_seconds": cpu, "rows_checked": made,
        }, before

    def _paced(self) -> dict[str, Any]:
        moved: Sequence[Moved] = self.shop.moved[self.options.events : self.options.events + self.options.paced]
        before = self.offsets.ends(topics.RECOMMENDATIONS)
        loop = OpenLoop(self.settings, moved, self.options.rate, before)
        loop.run(self.tell)
        self.live += len(moved)
        self.await_done("last events")
        self.settle()
        new = self._recommended(before)
        until_zero(lambda: new - loop.listener.records, "recommendations to be read", self.tell)
        self._check()
        return loop.figures() | {"lag_at_end": 0}

    def _bare(self, before: dict[Any, int]) -> dict[str, Any]:
        self.tell("bare Faust agent")
        self.offsets.place(f"{self.prefix}-bare", before)
        role = {"servers": self.settings.kafka.bootstrap_servers, "prefix": self.prefix, "home": str(self.local.home),
                "topic": topics.EVENTS.name(self.prefix), "result": str(self.local.home / "bare.json"), "agent": "bare",
                "records": self.options.events}  # fmt: skip
        measured = transport.measure(role)
        return {"events": measured["records"], "seconds": round(measured["seconds"], 2),
                "events_per_s": round(measured["rate"], 1)}

    def _recommended(self, before: dict[Any, int]) -> int:
        """Recommendations on the topic since then."""
        return sum(self.offsets.ends(topics.RECOMMENDATIONS).values()) - sum(before.values())

    def _check(self) -> dict[str, int]:
        """Rows by SQL against what was sent and what is on the topic."""
        client = clickhouse.connect(self.settings.clickhouse, wait_s=10.0)
        try:
            events = number(client, "SELECT count() FROM events FINAL WHERE lane = 'live'")
            expect("live events", events, self.live)
            every = number(client, "SELECT count() FROM events FINAL")
            expect("events", every, self.live + len(self.shop.history))
            ids = self._recommendation_ids()
            rows = number(client, "SELECT count() FROM recommendations FINAL")
            expect("recommendations", rows, len(ids))
        finally:
            client.close()
        return {"events": every, "recommendations": rows}

    def _recommendation_ids(self) -> set[str]:
        from kafka import KafkaConsumer

        ends = self.offsets.ends(topics.RECOMMENDATIONS)
        consumer: Any = KafkaConsumer(bootstrap_servers=self.settings.kafka.bootstrap_servers, group_id=None,
                                      enable_auto_commit=False)  # fmt: skip
        consumer.assign(list(ends))
        consumer.seek_to_beginning(*ends)
        ids: set[str] = set()
        decode = msgspec.json.Decoder(Recommendation).decode
        while any(consumer.position(tp) < end for tp, end in ends.items()):
            for records in consumer.poll(timeout_ms=500, max_records=10_000).values():
                ids.update(decode(one.value).recommendation_id for one in records)
        consumer.close()
        return ids

    def _outcomes(self) -> dict[str, int]:
        """What became of the inputs so far, over all partitions."""
        found: dict[str, int] = {}
        for label, value in metric(self.settings, "clickwake_outcomes_total").items():
            name = label.split('outcome="', 1)[1].split('"', 1)[0]
            found[name] = found.get(name, 0) + int(value)
        return found

    def _settings(self) -> dict[str, Any]:
        return {"personalize_workers": self.options.workers, "partitions": self.settings.kafka.partitions,
                "items": ITEMS, "shoppers": self.world.shop.shoppers,
                "personalize": self.settings.personalize.model_dump(mode="json", exclude={"metrics_port"}),
                "sink": self.settings.sink.model_dump(mode="json", exclude={"metrics_port"})}  # fmt: skip


def machine() -> dict[str, Any]:
    """Where this was measured."""
    import psutil

    return {"cpus": os.cpu_count(), "memory_gb": round(psutil.virtual_memory().total / 1e9, 1), "system": platform.system(),
            "architecture": platform.machine(), "python": platform.python_version(),
            "load_before": [round(one, 2) for one in os.getloadavg()]}  # fmt: skip


def versions() -> dict[str, str]:
    return {"kafka": KAFKA_VERSION} | {name: version(name) for name in VERSIONS}


def main(options: Options, *, as_json: bool) -> int:
    """Run and print; exit code 0, or 1 when it failed."""
    console = Console(stderr=True)
    settings = settings_module.load()
    if os.environ.get("CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS") or os.environ.get("CLICKWAKE_CLICKHOUSE__HOST"):
        console.print("bench measures a broker and a ClickHouse of its own: unset CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS and "
                      "CLICKWAKE_CLICKHOUSE__HOST")  # fmt: skip
        return 1
    try:
        result = run(settings.home.absolute(), options, console)
    except (BenchFailed, StartError, ConnectionError) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 1
    if as_json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
    else:
        Console().print(table(result))
    return 0


def table(result: dict[str, Any]) -> Table:
    """The figures for people."""
    whole, bare, paced = result["pipeline"], result["bare_agent"], result["open_loop"]
    shown = Table(box=None, show_header=False)
    workload = f"{whole['events']:,} events of {whole['users']:,}, {whole['recommendations_per_event']:.2f} answers/event"
    shown.add_row("whole system", f"{whole['events_per_s']:,.0f} events/s", workload)
    shown.add_row("bare Faust agent", f"{bare['events_per_s']:,.0f} events/s", "counts the same records, does nothing")
    shown.add_row("ratio", f"{result['ratio']:.2f}", "")
    for name, what in (("recommendation", "to be read by a consumer"), ("row", "to be selected from ClickHouse")):
        one = paced[name]
        tail = f"median, at {paced['events_per_s']:g} events/s, {what}; p95 {one['p95_ms']:,.0f}, p99 {one['p99_ms']:,.0f}"
        shown.add_row(f"event → {name}", f"{one['p50_ms']:,.0f} ms", tail)
    shown.add_row("answered", f"{paced['recommended_share']:.1%}", "of events at that rate")
    return shown
