"""`make demo DATASET=…`: a public data set through everything, twice, and the books that must balance both times."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import clickhouse_connect
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from clickwake.demo import DemoFailed, await_zero, group_lag
from clickwake.up import Local
from producers.replay import Replay
from schemas import topics
from stream.settings import Settings

BOOKS = """
SELECT (SELECT uniqExact(tenant, message_id) FROM events WHERE tenant = 'demo') AS accepted,
       (SELECT count() FROM (SELECT * FROM dead_letters FINAL) WHERE tenant = 'demo' AND kind = 'dropped') AS dropped,
       (SELECT count() FROM (SELECT * FROM dead_letters FINAL) WHERE tenant = 'demo' AND kind != 'dropped') AS dead_letters,
       (SELECT count() FROM (SELECT * FROM events FINAL) WHERE tenant = 'demo') AS event_rows
"""


def run(home: Path, dataset: str, path: Path, *, keep: bool = False, console: Console | None = None) -> dict[str, Any]:
    """Replay twice; raises `DemoFailed` when a row is missing or doubled in ClickHouse."""
    console = console or Console()
    with Local(home, processes=("personalize", "sink"), say=lambda text: console.print(f"  {text}", style="dim")) as local:
        books = []
        for turn in (1, 2):
            console.rule(f"replay {turn} of 2")
            summary = _replay(console, local.settings, dataset, path, restart=turn == 2)
            _settle(console, local.settings)
            found = _books(local.settings)
            console.print(_table(summary.rows, found))
            if found["accepted"] + found["dropped"] + found["dead_letters"] != summary.rows:
                raise DemoFailed(f"{summary.rows} rows went in, ClickHouse accounts for {found}")
            if found["event_rows"] != summary.accepted:
                raise DemoFailed(f"{summary.accepted} events were accepted, ClickHouse has {found['event_rows']}")
            books.append(found | {"rows": summary.rows, "rows_per_second": summary.rows_per_second})
        if {k: v for k, v in books[0].items() if k != "rows_per_second"} != {
            k: v for k, v in books[1].items() if k != "rows_per_second"
        }:
            raise DemoFailed(f"the second replay changed something: {books[0]} became {books[1]}")
        console.print("the books balance, and the second replay changed nothing", style="green")
        (home / "demo.json").write_text(json.dumps(books, indent=2))
        if keep:
            console.print("Clickwake stays up; Ctrl-C ends it.")
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                console.print("stopping")
    return {"replays": books}


def _replay(console: Console, settings: Settings, dataset: str, path: Path, *, restart: bool) -> Any:
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(dataset, total=None)

        def show(state: Any) -> None:
            progress.update(task, description=f"{dataset}: {state.position:,} rows")

        return Replay(settings, dataset, path, restart=restart, on_progress=show).run()


def _settle(console: Console, settings: Settings) -> None:
    prefix, logs = settings.kafka.topic_prefix, settings.home / "logs"
    events, letters = topics.EVENTS.name(prefix), topics.DEAD_LETTERS.name(prefix)

    def folded() -> int:
        return sum(group_lag(settings, f"{prefix}-personalize", events).values())

    def stored() -> int:
        return sum(sum(group_lag(settings, f"{prefix}.sink", name).values()) for name in (events, letters))

    await_zero(console, "folding", folded, logs / "personalize.log")
    await_zero(console, "storing", stored, logs / "sink.log")


def _books(settings: Settings) -> dict[str, int]:
    house = settings.clickhouse
    client = clickhouse_connect.get_client(host=house.host, port=house.port, username=house.user, database=house.database,
                                           password=house.password.get_secret_value())  # fmt: skip
    result = client.query(BOOKS)
    return dict(zip(result.column_names, (int(value) for value in result.result_rows[0]), strict=True))


def _table(rows: int, found: dict[str, int]) -> Table:
    table = Table(box=None, show_header=False)
    table.add_row("rows in the file", f"{rows:,}")
    for name, count in found.items():
        table.add_row(name.replace("_", " "), f"{count:,}")
    return table
