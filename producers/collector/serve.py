"""The collector's process."""

from __future__ import annotations

from producers.collector.app import create_app
from stream.http import keys, scraping, server
from stream.logs import configure
from stream.settings import LOOPBACK, Collector, Settings, load

DRAIN_MARGIN_S = 5  # beyond the acknowledgement's own timeout


def refusal(own: Collector) -> str | None:
    """Why the collector may not listen where it is told to, and what to do; None when it may."""
    why = keys.refusal("collector", "write", own.host, own.behind_tls, own.write_keys, Collector().write_keys)
    if why is None and own.admin_keys:
        why = keys.refusal("collector", "admin", own.host, own.behind_tls, own.admin_keys, {})
    if why is None and own.cors_origins is None and own.host not in LOOPBACK:
        return ("which pages' browsers may send is not said: name their origins with "
                """CLICKWAKE_COLLECTOR__CORS_ORIGINS='["https://shop.example"]'; '["*"]' is any page, '[]' none""")
    return why


def main(host: str | None = None, port: int | None = None) -> int:
    """Serves until SIGTERM or SIGINT, finishes the requests in flight, returns the exit code."""
    settings: Settings = load()
    configure(settings)
    changes = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = settings.model_copy(update={"collector": settings.collector.model_copy(update=changes)})
    own = settings.collector
    drain_s = own.ack_timeout_ms // 1000 + DRAIN_MARGIN_S
    why_not = refusal(own) or scraping.refusal(own.host, settings.metrics)
    return server.serve("collector", settings, own.host, own.port, why_not, create_app, drain_s)
