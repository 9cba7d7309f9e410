"""What a method of the panel is given and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from scipy import sparse

from stream.core.user.featurize import Float32

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


class Past(NamedTuple):
    """Every interaction before the split, ordered by (ts_ms, row)."""

    users: Ints  # (E,) user numbers
    items: Ints  # (E,) item columns < n_items
    ts_ms: Ints  # (E,)
    kinds: Ints  # (E,) stream.core.user.state.Kind
    n_items: int

    def take(self, part: slice) -> Past:
        """A stretch of it; the columns stay the same."""
        return Past(self.users[part], self.items[part], self.ts_ms[part], self.kinds[part], self.n_items)

    @property
    def n_users(self) -> int:
        return int(self.users.max(initial=-1)) + 1

    @property
    def end_ms(self) -> int:
        return int(self.ts_ms[-1]) if len(self.ts_ms) else 0


class Asked(NamedTuple):
    """One question: what will this user touch next?"""

    user: int  # the number in Past, or -1 for somebody new
    items: Ints  # (L,) own history up to now_ms, oldest first, repeats kept
    ts_ms: Ints  # (L,)
    now_ms: int


class Method(Protocol):
    """A recommender. Later events are observed in the order of their times, each after the questions about it."""

    name: str  # as printed

    def fit(self, past: Past, *, seed: int, budget_s: float, threads: int) -> None:
        """Learn from the past; may choose among a few settings by its last tenth."""

    def score(self, asked: Sequence[Asked]) -> Float32:
        """(B, N), higher is better, finite."""

    def observe(self, user: int, item: int, ts_ms: int, kind: int) -> None:
        """One later event: methods whose counts are live take it in, frozen ones do nothing."""


class Frozen:
    """A method that knows the past it was fitted on and, at asking time, only the user's own history besides."""

    def observe(self, user: int, item: int, ts_ms: int, kind: int) -> None:
        """Nothing: what was learned stays."""


def histories(past: Past) -> Iterator[Asked]:
    """Each user's own interactions, as if asked at the end of the past; in order of user numbers."""
    order = np.argsort(past.users, kind="stable")
    users, items, ts_ms = past.users[order], past.items[order], past.ts_ms[order]
    edges = np.flatnonzero(np.diff(users, prepend=-1, append=-1))
    for start, stop in pairwise(edges.tolist()):
        yield Asked(int(users[start]), items[start:stop], ts_ms[start:stop], past.end_ms)


def matrix(
    asked: Sequence[Asked], n_items: int, weights: Callable[[Asked], Doubles] | None = None
) -> sparse.csr_matrix[np.float64]:
    """Histories as rows (B, N): the sum of `weights` (L,) by item, or 1 for each item touched."""
    lengths = [len(one.items) for one in asked]
    rows = np.repeat(np.arange(len(asked)), lengths)
    columns = np.concatenate([one.items for one in asked]) if asked else np.zeros(0, dtype=np.int64)
    values = np.concatenate([weights(one) for one in asked]) if asked and weights else np.ones(len(rows))
    found = sparse.csr_matrix((values, (rows, columns)), shape=(len(asked), n_items))
    if weights is None:
        found.data[:] = 1.0
    return found
