"""How fast events may come: by each write key, so that none crowds out the others, and of each user, so that no bot does.
A tenant's key in its pages is public: who floods with that one leaves the key of its servers alone.

Generic cell rate algorithm (ITU-T I.371, annex A): of each bucket one time is kept, at which it will be full again. Memory
is bounded: of more users than BUCKETS_MAX those seen longest ago are forgotten, which forgives them; who makes users up is
still held by the key's own bucket. Limits hold in each collector process.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable

from stream.http.answers import Refused

BUCKETS_MAX = 100_000  # some 15 MB


class Buckets:
    """Buckets of one size, by key. Times are seconds of a monotonic clock."""

    def __init__(self, per_s: float, burst: int) -> None:
        self.per_s, self.burst = per_s, burst
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


class Rates:
    """Both limits; a request passes whole or not at all, so that a client can send it again as it is."""

    def __init__(
        self, key_per_s: float, user_per_s: float, user_burst: int, batch_events_max: int, clock_s: Callable[[], float]
    ) -> None:
        self._write_keys = Buckets(key_per_s, max(math.ceil(key_per_s), batch_events_max))
        self._users = Buckets(user_per_s, max(user_burst, batch_events_max))  # one batch of one user always fits at first
        self._clock_s = clock_s

    def admit(self, tenant: str, write_key: str, user_keys: Iterable[bytes]) -> None:
        """`write_key` is the hash of the tenant's key that was used, `user_keys` one an event. Raises Refused 429 with the
        time to wait."""
        now_s, counts = self._clock_s(), Counter(user_keys)
        waits = [(self._users.wait_s(key, count, now_s), key.decode(), self._users.per_s) for key, count in counts.items()]
        waits.append((self._write_keys.wait_s(write_key, counts.total(), now_s), f"A write key of {tenant}",
                      self._write_keys.per_s))  # fmt: skip
        wait_s, who, per_s = max(waits)
        if wait_s > 0:
            raise Refused(429, "too_many_events", f"{who} sends more than {per_s:g} events/s; send this again later.",
                          retry_after_s=math.ceil(wait_s))  # fmt: skip
        for key, count in counts.items():
            self._users.take(key, count, now_s)
        self._write_keys.take(write_key, counts.total(), now_s)
