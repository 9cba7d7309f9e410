"""What tests need to know of kafka-python 3.0.12: a client that is closed while bytes wait to be sent, or while it connects,
ends its loop first, and the socket is left to the garbage collector (`compat.close`: `manager.close`, then `net.close`). The
warning about it then fails whichever test runs at that moment. Sockets that its loop still watches when it ends are closed
here; any other one that is left open, ours included, is a failure as before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from kafka.net.selector import NetworkSelector


def close_what_is_watched() -> None:
    """From now on, for all clients of this process."""
    close = NetworkSelector.close

    def closed(self: Any) -> None:
        self.stop()  # nobody registers anything after it
        watched = [] if self._closed else [key.fileobj for key in self._selector.get_map().values()]
        close(self)
        for sock in watched:
            sock.close()

    NetworkSelector.close = closed


def on_topics(monkeypatch: pytest.MonkeyPatch, topics: Mapping[str, Sequence[Any]]) -> None:
    """`KafkaConsumer` finds these records, each topic in one partition, handed over at once."""
    class Consumer:
        def __init__(self, **options: Any) -> None:
            self._at: dict[Any, int] = {}

        def partitions_for_topic(self, name: str) -> set[int]:
            return {0}

        def assign(self, partitions: Sequence[Any]) -> None:
            self._at = dict.fromkeys(partitions, 0)

        def assignment(self) -> set[Any]:
            return set(self._at)

        def seek_to_beginning(self, *partitions: Any) -> None: ...

        def end_offsets(self, partitions: Sequence[Any]) -> dict[Any, int]:
            return {one: len(topics.get(one.topic, ())) for one in partitions}

        def position(self, partition: Any) -> int:
            return self._at[partition]

        def poll(self, timeout_ms: int) -> dict[Any, Sequence[Any]]:
            found = {one: topics.get(one.topic, ())[at:] for one, at in self._at.items()}
            self._at = self.end_offsets(list(self._at))
            return found

        def close(self) -> None: ...

    monkeypatch.setattr("kafka.KafkaConsumer", Consumer)
