"""The partitions this worker owns: opened on assignment, closed before they are taken away, flushed by a timer.

One lock a partition, which is fair, serialises its batches, ticks and interval closings; different partitions do not wait
for each other's round trips to the broker.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import structlog

from stream.partition import DUE_PREFIX, META_KEY, PartitionState, due_of
from stream.personalize import Input, Personalizer

log = structlog.get_logger()
REFRESH_USERS_MAX = 500  # users of one sweep and tick
BATCHES_MAX = 4  # begun at once: while one partition waits for the broker or for its interval to close, others go on
COUNTS_BEHIND_S = 5.0  # how old the counts that ranking uses may become while many records wait


class Opened(NamedTuple):
    """What opening a partition yields: its state, and how to let go of its store."""

    state: PartitionState
    close: Callable[[], None]
    user_keys: Callable[[], Iterable[bytes]]


class Sweep:
    """Goes through all users of a partition, some at a time, whenever what it is for has another version."""

    def __init__(self) -> None:
        self._version: object = None
        self._left: Iterable[bytes] | None = None

    def some(self, version: object, user_keys: Callable[[], Iterable[bytes]]) -> list[bytes]:
        """The next users; none when all have been gone through for this version."""
        if self._version != version:
            self._version, self._left = version, iter(user_keys())
        if self._left is None:
            return []
        keys = [key for key, _ in zip(self._left, range(REFRESH_USERS_MAX), strict=False)]
        if len(keys) < REFRESH_USERS_MAX:
            self._left = None
        return keys


class Owned:
    """One partition while it is ours."""

    def __init__(self, partition: int, opening: asyncio.Task[Opened]) -> None:
        self.partition = partition
        self.opening = opening
        self.lock = asyncio.Lock()
        self.open_batches: list[Any] = []
        self.closed_at = 0.0  # monotonic s
        self.sweeps = {"model": Sweep(), "segments": Sweep()}


class Fleet:
    """All partitions of this worker. `opener` recovers a partition's state; `source_of` names a batch's input; `waiting`
    says how many events of a partition the broker has that are not folded, None while nobody knows; `around` each batch is
    what watches it."""

    def __init__(
        self,
        personalizer: Personalizer,
        opener: Callable[[int], Awaitable[Opened]],
        source_of: Callable[[str], Awaitable[Input]],
        waiting: Callable[[int], int | None],
        may_write: Callable[[], bool],
        flush_interval_ms: int,
        on_closed: Callable[[PartitionState, float], None] = lambda state, seconds: None,
        on_batch: Callable[[Any, float], None] = lambda batch, seconds: None,
        around: Callable[[Any], AbstractContextManager[None]] = lambda batch: nullcontext(),
    ) -> None:  # fmt: skip
        self.personalizer = personalizer
        self.opener = opener
        self.source_of = source_of
        self.waiting = waiting
        self.may_write = may_write
        self.flush_interval_ms = flush_interval_ms
        self.on_closed = on_closed
        self.on_batch = on_batch
        self.around = around
        self.owned: dict[int, Owned] = {}
        self._room = asyncio.Semaphore(BATCHES_MAX)
        self._working: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._counts_taken_at = 0.0  # monotonic s

    async def assigned(self, partitions: set[int]) -> None:
        """Start opening partitions that are new to us; batches wait for it, other partitions do not."""
        for partition in sorted(partitions - self.owned.keys()):
            task = asyncio.ensure_future(self.opener(partition))
            self.owned[partition] = Owned(partition, task)

    async def revoked(self, partitions: set[int]) -> None:
        """Close the open intervals, then let the stores go: whoever comes next starts from what is written."""
        for partition in sorted(partitions & self.owned.keys()):
            owned = self.owned.pop(partition)
            if not owned.opening.done():
                owned.opening.cancel()
                continue
            async with owned.lock:
                opened = owned.opening.result()
                await self._close(owned, opened.state)
                opened.close()

    def paused(self) -> str:
        """What legitimately holds batches up, for the watchdog; empty when nothing does."""
        opening = [owned.partition for owned in self.owned.values() if not owned.opening.done()]
        return f"recovering partitions {opening}" if opening else ""

    async def handle(self, batch: Any) -> None:
        """Begin a batch: steps 1 to 5 at once, 6 and 7 when the interval closes. Returns when there is room for another;
        raises what an earlier one failed with."""
        await self._room.acquire()
        if self._failure is not None:
            raise self._failure
        owned = self.owned.get(batch.partition)
        if owned is None:  # it will be read again by whoever owns the partition now
            self._room.release()
            return
        task = asyncio.create_task(self._process(owned, batch))
        self._working.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._working.discard(task)
        self._room.release()
        if not task.cancelled() and task.exception() is not None:
            self._failure = self._failure or task.exception()

    async def _process(self, owned: Owned, batch: Any) -> None:
        started = time.perf_counter()
        async with owned.lock:  # before the opening is awaited: those that wait for it would not be woken in their order
            opened = await owned.opening
            if batch.stale or self.owned.get(owned.partition) is not owned or self._failure is not None:
                return
            try:
                source = await self.source_of(batch.topic)
                with self.around(batch):
                    await self.personalizer.process(opened.state, source, batch.records, self._most_waiting(batch))
            except Exception as error:  # noted before the next batch of this partition gets the lock
                self._failure = self._failure or error
                raise
            owned.open_batches.append(batch)
        self.on_batch(batch, time.perf_counter() - started)

    def _most_waiting(self, batch: Any = None) -> int:
        """Records that wait in the partition that is furthest behind, not counting those of `batch`: all partitions of a
        worker share one processor, so those that have caught up make room for the others."""
        most = 0
        for partition, owned in self.owned.items():
            if owned.opening.done() and not owned.opening.cancelled():
                taken = len(batch.records) if batch is not None and batch.partition == partition else 0
                most = max(most, (self.waiting(partition) or 0) - taken)
        return most

    async def run_timer(self) -> None:
        """Close intervals and let time pass, until cancelled."""
        while True:
            await asyncio.sleep(self.flush_interval_ms / 1000)
            if self._failure is not None:
                raise self._failure
            self._take_counts()
            self.personalizer.segments.look(self.personalizer.serving.current)
            owned = [one for one in self.owned.values() if one.opening.done() and not one.opening.cancelled()]
            closed = await asyncio.gather(*(self._close_when_due(one) for one in owned))
            for one, done in zip(owned, closed, strict=True):  # acknowledged first, then answered: nothing waits for a model
                if done:
                    await self._tick(one)

    def _take_counts(self) -> None:
        now_s, behind = time.monotonic(), self.personalizer.settings.behind(self._most_waiting())
        if not behind or now_s - self._counts_taken_at > COUNTS_BEHIND_S:
            self._counts_taken_at = now_s
            self.personalizer.serving.take_counts()

    async def _close_when_due(self, owned: Owned) -> bool:
        """Close the interval unless it is to be longer, because users come back within it: fewer writes while many records
        wait."""
        async with owned.lock:
            if self.owned.get(owned.partition) is not owned:
                return False
            opened = owned.opening.result()
            self._refresh(owned, opened)
            waiting, settings = self._most_waiting(), self.personalizer.settings
            if settings.behind(waiting) and time.monotonic() - owned.closed_at < settings.flush_interval_behind_ms / 1000:
                return False
            await self._close(owned, opened.state, waiting)
            return True

    def _refresh(self, owned: Owned, opened: Opened) -> None:
        """A new model moves everybody's due time; new rules, and time, move people between segments."""
        part, personalizer = opened.state, self.personalizer
        part.refresh(owned.sweeps["model"].some(personalizer.serving.current.version, opened.user_keys))
        desk = personalizer.segments
        if part.meta.live_since_ms:  # without rules once, for those who are in segments that are no more
            turn = personalizer.clock.now_ms() // (desk.sweep_s * 1000) if desk.rules.rules else 0
            due = owned.sweeps["segments"].some((desk.rules.version, turn), opened.user_keys)
            part.unsorted |= dict.fromkeys(due)

    async def _tick(self, owned: Owned) -> None:
        async with owned.lock:
            if self.owned.get(owned.partition) is owned and self._failure is None:
                caught_up = not owned.open_batches and self.waiting(owned.partition) == 0
                await self.personalizer.tick(owned.opening.result().state, caught_up, self._most_waiting())

    async def _close(self, owned: Owned, state: PartitionState, waiting: int = 0) -> None:
        """Steps 6 and 7. A worker that slept through a rebalance writes nothing; its records are read again.

        Batches that went stale by a mere rewind are folded already: their second reading is told by offset and ids.
        """
        if self._failure is not None:
            return  # a batch may be half folded; the process is about to end
        if not self.may_write():
            log.warning("interval not written", partition=owned.partition, batches=len(owned.open_batches),
                        why="the group moved on or the last heartbeat is too old; its records are read again")  # fmt: skip
            return
        started = time.perf_counter()
        owned.closed_at = time.monotonic()
        if not await self.personalizer.close_interval(state, waiting):
            log.warning("interval not acknowledged", partition=owned.partition, batches=len(owned.open_batches),
                        why="the partition was lost while it was written; its records are read again")  # fmt: skip
            return
        for batch in owned.open_batches:
            batch.ack()
        owned.open_batches.clear()
        if state.outcomes:
            self.on_closed(state, time.perf_counter() - started)


def rebuild_due(entries: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes | None]:
    """Due records from packed states, after a store was rebuilt from the changelog."""
    puts: dict[bytes, bytes | None] = {}
    for key, value in entries:
        if not key.startswith(b"#") and key != META_KEY:
            due = due_of(value)
            if due:
                puts[DUE_PREFIX + key] = due.to_bytes(8, "big")
    return puts
