"""Commands that mend what could not be processed, forget people and hand figures out."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import typer

from clickwake.cli.options import AsJson

PANEL = "Mend, forget, hand out"
app = typer.Typer()


@app.command(rich_help_panel=PANEL)
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
    privacy = Privacy(load().privacy)
    if verify:  # the id itself too: what an import has written is under that
        names = [user] if as_is else privacy.names.names_of(tenant, user)
        raise typer.Exit(erasure.verify(tenant, names, as_json=as_json))
    users = [user] if as_is else privacy.ids_of(tenant, user)
    raise typer.Exit(erasure.run(tenant, users, suppress=suppress, lift=lift, timeout_s=timeout, as_json=as_json))


@app.command(rich_help_panel=PANEL)
def aggregates(
    name: Annotated[Literal["items", "funnel", "hours"], typer.Argument(help="of each item, day, hour of the week")],
    tenant: Annotated[str, typer.Option(help="whose events")] = "demo",
    k: Annotated[int, typer.Option(min=2, help="fewer people than this are behind no figure")] = 20,
    days: Annotated[int, typer.Option(min=1, help="of the newest events")] = 30,
    epsilon: Annotated[
        float | None, typer.Option(min=1e-6, help="differential privacy instead of k: noise that costs so much of it"),
    ] = None,
    most: Annotated[int, typer.Option("--groups-a-person", min=1, help="… and in how many rows one account counts")] = 5,
    guests: Annotated[
        bool, typer.Option("--guests", help="a device without an account counts as a person, too; one person may have many; "
                                            "not with --epsilon"),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines instead of CSV")] = False,
) -> None:
    """Figures for outsiders, k-anonymous: none of them is about few people; or with differential privacy."""
    from clickwake import aggregates as figures

    if epsilon is not None and guests:
        raise typer.BadParameter("--epsilon counts accounts alone, as its noise pays for nobody else; leave --guests out")
    if epsilon is not None:
        raise typer.Exit(figures.run_noisy(name, tenant, epsilon, most, days, as_json=as_json))
    raise typer.Exit(figures.run(name, tenant, k, days, guests=guests, as_json=as_json))


dead_letters = typer.Typer(help="What could not be processed: by cause, mended on trial, sent again.", no_args_is_help=True)
app.add_typer(dead_letters, name="dead-letters", rich_help_panel=PANEL)

LetterIds = Annotated[list[str] | None, typer.Argument(help="ids of letters, as `list --json` and `show` name them")]
LetterCause = Annotated[str | None, typer.Option("--cause", help="all letters of a cause, as `list` names it")]
LetterTenant = Annotated[str | None, typer.Option("--tenant", help="of this tenant only")]
SetPath = Annotated[list[str] | None, typer.Option("--set", help="PATH=VALUE, e.g. properties.price=9.5; may be repeated")]
RenamePath = Annotated[list[str] | None, typer.Option("--rename", help="PATH=NAME, such as user_id=userId; may be repeated")]
DropPath = Annotated[list[str] | None, typer.Option("--drop", help="PATH to leave out; may be repeated")]
AsIs = Annotated[bool, typer.Option("--as-is", help="without any change: when the cause was on this side")]


@dead_letters.command("list")
def dead_letters_list(
    tenant: LetterTenant = None,
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
    letters: LetterIds = None, cause: LetterCause = None, tenant: LetterTenant = None, sets: SetPath = None,
    renames: RenamePath = None, drops: DropPath = None, as_is: AsIs = False, as_json: AsJson = False,
) -> None:  # fmt: skip
    """A dry run: what would change, and whether the collector would take it. Without changes: each with its own fix."""
    _mend(letters, cause, tenant, sets, renames, drops, as_is, send=False, as_json=as_json)


@dead_letters.command("replay")
def dead_letters_replay(
    letters: LetterIds = None, cause: LetterCause = None, tenant: LetterTenant = None, sets: SetPath = None,
    renames: RenamePath = None, drops: DropPath = None, as_is: AsIs = False, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Mend and send to the events topic, on the lane `repair`. Sending twice does no harm: the ids stay the same."""
    _mend(letters, cause, tenant, sets, renames, drops, as_is, send=True, as_json=as_json)


def _mend(
    letters: list[str] | None, cause: str | None, tenant: str | None, sets: list[str] | None, renames: list[str] | None,
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
    commands.mend(letters or [], cause, tenant, changes, as_is, send=send, as_json=as_json)
