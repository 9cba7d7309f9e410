"""A bounded number of requests at once, of all or of each."""

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

    def __init__(self, most: int, what: str = "requests") -> None:
        self.most, self.taken, self._what = most, 0, what

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """A slot while the block runs; raises Refused 429 where none is left."""
        if self.taken >= self.most:
            raise Refused(429, "busy", f"Too many {self._what} at once; send again.", retry_after_s=RETRY_AFTER_S)
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


class Shares:
    """As many slots for each key.

    >>> shares = Shares(1, "requests of this key")
    >>> with shares.one("a"), shares.one("b"):
    ...     sorted(shares.taken)
    ['a', 'b']
    >>> shares.taken
    {}
    """

    def __init__(self, most: int, what: str) -> None:
        self.most, self._what = most, what
        self.taken: dict[str, Slots] = {}

    @contextlib.contextmanager
    def one(self, key: str) -> Iterator[None]:
        """A slot of this key while the block runs; raises Refused 429 where it has none left."""
        own = self.taken.setdefault(key, Slots(self.most, self._what))
        try:
            with own.one():
                yield
        finally:
            if not own.taken:
                self.taken.pop(key, None)
