"""Puts a data set on the events topic: every row becomes an event or a dead letter, and the sums are exact.

What is acknowledged stays acknowledged. In this order, some ten thousand rows at a time:
  1 the list of erasures is read to its end
  2 the catalog items are sent and acknowledged (once)
  3 rows are sent, in event-time order
  4 `flush`: the broker has acknowledged all of them
  5 the position and the sums are written to `<home>/replay/<id>.json` (a rename, so old or new, never half)
A crash after 2 sends the catalog again, after 3 or 4 sends the rows since the last 5 again: under the same message
ids, so that nothing is counted twice downstream. `restart` sends everything again, under the same ids too.

Of a person Kafka gets what it would get by the collector: pseudonyms, shortened addresses, stated consent, and nothing of
those of whom the list says that nothing is taken.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from producers.collector.admission import UNCONSENTED, WITHHELD
from producers.datasets.registry import DATASETS
from producers.datasets.table import Accepted, DatasetError, Dropped, Rejected, Row, opened
from producers.dead_letters import dead_letter
from producers.dead_letters import encode as encode_dead_letter
from producers.erasures import listed
from producers.kafka import Producer
from producers.privacy import IDS, Privacy
from schemas import events, topics
from schemas.dead_letter import Kind, Message, Source
from schemas.erasure import Erased
from schemas.events import Lane, user_of
from schemas.unreadable import UNREADABLE
from stream.settings import Settings

CHECKPOINT_ROWS = 20_000  # one flush costs some 50 ms; a crash sends at most so many rows again
CHECKPOINT_S = 2.0  # for paced replays, which take long over the same number
STAMPED = ("tenant", "lane", "timestamp")  # by us: no text of a client's, even where an id is part of it


class State(msgspec.Struct, kw_only=True):
    """What is acknowledged of one replay, over all its runs. `position` counts rows in event-time order."""

    dataset: str
    path: str
    content_sha256: str
    tenant: str
    topic_prefix: str
    started_at: datetime  # dead letters carry it as first_seen, so that a row's dead letter is the same every time
    items: int | None = None  # published; None: not yet
    position: int = 0
    accepted: int = 0
    dropped: dict[str, int] = msgspec.field(default_factory=dict)
    dead_letters: int = 0
    finished: bool = False


class Summary(msgspec.Struct, kw_only=True, frozen=True):
    """Sums over all runs of this replay: accepted + dropped + dead_letters = rows, checked."""

    dataset: str
    rows: int
    accepted: int
    dropped: dict[str, int]
    dead_letters: int
    items: int
    finished: bool
    stopped: bool
    rows_this_run: int
    seconds: float
    rows_per_second: float


def content_hash(path: Path) -> str:
    """sha256 of the file as it lies on disk; DatasetError when there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DatasetError(f"Cannot read {path}: {error.strerror or error}. Name an existing file.") from error


def state_path(settings: Settings, dataset: str, content_sha256: str, tenant: str) -> Path:
    """One state a data set, content, tenant and topic prefix; the file's name and place do not matter."""
    identity = "\x1f".join((dataset, content_sha256, tenant, settings.kafka.topic_prefix))
    return settings.home / "replay" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"


def parse_speed(text: str) -> float | None:
    """`max` → None, `1x` → 1.0, `1000x` → 1000.0; ValueError says what is allowed.

    >>> parse_speed("max"), parse_speed("60x")
    (None, 60.0)
    """
    if text == "max":
        return None
    try:
        factor = float(text.removesuffix("x"))
    except ValueError:
        factor = 0.0
    if not 0 < factor < float("inf"):
        raise ValueError(f"--speed {text!r} is neither `max` nor a multiple of real time such as `1x` or `1000x`")
    return factor


