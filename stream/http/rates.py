"""How fast requests of one key, or about one user, may come: what is too fast is refused whole, and told when to come back.

Generic cell rate algorithm (ITU-T I.371, annex A): of each bucket one time is kept, at which it will be full again. Memory
is bounded: of more than BUCKETS_MAX keys those seen longest ago are forgotten, which forgives them. Limits hold in each
process.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from stream.http.answers import Refused

BUCKETS_MAX = 100_000  # some 15 MB


class Buckets:
    """Buckets of one size, by key, for what `units` names. Times are seconds of a monotonic clock."""

    def __init__(self, per_s: float, burst: int, units: str = "events") -> None:
        self.per_s, self.burst, self.units = per_s, burst, units
        self._paid_at: OrderedDict[bytes | str, float] = OrderedDict()  # when what was taken will have been refilled

    def wait_s(self, key: bytes | str, count: int, now_s: float) -> float:
        """How long until `count` fit; 0 when they fit now. Nothing is taken."""
        paid_at = max(self._paid_at.get(key, now_s), now_s) + count / self.per_s
        return max(0.0, paid_at - now_s - self.burst / self.per_s)

    def take(self, key: bytes | str, count: int, now_s: float) -> None:
        """Take them, whether they fit or not."""
        self._paid_at[key] = max(self._paid_at.get(key, now_s), now_s) + count / self.per_s
        self._paid_at.move_to_end(key)
        while len(self._paid_at) > BUCKETS_MAX:
            self._paid_at.popitem(last=False)


class Wanted(NamedTuple):
    """What a request would take of one bucket. `who`, with a verb, is said of what does not fit."""

    buckets: Buckets
    key: bytes | str
    units: int
    who: str


def take(wanted: Sequence[Wanted], now_s: float) -> None:
    """Take all of it, or raise Refused 429 with the time to wait, and take nothing."""
    wait_s, slowest = max(((one.buckets.wait_s(one.key, one.units, now_s), one) for one in wanted), key=lambda it: it[0])
    if wait_s > 0:
        units = slowest.buckets.units
        raise Refused(429, f"too_many_{units.replace(' ', '_')}",
                      f"{slowest.who} more than {slowest.buckets.per_s:g} {units}/s; send this again later.",
                      retry_after_s=math.ceil(wait_s))  # fmt: skip
    for one in wanted:
        one.buckets.take(one.key, one.units, now_s)
