"""The shop's server: its page, and the few questions that the page may ask the read API."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from stream.http import scraping, server
from stream.http.answers import Refused
from stream.http.keys import HASHED
from stream.http.measured import SECONDS, Measured
from stream.http.quoted import QuotedRoute, quoted_path
from stream.settings import Settings, WriteKeys

STATIC = Path(__file__).with_name("static")
TIMEOUT_S = 5.0
ASKED = ("/api/v1/recommendations/{user}", "/api/v1/users/{user}", "/api/v1/why/{user}/{item}")
PASSED_ON = ("content-type", "etag", "retry-after")  # of an answer


class NoKey(RuntimeError):
    """The shop has no key that it could use."""


def plain_key(keys: dict[str, WriteKeys], tenant: str, what: str) -> str:
    """A key of the tenant that the settings hold as it is. Raises NoKey."""
    several = keys.get(tenant, ())
    for key in (several,) if isinstance(several, SecretStr) else several:
        if not key.get_secret_value().startswith(HASHED):
            return key.get_secret_value()
    raise NoKey(f"the shop needs a {what} key of tenant {tenant!r} in the clear: settings hold none, or its hash only")


def create_app(settings: Settings) -> Starlette:
    """The ASGI app. Raises NoKey."""
    tenant = settings.shop.tenant
    read_key = plain_key(settings.api.read_keys, tenant, "read")
    config = {
        "collector": f"http://{settings.collector.host}:{settings.collector.port}",
        "writeKey": plain_key(settings.collector.write_keys, tenant, "write"),
    }
    told = msgspec.json.encode(config).decode().replace("<", "\\u003c")  # no key may end the script it stands in
    page = (STATIC / "index.html").read_text().replace("{{config}}", told)
    api = httpx.AsyncClient(base_url=f"http://{settings.api.host}:{settings.api.port}", auth=(read_key, ""),
                            timeout=TIMEOUT_S, trust_env=False)  # fmt: skip

    async def index(request: Request) -> Response:
        return HTMLResponse(page, headers={"Cache-Control": "no-store"})

    async def ask(request: Request) -> Response:
        """A question as it is, with the read key; a shop of real customers would ask for the one of its session only."""
        try:
            answer = await api.get(quoted_path(request.scope).removeprefix("/api"), params=request.query_params)
        except httpx.HTTPError as error:
            return Refused(503, "api_unavailable", f"The read API does not answer: {error!r}", retry_after_s=1).response()
        headers = {name: answer.headers[name] for name in PASSED_ON if name in answer.headers}
        return Response(answer.content, answer.status_code, headers)

    registry = CollectorRegistry()
    requests = Counter("clickwake_shop_requests", "Requests by route and status", ["endpoint", "status"], registry=registry)
    seconds = Histogram("clickwake_shop_request_seconds", "From the request to the end of its answer", ["endpoint"],
                        registry=registry, buckets=SECONDS)  # fmt: skip

    async def metrics(request: Request) -> Response:
        if (refused := scraping.refused_of(request, settings.metrics)) is not None:
            return refused.response()
        return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await api.aclose()

    return Starlette(
        routes=[
            Route("/", index), *(QuotedRoute(path, ask) for path in ASKED), Route("/metrics", metrics),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(Measured, requests=requests, seconds=seconds)], lifespan=lifespan,
        exception_handlers={HTTPException: server.http_error, Exception: server.unexpected},
    )  # fmt: skip
