"""The Python client: Segment's calls, sent in batches by a thread of their own.

    with Client("demo-write-key", "http://127.0.0.1:8080") as client:
        client.track("u1", "Product Viewed", {"product_id": "85123A"})

A call only puts the event into a queue. It is sent until the collector has acknowledged it, always under the same messageId,
so it counts once. `flush` waits for that; `close`, and the end of a `with` block, too, ten seconds and as long as a request
under way then may still take: what is left is `client.unsent`, and the block raises `Unsent`, so that it can be sent later.

Only a 400, or a 413 for one event alone, is the collector's word that it will never take what was sent. Every other answer,
a 401 while a key is being changed as well as a proxy's page with a 200, says nothing of the events: they are sent again.
"""

from __future__ import annotations

import random
import threading
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Any, Literal, NamedTuple, Self

import httpx
import msgspec
import structlog

QUEUE_MAX = 10_000
AT_ONCE_MAX = 100
BATCH_BYTES_MAX = 450_000  # the collector takes 500 KiB
WAIT_S = 0.1  # for others to come along
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.5, 60.0
RETRY_AFTER_MAX_S = 3600.0  # a date of a wrong clock, or a year, must not keep events here for good
TIMEOUT_S = 15.0
JSON = {"Content-Type": "application/json"}

log = structlog.get_logger("clickwake.client")


class _Waiting(NamedTuple):
    """An event, and the bytes that it is sent as."""

    event: dict[str, Any]
    raw: bytes


class _Rejected(msgspec.Struct):
    index: int  # in the batch
    messages: list[Any]


class _Acknowledged(msgspec.Struct):
    """The collector's answer to a batch of which it has taken all but `rejected`."""

    success: Literal[True]
    rejected: list[_Rejected] = []


class QueueFull(RuntimeError):
    """The collector has not taken anything for so long that QUEUE_MAX events wait; this one was not taken."""


class Unsent(RuntimeError):
    """The collector was away, or did not know the key, when the client ended. `events` were not acknowledged; each has its
    id, to be sent again."""

    def __init__(self, events: list[dict[str, Any]], host: str) -> None:
        super().__init__(f"{len(events)} events were not acknowledged by {host}: is the collector up, and the key right?")
        self.events = events


