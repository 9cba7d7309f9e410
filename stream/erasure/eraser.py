"""One request to forget a user, carried out everywhere. Every step may be repeated; a crash begins again at 1.

1. The request is on the erasures topic: from now on collector, personalize and sink take nothing more of the user's past.
2. The anonymous ids that only this user had are looked up in ClickHouse, put onto the list as well, and noted in the
   request, since step 5 removes what they were found by. So are those that step 3 has put there.
3. Every id is sent to the owner of its state as a message on the identity topic, which is folded like an event: the owner
   deletes it from the refusals' topic, the changelog and, on disk, from its store, and then acknowledges the message. The
   changelog's tombstone and the acknowledgement are awaited, and that of what the owner told states that may name the user:
   where one is a device's that only they used, it goes too, and its owner puts the device on the list by its name.
4. What the sink has still to store is awaited: it was read before the list was known, or goes past it. Then 2 again, and
   where devices are found, 3 and 4 for them.
5. Rows are deleted from ClickHouse by rewriting the parts they are in, until a count finds none.
6. The request is written again without the name, with a receipt of what was done, signed where a key is set. Whether the
   user is suppressed is said as the list says it then: a request to delete lifts nothing, and undoes no lift.

What this cannot see goes by itself, and the receipt says so, place by place (`seen` false): copies on Kafka by the topics'
bounds, with the day; what other processes hold as they read the list or the changelog (`BY_THEMSELVES`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Protocol, TypeVar

import msgspec
import structlog
from aiokafka import AIOKafkaProducer, TopicPartition
from clickhouse_connect.driver.exceptions import ClickHouseError

from schemas import topics
from schemas.erasure import Done, Erasure, Receipt, subject
from schemas.events import key, ms
from schemas.topics import Topic
from stream.adapters.database.clickhouse import missing
from stream.adapters.health.lag import Lag
from stream.adapters.kafka.kafka_clients import partition_of, reader
from stream.adapters.kafka.producing import Message, send_keyed
from stream.adapters.models import signing
from stream.core.user import identity
from stream.erasure.rows import Rows
from stream.partition import unpack
from stream.settings import Kafka, Settings
from stream.tracing.port import UNTRACED, Tracing

log = structlog.get_logger()
T = TypeVar("T")

SAY_EVERY_S = 10.0  # which step is waited for, and for whom
POLL_S = 0.5
STORED = (topics.EVENTS, *topics.OUTPUTS)
COPIES = (*STORED, topics.IDENTITY, topics.STATE, topics.OFFERS, topics.ADS_REFUSALS, topics.ERASURES)


OUTSIDE = ("copies outside of this installation: backups, exports, what was delivered", "not reached from here")
# Who is asked for nothing here, because nobody knows how many of them run, or whether any does
BY_THEMSELVES = (
    ("personalize: stores of partitions that a process has owned and does not own any more",
     "deleted by that process as it reads the list of erasures; by one that does not run, when it starts"),
    ("read API: each process's copy of the states, memory and disk",
     "deleted by that process as it reads the changelog's tombstone; by one that does not run, when it starts"),
    ("offers worker: what the user saw and what is open",
     "deleted by that worker as it reads the list of erasures, with a tombstone on its topic; then by read APIs"),
    ("delivery worker: what waits to be sent",
     "left out by that worker by the list; what was counted for caps, with the records it was counted from"),
    ("insights worker: what the user said", "heard and quoted no more, by the list; sums over everybody stay"),
    ("training", "learns from ClickHouse, where nothing is left; what was released, or is learned now, stays"),
    OUTSIDE,
)


def until(topic: Topic, at: datetime, kafka: Kafka) -> datetime:
    """When a record that was on the topic at this time is gone: its segment is closed after a day at most, and then kept for
    the retention, or compacted within a day. A tombstone, whose key names the user, is kept for a day after that and goes
    with the next compaction, if the topic is written to meanwhile."""
    if topic.cleanup == "compact":
        return at + timedelta(milliseconds=5 * topics.DAY_MS)
    return at + timedelta(milliseconds=topics.DAY_MS + kafka.retention_ms(topic))


class Listed(Protocol):
    """What the eraser asks of the list of erasures, which holds its requests too."""

    def suppresses(self, user_key: bytes) -> bool: ...

    def devices(self, erasure_id: str) -> list[str]: ...

    async def caught_up(self) -> None: ...


class Eraser:
    """Steps 2 to 6. `producer` is running."""

    def __init__(self, settings: Settings, producer: AIOKafkaProducer, listed: Listed, tracing: Tracing = UNTRACED) -> None:
        self.settings, self.producer, self.listed, self.tracing = settings, producer, listed, tracing
        self.signer = signing.signer(settings.models)

    async def erase(self, request: Erasure) -> Erasure:
        """Returns the request as it is written at the end: without the name, with its receipt."""
        user = request.user_id
        assert user is not None, "nothing is left to be done"
        say = log.bind(erasure_id=request.erasure_id, tenant=request.tenant)
        say.info("erasure begun")
        suppressed = self.listed.suppresses(key(request.tenant, user))
        rows = Rows(self.settings, request.tenant, request.requested_at, suppress=suppressed)
        request, asked = await self._with_devices(request, user, rows), subject(key(request.tenant, user))
        told: tuple[str, ...] = ()
        while new := tuple(one for one in (user, *request.devices) if one not in told):
            with self.tracing.call("erase the state", asked):
                await self._say_waiting("a personalize worker to delete the state", self._forgotten(request, new))
            told += new
            say.info("state deleted", ids=len(new))
            await self._say_waiting("the sink to store what came before", self._stored())
            request = await self._with_devices(request, user, rows)
        ids = (user, *request.devices)
        keys = [key(request.tenant, one) for one in ids]
        with self.tracing.call("erase rows", asked):
            done = await self._persist(partial(rows.delete, ids))
            while await self._persist(partial(rows.left, ids)):
                await self._say_waiting("the sink to store what came before", self._stored())
                again = await self._persist(partial(rows.delete, ids))
                done = [msgspec.structs.replace(one, records=one.records + more.records)
                        for one, more in zip(done, again, strict=True)]  # fmt: skip
        await self.listed.caught_up()  # of a suppression that was lifted meanwhile nothing must be said
        final = self._finished(request, keys, done)
        await self.note([(subject(keys[0]), final)])
        say.info("erasure done", rows=sum(one.records for one in done), signed=self.signer is not None)
        return final

    async def _with_devices(self, request: Erasure, user: str, rows: Rows) -> Erasure:
        """Step 2: the request with the devices that tables or states know now. It names one before the device's own entry
        ceases to: a crash in between would leave it to nobody. Where others came with it, or it is an account, as tables
        know, nothing late is taken, and the rows stay; it is not suppressed."""
        await self.listed.caught_up()
        whose = key(request.tenant, user)
        told = [one for one in self.listed.devices(request.erasure_id) if one != user]
        request = msgspec.structs.replace(request, suppress=self.listed.suppresses(whose))  # as it is now: see step 6
        shared = await self._persist(partial(rows.shared, user, told)) if told else []
        found = [*await self._persist(partial(rows.devices, user)), *(one for one in told if one not in shared)]
        new = [one for one in dict.fromkeys(found) if one != user and one not in request.devices]
        if new:
            request = msgspec.structs.replace(request, devices=(*request.devices, *new))
            await self.note([(subject(whose), request)])
        if entries := dict.fromkeys((*new, *told)):
            await self.note([self._of_device(request, one, shared=one in shared) for one in entries])
        return request

    def _of_device(self, request: Erasure, device: str, *, shared: bool) -> tuple[bytes, Erasure]:
        """The entry of an anonymous id, by its subject; where that was suppressed itself, it stays so."""
        own = key(request.tenant, device)
        suppress = (request.suppress and not shared) or self.listed.suppresses(own)
        return subject(own), msgspec.structs.replace(request, user_id=None, devices=(), device=True, suppress=suppress)

    async def note(self, entries: Sequence[tuple[bytes, Erasure]]) -> None:
        """Write entries of the list, by their subjects."""
        name = topics.ERASURES.name(self.settings.kafka.topic_prefix)
        messages: list[Message] = [(record_key, msgspec.json.encode(value), []) for record_key, value in entries]
        await send_keyed(self.producer, name, messages, len(await self.producer.partitions_for(name)))

    async def _forgotten(self, request: Erasure, ids: Sequence[str]) -> None:
        """Step 3: whoever owns the states deletes them; seen by tombstones in the changelog, or by states that began after
        the request, and by what was committed."""
        tenant, requested_ms = request.tenant, ms(request.requested_at)
        prefix, partitions = self.settings.kafka.topic_prefix, self.settings.kafka.partitions
        commands = {key(tenant, one): identity.encode(identity.Erase(tenant, one)) for one in ids}
        theirs = sorted({partition_of(one, partitions) for one in commands})
        async with reader(self.settings, auto_offset_reset="latest") as consumer:  # an older tombstone answers nothing
            tps = [TopicPartition(topics.STATE.name(prefix), number) for number in theirs]
            consumer.assign(tps)
            for tp, end in (await consumer.end_offsets(tps)).items():
                consumer.seek(tp, end)
            said = ((record_key, value, ()) for record_key, value in commands.items())
            await send_keyed(self.producer, topics.IDENTITY.name(prefix), said, partitions)
            wanted = set(commands)
            while wanted:
                for records in (await consumer.getmany(timeout_ms=500)).values():
                    for record in records:
                        if record.value is None or (record.key in wanted and unpack(record.value).since_ms > requested_ms):
                            wanted.discard(record.key)
        for _ in ("what was sent here", "what the owners tell other states that may name the user"):
            await self._committed("-personalize", topics.IDENTITY)

    async def _stored(self) -> None:
        """Step 4: the sink has committed everything that is on its topics now."""
        await self._committed(".sink", *STORED)

    async def _committed(self, group: str, *read: Topic) -> None:
        """A group has committed everything that is on these topics now."""
        with await asyncio.to_thread(Lag, self.settings) as lag:
            ends, name = await asyncio.to_thread(lag.ends, *read), f"{self.settings.kafka.topic_prefix}{group}"
            while await asyncio.to_thread(lag.of, name, ends):  # noqa: ASYNC110  # the broker tells nobody of commits
                await asyncio.sleep(POLL_S)

    async def _persist(self, call: Callable[[], T]) -> T:
        """In a thread; while ClickHouse is away the same again, with growing pauses."""
        pause_s = POLL_S
        while True:
            try:
                return await asyncio.to_thread(call)
            except (ClickHouseError, OSError) as error:
                why = missing(self.settings.clickhouse, error)
                log.warning("erasure waits", waiting_for="ClickHouse", why=why, again_in_s=pause_s)
                await asyncio.sleep(pause_s)  # a backoff: there is nothing to wait for but the server itself
                pause_s = min(2 * pause_s, SAY_EVERY_S)

    @staticmethod
    async def _say_waiting(whom: str, work: Awaitable[T]) -> T:
        task = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait((task,), timeout=SAY_EVERY_S))[0]:
                log.warning("erasure waits", waiting_for=whom, next="it goes on by itself; is the process running?")
            return task.result()
        finally:
            task.cancel()

    def _finished(self, request: Erasure, keys: Sequence[bytes], rows: Sequence[Done]) -> Erasure:
        at, prefix = datetime.now(UTC), self.settings.kafka.topic_prefix
        state = Done(place="personalize: state, changelog, store", did="deleted by the partition's owner", records=len(keys))
        refusals = Done(place=f"Kafka {topics.ADS_REFUSALS.name(prefix)}, current record",
                        did="deleted by the same owner before the state was")  # fmt: skip
        later = [Done(place=place, did=did, seen=False) for place, did in BY_THEMSELVES]
        copies = [Done(place=f"Kafka {one.name(prefix)}", did="older records go by the topic's bounds", seen=False,
                       until=until(one, at, self.settings.kafka)) for one in COPIES]  # fmt: skip
        receipt = Receipt(
            erasure_id=request.erasure_id, tenant=request.tenant,
            subjects=tuple(subject(one).decode().rpartition("/")[2] for one in keys),
            requested_at=request.requested_at, done_at=at, done=(state, refusals, *rows, *later, *copies),
            signed=self.signer is not None,
        )  # fmt: skip
        text = msgspec.json.encode(receipt)
        signature = None if self.signer is None else self.signer.sign(text, signing.RECEIPT).decode().strip()
        return msgspec.structs.replace(request, user_id=None, devices=(), receipt=text.decode(), signature=signature,
                                       suppress=self.listed.suppresses(keys[0]))
