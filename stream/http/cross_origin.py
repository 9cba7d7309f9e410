"""CORS for the paths that pages' browsers use, and for nothing else: what asks for an admin key is no page's business."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

PREFLIGHT_S = 86_400


class CrossOrigin:
    """Middleware. `origins` are exact, or `*`; other paths than `paths` say nothing of origins. To `credentialed`, some of
    the paths, browsers may send cookies: Snowplow's tracker has them do so by default, and no answer depends on it. They
    want the origin itself there, not `*` (Fetch standard, "CORS protocol and credentials")."""

    def __init__(
        self, app: ASGIApp, paths: Collection[str], origins: Sequence[str], credentialed: Collection[str] = ()
    ) -> None:  # fmt: skip
        said: dict[str, Any] = {"allow_methods": ["GET", "POST"], "allow_headers": ["*"], "expose_headers": ["Retry-After"],
                                "max_age": PREFLIGHT_S}  # fmt: skip
        each = {"allow_origin_regex": ".*"} if "*" in origins else {"allow_origins": origins}
        self._app = app
        self._answering = dict.fromkeys(_plain(paths), CORSMiddleware(app, allow_origins=origins, **said))
        self._answering |= dict.fromkeys(_plain(credentialed), CORSMiddleware(app, allow_credentials=True, **each, **said))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answering = self._answering.get(scope["path"].rstrip("/")) if scope["type"] == "http" else None
        await (answering or self._app)(scope, receive, send)


def _plain(paths: Collection[str]) -> set[str]:
    return {path.rstrip("/") for path in paths}
