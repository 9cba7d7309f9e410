"""The `clickwake` command: thin wrappers, one a subcommand; the work is in the module each one names."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from clickwake.cli import bench, data, evaluate, feed, installation, learn, marketing, serve

app = typer.Typer(
    name="clickwake",
    help="Turns a live clickstream into decisions about each customer while the customer is still there.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for part in (installation, feed, serve, marketing, data, learn, evaluate, bench):
    app.add_typer(part.app)


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
