"""Counts kept live: recent popularity and sequence rules with decay. No learning, updated by every event.

Each partition keeps absolute totals of its own events an item and publishes them with the input offset they stand for;
a reader sums over partitions. Weights decay by half-lives; since all weights of one kind decay alike, a weight is kept
at its own reference time and only ratios matter when ranking. Sequence rules: Ludewig & Jannach, "Evaluation of
session-based recommendation algorithms" (2018), section 3.1: a step of distance k adds 1/k.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Annotated

import msgspec

from stream.core.user.state import DAY_MS, Kind, Touch

REBASE_MS = DAY_MS  # a rule's reference time lags behind its newest event by at most this; only ratios matter
SUCCESSORS_MAX = 40  # per item and partition: the strongest
SUCCESSORS_SLACK = 16  # newcomers may stay until there are so many: dropping one by one took a third of counting
UNLISTED_MAX = 10_000  # items of a tenant that no catalog names, per partition: a client that makes ids up stops here
_WEIGHT: dict[int, float] = {
    Kind.VIEW: 1.0, Kind.CLICK: 1.0, Kind.CART: 3.0, Kind.WISH: 2.0, Kind.ORDER: 5.0, Kind.REVIEW: 1.0,
    Kind.SHARE: 2.0, Kind.OTHER: 0.5,
}  # fmt: skip


HalfLife = Annotated[float, msgspec.Meta(gt=0)]  # days; checked when a manifest is read


class CountsPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of the live counts, from the manifest."""

    popularity_half_life_days: HalfLife = 14.0
    recent_half_life_days: HalfLife = 3.0
    lasting_half_life_days: HalfLife = 60.0
    rules_half_life_days: HalfLife = 60.0
    rules_window: int = 5  # how many earlier touches a touch is a successor of
    rules_age_days_max: float = 30.0  # … if they are not older than this

    @classmethod
    def from_manifest(cls, values: dict[str, float]) -> CountsPolicy:
        return msgspec.convert(values, cls, strict=False)

    @property
    def half_lives_days(self) -> tuple[float, float, float]:
        """Of the three popularities an item has: recent, usual, lasting. Their ratios say what is rising."""
        return self.recent_half_life_days, self.popularity_half_life_days, self.lasting_half_life_days


class ItemCount(msgspec.Struct, array_like=True):
    """Totals of one item from one partition's events up to and including `offset`."""

    popularity: float = 0.0  # at ts_ms
    ts_ms: int = 0
    successors: dict[str, float] = {}  # at rules_ts_ms
    rules_ts_ms: int = 0
    offset: int = -1
    recent: float = 0.0  # popularity with a shorter half-life, at ts_ms
    lasting: float = 0.0  # … and with a longer one

    def popularities(self) -> tuple[float, float, float]:
        """In the order of `CountsPolicy.half_lives_days`, at `ts_ms`."""
        return self.recent, self.popularity, self.lasting


def add_popularity(count: ItemCount, touch: Touch, policy: CountsPolicy) -> None:
    """Add a touch's weight, decayed to the later of the two times; commutes over touches."""
    weight, elapsed_ms = _WEIGHT.get(touch.kind, 0.0), touch.ts_ms - count.ts_ms
    recent, usual, lasting = policy.half_lives_days
    if elapsed_ms >= 0:
        count.recent = count.recent * _decay(elapsed_ms, recent) + weight
        count.popularity = count.popularity * _decay(elapsed_ms, usual) + weight
        count.lasting = count.lasting * _decay(elapsed_ms, lasting) + weight
        count.ts_ms = touch.ts_ms
    else:
        count.recent += weight * _decay(-elapsed_ms, recent)
        count.popularity += weight * _decay(-elapsed_ms, usual)
        count.lasting += weight * _decay(-elapsed_ms, lasting)


