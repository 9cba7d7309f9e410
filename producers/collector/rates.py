"""How fast events may come: by each write key, so that none crowds out the others, and of each user, so that no bot does.
A tenant's key in its pages is public: who floods with that one leaves the key of its servers alone, and who makes users up
is still held by the key's own bucket. Users to forget come by each admin key.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable

from stream.http.rates import Buckets, Wanted, take
from stream.settings import Collector


class Rates:
    """All limits of a collector; a request passes whole or not at all, so that a client can send it again as it is."""

    def __init__(self, own: Collector, forgotten_at_once_max: int, clock_s: Callable[[], float]) -> None:
        key_burst, user_burst = math.ceil(own.key_events_per_s_max), own.user_events_burst
        self._write_keys = Buckets(own.key_events_per_s_max, max(key_burst, own.batch_events_max))
        self._users = Buckets(own.user_events_per_s_max, max(user_burst, own.batch_events_max))  # a batch fits at first
        self._admin_keys = Buckets(own.key_regulations_per_s_max, max(own.key_regulations_burst, forgotten_at_once_max),
                                   "users to forget")  # fmt: skip
        self._clock_s = clock_s

    def admit(self, tenant: str, write_key: str, user_keys: Iterable[bytes | None]) -> None:
        """`write_key` is the hash of the tenant's key that was used, `user_keys` one an event, None where nobody is named.
        Raises Refused 429 with the time to wait."""
        counts = Counter(user_keys)
        wanted = [Wanted(self._users, key, count, f"{key.decode()} sends")
                  for key, count in counts.items() if key is not None]  # fmt: skip
        wanted.append(Wanted(self._write_keys, write_key, counts.total(), f"A write key of {tenant} sends"))
        take(wanted, self._clock_s())

    def regulate(self, tenant: str, admin_key: str, users: int) -> None:
        """The same of requests to forget, or no longer to."""
        take([Wanted(self._admin_keys, admin_key, users, f"An admin key of {tenant} names")], self._clock_s())
