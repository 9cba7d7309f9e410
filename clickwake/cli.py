"""The `clickwake` command: thin wrappers, one a subcommand; the work is in the module each one names."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

WORKERS = min(2, os.cpu_count() or 1)  # one Python process uses one core; broker and ClickHouse leave room for a second

app = typer.Typer(
    name="clickwake",
    help="Turns a live clickstream into decisions about each customer while the customer is still there.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(version("clickwake"))
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print it and exit")] = False,
) -> None:
    """Settings come from the environment (CLICKWAKE_*), see stream/settings.py. Logs go to standard error."""
    import structlog

    # looked up at every line: whoever runs a command in its own process may have replaced the stream by then
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))


@app.command()
def replay(
    dataset: Annotated[str, typer.Argument(help="online-retail, taobao, deskdrop or cdnow")],
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


@app.command()
def api(
    host: Annotated[str | None, typer.Option(help="default: CLICKWAKE_API__HOST")] = None,
    port: Annotated[int | None, typer.Option(help="default: CLICKWAKE_API__PORT; 0 takes a free one")] = None,
) -> None:
    """Answer over HTTP: recommendations, ranking, users, reasons; a replica of what the workers write."""
    from workers.api import main as serve

    raise typer.Exit(serve(host=host, port=port))


@app.command()
def shop(
    port: Annotated[int | None, typer.Option(help="default: CLICKWAKE_SHOP__PORT; 0 takes a free one")] = None,
) -> None:
    """The demo shop, on what runs here: a page whose clicks change what it shows within a second."""
    from clickwake.storefront.__main__ import main as serve

    raise typer.Exit(serve(port=port))


dashboard = typer.Typer(help="Pages for growth people: traffic, segments, churn, recommendations, dead letters, one user.",
                        invoke_without_command=True)  # fmt: skip
app.add_typer(dashboard, name="dashboard")
AccountName = Annotated[str, typer.Argument(help="with which one signs in")]


@dashboard.callback()
def serve_dashboard(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="default: CLICKWAKE_DASHBOARD__HOST")] = None,
    port: Annotated[int | None, typer.Option(help="default: CLICKWAKE_DASHBOARD__PORT")] = None,
) -> None:
    """Serve the dashboard. On loopback everybody may see it until there are users; elsewhere it asks who is there."""
    if context.invoked_subcommand is not None:
        return
    from clickwake.dashboard.__main__ import main as serve

    raise typer.Exit(serve(host=host, port=port))


@dashboard.command("add-user")
def dashboard_add_user(
    name: AccountName,
    role: Annotated[str, typer.Option(help="read: see everything; admin: also forget users and mend dead letters")] = "read",
    generate: Annotated[bool, typer.Option("--generate", help="draw a password and print it, once")] = False,
    stdin: Annotated[bool, typer.Option("--password-stdin", help="read the password from standard input")] = False,
) -> None:
    """Let somebody sign in, or give them another password or role; whoever is signed in by that name is signed out."""
    from clickwake.dashboard import commands

    commands.add(name, role, generate=generate, stdin=stdin)


@dashboard.command("remove-user")
def dashboard_remove_user(name: AccountName) -> None:
    """Let somebody in no longer; their pages end within seconds."""
    from clickwake.dashboard import commands

    commands.remove(name)


@dashboard.command("users")
def dashboard_users(as_json: Annotated[bool, typer.Option("--json", help="print as JSON")] = False) -> None:
    """Who may sign in, and what for."""
    from clickwake.dashboard import commands

    commands.users(as_json)


@app.command()
def key(
    tenant: Annotated[str, typer.Argument(help="whose events it lets in")],
    as_json: Annotated[bool, typer.Option("--json", help="print the key and what settings hold of it as JSON")] = False,
) -> None:
    """Make a key to write, read or administer with. It is shown once; settings hold its hash only."""
    from producers import commands

    commands.key(tenant, as_json)


@app.command()
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


@app.command()
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


@app.command()
def down() -> None:
    """End what `clickwake up` started, wherever it runs; data stays."""
    from clickwake import commands

    raise typer.Exit(commands.run_down())


@app.command()
def status(as_json: Annotated[bool, typer.Option("--json", help="print it as JSON")] = False) -> None:
    """What runs, since when, and where; exits with 0 when all is ready and 3 when not."""
    from clickwake import commands

    raise typer.Exit(commands.run_status(as_json=as_json))


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="print it as JSON")] = False) -> None:
    """Check this machine and what is configured, and say what to do about each problem."""
    from clickwake import doctor

    raise typer.Exit(doctor.run(as_json=as_json))


@app.command()
def topics(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="create nothing, only compare")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print it as JSON")] = False,
) -> None:
    """Create the Kafka topics that are missing; exits with 1 when an existing one differs."""
    from clickwake import commands

    raise typer.Exit(commands.run_topics(dry_run=dry_run, as_json=as_json))


@app.command()
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


@app.command()
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


@app.command()
def migrate(
    wait: Annotated[float, typer.Option(min=0, help="seconds to wait for ClickHouse")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="print the applied files as JSON")] = False,
) -> None:
    """Create or update the ClickHouse tables and views (the sink does the same when it starts)."""
    import json

    from stream.adapters.clickhouse import ClickHouseMissing, MigrationError, address
    from stream.adapters.clickhouse import migrate as apply
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


@app.command()
def setup(
    wait: Annotated[float, typer.Option(min=0, help="seconds to wait for each of Kafka and ClickHouse")] = 60.0,
) -> None:
    """Create what is missing of topics and tables; waits for Kafka and ClickHouse. For the first start of a deployment."""
    import asyncio

    from clickwake import topics as topic_admin
    from stream.adapters.clickhouse import ClickHouseMissing, MigrationError
    from stream.adapters.clickhouse import migrate as apply
    from stream.adapters.kafka_clients import KafkaMissing, wait_for_kafka
    from stream.settings import load

    settings = load()
    try:
        asyncio.run(wait_for_kafka(settings, wait))
        for outcome in topic_admin.create(settings):
            typer.echo(f"{outcome.topic}: {outcome.result}")
        for name in apply(settings.clickhouse, wait_s=wait):
            typer.echo(f"applied {name}")
    except (KafkaMissing, topic_admin.TopicsError, ClickHouseMissing, MigrationError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error


@app.command()
def rewind() -> None:
    """Read the topics again from the beginning, after a broker was restored from an older copy.

    What was folded or stored before is told by its id, so nothing counts twice. End all workers first."""
    from schemas import topics
    from stream.adapters.lag import GroupInUse, Lag
    from stream.settings import load

    settings = load()
    groups = {f"{settings.kafka.topic_prefix}-personalize": (topics.EVENTS, topics.IDENTITY),
              f"{settings.kafka.topic_prefix}.sink": (topics.EVENTS, *topics.OUTPUTS)}  # fmt: skip
    with Lag(settings) as lag:
        for group, some in groups.items():
            try:
                typer.echo(f"{group}: {lag.rewind(group, *some)} partitions begin again")
            except GroupInUse as error:
                typer.echo(str(error), err=True)
                raise typer.Exit(1) from error


@app.command()
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
    from clickwake.process import StartError
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


@app.command()
def train(
    source: Annotated[str, typer.Option(help="clickhouse: what the sink stored")] = "clickhouse",
    dataset: Annotated[tuple[str, Path] | None, typer.Option(help="NAME PATH of a public data set, instead")] = None,
    events: Annotated[Path | None, typer.Option(help="JSON lines of canonical events, instead")] = None,
    items: Annotated[Path | None, typer.Option(help="JSON lines of catalog items, with --events")] = None,
    tenant: Annotated[str, typer.Option(help="whose events in ClickHouse")] = "demo",
    release: Annotated[bool, typer.Option(help="announce the bundle to the workers")] = True,
    every: Annotated[str | None, typer.Option(help="train again at this interval, e.g. 6h, until stopped")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the manifest as JSON")] = False,
) -> None:
    """Learn from history, judge on the newest days, export, verify and release a bundle of models."""
    if every is not None:
        if dataset is not None or events is not None or not release:
            raise typer.BadParameter("--every trains from ClickHouse and releases what is not worse; leave the others out")
        from training.schedule import main as schedule

        raise typer.Exit(schedule(["--every", every, "--tenant", tenant]))
    from training import commands

    commands.train(source, dataset, events, items, tenant, release, as_json)


evaluate = typer.Typer(help="Compare with strong baselines on a data set, by a time split.", no_args_is_help=True)
app.add_typer(evaluate, name="evaluate")


DatasetName = Annotated[str, typer.Argument(help="online-retail, taobao, deskdrop or cdnow")]
DataPath = Annotated[Path, typer.Argument(help="the data set's file, gzip or plain")]
AsJson = Annotated[bool, typer.Option("--json", help="print the comparison as JSON")]
ReportDir = Annotated[Path | None, typer.Option("--report", help="folder for a page with tables and plots")]


@evaluate.command("recommend")
def evaluate_recommend(
    dataset: DatasetName,
    path: DataPath,
    split: Annotated[datetime | None, typer.Option(help="learn before it, ask after it; default: the newest tenth")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="how often ours is trained; its figures are the mean")] = 3,
    panel: Annotated[bool, typer.Option(help="beside popularity, neighbours, EASE, SASRec, BERT4Rec …")] = True,
    ablations: Annotated[bool, typer.Option(help="ours without text, ids, time, live counts …, and pre-trained")] = False,
    freshness: Annotated[bool, typer.Option(help="quality against the model's age, with live counts and without")] = False,
    as_json: AsJson = False,
    report: ReportDir = None,
) -> None:
    """Each known user's next moment and every moment after the split, all items ranked, beside a panel of strong methods."""
    from training import evaluations

    options = {"seeds": float(seeds), "panel": float(panel), "ablations": float(ablations), "freshness": float(freshness)}
    evaluations.main("recommend", dataset, path, split, as_json, report, options)


