"""Whom a recommendation is owed: at most one a user and interval, the last event of the interval included.

A user's first event is answered at once. Events within the interval after a recommendation wait for its end and are
answered by one, as of the latest of them. Of those whose interval is over, the user seen last comes first: under more load
than can be answered, the customers who are still there are served, and events of one user coalesce.
"""

from __future__ import annotations

import heapq

OWED_USERS_MAX = 20_000  # a partition; with keys of 25 bytes the partition's record stays at half of its topic's limit


class Owed:
    """Keys of users; times are the partition's clock, ms.

    >>> owed = Owed(interval_ms=5_000)
    >>> owed.owe(b"a", recommended_ms=0, clock_ms=9_000), owed.owe(b"b", recommended_ms=8_000, clock_ms=9_000)
    (0, 0)
    >>> owed.take(9_000, limit=10), owed.take(12_999, limit=10), owed.take(13_000, limit=10)
    ([b'a'], [], [b'b'])
    >>> owed.owe(b"b", recommended_ms=13_000, clock_ms=13_001), owed.waits(b"b"), owed.waits(b"a")
    (0, True, False)
    """

    def __init__(self, interval_ms: int, most: int = OWED_USERS_MAX) -> None:
        self.interval_ms = interval_ms
        self._most = most
        self._ready: dict[bytes, None] = {}  # the user seen last is the last
        self._waiting: dict[bytes, int] = {}  # until when
        self._timers: list[tuple[int, bytes]] = []

    def __len__(self) -> int:
        return len(self._ready) + len(self._waiting)

    def __contains__(self, key: bytes) -> bool:
        return key in self._ready or key in self._waiting

    def waits(self, key: bytes) -> bool:
        """Whether the user's interval is not over: so far nobody answers them."""
        return key in self._waiting

    def keys(self) -> list[bytes]:
        """Everybody, those seen last at the end."""
        return [*self._waiting, *self._ready]

    def owe(self, key: bytes, recommended_ms: int, clock_ms: int) -> int:
        """The user did something; `recommended_ms` is the time of the last recommendation. Returns how many users, those
        seen longest ago, were let go to keep within the bound."""
        due_ms = recommended_ms + self.interval_ms
        if key in self._ready or due_ms <= clock_ms:
            self._ready.pop(key, None)
            self._ready[key] = None
        elif key not in self._waiting:
            self._waiting[key] = due_ms
            heapq.heappush(self._timers, (due_ms, key))
        excess = max(0, len(self) - self._most)
        for _ in range(excess):
            self._drop_oldest()
        return excess

    def take(self, clock_ms: int, limit: int) -> list[bytes]:
        """At most `limit` users whose interval is over, the one seen last first; they are owed nothing any more."""
        while self._timers and self._timers[0][0] <= clock_ms:
            due_ms, key = heapq.heappop(self._timers)
            if self._waiting.get(key) == due_ms:
                del self._waiting[key]
                self._ready[key] = None
        return [self._ready.popitem()[0] for _ in range(min(limit, len(self._ready)))]

    def drop(self, key: bytes) -> None:
        """Nothing is owed to this user any more."""
        self._ready.pop(key, None)
        self._waiting.pop(key, None)

    def _drop_oldest(self) -> None:
        oldest = next(iter(self._ready or self._waiting))
        (self._ready if oldest in self._ready else self._waiting).pop(oldest)
