"""The `clickwake` command: thin wrappers, one a subcommand; the work is in the module each one names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="clickwake",
    help="Turns a live clickstream into decisions about each customer while the customer is still there.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def root() -> None:
    """Settings come from the environment (CLICKWAKE_*), see stream/settings.py."""


@app.command()
def replay(
    dataset: Annotated[str, typer.Argument(help="online-retail, taobao or deskdrop")],
    path: Annotated[Path, typer.Argument(help="the data set's file, gzip or plain")],
    speed: Annotated[str, typer.Option(help="max, or a multiple of real time such as 1x or 1000x")] = "max",
    lane: Annotated[str, typer.Option(help="import: history, raises no alerts; live: as if it happened now")] = "import",
    limit: Annotated[int | None, typer.Option(min=1, help="only the first N rows, in event-time order")] = None,
    tenant: Annotated[str, typer.Option(help="whose events these become")] = "demo",
    restart: Annotated[bool, typer.Option("--restart", help="send from the first row again, under the same ids")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the summary as JSON")] = False,
) -> None:
    """Send a public data set as events; stopped or interrupted, the same command goes on where it was."""
    from producers import commands

    commands.replay(dataset, path, speed=speed, lane=lane, limit=limit, tenant=tenant, restart=restart, as_json=as_json)


@app.command()
def catalog(
    path: Annotated[Path, typer.Argument(help="one item a row: .csv, or JSON lines")],
    tenant: Annotated[str, typer.Option(help="whose catalog this is")] = "demo",
    as_json: Annotated[bool, typer.Option("--json", help="print the summary and the bad rows as JSON")] = False,
) -> None:
    """Publish a catalog file; bad rows are named with their line, good ones are published all the same."""
    from producers import commands

    commands.catalog(path, tenant=tenant, as_json=as_json)


@app.command()
def collector(
    host: Annotated[str | None, typer.Option(help="default: CLICKWAKE_COLLECTOR__HOST")] = None,
    port: Annotated[int | None, typer.Option(help="default: CLICKWAKE_COLLECTOR__PORT; 0 takes a free one")] = None,
) -> None:
    """Take events over HTTP, Segment-compatible, and answer once Kafka has acknowledged them."""
    from producers.collector.serve import main as serve

    raise typer.Exit(serve(host=host, port=port))


def main() -> None:
    """Entry point of the `clickwake` script."""
    app()
