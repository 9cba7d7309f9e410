"""`clickwake bench api`: how many recommendations a second one process of the read API answers, beside the same server
answering with nothing, and how soon after an event it knows of it.

Load comes over kept-alive connections from one client process on the same machine, which takes time of its cores too; so the
ratio to the bare endpoint, measured in turns in the same run, is the figure to watch. Freshness is from the broker's
acknowledgement of an event to the first answer that is as of it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.bundle import train_once
from benchmarks.latency import percentiles
from benchmarks.observe import BenchFailed, Places
from benchmarks.pipeline import ITEMS, SEED, TENANT, machine, versions
from benchmarks.stage import Stage, bench_folder
from clickwake.local.process import StartError
from clickwake.local.up import Local
from producers.simulate.mess import Record
from producers.simulate.world import World
from schemas import topics
from stream import settings as settings_module

WORLD_DAYS = 5
CONNECTIONS = 32
FRESH_WITHIN_S = 20.0
DIVERSITY = 0.2  # of items that are chosen to differ, beside those by score alone


@dataclass(frozen=True)
class Options:
    """`seconds` of each stretch of load; `shoppers` whose histories are there; `fresh` events whose way is timed."""

    seconds: float
    shoppers: int
    fresh: int


class Connection:
    """One kept-alive HTTP/1.1 connection, without what a real client does around it."""

    def __init__(self, host: str, port: int, key: str) -> None:
        self._host, self._port = host, port
        self._auth = base64.b64encode(f"{key}:".encode()).decode()

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)

    async def get(self, path: str) -> bytes:
        """The body. Raises BenchFailed for anything but 200."""
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Basic {self._auth}\r\n\r\n".encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        body = await self._reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 200"):
            raise BenchFailed(f"GET {path}: {head.splitlines()[0].decode()} {body[:300].decode()}")
        return body

    def close(self) -> None:
        self._writer.close()


class Load:
    """Many connections that ask one thing after the other, for some seconds."""

    def __init__(self, connections: list[Connection], paths: list[str]) -> None:
        self._connections, self._paths, self._at = connections, paths, 0
        self.latencies_s: list[float] = []

    async def run(self, seconds: float) -> float:
        """Requests a second."""
        started = time.perf_counter()
        await asyncio.gather(*(self._ask(one, started + seconds) for one in self._connections))
        return len(self.latencies_s) / (time.perf_counter() - started)

    async def _ask(self, connection: Connection, until: float) -> None:
        while (began := time.perf_counter()) < until:
            self._at += 1
            await connection.get(self._paths[self._at % len(self._paths)])
            self.latencies_s.append(time.perf_counter() - began)


class Bench(Stage):
    """A run over an installation that is up."""

    async def measure(self, users: list[str], options: Options) -> dict[str, Any]:
        own = self.settings.api
        key = "demo-read-key"
        connections = [Connection(own.host, own.port, key) for _ in range(CONNECTIONS)]
        for one in connections:
            await one.open()
        paths = [f"/v1/recommendations/{user}" for user in users]
        self.tell("warming up")
        await Load(connections, paths).run(2.0)
        differing = [f"{path}?diversity={DIVERSITY}" for path in paths]
        rates: dict[str, list[float]] = {"bare": [], "recommendations": [], "differing": []}
        latencies: list[float] = []
        for turn in range(3):  # in turns: the machine is not the same from one minute to the next
            self.tell(f"load, turn {turn + 1} of 3")
            rates["bare"].append(await Load(connections, ["/health/live"]).run(options.seconds / 3))
            load = Load(connections, paths)
            rates["recommendations"].append(await load.run(options.seconds / 3))
            latencies += load.latencies_s
            rates["differing"].append(await Load(connections, differing).run(options.seconds / 3))
        self.tell("one at a time")
        alone, alone_differing = Load(connections[:1], paths), Load(connections[:1], differing)
        for one_by_one in (alone, alone_differing):
            await one_by_one.run(options.seconds / 3)
        self.tell("freshness")
        fresh = [await self._fresh(connections[0], user) for user in users[: options.fresh]]
        for one in connections:
            one.close()
        answered, bare, differ = (statistics.median(rates[name]) for name in ("recommendations", "bare", "differing"))
        return {"recommendations_per_s": round(answered), "bare_per_s": round(bare), "ratio": round(answered / bare, 3),
                "differing_per_s": round(differ), "differing_ratio": round(differ / bare, 3),
                "alone_differing": percentiles(alone_differing.latencies_s)._asdict(),
                "loaded": percentiles(latencies)._asdict(), "alone": percentiles(alone.latencies_s)._asdict(),
                "fresh": percentiles(fresh)._asdict(), "connections": CONNECTIONS}  # fmt: skip

    async def _fresh(self, connection: Connection, user: str) -> float:
        """Seconds from the acknowledgement of an event until an answer is as of it."""
        ident = f"fresh-{user}-{time.time_ns()}"
        event = {"messageId": ident, "type": "track", "event": "Product Viewed", "tenant": TENANT, "userId": user,
                 "timestamp": datetime.now(UTC).isoformat(), "properties": {"product_id": self.world.items()[0].item_id}}
        await asyncio.to_thread(self.send, topics.EVENTS, [Record.of(event)])
        began = time.perf_counter()
        while time.perf_counter() - began < FRESH_WITHIN_S:
            answer = json.loads(await connection.get(f"/v1/recommendations/{user}"))
            if answer["as_of_event_id"] == ident:
                return time.perf_counter() - began
        raise BenchFailed(f"event {ident} was not known within {FRESH_WITHIN_S:.0f} s")


def run(home: Path, options: Options, console: Console) -> dict[str, Any]:
    """Raises `BenchFailed`, `StartError`."""
    described = machine()
    os.environ["CLICKWAKE_API__KEY_ANSWERS_PER_S_MAX"] = "1e6"  # what is measured is what it can do, not what it allows
    with bench_folder(home) as folder, console.status("simulating") as status:
        end = datetime.now(UTC) - timedelta(hours=1)
        world = World(SEED, options.shoppers, WORLD_DAYS, end - timedelta(days=WORLD_DAYS), items=ITEMS, tenant=TENANT)
        history = list(world.history())
        users = list(dict.fromkeys(event["userId"] for event in history if event.get("userId")))
        model = train_once(folder, home / "bench" / "models", seed=SEED, items=ITEMS, tenant=TENANT, end=end,
                           say=status.update)  # fmt: skip
        names = ("catalog", "personalize", "sink", "api")
        with (Local(folder, processes=names, workers=1, say=status.update) as local,
              Places(local.settings) as offsets):  # fmt: skip
            bench = Bench(local, world, offsets, status.update)
            bench.prepare(model, history)
            bench.settle()
            found = asyncio.run(bench.measure(users, options))
    return {"options": options.__dict__, "users": len(users), "items": ITEMS, **found, "machine": described,
            "versions": versions()}  # fmt: skip


def main(options: Options, *, as_json: bool) -> int:
    console = Console(stderr=True)
    home = settings_module.load().home.absolute()
    try:
        figures = run(home, options, console)
    except (BenchFailed, StartError) as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    if as_json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
        return 0
    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_row("recommendations", f"{figures['recommendations_per_s']:,}/s", f"{figures['ratio']:.2f} of the bare "
                  f"server's {figures['bare_per_s']:,}/s, {CONNECTIONS} connections")  # fmt: skip
    table.add_row(f"with diversity {DIVERSITY}", f"{figures['differing_per_s']:,}/s", f"{figures['differing_ratio']:.2f} of "
                  "the bare server's")  # fmt: skip
    for name, what in (("alone", "one request at a time"), ("alone_differing", f"with diversity {DIVERSITY}"),
                       ("loaded", "under that load"), ("fresh", "event to answer")):  # fmt: skip
        table.add_row(what, f"{figures[name]['p50_ms']:.1f} ms", f"99%: {figures[name]['p99_ms']:.1f} ms")
    Console().print(table)
    return 0
