"""`clickwake up`, `down`, `status` and `topics`: what they print and how they exit."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import structlog
from rich.console import Console
from rich.table import Table

from clickwake.local import process, up
from clickwake.local.process import StartError
from clickwake.topics import Outcome, TopicsError, create, describe
from stream.settings import load

EXIT_FAILED = 1
EXIT_NOT_RUNNING = 3  # as `systemctl status` does
_COLOURS = {"running": "green", "created": "green", "exists": "green", "changed": "green", "differs": "yellow",
            "stopped": "dim"}  # fmt: skip


def home() -> Path:
    return load().home.absolute()


def run_up(*, detach: bool, only: tuple[str, ...], workers: int, train_every: str, ready_fd: int | None) -> int:
    """Run everything until Ctrl-C, or in the background."""
    console = Console(stderr=True)
    options = {"processes": only or None, "workers": workers, "train_every": _training(train_every, only, console)}
    if detach:
        arguments = [*(f"--only={name}" for name in only), f"--workers={workers}", f"--train-every={train_every}"]
        return _detached(home(), arguments, console)
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
                        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO if ready_fd else logging.WARNING))
    try:
        if ready_fd is not None:
            with os.fdopen(ready_fd, "w", buffering=1) as pipe:
                up.run(home(), say=lambda text: _to_pipe(pipe, f"{text}\n"), on_ready=lambda _: _to_pipe(pipe, "#ready\n"),
                       **options)
        else:
            with console.status("starting") as spinner:
                def on_ready(local: up.Local) -> None:
                    spinner.stop()
                    _show_addresses(console, local.home)
                    console.print("Ctrl-C ends it.")

                up.run(home(), say=spinner.update if console.is_terminal else console.print, on_ready=on_ready, **options)
    except (StartError, TopicsError, ConnectionError) as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return EXIT_FAILED
    return 0


def _training(every: str, only: tuple[str, ...], console: Console) -> str | None:
    """How often to train here: never when told so, with chosen processes only, or where it is not installed."""
    if every == "off" or only:
        return None
    if importlib.util.find_spec("torch") is None:
        console.print("no training here: the `train` extra is not installed; releases come from elsewhere", style="dim")
        return None
    return every


def _to_pipe(pipe: object, text: str) -> None:
    """Tell whoever started us with --detach; it may have gone, and that is none of our concern."""
    try:
        pipe.write(text)  # type: ignore[attr-defined]
    except (BrokenPipeError, ValueError):
        return


def _detached(folder: Path, arguments: list[str], console: Console) -> int:
    """Start `clickwake up` in a session of its own; return once it says it is ready, or why it is not."""
    log = folder / "logs" / "up.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "clickwake", "up", *arguments, f"--ready-fd={writer}"]
    with log.open("wb") as out:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
                                 pass_fds=(writer,), env=os.environ | {"CLICKWAKE_HOME": str(folder)})
    os.close(writer)
    with os.fdopen(reader) as lines, console.status("starting") as spinner:
        for line in lines:
            if line.strip() == "#ready":
                spinner.stop()
                _show_addresses(console, folder)
                return 0
            spinner.update(line.strip())
    code = child.wait()
    text = f"clickwake up ended with code {code}.\n{process.tail(log, 40)}"
    console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    return EXIT_FAILED


def _show_addresses(console: Console, folder: Path) -> None:
    status = up.read_status(folder)
    if status is None:
        return
    console.print(f"[green]Clickwake is ready.[/green]\n  collector   {status.collector}\n  read API    {status.api}\n"
                  f"  Kafka       {status.kafka}\n  ClickHouse  {status.clickhouse}\n  logs        {folder / 'logs'}",
                  highlight=False)


def run_down() -> int:
    console = Console(stderr=True)
    folder = home()
    started = time.monotonic()
    with console.status("stopping"):
        ended = up.down(folder)
    took = f"stopped in {time.monotonic() - started:.1f} s"
    console.print(took if ended else f"nothing runs in {folder}", highlight=False)
    return 0


def run_status(*, as_json: bool) -> int:
    folder = home()
    status = up.read_status(folder)
    if as_json:
        print(msgspec.json.encode(status or {"ready": False, "processes": {}}).decode())
    elif status is None:
        Console().print(f"nothing runs in {folder}; start it with `clickwake up`", highlight=False)
    else:
        _show_status(status)
    return 0 if status and status.ready else EXIT_NOT_RUNNING


def _show_status(status: up.Status) -> None:
    table = Table(box=None, header_style="dim")
    for name in ("process", "state", "pid", "up for", "restarts", "log"):
        table.add_column(name)
    for name, child in status.processes.items():
        alive = child.state == "running"
        table.add_row(name, f"[{_COLOURS.get(child.state, 'red')}]{child.state}[/]", str(child.pid or ""),
                      _duration(time.time() - child.started_at) if alive else "", str(child.restarts), child.log)
    console = Console()
    console.print(table)
    console.print(f"{'ready' if status.ready else 'starting'} · collector {status.collector} · API {status.api} · "
                  f"Kafka {status.kafka} · ClickHouse {status.clickhouse}", highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    """
    >>> _duration(59), _duration(3700)
    ('59s', '1h 1m')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes}m" if hours else f"{minutes}m {rest}s" if minutes else f"{rest}s"


def run_topics(*, dry_run: bool, as_json: bool) -> int:
    """Create the topics, or only compare; exits with 1 when one differs."""
    settings = load()
    try:
        outcomes = describe(settings) if dry_run else create(settings)
    except TopicsError as error:
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return EXIT_FAILED
    if as_json:
        print(msgspec.json.encode(outcomes).decode())
    else:
        _show_topics(outcomes)
    return EXIT_FAILED if any(outcome.differences for outcome in outcomes) else 0


def _show_topics(outcomes: list[Outcome]) -> None:
    table = Table(box=None, header_style="dim")
    for name in ("topic", "result", "partitions", "what it is for"):
        table.add_column(name)
    for outcome in outcomes:
        table.add_row(outcome.topic, f"[{_COLOURS[outcome.result]}]{outcome.result}[/]", str(outcome.partitions),
                      "; ".join(outcome.differences) or outcome.why)
    Console().print(table)
