"""What was learned from decisions about offers and what became of them: a fold of two logs.

A decision has an impression once it was seen (or clicked, or ordered from), and a click and an order once each. What its
user did counts from EARLY_MS before the broker's time of the decision until its window is over. So each decision's part is
a function of the logs alone; parts are counts; and sums of counts are the same in whatever order partitions are read. What
guardrails compare is counted once a window is over, by the time of the user's partition: until then more may come of it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.events import ORDER_COMPLETED, PROMOTION_CLICKED, PROMOTION_VIEWED, Properties
from schemas.offers import MICROS, PLACEMENT_PREFIX, OfferTotals, Open, PlacementTotals, UserOffers, placement_key
from schemas.outputs import OfferCap, Offered
from stream.core.offers.offer_policy import expand
from stream.core.offers.offers import FEATURES_MAX, HOUR_MS
from stream.core.user.state import DAY_MS

SEEN, CLICKED, ORDERED = 1, 2, 4
BITS: Mapping[str, int] = {PROMOTION_VIEWED: SEEN, PROMOTION_CLICKED: CLICKED, ORDER_COMPLETED: ORDERED}
ID_PREFIX = "offer-"  # of a decision's id: who reads events knows it by sight
EARLY_MS = 600_000  # an event may be in the log before its decision, which the API sends when it can
OFFERS_COUNTED_MAX = 2_000  # of one placement: texts come and go, each is one
EARLY_MAX = 32  # such events of one user: ids that nobody gave out must not fill the memory
DAYS_KEPT = 3
REVENUE_MAX = 1e9  # of one order: one with a slip of the keyboard must not be all that is seen

_totals, _user = msgspec.msgpack.Decoder(PlacementTotals), msgspec.msgpack.Decoder(UserOffers)
_encode = msgspec.msgpack.Encoder().encode


class Learned:
    """One placement's totals, open to be added to."""

    def __init__(self, totals: PlacementTotals) -> None:
        n = len(totals.names)
        self.row_of = {name: row for row, name in enumerate(totals.names)}
        self.gram: npt.NDArray[np.uint32] = np.zeros((max(32, n), max(32, n)), dtype=np.uint32)
        self.moment: npt.NDArray[np.uint32] = np.zeros(max(32, n), dtype=np.uint32)
        self.gram[:n, :n] = np.frombuffer(totals.gram, dtype=np.uint32).reshape(n, n)
        self.moment[:n] = np.frombuffer(totals.moment, dtype=np.uint32)
        self.outcomes, self.rewards, self.left_out = totals.outcomes, totals.rewards, totals.left_out
        self.offers = totals.offers

    def rows(self, names: Iterable[str]) -> npt.NDArray[np.int64]:
        """Rows of features; new ones get one while there is room."""
        found = []
        for name in names:
            row = self.row_of.get(name)
            if row is None and len(self.row_of) == FEATURES_MAX:
                self.left_out += 1
                continue
            if row is None:
                row = self.row_of[name] = len(self.row_of)
                if row == len(self.moment):
                    self.gram = np.pad(self.gram, (0, row))
                    self.moment = np.pad(self.moment, (0, row))
            found.append(row)
        return np.array(found, dtype=np.int64)

    def offer(self, name: str) -> OfferTotals | None:
        """Its counts; None of a new one where there is no room."""
        if name not in self.offers and len(self.offers) >= OFFERS_COUNTED_MAX:
            self.left_out += 1
            return None
        return self.offers.setdefault(name, OfferTotals())

    def totals(self) -> PlacementTotals:
        """As it is published: features in alphabetical order, so that equal totals are equal bytes."""
        names = sorted(self.row_of)
        order = np.array([self.row_of[name] for name in names], dtype=np.int64)
        return PlacementTotals(
            names=names, gram=self.gram[np.ix_(order, order)].tobytes(), moment=self.moment[order].tobytes(),
            outcomes=self.outcomes, rewards=self.rewards, left_out=self.left_out,
            offers={name: self.offers[name] for name in sorted(self.offers)},
        )  # fmt: skip


