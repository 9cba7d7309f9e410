"""Faust's aiokafka transport, turned from one message a record into one message a partition and poll.

Every private name of Faust 0.15.3 and aiokafka 0.14.0 that Clickwake leans on is used in this file, `faust_thread` or
`faust_compat`, and listed in `tests/contract/test_faust_compat_pins.py`, which fails when a version changes.

What is Faust's own here: group membership, the assignor, flow control, agents and their supervision, start and stop.
What is ours: what a message carries, which offsets are committed and when, and what happens before a revocation.

How a record can get lost between the fetch and the commit, and what prevents it:

- A fetch returns after a rewind or an assignment → it carries the epoch of its start; another epoch's is dropped, and
  the position it came from has been reset by whatever began the new epoch.
- Faust drops a fetched message (flow suspended, queues cleared) → a rebalance follows, which rewinds; if not, the
  ledger sees a gap in the sequence of batches and asks for a rewind.
- aiokafka's position is ahead of what was delivered → every rewind seeks to the committed offset, or to the start
  where nothing was committed yet (Faust's own `perform_seek` leaves such a partition where it is).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP as FaustTP
from faust.types import ConsumerMessage

from stream.adapters.faust.faust_batches import TP, Delivery, Ledger, RecordBatch
from stream.adapters.faust.faust_thread import ConsumerThread, boot_time

log = logging.getLogger(__name__)

COMMIT_TIMEOUT_S = 10.0  # longer than a leader election on a healthy cluster; a late commit is only a longer replay

PartitionsHook = Callable[[set[TP]], Awaitable[None]]


class Consumer(driver.Consumer):  # type: ignore[misc]  # Faust ships no types we can check against
    """Yields one message a partition and poll; its value is a `RecordBatch`. Acknowledgement is the ledger's."""

    _thread: ConsumerThread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.ledger = Ledger()
        self.assigned_ready = asyncio.Event()  # the worker's state is there: records may be fetched
        self._owned: set[TP] = set()
        self._assigning: asyncio.Task[None] | None = None
        self._epoch_generation = -1
        self._rewind_needed = True
        self._rewind_lock = asyncio.Lock()
        self._commit_lock = asyncio.Lock()
        self._hand_over_lock = asyncio.Lock()
        super().__init__(*args, **kwargs)

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    # A full queue already blocks the fetch loop. Taking the partition out of the active set as well would make Faust
    # sleep a whole second whenever the set is empty.
    def on_buffer_full(self, tp: FaustTP) -> None: ...

    def on_buffer_drop(self, tp: FaustTP) -> None: ...

    # Faust reads the broker's timestamp as a monotonic time here; `watchdog` does what this was meant to do.
    def verify_event_path(self, now: float, tp: FaustTP) -> None: ...

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[FaustTP, ConsumerMessage]]:  # noqa: ASYNC109
        """One message for each partition that has records. Called in a loop by Faust's fetcher."""
        if self._rewind_needed and self.flow_active:
            await self._rewind()
        if not self.assigned_ready.is_set():
            try:
                await asyncio.wait_for(self.assigned_ready.wait(), timeout)
            except TimeoutError:
                return
        if not self._owned:
            await self._thread.in_thread(self._thread.idle())
        fetched, active = await self._wait_next_records(timeout)
        if not fetched or self.should_stop:
            return
        for tp, records in fetched.items():
            if fetched.epoch != self.ledger.epoch:
                return  # the positions were reset since: these are read again
            if not self.flow_active or (active is not None and tp not in active):
                self._rewind_needed = True
                return
            yield tp, self._message(TP(*tp), records)

    def _message(self, tp: TP, records: list[Any]) -> ConsumerMessage:
        batch = self.ledger.issue(tp, self.app.consumer_generation_id, records)
        first = records[0]
        return ConsumerMessage(tp.topic, tp.partition, first.offset, first.timestamp / 1000, first.timestamp_type, (),
                               None, batch, None, 0, 0, FaustTP(*tp), generation_id=batch.generation)

    async def perform_seek(self) -> None:
        """Faust calls it after each rebalance. Where it takes longer than a request may, as while the group's coordinator is
        away, Faust gives its recovery up without a word, and nothing is consumed any more: so `getmany` rewinds, which waits
        as long as it takes."""
        self._rewind_needed = True

    async def _rewind(self) -> None:
        """To what is committed; open batches become stale."""
        async with self._rewind_lock:
            self._rewind_needed = True
            epoch = self.ledger.begin_epoch()
            self._epoch_generation = self.app.consumer_generation_id
            try:
                partitions = await self._thread.in_thread(self._thread.rewind(epoch))
            except KafkaError as error:
                # nothing is delivered before a rewind has worked, and the fetch loop asks for it again
                log.warning("cannot seek to the committed offsets yet, will try again: %r", error)
                return
            if epoch == self.ledger.epoch:
                self._rewind_needed = False
            for tp in partitions:
                self._read_offset[FaustTP(*tp)] = None

    def deliver(self, batch: RecordBatch) -> bool:
        """Open the batch for its agent, unless it is stale; see the rules in `faust_batches`."""
        verdict = self.ledger.deliver(batch)
        if verdict is Delivery.GAP:
            log.warning("a batch of %s[%d] before offset %d was dropped on its way to the agent; reading again from the "
                        "last commit", batch.topic, batch.partition, batch.first_offset)
            self._rewind_needed = True
        return verdict is Delivery.OK

    async def commit_acknowledged(self) -> bool:
        """Commit what was acknowledged. True if the broker holds all of it, False if it has to be tried again.

        Never raises for a broker that is away: then the next commit says the same or more.
        """
        async with self._commit_lock:
            epoch, generation, offsets = self.ledger.epoch, self._epoch_generation, self.ledger.pending()
            if not offsets:
                return True
            attempt = self._thread.in_thread(self._thread.commit_once(offsets, generation))
            try:
                done = await asyncio.wait_for(attempt, COMMIT_TIMEOUT_S)
            except (KafkaError, TimeoutError) as error:
                log.warning("offsets not committed, will try again: %r", error)
                return False
            if done:
                self.ledger.mark_committed(epoch, offsets)
            return done

    async def force_commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Called by Faust's commit timer, before a rebalance and at the end."""
        await super().force_commit(topics, start_new_transaction=start_new_transaction)
        return await self.commit_acknowledged()

    async def on_partitions_revoked(self, revoked: set[FaustTP]) -> None:
        await self.hand_over()
        await super().on_partitions_revoked(revoked)

    async def on_partitions_assigned(self, assigned: set[FaustTP], generation_id: int = 0) -> None:
        await super().on_partitions_assigned(assigned, generation_id)
        self._owned = {TP(*tp) for tp in assigned}
        # Not awaited here: aiokafka sends no heartbeats until its callback returns, and recovery may take minutes.
        self._assigning = asyncio.create_task(self._prepare(set(self._owned)))

    async def _prepare(self, assigned: set[TP]) -> None:
        try:
            await self.app.hooks.on_assigned(assigned)
        except Exception as error:
            await self.app.fail(error)
        else:
            self.assigned_ready.set()

    async def hand_over(self) -> None:
        """Let the worker close its interval while the partitions are still ours; then every open batch is stale.

        Faust would wait here for each unacknowledged message while the flow is stopped. Ours are not tracked by it,
        so it finds nothing to wait for; what the hook did not acknowledge is read again by the next owner.
        """
        async with self._hand_over_lock:  # SIGTERM may come during a rebalance
            await self._hand_over()

    async def _hand_over(self) -> None:
        self.assigned_ready.clear()
        if self._assigning is not None:
            assigning, self._assigning = self._assigning, None
            assigning.cancel()
            await asyncio.wait([assigning])
        owned, self._owned = self._owned, set()
        if not owned:
            return
        self.stop_flow()
        self.app.flow_control.suspend()
        if self.app.failure is None:
            limit_s = self.app.conf.broker_rebalance_timeout * 0.8  # after the whole of it the broker goes on without us
            try:
                await asyncio.wait_for(self.app.hooks.on_revoked(owned), limit_s)
            except Exception as error:
                await self.app.fail(error)
            else:
                await self.commit_acknowledged()
        self.ledger.begin_epoch()
        self._rewind_needed = True

    @property
    def generation(self) -> int:
        """The group's generation, -1 while this process is no member."""
        return int(self._thread._ensure_consumer()._coordinator.generation)

    @property
    def heartbeat_age_ms(self) -> float:
        return (boot_time() - self._thread.heartbeat_at) * 1000

    @property
    def thread_loop(self) -> asyncio.AbstractEventLoop:
        """Of the thread that runs aiokafka's consumer."""
        loop: asyncio.AbstractEventLoop = self._thread.thread_loop
        return loop

    @property
    def owned(self) -> frozenset[TP]:
        return frozenset(self._owned)

    async def positions(self) -> dict[TP, int]:
        """The next offset each owned partition needs: acknowledged here, else committed, else its beginning."""
        acknowledged = self.ledger.acknowledged()
        unknown = [tp for tp in self._owned if tp not in acknowledged]
        committed = await self._thread.in_thread(self._thread.committed_or_beginning(unknown))
        return committed | {tp: offset for tp, offset in acknowledged.items() if tp in self._owned}

    async def end_offsets(self, partitions: Iterable[TP]) -> dict[TP, int]:
        """Asked of the broker, not of the fetcher's memory. Raises `KafkaError` when it does not answer."""
        consumer = self._thread._ensure_consumer()
        wanted = [TopicPartition(*tp) for tp in partitions]
        offsets = await self._thread.in_thread(consumer.end_offsets(wanted))
        return {TP(*tp): offset for tp, offset in offsets.items()}


class Transport(driver.Transport):  # type: ignore[misc]  # Faust ships no types we can check against
    Consumer = Consumer
