"""The partitions this worker owns: opened on assignment, closed before they are taken away, flushed by a timer.

One lock a partition, which is fair, serialises its batches, ticks and interval closings; different partitions do not wait
for each other's round trips to the broker. Small batches that come while one is being worked on are then worked on as one:
on a busy machine a call of the encoder and a round trip for every three records would be late for all of them.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import structlog

from stream.endings import Stray, only_when_asked
from stream.partition import DUE_PREFIX, META_KEY, PartitionState, due_of
from stream.personalize import Input, Personalizer

log = structlog.get_logger()
REFRESH_USERS_MAX = 500  # users of one sweep and tick
BATCHES_MAX = 4  # held at once: while one partition waits for the broker or for its interval to close, others go on …
TOGETHER_RECORDS_MAX = 500  # … or more, while they have no more records than this in all; so many are worked on as one
COUNTS_BEHIND_S = 5.0  # how old the counts that ranking uses may become while many records wait
ASLEEP_S = 2.0  # a timer that late was asleep with its process: what the broker has said meanwhile is still unread
FENCED_POLL_S = 0.1


class Opened(NamedTuple):
    """What opening a partition yields: its state, and how to let go of its store."""

    state: PartitionState
    close: Callable[[], None]
    user_keys: Callable[[], Iterable[bytes]]


class Together(NamedTuple):
    """Batches of one topic and partition that are worked on as one, in their order."""

    topic: str
    partition: int
    batches: list[Any]
    records: list[Any]


class Sweep:
    """Goes through all users of a partition, some at a time, whenever what it is for has another version than all were gone
    through for."""

    def __init__(self, version: object = None) -> None:
        self._version = version
        self._left: Iterable[bytes] | None = None

    @property
    def done(self) -> bool:
        return self._left is None

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
        self.waiting: deque[Any] = deque()  # batches nobody works on yet
        self.working: asyncio.Task[None] | None = None
        self.open_batches: list[Any] = []
        self.closed_at = 0.0  # monotonic s
        self.sweeps: dict[str, Sweep] = {}

    @property
    def opened(self) -> bool:
        """Neither under way nor taken away meanwhile; what failed is raised by the opening's result."""
        return self.opening.done() and not self.opening.cancelled()


