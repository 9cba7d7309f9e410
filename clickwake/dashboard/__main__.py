"""`python -m clickwake.dashboard`: the dashboard of what runs here, on loopback: whoever may see it may see everybody."""

from __future__ import annotations

import signal
import sys

from nicegui import ui

from clickwake.dashboard import pages
from stream.adapters.logs import configure
from stream.settings import load

HOST = "127.0.0.1"


def main(port: int | None = None) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code."""
    settings = load()
    configure(settings)
    pages.routes(settings)
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises the signal again after the drain: that is the end
        signal.signal(number, lambda *_: None)
    ui.run(host=HOST, port=settings.dashboard.port if port is None else port, title="Clickwake", reload=False, show=False,
           show_welcome_message=False)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
