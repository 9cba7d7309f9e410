"""Commands that train models and release them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from clickwake.cli.options import NamedDataset

PANEL = "Train, judge and release"
app = typer.Typer()


@app.command(rich_help_panel=PANEL)
def train(
    source: Annotated[str, typer.Option(help="clickhouse: what the sink stored")] = "clickhouse",
    dataset: NamedDataset = None,
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


models = typer.Typer(help="The registry of bundles: list them, and keys that say which of them workers take.")
app.add_typer(models, name="models", rich_help_panel=PANEL)


@models.callback(invoke_without_command=True)
def models_list(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="print the manifests as JSON")] = False
) -> None:
    """List the bundles in the registry, newest first, and which one is released."""
    if context.invoked_subcommand is None:
        from training.release import model_commands

        model_commands.listing(as_json)


@models.command("keygen")
def models_keygen(
    out: Annotated[Path | None, typer.Option(help="file of the private key; default: <home>/keys/signing.key")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the names and the public key as JSON")] = False,
) -> None:
    """Make a pair of ed25519 keys: training signs bundles with one, workers ask for the other."""
    from training.release import model_commands

    model_commands.keygen(out, as_json)


@models.command("sign")
def models_sign(
    version: Annotated[str, typer.Argument(help="a bundle of `clickwake models`")],
    trust: Annotated[bool, typer.Option("--trust", help="vouch for a bundle that no trusted key has signed")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the key's id as JSON")] = False,
) -> None:
    """Sign a bundle and its text encoder with the present key, as when keys are changed."""
    from training.release import model_commands

    model_commands.sign(version, trust, as_json)


@models.command("compare")
def models_compare(
    version: Annotated[str, typer.Argument(help="a bundle of `clickwake models`")],
    other: Annotated[str, typer.Argument(help="another one")],
    source: Annotated[str, typer.Option(help="clickhouse: what the sink stored")] = "clickhouse",
    dataset: NamedDataset = None,
    tenant: Annotated[str, typer.Option(help="whose events in ClickHouse")] = "demo",
    as_json: Annotated[bool, typer.Option("--json", help="print the comparison as JSON")] = False,
) -> None:
    """Both bundles on the newest held-out days: the same users, the same items, and their paired differences."""
    from training.release import model_commands

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
    from training.release import model_commands

    model_commands.watch(tenant, horizon, candidate, rollback, as_json)


@app.command(rich_help_panel=PANEL)
def release(
    version: Annotated[str, typer.Argument(help="a bundle of `clickwake models`, or newest")] = "newest",
    reason: Annotated[str, typer.Option(help="kept with the announcement")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="print the announcement as JSON")] = False,
) -> None:
    """Verify a bundle and announce it; running workers take it without a restart."""
    from training import commands

    commands.release(version, reason, as_json)


@app.command(rich_help_panel=PANEL)
def rollback(
    reason: Annotated[str, typer.Option(help="kept with the announcement")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="print the announcement as JSON")] = False,
) -> None:
    """Announce the parent of the released bundle."""
    from training import commands

    commands.rollback(reason, as_json)
