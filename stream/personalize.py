"""Events to decisions: the steps 2 to 6 of the protocol in `stream.partition`, for one batch and for one interval."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import structlog

from schemas import topics
from schemas.dead_letter import Source
from schemas.erasure import Erasure
from schemas.events import Event, ms
from schemas.events import key as user_key
from schemas.outputs import Recommendation, output_id
from schemas.topics import Topic
from schemas.unreadable import UNREADABLE
from stream.adapters.kafka.kafka_clients import partition_of
from stream.alerts import AlertDesk
from stream.core.decode import Drop, Ok, Reject, decode, message_of
from stream.core.ranking.counts import UNLISTED_MAX
from stream.core.ranking.recommend import rank
from stream.core.survival.reminders import Policy
from stream.core.terms import CLAIM_KEY
from stream.core.user import fold, identity
from stream.core.user.featurize import Float32, Sequence
from stream.core.user.fold import Outcome
from stream.core.user.state import NOTHING_STATED, Kind, Stated, UserState
from stream.core.user.traits import NOTHING_SAID, Described, described, recall
from stream.due import DueDesk
from stream.outbox import Outbox, Outputs, OutRecord, utc
from stream.partition import PartitionState
from stream.ports import Clock, Erasures, Fence, Runner
from stream.recommending import degraded, rules_of, score_users, with_basket
from stream.reminders import ReminderDesk
from stream.segments import SegmentDesk
from stream.serving import Serving, ServingState
from stream.settings import Personalize

log = structlog.get_logger()
NO_HISTORY = Sequence([], [], [], [])


class Record(Protocol):
    """One record as the broker keeps it."""

    key: bytes | None
    value: bytes | None
    offset: int
    timestamp: int  # the broker's append time, ms


class Input(NamedTuple):
    """Where a batch came from."""

    topic: str
    topic_id: str
    entity: Topic


class _Decoded(NamedTuple):
    """An event that may be folded, and what of its record is still needed."""

    offset: int
    key: bytes
    event: Event | None  # None: the user withdraws consent to a profile
    ts_ms: int
    append_ms: int
    ads: Stated = NOTHING_STATED  # what that event said of advertising
    said: Described = NOTHING_SAID  # what rules ask for


class Superseded(RuntimeError):
    """The partition is another worker's: this process ends, and begins again with what the changelog says then."""


