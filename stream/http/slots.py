"""A bounded number of requests at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from stream.http.answers import Refused

RETRY_AFTER_S = 1


class Slots:
    """
    >>> slots = Slots(1)
    >>> with slots.one():
    ...     slots.taken
    1
    """

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """A slot while the block runs; raises Refused 429 where none is left."""
        if self.taken >= self.most:
            raise Refused(429, "busy", "Too many requests at once; send again.", retry_after_s=RETRY_AFTER_S)
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1
