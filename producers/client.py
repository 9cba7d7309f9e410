"""The Python client: Segment's calls, sent in batches by a thread of their own.

    with Client("demo-write-key", "http://127.0.0.1:8080") as client:
        client.track("u1", "Product Viewed", {"product_id": "85123A"})

A call only puts the event into a queue. It is sent until the collector has acknowledged it, always under the same messageId,
so it counts once. `flush` waits for that; `close`, and the end of a `with` block, too, ten seconds at most: what is left
then is `client.unsent`, and the block raises `Unsent`, so that it can be kept and sent later.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self

import httpx
import msgspec
import structlog

QUEUE_MAX = 10_000
AT_ONCE_MAX = 100
BATCH_BYTES_MAX = 450_000  # the collector takes 500 KiB
WAIT_S = 0.1  # for others to come along
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.5, 60.0
TIMEOUT_S = 15.0
JSON = {"Content-Type": "application/json"}
RETRIED = (408, 429, 500, 502, 503, 504)

log = structlog.get_logger("clickwake.client")


class _Waiting(NamedTuple):
    """An event, and the bytes that it is sent as."""

    event: dict[str, Any]
    raw: bytes


class QueueFull(RuntimeError):
    """The collector has not taken anything for so long that QUEUE_MAX events wait; this one was not taken."""


class Unsent(RuntimeError):
    """The collector was away when the client ended. `events` were not acknowledged; each has its id, to be sent again."""

    def __init__(self, events: list[dict[str, Any]], host: str) -> None:
        super().__init__(f"{len(events)} events were not acknowledged by {host}: is the collector up?")
        self.events = events


class Client:
    """Calls may come from any thread. `on_refused(event, reason)` hears of events that the collector will never take."""

    def __init__(
        self, write_key: str, host: str, *, queue_max: int = QUEUE_MAX,
        on_refused: Callable[[dict[str, Any], str], None] | None = None, transport: httpx.BaseTransport | None = None,
    ) -> None:  # fmt: skip
        self._http = httpx.Client(base_url=host, auth=(write_key, ""), timeout=TIMEOUT_S, transport=transport)
        self._queue: deque[_Waiting] = deque()
        self._queue_max, self._on_refused = queue_max, on_refused or _say
        self._changed = threading.Condition()
        self._sending = 0
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
            return self._changed.wait_for(lambda: not self._queue and not self._sending, timeout_s)

    @property
    def unsent(self) -> list[dict[str, Any]]:
        """Events that wait, oldest first."""
        with self._changed:
            return [one.event for one in self._queue]

    def close(self, timeout_s: float = 10.0) -> bool:
        """Flush and end; False when something was left after `timeout_s`: `unsent`."""
        self.flush(timeout_s)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(TIMEOUT_S)
        self._http.close()
        return not self.unsent

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self.close():
            left = Unsent(self.unsent, str(self._http.base_url))
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
                raise QueueFull(f"{self._queue_max} events wait for {self._http.base_url}: is the collector up?")
            self._queue.append(one)
            self._changed.notify_all()
        return str(event["messageId"])

    def _run(self) -> None:
        backoff_s = BACKOFF_FIRST_S
        while batch := self._take():
            again_s = self._send(batch, backoff_s)
            with self._changed:
                self._sending = 0
                if again_s is None:
                    backoff_s = BACKOFF_FIRST_S
                else:
                    self._queue.extendleft(reversed(batch))
                    backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)
                self._changed.notify_all()
                if again_s is not None:
                    self._changed.wait_for(lambda: self._closing, again_s)
                    if self._closing:
                        return

    def _take(self) -> list[_Waiting]:
        """The next batch; empty once the client is closed."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._queue) or self._closing)
            if self._closing:
                return []
            deadline = time.monotonic() + WAIT_S
            self._changed.wait_for(lambda: len(self._queue) >= AT_ONCE_MAX or self._closing,
                                   max(0.0, deadline - time.monotonic()))  # fmt: skip
            batch: list[_Waiting] = []
            size = 0
            while self._queue and len(batch) < AT_ONCE_MAX:
                size += len(self._queue[0].raw)
                if batch and size > BATCH_BYTES_MAX:
                    break
                batch.append(self._queue.popleft())
            self._sending = len(batch)
            return batch

    def _send(self, batch: list[_Waiting], backoff_s: float) -> float | None:
        """None once there is an answer for every event, else after how many seconds to send again."""
        try:
            body = {"sentAt": datetime.now(UTC), "batch": [msgspec.Raw(one.raw) for one in batch]}
            answer = self._http.post("/v1/batch", content=msgspec.json.encode(body), headers=JSON)
        except httpx.HTTPError as error:
            log.warning("not sent", events=len(batch), why=repr(error), again_in_s=round(backoff_s, 1))
            return backoff_s * random.uniform(0.5, 1.0)
        if answer.status_code in RETRIED:
            log.warning("not taken", events=len(batch), status=answer.status_code, again_in_s=round(backoff_s, 1))
            return max(float(answer.headers.get("Retry-After", 0)), backoff_s * random.uniform(0.5, 1.0))
        if answer.is_success:
            for refused in answer.json().get("rejected", ()):
                self._on_refused(batch[refused["index"]].event, str(refused["messages"]))
        else:
            for one in batch:
                self._on_refused(one.event, answer.text[:500])
        return None


def _say(event: dict[str, Any], reason: str) -> None:
    log.error("refused", message_id=event["messageId"], type=event["type"], reason=reason,
              next="the collector keeps it as a dead letter, if it could be read")  # fmt: skip
