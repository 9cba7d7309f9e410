"""`clickwake simulate`: progress on stderr, the report on stdout.

Exit code 0 done, 1 Kafka or a file failed, 2 wrong use, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any, Literal, NoReturn, cast

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from producers.kafka import KafkaUnavailable, NotAcknowledged
from producers.replay import parse_speed
from producers.simulate.run import Options, Report, Simulation, parse_time
from stream.settings import load

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
DAY_MS = 86_400_000


def _run(simulation: Simulation, console: Console) -> Report:
    first_ms, last_ms = (round(time.timestamp() * 1000) for time in (simulation.begin, simulation.until))

    def interrupt(number: int, frame: FrameType | None) -> None:
        simulation.stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C ends at once

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"),
               TimeElapsedColumn())
    try:
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(f"simulate → {simulation.options.to}", total=last_ms - first_ms, text="")

            def show(run: Simulation) -> None:
                elapsed = progress.tasks[task].elapsed or 0.0
                rate = run.events / elapsed if elapsed else 0.0
                day = (run.now_ms - first_ms) / DAY_MS
                progress.update(task, completed=run.now_ms - first_ms,
                                text=f"day {day:.1f} · {run.events:,} events · {rate:,.0f}/s")

            return simulation.run(show)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(report: Report, console: Console) -> None:
    table = Table(title=f"{report.events:,} events of {report.shoppers:,} shoppers", title_justify="left")
    table.add_column("event")
    table.add_column("count", justify="right")
    for name, count in report.by_name.items():
        table.add_row(name, f"{count:,}")
    for what, count in report.mess.items():
        table.add_row(f"mess: {what}", f"{count:,}")
    console.print(table)
    console.print(f"{report.items:,} items; {report.seconds:.1f} s, {report.events_per_s:,.0f} events/s; to {report.to}",
                  soft_wrap=True)
    console.print(f"Truth: {report.truth}. The same again: --seed {report.seed} --start {report.start.isoformat()}",
                  soft_wrap=True)


def options(*, lane: str, speed: str, start: str | None, begin: str | None, until: str | None, **others: Any) -> Options:
    """The options of the command line; wrong ones end the process with MISUSED, saying which."""
    try:
        if lane not in ("import", "live"):
            raise ValueError(f"--lane {lane!r} is neither import nor live")
        parse_speed(speed)
        return Options(
            lane=cast(Literal["import", "live"], lane), speed=speed,
            start=parse_time(start, "--start") if start else None, begin=parse_time(begin, "--from") if begin else None,
            until=parse_time(until, "--until") if until else None, **others)
    except ValueError as error:
        _fail(Console(stderr=True), error, MISUSED)


def _fail(console: Console, error: Exception, code: int) -> NoReturn:
    console.print(f"Error: {error}", style="red", markup=False, highlight=False)
    sys.exit(code)


def simulate(options: Options, *, as_json: bool) -> None:
    """Runs and reports; exits with a code when it did not end well."""
    console = Console(stderr=True)
    try:
        report = _run(Simulation(load(), options, on_wait=console.print), console)
    except (KafkaUnavailable, NotAcknowledged, OSError) as error:
        _fail(console, error, FAILED)
    except ValueError as error:
        _fail(console, error, MISUSED)
    if as_json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        _show(report, Console())
    if report.stopped:
        sys.exit(INTERRUPTED)
