"""Commands that serve over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

PANEL = "Serve over HTTP"
app = typer.Typer()


@app.command(rich_help_panel=PANEL)
def collector(
    host: Annotated[str | None, typer.Option(help="default: CLICKWAKE_COLLECTOR__HOST")] = None,
    port: Annotated[int | None, typer.Option(help="default: CLICKWAKE_COLLECTOR__PORT; 0 takes a free one")] = None,
) -> None:
    """Take events over HTTP, Segment-compatible, and answer once Kafka has acknowledged them."""
    from producers.collector.serve import main as serve

    raise typer.Exit(serve(host=host, port=port))


@app.command(rich_help_panel=PANEL)
def api(
    host: Annotated[str | None, typer.Option(help="default: CLICKWAKE_API__HOST")] = None,
    port: Annotated[int | None, typer.Option(help="default: CLICKWAKE_API__PORT; 0 takes a free one")] = None,
) -> None:
    """Answer over HTTP: recommendations, ranking, users, reasons; a replica of what the workers write."""
    from workers.api import main as serve

    raise typer.Exit(serve(host=host, port=port))


@app.command(rich_help_panel=PANEL)
def shop(
    port: Annotated[int | None, typer.Option(help="default: CLICKWAKE_SHOP__PORT; 0 takes a free one")] = None,
) -> None:
    """The demo shop, on what runs here: a page whose clicks change what it shows within a second."""
    from clickwake.storefront.__main__ import main as serve

    raise typer.Exit(serve(port=port))


dashboard = typer.Typer(help="Pages for growth people: traffic, segments, churn, recommendations, dead letters, one user.",
                        invoke_without_command=True)  # fmt: skip
app.add_typer(dashboard, name="dashboard", rich_help_panel=PANEL)
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
    tenant: Annotated[list[str] | None, typer.Option(help="whose pages alone; again for another (default: all)")] = None,
    generate: Annotated[bool, typer.Option("--generate", help="draw a password and print it, once")] = False,
    stdin: Annotated[bool, typer.Option("--password-stdin", help="read the password from standard input")] = False,
) -> None:
    """Let somebody sign in, or with another password, role or tenants; whoever is signed in by that name is signed out."""
    from clickwake.dashboard import commands

    commands.add(name, role, tenants=tenant or (), generate=generate, stdin=stdin)


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
