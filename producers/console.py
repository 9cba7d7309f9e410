"""What the producers' commands show: progress, a summary, and Ctrl-C that ends at an acknowledged position."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from producers import catalog
from producers.replay import Replay, State, Summary, count_rows
from stream.settings import Settings


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=console,
    )


@contextlib.contextmanager
def _on_interrupt(act: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM calls `act`; a second Ctrl-C ends at once."""
    def handle(number: int, frame: FrameType | None) -> None:
        act()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_replay(replay: Replay, console: Console) -> Summary:
    """Runs with a progress bar on `console`; Ctrl-C stops it at an acknowledged position."""
    total = min(count_rows(replay.path, replay.state.dataset), replay.limit or 2**62)
    with _progress(console) as progress:
        first = replay.state.position
        task = progress.add_task(f"replay {replay.state.dataset}", total=total, completed=first, rate="")

        def show(state: State) -> None:
            elapsed = progress.tasks[task].elapsed or 0.0
            rate = (state.position - first) / elapsed if elapsed else 0.0
            progress.update(task, completed=state.position, rate=f"{rate:,.0f} rows/s")

        replay.on_progress, replay.on_wait = show, console.print
        with _on_interrupt(replay.stop.set):
            return replay.run()


def show_replay(summary: Summary, console: Console) -> None:
    """The account of the replay, and how to go on."""
    table = Table(title=f"{summary.dataset}: {summary.rows:,} rows", title_justify="left")
    table.add_column("what became of them")
    table.add_column("rows", justify="right")
    table.add_row("accepted", f"{summary.accepted:,}")
    for reason, count in sorted(summary.dropped.items()):
        table.add_row(f"dropped: {reason}", f"{count:,}")
    table.add_row("dead letters", f"{summary.dead_letters:,}")
    console.print(table)
    console.print(f"{summary.items:,} catalog items; {summary.rows_this_run:,} rows this time, "
                  f"{summary.rows_per_second:,.0f} rows/s")
    if summary.stopped:
        console.print(f"Stopped; {summary.rows:,} rows are acknowledged. The same command goes on from there.")
    elif summary.rows_this_run == 0:
        console.print("Everything asked for was acknowledged before; --restart sends it again under the same ids.")


def run_catalog(settings: Settings, path: Path, tenant: str, console: Console) -> catalog.Summary:
    """Publishes a catalog with a progress display on `console`."""
    with _progress(console) as progress:
        task = progress.add_task(f"catalog {path.name}", total=None, rate="")
        return catalog.publish(
            settings, path, tenant, on_wait=console.print,
            on_progress=lambda summary: progress.update(task, completed=summary.rows, rate=f"{summary.failed} failed"),
        )


def show_catalog(summary: catalog.Summary, path: Path, console: Console) -> None:
    """Counts, and each bad row with its line."""
    for error in summary.errors:
        console.print(f"{path}:{error.line}: {error.message}", markup=False, highlight=False)
    console.print(f"{summary.published:,} of {summary.rows:,} items published, {summary.failed:,} rows failed")
