"""What both demos stand on: a home that begins empty, waiting that is shown, and staying up at the end."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from clickwake.local import process, up
from clickwake.local.observe import owed
from stream.adapters.database import clickhouse
from stream.adapters.health.lag import Lag
from stream.settings import Settings

DATA = ("kafka/data", "clickhouse", "state", "models/bundles", "replay")  # of a home; programs and text encoders stay
RULE_FILES = ("segments.yml", "deliveries.yml", "offers.yml", "experiments.yml")  # they are about real shoppers
RULES = Path(__file__).with_name("segments.yml")
WAIT_S_MAX = 240.0
POLL_S = 0.1


class DemoFailed(RuntimeError):
    """A step did not come to its end, or a count is wrong; the text says which and where its log is."""


def begin_afresh(home: Path, console: Console) -> None:
    """Set the data of earlier runs aside, so that counts are of this run alone, and rules, so that no simulated shopper is
    told of to anybody. Nothing is deleted."""
    found = [name for name in (*DATA, *RULE_FILES) if (home / name).exists()]
    if not found or up.read_status(home) is not None:  # what runs there is told to whoever starts next
        return
    aside = home / f"before-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    for name in found:
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).rename(aside / name)
    console.print(f"  what this home had, data and rules, is kept in {aside}; remove it if nobody needs it", style="dim")


def tells_nobody(settings: Settings) -> None:
    """Raises `DemoFailed` where a file outside of the home says whom to tell."""
    if settings.deliveries.rules is not None:
        raise DemoFailed("CLICKWAKE_DELIVERIES__RULES is set: its channels would be told of simulated shoppers; unset it")


def example_rules(home: Path) -> None:
    """Rules of segments to look at, unless there are some, as where something runs."""
    path = home / "segments.yml"
    if not path.exists():
        home.mkdir(parents=True, exist_ok=True)
        path.write_bytes(RULES.read_bytes())


class Stage:
    """A running installation with a console; waits are shown, and end with an error that names the log."""

    def __init__(self, local: up.Local, console: Console) -> None:
        self.local, self.console, self.settings = local, console, local.settings
        self.lag = Lag(local.settings)

    def until_zero(self, what: str, left: Callable[[], int], process: str) -> None:
        """Wait until nothing is left to do. Raises `DemoFailed`."""
        deadline = time.monotonic() + WAIT_S_MAX
        with self.console.status(what) as status:
            while (count := left()) > 0:
                if time.monotonic() > deadline:
                    raise DemoFailed(f"{what}: {count} left after {WAIT_S_MAX:.0f} s; see {self.log(process)}")
                status.update(f"{what}: {count:,} left")
                time.sleep(POLL_S)  # neither Kafka nor a worker tells when a group has committed

    def settle(self) -> None:
        """Everything that was sent is folded, answered and stored."""
        self.until_zero("folding", self.lag.folding, "personalize")
        self.until_zero("answering", lambda: owed(self.settings), "personalize")
        self.until_zero("storing", self.lag.storing, "sink")

    def log(self, process: str) -> Path:
        return self.settings.home / "logs" / f"{process}.log"

    def query(self, ask: Callable[[Any], Any]) -> Any:
        """`ask` with a ClickHouse client."""
        with closing(clickhouse.connect(self.settings.clickhouse, wait_s=10.0)) as client:
            return ask(client)

    def stay(self, keep: bool) -> None:
        """With `keep`, say what can be done now and wait for Ctrl-C or SIGTERM."""
        if not keep:
            return
        collector, api, shop = self.settings.collector, self.settings.api, self.settings.shop
        dashboard = self.settings.dashboard
        if "api" in self.local.names():
            self.local.add("shop")
            self.local.add("dashboard")
            self.console.print(
                f"[bold]The shop is open: http://{process.LOOPBACK}:{shop.port}[/bold], your clicks change what it shows. "
                f"[bold]The dashboard: http://{process.LOOPBACK}:{dashboard.port}[/bold]. The read API's page is "
                f"http://{api.host}:{api.port}/docs", highlight=False)
        self.console.print(
            f"Clickwake stays up: the collector's page is http://{collector.host}:{collector.port}/docs, `clickwake sql` "
            "asks ClickHouse, `clickwake status` shows the processes. Ctrl-C ends it.", highlight=False)
        over = threading.Event()
        before = {number: signal.signal(number, lambda *_: over.set()) for number in (signal.SIGINT, signal.SIGTERM)}
        over.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
        self.console.print("stopping")