@evaluate.command("churn")
def evaluate_churn(
    dataset: DatasetName,
    path: DataPath,
    split: Annotated[datetime | None, typer.Option(help="the cut-off; default: as late as the horizon allows")] = None,
    horizon_days: Annotated[float, typer.Option(min=1, max=365, help="no event within this many days is churn")] = 90.0,
    as_json: AsJson = False,
    report: ReportDir = None,
) -> None:
    """Who stays away after the cut-off: AUC, Brier and calibration error."""
    from training import evaluations

    evaluations.main("churn", dataset, path, split, as_json, report, {"horizon_days": horizon_days})


@evaluate.command("repurchase")
def evaluate_repurchase(
    dataset: DatasetName,
    path: DataPath,
    split: Annotated[datetime | None, typer.Option(help="asked at this time; default: 90 days before the end")] = None,
    as_json: AsJson = False,
    report: ReportDir = None,
) -> None:
    """Which items are bought again within 30, 60 and 90 days, what completes a basket, whether reminders are right."""
    from training import evaluations

    evaluations.main("repurchase", dataset, path, split, as_json, report)


@evaluate.command("satisfaction")
def evaluate_satisfaction(
    dataset: Annotated[str, typer.Argument(help="womens-clothing or chinese-reviews")],
    path: DataPath,
    split: Annotated[
        str | None, typer.Option(help="item or category: what the data set is split by; a hash decides, never a time"),
    ] = None,
    publish: Annotated[bool, typer.Option("--publish", help="put the model into the registry")] = False,
    as_json: AsJson = False,
    report: ReportDir = None,
) -> None:
    """Recommended or not, and stars, from the text of reviews of items or categories never learned from."""
    from training import evaluations

    splits = {"womens-clothing": "item", "chinese-reviews": "category"}
    if dataset not in splits:
        raise typer.BadParameter(f"unknown reviews {dataset!r}; known are {', '.join(splits)}")
    if split not in (None, splits[dataset]):
        raise typer.BadParameter(f"{dataset} is split by {splits[dataset]}; leave --split out")
    evaluations.main("satisfaction", dataset, path, None, as_json, report, {"publish": float(publish)})


