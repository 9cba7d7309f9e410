"""CORS for the paths that pages' browsers use, and for nothing else: what asks for an admin key is no page's business."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

PREFLIGHT_S = 86_400


class CrossOrigin:
    """Middleware. `origins` are exact, or `*`; other paths than `paths` say nothing of origins."""

    def __init__(self, app: ASGIApp, paths: Collection[str], origins: Sequence[str]) -> None:
        self._app, self._paths = app, {path.rstrip("/") for path in paths}
        self._answering = CORSMiddleware(app, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"],
                                         expose_headers=["Retry-After"], max_age=PREFLIGHT_S)  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        for_pages = scope["type"] == "http" and scope["path"].rstrip("/") in self._paths
        await (self._answering if for_pages else self._app)(scope, receive, send)
