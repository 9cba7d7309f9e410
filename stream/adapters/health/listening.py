"""Ends a process whose consumer gets no answer although the broker answers others, and notices topics that were made again.

aiokafka's tasks can end without anybody knowing (the known way is closed in `connection_ends`): what would be read then
waits for ever, and nothing is said. A broker that is away answers nobody, and is waited for.

Nor does a consumer know a topic by more than its name: where one was deleted and made again, and has grown beyond the place
that was read up to, it goes on there and passes over what is new before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import NoReturn, TypeVar

import kafka.errors
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from stream.adapters.health import stuck
from stream.adapters.health.lag import Lag
from stream.adapters.kafka.kafka_clients import REQUEST_TIMEOUT_S, topic_ids
from stream.endings import only_when_asked
from stream.settings import Settings

log = logging.getLogger(__name__)

DEAF_S = REQUEST_TIMEOUT_S + 10  # a request that was merely lost has been given up and sent again by then
INTERVAL_S = 10.0
ANSWER_TIMEOUT_S = 5.0
TOPICS_EVERY_S = 30.0  # a client of its own each time; metadata are asked for as often
EXIT_STALLED = 75  # EX_TEMPFAIL: start me again
T = TypeVar("T")


class Deafness:
    """Judges looks in the order of time; pure.

    >>> ear = Deafness()
    >>> [ear.judge(at_s, deaf, 50) for at_s, deaf in ((0, True), (49, True), (50, False), (51, True), (101, True))]
    [None, None, None, None, 'the consumer has had no answer for 50 s']
    """

    def __init__(self) -> None:
        self._since_s: float | None = None

    def judge(self, at_s: float, deaf: bool, limit_s: float = DEAF_S) -> str | None:
        """Why the process should end, or None. `deaf`: the broker answers others and not this."""
        if not deaf:
            self._since_s = None
        elif self._since_s is None:
            self._since_s = at_s
        elif at_s - self._since_s >= limit_s:
            return f"the consumer has had no answer for {at_s - self._since_s:.0f} s"
        return None


class Incarnations:
    """Topics by the ids that the broker gave them (KIP-516): one that was deleted and made again has another; pure. `ids`:
    what they were when they were last looked at; kept up to date.

    >>> seen = Incarnations()
    >>> [sorted(seen.made_again(ids)) for ids in ({"events": "a", "items": "b"}, {"items": "b"}, {"events": "c"})]
    [[], [], ['events']]
    """

    def __init__(self, ids: dict[str, str] | None = None) -> None:
        self._ids = {} if ids is None else ids

    def made_again(self, ids: Mapping[str, str]) -> set[str]:
        """Those that are others than when they were last there."""
        found = {name for name, one in ids.items() if self._ids.get(name, one) != one}
        self._ids |= ids
        return found


async def told(ask: Callable[[], T]) -> T | None:
    """What a client made anew is told, None without an answer in time. It asks in a thread that nobody waits for: no process
    that is told to end may stay for a broker that is away."""
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    answers: list[T] = []

    def asking() -> None:
        with contextlib.suppress(kafka.errors.KafkaError, OSError):
            answers.append(ask())
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(told.set)

    threading.Thread(target=asking, name="asking the broker", daemon=True).start()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await told.wait()
    return answers[0] if answers else None


async def others_are_answered(settings: Settings, group: str, partitions: Collection[tuple[str, int]]) -> bool:
    """Whether a client made anew is told where the partitions end and where the group is."""
    def ask() -> bool:
        with Lag(settings) as client:
            return client.answers(group, partitions)

    return await told(ask) is True


async def topics_made_again(
    settings: Settings, names: Collection[str], found: Callable[[set[str]], Awaitable[None]], *,
    interval_s: float = TOPICS_EVERY_S,
) -> NoReturn:  # fmt: skip
    """Watch for topics that are made again, counted from the first look, and hand over their names."""
    seen = Incarnations()
    while True:
        if again := seen.made_again(await told(partial(topic_ids, settings, names)) or {}):
            await found(again)
        await asyncio.sleep(interval_s)  # the pace of the watch itself


@contextlib.asynccontextmanager
async def answered(
    settings: Settings, consumer: AIOKafkaConsumer, group: str, on_made_again: Callable[[], object] = lambda: None, *,
    deaf_s: float = DEAF_S, interval_s: float = INTERVAL_S, topics_every_s: float = TOPICS_EVERY_S,
) -> AsyncIterator[None]:  # fmt: skip
    """For the length of a block, see that a consumer is answered while others are; and that a topic which was made again is
    read from its beginning. `on_made_again` is called in the same step of the loop: what was read before it is of the topic
    that is gone, or behind what is new, and no commit may stand for it. What of it is known is told by ids."""
    async def begin_anew(names: set[str]) -> None:
        log.error("%s: the topic was made again, its id is another; %s reads it from the beginning",
                  ", ".join(sorted(names)), group)
        on_made_again()
        for tp in consumer.assignment():
            if tp.topic in names:
                consumer.seek(tp, 0)

    async def listen() -> NoReturn:
        ear = Deafness()
        while True:
            deaf, mine = False, consumer.assignment()
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    await consumer.end_offsets(mine)
            except (KafkaError, TimeoutError):
                deaf = await others_are_answered(settings, group, mine)
            if reason := ear.judge(time.monotonic(), deaf, deaf_s):
                end(reason, asyncio.get_running_loop())
            await asyncio.sleep(interval_s)  # the pace of the watch itself

    async def look() -> NoReturn:
        await topics_made_again(settings, consumer.subscription(), begin_anew, interval_s=topics_every_s)

    watches = [asyncio.create_task(only_when_asked(one)(), name=f"{one.__name__} for {group}") for one in (listen, look)]
    try:
        yield
    finally:
        for task in watches:
            task.cancel()
        await asyncio.wait(watches)
        for task in watches:
            if not task.cancelled():
                task.result()


def end(reason: str, loop: asyncio.AbstractEventLoop) -> NoReturn:
    """End the process at once: a loop that does not consume may not shut down in order either."""
    log.critical("%s while the broker answers; ending the process so that it starts afresh. Its consumer waits in:\n%s",
                 reason, "\n".join(stuck.waits(loop)))
    logging.shutdown()
    os._exit(EXIT_STALLED)
