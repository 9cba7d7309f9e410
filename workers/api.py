"""`python -m workers.api`: the read API. Start as many as are needed, each with a home of its own.

It follows the state's changelog into stores of its own, item vectors, counts and releases, and scores with the core that
the personalize worker scores with. Without Kafka it goes on answering from what it has, and says how old that is.

SIGTERM: requests in flight are finished, decisions that were noted are sent.
"""

from __future__ import annotations

import sys

from stream.api.app import create_app
from stream.http import keys, scraping, server
from stream.logs import configure
from stream.settings import Api, Settings, load

DRAIN_S = 10


def refusal(own: Api) -> str | None:
    """Why the API may not listen where it is told to, and what to do; None when it may."""
    return keys.refusal("api", "read", own.host, own.behind_tls, own.read_keys, Api().read_keys)


def main(host: str | None = None, port: int | None = None) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code."""
    settings: Settings = load()
    configure(settings)
    changes = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = settings.model_copy(update={"api": settings.api.model_copy(update=changes)})
    own = settings.api
    why_not = refusal(own) or scraping.refusal(own.host, settings.metrics)
    return server.serve("api", settings, own.host, own.port, why_not, create_app, DRAIN_S)


if __name__ == "__main__":
    sys.exit(main())
