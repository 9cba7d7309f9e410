"""Ids in paths: an id may hold a `/`, so a route is matched before its segments are unquoted."""

from __future__ import annotations

from urllib.parse import quote, unquote

from starlette.routing import Match, Route
from starlette.types import Scope


def quoted_path(scope: Scope) -> str:
    """The path as it was asked for: in `/users/a%2Fb` an id is one segment, in the unquoted one it would be two. ASGI lets a
    server leave it out, and a router asks about other paths, too, before it redirects.

    >>> quoted_path({"path": "/users/a/b", "raw_path": b"/users/a%2Fb"}), quoted_path({"path": "/users/50%"})
    ('/users/a%2Fb', '/users/50%25')
    """
    path: str = scope["path"]
    raw: bytes = scope.get("raw_path") or b""
    return raw.decode("ascii") if unquote(raw) == path else quote(path)


class QuotedRoute(Route):
    """A route whose parameters are whole segments, unquoted after the path has matched."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, found = super().matches({**scope, "path": quoted_path(scope)})
        if match is not Match.NONE:
            found["path_params"] = {name: unquote(value) for name, value in found["path_params"].items()}
        return match, found
