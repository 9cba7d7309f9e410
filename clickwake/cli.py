"""The `clickwake` command: thin wrappers, one a subcommand; the work is in the module each one names."""

from __future__ import annotations

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


def main() -> None:
    """Entry point of the `clickwake` script."""
    app()
