"""The loop: what is said on the topics goes to channels, and what became of it back onto a topic.

1 take records, and read who refuses advertising up to the present; 2 decide for each delivery that concerns them; 3 send,
several tries; 4 log what became of it, acknowledged by the broker; 5 commit. A crash between 3 and 4 sends again under the
same id, by which a receiver can tell. What waits (quiet hours, a channel that is away) is logged whole, so that a worker
that starts anew finds it; who got what when is known from the log too. A record that ends the cause of what waits ends its
waiting; so nothing that waits is taken up before all is taken that was on the topics when it was due. A channel that did not
take several in a row is not asked again for some minutes: what is for it waits, and others go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

import msgspec
import structlog

from schemas.events import key, ms
from schemas.outputs import DeliveryRecord, output_id
from stream.core.user.state import ADS_REFUSED
from stream.delivery import channels, metrics
from stream.delivery.channels import Message, Refused, TryAgain
from stream.delivery.decide import concerns, decide
from stream.delivery.known import QUIET, Known, waits_for
from stream.delivery.rules import Channel, Delivery, DeliveryFile
from stream.delivery.said import KINDS, Said, details, id_of, outlived, put_off, subject_of, thing_of, user_of, waiting
from stream.endings import pause
from stream.ports import Erasures, Refusals

log = structlog.get_logger()
TRIES = 3
BACKOFF_FIRST_S = 0.5
AWAY_FOR = timedelta(minutes=5)  # after TRIES: then the message waits, and others go on
AWAY_AFTER = 3  # messages in a row that a channel did not take: one alone may be the message's fault
GIVEN_UP_AFTER = timedelta(days=1)

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
        metrics.begin(file)
        self.known = Known(file)
        self._suppressed = frozenset(file.suppress)
        self._missed: dict[str, int] = {}  # channel → messages in a row that it did not take
        self._away: dict[str, tuple[datetime, str]] = {}  # channel → until when it is not asked, and why

    def note(self, record: DeliveryRecord) -> None:
        """One record of the log from before this process."""
        self.known.note(record)

    async def take(self, several: Iterable[Said]) -> bool:
        """Steps 2 to 4, after what waits for a cause that is over has ended. False when it was stopped before all were
        handled: then nothing is to be committed, and those that were are known from the log."""
        several = list(several)
        for record, why in (ended for said in several for ended in self.known.ended(said)):
            if self.stopping.is_set():
                return False
            await self._end(record, status="expired", reason=why)
        wanted = [(delivery, said, over) for said, over in outlived(several)
                  for delivery in self.file.deliveries if concerns(delivery, said)]  # fmt: skip
        wanted.sort(key=lambda one: one[0].priority != "high")  # where a cap leaves room for one, it is theirs
        if wanted:
            await self._read_refusals()
        for delivery, said, over in wanted:
            if self.stopping.is_set():
                return False
            now = self.now()
            await self._handle(delivery, said, attempts=0, decided_at=now, due_at=now, over=over)
        return True

    async def take_due(self, by: datetime | None = None) -> None:
        """What had waited long enough by then, or by now: what comes due meanwhile has its turn after what is new."""
        due = self.known.take_due(by or self.now())
        if due:
            await self._read_refusals()
        for record in due:
            if self.stopping.is_set():
                return  # they are known from the log
            said, delivery = waiting(record), self.file.named(record.delivery)
            self.known.take_up(record)
            if said is None or delivery is None:  # the file has no such delivery any more
                await self._end(record, status="failed", error="there is no such delivery any more")
                continue
            await self._handle(delivery, said, record.attempts, record.decided_at or record.at, self._due_at(record),
                               waited_for=waits_for(record))  # fmt: skip

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
        return self.known.wait_s(self.now())

    def _due_at(self, record: DeliveryRecord) -> datetime:
        """When something that waited was first due: the quiet hours before are not its channel's fault. What waits is logged
        with that time, or, for the end of the first quiet hours, with the decision's."""
        first = waits_for(record) == QUIET and not record.attempts and record.at == record.decided_at
        return self.now() if first else record.at

    async def _handle(
        self, delivery: Delivery, said: Said, attempts: int, decided_at: datetime, due_at: datetime, waited_for: str = "",
        over: str = "",
    ) -> None:  # fmt: skip
        about_kind, about_id, user = KINDS[type(said)].name, id_of(said), user_of(said)
        ident = output_id("delivery", delivery.name, about_id)
        if ident in self.known or self._erased(said):
            return
        full = self.known.full(delivery, subject_of(said), self.now())
        verdict = decide(delivery, said, self.now(), self.known.last, self._suppressed_by(delivery, said.tenant, user), full,
                         over)  # fmt: skip
        blank = DeliveryRecord(
            delivery_id=ident, tenant=said.tenant, user_id=user, delivery=delivery.name, channel=delivery.channel,
            about_kind=about_kind, about_id=about_id, status="sent", at=self.now(), attempts=attempts,
            decided_at=decided_at, propensity=verdict.propensity, expected=verdict.expected, reason=verdict.reason,
            thing=thing_of(said),
        )  # fmt: skip
        if verdict.status == "deferred":
            await self._log(self._put_off(blank, said, verdict.until, QUIET, due_at))
        elif verdict.status != "send":
            await self._log(msgspec.structs.replace(blank, status=verdict.status))
        else:
            done = await self._sent(blank, said, due_at)
            await self._log(done)
            if done.status == "sent":
                metrics.sent(done, said.as_of_ts, waited_for)

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

    async def _sent(self, record: DeliveryRecord, said: Said, due_at: datetime) -> DeliveryRecord:
        """Step 3."""
        message = Message(delivery_id=record.delivery_id, delivery=record.delivery, kind=record.about_kind,
                          tenant=said.tenant, user_id=record.user_id, at=self.now(), details=details(said, record),
                          thing=record.thing)  # fmt: skip
        channel, attempts = self.file.channels[record.channel], record.attempts
        away_until, error = self._away.get(record.channel, (self.now(), ""))
        if self.now() < away_until:
            return self._late(record, said, away_until, error, due_at)
        for tried in range(TRIES):
            attempts += 1
            try:
                await self.send(channel, message)
                self._answers(record.channel)
                return msgspec.structs.replace(record, status="sent", at=self.now(), attempts=attempts)
            except Refused as refused:
                self._answers(record.channel)
                log.error("message refused", delivery=record.delivery, channel=record.channel, why=str(refused))
                return msgspec.structs.replace(record, status="failed", attempts=attempts, error=str(refused))
            except TryAgain as again:
                error = str(again)
                if self.stopping.is_set():
                    return self._late(msgspec.structs.replace(record, attempts=attempts), said, self.now(), error, due_at)
                if tried < TRIES - 1:
                    metrics.RETRIES.labels(record.delivery, record.channel).inc()
                    await pause(self.stopping, BACKOFF_FIRST_S * 2**tried)
            except Exception as broken:  # a message that cannot be made must not keep others from going out
                log.exception("message not made", delivery=record.delivery, channel=record.channel, about=record.about_id)
                return msgspec.structs.replace(record, status="failed", attempts=attempts, error=repr(broken))
        log.warning("channel away", delivery=record.delivery, channel=record.channel, why=error, attempts=attempts,
                    next=f"again in {AWAY_FOR}")  # fmt: skip
        self._misses(record.channel, error)
        return self._late(msgspec.structs.replace(record, attempts=attempts), said, self.now() + AWAY_FOR, error, due_at)

    def _answers(self, channel: str) -> None:
        """A channel has taken a message, or said that it will not."""
        self._missed.pop(channel, None)
        metrics.CHANNEL_UP.labels(channel).set(1)

    def _misses(self, channel: str, error: str) -> None:
        """A channel did not take a message."""
        self._missed[channel] = self._missed.get(channel, 0) + 1
        if self._missed[channel] >= AWAY_AFTER:
            self._away[channel] = (self.now() + AWAY_FOR, error)
            metrics.CHANNEL_UP.labels(channel).set(0)

    def _late(self, record: DeliveryRecord, said: Said, until: datetime, error: str, due_at: datetime) -> DeliveryRecord:
        """It waits for its channel, or has done so for long enough."""
        if self.now() - due_at > GIVEN_UP_AFTER:
            return msgspec.structs.replace(record, status="failed", error=error)
        return self._put_off(record, said, until, error, due_at)

    def _put_off(
        self, record: DeliveryRecord, said: Said, until: datetime | None, error: str, due_at: datetime
    ) -> DeliveryRecord:
        return put_off(msgspec.structs.replace(record, status="deferred", until=until, error=error, at=due_at), said)

    async def _end(self, record: DeliveryRecord, **how: str) -> None:
        """What waited does not go out. Of who was erased meanwhile nothing is logged."""
        said = waiting(record)
        if said is None or not self._erased(said):
            held = dict.fromkeys((kind.kept for kind in KINDS.values()), None)
            changed: dict[str, Any] = {"error": "", "until": None, "at": self.now(), **held, **how}
            await self._log(msgspec.structs.replace(record, **changed))

    async def _log(self, record: DeliveryRecord) -> None:
        """Step 4."""
        await self.write([record])
        self.known.note(record)
        metrics.became(record, waits_for(record))
