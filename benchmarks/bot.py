"""`clickwake bench bot`: does one user with half of all traffic slow the others down?

Two stretches in one run at the same pace of the other users: alone, and with a bot that sends as many events as all of them
together. Measured is event → recommendation, of events that may be answered at once: the user did nothing in the interval
before (later ones wait for its end, bot or not). The figure is the ratio of the others' 99th percentiles.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.bundle import train_once
from benchmarks.latency import percentiles
from benchmarks.observe import BenchFailed, Places
from benchmarks.open_loop import OpenLoop
from benchmarks.pipeline import ITEMS, SEED, TENANT, machine, versions
from benchmarks.rush import Moved, rush
from benchmarks.stage import Stage
from clickwake.process import StartError
from clickwake.up import Local
from producers.simulate.world import World
from schemas import topics
from stream import settings as settings_module

WORLD_DAYS = 5
EVENTS_PER_SHOPPER = 9
BOT = "bot"


@dataclass(frozen=True)
class Options:
    """`rate` events/s of the others, for `seconds` in each of the two stretches; `workers` personalize processes."""

    rate: float
    seconds: float
    workers: int


def with_bot(moved: Sequence[Moved]) -> list[Moved]:
    """After each event one of the bot's, on the same item.

    >>> [one.event["userId"] for one in with_bot([Moved(0, {"messageId": "m", "userId": "u"})])]
    ['u', 'bot']
    """
    both = []
    for one in moved:
        own = {"userId": BOT, "anonymousId": BOT, "messageId": f"{BOT}:{one.event['messageId']}"}
        both += [one, Moved(one.after_ms, one.event | own)]
    return both


def at_once(moved: Sequence[Moved], due_s: dict[str, float], interval_s: float) -> set[str]:
    """Ids of the others' events before which their user did nothing for an interval."""
    last: dict[str, float] = {}
    found = set()
    for one in moved:
        ident, user = one.event["messageId"], one.event.get("userId") or one.event["anonymousId"]
        if user != BOT and due_s[ident] - last.get(user, -interval_s) >= interval_s:
            found.add(ident)
        last[user] = due_s[ident]
    return found


class Bench(Stage):
    """A run over an installation that is up."""

    def stretch(self, moved: Sequence[Moved], rate: float) -> dict[str, Any]:
        """One stretch; returns the others' latencies."""
        before = self.offsets.ends(topics.RECOMMENDATIONS)
        loop = OpenLoop(self.settings, moved, rate, before)
        loop.run(self.tell)
        self.await_done("last events")
        self.settle()
        loop.figures()
        wanted = at_once(moved, loop.due_s, self.settings.personalize.recommend_interval_ms / 1_000)
        latencies = [loop.listener.seen_s[ident] - loop.due_s[ident] for ident in wanted if ident in loop.listener.seen_s]
        if not latencies:
            raise BenchFailed("no event was answered at once")
        return percentiles(latencies)._asdict() | {"answered": round(len(latencies) / len(wanted), 4), "events_per_s": rate}


def run(home: Path, options: Options, console: Console) -> dict[str, Any]:
    """Raises `BenchFailed`, `StartError`."""
    described, folder = machine(), home / "bench" / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    needed = round(options.rate * options.seconds)
    with console.status("simulating") as status:
        end = datetime.now(UTC) - timedelta(hours=1)
        shoppers = 2 * needed // EVENTS_PER_SHOPPER + 1
        world = World(SEED, shoppers, WORLD_DAYS, end - timedelta(days=WORLD_DAYS), items=ITEMS, tenant=TENANT)
        shop = rush(world.history(), options.rate)
        if len(shop.moved) < 2 * needed:
            raise BenchFailed(f"{shoppers} shoppers make {len(shop.moved)} events, {2 * needed} are needed")
        model = train_once(folder, home / "bench" / "models", seed=SEED, items=ITEMS, tenant=TENANT, end=end,
                           say=status.update)
        names = ("catalog", "personalize", "sink")
        with (Local(folder, processes=names, workers=options.workers, say=status.update) as local,
              Places(local.settings) as offsets):  # fmt: skip
            bench = Bench(local, world, offsets, status.update)
            bench.prepare(model, shop.history)
            alone = bench.stretch(shop.moved[:needed], options.rate)
            beside = bench.stretch(with_bot(shop.moved[needed : 2 * needed]), 2 * options.rate)
    return {"machine": described, "versions": versions(), "alone": alone, "beside_the_bot": beside,
            "p99_ratio": round(beside["p99_ms"] / alone["p99_ms"], 2)}  # fmt: skip


def main(options: Options, *, as_json: bool) -> int:
    """Run and print; exit code 0, or 1 when it failed."""
    console = Console(stderr=True)
    try:
        result = run(settings_module.load().home.absolute(), options, console)
    except (BenchFailed, StartError, ConnectionError) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 1
    if as_json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
        return 0
    shown = Table(box=None, show_header=False)
    for name in ("alone", "beside_the_bot"):
        one = result[name]
        shown.add_row(name.replace("_", " "), f"p50 {one['p50_ms']:,.0f} ms", f"p95 {one['p95_ms']:,.0f}",
                      f"p99 {one['p99_ms']:,.0f}", f"{one['answered']:.1%} of {one['n']:,}")  # fmt: skip
    shown.add_row("p99 ratio", f"{result['p99_ratio']:.2f}")
    Console().print(shown)
    return 0
