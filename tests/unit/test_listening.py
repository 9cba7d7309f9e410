"""A consumer that gets no answer although others do ends its process; one whose broker is away does not."""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn

import pytest
from aiokafka.errors import RequestTimedOutError

from stream.adapters import listening
from stream.settings import Settings


class Ended(Exception):
    """Stands for the end of the process."""


class Consumer:
    """Its first question is answered, the others are not."""

    def __init__(self) -> None:
        self.asked = 0
        self.often = asyncio.Event()

    def assignment(self) -> set[Any]:
        return {("events", 0)}

    async def end_offsets(self, partitions: set[Any]) -> dict[Any, int]:
        self.asked += 1
        if self.asked > 10:
            self.often.set()
        if self.asked == 1:
            return dict.fromkeys(partitions, 0)
        raise RequestTimedOutError


@pytest.mark.parametrize("broker_answers", [True, False])
async def test_only_a_broker_that_answers_others_ends_it(broker_answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def others(settings: Settings, group: str, partitions: set[Any]) -> bool:
        assert partitions == {("events", 0)}
        return broker_answers

    said: list[str] = []

    def end(reason: str, loop: asyncio.AbstractEventLoop) -> NoReturn:
        said.append(reason)
        raise Ended

    monkeypatch.setattr(listening, "others_are_answered", others)
    monkeypatch.setattr(listening, "end", end)
    consumer: Any = Consumer()

    async def work() -> None:
        async with listening.answered(Settings(), consumer, "a-group", deaf_s=0.02, interval_s=0.01), asyncio.timeout(5):
            while not consumer.often.is_set() and not said:  # noqa: ASYNC110  # one turn of the loop
                await asyncio.sleep(0)

    if broker_answers:
        with pytest.raises(Ended):
            await work()
        assert "no answer" in said[0]
    else:
        await work()
        assert said == [] and consumer.asked > 10