class Fleet:
    """All partitions of this worker. `opener` recovers a partition's state; `source_of` names a batch's input; `waiting`
    says how many events of a partition the broker has that are not folded, None while nobody knows; `check_input` raises
    where an input is not what a state was folded from; `around` each batch is what watches it."""

    def __init__(
        self,
        personalizer: Personalizer,
        opener: Callable[[int], Awaitable[Opened]],
        source_of: Callable[[str], Awaitable[Input]],
        waiting: Callable[[int], int | None],
        may_write: Callable[[], bool],
        flush_interval_ms: int,
        check_input: Callable[[PartitionState], Awaitable[None]],
        on_closed: Callable[[PartitionState, float], None] = lambda state, seconds: None,
        on_batch: Callable[[Together, float], None] = lambda batch, seconds: None,
        around: Callable[[Together], AbstractContextManager[None]] = lambda batch: nullcontext(),
    ) -> None:  # fmt: skip
        self.personalizer = personalizer
        self._policy = hashlib.blake2b(personalizer.settings.model_dump_json().encode(), digest_size=8).hexdigest()
        self.opener = opener
        self.source_of = source_of
        self.waiting = waiting
        self.may_write = may_write
        self.flush_interval_ms = flush_interval_ms
        self.check_input = check_input
        self.on_closed = on_closed
        self.on_batch = on_batch
        self.around = around
        self.owned: dict[int, Owned] = {}
        self._held_batches, self._held_records = 0, 0
        self._room = asyncio.Event()  # for one batch more
        self._room.set()
        self._failure: BaseException | None = None
        self._counts_taken_at = 0.0  # monotonic s

    async def assigned(self, partitions: set[int]) -> None:
        """Start opening partitions that are new to us; batches wait for it, other partitions do not."""
        for partition in sorted(partitions - self.owned.keys()):
            task = asyncio.create_task(only_when_asked(self.opener)(partition), name=f"opening partition {partition}")
            self.owned[partition] = Owned(partition, task)

    async def revoked(self, partitions: set[int]) -> None:
        """Close the open intervals, then let the stores go: whoever comes next starts from what is written. An opening that
        is under way is ended; one that failed has let go of its store, and is raised by the timer."""
        for partition in sorted(partitions & self.owned.keys()):
            owned = self.owned.pop(partition)
            owned.opening.cancel()
            await asyncio.wait((owned.opening,))  # its store is closed before it may be opened again
            if owned.opening.cancelled():
                continue
            if error := owned.opening.exception():
                self._failure = self._failure or error
                continue
            async with owned.lock:
                opened = owned.opening.result()
                await self._close(owned, opened.state)
                owned.sweeps.clear()  # their iterators hold the store open
                opened.close()

    async def check_inputs(self) -> None:
        """`check_input` of all open partitions; nothing is written any more once it has raised."""
        for owned in list(self.owned.values()):
            if not owned.opening.done() or owned.opening.cancelled():
                continue
            async with owned.lock:
                with self._noted():
                    await self.check_input(owned.opening.result().state)

    def paused(self) -> str:
        """What legitimately holds batches up, for the watchdog; empty when nothing does."""
        opening = [owned.partition for owned in self.owned.values() if not owned.opening.done()]
        return f"recovering partitions {opening}" if opening else ""

    async def handle(self, batch: Any) -> None:
        """Take a batch: steps 1 to 5 when its turn comes, 6 and 7 when the interval closes. Returns when there is room for
        another; raises what an earlier one failed with."""
        await self._room.wait()
        if self._failure is not None:
            raise self._failure
        owned = self.owned.get(batch.partition)
        if owned is None:  # it will be read again by whoever owns the partition now
            return
        owned.waiting.append(batch)
        self._hold(1, len(batch.records))
        if owned.working is None:
            owned.working = asyncio.create_task(self._work(owned))

    def _hold(self, batches: int, records: int) -> None:
        self._held_batches += batches
        self._held_records += records
        if self._failure is not None or self._held_batches < BATCHES_MAX or self._held_records < TOGETHER_RECORDS_MAX:
            self._room.set()
        else:
            self._room.clear()

    async def _work(self, owned: Owned) -> None:
        try:
            while owned.waiting:
                started = time.perf_counter()
                async with owned.lock:
                    opened = await owned.opening
                    await self._until_it_may_write(owned)
                    batches = _together(owned.waiting)
                    try:
                        await self._process(owned, opened, [batch for batch in batches if not batch.stale], started)
                    finally:
                        self._hold(-len(batches), -sum(len(batch.records) for batch in batches))
        except asyncio.CancelledError:
            if self.owned.get(owned.partition) is owned:  # it was not taken away: then nobody asked for this
                self._failure = self._failure or Stray(f"work on partition {owned.partition} was cancelled by nobody")
            raise
        except Exception as error:  # raised by the timer and to whoever brings the next batch
            self._failure = self._failure or error
        finally:  # in the very step in which nothing waits any more; else it failed, or its partition went away unopened
            owned.working = None
            self._hold(-len(owned.waiting), -sum(len(batch.records) for batch in owned.waiting))
            owned.waiting.clear()

    async def _until_it_may_write(self, owned: Owned) -> None:
        """A worker that slept says nothing before the group has answered: by then the partition may be another's, who has
        said all this. If it is, the batches are stale; if not, nobody else has read them."""
        while self.owned.get(owned.partition) is owned and self._failure is None and not self.may_write():  # noqa: ASYNC110
            await asyncio.sleep(FENCED_POLL_S)  # the age of a heartbeat is no event

    async def regained(self, partition: int) -> bool:
        """Of the port `stream.ports.Fence`, for a batch that is being worked on, and for an opening. Waits as long as nobody
        knows; who is no member any more is about to lose the partition."""
        if (owned := self.owned.get(partition)) is not None:
            await self._until_it_may_write(owned)
        return self.may_write()

    async def _process(self, owned: Owned, opened: Opened, batches: list[Any], started: float) -> None:
        if not batches or self.owned.get(owned.partition) is not owned or self._failure is not None:
            return
        one = Together(batches[0].topic, owned.partition, batches, [record for batch in batches for record in batch.records])
        with self._noted():
            source = await self.source_of(one.topic)
            if opened.state.given_again(one.topic, one.records):
                await self.check_input(opened.state)
            with self.around(one):
                await self.personalizer.process(opened.state, source, one.records, self._most_waiting(one))
        owned.open_batches += batches
        self.on_batch(one, time.perf_counter() - started)

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """A failure is noted before anybody else gets the lock of the partition: a state that is half changed, or of which
        not all was said, is not written."""
        try:
            yield
        except Exception as error:
            self._failure = self._failure or error
            raise

    def _most_waiting(self, batch: Together | None = None) -> int:
        """Records that wait in the partition that is furthest behind, not counting those of `batch`: all partitions of a
        worker share one processor, so those that have caught up make room for the others."""
        most = 0
        for partition, owned in self.owned.items():
            if owned.opened:
                taken = len(batch.records) if batch is not None and batch.partition == partition else 0
                most = max(most, (self.waiting(partition) or 0) - taken)
        return most

    async def run_timer(self) -> None:
        """Close intervals and let time pass, until cancelled."""
        while True:
            asleep_since = time.monotonic()
            await asyncio.sleep(self.flush_interval_ms / 1000)
            if self._failure is not None:
                raise self._failure
            if time.monotonic() - asleep_since > self.flush_interval_ms / 1000 + ASLEEP_S:
                continue
            self._take_counts()
            self.personalizer.segments.look(self.personalizer.serving.current)
            owned = [one for one in self.owned.values() if one.opened]
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
        wait. Whether it was closed."""
        async with owned.lock:
            if self.owned.get(owned.partition) is not owned:
                return False
            opened = owned.opening.result()
            self._refresh(owned, opened)
            waiting, settings = self._most_waiting(), self.personalizer.settings
            if settings.behind(waiting) and time.monotonic() - owned.closed_at < settings.flush_interval_behind_ms / 1000:
                return False
            with self._noted():
                return await self._close(owned, opened.state, waiting)

    def _refresh(self, owned: Owned, opened: Opened) -> None:
        """A new model, or setting, moves everybody's due time; new rules, and time, move people between segments."""
        part, personalizer = opened.state, self.personalizer
        by = f"{personalizer.serving.current.version} {self._policy}"
        sweep = owned.sweeps.setdefault("model", Sweep(part.swept))  # a restart need not write every state again
        part.refresh(sweep.some(by, opened.user_keys))
        part.swept = by if sweep.done else ""
        desk = personalizer.segments
        if part.meta.live_since_ms:  # without rules once, for those who are in segments that are no more
            turn = personalizer.clock.now_ms() // (desk.sweep_s * 1000) if desk.rules.rules else 0
            due = owned.sweeps.setdefault("segments", Sweep()).some((desk.rules.version, turn), opened.user_keys)
            part.unsorted |= dict.fromkeys(due, True)

    async def _tick(self, owned: Owned) -> None:
        async with owned.lock:
            if self.owned.get(owned.partition) is owned and self._failure is None and self.may_write():
                caught_up = not owned.open_batches and self.waiting(owned.partition) == 0
                with self._noted():
                    await self.personalizer.tick(owned.opening.result().state, caught_up, self._most_waiting())

    async def _close(self, owned: Owned, state: PartitionState, waiting: int = 0) -> bool:
        """Steps 6 and 7, unless they must not be done: False. A worker that slept through a rebalance writes nothing; its
        records are read again.

        Batches that went stale by a mere rewind are folded already: their second reading is told by offset and ids.
        """
        if self._failure is not None:
            return False  # a batch may be half folded; the process is about to end
        if not self.may_write():
            log.warning("interval not written", partition=owned.partition, batches=len(owned.open_batches),
                        why="the group moved on or the last heartbeat is too old; its records are read again")  # fmt: skip
            return False
        started = time.perf_counter()
        owned.closed_at = time.monotonic()
        if not await self.personalizer.close_interval(state, waiting):
            log.warning("interval not acknowledged", partition=owned.partition, batches=len(owned.open_batches),
                        why="the partition was lost while it was written; its records are read again")  # fmt: skip
            return False
        for batch in owned.open_batches:
            batch.ack()
        owned.open_batches.clear()
        if state.outcomes:
            self.on_closed(state, time.perf_counter() - started)
        return True


def _together(waiting: deque[Any]) -> list[Any]:
    """Takes the first, and those after it that are of the same topic and small enough to be worked on with it."""
    batches = [waiting.popleft()]
    records = len(batches[0].records)
    while waiting and waiting[0].topic == batches[0].topic:
        records += len(waiting[0].records)
        if records > TOGETHER_RECORDS_MAX:
            break
        batches.append(waiting.popleft())
    return batches


def rebuild_due(entries: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes | None]:
    """Due records from packed states, after a store was rebuilt from the changelog."""
    puts: dict[bytes, bytes | None] = {}
    for key, value in entries:
        if not key.startswith(b"#") and key != META_KEY:
            due = due_of(value)
            if due:
                puts[DUE_PREFIX + key] = due.to_bytes(8, "big")
    return puts
