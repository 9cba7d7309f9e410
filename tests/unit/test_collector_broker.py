"""The collector's way to Kafka, without one."""

from __future__ import annotations

from typing import Any

import pytest

from producers.collector.broker import Broker, Unavailable
from producers.collector.metrics import Metrics
from stream.settings import Kafka


async def test_a_request_of_which_nothing_is_kept_is_answered_like_any_other() -> None:
    """All its events are of users who are to be forgotten, and the client is not to be told."""
    broker = Broker(Kafka(), ["events"], 1_000, Metrics())
    with pytest.raises(Unavailable):
        await broker.send([])
    producer: Any = object()
    broker._producer = producer
    await broker.send([])
