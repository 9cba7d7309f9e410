"""One partition of the personalize worker: its clock, its users' states, and the protocol that loses nothing.

A batch, then an interval of batches:

1. take the raw records of one poll;
2. decode each: an event, a dead letter with the reason, or a counted drop;
3. fold events into an overlay of the states in memory, in log order; encode the users that are due;
4. decide: recommendations, complements, churn alerts raised or cleared, reminders, claims and answers of identities;
5. unless the partition went to another while this process slept: send these outputs and dead letters, await the broker's
   acknowledgement;
   — batches repeat 1 to 5 until the interval closes —
6. write the interval: live counts to their topic, changed states and then the partition's own record to the changelog,
   each acknowledged by the broker, then one atomic RocksDB write of the same values with the changelog's offset;
7. acknowledge the input.

A crash after 1–4 leaves nothing behind. After 5: the input is read again, the outputs are sent again with the same ids.
Within 6: counts carry the offset they stand for and skip what they already counted; the partition's record comes last, so
it never claims more than was written; the record of a state that is there already says up to which offset it stands for its
user's events, what became of these, and whether an answer is owed (`Brought`). Between changelog and RocksDB:
recovery reads the changelog's tail. After 6, before 7: every record is at or below the recorded offset and is skipped.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, TypeVar

import msgspec

from schemas.events import Lane
from stream.core.ranking.counts import PartitionCounts
from stream.core.terms import BROUGHT, CLOSING_KEY, NO_TERM, Begun, Headers, headers
from stream.core.user import state as states
from stream.core.user.owed import Owed
from stream.core.user.state import UserState
from stream.ports import Store


class HasOffset(Protocol):
    offset: int
    timestamp: int  # the broker's append time, ms


R = TypeVar("R", bound=HasOffset)
META_KEY = CLOSING_KEY  # no user key starts with '#': the tenant is never empty
DUE_PREFIX = b"#due/"
SWEPT_KEY = b"#swept"  # of the store alone, not of the changelog
_DUE_BYTES = 8
VOID_TIMERS_MAX = 1_000  # beside as many as there are timers that count
NOBODY = UserState()  # to compare with
Cause = Literal["live", "import", "model"]  # why a due time is stale; the strongest cause wins, live first


class Accounts(msgspec.Struct, array_like=True):
    """What became of each record of the events topic from offset `first` on, -1 before there was one: each has one end.
    Kept with the state, so that a record that is read again after a crash is in it once."""

    first: int = -1
    ends: dict[str, int] = {}  # folded, duplicate, late, rejected, dropped:reason → records


class Brought(msgspec.Struct, array_like=True):
    """What an interval brought to one user: up to `offset` of the events topic the state stands for their events, these had
    these `ends`, and the latest is still `owed` an answer."""

    offset: int = -1
    ends: dict[str, int] = {}
    owed: bool = False


class Meta(msgspec.Struct, array_like=True):
    """The partition's own record: what its state stands for."""

    offsets: dict[str, tuple[str, int]] = {}  # input topic → (topic id, last folded offset)
    clock_ms: int = 0
    live_since_ms: int = 0  # 0 until the first live event
    owed: list[bytes] = []  # users whose latest live event no recommendation has answered yet
    marks: dict[str, int] = {}  # input topic → append time of the last folded record, ms: is it still that record?
    reminding_since_ms: int = 0  # what was due before it is no news; 0: written by a version without reminders
    accounts: Accounts = msgspec.field(default_factory=Accounts)
    ahead: dict[bytes, Brought] = {}  # users whose states stand for more than `offsets`: whoever wrote them was gone then
    changelog: str = ""  # id of the topic it was written to; "" of versions before 0.9.0


_meta_decoder = msgspec.msgpack.Decoder(Meta)
_brought_decoder = msgspec.msgpack.Decoder(Brought)


def pack(state: UserState) -> bytes:
    """A state as stored: 8 bytes of due time, so that timers are rebuilt without decoding, then the state."""
    return state.next_due_ms().to_bytes(_DUE_BYTES, "big") + states.encode(state)


def unpack(data: bytes) -> UserState:
    """Inverse of `pack`."""
    return states.decode(data[_DUE_BYTES:])


