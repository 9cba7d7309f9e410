"""The ends of aiokafka's connections: how one that is broken is told, and that one which is closed is closed.

Between a reset by the peer and the step in which aiokafka's reading task learns of it, uvloop answers a write with
`RuntimeError`, where asyncio's own loop says nothing. aiokafka expects `OSError`: whichever of its tasks wrote in that
moment ends for good. Where it is the one that keeps the metadata, every later question for the group's coordinator waits for
ever (https://github.com/aio-libs/aiokafka/issues/1038).

A client that is stopped waits until its connections are gone. Over TLS each says goodbye first and waits for the broker's,
which does not always come where an answer was still under way: for 30 s (`ssl_shutdown_timeout`), so that a partition opened
half a minute late and a sink did not end within the time it is given. A plain one waits until its last bytes are taken,
which a frozen broker never does. Whoever stops a client has had every answer it waits for: the connection is dropped at
once. Kafka's frames have a length, so that nobody can take an end for the end of an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError

WRITERS = ("send", "_send_sasl_token")  # everything that writes to the socket


def mend_ends() -> None:
    """For all of aiokafka's clients in this process."""
    for name in WRITERS:
        setattr(AIOKafkaConnection, name, _telling(getattr(AIOKafkaConnection, name)))
    AIOKafkaConnection.close = _dropping(AIOKafkaConnection.close)


def _telling(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def writing(self: AIOKafkaConnection, *arguments: Any, **options: Any) -> Any:
        try:
            return method(self, *arguments, **options)
        except RuntimeError as error:
            if self._writer is None or not self._writer.is_closing():
                raise
            self.close(reason=CloseReason.CONNECTION_BROKEN, exc=error)
            raise KafkaConnectionError(f"Connection at {self.host}:{self.port} broken: {error}") from error

    return writing


def _dropping(close: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(close)
    def closing(self: AIOKafkaConnection, *arguments: Any, **options: Any) -> Any:
        writer = self._writer
        closed = close(self, *arguments, **options)
        if writer is not None:
            writer.transport.abort()
        return closed

    return closing
