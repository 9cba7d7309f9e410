"""`make demo DATASET=…`: a public data set through everything, twice, and the books that must balance both times."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from clickwake.demo.stage import DemoFailed, Stage, begin_afresh
from clickwake.local.up import Local
from producers.replay import Replay, State, Summary, count_rows
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
    console.rule("broker, ClickHouse, workers")
    begin_afresh(home, console)
    say = partial(console.print, style="dim", highlight=False)
    with Local(home, processes=("personalize", "sink"), say=lambda text: say(f"  {text}")) as local:
        stage = Stage(local, console)
        books = []
        for turn in (1, 2):
            console.rule(f"replay {turn} of 2")
            summary = _replay(console, local.settings, dataset, path, restart=turn == 2)
            stage.settle()
            found = stage.query(_books)
            console.print(_table(summary, found))
            if found["accepted"] + found["dropped"] + found["dead_letters"] != summary.rows:
                raise DemoFailed(f"{summary.rows} rows went in, ClickHouse accounts for {found}")
            if found["event_rows"] != summary.accepted:
                raise DemoFailed(f"{summary.accepted} events were accepted, ClickHouse has {found['event_rows']}")
            books.append(found | {"rows": summary.rows})
        if books[0] != books[1]:
            raise DemoFailed(f"the second replay changed something: {books[0]} became {books[1]}")
        console.print("the books balance, and the second replay changed nothing", style="green")
        (home / "demo.json").write_text(json.dumps(books, indent=2))
        stage.stay(keep)
    return {"replays": books}


def _replay(console: Console, settings: Settings, dataset: str, path: Path, *, restart: bool) -> Summary:
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(dataset, total=count_rows(path, dataset))

        def show(state: State) -> None:
            progress.update(task, completed=state.position, description=f"{dataset}: {state.position:,} rows")

        return Replay(settings, dataset, path, restart=restart, on_progress=show).run()


def _books(client: Any) -> dict[str, int]:
    result = client.query(BOOKS)
    return dict(zip(result.column_names, (int(value) for value in result.result_rows[0]), strict=True))


def _table(summary: Summary, found: dict[str, int]) -> Table:
    table = Table(box=None, show_header=False)
    table.add_row("rows in the file", f"{summary.rows:,}", f"{summary.rows_per_second:,.0f}/s")
    for name, count in found.items():
        table.add_row(name.replace("_", " "), f"{count:,}", "")
    for reason, count in summary.dropped.items():
        table.add_row(f"  dropped: {reason}", f"{count:,}", "")
    return table
