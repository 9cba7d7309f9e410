"""Ends a worker that stopped working although it could: some reports have Faust rejoin a group and never consume again.

It ends the process only if, for the whole of `stall_s`, the broker answered, a partition of ours had records waiting,
its acknowledged offset did not move, and the worker was neither recovering, rebalancing nor paused. An outage of the
broker is none of these: it must not become a loop of crashes. Or if for the whole of `deaf_s` the broker answered a client
made anew the very same questions but not this worker's own, see `listening`. A rebalance that does not end while the broker
answers is given `stall_s`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from aiokafka.errors import KafkaError

from stream.adapters.faust.faust_batches import TP
from stream.adapters.faust.faust_compat import App
from stream.adapters.health.listening import ANSWER_TIMEOUT_S, DEAF_S, INTERVAL_S, Deafness, end, others_are_answered

log = logging.getLogger(__name__)

STALL_S = 180.0  # longer than any interval, encoding or send that still succeeds


@dataclass(frozen=True)
class Observation:
    """One look at the worker. `end_offsets` is None when the broker did not answer; `positions` are the next offsets
    needed, for each partition owned; `busy` names what legitimately holds the worker up, or is empty; `deaf`: the broker
    answers others."""

    at_s: float
    end_offsets: Mapping[TP, int] | None
    positions: Mapping[TP, int]
    busy: str = ""
    deaf: bool = False


class Watchdog:
    """Judges observations in the order of time; pure, so that every case can be tested.

    >>> tp = TP("events", 0)
    >>> dog = Watchdog(stall_s=60)
    >>> dog.judge(Observation(0, {tp: 10}, {tp: 4}))
    >>> dog.judge(Observation(59, {tp: 10}, {tp: 4}))
    >>> dog.judge(Observation(60, {tp: 10}, {tp: 4}))
    'events[0] has 6 records waiting and stayed at offset 4 for 60 s'
    """

    def __init__(self, stall_s: float = STALL_S, deaf_s: float = DEAF_S) -> None:
        self._stall_s, self._deaf_s = stall_s, deaf_s
        self._since: dict[TP, tuple[int, float]] = {}
        self._ear = Deafness()

    def judge(self, seen: Observation) -> str | None:
        """Why the process should end, or None."""
        if reason := self._ear.judge(seen.at_s, seen.deaf, self._stall_s if seen.busy else self._deaf_s):
            return reason
        if seen.end_offsets is None or seen.busy:
            self._since = {}
            return None
        waiting = {tp: end - seen.positions[tp] for tp, end in seen.end_offsets.items()
                   if tp in seen.positions and end > seen.positions[tp]}
        self._since = {tp: self._unchanged_since(tp, seen) for tp in waiting}
        for tp, (position, since_s) in self._since.items():
            if seen.at_s - since_s >= self._stall_s:
                return (f"{tp.topic}[{tp.partition}] has {waiting[tp]} records waiting and stayed at offset {position} "
                        f"for {seen.at_s - since_s:.0f} s")
        return None

    def _unchanged_since(self, tp: TP, seen: Observation) -> tuple[int, float]:
        before = self._since.get(tp)
        position = seen.positions[tp]
        return before if before is not None and before[0] == position else (position, seen.at_s)


async def observe(app: App, paused: Callable[[], str]) -> Observation:
    """Look once. Never raises for a broker that does not answer."""
    consumer = app.consumer
    busy = paused()
    if app.rebalancing:
        deaf = await others_are_answered(app.settings, app.conf.id, consumer.owned)
        return Observation(time.monotonic(), None, {}, "rebalancing", deaf=deaf)
    if not consumer.assigned_ready.is_set():
        busy = "recovering"
    if busy:
        return Observation(time.monotonic(), None, {}, busy)
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            positions = await consumer.positions()
            ends = await consumer.end_offsets(positions)
    except (KafkaError, TimeoutError) as error:
        deaf = await others_are_answered(app.settings, app.conf.id, consumer.owned)
        log.info("watchdog: the broker does not answer (%r)%s; waiting with it", error, " us, but others" if deaf else "")
        return Observation(time.monotonic(), None, {}, deaf=deaf)
    return Observation(time.monotonic(), ends, positions)


async def watch(app: App, *, stall_s: float = STALL_S, interval_s: float = INTERVAL_S,
                paused: Callable[[], str] = lambda: "") -> NoReturn:
    """Watch for ever; start it as `app.task`. `paused` names what holds the worker up on purpose, or gives ''."""
    dog = Watchdog(stall_s)
    while True:
        if reason := dog.judge(await observe(app, paused)):
            end(f"watchdog: {reason}", app.consumer.thread_loop)
        await asyncio.sleep(interval_s)  # the pace of the watch itself
