"""Requests in figures, by the route that answers them: a path may hold an id, and anybody may ask for any."""

from __future__ import annotations

import time

from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
NO_ROUTE = "other"


class Measured:
    """ASGI: counts each request in `requests` (endpoint, status), and observes in `seconds` (endpoint) how long it took to
    the end of its answer. What no route has taken is `other`; one that ended without an answer is a 500."""

    def __init__(self, app: ASGIApp, requests: Counter, seconds: Histogram) -> None:
        self._app, self._requests, self._seconds = app, requests, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, started = 500, time.perf_counter()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            endpoint = getattr(scope.get("route"), "path", NO_ROUTE)
            self._requests.labels(endpoint, str(status)).inc()
            self._seconds.labels(endpoint).observe(time.perf_counter() - started)