@evaluate.command("promotions")
def evaluate_promotions(
    dataset: Annotated[str, typer.Argument(help="open-bandit or hillstrom")],
    path: Annotated[Path, typer.Argument(help="open-bandit: the folder with random/ and bts/; hillstrom: the file")],
    as_json: AsJson = False,
    report: ReportDir = None,
) -> None:
    """Which offer, and whom to mail: policies judged by logs that were drawn by lot, and what may be concluded."""
    from training import evaluations

    evaluations.main("promotions", dataset, path, None, as_json, report)


@evaluate.command("clusters")
def evaluate_clusters(
    dataset: Annotated[str, typer.Argument(help="simulated, or one of the data sets")] = "simulated",
    path: Annotated[Path | None, typer.Argument(help="the data set's file, gzip or plain")] = None,
    shoppers: Annotated[int, typer.Option(min=50, help="of the simulated shop")] = 400,
    seed: Annotated[int, typer.Option(min=0, help="of the simulated shop")] = 7,
    retrain: Annotated[bool, typer.Option("--retrain", help="train twice more: are the same users together?")] = False,
    as_json: AsJson = False,
    report: ReportDir = None,
) -> None:
    """Clusters of users by their vectors: against planted tastes, under resampling, and whether users stay in them."""
    from training import evaluations

    if dataset != "simulated" and path is None:
        raise typer.BadParameter(f"{dataset} needs its file: clickwake evaluate clusters {dataset} PATH")
    options = {"shoppers": float(shoppers), "seed": float(seed), "retrain": float(retrain)}
    evaluations.main("clusters", dataset, path or Path(), None, as_json, report, options)