class Personalizer:
    """Stateless between batches but for what it is given; one for all partitions of a worker."""

    def __init__(
        self, settings: Personalize, serving: ServingState, outputs: Outputs, run: Runner, clock: Clock,
        partition_of: Callable[[bytes], int], fence: Fence, erasures: Erasures, segments: SegmentDesk,
    ) -> None:  # fmt: skip
        self.fence = fence
        self.erasures = erasures
        self.settings = settings
        self.serving = serving
        self.outputs = outputs
        self.run = run
        self.clock = clock
        self.partition_of = partition_of
        self.alerts = AlertDesk(run)
        self.due = DueDesk(self.alerts, ReminderDesk(Policy(
            week_max=settings.reminders_week_max, probability_min=settings.reminders_probability_min,
            window_days=settings.reminders_window_days,
        )), silent=self._taken)  # fmt: skip
        self.segments = segments
        self.rules = rules_of(settings)
        self._warned: set[str] = set()  # tenants whose items are left out of the counts

    async def process(self, part: PartitionState, source: Input, records: Seq[Record], waiting: int = 0) -> None:
        """Steps 2 to 5 for one batch of one input topic; `waiting` is how far the worker is behind, in records."""
        serving = self.serving.current
        outbox = Outbox()
        if source.entity is topics.IDENTITY:
            await self._identities(part, source, records, outbox)
            await self.send(part, outbox)
            return
        stragglers: dict[bytes, Event] = {}
        for one in self._decode(part, source, records, outbox):
            known = part.stands_for(one.key, one.offset)
            if one.event is None:
                if not known:
                    self._withdraw(part, one, outbox)
                continue
            if one.event.lane == "live":
                self.due.advance(part, one.ts_ms)
                if not known and self.due.came_due(part, one.key):
                    await self.due.before_event(part, serving, one.key, outbox)
            if known:
                part.ended_before(one.key, one.offset)
                continue
            if self._fold(part, serving, one, one.event, outbox) and part.read(one.key).claims:
                stragglers[one.key] = one.event
        for key, event in stragglers.items():  # one whose profile was cleared after it has no claims
            for answer in identity.answers(part.read(key), event.tenant, event.user):
                outbox.answer(answer)
        await self._recommend(part, serving, part.meta.clock_ms, outbox, waiting)
        await self.due.pass_time(part, serving, part.meta.clock_ms, outbox)
        await self.send(part, outbox)
        part.mark_folded(source.topic, source.topic_id, records[-1].offset, records[-1].timestamp)

    async def send(self, part: PartitionState, outbox: Outbox) -> None:
        """Step 5: to the broker by the contract's partitioner, awaited. Refusals first: whoever reads another of these
        records, and then asks the broker how far the refusals go, knows of them.

        Raises `Superseded` if this process slept since it took the records and the partition went to another meanwhile:
        there, what it would say is out of date.
        """
        for topic, records in sorted(outbox.records.values(), key=lambda one: one[0] is not topics.ADS_REFUSALS):
            if not self.fence.holds() and not await self.fence.regained(part.partition):
                raise Superseded(f"partition {part.partition} went to another worker while this one slept, before it said "
                                 "what it had decided. The records are read again by who owns it now")  # fmt: skip
            by_partition: dict[int, list[OutRecord]] = {}
            for record in records:
                number = self.partition_of(record.key) if topic.by_user else partition_of(record.key, topic.partitions)
                by_partition.setdefault(number, []).append(record)
            await self.outputs.send(topic, by_partition)

    async def close_interval(self, part: PartitionState, waiting: int = 0) -> bool:
        """Step 6: due times and segments of everyone who was touched, then counts, changelog and store. While many records
        wait, both wait too: nobody is alerted before their due time is set anew.

        False when the partition was lost while the changelog was written: then the store must not claim to stand for what
        another owner wrote meanwhile, and nothing is acknowledged. If somebody else's records lie between the last interval
        and this one, a former owner that slept in the middle of its write has woken: they do not count, and their keys are
        written anew before compaction would prefer them. If a claim is among them, what was written after it here does not
        count: raises `Superseded`, and the records are read again.
        """
        if part.passes_on:
            return True
        outbox = Outbox()
        behind = self.settings.behind(waiting)
        await self.due.reschedule(part, self.serving.current, outbox, behind=behind)
        if not behind:
            now_ms = part.carried_clock_ms(self.clock.now_ms(), caught_up=waiting == 0)
            await self.segments.settle(part, self.serving.current, now_ms, outbox, self._taken)
        await self.send(part, outbox)
        await self._publish_counts(part)
        while part.dirty or part.erased or part.meta_changed():
            log, puts = part.frozen()
            records = [OutRecord(*one) for one in log]
            before = part.store.changelog_offset
            last = (await self.outputs.send(topics.STATE, {part.partition: records}))[part.partition]
            if not self.fence.holds():
                return False
            foreign: set[bytes] = set()
            if last - before > len(records):
                foreign = await self.fence.written_between(part.partition, before + 1, last)
                if CLAIM_KEY in foreign:
                    raise Superseded(f"another worker has claimed partition {part.partition} since this one opened it: what "
                                     "was written meanwhile does not count. Its records are read again by who owns it now")
            part.store.write(puts, last, self.clock.now_ms())
            part.written()
            if part.purging:  # off the loop, for heartbeats; nobody else uses the store: the partition is locked
                await asyncio.to_thread(part.store.purge, sorted(part.purging))
                part.purging.clear()
            if foreign:
                part.write_again(foreign)
        return True

    async def tick(self, part: PartitionState, caught_up: bool, waiting: int = 0) -> None:
        """Between batches: recommendations whose interval is over, and what silence itself brings about."""
        if part.meta.live_since_ms == 0:
            return
        outbox = Outbox()
        clock_ms = part.carried_clock_ms(self.clock.now_ms(), caught_up)
        await self._recommend(part, self.serving.current, clock_ms, outbox, waiting)
        if caught_up:
            await self.due.pass_time(part, self.serving.current, clock_ms, outbox)
        await self.send(part, outbox)

    def _decode(self, part: PartitionState, source: Input, records: Seq[Record], outbox: Outbox) -> list[_Decoded]:
        """Step 2, and one read of the store for all users of the batch."""
        events: list[_Decoded] = []
        new = part.not_folded(source.topic, source.topic_id, records)
        if len(new) < len(records):
            part.outcomes["replayed"] += len(records) - len(new)
        if new and part.meta.accounts.first < 0:
            part.meta.accounts.first = new[0].offset
        for record in new:
            decoded = decode(record.value, record.timestamp, self.settings.skew_max_ms)
            event = None if isinstance(decoded, Reject) else decoded.event
            key = b"" if event is None else user_key(event.tenant, event.user)
            if event is not None and self.partition_of(key) != part.partition:
                part.ended("dropped:misplaced")
                outbox.add(topics.EVENTS, key, record.value)
            elif isinstance(decoded, Ok):
                known_ms = min(decoded.ts_ms, record.timestamp)  # a client's clock may be ahead
                if self.erasures.covers(key, known_ms) and not part.stands_for(key, record.offset):
                    part.ended_for(key, record.offset, "dropped:erased")
                    continue
                said = described(decoded.event, record.value or b"", self.segments.rules.kept_of(decoded.event.tenant))
                events.append(_Decoded(record.offset, key, decoded.event, decoded.ts_ms, record.timestamp, said=said))
            elif isinstance(decoded, Reject):
                part.ended("rejected")
                self._reject(part, source, record, decoded, outbox)
            else:
                assert isinstance(decoded, Drop)
                part.ended(f"dropped:{decoded.reason}")
                if event is not None:
                    erased = self.erasures.covers(key, min(event.ts_ms, record.timestamp))
                    ads = NOTHING_STATED if erased else fold.ads_stated(event)
                    at_ms = event.ts_ms if event.lane == "live" else 0  # else it is not the present
                    events.append(_Decoded(record.offset, key, None, at_ms, record.timestamp, ads))
        part.load([one.key for one in events])
        return events

    def _reject(self, part: PartitionState, source: Input, record: Record, reject: Reject, outbox: Outbox) -> None:
        where = Source(topic=source.topic, partition=part.partition, offset=record.offset)
        outbox.dead_letter(reject, record.value or b"", record.key, where, record.timestamp)

    async def _identities(self, part: PartitionState, source: Input, records: Seq[Record], outbox: Outbox) -> None:
        """Claims, answers, erasures and what is recalled; all are idempotent, so a second reading needs no protection."""
        for record in records:
            try:
                message = identity.decode(record.value or b"")
            except UNREADABLE as error:
                part.outcomes["rejected"] += 1
                self._reject(part, source, record, Reject("undecodable", (message_of(error),)), outbox)
                continue
            if isinstance(message, identity.Claim):
                self._claim(part, message, record.timestamp, outbox)
            elif isinstance(message, identity.Answer):
                key = user_key(message.tenant, message.user)
                before = part.read(key).ads
                known_ms = min(message.known_ms, record.timestamp)
                if not self.erasures.covers(key, known_ms) and identity.link(part.read(key), message):
                    part.change(key)
                    part.unsorted.setdefault(key, False)  # what was done as a guest counts in rules
                    self._heed(part, key, before, outbox)
            elif isinstance(message, identity.Erase):
                await self.erasures.caught_up()  # from here on nothing of the user is folded again
                key = user_key(message.tenant, message.user)
                part.purging.add(key)
                if part.read(key).since_ms > record.timestamp:  # it is read again, or they came back before it was read
                    self._keep_since(part, key, record.timestamp, outbox)
                else:
                    self._erase(part, key, outbox, until_ms=self.erasures.until_ms(key))
                    part.outcomes["erased"] += 1
            elif isinstance(message, identity.Recall):
                self._recall(part, message, outbox)
            else:
                assert isinstance(message, identity.Forget)
                holder = part.read(user_key(message.tenant, message.holder))
                if identity.met_last_ms(holder, message.other) <= max(record.timestamp, message.met_ms):
                    await self._forget(part, message, outbox)  # else it is read again, and they have met since
        part.mark_folded(source.topic, source.topic_id, records[-1].offset, records[-1].timestamp)

    def _claim(self, part: PartitionState, claim: identity.Claim, append_ms: int, outbox: Outbox) -> None:
        key, known_ms = user_key(claim.tenant, claim.anonymous), min(claim.ts_ms, append_ms)  # a client's clock may be ahead
        if self.erasures.covers(user_key(claim.tenant, claim.user), known_ms):
            return
        if self.erasures.covers(key, known_ms):  # the user's partition did not know it yet
            outbox.forget(identity.Forget(claim.tenant, holder=claim.user, other=claim.anonymous, met_ms=claim.ts_ms))
            return
        if identity.note_claim(part.read(key), claim):
            part.touched(key, part.read(key), claim.lane)
        for answer in identity.answers(part.read(key), claim.tenant, claim.anonymous):
            outbox.answer(answer)

    def _recall(self, part: PartitionState, message: identity.Recall, outbox: Outbox) -> None:
        """Traits that rules ask for now: the file may be newer than the last look at it. Those of a device that was claimed
        are told to whose they are."""
        key = user_key(message.tenant, message.user)
        self.segments.look(self.serving.current)
        said = [one for one in message.said if not self.erasures.covers(key, min(one.trait.ts_ms, one.append_ms))]
        if recall(part.read(key), said, self.segments.rules.kept_of(message.tenant)):
            part.change(key)
            part.unsorted.setdefault(key, False)
            for answer in identity.answers(part.read(key), message.tenant, message.user):
                outbox.answer(answer)

    def _erase(
        self, part: PartitionState, key: bytes, outbox: Outbox, withdrawn_ms: int | None = None, until_ms: int = -1
    ) -> None:  # fmt: skip
        """Forget a user; the states that may name them are told, and who follows segments and alerts. `withdrawn_ms`: when
        they withdrew consent, then what they said of advertising stays; None for an erasure: what is said of it is as of
        what it ends, and no later than `until_ms`, up to which the profile is erased, so that it goes with that."""
        ads_stay, state = withdrawn_ms is not None, part.read(key)
        tenant, user = key.decode().split("/", 1)
        ads = state.ads

        def ends_ms(began_ms: int) -> int:
            if withdrawn_ms is not None:
                return max(withdrawn_ms, began_ms)
            return min(began_ms, until_ms) if state.began_ms <= until_ms else began_ms

        self.alerts.forget(part, self.serving.current, key, ends_ms, outbox)
        self.segments.forget(part, self.serving.current, key, ends_ms, outbox)
        for other in identity.others(state):
            met_ms = identity.met_last_ms(state, other)
            outbox.forget(identity.Forget(tenant, holder=other, other=user, ads_stay=ads_stay, met_ms=met_ms))
        part.erase(key)
        if ads_stay and ads != NOTHING_STATED:
            part.change(key).ads = ads
        self._heed(part, key, ads, outbox)

    def _taken(self, part: PartitionState, key: bytes) -> bool:
        """Whether an erasure takes this profile: what would be said of it now would outlast that."""
        return self.erasures.takes(key, part.read(key).began_ms)

    def _keep_since(self, part: PartitionState, key: bytes, at_ms: int, outbox: Outbox) -> None:
        """Of an erased user whose profile began after the request only what was said of advertising may be older. The state
        is written, so that the eraser sees when it began."""
        state = part.change(key)
        if 0 < state.ads.ts_ms <= at_ms:
            before, state.ads = state.ads, NOTHING_STATED
            self._heed(part, key, before, outbox)

    def _withdraw(self, part: PartitionState, one: _Decoded, outbox: Outbox) -> None:
        """No profile any more. What was said of advertising is none and stays: who refused it must not get it again."""
        state = part.read(one.key)
        before, state.ads = state.ads, max(state.ads, one.ads)
        if state != UserState(ads=state.ads):
            self._erase(part, one.key, outbox, withdrawn_ms=max(part.meta.clock_ms, one.ts_ms))
        elif state.ads != before:
            part.change(one.key)
        self._heed(part, one.key, before, outbox)

    def _heed(self, part: PartitionState, key: bytes, before: Stated, outbox: Outbox) -> None:
        """Once something was said of advertising: it is written, rules about it are asked, and who sends it is told."""
        said = part.read(key).ads
        if said != before:
            part.unsorted.setdefault(key, False)
        if said.refused != before.refused:
            outbox.ads_refusal(key, said)

    async def _forget(self, part: PartitionState, message: identity.Forget, outbox: Outbox) -> None:
        """What one device knows of an erased user goes. A device that only they used is theirs, so all of it goes; for an
        erasure it is put on the list, since nobody else may know whose it was: not the tables, where an alias joined it, or
        the sink leaves out the rows that do. It is on the list before anything of it is acknowledged. Whether it is
        suppressed, too, says the eraser, who sees in the tables whether it is an account, or others used it."""
        key = user_key(message.tenant, message.holder)
        request = None if message.ads_stay else await self._request_of(user_key(message.tenant, message.other))
        state = part.read(key)
        before = state.ads
        forgot = identity.forget(state, message.other, ads_stay=message.ads_stay)
        if not forgot and not _unclaimed(state, request, message.met_ms):
            return
        self._heed(part, key, before, outbox)
        if state.claims or state.known:
            part.change(key)
            part.unsorted.setdefault(key, False)
            for answer in identity.answers(state, message.tenant, message.holder):
                outbox.answer(answer)
        else:
            self._erase(part, key, outbox, withdrawn_ms=part.meta.clock_ms if message.ads_stay else None,
                        until_ms=-1 if request is None else ms(request.requested_at))  # fmt: skip
            if request is not None and message.holder not in request.devices:
                outbox.erased_device(msgspec.structs.replace(request, user_id=None, devices=(message.holder,), device=True,
                                                             suppress=self.erasures.suppresses(key)), key)  # fmt: skip
        part.purging.add(key)

    async def _request_of(self, key: bytes) -> Erasure | None:
        """The request by which a user is erased now; None where that is done, and messages about it are read again."""
        if (found := self.erasures.request(key)) is None:
            await self.erasures.caught_up()
            found = self.erasures.request(key)
        return found

    def _fold(self, part: PartitionState, serving: Serving, one: _Decoded, event: Event, outbox: Outbox) -> bool:
        """Step 3 for one event; whether it changed anything."""
        key = one.key
        state = part.read(key)
        before, begins = state.ads, state.events == 0
        outcome, added = fold.fold(state, event, part.meta.clock_ms, self.settings.lateness_max_ms, one.said)
        part.ended_for(key, one.offset, outcome.value)
        if state.ads != before:
            part.change(key)
            self._heed(part, key, before, outbox)
        if outcome is not Outcome.FOLDED:
            return state.ads != before
        part.touched(key, state, event.lane)
        if begins:
            state.since_ms = one.append_ms
        for touch in added:
            serving.index(event.tenant).notice(touch.item_id)
            part.counts.observe(event.tenant, touch, state.ring, one.offset, part.published)
            if part.counts.left_out:
                self._uncounted(part, event.tenant, touch.item_id)

        def erased(other: bytes, ts_ms: int) -> bool:
            return self.erasures.covers(other, min(ts_ms, one.append_ms))

        for claim in identity.claims_of(state, event, erased):
            outbox.claim(claim)
        if event.lane == "live":
            if added and added[0].kind == Kind.CART:  # an event's touches are of one kind
                state.put_event_id = event.message_id
            if let_go := part.owed.owe(key, state.recommended_ts_ms, part.meta.clock_ms):
                part.outcomes["recommendation_let_go"] += let_go
        return True

    def _uncounted(self, part: PartitionState, tenant: str, item_id: str) -> None:
        part.outcomes["uncounted"] += part.counts.left_out
        part.counts.left_out = 0
        if tenant not in self._warned:
            self._warned.add(tenant)
            log.warning("items are left out of the counts", tenant=tenant, item=item_id, partition=part.partition,
                        why=f"events name more than {UNLISTED_MAX:,} items that the catalog does not",
                        next="send the catalog, or look who makes ids up")  # fmt: skip

    async def _recommend(
        self, part: PartitionState, serving: Serving, clock_ms: int, outbox: Outbox, waiting: int
    ) -> None:
        """Steps 3 and 4 for users whose interval has passed, as of their latest event. At most one call of the encoder,
        so that folding stays ahead of recommending; the rest comes with the next batch or tick.

        While many records wait, folding comes first: what is recommended now would be out of date by an event that is in
        the log already. A few users, those seen last, are answered all the same, without explanations.
        """
        behind = self.settings.behind(waiting)
        limit = self.settings.recommend_behind_users_max if behind else self.settings.recommend_users_max
        keys = part.owed.take(clock_ms, limit)
        by_tenant: dict[str, list[tuple[str, UserState]]] = {}
        part.load(keys)
        keys = [key for key in keys if not self._taken(part, key)]
        for key in keys:
            state = part.change(key)
            state.recommended_ts_ms = clock_ms
            tenant, user = key.decode().split("/", 1)
            by_tenant.setdefault(tenant, []).append((user, state))
        for tenant, users in by_tenant.items():
            vectors = await self._recommend_to(serving, tenant, users, outbox, explained=not behind)
            await self.segments.place(part, serving, tenant, users, vectors)
        if keys:
            part.outcomes["recommended"] += len(keys)

    async def _recommend_to(
        self, serving: Serving, tenant: str, users: list[tuple[str, UserState]], outbox: Outbox, explained: bool
    ) -> Float32 | None:
        """Returns the users' vectors (B, D), as of their last event."""
        index = serving.index(tenant)
        states = [state for _, state in users]
        scored = await score_users(serving, tenant, states, [state.last_ts_ms for state in states], self.run)
        for (user, state), one in zip(users, scored, strict=True):
            rows = rank(one.scores.total, state, index, self.rules) if len(index) else []
            told = one if explained else one._replace(known=NO_HISTORY)
            outbox.recommendation(
                Recommendation(
                    recommendation_id=output_id("recommendation", tenant, state.last_event_id, serving.version),
                    tenant=tenant,
                    user_id=user,
                    items=told.explained(rows, index),
                    as_of_event_id=state.last_event_id,
                    as_of_ts=utc(state.last_ts_ms),
                    model_version=serving.version,
                    degraded=degraded(index, serving, one.known, explained),
                ),
                state.last_ts_ms,
            )
            if state.put_event_id:
                found = with_basket(serving, tenant, user, state, self.rules)
                if found:
                    outbox.complements(found, state.last_ts_ms)
                state.put_event_id = ""
        vectors = [one.vector for one in scored if one.vector is not None]
        return np.stack(vectors) if len(vectors) == len(scored) else None

    async def _publish_counts(self, part: PartitionState) -> None:
        counts = part.counts
        counts.dirty |= self.serving.overwritten.pop(part.partition, set()) & counts.counts.keys()
        records: dict[int, list[OutRecord]] = {}
        for key in sorted(counts.dirty):
            full = f"{part.partition}/{key}".encode()
            target = self.partition_of(full) % topics.ITEM_COUNTS.partitions
            records.setdefault(target, []).append(OutRecord(full, msgspec.msgpack.encode(counts.counts[key]), part.headers))
        if records:
            await self.outputs.send(topics.ITEM_COUNTS, records)
            part.published.update((key, counts.counts[key].offset) for key in counts.dirty)
            counts.dirty.clear()


def _unclaimed(state: UserState, request: Erasure | None, met_ms: int) -> bool:
    """Whether a device of an erased user is nobody else's although it does not know of them either, since their claim came
    when they were on the list. What was done there after the request, and after they had met, is a stranger's."""
    return (request is not None and not state.known and not state.claims and state.events > 0
            and state.last_ts_ms <= max(ms(request.requested_at), met_ms))  # fmt: skip
