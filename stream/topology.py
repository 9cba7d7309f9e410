"""The personalize worker's topology, in the order an event travels it.

    events, identity ─▶ batches of raw records ─▶ Fleet.handle ─▶ Personalizer.process (decode, fold, encode, decide)
        ─▶ recommendations, complements, churn-alerts, reminders, dead-letters, identity
        ─▶ interval: item-counts, state changelog, RocksDB ─▶ ack

    item-vectors, item-counts, models ─▶ ServingState, erasures ─▶ Erased: read whole by every worker
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from functools import partial
from typing import NoReturn

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import IllegalGenerationError

from schemas import topics
from schemas.topics import DAY_MS, Topic
from stream.adapters.clock import WallClock
from stream.adapters.faust import faust_compat
from stream.adapters.health import listening, watchdog
from stream.adapters.health.metrics import Metrics
from stream.adapters.kafka import kafka_clients
from stream.adapters.kafka.erasures import Erasures
from stream.adapters.kafka.producing import SendFailed
from stream.adapters.kafka.serving_readers import ServingReaders
from stream.adapters.state import changelog
from stream.adapters.state.left_behind import LeftBehind
from stream.adapters.state.state_store import Identity, PartitionStore, directory
from stream.core.ranking.counts import PartitionCounts
from stream.core.terms import CLAIM_KEY
from stream.endings import only_when_asked
from stream.fleet import Fleet, Opened, rebuild_due
from stream.outbox import OutRecord
from stream.partition import DUE_PREFIX, SWEPT_KEY, NoStore, PartitionState
from stream.personalize import Input, Personalizer, Superseded
from stream.segments import SegmentDesk
from stream.settings import Settings
from stream.tracing import port as tracing
from stream.tracing.port import Tracing

log = structlog.get_logger()
LAG_EVERY_S = 1.0
HEARTBEAT_AGE_MAX_SHARE = 0.8  # of the session timeout: after it, another worker may own the partition


class KafkaOutputs:
    """The Outputs port over the app's idempotent producer: whole batches, acks=all, awaited. Raises `Superseded` where the
    process slept in between, and what it had handed over is out of date."""

    def __init__(self, app: faust_compat.App, prefix: str, tracing: Tracing) -> None:
        self.app = app
        self.prefix = prefix
        self.tracing = tracing

    async def send(self, topic: Topic, records: dict[int, list[OutRecord]]) -> dict[int, int]:
        """Goes on where whoever waits for it is cancelled: what was handed over cannot be taken back, so of which generation
        it is has to stay known."""
        return await asyncio.shield(self._send(topic.name(self.prefix), records))

    async def _send(self, name: str, records: dict[int, list[OutRecord]]) -> dict[int, int]:
        try:
            with self.tracing.outgoing(name, records) as messages, self.app.speaking():
                return await faust_compat.send_batches(self.app, name, messages)
        except SendFailed as error:
            if isinstance(error.__cause__, IllegalGenerationError) and self.app.failure is None:
                raise Superseded(f"a partition went to another worker while this one slept, before {name} had what it said. "
                                 "The records are read again by who owns it now") from error  # fmt: skip
            raise


class Personalize:
    """Everything one personalize process holds. `app` is ready to run."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        prefix = settings.kafka.topic_prefix
        self.events = topics.EVENTS.name(prefix)
        self.identity = topics.IDENTITY.name(prefix)
        self.app = faust_compat.create_app(
            settings, name="personalize", on_assigned=self.on_assigned, on_revoked=self.on_revoked,
            commit_interval_ms=settings.personalize.flush_interval_ms,
        )
        self.metrics = Metrics("personalize", settings)
        self.tracing = tracing.start(settings, "personalize")
        self.ranking = ServingReaders(settings, self.metrics.releases)
        self.left_behind = LeftBehind(settings)
        self.erasures = Erasures(settings, self.left_behind.note)
        personalizer = Personalizer(
            settings.personalize,
            self.ranking.serving,
            KafkaOutputs(self.app, prefix, self.tracing),
            self.ranking.run_model,
            WallClock(),
            partial(kafka_clients.partition_of, partitions=settings.kafka.partitions),
            self,
            self.erasures,
            SegmentDesk(self.ranking.run_model, settings.segments_file, settings.segments.sweep_s),
        )
        self.fleet = Fleet(
            personalizer,
            self.open_partition,
            self.source_of,
            self.waiting,
            self.may_write,
            settings.personalize.flush_interval_ms,
            self.check_input,
            self.metrics.interval_closed,
            lambda batch, seconds: self.metrics.batch_done(batch.topic, len(batch.records), seconds),
            lambda batch: self.tracing.batch(f"{prefix}-personalize", batch.records),
        )
        self.following = asyncio.Event()
        self.announcing: asyncio.Task[None] | None = None
        self.goes_on: asyncio.Task[dict[faust_compat.TP, int]]  # where the group goes on in what was assigned
        self.sources: dict[str, Input] = {}
        faust_compat.batch_agent(self.app, self.events, self.identity, name="personalize")(self.agent)
        self.app.task(self.fleet_timer)
        self.app.task(self.follow)

    async def agent(self, batches: AsyncIterator[faust_compat.RecordBatch]) -> None:
        """The Faust agent: a few batches at a time, those of one partition one after the other."""
        async for batch in batches:
            await self.fleet.handle(batch)

    async def fleet_timer(self) -> None:
        try:
            await only_when_asked(self.fleet.run_timer)()
        except Exception as error:  # anything unexpected: acknowledge nothing more, end the process
            await self.app.fail(error)

    async def follow(self) -> None:
        """Keep the topics that every worker reads whole, and take over releases."""
        try:
            async with asyncio.TaskGroup() as group:
                self.ranking.start(group)
                self.erasures.start()
                group.create_task(self.erasures.wait_failed())
                group.create_task(self.left_behind.watch(self.erasures, self.fleet.owned))
                self.following.set()
                group.create_task(self.say_lag())
                group.create_task(watchdog.watch(self.app, paused=self.fleet.paused))
                group.create_task(listening.topics_made_again(self.settings, (self.events, self.identity), self._made_again))
        except* Exception as errors:
            await self.app.fail(errors.exceptions[0])

    async def on_assigned(self, partitions: set[faust_compat.TP]) -> None:
        self.sources.clear()  # a topic may have been made again since they were asked for
        self.goes_on = asyncio.create_task(self.app.consumer.positions())
        await self.fleet.assigned({tp.partition for tp in partitions if tp.topic == self.events})
        self.announcing = asyncio.create_task(self._announce())

    async def _announce(self) -> None:
        """Ready once what was assigned is open; what fails to open ends the process where its batches wait for it."""
        openings, turn = [owned.opening for owned in self.fleet.owned.values()], self.left_behind.turn
        await asyncio.gather(*openings, return_exceptions=True)
        self.left_behind.handed_out(turn)
        self.metrics.announce()

    async def on_revoked(self, partitions: set[faust_compat.TP]) -> None:
        self.left_behind.handing_out()
        gone = {tp.partition for tp in partitions if tp.topic == self.events}
        await self.fleet.revoked(gone)
        self.metrics.let_go(gone)

    async def say_lag(self) -> NoReturn:
        """Whether or not there is a batch or an interval: lag grows most while there is none."""
        while True:
            for partition in self.fleet.owned:
                if (waiting := self.waiting(partition)) is not None:
                    self.metrics.lag.labels(str(partition)).set(waiting)
            await asyncio.sleep(LAG_EVERY_S)  # the pace of the watch itself

    async def source_of(self, topic: str) -> Input:
        """The input's identity: a topic deleted and made again has another id, and its offsets mean something else."""
        found = self.sources.get(topic)
        if found is None:
            entity = topics.EVENTS if topic == self.events else topics.IDENTITY
            found = self.sources[topic] = Input(topic, await kafka_clients.topic_id(self.settings, topic), entity)
        return found

    def waiting(self, partition: int) -> int | None:
        """Events of the partition that the broker has and that are not folded; None while nobody knows."""
        owned = self.fleet.owned.get(partition)
        if owned is None or not owned.opened:
            return None
        highwater = self.app.consumer.highwater(faust_compat.TP(self.events, partition))
        if highwater is None:
            return None
        return max(0, int(highwater) - owned.opening.result().state.folded(self.events) - 1)

    def holds(self) -> bool:
        """Of the port `Fence`."""
        return self.may_write()

    async def regained(self, partition: int) -> bool:
        """Of the port `Fence`."""
        return await self.fleet.regained(partition)

    async def written_between(self, partition: int, first: int, last: int) -> set[bytes]:
        """Of the port `Fence`."""
        topic = topics.STATE.name(self.settings.kafka.topic_prefix)
        log.warning("somebody else wrote to the changelog", partition=partition, first=first, last=last,
                    next="it does not count; its keys are written anew")  # fmt: skip
        return await changelog.keys_between(topic, partition, first, last, self.settings)

    def may_write(self) -> bool:
        return (
            self.app.failure is None
            and faust_compat.current_generation(self.app) >= 0
            and faust_compat.heartbeat_age_ms(self.app) < HEARTBEAT_AGE_MAX_SHARE * self.settings.kafka.session_timeout_ms
        )

    async def open_partition(self, partition: int) -> Opened:
        """Recover one partition: claimed, so that nothing counts any more that its former owner may write yet; its store
        brought up to the changelog's end; its counts as they were published."""
        await self.following.wait()
        await asyncio.gather(self.ranking.ready(), self.erasures.ready())
        # what the owner before us published until it let go, and the release it may have ranked with already
        taken_over = [self.ranking.readers[topic] for topic in (topics.ITEM_COUNTS, topics.MODELS)]
        await asyncio.gather(*(reader.caught_up() for reader in (*taken_over, self.erasures)))
        await self.ranking.releases.settled()
        if partition >= self.settings.kafka.partitions:
            return self._passing_on(partition)
        topic = topics.STATE.name(self.settings.kafka.topic_prefix)
        now_ms = self.fleet.personalizer.clock.now_ms()
        identity = Identity(await kafka_clients.topic_id(self.settings, topic), DAY_MS, now_ms)
        store = PartitionStore.open(directory(self.settings, "personalize", partition), identity)
        try:
            return await self._recover(partition, store, topic, identity.topic_id)
        except BaseException:  # taken away meanwhile, or failed: RocksDB's lock would outlive it
            store.close()
            raise

    async def _recover(self, partition: int, store: PartitionStore, topic: str, topic_id: str) -> Opened:
        clock = self.fleet.personalizer.clock
        if not await self.fleet.regained(partition):
            raise Superseded(f"partition {partition} was taken away before it was claimed")
        claim = [OutRecord(CLAIM_KEY, socket.gethostname().encode(), [])]
        term = (await self.fleet.personalizer.outputs.send(topics.STATE, {partition: claim}))[partition]
        recovered = await changelog.recover(store, topic, partition, self.settings)
        if store.term != term:
            raise Superseded(f"another worker has claimed partition {partition} while this one opened it")
        due = [(key[len(DUE_PREFIX) :], value) for key, value in store.iterate(DUE_PREFIX)]
        if store.unsettled is not None:
            gone: dict[bytes, bytes | None] = {DUE_PREFIX + key: None for key, _ in due}
            settled = gone | rebuild_due(store.iterate()) | {SWEPT_KEY: None}
            store.write(settled, store.changelog_offset, clock.now_ms(), unsettled=recovered.stale or None,
                        begun=store.begun)  # fmt: skip
            due = [(key[len(DUE_PREFIX) :], value) for key, value in store.iterate(DUE_PREFIX)]
        serving = self.ranking.serving
        counts = PartitionCounts(serving.current.counts_policy, serving.counts_of(partition), serving.lists)
        own = self.settings.personalize
        state = PartitionState(partition, store, counts, own.cached_states_max, own.recommend_interval_ms)
        state.kept_in(topic_id)
        await self._reconcile(state)
        state.load_timers([(key, int.from_bytes(value, "big")) for key, value in due])
        if recovered.stale:
            state.write_again(recovered.stale)
        log.info("partition opened", partition=partition, recovered=recovered.records, seconds=round(recovered.seconds, 3),
                 timers=len(due))  # fmt: skip
        return Opened(state, store.close, lambda: (key for key, _ in store.iterate() if not key.startswith(b"#")))

    async def check_input(self, state: PartitionState) -> None:
        """Of an open partition: raises `InputChanged` where an input is another than the state was folded from. What is open
        cannot be mended, acknowledgements of the former records among it: the process ends, and opens it anew."""
        self.sources.clear()
        for tp, _, why in await self._compared(state):
            if why is not None:
                raise changelog.InputChanged(f"{tp.topic}[{tp.partition}]: {why}. This worker ends and begins anew")

    async def _made_again(self, names: set[str]) -> None:
        """A partition that was opened since, as where Faust was told of the new topic itself, knows already."""
        await self.fleet.check_inputs()

    async def _compared(self, state: PartitionState) -> list[tuple[TopicPartition, changelog.Place, str | None]]:
        """The inputs, and why one is not what the state was folded from; from here on the state knows."""
        folded = {TopicPartition(name, state.partition): state.folded(name) for name in (self.events, self.identity)}
        found = []
        for tp, place in (await changelog.look(folded, self.settings)).items():
            source = await self.source_of(tp.topic)
            why = state.reconcile(tp.topic, source.topic_id, place.end, place.append_ms, counted=tp.topic == self.events)
            found.append((tp, place, why))
        return found

    async def _reconcile(self, state: PartitionState) -> None:
        """Are the inputs what the state was folded from, and does it stand for what the group has passed? Where the group
        goes on behind what is new, or what it does not stand for, events would be lost without a word: then somebody has to
        decide, see `InputChanged`. No place is committed before the changelog has what stands for it."""
        goes_on = await asyncio.shield(self.goes_on)  # others wait for it, too: an opening may be cancelled
        for tp, place, why in await self._compared(state):
            stands_for = place.begin
            if why is not None:
                log.error("the input is not what the state was folded from", topic=tp.topic, partition=tp.partition, why=why,
                          next="events are told apart by their ids")  # fmt: skip
            else:
                stands_for = max(state.folded(tp.topic) + 1, place.begin)
                why = (f"the state stands for what is before {stands_for}: the changelog was made again or lost records, or "
                       "somebody moved the group")  # fmt: skip
            if stands_for < (committed := goes_on.get(faust_compat.TP(*tp), 0)) <= place.end:
                raise changelog.InputChanged(
                    f"{tp.topic}[{tp.partition}]: {why}. The group goes on at {committed} and would pass over what was "
                    "written before it: end all workers, then clickwake rewind, then start them (docs/faults.md, 'Broker "
                    "restored')"
                )

    def _passing_on(self, partition: int) -> Opened:
        """A partition that was added after the states were laid out: its events belong to users whose states live in the
        first ones, so each is passed on to where its user is. Nothing is lost, at the price of a second hop."""
        log.error("partition without states: its events are passed on to the partitions that have them", topic=self.events,
                  partition=partition, laid_out_for=self.settings.kafka.partitions,
                  next="see docs/faults.md, 'Partitions added'")  # fmt: skip
        counts = PartitionCounts(self.ranking.serving.current.counts_policy)
        state = PartitionState(partition, NoStore(), counts, 1, self.settings.personalize.recommend_interval_ms)
        return Opened(state, lambda: None, lambda: ())


def create_app(settings: Settings) -> faust_compat.App:
    """The Faust app of a personalize worker."""
    return Personalize(settings).app
