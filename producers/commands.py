"""The producers' commands: exit code 0 done, 1 some rows failed or Kafka is away, 2 wrong use, 130 stopped by Ctrl-C."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn, cast, get_args

import msgspec
from rich.console import Console

from producers import console as show
from producers.datasets.registry import DATASETS
from producers.datasets.table import DatasetError
from producers.kafka import KafkaUnavailable, NotAcknowledged
from producers.replay import Replay, parse_speed
from schemas.events import Lane
from stream.settings import load

FAILED, MISUSED, INTERRUPTED = 1, 2, 130


def _fail(console: Console, error: Exception | str, code: int) -> NoReturn:
    console.print(f"Error: {error}", style="red", markup=False, highlight=False)
    sys.exit(code)


def _print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def replay(dataset: str, path: Path, *, speed: str, lane: str, limit: int | None, tenant: str, restart: bool,
           as_json: bool) -> None:
    """`clickwake replay`. Progress goes to stderr, the summary to stdout."""
    console = Console(stderr=True)
    if dataset not in DATASETS:
        _fail(console, f"Unknown data set {dataset!r}; known are {', '.join(DATASETS)}.", MISUSED)
    lanes = ("import", "live")
    if lane not in lanes or lane not in get_args(Lane):
        _fail(console, f"--lane {lane!r} is none of {', '.join(lanes)}.", MISUSED)
    try:
        run = Replay(load(), dataset, path, tenant=tenant, lane=cast(Lane, lane), speed=parse_speed(speed), limit=limit,
                     restart=restart)
        summary = show.run_replay(run, console)
    except (DatasetError, KafkaUnavailable, NotAcknowledged) as error:
        _fail(console, error, FAILED)
    except ValueError as error:
        _fail(console, error, MISUSED)
    if as_json:
        _print_json(summary)
    else:
        show.show_replay(summary, Console())
    if summary.stopped:
        sys.exit(INTERRUPTED)


def catalog(path: Path, *, tenant: str, as_json: bool) -> None:
    """`clickwake catalog`. Exit code 1 when a row failed."""
    console = Console(stderr=True)
    try:
        summary = show.run_catalog(load(), path, tenant, console)
    except (DatasetError, KafkaUnavailable, NotAcknowledged) as error:
        _fail(console, error, FAILED)
    if as_json:
        _print_json(summary)
    else:
        show.show_catalog(summary, path, Console())
    if summary.failed:
        sys.exit(FAILED)


def key(tenant: str, as_json: bool) -> None:
    """Make a key and print it, once, with what settings are to hold."""
    from stream.http import keys

    made, held = keys.new()
    if as_json:
        return _print_json({"tenant": tenant, "write_key": made, "settings": held})
    setting = msgspec.json.encode({tenant: [held]}).decode()
    sys.stdout.write(f"key of {tenant}, shown once:  {made}\n"
                     f"for the collector's settings:    CLICKWAKE_COLLECTOR__WRITE_KEYS='{setting}'\n")  # fmt: skip
    return None
