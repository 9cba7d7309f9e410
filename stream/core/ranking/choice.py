"""What an answer is chosen from and what is chosen: what is shown, and why the rest is not, are both read from one value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from stream.core.ranking.index import ItemIndex
from stream.core.ranking.recommend import Rules, excluded, rank
from stream.core.ranking.scenarios import Bool
from stream.core.user.featurize import Float32
from stream.core.user.state import UserState


class Choice(NamedTuple):
    """`conditions`: what a request asks of items beyond catalog and rules, each named by what is said of an item that does
    not meet it. `chances`: of each place to hold what it holds; below 1 where exploration drew."""

    total: Float32  # (N,) scores, the boost included
    rules: Rules
    conditions: Mapping[str, Bool]  # (N,)
    allowed: Bool  # (N,) by the catalog, the user's past and the conditions
    ranked: list[int]  # rows by scores and rules, best first
    rows: list[int]  # what is shown: `ranked`, but for the places that exploration gave away
    chances: tuple[float, ...]

    @property
    def candidates(self) -> int:
        """Items that might have been chosen."""
        return int(self.allowed.sum())

    @property
    def explored(self) -> set[int]:
        """Rows that exploration put in."""
        return set(self.rows) - set(self.ranked)


def allowed_of(
    n: int, state: UserState, index: ItemIndex, rules: Rules, conditions: Mapping[str, Bool]
) -> Bool:  # fmt: skip
    """(N,) of the first n items, what may be chosen."""
    allowed = index.recommendable[:n].copy()
    allowed[[row for row in excluded(state, index, rules) if row < n]] = False
    for met in conditions.values():
        allowed &= met[:n]
    return allowed


def choose(
    total: Float32, state: UserState, index: ItemIndex, rules: Rules, conditions: Mapping[str, Bool]
) -> Choice:  # fmt: skip
    """The best of N items; total (N,)."""
    n = len(total)
    allowed = allowed_of(n, state, index, rules, conditions)
    rows = rank(total, state, index, rules, allowed) if n else []
    return Choice(total, rules, conditions, allowed, rows, rows, (1.0,) * len(rows))