def add_successor(count: ItemCount, successor: str, weight: float, ts_ms: int, policy: CountsPolicy) -> None:
    """Strengthen the rule item → successor. At SUCCESSORS_MAX + SUCCESSORS_SLACK only the SUCCESSORS_MAX strongest stay."""
    if not count.successors:
        count.rules_ts_ms = max(count.rules_ts_ms, ts_ms)
    elif ts_ms - count.rules_ts_ms > REBASE_MS:  # rarely: with every event it took a third of counting
        factor = _decay(ts_ms - count.rules_ts_ms, policy.rules_half_life_days)
        count.successors = {item: value * factor for item, value in count.successors.items()}
        count.rules_ts_ms = ts_ms
    since = _decay(count.rules_ts_ms - ts_ms, policy.rules_half_life_days)  # above 1 for what is younger than the reference
    count.successors[successor] = count.successors.get(successor, 0.0) + weight * since
    if len(count.successors) >= SUCCESSORS_MAX + SUCCESSORS_SLACK:
        strongest = sorted(count.successors.items(), key=lambda one: (-one[1], one[0]))
        count.successors = dict(strongest[:SUCCESSORS_MAX])


def rule_steps(ring: list[Touch], touch: Touch, policy: CountsPolicy) -> list[tuple[str, float]]:
    """(earlier item, 1/k) for the distinct items touched before `touch` in a user's ring, nearest first."""
    steps: list[tuple[str, float]] = []
    seen = {touch.item_id}
    order = touch.order()
    oldest = touch.ts_ms - policy.rules_age_days_max * DAY_MS
    for earlier in reversed(ring):
        if earlier.item_id in seen or (earlier.ts_ms >= touch.ts_ms and earlier.order() >= order):
            continue
        if earlier.ts_ms < oldest or len(steps) == policy.rules_window:
            break
        seen.add(earlier.item_id)
        steps.append((earlier.item_id, 1.0 / (len(steps) + 1)))
    return steps


def _decay(elapsed_ms: float, half_life_days: float) -> float:
    return math.exp2(-elapsed_ms / (half_life_days * DAY_MS))


class PartitionCounts:
    """One partition owner's totals; the caller publishes `dirty` and clears it once they are acknowledged."""

    def __init__(
        self, policy: CountsPolicy, counts: dict[str, ItemCount] | None = None,
        listed: Callable[[str, str], bool] = lambda tenant, item_id: True,
    ) -> None:  # fmt: skip
        """`listed`: whether a tenant's catalog names an item. Any number of those is counted, of others UNLISTED_MAX."""
        self.policy = policy
        self.counts: dict[str, ItemCount] = counts if counts is not None else {}
        self.dirty: set[str] = set()
        self.left_out = 0  # touches that found no place here; the caller takes them
        self._listed = listed
        named = (key.split("/", 1) for key in self.counts)
        self._unlisted = Counter(tenant for tenant, item_id in named if not listed(tenant, item_id))

    def observe(self, tenant: str, touch: Touch, ring: list[Touch], offset: int, published: dict[str, int]) -> None:
        """Count one folded touch. An item whose published totals already stand for `offset` or later is skipped:
        after a crash between publishing counts and writing user state, the same events are folded again."""
        key = f"{tenant}/{touch.item_id}"
        if published.get(key, -1) < offset:
            add_popularity(self._of(key, offset), touch, self.policy)
        for earlier, weight in rule_steps(ring, touch, self.policy):
            key = f"{tenant}/{earlier}"
            if published.get(key, -1) < offset:
                add_successor(self._of(key, offset), touch.item_id, weight, touch.ts_ms, self.policy)

    def _of(self, key: str, offset: int) -> ItemCount:
        count = self.counts.get(key)
        if count is None:
            count = ItemCount()
            tenant, item_id = key.split("/", 1)
            if not self._listed(tenant, item_id):
                if self._unlisted[tenant] >= UNLISTED_MAX:
                    self.left_out += 1
                    return count  # what is added to it goes nowhere
                self._unlisted[tenant] += 1
            self.counts[key] = count
        if offset > count.offset:
            count.offset = offset
        self.dirty.add(key)
        return count
