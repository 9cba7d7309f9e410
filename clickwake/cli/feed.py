"""Commands that put events and catalogs onto the topics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clickwake.cli.options import DataPath, DatasetName

PANEL = "Send events and catalogs"
app = typer.Typer()


@app.command(rich_help_panel=PANEL)
def replay(
    dataset: DatasetName,
    path: DataPath,
    speed: Annotated[str, typer.Option(help="max, or a multiple of real time such as 1x or 1000x")] = "max",
    lane: Annotated[str, typer.Option(help="import: history, raises no alerts; live: as if it happened now")] = "import",
    limit: Annotated[int | None, typer.Option(min=1, help="only the first N rows, in event-time order")] = None,
    tenant: Annotated[str, typer.Option(help="whose events these become")] = "demo",
    restart: Annotated[bool, typer.Option("--restart", help="send from the first row again, under the same ids")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the summary as JSON")] = False,
) -> None:
    """Send history as events, your own or a public data set's; stopped or interrupted, it goes on where it was."""
    from producers import commands

    commands.replay(dataset, path, speed=speed, lane=lane, limit=limit, tenant=tenant, restart=restart, as_json=as_json)


@app.command(rich_help_panel=PANEL)
def catalog(
    path: Annotated[Path, typer.Argument(help="one item a row: .csv, or JSON lines")],
    tenant: Annotated[str, typer.Option(help="whose catalog this is")] = "demo",
    as_json: Annotated[bool, typer.Option("--json", help="print the summary and the bad rows as JSON")] = False,
) -> None:
    """Publish a catalog file; bad rows are named with their line, good ones are published all the same."""
    from producers import commands

    commands.catalog(path, tenant=tenant, as_json=as_json)


@app.command(rich_help_panel=PANEL)
def key(
    tenant: Annotated[str, typer.Argument(help="whose events it lets in")],
    as_json: Annotated[bool, typer.Option("--json", help="print the key and what settings hold of it as JSON")] = False,
) -> None:
    """Make a key to write, read or administer with. It is shown once; settings hold its hash only."""
    from producers import commands

    commands.key(tenant, as_json)


@app.command(rich_help_panel=PANEL)
def simulate(
    shoppers: Annotated[int, typer.Option(min=1, help="people who visit the shop")] = 400,
    days: Annotated[int, typer.Option(min=1, help="length of the world")] = 120,
    seed: Annotated[int, typer.Option(min=0, help="the same seed and start give the same events")] = 7,
    to: Annotated[str, typer.Option(help="kafka, or a file such as events.jsonl.gz")] = "kafka",
    speed: Annotated[str, typer.Option(help="max, or a multiple of real time such as 1x or 86400x")] = "max",
    lane: Annotated[str, typer.Option(help="import: history, raises no alerts; live: as if it happened now")] = "import",
    truth: Annotated[
        Path | None, typer.Option(help="folder of the truth; default: beside the file, else <home>/simulate"),
    ] = None,
    mess: Annotated[float, typer.Option(min=0.0, max=1.0, help="share of events duplicated, damaged, misdated …")] = 0.0,
    items: Annotated[int, typer.Option(min=100, help="products in the catalog")] = 2400,
    tenant: Annotated[str, typer.Option(help="whose events these become")] = "demo",
    start: Annotated[str | None, typer.Option(help="ISO time; default: it ends at midnight, at 1x begins now")] = None,
    begin: Annotated[str | None, typer.Option("--from", help="send nothing before this ISO time or `now`")] = None,
    until: Annotated[str | None, typer.Option(help="send nothing from this ISO time or `now` on")] = None,
    catalog: Annotated[bool, typer.Option(help="send the catalog first")] = True,
    follow: Annotated[bool, typer.Option("--follow", help="shoppers look at their recommendations (live lane)")] = False,
    strategies: Annotated[bool, typer.Option("--strategies", help="orders come under offers that please or not")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the report as JSON")] = False,
) -> None:
    """Put a simulated shop's events on Kafka or into a file, with the planted truth beside them."""
    from producers.simulate import command

    command.simulate(command.options(
        shoppers=shoppers, days=days, seed=seed, to=to, speed=speed, lane=lane, truth=truth, mess=mess, items=items,
        tenant=tenant, start=start, begin=begin, until=until, catalog=catalog, recommendations=follow,
        strategies=strategies), as_json=as_json)