class Replay:
    """One run. `stop` may be set from a signal handler: the run then ends at an acknowledged position."""

    def __init__(self, settings: Settings, dataset: str, path: Path, *, tenant: str = "demo", lane: Lane = "import",
                 speed: float | None = None, limit: int | None = None, restart: bool = False,
                 on_wait: Callable[[str], None] = lambda message: None,
                 on_progress: Callable[[State], None] = lambda state: None) -> None:
        self.settings, self.path, self.tenant, self.lane = settings, path, tenant, lane
        self.speed, self.limit, self.on_wait, self.on_progress = speed, limit, on_wait, on_progress
        self.stop = threading.Event()
        self._privacy, self._erased = Privacy(settings.privacy), Erased()
        self._dataset = DATASETS[dataset]
        sha256 = content_hash(path)
        self._state_path = state_path(settings, dataset, sha256, tenant)
        self.state = State(
            dataset=dataset, path=str(path), content_sha256=sha256, tenant=tenant,
            topic_prefix=settings.kafka.topic_prefix, started_at=datetime.now(UTC),
        )
        if self._state_path.exists():
            known = msgspec.json.decode(self._state_path.read_bytes(), type=State)
            if restart:
                self.state.started_at = known.started_at
            else:
                self.state = known
        self._events, self._items, self._dead_letters = (
            topic.name(settings.kafka.topic_prefix) for topic in (topics.EVENTS, topics.ITEMS, topics.DEAD_LETTERS)
        )

    def run(self) -> Summary:
        """Sends what is not acknowledged yet; raises KafkaUnavailable, NotAcknowledged or DatasetError."""
        started, first = time.monotonic(), self.state.position
        if not self.state.finished:
            with Producer(
                self.settings.kafka, (self._events, self._items, self._dead_letters), on_wait=self.on_wait
            ) as producer:
                self._erased = listed(self.settings)
                if self.state.items is None:
                    self._publish_items(producer)
                self._send_rows(producer)
        seconds = time.monotonic() - started
        state, sent = self.state, self.state.position - first
        assert state.accepted + sum(state.dropped.values()) + state.dead_letters == state.position
        return Summary(
            dataset=state.dataset, rows=state.position, accepted=state.accepted, dropped=state.dropped,
            dead_letters=state.dead_letters, items=state.items or 0, finished=state.finished,
            stopped=self.stop.is_set(), rows_this_run=sent, seconds=round(seconds, 3),
            rows_per_second=round(sent / seconds, 1) if sent else 0.0,
        )

    def _publish_items(self, producer: Producer) -> None:
        count = 0
        for item in self._dataset.items(self.path, self.tenant):
            producer.send(self._items, events.key(self.tenant, item.item_id), msgspec.json.encode(item))
            count += 1
        producer.flush()
        self.state.items = count
        self._write_state()

    def _send_rows(self, producer: Producer) -> None:
        rows = itertools.islice(self._dataset.rows(self.path, self.tenant, self.lane), self.state.position, self.limit)
        state, pace = self.state, Pace(self.speed, self.stop)
        unsaved, saved_at = 0, time.monotonic()
        exhausted = True
        for row in rows:
            if isinstance(row, Accepted) and not pace.wait(row.ts_ms):
                exhausted = False
                break
            self._send(producer, row)
            state.position += 1
            unsaved += 1
            if unsaved >= CHECKPOINT_ROWS or time.monotonic() - saved_at >= CHECKPOINT_S:
                self._checkpoint(producer)
                unsaved, saved_at = 0, time.monotonic()
            if self.stop.is_set():
                exhausted = False
                break
        state.finished = exhausted and self.limit is None
        self._checkpoint(producer)

    def _send(self, producer: Producer, row: Row) -> None:
        """Sends one row and adds it to the sums, which count only once `_checkpoint` has written them."""
        state = self.state
        if not isinstance(row, Dropped) and self._is_suppressed(row.user, row.ts_ms):
            state.dropped["suppressed"] = state.dropped.get("suppressed", 0) + 1  # and kept nowhere
            return
        if isinstance(row, Accepted):
            event = self._cleaned(self._without_suppressed(row))
            producer.send(self._events, events.key(self.tenant, user_of(event)), events.encode(event))
            state.accepted += 1
            return
        if isinstance(row, Dropped):
            state.dropped[row.reason] = state.dropped.get(row.reason, 0) + 1
        else:
            state.dead_letters += 1
        producer.send(self._dead_letters, events.key(self.tenant, ""), self._letter(row))

    def _is_suppressed(self, user: str, ts_ms: int) -> bool:
        """Whether nothing of a user, who may have been erased under any of their names, is taken at this time."""
        names = self._privacy.names.names_of(self.tenant, user)
        return any(self._erased.covers(events.key(self.tenant, one), ts_ms) for one in names)

    def _without_suppressed(self, row: Accepted) -> dict[str, Any]:
        """The event, without an id beside its user's of which nothing is taken."""
        beside = {name for name in IDS if row.event.get(name) not in (None, "", row.user)}
        return {name: value for name, value in row.event.items()
                if name not in beside or not self._is_suppressed(str(value), row.ts_ms)}  # fmt: skip

    def _cleaned(self, event: dict[str, Any]) -> dict[str, Any]:
        """What of the event may travel."""
        stamped = {name: event[name] for name in STAMPED}
        self._privacy.clean(event, self.tenant)
        return event | stamped

    def _kept(self, raw: bytes) -> bytes:
        """What a letter may keep of a row."""
        if self._privacy.pseudonyms:
            return b""
        try:
            event = msgspec.json.decode(raw)
            kept = events.encode(event) if isinstance(event, dict) and self._privacy.clean(event, self.tenant) else raw
        except UNREADABLE:
            kept = raw
        return b"" if self._privacy.refuses_analytics(self.tenant, kept) else kept

    def _letter(self, row: Dropped | Rejected) -> bytes:
        """With pseudonyms without the row and what was said about it in its own words: an id could be in either."""
        where = f"row {row.row} of {self.state.dataset}"
        kind: Kind
        if isinstance(row, Dropped):
            kind, path, keyword, said = "dropped", "", row.reason, f"{where} is left out: {row.reason}"
        else:
            kind, path, keyword, said = row.kind, row.path, row.keyword, f"{where}: {row.message}"
        kept, told_by = self._kept(row.raw), None
        if self._privacy.pseudonyms:
            said = f"{where}: {keyword}{WITHHELD}"
            told_by = self._privacy.names.of(self.tenant, row.raw.hex() or self.state.content_sha256).encode()
        elif not kept:  # by the file then, and the row in it
            said, told_by = said.removesuffix(UNCONSENTED) + UNCONSENTED, self.state.content_sha256.encode()
        return encode_dead_letter(dead_letter(
            tenant=self.tenant, kind=kind, messages=[Message(path=path, keyword=keyword, message=said)],
            payload=kept, source=Source(topic=self.state.dataset, partition=0, offset=row.row),
            at=datetime.now(UTC), first_seen=self.state.started_at, told_by=told_by,
        ))

    def _checkpoint(self, producer: Producer) -> None:
        producer.flush()
        self._write_state()
        self.on_progress(self.state)

    def _write_state(self) -> None:
        self._state_path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._state_path.with_suffix(".tmp")
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(self.state)))
        draft.replace(self._state_path)


class Pace:
    """Holds rows back so that event time runs `speed` times as fast as the clock; `None` does not hold."""

    def __init__(self, speed: float | None, stop: threading.Event) -> None:
        self._speed, self._stop = speed, stop
        self._first_ms: int | None = None
        self._started = time.monotonic()

    def wait(self, ts_ms: int) -> bool:
        """Returns once the row is due; False when `stop` was set meanwhile."""
        if self._speed is None:
            return True
        if self._first_ms is None:
            self._first_ms, self._started = ts_ms, time.monotonic()
        due = self._started + (ts_ms - self._first_ms) / 1000 / self._speed
        ahead_s = due - time.monotonic()
        return not (ahead_s > 0 and self._stop.wait(ahead_s))


def count_rows(path: Path, dataset: str) -> int:
    """Lines after the header, if the data set has one, for the progress bar; the exact number is in the summary."""
    newlines, last = 0, b""
    with opened(path) as file:
        while chunk := file.read(1 << 20):
            newlines += chunk.count(b"\n")
            last = chunk[-1:]
    return max(0, newlines + (last not in (b"", b"\n")) - (DATASETS[dataset].HEADER is not None))