def due_of(data: bytes) -> int:
    """Due time of a packed state."""
    return int.from_bytes(data[:_DUE_BYTES], "big")


def _until(records: Sequence[R], offset: int) -> int:
    """How many records, in offset order, are at or before an offset."""
    return bisect_right(records, offset, key=lambda record: record.offset)


class NoStore:
    """Of a partition that holds no states: it keeps nothing and has nothing."""

    changelog_offset = -1
    term = NO_TERM

    @property
    def begun(self) -> Begun:
        return {}

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [None] * len(keys)

    def write(self, puts: Mapping[bytes, bytes | None], changelog_offset: int, now_ms: int) -> None:
        raise AssertionError("a partition that passes on has nothing to write")

    def purge(self, keys: Sequence[bytes]) -> None:
        return


class PartitionState:
    """States of one partition: an overlay of changed ones over a cache over the store, and one timer a user."""

    def __init__(
        self, partition: int, store: Store, counts: PartitionCounts, cached_max: int, recommend_interval_ms: int
    ) -> None:
        self.partition = partition
        self.passes_on = isinstance(store, NoStore)
        self.store = store
        self.headers = headers(store.term)  # of all that is written of this partition until it is let go
        self.counts = counts
        self.published = {key: count.offset for key, count in counts.counts.items()}
        raw, swept = store.get_many([META_KEY, SWEPT_KEY])
        self.swept = (swept or b"").decode()  # what everybody's due times are by; "" while that differs
        self.meta = _meta_decoder.decode(raw) if raw else Meta(reminding_since_ms=1)
        self.meta.reminding_since_ms = self.meta.reminding_since_ms or max(1, self.meta.clock_ms)
        self.dirty: dict[bytes, UserState] = {}
        self.erased: set[bytes] = set()  # deleted before what is dirty is written
        self.purging: set[bytes] = set()  # … and rewritten on disk, so that no byte of them is left
        self._cache: OrderedDict[bytes, UserState] = OrderedDict()
        self._cached_max = cached_max
        self._stored_due: dict[bytes, int] = {}
        self._timers: list[tuple[int, bytes]] = []
        self._armed: dict[bytes, int] = {}  # when, 0 for not at all, for users whose timer was set or went off since opening
        self._timers_kept = 0  # when void ones were let go last
        self.unscheduled: dict[bytes, Cause] = {}  # users whose due time is stale, and since what
        # users whose segments may be out of date, in the order in which they are due; True: looked at in a sweep
        self.unsorted: dict[bytes, bool] = {}
        self.turns: list[tuple[int, bytes]] = []  # a heap: when time alone moves users between segments
        self._turns: dict[bytes, int] = {}
        # users whose cluster is out of date and comes with no recommendation: of who did something, and of a sweep
        self.strayed: dict[bytes, None] = {}
        self.unplaced: dict[bytes, None] = {}
        self._carry_from_ms = 0  # wall time since which silence moves the clock
        self.outcomes: Counter[str] = Counter()
        self._brought: dict[bytes, Brought] = {}  # by this interval
        self._written_meta = self._frozen_meta = msgspec.msgpack.encode(self.meta)
        self.owed = Owed(recommend_interval_ms)
        self._owed_then = dict.fromkeys(self.meta.owed)  # as the partition's own record says
        owed = self._go_on_with(store.begun, dict(self._owed_then))
        self.load(owed)
        for key in owed:
            self.owed.owe(key, self.read(key).recommended_ts_ms, self.meta.clock_ms)

    def _go_on_with(self, begun: Begun, owed: dict[bytes, None]) -> list[bytes]:
        """States of an interval that nothing closed stand for events that are read again. Returns who is owed an answer."""
        for key, carried in begun.items():
            brought = [_brought_decoder.decode(raw) for raw in carried]
            owed.pop(key, None)
            if brought[-1].owed:
                owed[key] = None
            known = [self.meta.ahead[key], *brought] if key in self.meta.ahead else brought
            ends: Counter[str] = Counter()
            for one in known:
                ends.update(one.ends)
            if ends:
                self.meta.ahead[key] = Brought(max(one.offset for one in known), dict(ends))
        return [*owed]

    def load_timers(self, entries: list[tuple[bytes, int]]) -> None:
        """Set the timers from (user key, due time) pairs, as the store's small due records hold them."""
        self._stored_due = dict(entries)
        self._timers = [(due, key) for key, due in entries]
        heapq.heapify(self._timers)
        self._timers_kept = len(self._timers)

    def load(self, keys: list[bytes]) -> None:
        """Bring states into the cache with one read of the store."""
        missing = [key for key in dict.fromkeys(keys) if key not in self.dirty and key not in self._cache]
        for key, raw in zip(missing, self.store.get_many(missing), strict=True):
            self._cache[key] = unpack(raw) if raw and key not in self.erased else UserState()
        while len(self._cache) > self._cached_max + len(keys):
            self._cache.popitem(last=False)

    def read(self, key: bytes) -> UserState:
        """A state for reading; whoever changes it must take it by `change`."""
        found = self.dirty.get(key) or self._cache.get(key)
        if found is None:
            self.load([key])
            found = self._cache[key]
        return found

    def change(self, key: bytes) -> UserState:
        """A state to be changed in place; it is written when the interval closes."""
        state = self.read(key)
        self.dirty[key] = state
        return state

    def erase(self, key: bytes) -> None:
        """Nothing is known of this user any more; what is folded from now on begins anew."""
        self.dirty.pop(key, None)
        self._cache[key] = UserState()
        self._stored_due.pop(key, None)
        self.unscheduled.pop(key, None)
        self.unsorted.pop(key, None)
        self.strayed.pop(key, None)
        self.unplaced.pop(key, None)
        self.owed.drop(key)
        self.meta.ahead.pop(key, None)
        self.erased.add(key)

    def touched(self, key: bytes, state: UserState, lane: Lane) -> None:
        """The user's state was changed by an event: to be written, and the timer to be set anew. What an event of the past
        makes due until now is no news."""
        self.dirty[key] = state
        self.unsorted.setdefault(key, False)
        if lane == "live":
            self.unscheduled[key] = "live"
        else:
            self.unscheduled.setdefault(key, "import")
            state.reminders.past_ts_ms = max(state.reminders.past_ts_ms, self.meta.clock_ms)

    def refresh(self, keys: list[bytes]) -> None:
        """A new model moves the due times of these users; whoever was erased meanwhile has none."""
        self.load(keys)
        for key in keys:
            if self.read(key).events:
                state = self.change(key)
                state.reminders.look_anew(state.orders, self.meta.clock_ms)
                self.unscheduled.setdefault(key, "model")

    def encoded_meta(self) -> bytes:
        """The partition's record as it would be written now."""
        self.meta.owed = self.owed.keys()
        self.meta.accounts.ends = dict(sorted(self.meta.accounts.ends.items()))  # which came first tells nothing
        return msgspec.msgpack.encode(self.meta)

    def meta_changed(self) -> bool:
        return self.encoded_meta() != self._written_meta

    def advance_clock(self, ts_ms: int) -> None:
        """A live event says what time it is; silence begins anew."""
        if ts_ms >= self.meta.clock_ms:
            self.meta.clock_ms = ts_ms
            self._carry_from_ms = 0

    def carried_clock_ms(self, wall_ms: int, caught_up: bool) -> int:
        """The partition's clock, carried on through silence by the wall clock. Only while nothing waits to be read:
        otherwise it would run ahead of events that are already in the log."""
        if not caught_up or self._carry_from_ms == 0 or self.meta.live_since_ms == 0:
            self._carry_from_ms = wall_ms
        return self.meta.clock_ms + max(0, wall_ms - self._carry_from_ms)

    def set_timer(self, key: bytes) -> None:
        """Set a user's timer to what their state says is due next; older entries for the user become void."""
        due_ms = self.read(key).next_due_ms()
        if self._armed.get(key) == due_ms:
            return
        self._armed[key] = due_ms
        if due_ms:
            heapq.heappush(self._timers, (due_ms, key))
        if len(self._timers) > 2 * self._timers_kept + VOID_TIMERS_MAX:
            self._timers = [entry for entry in self._timers if self._armed.get(entry[1], entry[0]) == entry[0]]
            heapq.heapify(self._timers)
            self._timers_kept = len(self._timers)

    def pop_due(self, clock_ms: int, limit: int) -> list[bytes]:
        """Keys of users whose timer has come, at most `limit`; void entries are skipped."""
        due: list[bytes] = []
        while self._timers and self._timers[0][0] <= clock_ms and len(due) < limit:
            at, key = heapq.heappop(self._timers)
            if self._armed.get(key, at) != at:
                continue
            self._armed[key] = 0
            if self.read(key).next_due_ms() == at:
                due.append(key)
        return due

    def set_turn(self, key: bytes, at_ms: int) -> None:
        """The user's segments will be out of date then."""
        if self._turns.get(key) != at_ms:
            self._turns[key] = at_ms
            heapq.heappush(self.turns, (at_ms, key))

    def turn(self, clock_ms: int) -> None:
        """Those whose moment has come are to be looked at."""
        while self.turns and self.turns[0][0] <= clock_ms:
            at_ms, key = heapq.heappop(self.turns)
            if self._turns.get(key) == at_ms:
                del self._turns[key]
                self.unsorted.setdefault(key, False)

    def not_folded(self, topic: str, topic_id: str, records: Sequence[R]) -> Sequence[R]:
        """The records, in offset order, that the state does not stand for yet. A recreated topic has another id and
        starts anew."""
        known = self.meta.offsets.get(topic)
        if known is None or known[0] != topic_id:
            return records
        return records[_until(records, known[1]) :]

    def folded(self, topic: str) -> int:
        """The last offset of a topic that the state stands for, -1 before the first."""
        return self.meta.offsets.get(topic, ("", -1))[1]

    def given_again(self, topic: str, records: Sequence[R]) -> bool:
        """Whether some of the records that `not_folded` leaves out came later than the last one that was folded: then the
        broker may have given their offsets away a second time. Or its clock went back: `reconcile` knows."""
        mark_ms = self.meta.marks.get(topic)
        return mark_ms is not None and any(one.timestamp > mark_ms for one in records[: _until(records, self.folded(topic))])

    def ended(self, end: str) -> None:
        """What became of a record of the events topic."""
        self.outcomes[end] += 1
        ends = self.meta.accounts.ends
        ends[end] = ends.get(end, 0) + 1

    def ended_for(self, key: bytes, offset: int, end: str) -> None:
        """What became of an event of this user's."""
        self.ended(end)
        brought = self._brought.get(key)
        if brought is None:
            self._brought[key] = Brought(offset, {end: 1})
        else:
            brought.offset = offset
            brought.ends[end] = brought.ends.get(end, 0) + 1

    def stands_for(self, key: bytes, offset: int) -> bool:
        """Whether the user's state stands for this record, which is read again."""
        known = self.meta.ahead.get(key)
        return known is not None and offset <= known.offset

    def ended_before(self, key: bytes, offset: int) -> None:
        """An event for which the user's state stands already: it takes one of the ends that there were, whichever it was."""
        known = self.meta.ahead[key]
        end = next(iter(known.ends), "duplicate")
        if known.ends.get(end, 0) > 1:
            known.ends[end] -= 1
        else:
            known.ends.pop(end, None)
        if offset == known.offset:
            del self.meta.ahead[key]
        self.ended(end)

    def unaccounted(self, events: str) -> int:
        """Offsets of the events topic, from the first that is accounted for, that no record with an end stands for: 0,
        unless retention took records before they were read, or a producer's transactions have markers of their own."""
        accounts = self.meta.accounts
        if accounts.first < 0:
            return 0
        return self.meta.offsets[events][1] + 1 - accounts.first - sum(accounts.ends.values())

    def kept_in(self, changelog: str) -> None:
        """The id of the changelog that this is written to. One that was made again under a running worker has states of some
        users, which the worker wrote before it ended, and the partition's own record, which stands for all of them: nothing
        counts as folded."""
        if self.meta.changelog not in ("", changelog):
            self.meta.offsets.clear()
            self.meta.marks.clear()
            self.meta.ahead.clear()
            self.meta.accounts = Accounts()
        self.meta.changelog = changelog

    def reconcile(self, topic: str, topic_id: str, end: int, mark_ms: int | None, *, counted: bool) -> str | None:
        """What the state stands for against what the topic is now, when the partition is opened. A topic that was made
        again, or that lost its last records, gives offsets away a second time, and what comes under them is no duplicate:
        which events were folded is then told by their ids. Live counts (`counted`: of this topic) start over likewise.

        `mark_ms` is when the record at the last folded offset was appended, None where it is not there any more. Returns
        what was found, None for nothing.
        """
        known_id, folded = self.meta.offsets.get(topic, (topic_id, -1))
        known_ms = self.meta.marks.get(topic)
        if known_id != topic_id:
            last, why = -1, f"the topic was made again: its id is {topic_id}, the state is of {known_id}"
        elif folded >= end:
            last, why = end - 1, f"the topic ends at {end}, the state has folded up to {folded}: the broker lost records"
        elif mark_ms is not None and known_ms is not None and mark_ms != known_ms:
            last, why = -1, f"at offset {folded} there is another record than was folded: the broker lost records"
        else:
            return None
        self.meta.offsets[topic] = (topic_id, last)
        if counted:
            self.meta.accounts = Accounts()  # from here on offsets are given away again
            self.meta.ahead.clear()
            self.published = {key: min(offset, last) for key, offset in self.published.items()}
            for count in self.counts.counts.values():
                count.offset = min(count.offset, last)
        return why

    def mark_folded(self, topic: str, topic_id: str, offset: int, append_ms: int) -> None:
        """The state stands for all records up to this one; for more already where it is read again after a rewind."""
        known = self.meta.offsets.get(topic)
        if known is not None and known[0] == topic_id and known[1] >= offset:
            return
        self.meta.offsets[topic] = (topic_id, offset)
        self.meta.marks[topic] = append_ms

    def frozen(self) -> tuple[list[tuple[bytes, bytes | None, Headers]], dict[bytes, bytes | None]]:
        """What closing the interval writes: changelog records in order (partition record last), and the store's puts."""
        log: list[tuple[bytes, bytes | None, Headers]] = [(key, None, self.headers) for key in sorted(self.erased)]
        log += [(key, pack(state), self._headers_of(key)) for key, state in self.dirty.items()]
        self._frozen_meta = self.encoded_meta()
        log.append((META_KEY, self._frozen_meta, self.headers))
        puts: dict[bytes, bytes | None] = {key: value for key, value, _ in log}
        puts[SWEPT_KEY] = self.swept.encode() if self.swept and not self.unscheduled else None
        puts |= {DUE_PREFIX + key: None for key in self.erased}
        for key, state in self.dirty.items():
            due_ms = state.next_due_ms()
            if self._stored_due.get(key, 0) != due_ms:
                puts[DUE_PREFIX + key] = due_ms.to_bytes(_DUE_BYTES, "big") if due_ms else None
        return log, puts

    def _headers_of(self, key: bytes) -> Headers:
        """What the interval brought as well, where it brought anything that the partition's own record is to say."""
        brought = self._brought.get(key)
        if brought is None:
            if key not in self._owed_then:
                return self.headers
            brought = Brought()
        brought.owed = key in self.owed
        return [*self.headers, (BROUGHT, msgspec.msgpack.encode(brought))]

    def write_again(self, keys: set[bytes]) -> None:
        """What this partition knows of some keys, and its own record, goes into the next interval as well."""
        users = sorted(key for key in keys if not key.startswith(b"#"))
        self.load(users)
        for key in users:
            if self.read(key) == NOBODY:
                self.erased.add(key)
            else:
                self.change(key)
        self._written_meta = b""  # no record is empty: it counts as changed

    def written(self) -> None:
        """The interval is durable: the overlay becomes the cache."""
        self.erased.clear()
        for key, state in self.dirty.items():
            if due_ms := state.next_due_ms():
                self._stored_due[key] = due_ms
            else:
                self._stored_due.pop(key, None)
            self._cache[key] = state
            self._cache.move_to_end(key)
        self.dirty.clear()
        self._brought.clear()
        self._owed_then = dict.fromkeys(self.meta.owed)
        self._written_meta = self._frozen_meta
        while len(self._cache) > self._cached_max:
            self._cache.popitem(last=False)

