"""Ends a process whose consumer gets no answer although the broker answers others.

aiokafka's tasks can end without anybody knowing (the known way is closed in `broken_connections`): what would be read then
waits for ever, and nothing is said. A broker that is away answers nobody, and is waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Collection
from typing import NoReturn

import kafka.errors
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from stream.adapters import stuck
from stream.adapters.kafka_clients import REQUEST_TIMEOUT_S
from stream.adapters.lag import Lag
from stream.endings import only_when_asked
from stream.settings import Settings

log = logging.getLogger(__name__)

DEAF_S = REQUEST_TIMEOUT_S + 10  # a request that was merely lost has been given up and sent again by then
INTERVAL_S = 10.0
ANSWER_TIMEOUT_S = 5.0
EXIT_STALLED = 75  # EX_TEMPFAIL: start me again


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


async def others_are_answered(settings: Settings, group: str, partitions: Collection[tuple[str, int]]) -> bool:
    """Whether a client made anew is told where the partitions end and where the group is. It asks in a thread that nobody
    waits for: no process that is told to end may stay for a broker that is away."""
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    answers: list[bool] = []

    def ask() -> None:
        try:
            with Lag(settings) as client:
                answers.append(client.answers(group, partitions))
        except (kafka.errors.KafkaError, OSError):
            answers.append(False)
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(told.set)

    threading.Thread(target=ask, name=f"asking about {group}", daemon=True).start()
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await told.wait()
    except TimeoutError:
        return False
    return answers[0]


@contextlib.asynccontextmanager
async def answered(
    settings: Settings, consumer: AIOKafkaConsumer, group: str, *, deaf_s: float = DEAF_S, interval_s: float = INTERVAL_S
) -> AsyncIterator[None]:  # fmt: skip
    """For the length of a block, see that a consumer is answered while others are."""
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

    listening = asyncio.create_task(only_when_asked(listen)(), name=f"listening for {group}")
    try:
        yield
    finally:
        listening.cancel()
        await asyncio.wait((listening,))
        if not listening.cancelled():
            listening.result()


def end(reason: str, loop: asyncio.AbstractEventLoop) -> NoReturn:
    """End the process at once: a loop that does not consume may not shut down in order either."""
    log.critical("%s while the broker answers; ending the process so that it starts afresh. Its consumer waits in:\n%s",
                 reason, "\n".join(stuck.waits(loop)))
    logging.shutdown()
    os._exit(EXIT_STALLED)
