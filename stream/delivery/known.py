"""What the log says of messages: which are done, which wait and until when, and what everybody got.

A worker that starts anew reads the log of those before it, and notes its own records as it writes them. So it decides as
they would have, and a message that was decided about is never decided about again.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict, deque
from datetime import datetime, timedelta

from schemas.outputs import DeliveryRecord
from stream.delivery import metrics
from stream.delivery.caps import Counted, counted, full
from stream.delivery.rules import DAYS_KNOWN, Delivery, DeliveryFile
from stream.delivery.said import Said, cause_of, ended_by, waiting

KNOWN_FOR = timedelta(days=DAYS_KNOWN)
QUIET = "quiet hours"  # why something waits, in its record's `error`; anything else is what its channel said


def waits_for(record: DeliveryRecord) -> str:
    """What a deferred message waits for."""
    return QUIET if record.error == QUIET else "channel"


class Known:
    """`last`: (delivery, tenant/user or tenant/thing) → when it last went out, or would have gone to somebody held out."""

    def __init__(self, file: DeliveryFile) -> None:
        self._file = file
        self.last: dict[tuple[str, str], datetime] = {}
        self._done: set[str] = set()
        self._order: deque[tuple[datetime, str, tuple[str, str]]] = deque()  # of what is done, oldest first
        self._waiting: dict[str, DeliveryRecord] = {}
        self._by_cause = defaultdict[tuple[str, ...], dict[str, Said]](dict)  # cause → message that waits → what it says
        self._due: list[tuple[datetime, str]] = []
        self._waits = Counter({(one.name, what): 0 for one in file.deliveries for what in (QUIET, "channel")})
        self._got: dict[str, dict[str, Counted]] = {}  # tenant/user → message → what counts of it; empty without caps
        for place in self._waits:
            metrics.WAITING.labels(*place).set(0)

    def __contains__(self, delivery_id: str) -> bool:
        """Whether it was decided about: it is done, or waits."""
        return delivery_id in self._done or delivery_id in self._waiting

    def note(self, record: DeliveryRecord) -> None:
        """One record of the log: from before this process, or its own."""
        self._waits_no_more(record.delivery_id)
        if self._file.caps:
            self._note_counted(record)
        if record.status == "deferred" and record.until is not None:
            self._waits_from_now(record, record.until)
            return
        place = (record.delivery, record.subject)
        self._done.add(record.delivery_id)
        self._order.append((record.at, record.delivery_id, place))
        if record.status in ("sent", "held_out"):
            self.last[place] = max(record.at, self.last.get(place, record.at))
        while self._order and self._order[0][0] < record.at - KNOWN_FOR:
            self._forget(*self._order.popleft())

    def full(self, delivery: Delivery, subject: str, now: datetime) -> str:
        """By which cap over all deliveries there is no room for one more message to a user; empty where there is."""
        return full(self._file.caps, delivery, self._got.get(subject, {}).values(), now)

    def take_due(self, now: datetime) -> list[DeliveryRecord]:
        """What has waited long enough, each of which is to be taken up. Those that were tried least come first, since a
        channel may dislike the others, then those that have waited longest: in the same order after a restart."""
        due = dict[str, DeliveryRecord]()
        while self._due and self._due[0][0] <= now:
            _, ident = heapq.heappop(self._due)
            record = self._waiting.get(ident)
            if record is not None and record.until is not None and record.until <= now:
                due[ident] = record
        return sorted(due.values(), key=lambda one: (one.attempts, one.at, one.delivery_id))

    def take_up(self, record: DeliveryRecord) -> None:
        """It is about to be decided about again."""
        self._waits_no_more(record.delivery_id)
        self._drop_counted(record.subject, record.delivery_id)

    def ended(self, said: Said) -> list[tuple[DeliveryRecord, str]]:
        """What waits and is not to go out any more, now that this is said; and why, in words."""
        found = ((ident, ended_by(kept, said)) for ident, kept in self._by_cause.get(cause_of(said), {}).items())
        return [(self._waiting[ident], why) for ident, why in found if why]

    def wait_s(self, now: datetime) -> float:
        """Until something is due; a minute at most."""
        return min(60.0, max(0.0, (self._due[0][0] - now).total_seconds())) if self._due else 60.0

    def _waits_from_now(self, record: DeliveryRecord, until: datetime) -> None:
        self._waiting[record.delivery_id] = record
        heapq.heappush(self._due, (until, record.delivery_id))
        if (said := waiting(record)) is not None:
            self._by_cause[cause_of(said)][record.delivery_id] = said
        self._put(record, 1)

    def _waits_no_more(self, delivery_id: str) -> None:
        record = self._waiting.pop(delivery_id, None)
        if record is None:
            return
        if (said := waiting(record)) is not None:
            same = self._by_cause[cause_of(said)]
            del same[delivery_id]
            if not same:
                del self._by_cause[cause_of(said)]
        self._put(record, -1)

    def _note_counted(self, record: DeliveryRecord) -> None:
        found = counted(self._file.named(record.delivery), record)
        if found is None:
            self._drop_counted(record.subject, record.delivery_id)
        else:
            self._got.setdefault(record.subject, {})[record.delivery_id] = found

    def _drop_counted(self, subject: str, delivery_id: str) -> None:
        got = self._got.get(subject, {})
        got.pop(delivery_id, None)
        if not got:
            self._got.pop(subject, None)

    def _forget(self, at: datetime, delivery_id: str, place: tuple[str, str]) -> None:
        self._done.discard(delivery_id)
        self._drop_counted(place[1], delivery_id)
        if self.last.get(place) == at:
            del self.last[place]

    def _put(self, record: DeliveryRecord, by: int) -> None:
        place = (record.delivery, waits_for(record))
        self._waits[place] += by
        metrics.WAITING.labels(*place).set(self._waits[place])
