"""The erasures topic, read to its end by whoever runs and ends; who stays takes `stream.adapters.kafka.erasures`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console

from producers.kafka import POLL_MS, from_the_beginning, to_its_end
from schemas import topics
from schemas.erasure import Erased, Erasure, decode
from schemas.unreadable import UNREADABLE
from stream.settings import Settings

_errors = Console(stderr=True)


def listed(settings: Settings) -> Erased:
    """The list as it is now. Raises KafkaUnavailable."""
    found = Erased()
    with reading(settings) as consumer:
        for whose, erasure in _readable(to_its_end(consumer)):
            found.note(whose, erasure)
    return found


def reading(settings: Settings) -> AbstractContextManager[Any]:
    """A consumer at the beginning of the whole topic. Raises KafkaUnavailable."""
    return from_the_beginning(settings.kafka, topics.ERASURES.name(settings.kafka.topic_prefix))


def polled(consumer: Any) -> Iterator[tuple[bytes, Erasure | None]]:
    """What has come; without what nobody can read, which can erase nobody."""
    return _readable(one for some in consumer.poll(timeout_ms=POLL_MS).values() for one in some)


def _readable(records: Iterable[Any]) -> Iterator[tuple[bytes, Erasure | None]]:
    for record in records:
        try:
            yield record.key or b"", None if record.value is None else decode(record.value)
        except UNREADABLE as error:
            _errors.print(f"{record.topic}[{record.partition}]: the record at offset {record.offset} is left out: {error}")
