"""Routes of the read API. `create_app(settings)` is the whole service but for the socket."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from stream.adapters.clock import WallClock
from stream.adapters.kafka.decisions import DecisionLog
from stream.adapters.kafka.erasures import Erasures
from stream.adapters.kafka.offers import OffersReader
from stream.adapters.kafka.replica import StateReplica
from stream.adapters.kafka.serving_readers import ServingReaders
from stream.api import openapi
from stream.api.answers import AS_OF, STALE, Answer, Explained, Items, User
from stream.api.metrics import Metrics
from stream.api.nearest import Nearest
from stream.api.offers import AskOffer, AskOfferFor, OfferDesk
from stream.api.requests import Ask, AskForMany, AskWhy, Neighbors, Nothing, ToRank, from_body, from_query
from stream.api.service import Service
from stream.api.texts import TextFeatures
from stream.endings import only_when_asked
from stream.http import body, keys, page, scraping, server
from stream.http.answers import Json, Refused
from stream.http.quoted import QuotedRoute
from stream.http.rates import Buckets, Wanted, take
from stream.http.slots import RETRY_AFTER_S, Shares, Slots
from stream.settings import Settings
from stream.tracing import port as tracing

BODY_BYTES_MAX = 256 * 1024
DRAIN_S = 5.0  # for decisions that were noted

T = TypeVar("T", bound=msgspec.Struct)
Handler = Callable[[Request, str], Awaitable[Response]]

log = structlog.get_logger("api")


class Api:
    """Handlers of one app; holds what they share."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics, self._scraped = Metrics(), settings.metrics
        self.ranking = ServingReaders(settings, self.metrics.releases)
        self.replica = StateReplica(settings, "api")
        self.tracing = tracing.start(settings, "api", self.metrics.registry)
        self.decisions = DecisionLog(settings, self.tracing)
        self.erasures = Erasures(settings)
        self.service = Service(settings, self.ranking, self.replica, self.decisions, WallClock(), self.erasures)
        self.learned = OffersReader(settings)
        self.offers = OfferDesk(settings.offers_file, self.learned, self.decisions, WallClock(), self.service.p_no_return,
                                TextFeatures(settings, self.ranking.serving))
        most, per_s = settings.api.inflight_max, settings.api.key_answers_per_s_max
        self._slots = Slots(most)
        self._unfinished = Shares(max(1, most // 4), "unfinished requests of this key")  # so nobody holds all by slow bodies
        self._read_keys = Buckets(per_s, max(math.ceil(per_s), settings.api.users_max), "answers")
        self._reason: str | None = "It is reading what the workers have written."
        self._following: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._following = asyncio.create_task(self._follow(), name="following")
        try:
            yield
        finally:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.decisions.drain(), DRAIN_S)
            self._following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._following
            await self.learned.stop()
            await self.erasures.stop()
            await self.replica.close()

    async def _follow(self) -> None:
        """Until cancelled. What cannot be gone on with ends the process: a replica that stands still must not answer."""
        try:
            await self._read()
        except* Exception as errors:
            log.error("ended", why=str(errors.exceptions[0]), exc_info=errors.exceptions[0])
            os._exit(1)  # uvicorn would go on serving; whoever supervises starts the process again

    @only_when_asked
    async def _read(self) -> None:
        async with asyncio.TaskGroup() as group:
            self.ranking.start(group)
            for reader in (self.learned, self.erasures):
                reader.start()
                group.create_task(reader.wait_failed())
            group.create_task(only_when_asked(self.decisions.run)())
            await self.replica.open()
            group.create_task(only_when_asked(self.replica.follow)())
            await asyncio.gather(self.ranking.ready(), self.learned.ready(), self.erasures.ready())
            self._reason = None
            log.info("ready")

    def endpoint(self, name: str, handle: Handler) -> Callable[[Request], Awaitable[Response]]:
        """A handler that needs a read key, with its limits and counters."""
        async def guarded(request: Request) -> Response:
            started = time.perf_counter()
            response = await self._guarded(request, handle)
            self.metrics.requests.labels(name, str(response.status_code)).inc()
            self.metrics.seconds.labels(name).observe(time.perf_counter() - started)
            return response

        return guarded

    async def _guarded(self, request: Request, handle: Handler) -> Response:
        try:
            with self._slots.one(), self.metrics.inflight.track_inprogress():
                tenant = keys.tenant_of(body.basic_key(request), self.settings.api.read_keys, "read")
                if self._reason is not None:
                    raise Refused(503, "not_ready", self._reason, retry_after_s=RETRY_AFTER_S)
                self._admit(request, tenant, 1)
                return await handle(request, tenant)
        except Refused as refused:
            if refused.status == 429:
                self.metrics.limited.labels(refused.code).inc()
            return refused.response()

    def _admit(self, request: Request, tenant: str, answers: int) -> None:
        """Raises Refused 429 where the key has had more than its rate."""
        take([Wanted(self._read_keys, _key(request), answers, f"A read key of {tenant} asks for")], time.monotonic())

    async def _posted(self, request: Request, kind: type[T]) -> T:
        """What is asked by a body, and by nothing else. Raises Refused."""
        from_query(request.query_params, Nothing)
        with self._unfinished.one(_key(request)):
            raw = await body.read(request, BODY_BYTES_MAX, "The request")
        return from_body(raw, kind)

    async def recommendations(self, request: Request, tenant: str) -> Response:
        """`GET /v1/recommendations/{user}`"""
        ask = from_query(request.query_params, Ask)
        return _answered(request, await self.service.recommend(tenant, request.path_params["user"], ask))

    async def recommendations_of_many(self, request: Request, tenant: str) -> Response:
        """`POST /v1/recommendations`"""
        ask = await self._posted(request, AskForMany)
        self.service.check_count(ask.users)
        self._admit(request, tenant, len(ask.users) - 1)
        return Json({"recommendations": await self.service.recommend_many(tenant, ask.users, ask)})

    async def rank(self, request: Request, tenant: str) -> Response:
        """`POST /v1/rank`"""
        ask = await self._posted(request, ToRank)
        return Json(await self.service.rank(tenant, ask))

    async def offer(self, request: Request, tenant: str) -> Response:
        """`GET /v1/offers/{user}`"""
        return await self._offered(tenant, request.path_params["user"], from_query(request.query_params, AskOffer))

    async def offer_for(self, request: Request, tenant: str) -> Response:
        """`POST /v1/offers`"""
        ask = await self._posted(request, AskOfferFor)
        return await self._offered(tenant, ask.user_id, ask)

    async def _offered(self, tenant: str, user: str, ask: AskOffer) -> Response:
        offered = await self.offers.offer(self.service.person(tenant, user), ask)
        answer = self.service.offered(user, offered)
        return Json(answer, headers={"Cache-Control": "no-store"})  # what is seen is a decision, and counts as one

    async def user(self, request: Request, tenant: str) -> Response:
        """`GET /v1/users/{user}`"""
        from_query(request.query_params, Nothing)
        return _answered(request, await self.service.user(tenant, request.path_params["user"]))

    async def nearest(self, request: Request, tenant: str) -> Response:
        """`GET /v1/users/{user}/nearest`"""
        ask = from_query(request.query_params, Nearest)
        return _answered(request, await self.service.nearest(tenant, request.path_params["user"], ask))

    async def neighbors(self, request: Request, tenant: str) -> Response:
        """`GET /v1/items/{item}/neighbors`"""
        ask = from_query(request.query_params, Neighbors)
        return _answered(request, self.service.neighbors(tenant, request.path_params["item"], ask))

    async def why(self, request: Request, tenant: str) -> Response:
        """`GET /v1/why/{user}/{item}`"""
        ask, path = from_query(request.query_params, AskWhy), request.path_params
        return _answered(request, await self.service.why(tenant, path["user"], path["item"], ask, ask.reasons))

    async def live(self, request: Request) -> Response:
        return Json({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        if self._reason is None:
            return Json({"status": "ok", "stale_ms": self.replica.behind_ms()})
        return Refused(503, "not_ready", self._reason, retry_after_s=RETRY_AFTER_S).response()

    async def prometheus(self, request: Request) -> Response:
        if (refused := scraping.refused_of(request, self._scraped, behind_tls=self.settings.api.behind_tls)) is not None:
            return refused.response()
        self.metrics.stale_ms.set(self.replica.behind_ms())
        self.metrics.offers_stale_ms.set(self.learned.behind_ms())
        self.metrics.decisions.labels("sent").set(self.decisions.sent)
        self.metrics.decisions.labels("lost").set(self.decisions.lost)
        return Response(generate_latest(self.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _key(request: Request) -> str:
    """The hash of a request's read key."""
    return keys.hashed(body.basic_key(request) or "")


def _answered(request: Request, answer: Answer | Items | User | Explained) -> Response:
    """With a weak ETag: equal ones mean the same answer, but for how old it may be, which headers say. 304 where the client
    has it."""
    same: object = msgspec.structs.replace(answer, stale_ms=0)
    if isinstance(answer, Answer):  # its id stands for what was chosen, though scores change by the minute
        same = (answer.recommendation_id, [(one.item_id, one.item) for one in answer.items],
                [one.category for one in answer.categories])  # fmt: skip
    tag = f'W/"{hashlib.blake2b(msgspec.json.encode(same), digest_size=12).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache", STALE: str(answer.stale_ms)}
    if answer.as_of_ts is not None:
        headers[AS_OF] = msgspec.to_builtins(answer.as_of_ts)
    if tag in (one.strip() for one in request.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    return Json(answer, headers=headers)


def create_app(settings: Settings) -> Starlette:
    """The ASGI app; its lifespan follows Kafka in the background, so it starts without it and answers 503 until ready."""
    api = Api(settings)
    document = openapi.document(settings.api)
    docs_page = page.html_of(document, openapi.CURL)

    async def openapi_json(request: Request) -> Response:
        return Json(document)

    async def docs(request: Request) -> Response:
        return HTMLResponse(docs_page)

    async def root(request: Request) -> Response:
        return RedirectResponse("/docs")

    def route(path: str, name: str, handle: Handler, method: str = "GET") -> Route:
        return QuotedRoute(path, api.endpoint(name, handle), methods=[method])

    routes: list[Any] = [
        route("/v1/recommendations/{user}", "recommendations", api.recommendations),
        route("/v1/recommendations", "recommendations_of_many", api.recommendations_of_many, "POST"),
        route("/v1/rank", "rank", api.rank, "POST"),
        route("/v1/offers/{user}", "offer", api.offer),
        route("/v1/offers", "offer_for", api.offer_for, "POST"),
        route("/v1/users/{user}", "user", api.user),
        route("/v1/users/{user}/nearest", "nearest", api.nearest),
        route("/v1/items/{item}/neighbors", "neighbors", api.neighbors),
        route("/v1/why/{user}/{item}", "why", api.why),
        Route("/health/live", api.live), Route("/health/ready", api.ready), Route("/metrics", api.prometheus),
        Route("/openapi.json", openapi_json), Route("/docs", docs), Route("/", root),
    ]
    cors = Middleware(
        CORSMiddleware, allow_origins=list(settings.api.cors_origins), allow_methods=["GET", "POST"],
        allow_headers=["*"], expose_headers=["ETag", "Retry-After", STALE, AS_OF], max_age=86_400,
    )
    app = Starlette(
        routes=routes, middleware=[cors, *api.tracing.middleware()], lifespan=api.lifespan,
        exception_handlers={HTTPException: server.http_error, Exception: server.unexpected},
    )
    app.state.api = api
    return app
