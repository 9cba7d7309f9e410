"""The loop: what is said on the topics goes to channels, and what became of it back onto a topic.

1 take records, and read who refuses advertising up to the present; 2 decide for each delivery that concerns them; 3 send,
several tries; 4 log what became of it, acknowledged by the broker; 5 commit. A crash between 3 and 4 sends again under the
same id, by which a receiver can tell. What waits (quiet hours, a channel that is away) is logged whole, so that a worker
that starts anew finds it; who got what when is known from the log too. A channel that did not take several in a row is not
asked again for some minutes: what is for it waits, and others go on.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

import msgspec
import structlog

from schemas.events import key, ms
from schemas.outputs import DeliveryRecord, output_id
from stream.core.state import ADS_REFUSED
from stream.delivery import channels
from stream.delivery.channels import Message, Refused, TryAgain
from stream.delivery.decide import concerns, decide
from stream.delivery.rules import Channel, Delivery, DeliveryFile
from stream.delivery.said import KINDS, Said, details, id_of, put_off, thing_of, user_of, waiting
from stream.endings import pause
from stream.ports import Erasures, Refusals

log = structlog.get_logger()
TRIES = 3
BACKOFF_FIRST_S = 0.5
AWAY_FOR = timedelta(minutes=5)  # after TRIES: then the message waits, and others go on
AWAY_AFTER = 3  # messages in a row that a channel did not take: one alone may be the message's fault
GIVEN_UP_AFTER = timedelta(days=1)
KNOWN_FOR = timedelta(days=30)  # as long as the log is kept, and the longest cap

Send = Callable[[Channel, Message], Awaitable[None]]
Log = Callable[[list[DeliveryRecord]], Awaitable[None]]


class Deliverer:
    """`now` is the wall clock; `write` logs records and returns once the broker has them. Once `stopping` is set nothing new
    is begun."""

    def __init__(self, file: DeliveryFile, erasures: Erasures, refusals: Refusals, write: Log, now: Callable[[], datetime],
                 send: Send = channels.send, stopping: asyncio.Event | None = None) -> None:  # fmt: skip
        self.file, self.erasures, self.refusals = file, erasures, refusals
        self.write, self.now, self.send = write, now, send
        self.stopping = stopping or asyncio.Event()
        self._by_name = {one.name: one for one in file.deliveries}
        self._suppressed = frozenset(file.suppress)
        self._last: dict[tuple[str, str], datetime] = {}
        self._final: set[str] = set()
        self._known: deque[tuple[datetime, str, tuple[str, str]]] = deque()  # what `_final` and `_last` hold, oldest first
        self._missed: dict[str, int] = {}  # channel → messages in a row that it did not take
        self._away: dict[str, tuple[datetime, str]] = {}  # channel → until when it is not asked, and why
        self._waiting: dict[str, DeliveryRecord] = {}
        self._due: list[tuple[datetime, str]] = []

    def note(self, record: DeliveryRecord) -> None:
        """One record of the log: from before this process, or its own."""
        if record.status == "deferred" and record.until is not None:
            self._waiting[record.delivery_id] = record
            heapq.heappush(self._due, (record.until, record.delivery_id))
            return
        self._waiting.pop(record.delivery_id, None)
        place = (record.delivery, record.subject)
        self._final.add(record.delivery_id)
        self._known.append((record.at, record.delivery_id, place))
        if record.status in ("sent", "held_out"):
            self._last[place] = max(record.at, self._last.get(place, record.at))
        while self._known and self._known[0][0] < record.at - KNOWN_FOR:
            at, ident, place = self._known.popleft()
            self._final.discard(ident)
            if self._last.get(place) == at:
                del self._last[place]

    async def take(self, several: Iterable[Said]) -> bool:
        """Steps 2 to 4. False when it was stopped before all were handled: then nothing is to be committed, and those that
        were are known from the log."""
        wanted = [(delivery, said) for said in several for delivery in self.file.deliveries if concerns(delivery, said)]
        if wanted:
            await self._read_refusals()
        for delivery, said in wanted:
            if self.stopping.is_set():
                return False
            await self._handle(delivery, said, attempts=0, since=self.now())
        return True

    async def take_due(self) -> None:
        """What has waited long enough by now: what comes due meanwhile has its turn after what is new."""
        now, due = self.now(), dict[str, DeliveryRecord]()
        while self._due and self._due[0][0] <= now:
            _, ident = heapq.heappop(self._due)
            record = self._waiting.get(ident)
            if record is not None and record.until is not None and record.until <= now:
                due[ident] = record
        if due:
            await self._read_refusals()
        for ident, record in sorted(due.items(), key=lambda one: one[1].attempts):  # a channel may dislike those it was sent
            if self.stopping.is_set():
                return  # they are known from the log
            said, delivery = waiting(record), self._by_name.get(record.delivery)
            del self._waiting[ident]
            if said is None or delivery is None:  # the file has no such delivery any more
                await self._log(self._record_of(record, "failed", error="there is no such delivery any more"))
                continue
            await self._handle(delivery, said, attempts=record.attempts, since=record.at)

    async def _read_refusals(self) -> None:
        """Up to the present: a refusal is on its topic before anything that was said after it. However long the broker is
        away, but not beyond `stopping`."""
        reading = asyncio.ensure_future(self.refusals.caught_up())
        stopped = asyncio.ensure_future(self.stopping.wait())
        try:
            await asyncio.wait((reading, stopped), return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
        finally:
            reading.cancel()
            stopped.cancel()

    def wait_s(self) -> float:
        """Until something is due; a minute at most."""
        return min(60.0, max(0.0, (self._due[0][0] - self.now()).total_seconds())) if self._due else 60.0

    async def _handle(self, delivery: Delivery, said: Said, attempts: int, since: datetime) -> None:
        about_kind, about_id, user = KINDS[type(said)].name, id_of(said), user_of(said)
        ident = output_id("delivery", delivery.name, about_id)
        if ident in self._final or ident in self._waiting or self._erased(said):
            return
        verdict = decide(delivery, said, self.now(), self._last, self._suppressed_by(delivery, said.tenant, user))
        blank = DeliveryRecord(
            delivery_id=ident, tenant=said.tenant, user_id=user, delivery=delivery.name, channel=delivery.channel,
            about_kind=about_kind, about_id=about_id, status="sent", at=self.now(), attempts=attempts,
            decided_at=since, propensity=verdict.propensity, expected=verdict.expected, reason=verdict.reason,
            thing=thing_of(said),
        )  # fmt: skip
        if verdict.status == "deferred":
            await self._log(self._put_off(blank, said, verdict.until, "quiet hours", since))
        elif verdict.status != "send":
            await self._log(msgspec.structs.replace(blank, status=verdict.status))
        else:
            await self._log(await self._sent(blank, said, since))

    def _erased(self, said: Said) -> bool:
        user = user_of(said)
        return bool(user) and self.erasures.covers(key(said.tenant, user), ms(said.as_of_ts))

    def _suppressed_by(self, delivery: Delivery, tenant: str, user: str) -> str:
        """Why nothing of a delivery may go to a user; empty when it may, as to the shop's own people."""
        if not user:
            return ""
        if f"{tenant}/{user}" in self._suppressed:
            return "in the file's `suppress`"
        return ADS_REFUSED if delivery.purpose == "ads" and self.refusals.refuses(key(tenant, user)) else ""

    async def _sent(self, record: DeliveryRecord, said: Said, since: datetime) -> DeliveryRecord:
        """Step 3."""
        message = Message(delivery_id=record.delivery_id, delivery=record.delivery, kind=record.about_kind,
                          tenant=said.tenant, user_id=record.user_id, at=self.now(), details=details(said, record),
                          thing=record.thing)  # fmt: skip
        channel, attempts = self.file.channels[record.channel], record.attempts
        away_until, error = self._away.get(record.channel, (self.now(), ""))
        if self.now() < away_until:
            return self._late(record, said, away_until, error, since)
        for tried in range(TRIES):
            attempts += 1
            try:
                await self.send(channel, message)
                self._missed.pop(record.channel, None)
                return msgspec.structs.replace(record, status="sent", at=self.now(), attempts=attempts)
            except Refused as refused:
                log.error("message refused", delivery=record.delivery, channel=record.channel, why=str(refused))
                return msgspec.structs.replace(record, status="failed", attempts=attempts, error=str(refused))
            except TryAgain as again:
                error = str(again)
                if self.stopping.is_set():
                    return self._late(msgspec.structs.replace(record, attempts=attempts), said, self.now(), error, since)
                if tried < TRIES - 1:
                    await pause(self.stopping, BACKOFF_FIRST_S * 2**tried)
            except Exception as broken:  # a message that cannot be made must not keep others from going out
                log.exception("message not made", delivery=record.delivery, channel=record.channel, about=record.about_id)
                return msgspec.structs.replace(record, status="failed", attempts=attempts, error=repr(broken))
        log.warning("channel away", delivery=record.delivery, channel=record.channel, why=error, attempts=attempts,
                    next=f"again in {AWAY_FOR}")  # fmt: skip
        self._missed[record.channel] = self._missed.get(record.channel, 0) + 1
        if self._missed[record.channel] >= AWAY_AFTER:
            self._away[record.channel] = (self.now() + AWAY_FOR, error)
        return self._late(msgspec.structs.replace(record, attempts=attempts), said, self.now() + AWAY_FOR, error, since)

    def _late(self, record: DeliveryRecord, said: Said, until: datetime, error: str, since: datetime) -> DeliveryRecord:
        """It waits for its channel, or has done so for long enough."""
        if self.now() - since > GIVEN_UP_AFTER:
            return msgspec.structs.replace(record, status="failed", error=error)
        return self._put_off(record, said, until, error, since)

    def _put_off(
        self, record: DeliveryRecord, said: Said, until: datetime | None, error: str, since: datetime
    ) -> DeliveryRecord:
        return put_off(msgspec.structs.replace(record, status="deferred", until=until, error=error, at=since), said)

    def _record_of(self, record: DeliveryRecord, status: Any, error: str) -> DeliveryRecord:
        held: dict[str, Any] = dict.fromkeys(kind.kept for kind in KINDS.values())
        return msgspec.structs.replace(record, status=status, error=error, until=None, **held)

    async def _log(self, record: DeliveryRecord) -> None:
        """Step 4."""
        await self.write([record])
        self.note(record)
