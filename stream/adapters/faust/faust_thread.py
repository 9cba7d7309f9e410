"""The thread that runs aiokafka's consumer: fetch, rewind and commit, each one step in that thread's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from aiokafka import TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    IllegalGenerationError,
    IllegalStateError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)
from aiokafka.protocol.group import SyncGroupRequest
from aiokafka.structs import OffsetAndMetadata
from faust.transport.drivers import aiokafka as driver
from faust.types import TP as FaustTP

from stream.adapters.faust.faust_batches import TP

log = logging.getLogger(__name__)

EARLIEST = -2  # OffsetResetStrategy.EARLIEST of aiokafka and of the protocol

# A rebalance happened or is happening: whoever owns the partition next reads from the last commit.
NOT_OURS_ANY_MORE = (CommitFailedError, IllegalGenerationError, RebalanceInProgressError, UnknownMemberIdError,
                     IllegalStateError)

# aiokafka has one fetch under way a broker, for the partitions whose buffer was empty when it was sent. Where none of them
# has anything new the broker keeps it for so long, and a partition whose buffer ran dry since is not asked for. Faust says
# 1,500 ms: the last tenth of a backlog took a second and more.
FETCH_WAIT_MS = 50

REJOIN_PAUSE_S = 1.0  # where the group refuses this process it is asked, and says so, once in so long

T = TypeVar("T")


def boot_time() -> float:
    """Seconds that go on while the machine sleeps, so that a laptop that slept through a session knows it."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class Fetched(dict[Any, Any]):
    """Records by partition, and the epoch in which they were taken from the fetcher's buffer."""

    epoch: int

    def __init__(self, records: Mapping[Any, Any], epoch: int) -> None:
        super().__init__(records)
        self.epoch = epoch


class ConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]  # Faust ships no types we can check against
    """Runs aiokafka's consumer in its own thread and event loop; `fetch_epoch` belongs to that thread."""

    fetch_epoch = 0
    heartbeat_at = float("-inf")
    _joined_at = float("-inf")

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer

    async def on_start(self) -> None:
        self._resets: set[asyncio.Future[Any]] = set()
        await super().on_start()
        # aiokafka keeps the time of the last heartbeat in a local variable, so each heartbeat is watched from outside.
        coordinator = self._ensure_consumer()._coordinator
        send_heartbeat, send = coordinator._do_heartbeat, coordinator._send_req

        async def watched_send(request: Any) -> Any:
            if isinstance(request, SyncGroupRequest):
                self._joined_at = boot_time()
            return await send(request)

        async def watched_heartbeat() -> bool:
            sent_at = boot_time()  # the broker's session clock starts when it receives it: not before this
            alive: bool = await send_heartbeat()
            if alive:
                self.heartbeat_at = sent_at
            return alive

        async def join_again(error: BaseException) -> None:
            """Where aiokafka's coordination has failed it waits until its user asks why. Faust never asks."""
            log.error("the membership in group %s failed, joining it again: %r", coordinator.group_id, error)
            coordinator.request_rejoin()
            await asyncio.wait((coordinator._closing,), timeout=REJOIN_PAUSE_S)

        coordinator._do_heartbeat, coordinator._send_req = watched_heartbeat, watched_send
        coordinator._push_error_to_user = join_again

    def close(self) -> None:
        """Faust calls it from the app's thread, where a rebalance comes while the app stops, and closes the connections from
        there: they are of this thread's event loop, and libuv may crash where two threads use one loop. Nothing is needed:
        what stops the thread stops the consumer in its own loop, and leaves the group."""

    def _crash(self, reason: BaseException) -> None:
        """mode calls it from the app's thread, and wakes what waits for it in this one's loop from there."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self.thread_loop.call_soon_threadsafe(super()._crash, reason)

    async def idle(self) -> None:
        """Nothing is assigned, so nothing is fetched. aiokafka leaves the group after `broker_max_poll_interval` of that."""
        with self._ensure_consumer()._subscription.fetch_context():
            pass

    async def on_partitions_assigned(self, assigned: set[FaustTP], generation_id: int = 0) -> None:
        self.heartbeat_at = self._joined_at  # counts as one, from when it was sent: this process may have slept since
        await super().on_partitions_assigned(assigned, generation_id)

    async def _fetch_records(self, consumer: Any, active_partitions: Any, timeout: float | None = None,  # noqa: ASYNC109  # the name is Faust's
                             max_records: int | None = None) -> Fetched:
        records = await super()._fetch_records(consumer, active_partitions, timeout=timeout, max_records=max_records)
        return Fetched(records, self.fetch_epoch)  # no await in between: the positions moved in this very step

    async def in_thread(self, work: Coroutine[Any, Any, T]) -> T:
        """Run in the consumer's loop. Not through Faust's method queue: its two workers may both be waiting."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.thread_loop))

    async def rewind(self, epoch: int) -> set[TP]:
        """Seek every assigned partition to its committed offset and begin `epoch` in the same step."""
        consumer = self._ensure_consumer()
        subscription = consumer._subscription.subscription
        assignment = None if subscription is None else subscription.assignment
        if assignment is None:
            return set()
        committed = {tp: await consumer.committed(tp) for tp in assignment.tps}
        if not assignment.active:
            raise IllegalStateError("the partitions were reassigned while their committed offsets were read")
        for tp, offset in committed.items():
            if offset is None:
                # `seek_to_beginning` would await in between; the reset itself is a plain call. Its future is done when
                # the broker has said where the beginning is, and fails when the partition goes before that.
                self._keep(consumer._fetcher.request_offset_reset([tp], EARLIEST))
            else:
                consumer._fetcher.seek_to(tp, offset)
        self.fetch_epoch = epoch
        return {TP(*tp) for tp in committed}

    def _keep(self, future: asyncio.Future[Any]) -> None:
        self._resets.add(future)
        future.add_done_callback(self._resets.discard)

    async def committed_or_beginning(self, partitions: Iterable[TP]) -> dict[TP, int]:
        consumer = self._ensure_consumer()
        wanted = [TopicPartition(*tp) for tp in partitions]
        committed = {tp: await consumer.committed(tp) for tp in wanted}
        fresh = [tp for tp, offset in committed.items() if offset is None]
        beginnings = await consumer.beginning_offsets(fresh) if fresh else {}
        return {TP(*tp): beginnings[tp] if offset is None else offset for tp, offset in committed.items()}

    async def commit_once(self, offsets: Mapping[TP, int], generation: int) -> bool:
        """One attempt, in exactly this generation; False if the group moved on. Raises other `KafkaError`s.

        aiokafka's own `commit` retries for ever and then sends the generation of that later moment.
        """
        consumer = self._ensure_consumer()
        coordinator = consumer._coordinator
        subscription = consumer._subscription.subscription
        assignment = None if subscription is None else subscription.assignment
        if assignment is None:
            return False
        await coordinator.ensure_coordinator_known()
        async with coordinator._commit_lock:
            if coordinator.generation != generation:
                return False
            request = {TopicPartition(*tp): OffsetAndMetadata(offset, "") for tp, offset in offsets.items()
                       if TopicPartition(*tp) in assignment.tps}
            try:
                await asyncio.shield(coordinator._do_commit_offsets(assignment, request))
            except NOT_OURS_ANY_MORE:
                return False
        return True