@evaluate.command("strategies")
def evaluate_strategies(
    dataset: Annotated[str, typer.Argument(help="simulated, or clickhouse: what the sink stored")] = "simulated",
    worlds: Annotated[int, typer.Option(min=1, help="simulated shops, of seeds that follow each other")] = 6,
    shoppers: Annotated[int, typer.Option(min=50, help="of each")] = 800,
    days: Annotated[int, typer.Option(min=20, help="of each")] = 150,
    seed: Annotated[int, typer.Option(min=0, help="of the first")] = 7,
    tenant: Annotated[str, typer.Option(help="whose opinions in ClickHouse")] = "demo",
    split: Annotated[datetime | None, typer.Option(help="of clickhouse: learn before it; default: the newest 30%")] = None,
    as_json: AsJson = False,
    report: ReportDir = None,
) -> None:
    """Satisfaction by user, item and strategy after a time split, and whether planted effects of strategies are found."""
    from training import evaluations

    if dataset not in ("simulated", "clickhouse"):
        raise typer.BadParameter(f"{dataset!r} has no strategies with opinions; it is simulated or clickhouse")
    options = {"worlds": float(worlds), "shoppers": float(shoppers), "days": float(days), "seed": float(seed)}
    evaluations.main("strategies", dataset, Path(tenant), split, as_json, report, options)


@evaluate.command("explanations")
def evaluate_explanations(
    source: Annotated[str, typer.Option(help="clickhouse: what the sink stored")] = "clickhouse",
    dataset: Annotated[tuple[str, Path] | None, typer.Option(help="NAME PATH of a public data set, instead")] = None,
    events: Annotated[Path | None, typer.Option(help="JSON lines of canonical events, instead")] = None,
    items: Annotated[Path | None, typer.Option(help="JSON lines of catalog items, with --events")] = None,
    tenant: Annotated[str, typer.Option(help="whose events in ClickHouse")] = "demo",
    split: Annotated[datetime | None, typer.Option(help="learn before it, ask at it; default: the newest tenth")] = None,
    users: Annotated[int, typer.Option(min=2, help="whose histories are taken apart, drawn from those who came back")] = 300,
    as_json: AsJson = False,
    report: ReportDir = None,
) -> None:
    """Whether a recommended item falls further without its first reason than without another event of the user's."""
    from training import commands, evaluations

    name, path = dataset or (source if events is None else events.name, Path())
    evaluations.main("explanations", name, path, split, as_json, report, {"users": float(users)}, source=lambda settings:
                     commands.history_of(settings, source, dataset, events, items, tenant))  # fmt: skip


@evaluate.command("text")
def evaluate_text(
    dataset: DatasetName,
    path: DataPath,
    split: Annotated[datetime | None, typer.Option(help="learn before it, ask after it; default: the newest tenth")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="how often the recommender is learned on each encoder's vectors")] = 3,
    keep: Annotated[
        Path | None, typer.Option(help="folder for the adapted encoder, for CLICKWAKE_TRAINING__TEXT_MODEL if it is better")
    ] = None,
    as_json: AsJson = False,
    report: ReportDir = None,
) -> None:
    """The text encoder in eight bits, and adapted to the catalog: what each does to the ranking, and how fast it is."""
    from training import evaluations

    evaluations.main("text", dataset, path, split, as_json, report, {"seeds": float(seeds)}, keep)


