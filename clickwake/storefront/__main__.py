"""`python -m clickwake.storefront`: the shop of what `clickwake up` runs here."""

from __future__ import annotations

import sys

import structlog

from clickwake.storefront.app import NoKey, create_app
from stream.http import server
from stream.logs import configure
from stream.settings import load

DRAIN_S = 2
HOST = "127.0.0.1"


def main(port: int | None = None) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code."""
    settings = load()
    configure(settings)
    wanted = settings.shop.port if port is None else port
    try:
        return server.serve("shop", settings, HOST, wanted, None, create_app, DRAIN_S)
    except NoKey as error:
        structlog.get_logger("shop").error("not_listening", why=str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
