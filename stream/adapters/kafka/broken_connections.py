"""aiokafka's connection on uvloop: a peer that is gone is told as what aiokafka expects of a broken connection.

Between a reset by the peer and the step in which aiokafka's reading task learns of it, uvloop answers a write with
`RuntimeError`, where asyncio's own loop says nothing. aiokafka expects `OSError`: whichever of its tasks wrote in that
moment ends for good. Where it is the one that keeps the metadata, every later question for the group's coordinator waits for
ever (https://github.com/aio-libs/aiokafka/issues/1038).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError

WRITERS = ("send", "_send_sasl_token")  # everything that writes to the socket


def tell_broken_connections() -> None:
    """For all of aiokafka's clients in this process."""
    for name in WRITERS:
        setattr(AIOKafkaConnection, name, _telling(getattr(AIOKafkaConnection, name)))


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
