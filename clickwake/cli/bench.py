"""`clickwake bench`: what this machine does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clickwake.cli.options import WORKERS

PANEL = "Measure"
app = typer.Typer()

bench = typer.Typer(help="Measure on this machine.", no_args_is_help=True)
app.add_typer(bench, name="bench", rich_help_panel=PANEL)


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
    away: Annotated[float | None, typer.Option(min=1, help="seconds without ClickHouse; default: --seconds")] = None,
    workers: Annotated[int, typer.Option(min=1, help="personalize processes that share the partitions")] = WORKERS,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures as JSON")] = False,
) -> None:
    """Does personalize notice that ClickHouse is away? Its latency with and without it, and how fast the sink catches up."""
    from benchmarks import beside

    raise typer.Exit(beside.main("outage", beside.Options(rate=rate, seconds=seconds, workers=workers, beside=away),
                                 as_json=as_json))


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
    minutes: Annotated[float, typer.Option(min=1, help="how long")] = 50.0,
    rate: Annotated[float, typer.Option(min=1, help="events/s: half of what the machine keeps up with")] = 2_000.0,
    warm_up: Annotated[float, typer.Option(min=0, help="minutes at the beginning that are not judged")] = 20.0,
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
