"""How satisfied a user will be with an item under each strategy by which the item may reach them: an offer, a message, none.

An opinion is explained by what was known when its strategy was decided, never by what was said later: how satisfied the user
is with things, how satisfied others are with the item (both drawn to the mean), the strategy, the user's groups, the item's
category, and how the strategy differs by group and by category, as pooled effects (`stream.core.statistics.pooling`).

Whom a policy chose a strategy for is not like the others. Where the chance of each choice was logged, an opinion weighs by
its inverse (Horvitz & Thompson 1952), scaled to as many opinions as these weights are worth, (Σw)² / Σw² (Kish 1965), so
that intervals stay honest. Two strategies of one context whose chances are known are compared by lot; any others are not,
and the comparison says so.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from stream.core.statistics.bandit import Float64
from stream.core.statistics.pooling import Pooled, Posterior
from stream.core.user.state import DAY_MS

NONE = "none"  # the strategy of who came by themselves
OTHER = "other"  # the category of rare ones, and of what has none
STRATEGIES_MAX, GROUPS_MAX, CATEGORIES_MAX = 20, 12, 20  # the most frequent ones; with all pairs 695 effects
ITEM_OPINIONS_BEFORE = 10.0  # of an average item, as satisfaction_by_item has it
USER_OPINIONS_BEFORE = 3.0  # of an average user: few have more than a handful
MEAN_BEFORE, MEAN_OPINIONS_BEFORE = 0.7, 1.0  # of all, until there are some
PROPENSITY_MIN = 0.01  # no opinion weighs more than a hundred
RATE_DAYS = 28.0  # opinions a day are those of the last four weeks
ROWS_AT_ONCE = 4_096


class Rated(NamedTuple):
    """An opinion (0 to 1), the strategy under which its user came to the item, and what was known when it was decided.
    `context`: within which strategies are alternatives, and `propensity` the chance of this one; "" and None where nobody
    logged a choice."""

    user: str
    item: str
    category: str
    groups: tuple[str, ...]
    strategy: str
    context: str
    propensity: float | None
    decided_ms: int
    said_ms: int
    satisfaction: float


class Leanings:
    """How satisfied users are, and others with items, beside the mean of all; by what was heard so far."""

    def __init__(self) -> None:
        self._users: dict[str, tuple[int, float]] = {}
        self._items: dict[str, tuple[int, float]] = {}
        self._n, self._total = 0, 0.0

    def hear(self, user: str, item: str, satisfaction: float) -> None:
        for known, name in ((self._users, user), (self._items, item)):
            n, total = known.get(name, (0, 0.0))
            known[name] = n + 1, total + satisfaction
        self._n, self._total = self._n + 1, self._total + satisfaction

    @property
    def mean(self) -> float:
        return (self._total + MEAN_BEFORE * MEAN_OPINIONS_BEFORE) / (self._n + MEAN_OPINIONS_BEFORE)

    def user(self, name: str) -> float:
        """Above the mean of all; 0 for a stranger."""
        return self._beside(self._users.get(name, (0, 0.0)), USER_OPINIONS_BEFORE)

    def item(self, name: str) -> float:
        """Above the mean of all; 0 for one that nobody spoke of."""
        return self._beside(self._items.get(name, (0, 0.0)), ITEM_OPINIONS_BEFORE)

    def _beside(self, known: tuple[int, float], before: float) -> float:
        n, total = known
        return (total - n * self.mean) / (n + before)


def as_of(rows: Sequence[Rated]) -> tuple[Float64, Leanings]:
    """(N, 2): of each opinion's user and item the leanings by what had been said before its strategy was decided; and those
    by all of it. What is said at the very moment is not known yet."""
    found, heard = np.zeros((len(rows), 2)), Leanings()
    said = sorted(range(len(rows)), key=lambda at: rows[at].said_ms)
    asked = sorted(range(len(rows)), key=lambda at: known_ms(rows[at]))
    place = 0
    for at in asked:
        while place < len(said) and rows[said[place]].said_ms < known_ms(rows[at]):
            _hear(heard, rows[said[place]])
            place += 1
        found[at] = heard.user(rows[at].user), heard.item(rows[at].item)
    for one in said[place:]:
        _hear(heard, rows[one])
    return found, heard


def known_ms(row: Rated) -> int:
    """Until when something counts as known: the decision's clock may go ahead of the opinion's."""
    return min(row.decided_ms, row.said_ms)


def _hear(heard: Leanings, row: Rated) -> None:
    heard.hear(row.user, row.item, row.satisfaction)


class Levels(NamedTuple):
    """The strategies, groups and categories that are told apart."""

    strategies: tuple[str, ...]
    groups: tuple[str, ...]
    categories: tuple[str, ...]  # the last one is OTHER

    @classmethod
    def of(cls, rows: Iterable[Rated]) -> Levels:
        """The most frequent ones, each in the order of its name."""
        strategies, groups, categories = Counter[str](), Counter[str](), Counter[str]()
        for row in rows:
            strategies[row.strategy] += 1
            groups.update(set(row.groups))
            categories[row.category] += 1
        del categories[""], categories[OTHER]
        return cls(_most(strategies, STRATEGIES_MAX), _most(groups, GROUPS_MAX),
                   (*_most(categories, CATEGORIES_MAX - 1), OTHER))  # fmt: skip

    def blocks(self) -> list[str]:
        """(F,): the block of each effect."""
        s, g, c = map(len, self)
        return ["", "", "", *["strategy"] * s, *["group"] * g, *["category"] * c, *["strategy × group"] * (s * g),
                *["strategy × category"] * (s * c)]  # fmt: skip

    def x(self, leanings: Float64, strategies: Float64, groups: Float64, categories: Float64) -> Float64:
        """(N, F) of leanings (N, 2) and which strategy (N, S), groups (N, G) and category (N, C): or the share of each."""
        n = len(leanings)
        by_group = (strategies[:, :, None] * groups[:, None, :]).reshape(n, -1)
        by_category = (strategies[:, :, None] * categories[:, None, :]).reshape(n, -1)
        return np.hstack([np.ones((n, 1)), leanings, strategies, groups, categories, by_group, by_category])

    def of_rows(self, rows: Sequence[Rated], leanings: Float64) -> Float64:
        """(N, F) of opinions with the leanings (N, 2) as of their decisions."""
        return self.x(leanings, self.strategy([row.strategy for row in rows]), self.group([row.groups for row in rows]),
                      self.category([row.category for row in rows]))  # fmt: skip

    def strategy(self, names: Sequence[str]) -> Float64:
        """(N, S)"""
        return _which([(one,) for one in names], self.strategies)

    def group(self, names: Sequence[Sequence[str]]) -> Float64:
        """(N, G); groups that are not told apart are left out."""
        return _which(names, self.groups)

    def category(self, names: Sequence[str]) -> Float64:
        """(N, C)"""
        return _which([(one if one in self.categories else OTHER,) for one in names], self.categories)


def _most(counts: Counter[str], limit: int) -> tuple[str, ...]:
    return tuple(sorted(sorted(counts, key=lambda name: (-counts[name], name))[:limit]))


def _which(names: Sequence[Sequence[str]], of: Sequence[str]) -> Float64:
    found, column = np.zeros((len(names), len(of))), {name: at for at, name in enumerate(of)}
    for row, some in enumerate(names):
        found[row, [column[name] for name in some if name in column]] = 1
    return found


def weights(rows: Sequence[Rated]) -> Float64:
    """(N,): what each opinion counts; those under a strategy sum to as many as they are worth."""
    found = np.ones(len(rows))
    for places in _by_strategy(rows).values():
        if all(rows[at].propensity is not None for at in places):
            one = 1 / np.array([max(PROPENSITY_MIN, rows[at].propensity or 0.0) for at in places])
            found[places] = one * one.sum() / (one**2).sum()
    return found


def _by_strategy(rows: Sequence[Rated]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        found[row.strategy].append(at)
    return found


class Carried(NamedTuple):
    """What carries a strategy's figures. `effective`: opinions that the weights are worth; `by_lot`: chances are known."""

    context: str
    opinions: int
    effective: float
    by_lot: bool
    per_day: float


