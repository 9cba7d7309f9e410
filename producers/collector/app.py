"""Routes of the collector. `create_app(settings)` is the whole service but for the socket.

A request: 1 a slot is taken, or 429; 2 the body is read within limits, while it holds a slot of its key and of its address;
3 the write key gives the tenant, before 2 where it comes as Basic auth, else 2 and 3 have to find one of a few slots; 4 each
event is admitted or refused; 5 events and dead letters are sent, and acknowledged, but for those of whom the list of
erasures says that nothing is taken: it is read whole before anything is; 6 the answer. A crash before 6 leaves the client
without an answer: it sends again under the same messageIds.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple, Protocol

import msgspec
import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from producers import dead_letters, tracker
from producers.collector import openapi
from producers.collector.admission import Admitted, Arrival, NotAdmitted, admit, complaint, without
from producers.collector.broker import Broker, Record, Unavailable
from producers.collector.dialects import DIALECTS, Dialect
from producers.collector.metrics import Metrics
from producers.collector.rates import Rates
from producers.collector.regulations import SUBJECTS_MAX, Regulation, Status, erasures
from producers.privacy import Privacy
from schemas import topics
from schemas.dead_letter import Source
from schemas.dialects import DialectError
from schemas.erasure import Erasure
from schemas.events import EventType, key
from stream.adapters.kafka.erasures import Erasures
from stream.http import body, keys, scraping, server
from stream.http.answers import Json, Refused, invalid
from stream.http.cross_origin import CrossOrigin
from stream.http.slots import RETRY_AFTER_S, Shares, Slots
from stream.settings import Settings
from stream.tracing import port as tracing
from stream.tracing.port import Headers

INFLIGHT_MAX = 512  # requests at once: 250 MB of full batches at worst
UNKNOWN_MAX = INFLIGHT_MAX // 8  # … of them whose key is not known yet: who has none keeps out nobody who shows theirs first
OF_KEY_MAX = INFLIGHT_MAX // 4  # … whose body is not there yet, by key, and by address: slow bodies hold up who sends them
OF_ADDRESS_MAX = UNKNOWN_MAX // 2
ANY_ORIGIN = ("*",)
RECEIPTS_MAX = 10_000  # that can be asked for, some 20 MB; all are on the topic

ENDPOINTS: dict[str, EventType | None] = {
    "track": "track", "identify": "identify", "page": "page", "screen": "screen", "group": "group", "alias": "alias",
    "batch": None,
}

log = structlog.get_logger("collector")


class Envelope(msgspec.Struct, rename="camel"):
    """The parts of a body that are read before its events are."""

    batch: list[msgspec.Raw] | msgspec.UnsetType = msgspec.UNSET
    write_key: Any = None
    sent_at: Any = None


class Sender(NamedTuple):
    """Who sends, by the write key that was found."""

    tenant: str
    key: str  # its hash


class Acknowledges(Protocol):
    """The port to Kafka: `Broker`, or a fake in tests."""

    async def send(self, records: Sequence[Record]) -> None: ...

    async def ready(self) -> str | None: ...


class Collector:
    """Handlers of one app; holds what they share."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings.collector
        self.metrics, self._scraped = Metrics(), settings.metrics
        self.tracing = tracing.start(settings, "collector", self.metrics.registry)
        self._events = topics.EVENTS.name(settings.kafka.topic_prefix)
        self._dead_letters = topics.DEAD_LETTERS.name(settings.kafka.topic_prefix)
        self._erasures = topics.ERASURES.name(settings.kafka.topic_prefix)
        self._kafka, self._skew_max_ms = settings.kafka, settings.personalize.skew_max_ms
        self.slots, self.unknown = Slots(INFLIGHT_MAX), Slots(UNKNOWN_MAX)
        self.of_key = Shares(OF_KEY_MAX, "unfinished requests of this key")
        self.of_address = Shares(OF_ADDRESS_MAX, "unfinished requests from this address")
        self.broker: Acknowledges | None = None
        self.privacy = Privacy(settings.privacy)
        self._receipts: dict[str, Erasure] = {}  # by id of the request
        self.erasures = Erasures(settings, self._on_erasure)
        self._reading: asyncio.Task[None] | None = None  # the list for the first time
        forgotten_at_once_max = SUBJECTS_MAX * max(1, len(settings.privacy.pseudonym_keys))
        self.rates = Rates(self.settings, forgotten_at_once_max, time.monotonic)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        written = (self._events, self._dead_letters, self._erasures)
        broker = Broker(self._kafka, written, self.settings.ack_timeout_ms, self.metrics)
        broker.start()
        self.erasures.start()
        self._reading = asyncio.create_task(self.erasures.ready(), name="reading the list of erasures")
        self.broker = broker
        try:
            yield
        finally:
            self._reading.cancel()
            await self.erasures.stop()
            await broker.stop()

    def _on_erasure(self, _: Any, erasure: Erasure) -> None:
        if erasure.receipt is not None or erasure.user_id is not None:
            self._receipts[erasure.erasure_id] = msgspec.structs.replace(erasure, user_id=None)
            if len(self._receipts) > RECEIPTS_MAX:
                del self._receipts[next(iter(self._receipts))]

    def endpoint(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        """The handler of one kind of call."""
        async def handle(request: Request) -> Response:
            response = await self._guarded(partial(self._take, request, name))
            self.metrics.requests.labels(name, str(response.status_code)).inc()
            return response

        return handle

    async def _guarded(self, work: Callable[[], Awaitable[Response]]) -> Response:
        try:
            with self.slots.one(), self.metrics.inflight.track_inprogress():
                return await work()
        except Refused as refused:
            if refused.status == 429:
                self.metrics.limited.labels(refused.code).inc()
            return refused.response()
        except Unavailable as error:
            return Refused(503, "kafka_unavailable", str(error), retry_after_s=RETRY_AFTER_S).response()

    @contextlib.contextmanager
    def _unfinished(self, request: Request, key: str | None) -> Iterator[None]:
        """While a body is waited for. `key`: the hash of the sender's, if it is known. Raises Refused 429."""
        with contextlib.ExitStack() as held:
            held.enter_context(self.unknown.one() if key is None else self.of_key.one(key))
            if self.settings.behind_tls and "x-forwarded-for" in request.headers:  # else all come from the proxy's address
                held.enter_context(self.of_address.one(body.address(request, behind_tls=True)))
            yield

    def _sender(self, key: str | None) -> Sender:
        """Raises Refused 401."""
        return Sender(keys.tenant_of(key, self.settings.write_keys), keys.hashed(key or ""))

    def _sender_by_header(self, request: Request) -> Sender | None:
        """None where the key comes some other way; raises Refused 401."""
        basic = body.basic_key(request)
        return None if basic is None else self._sender(basic)

    async def _take(self, request: Request, name: str) -> Response:
        sender = self._sender_by_header(request)
        is_batch = ENDPOINTS[name] is None
        limit = self.settings.batch_bytes_max if is_batch else self.settings.event_bytes_max
        with self._unfinished(request, sender and sender.key):
            raw = await body.read(request, limit, "The batch" if is_batch else "The event")
            envelope = _envelope(raw)
            sender = sender or self._sender(envelope.write_key if isinstance(envelope.write_key, str) else None)
        raws = self._batch(envelope) if is_batch else [raw]
        arrival = self._arrival(sender.tenant, ENDPOINTS[name], envelope.sent_at if is_batch else None)
        return _answer(await self._admit(raws, arrival, sender.key, f"collector:/v1/{name}"), is_batch)

    def dialect(self, dialect: Dialect) -> Callable[[Request], Awaitable[Response]]:
        """The handler of calls in another system's words."""
        async def handle(request: Request) -> Response:
            if request.method not in dialect.methods:  # HEAD comes with GET: who only looks is no event
                raise HTTPException(405, headers={"Allow": ", ".join(dialect.methods)})
            response = await self._guarded(partial(self._take_dialect, request, dialect))
            self.metrics.requests.labels(dialect.name, str(response.status_code)).inc()
            return response

        return handle

    async def _take_dialect(self, request: Request, dialect: Dialect) -> Response:
        sender = self._sender_by_header(request)
        at_once = request.method == "GET"  # whose address says it all
        with contextlib.nullcontext() if at_once else self._unfinished(request, sender and sender.key):
            try:
                said = await dialect.read(request, self.settings.batch_bytes_max)
                found = dialect.translate(said, request.query_params)
            except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
                raise invalid("", "json", f"The body cannot be read: {complaint(error).message}.") from error
            except DialectError as error:
                raise invalid(error.path, dialect.name, f"The body is not what {dialect.name} sends: {error}.") from error
            sender = sender or self._sender(found.key)
        self._check_count(len(found.events))
        raws = [msgspec.json.encode(one) for one in found.events]
        arrival = self._arrival(sender.tenant, None, found.sent_at)
        results = await self._admit(raws, arrival, sender.key, f"collector:{request.url.path}")
        accepted = sum(isinstance(one, Admitted) for one in results)
        return dialect.accepted(accepted) if accepted else _answer(results, is_batch=True)

    def _arrival(self, tenant: str, kind: EventType | None, sent_at: Any) -> Arrival:
        return Arrival(tenant=tenant, received_at=datetime.now(UTC), event_bytes_max=self.settings.event_bytes_max,
                       type=kind, sent_at=sent_at, privacy=self.privacy, skew_max_ms=self._skew_max_ms)  # fmt: skip

    async def _admit(
        self, raws: list[bytes], arrival: Arrival, write_key: str, endpoint: str
    ) -> list[Admitted | NotAdmitted]:
        """Steps 4 and 5."""
        results, tenant = [admit(item, arrival) for item in raws], arrival.tenant
        users = (one.key if isinstance(one, Admitted) else key(tenant, one.user) if one.user else None for one in results)
        self.rates.admit(tenant, write_key, users)
        await self._send(results, arrival, endpoint)
        return results

    def _batch(self, envelope: Envelope) -> list[bytes]:
        if envelope.batch is msgspec.UNSET or not envelope.batch:
            raise invalid("batch", "required", "a batch needs `batch`, an array of at least one event")
        self._check_count(len(envelope.batch))
        return [bytes(item) for item in envelope.batch]

    def _check_count(self, events: int) -> None:
        if events > self.settings.batch_events_max:
            raise Refused(413, "too_many_events",
                          f"The batch has {events} events, at most {self.settings.batch_events_max} are taken.")  # fmt: skip

    async def _knows_whom_to_forget(self) -> None:
        """Raises Unavailable before the list of erasures was read to its end: nothing must be taken without it. Behind the
        collector a user has the newest pseudonym only, and those they were erased under are told here or nowhere."""
        if self._reading is None:
            return
        if self._reading.done():
            self.erasures.check()
            return
        assert self.broker is not None, "requests come after startup"
        unread = f"The list of users of whom nothing may be taken, {self._erasures}, is not read yet."
        raise Unavailable(await self.broker.ready() or unread)

    async def _send(self, results: list[Admitted | NotAdmitted], arrival: Arrival, endpoint: str) -> None:
        """Everything acknowledged, events and dead letters alike, or Unavailable."""
        assert self.broker is not None, "requests come after startup"
        await self._knows_whom_to_forget()
        records, counted = [], []
        with self.tracing.sending(self._events, len(results)) as headers:
            for index, result in enumerate(results):
                if self._erased(result.whose, result.ts_ms):
                    counted.append("suppressed")  # the client is not told who is on the list; kept nowhere
                    continue
                if gone := [name for name, keys in result.beside.items() if self._erased(keys, result.ts_ms)]:
                    result = without(result, gone)
                if isinstance(result, NotAdmitted):
                    source = Source(topic=endpoint, partition=0, offset=index)
                    records.append(self._dead_letter(result, arrival, source, headers))
                    counted.append(result.messages[0].keyword)
                else:
                    records.append(Record(self._events, result.key, result.value, headers))
                    counted.append("accepted")
            await self.broker.send(records)
        for one in counted:
            self.metrics.events.labels(one).inc()

    def _erased(self, keys: Iterable[bytes], ts_ms: int) -> bool:
        """Whether nothing may be taken of whoever has, or had, one of these keys."""
        return any(self.erasures.covers(one, ts_ms) for one in keys)

    async def regulate(self, request: Request) -> Response:
        """`POST /v1/regulations`, with an admin key."""
        return await self._guarded(partial(self._regulate, request))

    async def _regulate(self, request: Request) -> Response:
        given = body.basic_key(request)
        tenant, admin_key = keys.tenant_of(given, self.settings.admin_keys, "admin"), keys.hashed(given or "")
        with self._unfinished(request, admin_key):
            raw = await body.read(request, self.settings.batch_bytes_max, "The request")
        try:
            asked = msgspec.json.decode(raw, type=Regulation)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            message = complaint(error)
            raise invalid(message.path, message.keyword, f"The request cannot be read: {message.message}.") from error
        await self._knows_whom_to_forget()
        answer, records = erasures(asked, tenant, datetime.now(UTC), self.privacy, self.erasures.suppresses)
        self.rates.regulate(tenant, admin_key, len(records))
        assert self.broker is not None, "requests come after startup"
        with self.tracing.sending(self._erasures, len(records)) as headers:
            await self.broker.send([Record(self._erasures, record_key, value, headers) for record_key, value in records])
        return Json(answer, status_code=202)

    async def regulation(self, request: Request) -> Response:
        """`GET /v1/regulations/{id}`, with an admin key of its tenant."""
        return await self._guarded(partial(self._regulation, request))

    async def _regulation(self, request: Request) -> Response:
        tenant = keys.tenant_of(body.basic_key(request), self.settings.admin_keys, "admin")
        found = self._receipts.get(request.path_params["regulate_id"])
        if found is None or found.tenant != tenant:
            raise Refused(404, "not_found", "No such request is known here; one that was just made takes a moment.")
        return Json(Status(
            regulate_id=found.erasure_id, status="RUNNING" if found.receipt is None else "FINISHED", receipt=found.receipt,
            signature=found.signature,
        ))  # fmt: skip

    def _dead_letter(self, refused: NotAdmitted, arrival: Arrival, source: Source, headers: Headers) -> Record:
        """Of what may not be kept nothing tells whose it was: no key, no trace, and no id that is made of it."""
        kept = bool(refused.payload)
        letter = dead_letters.dead_letter(
            tenant=arrival.tenant, kind=refused.kind, messages=refused.messages, payload=refused.payload, source=source,
            at=arrival.received_at, told_by=None if kept else uuid.uuid4().bytes,
        )
        return Record(self._dead_letters, key(arrival.tenant, refused.user if kept else ""), dead_letters.encode(letter),
                      headers if kept else [])  # fmt: skip

    async def live(self, request: Request) -> Response:
        return Json({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        assert self.broker is not None, "requests come after startup"
        try:
            await self._knows_whom_to_forget()
            reason = await self.broker.ready()
        except Unavailable as error:
            reason = str(error)
        if reason is None:
            return Json({"status": "ok"})
        return Refused(503, "kafka_unavailable", reason, retry_after_s=RETRY_AFTER_S).response()

    async def prometheus(self, request: Request) -> Response:
        if (refused := scraping.refused_of(request, self._scraped, behind_tls=self.settings.behind_tls)) is not None:
            return refused.response()
        return Response(generate_latest(self.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _envelope(raw: bytes) -> Envelope:
    try:
        return msgspec.json.decode(raw, type=Envelope)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        message = complaint(error)
        raise invalid(message.path, message.keyword, f"The body cannot be read: {message.message}.") from error


def _answer(results: list[Admitted | NotAdmitted], is_batch: bool) -> Response:
    """200 when an event was accepted; 400 when none was. Refused events are listed either way, and kept."""
    refused = [(index, result) for index, result in enumerate(results) if isinstance(result, NotAdmitted)]
    if len(refused) == len(results):
        first = refused[0][1]
        messages = [
            msgspec.structs.replace(message, path=f"batch[{index}].{message.path}".rstrip(".") if is_batch else message.path)
            for index, result in refused for message in result.messages
        ]
        return Refused(400, "invalid_event", f"No event was accepted: {first.messages[0].message}.", messages).response()
    if not is_batch:
        return Json({"success": True, "messageId": results[0].message_id})
    rejected = [
        {"index": index, "messageId": result.message_id, "messages": result.messages} for index, result in refused
    ]
    return Json({"success": True, "accepted": len(results) - len(refused), "rejected": rejected})


def create_app(settings: Settings) -> Starlette:
    """The ASGI app; its lifespan connects to Kafka in the background, so it starts without it and answers 503."""
    collector = Collector(settings)
    document = openapi.document(settings.collector)
    page = openapi.page_of(document)

    async def tracker_js(request: Request) -> Response:
        return Response(tracker.source(), media_type="text/javascript", headers={"Cache-Control": "public, max-age=3600"})

    async def openapi_json(request: Request) -> Response:
        return Json(document)

    async def docs(request: Request) -> Response:
        return HTMLResponse(page)

    async def root(request: Request) -> Response:
        return RedirectResponse("/docs")

    calls = {name: name for name in ENDPOINTS} | openapi.ALIASES
    for_pages = [Route(f"/v1/{path}", collector.endpoint(name), methods=["POST"]) for path, name in calls.items()]
    for_pages += [Route(path, collector.dialect(one), methods=[*one.methods]) for path, one in DIALECTS.items()]
    for_pages.append(Route("/clickwake.js", tracker_js))
    routes = [
        *for_pages,
        Route("/v1/regulations", collector.regulate, methods=["POST"]),
        Route("/v1/regulations/{regulate_id}", collector.regulation, methods=["GET"]),
        Route("/health/live", collector.live), Route("/health/ready", collector.ready),
        Route("/metrics", collector.prometheus), Route("/openapi.json", openapi_json), Route("/docs", docs),
        Route("/", root),
    ]
    origins = settings.collector.cors_origins
    cors = Middleware(CrossOrigin, {route.path for route in for_pages}, ANY_ORIGIN if origins is None else origins,
                      {path for path, one in DIALECTS.items() if one.name.startswith("snowplow")})  # fmt: skip
    app = Starlette(
        routes=routes, middleware=[cors, *collector.tracing.middleware()], lifespan=collector.lifespan,
        exception_handlers={HTTPException: server.http_error, Exception: server.unexpected},
    )
    app.state.collector = collector
    return app
