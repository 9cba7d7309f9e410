"""Who refuses advertising: the topic of refusals, read whole by who sends any.

The changelog of the states says it too, but at some kilobytes a user, and only after what an event causes has been said.
"""

from __future__ import annotations

from typing import Any

from schemas import topics
from stream.adapters.kafka.global_reader import GlobalReader
from stream.settings import Settings


class AdsRefusals(GlobalReader):
    """The port `stream.ports.Refusals`. Only keys are read: a record is a refusal, a tombstone the end of one. Some hundred
    bytes in memory for each user who refuses."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, topics.ADS_REFUSALS.name(settings.kafka.topic_prefix), self._note)
        self._refusing: set[bytes] = set()

    def refuses(self, user_key: bytes) -> bool:
        """Whether nothing that is advertising may be sent to this user."""
        return user_key in self._refusing

    def _note(self, records: list[Any]) -> None:
        for record in records:
            if record.value is None:
                self._refusing.discard(record.key)
            else:
                self._refusing.add(record.key)