def carried(rows: Sequence[Rated]) -> dict[str, Carried]:
    """By strategy."""
    worth, found = weights(rows), {}
    newest = max((row.said_ms for row in rows), default=0)
    days = min(RATE_DAYS, max(1.0, (newest - min((row.said_ms for row in rows), default=0)) / DAY_MS))
    for name, places in _by_strategy(rows).items():
        lately = sum(1 for at in places if rows[at].said_ms > newest - days * DAY_MS)
        contexts = {rows[at].context for at in places}
        by_lot = len(contexts) == 1 and "" not in contexts and all(rows[at].propensity is not None for at in places)
        found[name] = Carried(contexts.pop(), len(places), float(worth[places].sum()), by_lot, lately / days)
    return found


class Asked(NamedTuple):
    """Whom and what it is about: the mean of all pairs of these users and items."""

    users: int
    items: int
    leanings: Float64  # (2,)
    groups: Float64  # (G,) share of the users
    categories: Float64  # (C,) share of the items


class Model(NamedTuple):
    """What was learned from opinions."""

    levels: Levels
    posterior: Posterior
    leanings: Leanings
    carried: Mapping[str, Carried]

    def asked(self, users: Mapping[str, Sequence[str]], items: Mapping[str, str]) -> Asked:
        """`users`: name → groups; `items`: id → category. Raises ValueError where there is nobody or nothing."""
        if not users or not items:
            raise ValueError(f"there are {len(users)} users and {len(items)} items to ask about: at least one of each")
        leanings = np.array([np.mean([self.leanings.user(name) for name in users]),
                             np.mean([self.leanings.item(name) for name in items])])  # fmt: skip
        return Asked(len(users), len(items), leanings, self.levels.group(list(users.values())).mean(axis=0),
                     self.levels.category(list(items.values())).mean(axis=0))  # fmt: skip

    def x(self, asked: Asked, strategy: str) -> Float64:
        """(F,): the mean features of all pairs; effects are sums, so its prediction is the mean of theirs."""
        return np.asarray(self.levels.x(asked.leanings[None], self.levels.strategy([strategy]), asked.groups[None],
                                        asked.categories[None])[0])  # fmt: skip


    def predicted(self, users: Mapping[str, Sequence[str]], items: Mapping[str, str]) -> Iterator[Predicted]:
        """Every strategy for each of these users with each of these items, some at a time."""
        names, ids = self.levels.strategies, list(items)
        together = max(1, ROWS_AT_ONCE // len(names))
        for user, groups in users.items():
            for start in range(0, len(ids), together):
                some = ids[start : start + together]
                n = len(some) * len(names)
                leanings = np.empty((n, 2))
                leanings[:, 0] = self.leanings.user(user)
                leanings[:, 1] = np.repeat([self.leanings.item(one) for one in some], len(names))
                categories = self.levels.category([items[one] for one in some])  # (I, C)
                x = self.levels.x(leanings, np.tile(np.eye(len(names)), (len(some), 1)),
                                  np.repeat(self.levels.group([groups]), n, axis=0),
                                  np.repeat(categories, len(names), axis=0))  # (I·S, F)
                yield Predicted(user, some, self.posterior.each(x).reshape(len(some), len(names), 3).clip(0, 1))


class Predicted(NamedTuple):
    """Of one user with I items under each of S strategies: expected satisfaction and the ends of its interval, 0 to 1."""

    user: str
    items: list[str]
    values: Float64  # (I, S, 3)


def learn(rows: Sequence[Rated]) -> Model:
    """From opinions in any order. Raises ValueError without any."""
    if not rows:
        raise ValueError("there are no opinions about items to learn from")
    leanings, heard = as_of(rows)
    levels, worth = Levels.of(rows), weights(rows)
    pooled = Pooled(levels.blocks())
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        y = np.array([row.satisfaction for row in rows[part]])
        pooled.learn(levels.of_rows(rows[part], leanings[part]), y, worth[part])
    return Model(levels, pooled.posterior(), heard, carried(rows))