bench = typer.Typer(help="Measure on this machine.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.command("pipeline")
def bench_pipeline(
    events: Annotated[int, typer.Option(min=1_000, help="in the backlog whose rate is measured")] = 120_000,
    rate: Annotated[float, typer.Option(min=1, help="events/s at which latency is measured")] = 200.0,
    seconds: Annotated[float, typer.Option(min=1, help="… for so long")] = 30.0,
    workers: Annotated[int, typer.Option(min=1, help="personalize processes that share the partitions")] = WORKERS,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures as JSON")] = False,
) -> None:
    """The whole system's rate beside a bare Faust agent's on the same events, and the latency to a recommendation."""
    from benchmarks import pipeline

    options = pipeline.Options(events=events, rate=rate, seconds=seconds, workers=workers)
    raise typer.Exit(pipeline.main(options, as_json=as_json))


@bench.command("api")
def bench_api(
    seconds: Annotated[float, typer.Option(min=3, help="of load on each of the two endpoints")] = 15.0,
    shoppers: Annotated[int, typer.Option(min=10, help="whose histories are there")] = 2_000,
    fresh: Annotated[int, typer.Option(min=1, help="events whose way to an answer is timed")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures as JSON")] = False,
) -> None:
    """Recommendations a second of one API process beside the bare server, their latency, and how soon it knows."""
    from benchmarks import api as command

    raise typer.Exit(command.main(command.Options(seconds=seconds, shoppers=shoppers, fresh=fresh), as_json=as_json))


@bench.command("bot")
def bench_bot(
    rate: Annotated[float, typer.Option(min=1, help="events/s of the others; the bot sends as many")] = 400.0,
    seconds: Annotated[float, typer.Option(min=1, help="length of each of the three stretches")] = 30.0,
    workers: Annotated[int, typer.Option(min=1, help="personalize processes that share the partitions")] = WORKERS,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures as JSON")] = False,
) -> None:
    """Does one user with half of all traffic slow the others down? Their latency alone and beside a bot."""
    from benchmarks import beside

    raise typer.Exit(beside.main("bot", beside.Options(rate=rate, seconds=seconds, workers=workers), as_json=as_json))


@bench.command("outage")
def bench_outage(
    rate: Annotated[float, typer.Option(min=1, help="events/s")] = 400.0,
    seconds: Annotated[float, typer.Option(min=1, help="length of each of the three stretches")] = 60.0,
    workers: Annotated[int, typer.Option(min=1, help="personalize processes that share the partitions")] = WORKERS,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures as JSON")] = False,
) -> None:
    """Does personalize notice that ClickHouse is away? Its latency with and without it, and how fast the sink catches up."""
    from benchmarks import beside

    raise typer.Exit(beside.main("outage", beside.Options(rate=rate, seconds=seconds, workers=workers), as_json=as_json))


@bench.command("rebuild")
def bench_rebuild(
    users: Annotated[int, typer.Option(min=1_000, help="whose states are rebuilt")] = 200_000,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures as JSON")] = False,
) -> None:
    """How long until a worker that lost its disk has everybody's state again, from the changelog alone?"""
    from benchmarks import rebuild

    raise typer.Exit(rebuild.main(rebuild.Options(users=users), as_json=as_json))


@bench.command("soak")
def bench_soak(
    minutes: Annotated[float, typer.Option(min=1, help="how long")] = 30.0,
    rate: Annotated[float, typer.Option(min=1, help="events/s: half of what the machine keeps up with")] = 2_000.0,
    warm_up: Annotated[float, typer.Option(min=0, help="minutes at the beginning that are not judged")] = 10.0,
    workers: Annotated[int, typer.Option(min=1, help="personalize processes that share the partitions")] = WORKERS,
    picture: Annotated[Path | None, typer.Option(help="draw memory and lag into this file, .svg or .png")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures as JSON")] = False,
) -> None:
    """Does anything grow? Memory and lag at a steady rate, with slopes; fails when one does."""
    from benchmarks import soak

    if warm_up >= minutes:
        raise typer.BadParameter("the warm-up must be shorter than the whole")
    options = soak.Options(rate=rate, minutes=minutes, warm_up=warm_up, workers=workers)
    raise typer.Exit(soak.main(options, as_json=as_json, picture=picture))


@app.command()
def erase(
    user: Annotated[str, typer.Argument(help="userId or anonymousId, as it was sent")],
    tenant: Annotated[str, typer.Option(help="whose user")] = "demo",
    suppress: Annotated[bool, typer.Option("--suppress", help="take nothing of this user in future either")] = False,
    lift: Annotated[bool, typer.Option("--lift", help="end a suppression: what the user does from now on is taken")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="erase nothing: search every store for the user")] = False,
    as_is: Annotated[bool, typer.Option("--as-is", help="make no pseudonym of the id: it stands so downstream")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="seconds to wait for the receipt")] = 300.0,
    as_json: AsJson = False,
) -> None:
    """Forget a user everywhere: state, changelog, ClickHouse, future training. Ends with a receipt."""
    from clickwake import erase as erasure
    from producers.privacy import Privacy
    from stream.settings import load

    if sum((suppress, lift, verify)) > 1:
        raise typer.BadParameter("--suppress, --lift and --verify exclude each other")
    users = [user] if as_is else Privacy(load().privacy).ids_of(tenant, user)
    if verify:
        raise typer.Exit(erasure.verify(tenant, users, as_json=as_json))
    raise typer.Exit(erasure.run(tenant, users, suppress=suppress, lift=lift, timeout_s=timeout, as_json=as_json))


@app.command()
def aggregates(
    name: Annotated[Literal["items", "funnel", "hours"], typer.Argument(help="of each item, day, hour of the week")],
    tenant: Annotated[str, typer.Option(help="whose events")] = "demo",
    k: Annotated[int, typer.Option(min=2, help="fewer people than this are behind no figure")] = 20,
    days: Annotated[int, typer.Option(min=1, help="of the newest events")] = 30,
    epsilon: Annotated[
        float | None, typer.Option(min=1e-6, help="differential privacy instead of k: noise that costs so much of it"),
    ] = None,
    most: Annotated[int, typer.Option("--groups-a-person", min=1, help="… and in how many rows one person counts")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines instead of CSV")] = False,
) -> None:
    """Figures for outsiders, k-anonymous: none of them is about few people; or with differential privacy."""
    from clickwake import aggregates as figures

    if epsilon is not None:
        raise typer.Exit(figures.run_noisy(name, tenant, epsilon, most, days, as_json=as_json))
    raise typer.Exit(figures.run(name, tenant, k, days, as_json=as_json))


dead_letters = typer.Typer(help="What could not be processed: by cause, mended on trial, sent again.", no_args_is_help=True)
app.add_typer(dead_letters, name="dead-letters")

LetterIds = Annotated[list[str] | None, typer.Argument(help="ids of letters, as `list --json` and `show` name them")]
LetterCause = Annotated[int | None, typer.Option("--cause", min=1, help="all letters of a cause of `list --all`, by number")]
SetPath = Annotated[list[str] | None, typer.Option("--set", help="PATH=VALUE, e.g. properties.price=9.5; may be repeated")]
RenamePath = Annotated[list[str] | None, typer.Option("--rename", help="PATH=NAME, such as user_id=userId; may be repeated")]
DropPath = Annotated[list[str] | None, typer.Option("--drop", help="PATH to leave out; may be repeated")]
AsIs = Annotated[bool, typer.Option("--as-is", help="without any change: when the cause was on this side")]


@dead_letters.command("list")
def dead_letters_list(
    tenant: Annotated[str | None, typer.Option(help="of this tenant only")] = None,
    since: Annotated[datetime | None, typer.Option(help="UTC; failed since then")] = None,
    everything: Annotated[bool, typer.Option("--all", help="those that were sent again as well")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the causes as JSON")] = False,
) -> None:
    """By cause, the most frequent first, with an example and the fix where one is known."""
    from clickwake import dead_letters as letters

    letters.list_causes(tenant, since, everything, as_json)


@dead_letters.command("show")
def dead_letters_show(
    letter: Annotated[str, typer.Argument(help="id of a letter")],
    as_json: Annotated[bool, typer.Option("--json", help="print it as JSON")] = False,
) -> None:
    """One letter: where it came from, what is wrong, the payload, the fix."""
    from clickwake import dead_letters as letters

    letters.show(letter, as_json)


@dead_letters.command("repair")
def dead_letters_repair(
    letters: LetterIds = None, cause: LetterCause = None, sets: SetPath = None, renames: RenamePath = None,
    drops: DropPath = None, as_is: AsIs = False, as_json: AsJson = False,
) -> None:  # fmt: skip
    """A dry run: what would change, and whether the collector would take it. Without changes: each with its own fix."""
    _mend(letters, cause, sets, renames, drops, as_is, send=False, as_json=as_json)


@dead_letters.command("replay")
def dead_letters_replay(
    letters: LetterIds = None, cause: LetterCause = None, sets: SetPath = None, renames: RenamePath = None,
    drops: DropPath = None, as_is: AsIs = False, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Mend and send to the events topic, on the lane `repair`. Sending twice does no harm: the ids stay the same."""
    _mend(letters, cause, sets, renames, drops, as_is, send=True, as_json=as_json)


def _mend(
    letters: list[str] | None, cause: int | None, sets: list[str] | None, renames: list[str] | None,
    drops: list[str] | None, as_is: bool, *, send: bool, as_json: bool,
) -> None:  # fmt: skip
    from clickwake import dead_letters as commands
    from producers import repair

    try:
        changes = [repair.parse(what, text) for what, texts in (("set", sets), ("rename", renames), ("drop", drops))
                   for text in texts or ()]  # fmt: skip
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if as_is and changes:
        raise typer.BadParameter("--as-is means without changes; leave --set, --rename and --drop out")
    commands.mend(letters or [], cause, changes, as_is, send=send, as_json=as_json)


segments = typer.Typer(help="Groups of users by rules: check the rules, sizes, who is in.", no_args_is_help=True)
app.add_typer(segments, name="segments")


@segments.command("check")
def segments_check(
    path: Annotated[Path | None, typer.Argument(help="file of rules; default: CLICKWAKE_SEGMENTS__RULES")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the rules as JSON")] = False,
) -> None:
    """Whether a file of rules can be used, and what it says; exits with 1 when it cannot."""
    from clickwake import segments as command

    raise typer.Exit(command.check(path, as_json=as_json))


@segments.command("list")
def segments_list(as_json: Annotated[bool, typer.Option("--json", help="print the rows as JSON")] = False) -> None:
    """How many users are in each segment."""
    from clickwake import segments as command

    raise typer.Exit(command.sizes(as_json=as_json))


@segments.command("clusters")
def segments_clusters(as_json: Annotated[bool, typer.Option("--json", help="print the clusters as JSON")] = False) -> None:
    """The clusters of users that the newest release discovered, with the words and items that tell them apart."""
    from clickwake import segments as command

    raise typer.Exit(command.clusters(as_json=as_json))


@segments.command("members")
def segments_members(
    segment: Annotated[str, typer.Argument(help="its name")],
    at: Annotated[datetime | None, typer.Option(help="as of this time, UTC; default: now")] = None,
    limit: Annotated[int, typer.Option(min=1, help="users at most, those who came last first")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="print the rows as JSON")] = False,
) -> None:
    """Who is in a segment, or was at any time, and by which values they came in."""
    from clickwake import segments as command

    raise typer.Exit(command.members(segment, at, limit, as_json=as_json))


@segments.command("backfill")
def segments_backfill(
    segment: Annotated[list[str] | None, typer.Option(help="only this one; may be given again. Default: all")] = None,
    since: Annotated[datetime | None, typer.Option(help="from this time on, UTC; default: from the first event on")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only count, write nothing")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print what was found as JSON")] = False,
) -> None:
    """Who would have been in a segment before its rule was there, worked out from the events in ClickHouse."""
    from clickwake import segments_backfill as command

    raise typer.Exit(command.backfill(segment or [], since, dry_run=dry_run, as_json=as_json))


@app.command()
def experiments(
    check: Annotated[bool, typer.Option("--check", help="only whether the file can be used")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the rows as JSON")] = False,
) -> None:
    """What runs, and how the arms do: rates with intervals that hold whenever somebody looks."""
    from clickwake import experiments as command

    raise typer.Exit(command.check(as_json=as_json) if check else command.results(as_json=as_json))


@app.command()
def deliveries(
    check: Annotated[bool, typer.Option("--check", help="only whether the file can be used")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the rows as JSON")] = False,
) -> None:
    """What became of messages to webhooks, mail and files, by delivery and status."""
    from clickwake import deliveries as command

    raise typer.Exit(command.check(as_json=as_json) if check else command.results(as_json=as_json))


@app.command()
def campaigns(as_json: Annotated[bool, typer.Option("--json", help="print the rows as JSON")] = False) -> None:
    """What each delivery is worth: returns and money gained beside those held out, by expected gain, with intervals."""
    from clickwake import campaigns as command

    raise typer.Exit(command.results(as_json=as_json))


@app.command()
def offers(
    check: Annotated[bool, typer.Option("--check", help="only whether the file can be used")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the rows as JSON")] = False,
) -> None:
    """How offers do at each placement, and whether they help against the users who are held out."""
    from clickwake import offers as command

    raise typer.Exit(command.check(as_json=as_json) if check else command.results(as_json=as_json))


strategies = typer.Typer(help="How satisfied users will be under each offer or message, and which ones to try.",
                         no_args_is_help=True)  # fmt: skip
app.add_typer(strategies, name="strategies")


@strategies.command("compare")
def strategies_compare(
    segment: Annotated[str | None, typer.Option(help="users who are in it now; default: all who spoke")] = None,
    item: Annotated[list[str] | None, typer.Option(help="of these items only; may be repeated")] = None,
    category: Annotated[str | None, typer.Option(help="of items in this first level of the catalog's categories")] = None,
    least: Annotated[float, typer.Option(min=0.005, max=1, help="smallest difference worth telling apart, 0 to 1")] = 0.05,
    tenant: Annotated[str, typer.Option(help="whose users")] = "demo",
    picture: Annotated[Path | None, typer.Option(help="draw the intervals into this file, .svg or .png")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the comparison as JSON")] = False,
) -> None:
    """Expected satisfaction under each strategy with intervals, what may be said, and an experiment to begin with."""
    from clickwake import strategies as command

    raise typer.Exit(command.run_compare(tenant, segment, item or [], category, least, picture, as_json=as_json))


@strategies.command("predict")
def strategies_predict(
    user: Annotated[str, typer.Argument(help="as events name them")],
    item: Annotated[str, typer.Argument(help="as the catalog names it")],
    tenant: Annotated[str, typer.Option(help="whose user")] = "demo",
    as_json: Annotated[bool, typer.Option("--json", help="print the prediction as JSON")] = False,
) -> None:
    """Expected satisfaction of one user with one item under each strategy."""
    from clickwake import strategies as command

    raise typer.Exit(command.run_predict(tenant, user, item, as_json=as_json))


models = typer.Typer(help="The registry of bundles: list them, and keys that say which of them workers take.")
app.add_typer(models, name="models")


@models.callback(invoke_without_command=True)
def models_list(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="print the manifests as JSON")] = False
) -> None:
    """List the bundles in the registry, newest first, and which one is released."""
    if context.invoked_subcommand is None:
        from training import model_commands

        model_commands.listing(as_json)


@models.command("keygen")
def models_keygen(
    out: Annotated[Path | None, typer.Option(help="file of the private key; default: <home>/keys/signing.key")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the names and the public key as JSON")] = False,
) -> None:
    """Make a pair of ed25519 keys: training signs bundles with one, workers ask for the other."""
    from training import model_commands

    model_commands.keygen(out, as_json)


@models.command("sign")
def models_sign(
    version: Annotated[str, typer.Argument(help="a bundle of `clickwake models`")],
    trust: Annotated[bool, typer.Option("--trust", help="vouch for a bundle that no trusted key has signed")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the key's id as JSON")] = False,
) -> None:
    """Sign a bundle and its text encoder with the present key, as when keys are changed."""
    from training import model_commands

    model_commands.sign(version, trust, as_json)


@models.command("compare")
def models_compare(
    version: Annotated[str, typer.Argument(help="a bundle of `clickwake models`")],
    other: Annotated[str, typer.Argument(help="another one")],
    source: Annotated[str, typer.Option(help="clickhouse: what the sink stored")] = "clickhouse",
    dataset: Annotated[tuple[str, Path] | None, typer.Option(help="NAME PATH of a public data set, instead")] = None,
    tenant: Annotated[str, typer.Option(help="whose events in ClickHouse")] = "demo",
    as_json: Annotated[bool, typer.Option("--json", help="print the comparison as JSON")] = False,
) -> None:
    """Both bundles on the newest held-out days: the same users, the same items, and their paired differences."""
    from training import model_commands

    model_commands.compare(version, other, source, dataset, tenant, as_json)


@models.command("watch")
def models_watch(
    tenant: Annotated[str, typer.Option(help="whose live data")] = "demo",
    horizon: Annotated[Literal["1h", "1d", "7d"], typer.Option(help="a hit counts within this time")] = "1d",
    candidate: Annotated[str | None, typer.Option(help="a bundle to ask again what was asked live (shadow)")] = None,
    rollback: Annotated[bool, typer.Option(help="announce the parent when the released bundle left its band")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="print what was found as JSON")] = False,
) -> None:
    """Hit rate and input drift of the released bundle, live; rolls back when they leave their band. `train --every` does
    the same every ten minutes."""
    from training import model_commands

    model_commands.watch(tenant, horizon, candidate, rollback, as_json)


@app.command()
def release(
    version: Annotated[str, typer.Argument(help="a bundle of `clickwake models`, or newest")] = "newest",
    reason: Annotated[str, typer.Option(help="kept with the announcement")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="print the announcement as JSON")] = False,
) -> None:
    """Verify a bundle and announce it; running workers take it without a restart."""
    from training import commands

    commands.release(version, reason, as_json)


@app.command()
def rollback(
    reason: Annotated[str, typer.Option(help="kept with the announcement")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="print the announcement as JSON")] = False,
) -> None:
    """Announce the parent of the released bundle."""
    from training import commands

    commands.rollback(reason, as_json)


# what only the extra `train` brings: the workers' image is without it
NOT_EVERYWHERE = ("torch", "transformers", "onnx", "scipy", "sklearn", "implicit", "pandas", "matplotlib")


def main() -> None:
    """Entry point of the `clickwake` script."""
    try:
        app()
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in NOT_EVERYWHERE:
            raise
        typer.echo(f"this installation has no {error.name}: use the training image, or install 'clickwake[train]'", err=True)
        sys.exit(1)
