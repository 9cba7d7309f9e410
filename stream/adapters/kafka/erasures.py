"""The erasures topic, read whole by everybody who takes events: whom nothing may be kept of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog

from schemas import topics
from schemas.erasure import Erased, Erasure, decode
from schemas.unreadable import UNREADABLE
from stream.adapters.kafka.global_reader import GlobalReader
from stream.settings import Settings

log = structlog.get_logger()


class Erasures(GlobalReader):
    """The port `stream.ports.Erasures`; `on_erasure(record, erasure)` is told of every record, also of those read again."""

    def __init__(self, settings: Settings, on_erasure: Callable[[Any, Erasure], None] = lambda *_: None) -> None:
        super().__init__(settings, topics.ERASURES.name(settings.kafka.topic_prefix), self._note)
        self.erased = Erased()
        self._on_erasure = on_erasure

    def covers(self, user_key: bytes, ts_ms: int) -> bool:
        """Whether what the user did at this time is not to be taken."""
        return self.erased.covers(user_key, ts_ms)

    def until_ms(self, user_key: bytes) -> int:
        """Up to when the user was erased, -1 for never."""
        return self.erased.until_ms(user_key)

    def takes(self, user_key: bytes, began_ms: int) -> bool:
        """Whether the profile that began then is one that an erasure takes, so that nothing more is to be said of it."""
        return self.erased.takes(user_key, began_ms)

    @property
    def under_way(self) -> bool:
        """Whether any request is not done."""
        return self.erased.under_way

    def request(self, user_key: bytes) -> Erasure | None:
        """The oldest request to forget the user that is not done: the one that is carried out."""
        return self.erased.request(user_key)

    def devices(self, erasure_id: str) -> list[str]:
        """Anonymous ids that the owners of states have put on the list, by name, for this request."""
        return self.erased.devices(erasure_id)

    def suppresses(self, user_key: bytes) -> bool:
        """Whether nothing of the user is taken, whenever they did it."""
        return self.erased.suppresses(user_key)

    def _note(self, records: list[Any]) -> None:
        for record in records:
            key = record.key or b""
            try:
                erasure = None if record.value is None else decode(record.value)
            except UNREADABLE as error:
                # ending here would keep every worker from starting; what is not understood can erase nobody
                log.error("erasure left out", topic=self.topic, partition=record.partition, offset=record.offset,
                          why=str(error), next="send the request again: clickwake erase")  # fmt: skip
                continue
            self.erased.note(key, erasure)
            if erasure is not None:
                self._on_erasure(record, erasure)
