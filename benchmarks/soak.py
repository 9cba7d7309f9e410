"""`clickwake bench soak`: does anything grow? Half of the rate the machine can do, until it can be told, memory watched.

What a machine can do for long is less than what `bench pipeline` says of a backlog: there few are recommended to, nobody
sends, and tables are small. The rate it can keep is the one at which lag does not grow.

The same shoppers come back again and again, each as often as any other, so that after a while nothing has a reason to grow:
states are at their bounds, every item has been touched, RocksDB's buffers are full. Where they came as their visits were
long, who looked at one thing had not filled a state after an hour, and some 10 MB/h a process were states that did. A first
part is left out as warm-up.

What is sent in a minute is sent in its first `SENDING_S` seconds, and once all of it is folded and stored, nothing is under
way until the next minute begins: what a process holds then is what it keeps. That is what is resident, less pages of files,
what its C heap has free, and what is in RocksDB's caches, which come and go within bounds. (Batches need 30 MB and more
for a moment, and write buffers 16 MB until they are flushed: minutes watched under load differed by 3 MB, so half an hour
of them could not tell 10 MB/h from none.) Its slope is the median of the slopes between all pairs of minutes (Theil, 1950;
Sen, 1968), which a single allocation does not move; its 95% interval is Sen's. The same for each group's lag, by the mean
of each minute. Memory whose slope is not shown to be below the limit, by the whole of its interval, fails the run, and so
does a lag whose whole interval lies above it.
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import theilslopes

from benchmarks.bundle import train_once
from benchmarks.observe import BenchFailed, Places
from benchmarks.pipeline import ITEMS, SEED, TENANT, machine, versions
from benchmarks.rush import Event, rush, stamped
from benchmarks.stage import Stage, Tell, bench_folder
from benchmarks.watch import WINDOW_S, Samples, Watch
from clickwake.local.process import StartError
from clickwake.local.up import Local
from producers.simulate.mess import Record
from producers.simulate.world import World
from schemas import topics
from schemas.events import user_of
from stream import settings as settings_module
from stream.adapters.kafka import producing

SHOPPERS = 4_000  # at 1,000/s each has 128 events, as many as a state knows the ids of, within ten minutes
WORLD_DAYS = 5
TICK_S = 0.1  # events of so long are sent together
SENDING_S = 45.0  # of each minute
JUDGED_MINUTES_MIN = 4
MEMORY_MB_PER_H_MAX = 1.0
LAG_SHARE_MAX = 0.001  # of the rate: more is falling behind
JUDGED = ("personalize", "sink", "catalog")  # broker and engine are not ours; they are reported


@dataclass(frozen=True)
class Options:
    """`rate` events/s for `minutes`, of which the first `warm_up` are not judged; `workers` personalize processes."""

    rate: float
    minutes: float
    warm_up: float
    workers: int


def in_turns(events: Iterable[Event]) -> Iterator[Event]:
    """One event of every shopper, then the next one of every shopper; who has no more begins anew. Without end.

    >>> some = [{"anonymousId": who, "at": at} for who, at in (("a", 1), ("b", 2), ("a", 3))]
    >>> [one["at"] for one in islice(in_turns(some), 6)]
    [1, 2, 3, 2, 1, 2]
    """
    of: dict[str, list[Event]] = {}
    for event in events:
        of.setdefault(user_of(event), []).append(event)
    for turn in count():
        for own in of.values():
            yield own[turn % len(own)]


def slope(minutes: list[float]) -> tuple[float, float, float]:
    """(slope, low, high) a second of what the minutes come to; those that are NaN are left out."""
    seen = np.flatnonzero(np.isfinite(minutes))
    found = theilslopes(np.asarray(minutes)[seen], seen * WINDOW_S, alpha=0.95)
    return float(found.slope), float(found.low_slope), float(found.high_slope)


class Soak(Stage):
    """A run over an installation that is up."""

    def run(self, events: Sequence[Event], options: Options, history: int) -> tuple[Samples, int, list[str]]:
        """Send for as long as asked; returns what was seen, how many events were sent, and what is wrong with what is in
        ClickHouse: each of them must be."""
        watch = Watch(self, options.warm_up * 60)
        watch.start()
        sent = asyncio.run(self._send_all(events, options, watch))
        samples = watch.end()
        try:
            self.await_done("last events")
            self.check(sent + history)
        except BenchFailed as error:  # half an hour's figures are told all the same
            return samples, sent, [str(error)]
        return samples, sent, []

    async def _send_all(self, events: Sequence[Event], options: Options, watch: Watch) -> int:
        topic = topics.EVENTS.name(self.prefix)
        producer = producing.create_producer(self.settings)
        await producer.start()
        turns = in_turns(events)
        in_a_minute = max(1, round(options.rate * WINDOW_S))
        a_tick, sent, started = max(1, round(in_a_minute / SENDING_S * TICK_S)), 0, time.monotonic()
        try:
            for minute in range(math.ceil(options.minutes)):
                began = started + minute * WINDOW_S
                await asyncio.sleep(max(0.0, began - time.monotonic()))
                watch.quiet.clear()
                while (some := min(a_tick, (minute + 1) * in_a_minute - sent)) > 0:
                    now_ms = time.time_ns() // 1_000_000
                    records = (Record.of(stamped(one, now_ms) | {"messageId": f"soak:{number_}"})
                               for number_, one in enumerate(islice(turns, some), sent))  # fmt: skip
                    messages = ((record.key, record.value, ()) for record in records)
                    await producing.send_keyed(producer, topic, messages, self.settings.kafka.partitions)
                    sent += some
                    share = sent / in_a_minute - minute
                    await asyncio.sleep(max(0.0, began + share * SENDING_S - time.monotonic()))
                await asyncio.to_thread(self.await_done, f"minute {minute + 1} of {options.minutes:g}, {sent:,} events")
                watch.quiet.set()
                if watch.error is not None:
                    break
            await asyncio.sleep(max(0.0, started + options.minutes * WINDOW_S - time.monotonic()))
        finally:
            await producer.stop()
        return sent


def judged(samples: Samples, rate: float, sent: int, seconds: float, wrong: list[str]) -> dict[str, Any]:
    """The figures, and what failed: `wrong`, and what grows."""
    memory, failures = {}, list(wrong)
    for name, series in samples.held.items():
        floors = samples.by_minute(series, np.min)
        if np.isfinite(floors).sum() < JUDGED_MINUTES_MIN:
            failures.append(f"{name}: work was never done before the next minute began; ask for a smaller --rate")
            continue
        rise, low, high = (one * 3_600 / 1e6 for one in slope(floors))
        blocks = samples.by_minute(samples.blocks[name], np.min)
        memory[name] = {"mb": round(samples.memory[name][-1] / 1e6, 1), "mb_per_h": round(rise, 2), "low": round(low, 2),
                        "high": round(high, 2), "held_mb": [round(one / 1e6, 2) for one in floors if np.isfinite(one)],
                        "python_blocks": [int(one) for one in blocks if np.isfinite(one)]}  # fmt: skip
        if name.startswith(JUDGED) and high > MEMORY_MB_PER_H_MAX:
            unknown = low <= MEMORY_MB_PER_H_MAX
            what = f"is not shown to grow by less than {MEMORY_MB_PER_H_MAX:g} MB/h" if unknown else "grows"
            failures.append(f"{name} {what}: {rise:.1f} MB/h ({low:.1f} to {high:.1f})")
    lag = {}
    for name, series in samples.lag.items():
        rise, low, high = slope(samples.by_minute(series, np.mean))
        lag[name] = {"most": max(series), "last": series[-1], "per_s": round(rise, 2), "low": round(low, 2),
                     "high": round(high, 2)}  # fmt: skip
        if low > LAG_SHARE_MAX * rate:
            failures.append(f"{name} falls behind by {rise:.1f} records/s ({low:.1f} to {high:.1f})")
    return {"events": sent, "events_per_s": round(sent / seconds, 1), "minutes": round(seconds / 60, 1),
            "warm_up_minutes": round(samples.warm_up_s / 60, 1), "samples": len(samples.at_s),
            "memory": memory, "lag": lag, "failures": failures}  # fmt: skip


def run(home: Path, options: Options, console: Console) -> tuple[dict[str, Any], Samples]:
    """Raises `BenchFailed`, `StartError`."""
    described = machine()
    with bench_folder(home) as folder, console.status("simulating") as status:
        tell: Tell = status.update
        end = datetime.now(UTC) - timedelta(hours=1)
        world = World(SEED, SHOPPERS, WORLD_DAYS, end - timedelta(days=WORLD_DAYS), items=ITEMS, tenant=TENANT)
        shop = rush(world.history(), options.rate)
        model = train_once(folder, home / "bench" / "models", seed=SEED, items=ITEMS, tenant=TENANT, end=end, say=tell)
        names = ("catalog", "personalize", "sink")
        with (Local(folder, processes=names, workers=options.workers, say=tell) as local,
              Places(local.settings) as offsets):  # fmt: skip
            soak = Soak(local, world, offsets, tell)
            soak.prepare(model, shop.history)
            started = time.monotonic()
            samples, sent, wrong = soak.run([one.event for one in shop.moved], options, len(shop.history))
            figures = judged(samples, options.rate, sent, time.monotonic() - started, wrong)
    return {"machine": described, "versions": versions(), "workers": options.workers} | figures, samples


def main(options: Options, *, as_json: bool, picture: Path | None) -> int:
    """Run and print; exit code 0, or 1 when something grew or failed."""
    console = Console(stderr=True)
    if options.minutes < (least := options.warm_up + JUDGED_MINUTES_MIN):
        console.print(f"--minutes must be at least {least:g} with --warm-up {options.warm_up:g}", style="red")
        return 1
    try:
        result, samples = run(settings_module.load().home.absolute(), options, console)
    except (BenchFailed, StartError, ConnectionError) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 1
    if picture is not None:
        draw(samples, picture)
    if as_json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
    else:
        Console().print(table(result))
    return 1 if result["failures"] else 0


def table(result: dict[str, Any]) -> Table:
    """The figures for people."""
    shown = Table(box=None, show_header=False)
    shown.add_row("events", f"{result['events']:,}", f"{result['events_per_s']:,.0f}/s for {result['minutes']:g} min")
    for name, one in result["memory"].items():
        shown.add_row(name, f"{one['mb']:,.0f} MB", f"{one['mb_per_h']:+.2f} MB/h ({one['low']:+.2f} … {one['high']:+.2f})")
    for name, one in result["lag"].items():
        shown.add_row(f"lag of {name}", f"{one['last']:,.0f}", f"at most {one['most']:,.0f}, {one['per_s']:+.2f}/s")
    for failure in result["failures"]:
        shown.add_row("[red]failed[/red]", "", failure)
    return shown


def draw(samples: Samples, path: Path) -> None:
    """Memory and lag over time, as an SVG or PNG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    memory, lag = figure.subplots(2, 1, sharex=True)
    minutes = [at / 60 for at in samples.at_s]
    for name, series in samples.memory.items():
        memory.plot(minutes, [one / 1e6 for one in series], label=name)
    for name, series in samples.lag.items():
        lag.plot(minutes, series, label=name)
    memory.axvspan(0, samples.warm_up_s / 60, color="0.9", label="warm-up")
    memory.set_ylabel("resident memory, MB")
    lag.set_ylabel("records behind")
    lag.set_xlabel("minutes")
    memory.legend(fontsize="small")
    lag.legend(fontsize="small")
    figure.savefig(path)
