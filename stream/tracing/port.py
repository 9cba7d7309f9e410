"""What the processes ask of tracing, and the answer of one that is off: nothing, at the price of a call a batch.

Nothing here or behind it is read by what decides: records and requests are looked at from outside, and outputs get a header
once they are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from prometheus_client import REGISTRY, CollectorRegistry
from starlette.middleware import Middleware

from stream.settings import Settings

Headers = Sequence[tuple[str, bytes]]
Message = tuple[bytes | None, bytes | None, Headers]  # key, value, headers
Messages = Mapping[int, Sequence[Message]]  # by partition
Whose = Callable[[Message], bytes | None]
NO_HEADERS: Headers = ()


def itself(message: Message) -> bytes | None:
    """The key of a message: of most outputs it is that of the record they answer."""
    return message[0]


class Record(Protocol):
    """What is read of a record that came from Kafka."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    headers: Sequence[tuple[str, bytes]]


class Tracing(Protocol):
    """One a process. Every block ends its spans, marked with the kind of an exception that goes through it."""

    def middleware(self) -> list[Middleware]:
        """What makes a span of each request to a service."""
        ...

    def current(self) -> Headers:
        """The headers of a record that the present request causes."""
        ...

    def sending(self, topic: str, count: int) -> AbstractContextManager[Headers]:
        """Around the sending of so many records that the present request causes; gives their headers."""
        ...

    def batch(self, group: str | None, records: Iterable[Record]) -> AbstractContextManager[None]:
        """Around the processing of records, until what they stand for is safe. `group`: None for who reads without one."""
        ...

    def outgoing(self, topic: str, messages: Messages, whose: Whose = itself) -> AbstractContextManager[Messages]:
        """Around the sending of outputs; gives them with the trace of the last record of the key that each answers, where
        that has one."""
        ...

    def insert(self, table: str, records: Sequence[Record]) -> AbstractContextManager[None]:
        """Around one INSERT of rows that were made of these records, within `batch`."""
        ...

    def call(self, what: str, user: bytes) -> AbstractContextManager[None]:
        """Around a call to somebody else about a user, given by the key of their records."""
        ...


class Untraced:
    """`Tracing` while it is off."""

    def middleware(self) -> list[Middleware]:
        return []

    def current(self) -> Headers:
        return NO_HEADERS

    def sending(self, topic: str, count: int) -> AbstractContextManager[Headers]:
        return nullcontext(NO_HEADERS)

    def batch(self, group: str | None, records: Iterable[Record]) -> AbstractContextManager[None]:
        return nullcontext()

    def outgoing(self, topic: str, messages: Messages, whose: Whose = itself) -> AbstractContextManager[Messages]:
        return nullcontext(messages)

    def insert(self, table: str, records: Sequence[Record]) -> AbstractContextManager[None]:
        return nullcontext()

    def call(self, what: str, user: bytes) -> AbstractContextManager[None]:
        return nullcontext()


UNTRACED = Untraced()


class TracingMissing(RuntimeError):
    """The settings ask for traces, and the libraries for them are not installed."""


def start(settings: Settings, service: str, registry: CollectorRegistry = REGISTRY) -> Tracing:
    """Tracing of this process, which is `clickwake-<service>` in a trace. What was not exported is when the process ends."""
    if not settings.tracing.endpoint:
        return UNTRACED
    try:
        from stream.tracing.otel import OpenTelemetry
    except ImportError as error:
        raise TracingMissing(
            f"traces are to go to {settings.tracing.endpoint}, but {error.name} is not installed: install "
            "clickwake[telemetry], or take CLICKWAKE_TRACING__ENDPOINT (or OTEL_EXPORTER_OTLP_ENDPOINT) away"
        ) from error
    return OpenTelemetry(settings.tracing, service, registry)
