"""Commands that start, look after and end an installation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clickwake.cli.options import WORKERS

PANEL = "Run an installation"
app = typer.Typer()


@app.command(rich_help_panel=PANEL)
def up(
    detach: Annotated[bool, typer.Option("--detach", "-d", help="run in the background, return once ready")] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="run only this process besides the servers; may be repeated"),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="personalize processes that share the partitions")] = WORKERS,
    train_every: Annotated[str, typer.Option(help="retrain and release this often; off to never do it")] = "6h",
    ready_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run everything on this machine: Kafka, ClickHouse, topics, tables and all processes, until Ctrl-C."""
    from clickwake import commands

    raise typer.Exit(commands.run_up(detach=detach, only=tuple(only or ()), workers=workers, train_every=train_every,
                                     ready_fd=ready_fd))


@app.command(rich_help_panel=PANEL)
def down() -> None:
    """End what `clickwake up` started, wherever it runs; data stays."""
    from clickwake import commands

    raise typer.Exit(commands.run_down())


@app.command(rich_help_panel=PANEL)
def status(as_json: Annotated[bool, typer.Option("--json", help="print it as JSON")] = False) -> None:
    """What runs, since when, and where; exits with 0 when all is ready and 3 when not."""
    from clickwake import commands

    raise typer.Exit(commands.run_status(as_json=as_json))


@app.command(rich_help_panel=PANEL)
def doctor(as_json: Annotated[bool, typer.Option("--json", help="print it as JSON")] = False) -> None:
    """Check this machine and what is configured, and say what to do about each problem."""
    from clickwake import doctor

    raise typer.Exit(doctor.run(as_json=as_json))


@app.command(rich_help_panel=PANEL)
def topics(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="create nothing, only compare")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print it as JSON")] = False,
) -> None:
    """Create the Kafka topics that are missing, keep them as long as settings say; exits with 1 when one differs."""
    from clickwake import commands

    raise typer.Exit(commands.run_topics(dry_run=dry_run, as_json=as_json))


@app.command(rich_help_panel=PANEL)
def sql(
    query: Annotated[str, typer.Argument(help="a ClickHouse query")],
    output_format: Annotated[
        str | None, typer.Option("--format", help="any ClickHouse format, such as CSVWithNames or Parquet"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a row")] = False,
) -> None:
    """Run a query against ClickHouse."""
    from clickwake import query as sql_query

    raise typer.Exit(sql_query.run(query, output_format=output_format, as_json=as_json))


@app.command(rich_help_panel=PANEL)
def schemas(
    check: Annotated[bool, typer.Option("--check", help="write nothing; exit 1 and name the files that differ")] = False,
    out: Annotated[Path | None, typer.Option(help="folder to write to; default: schemas/json of this installation")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the names as JSON")] = False,
) -> None:
    """Export the JSON Schemas of events, items, outputs, dead letters and releases."""
    import json

    from schemas import export

    folder = out or export.FOLDER
    files = export.differing(folder) if check else export.write(folder)
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "differ" if check else "written": files}))
    elif check:
        typer.echo(f"differ from the structs: {', '.join(files)}; run `clickwake schemas`" if files else "up to date")
    else:
        typer.echo(f"written to {folder}: {', '.join(files) or 'nothing, all up to date'}")
    raise typer.Exit(1 if check and files else 0)


@app.command(rich_help_panel=PANEL)
def migrate(
    wait: Annotated[float, typer.Option(min=0, help="seconds to wait for ClickHouse")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="print the applied files as JSON")] = False,
) -> None:
    """Create or update the ClickHouse tables and views (the sink does the same when it starts)."""
    import json

    from stream.adapters.database.clickhouse import ClickHouseMissing, MigrationError, address
    from stream.adapters.database.clickhouse import migrate as apply
    from stream.settings import load

    settings = load().clickhouse
    try:
        applied = apply(settings, wait_s=wait)
    except (ClickHouseMissing, MigrationError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(json.dumps({"database": settings.database, "applied": applied}))
    else:
        typer.echo(f"database {settings.database} at {address(settings)}: {', '.join(applied) or 'nothing to apply'}")


@app.command(rich_help_panel=PANEL)
def setup(
    wait: Annotated[float, typer.Option(min=0, help="seconds to wait for each of Kafka and ClickHouse")] = 60.0,
) -> None:
    """Create what is missing of topics and tables; waits for Kafka and ClickHouse. For the first start of a deployment."""
    import asyncio

    from clickwake import topics as topic_admin
    from stream.adapters.database.clickhouse import ClickHouseMissing, MigrationError
    from stream.adapters.database.clickhouse import migrate as apply
    from stream.adapters.kafka.kafka_clients import KafkaMissing, wait_for_kafka
    from stream.settings import load

    settings = load()
    try:
        asyncio.run(wait_for_kafka(settings, wait))
        for outcome in topic_admin.create(settings):
            typer.echo(f"{outcome.topic}: {outcome.result}")
            for difference in outcome.differences:
                typer.echo(f"{outcome.topic}: {difference}", err=True)
        for name in apply(settings.clickhouse, wait_s=wait):
            typer.echo(f"applied {name}")
    except (KafkaMissing, topic_admin.TopicsError, ClickHouseMissing, MigrationError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error


@app.command(rich_help_panel=PANEL)
def rewind() -> None:
    """Read the topics again from the beginning, after a broker was restored from an older copy.

    What was folded or stored before is told by its id, so nothing counts twice. End all workers first."""
    import asyncio

    from schemas import topics
    from stream.adapters.health.lag import STORED, GroupInUse, Lag
    from stream.adapters.kafka.kafka_clients import KafkaMissing, wait_for_kafka
    from stream.settings import load

    settings = load()
    groups = {f"{settings.kafka.topic_prefix}-personalize": (topics.EVENTS, topics.IDENTITY),
              f"{settings.kafka.topic_prefix}.sink": STORED}  # fmt: skip
    try:
        asyncio.run(wait_for_kafka(settings, 0.0))
        with Lag(settings) as lag:
            for group, some in groups.items():
                typer.echo(f"{group}: {lag.rewind(group, *some)} partitions begin again")
    except (GroupInUse, KafkaMissing) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error


@app.command(rich_help_panel=PANEL)
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="stay up afterwards, until Ctrl-C")] = False,
    dataset: Annotated[str | None, typer.Option(help="replay this data set instead of the simulated shop")] = None,
    data: Annotated[Path | None, typer.Option(help="its file")] = None,
) -> None:
    """Everything on this machine, with a simulated shop whose truth is known; ends with a summary checked against it."""
    import logging

    import structlog
    from rich.console import Console

    from clickwake.demo import dataset as books
    from clickwake.demo import shop
    from clickwake.demo.stage import DemoFailed
    from clickwake.local.process import StartError
    from producers.datasets.registry import DATASETS
    from producers.datasets.table import DatasetError
    from stream.settings import load

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    home = load().home.absolute()
    try:
        if dataset is None:
            shop.run(home, keep=keep)
        elif data is None:
            raise typer.BadParameter("--dataset needs --data PATH")
        elif dataset not in DATASETS:
            raise typer.BadParameter(f"unknown data set {dataset!r}; known are {', '.join(DATASETS)}")
        else:
            books.run(home, dataset, data, keep=keep)
    except (DemoFailed, StartError, DatasetError) as error:
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