class Client:
    """Calls may come from any thread. `on_refused(event, reason)` hears, in the sending thread, of events that the collector
    will never take; an error of its own is logged."""

    def __init__(
        self, write_key: str, host: str, *, queue_max: int = QUEUE_MAX,
        on_refused: Callable[[dict[str, Any], str], None] | None = None, transport: httpx.BaseTransport | None = None,
    ) -> None:  # fmt: skip
        self._http = httpx.Client(base_url=host, auth=(write_key, ""), timeout=TIMEOUT_S, transport=transport)
        self._queue: deque[_Waiting] = deque()
        self._queue_max, self._on_refused = queue_max, on_refused or _say
        self._changed = threading.Condition()
        self._at_once = AT_ONCE_MAX  # fewer after a 413
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="clickwake-client", daemon=True)
        self._thread.start()

    def track(self, user_id: str, event: str, properties: Mapping[str, Any] | None = None, **fields: Any) -> str:
        """Something the user did; returns the messageId. `fields`: any of Segment's common fields. Raises QueueFull, and
        TypeError for a value that JSON has no form for."""
        return self._put("track", userId=user_id, event=event, properties=dict(properties or {}), **fields)

    def identify(self, user_id: str, traits: Mapping[str, Any] | None = None, **fields: Any) -> str:
        """Who the user is; with `anonymousId` among the fields, what they did before they said so is theirs."""
        return self._put("identify", userId=user_id, traits=dict(traits or {}), **fields)

    def page(self, user_id: str, name: str = "", properties: Mapping[str, Any] | None = None, **fields: Any) -> str:
        return self._put("page", userId=user_id, name=name, properties=dict(properties or {}), **fields)

    def group(self, user_id: str, group_id: str, traits: Mapping[str, Any] | None = None, **fields: Any) -> str:
        return self._put("group", userId=user_id, groupId=group_id, traits=dict(traits or {}), **fields)

    def alias(self, user_id: str, previous_id: str, **fields: Any) -> str:
        """`previous_id` and `user_id` are one person."""
        return self._put("alias", userId=user_id, previousId=previous_id, **fields)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until everything is acknowledged or refused; False after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue, timeout_s)

    @property
    def unsent(self) -> list[dict[str, Any]]:
        """Events that wait for their answer, oldest first: also those that are being sent."""
        with self._changed:
            return [one.event for one in self._queue]

    def close(self, timeout_s: float = 10.0) -> bool:
        """Flush and end; False when something was left after `timeout_s` and what was under way then: `unsent`."""
        self.flush(timeout_s)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(TIMEOUT_S)
        return not self.unsent

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        if events := self.unsent:
            left = Unsent(events, str(self._http.base_url))
            if kind is None:
                raise left
            log.error("not sent", why=str(left), events=left.events)

    def _put(self, kind: str, **fields: Any) -> str:
        now = datetime.now(UTC).isoformat()
        event = {"type": kind, "messageId": f"p-{uuid.uuid4()}", "originalTimestamp": now} | fields
        one = _Waiting(event, msgspec.json.encode(event))
        with self._changed:
            if self._closing:
                raise RuntimeError("the client is closed")
            if len(self._queue) >= self._queue_max:
                raise QueueFull(f"{self._queue_max} events wait for {self._http.base_url}: is the collector up, and the "
                                "key right?")  # fmt: skip
            self._queue.append(one)
            self._changed.notify_all()
        return str(event["messageId"])

    def _run(self) -> None:
        """The sending thread: nothing else takes events out of the queue, and only once they have their answer."""
        backoff_s = BACKOFF_FIRST_S
        with self._http:
            while batch := self._take():
                again_s = self._send(batch, backoff_s * random.uniform(0.5, 1.0))
                backoff_s = min(2 * backoff_s, BACKOFF_MAX_S) if again_s else BACKOFF_FIRST_S
                with self._changed:
                    if again_s is None:
                        for _ in batch:
                            self._queue.popleft()
                        self._changed.notify_all()
                    else:
                        self._changed.wait_for(lambda: self._closing, again_s)

    def _take(self) -> list[_Waiting]:
        """The next batch, which stays in the queue; empty once the client is closed."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._queue) or self._closing)
            self._changed.wait_for(lambda: len(self._queue) >= self._at_once or self._closing, WAIT_S)
            batch: list[_Waiting] = []
            if self._closing:
                return batch
            size = 0
            for one in islice(self._queue, self._at_once):
                size += len(one.raw)
                if batch and size > BATCH_BYTES_MAX:
                    break
                batch.append(one)
            return batch

    def _send(self, batch: list[_Waiting], pause_s: float) -> float | None:
        """None once there is an answer for every event, else after how many seconds to send again: `pause_s`, or what the
        collector asks for, or 0 when it is to be tried in smaller parts."""
        try:
            body = {"sentAt": datetime.now(UTC), "batch": [msgspec.Raw(one.raw) for one in batch]}
            answer = self._http.post("/v1/batch", content=msgspec.json.encode(body), headers=JSON)
        except httpx.HTTPError as error:
            log.warning("not sent", events=len(batch), why=repr(error), again_in_s=round(pause_s, 1))
            return pause_s
        if answer.status_code == 413 and len(batch) > 1:
            self._at_once = len(batch) // 2
            return 0.0
        refused = _refused(answer, batch)
        if refused is None:
            again_s = max(_told_s(answer.headers.get("Retry-After", "")), pause_s)
            log.warning("not taken", events=len(batch), status=answer.status_code, answer=answer.text[:500],
                        again_in_s=round(again_s, 1))  # fmt: skip
            return again_s
        self._at_once = min(AT_ONCE_MAX, 2 * self._at_once)
        for event, reason in refused:
            try:
                self._on_refused(event, reason)
            except Exception:
                log.exception("on_refused failed", message_id=event["messageId"], reason=reason)
        return None


def _refused(answer: httpx.Response, batch: list[_Waiting]) -> list[tuple[dict[str, Any], str]] | None:
    """Events that will never be taken, each with why; None when this is no answer for every event of the batch."""
    if answer.status_code in (400, 413):
        return [(one.event, answer.text[:500]) for one in batch]
    if not answer.is_success:
        return None
    try:
        said = msgspec.json.decode(answer.content, type=_Acknowledged)
        return [(batch[one.index].event, str(one.messages)) for one in said.rejected]
    except (msgspec.MsgspecError, UnicodeError, RecursionError, IndexError):  # a 200 that is not the collector's
        return None


def _told_s(retry_after: str) -> float:
    """How long a Retry-After asks to wait, which is a number of seconds or a date (RFC 9110, 10.2.3); 0 for anything else.

    >>> _told_s("7"), _told_s("Wed, 21 Oct 2015 07:28:00 GMT"), _told_s("soon"), _told_s("9" * 400)
    (7.0, 0.0, 0.0, 3600.0)
    """
    try:
        wait_s = (float(retry_after) if retry_after.isdecimal()
                  else (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())  # fmt: skip
    except (ValueError, TypeError, OverflowError):  # no date, one without a zone, or a zone that is none
        return 0.0
    return min(max(wait_s, 0.0), RETRY_AFTER_MAX_S)


def _say(event: dict[str, Any], reason: str) -> None:
    log.error("refused", message_id=event["messageId"], type=event["type"], reason=reason,
              next="the collector keeps it as a dead letter, if it could be read")  # fmt: skip