class Ledger:
    """All placements and users. `partition_of` is that of the users' topics: time passes by partition."""

    def __init__(self, partition_of: Callable[[bytes], int]) -> None:
        self.placements: dict[tuple[str, str], Learned] = {}
        self.users: dict[bytes, bytes] = {}
        self._partition_of = partition_of
        self._due: dict[int, list[tuple[int, bytes]]] = {}  # partition → heap of when something of a user is over
        self._changed: set[bytes] = set()
        self._moved: set[tuple[str, str]] = set()

    def restore(self, key: bytes, value: bytes) -> None:
        """A record as it was published."""
        if key.startswith(PLACEMENT_PREFIX):
            tenant, _, placement = key[len(PLACEMENT_PREFIX) :].decode().partition("/")
            self.placements[tenant, placement] = Learned(_totals.decode(value))
        else:
            self.users[key] = value
            for at_ms in _ends(_user.decode(value)):
                self._note_due(key, at_ms)

    def decide(self, user_key: bytes, ident: str, offered: Offered, logged_ms: int) -> None:
        """A decision; logged again by another replica it is the same one."""
        user = self._read(user_key)
        if not offered.offer_id or ident in user.open:
            return
        cost = offered.cost
        one = user.open[ident] = Open(
            offered.placement, offered.offer_id, logged_ms, offered.window_ms, offered.reward, offered.about, offered.groups,
            (round(cost.impression * MICROS), round(cost.click * MICROS), round(cost.order * MICROS)),
            _cap(offered.cap), offered.holdout, instead=offered.instead, instead_cap=_cap(offered.instead_cap),
        )  # fmt: skip
        for early in [early for early in user.early if early[0] == ident]:
            user.early.remove(early)
            _, bit, at_ms, revenue = early
            self._count(user_key, user, one, bit, at_ms, revenue)
        self._note_due(user_key, _end(one))
        self._write(user_key, user)

    def react(self, user_key: bytes, ident: str, bit: int, at_ms: int, revenue_micros: int = 0) -> None:
        """What a user did about a decision; `at_ms` is the broker's time."""
        user = self._read(user_key)
        one = user.open.get(ident)
        if one is not None:
            self._count(user_key, user, one, bit, at_ms, revenue_micros)
        elif len(user.early) < EARLY_MAX:
            user.early.append((ident, bit, at_ms, revenue_micros))
            self._note_due(user_key, at_ms + EARLY_MS)
        self._write(user_key, user)

    def tick(self, partition: int, clock_ms: int) -> None:
        """Everything of a partition's events before this time has been read: what is over is final, and forgotten."""
        heap = self._due.get(partition, [])
        while heap and heap[0][0] < clock_ms:
            _, user_key = heapq.heappop(heap)
            user = self._read(user_key)
            for one in user.open.values():
                if _end(one) < clock_ms:
                    self._final(user_key, one)
            user.open = {ident: one for ident, one in user.open.items() if _end(one) >= clock_ms}
            user.early = [one for one in user.early if one[2] + EARLY_MS >= clock_ms]
            user.seen_until_ms = {offer: until for offer, until in user.seen_until_ms.items() if until >= clock_ms}
            user.seen = {offer: user.seen[offer] for offer in user.seen_until_ms}
            self._write(user_key, user)

    def forget(self, user_keys: Iterable[bytes], covers: Callable[[bytes, int], bool]) -> int:
        """Forget of these users what may not be kept: `covers(user, its time)`. Returns of how many there was any. What they
        did stays in the sums."""
        touched = 0
        for one in user_keys:
            if one in self.users and (left := _without(user := self._read(one), partial(covers, one))) != user:
                self._write(one, left)
                touched += 1
        return touched

    def take_changed(self) -> dict[bytes, bytes | None]:
        """What is to be published since it was taken last: key → value, None for a tombstone."""
        found: dict[bytes, bytes | None] = {
            placement_key(*one): _encode(self.placements[one].totals()) for one in sorted(self._moved)
        }  # fmt: skip
        found |= {one: self.users.get(one) for one in sorted(self._changed)}
        self._moved.clear()
        self._changed.clear()
        return found

    def _count(self, user_key: bytes, user: UserOffers, one: Open, bit: int, at_ms: int, revenue_micros: int) -> None:
        new = (bit | SEEN) & ~one.done
        if not new or not one.logged_ms - EARLY_MS <= at_ms <= one.logged_ms + one.window_ms:
            return
        learned = self._moving(user_key, one)
        one.done |= new
        rows = learned.rows(expand(one.about, one.groups))
        if new & SEEN:
            learned.gram[np.ix_(rows, rows)] += 1
            learned.outcomes += 1
            for until_ms in _remember(user, one, at_ms):
                self._note_due(user_key, until_ms)
        if new & (CLICKED if one.reward == "click" else ORDERED):
            learned.moment[rows] += 1
            learned.rewards += 1
        totals = learned.offer(one.offer_id)
        if totals is not None:
            _add(totals, one, new, at_ms // DAY_MS, revenue_micros)

    def _final(self, user_key: bytes, one: Open) -> None:
        """Nothing more can come of a decision: if it was seen, it is among those that guardrails go by, of either side only
        where the other could have been shown as well."""
        if not one.done or not one.instead:
            return
        totals = self._moving(user_key, one).offer(one.instead if one.holdout else one.offer_id)
        if totals is not None:
            _add_final(totals, one)

    def _moving(self, user_key: bytes, one: Open) -> Learned:
        """What is learned where a decision was made, which is to be published."""
        where = (user_key.partition(b"/")[0].decode(), one.placement)
        self._moved.add(where)
        learned = self.placements.get(where)
        if learned is None:
            learned = self.placements[where] = Learned(PlacementTotals())
        return learned

    def _read(self, user_key: bytes) -> UserOffers:
        value = self.users.get(user_key)
        return UserOffers() if value is None else _user.decode(value)

    def _write(self, user_key: bytes, user: UserOffers) -> None:
        if user.open or user.early or user.seen:
            self.users[user_key] = _encode(user)
        else:
            self.users.pop(user_key, None)
        self._changed.add(user_key)

    def _note_due(self, user_key: bytes, at_ms: int) -> None:
        heapq.heappush(self._due.setdefault(self._partition_of(user_key), []), (at_ms, user_key))


def _cap(cap: OfferCap | None) -> tuple[int, int] | None:
    """Count, and within how many ms."""
    return None if cap is None else (cap.count, round(cap.hours * HOUR_MS))


def _remember(user: UserOffers, one: Open, at_ms: int) -> list[int]:
    """When an offer with a cap was seen, as often as the cap asks for; by who is held out what would have been seen, too, so
    that its cap leaves as much of them to compare with. Returns until when each is remembered."""
    seen = {one.offer_id: one.cap}
    if one.holdout and one.instead:
        seen[one.instead] = one.instead_cap
    found = []
    for offer, cap in seen.items():
        if cap is not None:
            count, within_ms = cap
            user.seen[offer] = sorted([*user.seen.get(offer, []), at_ms])[-count:]
            user.seen_until_ms[offer] = max(user.seen_until_ms.get(offer, 0), at_ms + within_ms)
            found.append(user.seen_until_ms[offer])
    return found


def _add(totals: OfferTotals, one: Open, new: int, day: int, revenue_micros: int) -> None:
    cost_micros = 0
    if new & SEEN:
        totals.impressions += 1
        totals.held_impressions += one.holdout
        cost_micros += one.cost_micros[0]
    if new & CLICKED:
        totals.clicks += 1
        totals.held_clicks += one.holdout
        cost_micros += one.cost_micros[1]
    if new & ORDERED:
        totals.orders += 1
        totals.held_orders += one.holdout
        totals.revenue_micros += revenue_micros
        cost_micros += one.cost_micros[2]
    totals.spent_micros += cost_micros
    impressions, spent = totals.days.get(day, (0, 0))
    totals.days[day] = (impressions + (new & SEEN), spent + cost_micros)
    newest = max(totals.days)
    totals.days = {one: totals.days[one] for one in sorted(totals.days) if one > newest - DAYS_KEPT}


def _add_final(totals: OfferTotals, one: Open) -> None:
    clicked, ordered = bool(one.done & CLICKED), bool(one.done & ORDERED)
    if one.holdout:
        totals.control_impressions += 1
        totals.control_clicks += clicked
        totals.control_orders += ordered
    else:
        totals.over_impressions += 1
        totals.over_clicks += clicked
        totals.over_orders += ordered


def _end(one: Open) -> int:
    """When its window is over."""
    return one.logged_ms + one.window_ms


def _ends(user: UserOffers) -> list[int]:
    """When something of a user is over."""
    return [*(_end(one) for one in user.open.values()), *(one[2] + EARLY_MS for one in user.early),
            *user.seen_until_ms.values()]  # fmt: skip


def _without(user: UserOffers, covers: Callable[[int], bool]) -> UserOffers:
    """What is known of a user but for what is of a time that is covered."""
    times = {offer: [at_ms for at_ms in some if not covers(at_ms)] for offer, some in user.seen.items()}
    seen = {offer: some for offer, some in times.items() if some}
    return UserOffers(
        open={ident: one for ident, one in user.open.items() if not covers(one.logged_ms)},
        early=[one for one in user.early if not covers(one[2])],
        seen=seen, seen_until_ms={offer: until for offer, until in user.seen_until_ms.items() if offer in seen},
    )  # fmt: skip


def revenue_micros(properties: Properties) -> int:
    """What an order brought, in millionths: its revenue, else the sum of its lines.

    >>> revenue_micros(Properties(revenue=9.5))
    9500000
    """
    lines: list[Any] = [line for line in properties.products if line.price is not None]
    total = properties.revenue
    if total is None:
        total = sum(line.price * (1 if line.quantity is None else line.quantity) for line in lines)
    return 0 if math.isnan(total) else round(min(max(total, 0.0), REVENUE_MAX) * MICROS)
