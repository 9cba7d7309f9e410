"""`python -m clickwake.dashboard`: the dashboard of what runs here. Whoever may see it sees everybody of
their tenants, so beyond loopback it listens only behind TLS, and asks who is there."""

from __future__ import annotations

import signal
import sys
import time

import structlog
from nicegui import app, ui
from prometheus_client import Counter, Histogram

from clickwake.dashboard import pages
from clickwake.dashboard.accounts import Accounts, BadAccounts
from clickwake.dashboard.gate import Gate
from clickwake.dashboard.sessions import Sessions
from stream.adapters.health.metrics_port import served
from stream.http.measured import SECONDS, Measured
from stream.logs import configure
from stream.settings import LOOPBACK, Dashboard, load

log = structlog.get_logger()
REQUESTS = Counter("clickwake_dashboard_requests", "Requests by route and status", ["endpoint", "status"])
REQUEST_SECONDS = Histogram("clickwake_dashboard_request_seconds", "From the request to the end of its answer", ["endpoint"],
                            buckets=SECONDS)  # fmt: skip


def refusal(own: Dashboard, accounts: Accounts) -> str | None:
    """Why it may not listen where it is told to, and what to do; None when it may."""
    try:
        known = accounts.known()
    except BadAccounts as error:
        return str(error)
    if own.host in LOOPBACK:
        return None
    if not own.behind_tls:
        return (f"plain HTTP on {own.host} would carry passwords and people's data in the clear: put a proxy that ends TLS "
                "in front and say so with CLICKWAKE_DASHBOARD__BEHIND_TLS=true, or listen on 127.0.0.1")  # fmt: skip
    if not known:
        return f"nobody may sign in: {accounts.path.absolute()} has no users; `clickwake dashboard add-user NAME` adds one"
    return None


def main(host: str | None = None, port: int | None = None) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code."""
    settings = load()
    configure(settings)
    update = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    own = settings.dashboard.model_copy(update=update)
    accounts = Accounts(settings.accounts_file)
    if why := refusal(own, accounts):
        log.error("not_listening", host=own.host, why=why)
        return 1
    sessions = Sessions(accounts, own.idle_min * 60, time.monotonic)
    app.add_middleware(Gate, sessions=sessions, settings=own)
    app.add_middleware(Measured, requests=REQUESTS, seconds=REQUEST_SECONDS)  # around it: who is turned away counts, too
    pages.routes(settings, sessions)
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises the signal again after the drain: that is the end
        signal.signal(number, lambda *_: None)
    with served(settings, "dashboard", own.metrics_port) as run_file:
        run_file.say()
        ui.run(host=own.host, port=own.port, title="Clickwake", reload=False, show=False, show_welcome_message=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
