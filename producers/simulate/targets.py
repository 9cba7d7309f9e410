"""Where simulated events go: the topics, or files."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self, cast

import msgspec

from producers.kafka import Producer
from producers.simulate.mess import Record
from schemas import topics
from schemas.catalog import Item
from schemas.events import key
from schemas.outputs import Decision
from stream.settings import Settings

COMPRESS_LEVEL = 1  # higher levels would take longer than simulating


class Target(Protocol):
    """Takes the catalog, then records and the decisions that orders were made under; leaving it without an error means that
    everything is stored."""

    def catalog(self, items: Iterable[Item]) -> None: ...

    def send(self, record: Record) -> None: ...

    def decided(self, decision: Decision) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None: ...


def catalog_path(path: Path) -> Path:
    """The catalog's file beside the events' file.

    >>> catalog_path(Path("out/events.jsonl.gz")).as_posix()
    'out/events.items.jsonl.gz'
    """
    return _beside(path, "items")


def decisions_path(path: Path) -> Path:
    """The file of decisions beside the events' file; there is none without strategies."""
    return _beside(path, "decisions")


def _beside(path: Path, what: str) -> Path:
    stem, dot, rest = path.name.partition(".")
    return path.with_name(f"{stem}.{what}{dot}{rest}")


class _Gzip(gzip.GzipFile):
    """Equal content gives equal bytes: neither name nor time is written into the header."""

    def __init__(self, raw: IO[bytes]) -> None:
        super().__init__(filename="", mode="wb", compresslevel=COMPRESS_LEVEL, fileobj=raw, mtime=0)


class FileTarget:
    """JSON lines, gzip when the name ends in `.gz`; the catalog goes into `catalog_path`, decisions into
    `decisions_path`. Mess is written as it is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._open: list[IO[bytes]] = []
        self._file = self._opened(path)
        self._decisions: IO[bytes] | None = None

    def catalog(self, items: Iterable[Item]) -> None:
        content = b"".join(msgspec.json.encode(item) + b"\n" for item in items)
        path = catalog_path(self._path)
        path.write_bytes(gzip.compress(content, COMPRESS_LEVEL, mtime=0) if path.suffix == ".gz" else content)

    def send(self, record: Record) -> None:
        self._file.write(record.value + b"\n")

    def decided(self, decision: Decision) -> None:
        if self._decisions is None:
            self._decisions = self._opened(decisions_path(self._path))
        self._decisions.write(msgspec.json.encode(decision) + b"\n")

    def _opened(self, path: Path) -> IO[bytes]:
        raw = path.open("wb")
        self._open.append(raw)
        if path.suffix != ".gz":
            return raw
        self._open.append(cast(IO[bytes], _Gzip(raw)))
        return self._open[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for one in reversed(self._open):  # what compresses is closed before the file it writes to
            one.close()


class KafkaTarget:
    """The events topic and the items topic, every record acknowledged before the target is left."""

    def __init__(self, settings: Settings, on_wait: Callable[[str], None]) -> None:
        prefix = settings.kafka.topic_prefix
        self._events, self._items, self._decisions = (
            one.name(prefix) for one in (topics.EVENTS, topics.ITEMS, topics.DECISIONS))
        self._producer = Producer(settings.kafka, (self._events, self._items, self._decisions), on_wait=on_wait)

    def catalog(self, items: Iterable[Item]) -> None:
        for item in items:
            self._producer.send(self._items, key(item.tenant, item.item_id), msgspec.json.encode(item))
        self._producer.flush()

    def send(self, record: Record) -> None:
        self._producer.send(self._events, record.key, record.value)

    def decided(self, decision: Decision) -> None:
        self._producer.send(self._decisions, key(decision.tenant, decision.user_id), msgspec.json.encode(decision))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._producer.__exit__(kind, error, trace)


def open_target(to: str, settings: Settings, on_wait: Callable[[str], None] = lambda message: None) -> Target:
    """`kafka`, or a file's path. Raises KafkaUnavailable or OSError."""
    return KafkaTarget(settings, on_wait) if to == "kafka" else FileTarget(Path(to))
