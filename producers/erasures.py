"""The erasures topic, read to its end by whoever runs and ends; who stays takes `stream.adapters.erasures`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console

from producers.kafka import from_the_beginning
from schemas import topics
from schemas.erasure import Erased, Erasure, decode
from schemas.unreadable import UNREADABLE
from stream.settings import Settings

_errors = Console(stderr=True)


def listed(settings: Settings) -> Erased:
    """The list as it is now. Raises KafkaUnavailable."""
    found = Erased()
    with reading(settings) as consumer:
        ends = consumer.end_offsets(sorted(consumer.assignment()))
        while any(consumer.position(tp) < end for tp, end in ends.items()):
            for whose, erasure in polled(consumer):
                found.note(whose, erasure)
    return found


def reading(settings: Settings) -> AbstractContextManager[Any]:
    """A consumer at the beginning of the whole topic. Raises KafkaUnavailable."""
    return from_the_beginning(settings.kafka, topics.ERASURES.name(settings.kafka.topic_prefix))


def polled(consumer: Any) -> Iterator[tuple[bytes, Erasure | None]]:
    """What has come; without what nobody can read, which can erase nobody."""
    for record in (one for some in consumer.poll(timeout_ms=500).values() for one in some):
        try:
            yield record.key or b"", None if record.value is None else decode(record.value)
        except UNREADABLE as error:
            _errors.print(f"{record.topic}[{record.partition}]: the record at offset {record.offset} is left out: {error}")
