"""Commands for those who look after customers."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

PANEL = "Segments, experiments, offers"
INSTANTS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f"]  # as finely as changes are known
app = typer.Typer()

segments = typer.Typer(help="Groups of users by rules: check the rules, sizes, who is in.", no_args_is_help=True)
app.add_typer(segments, name="segments", rich_help_panel=PANEL)


@segments.command("check")
def segments_check(
    path: Annotated[Path | None, typer.Argument(help="file of rules; default: CLICKWAKE_SEGMENTS__RULES")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the rules as JSON")] = False,
) -> None:
    """Whether a file of rules can be used, and what it says; exits with 1 when it cannot."""
    from clickwake import segments as command

    raise typer.Exit(command.check(path, as_json=as_json))


@segments.command("list")
def segments_list(
    tenant: Annotated[str, typer.Option(help="whose users; default: all tenants'")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="print the rows as JSON")] = False,
) -> None:
    """How many users are in each segment."""
    from clickwake import segments as command

    raise typer.Exit(command.sizes(tenant, as_json=as_json))


@segments.command("clusters")
def segments_clusters(as_json: Annotated[bool, typer.Option("--json", help="print the clusters as JSON")] = False) -> None:
    """The clusters of users that the newest release discovered, with the words and items that tell them apart."""
    from clickwake import segments as command

    raise typer.Exit(command.clusters(as_json=as_json))


@segments.command("members")
def segments_members(
    segment: Annotated[str, typer.Argument(help="its name")],
    tenant: Annotated[str, typer.Option(help="whose users; default: all tenants'")] = "",
    at: Annotated[datetime | None, typer.Option(formats=INSTANTS, help="as of this time, UTC; default: now")] = None,
    limit: Annotated[int, typer.Option(min=1, help="users at most, those who came last first")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="print the rows as JSON")] = False,
) -> None:
    """Who is in a segment, or was at any time, and by which values they came in."""
    from clickwake import segments as command

    raise typer.Exit(command.members(segment, tenant, at, limit, as_json=as_json))


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


@app.command(rich_help_panel=PANEL)
def experiments(
    check: Annotated[bool, typer.Option("--check", help="only whether the file can be used")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the rows as JSON")] = False,
) -> None:
    """What runs, and how the arms do: differences with intervals that hold whenever somebody looks, and what follows."""
    from clickwake import experiments as command

    raise typer.Exit(command.check(as_json=as_json) if check else command.results(as_json=as_json))


@app.command(rich_help_panel=PANEL)
def deliveries(
    check: Annotated[bool, typer.Option("--check", help="only whether the file can be used")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the rows as JSON")] = False,
) -> None:
    """What became of messages to webhooks, mail and files, by delivery and status."""
    from clickwake import deliveries as command

    raise typer.Exit(command.check(as_json=as_json) if check else command.results(as_json=as_json))


@app.command(rich_help_panel=PANEL)
def campaigns(as_json: Annotated[bool, typer.Option("--json", help="print the rows as JSON")] = False) -> None:
    """What each delivery is worth: returns and money gained beside those held out, by expected gain, with intervals."""
    from clickwake import campaigns as command

    raise typer.Exit(command.results(as_json=as_json))


@app.command(rich_help_panel=PANEL)
def offers(
    check: Annotated[bool, typer.Option("--check", help="only whether the file can be used")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the rows as JSON")] = False,
) -> None:
    """How offers do at each placement, and whether they help against the users who are held out."""
    from clickwake import offers as command

    raise typer.Exit(command.check(as_json=as_json) if check else command.results(as_json=as_json))


strategies = typer.Typer(help="How satisfied users will be under each offer or message, and which ones to try.",
                         no_args_is_help=True)  # fmt: skip
app.add_typer(strategies, name="strategies", rich_help_panel=PANEL)


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


@strategies.command("store")
def strategies_store(
    segment: Annotated[str | None, typer.Option(help="users who are in it now; default: all who spoke")] = None,
    item: Annotated[list[str] | None, typer.Option(help="of these items only; may be repeated")] = None,
    category: Annotated[str | None, typer.Option(help="of items in this first level of the catalog's categories")] = None,
    tenant: Annotated[str, typer.Option(help="whose users")] = "demo",
    as_json: Annotated[bool, typer.Option("--json", help="print what was stored as JSON")] = False,
) -> None:
    """Predict every user with every item under every strategy, and keep it in ClickHouse with the model it came from."""
    from clickwake import strategies as command

    raise typer.Exit(command.run_store(tenant, segment, item or [], category, as_json=as_json))


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
