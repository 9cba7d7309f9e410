"""Item-to-item weights in closed form, learned from histories: what follows an item, and what goes together with it.

follows: ridge regression of the next moment on the history before it, the user's own repeats included (SLIT of Choi et al.,
"Session-aware Linear Item-Item Models", WWW 2021, eq. 10), rows weighted by age and by 1/√(targets).
together: EASE (Steck, "Embarrassingly Shallow Autoencoders", WWW 2019, eq. 8) on decayed past.
beside: what is in one order with it (`_beside`) and what the same users touch, equal parts. On Online Retail's orders of May
2011, half of each given, with live rules as served: NDCG@10 .319; together with the rules .306, the rules alone .287.
Online Retail, one validation split, items new to the customer, NDCG@10: EASE .110, EASE on decayed touches .124, follows
.125; all items: EASE .248, follows .327, personal frequency .325.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import linalg, sparse

from stream.core.ranking.links import NO_LINKS, Links, Weights
from stream.core.ranking.recommend import LINKS_DAYS
from stream.core.user.featurize import Float32
from stream.core.user.state import DAY_MS, Kind
from training.panel.method import Doubles, Ints, Past

ITEMS_MAX = 4_000  # the most touched: a dense inverse of 4,000 takes some 3 s on one core
LINKS_PER_ITEM = 100  # the strongest; with all of them nothing was gained (Online Retail), and asking costs by their number
MOMENT_HALF_LIFE_DAYS = 60.0  # of a moment in the regression
FOLLOWS_RIDGE = 200.0
TOGETHER_RIDGE = 80.0
ORDER_HALF_LIFE_DAYS = 60.0  # of an order in what completes a basket
ORDER_RIDGE = 20.0
CHANCE_PRIOR = 0.5  # orders that an item is thought to be in without another
CHANCE_POPULARITY = 0.2  # power of the other's popularity that the chance is divided by
HISTORY_MAX = 400  # last touches of a user before a moment that are looked at
GAP_PRIOR = 3.0  # an item's average gap is drawn towards everybody's as by so many gaps
GAP_UNKNOWN_DAYS = 60.0  # where nobody bought anything twice
REPEAT_PRIOR = (2.0, 10.0)  # items with few users come back for as a fifth of them would


def fit(past: Past, item_ids: list[str], now_ms: int) -> Links:
    """Links of the most touched items before `now_ms`; `NO_LINKS` when nobody came back yet."""
    counts = np.bincount(past.items, minlength=len(item_ids))
    chosen = np.sort(np.argsort(-counts, kind="stable")[: min(ITEMS_MAX, int((counts > 0).sum()))])
    place = np.full(len(item_ids), -1, dtype=np.int64)
    place[chosen] = np.arange(len(chosen))
    kept = place[past.items] >= 0
    # one row a user, time and item, by user then time: (E,), (E,), (E,)
    users, ts_ms, items = np.unique(
        np.stack([past.users[kept], past.ts_ms[kept], place[past.items[kept]]]), axis=1
    ) if kept.any() else np.zeros((3, 0), dtype=np.int64)  # fmt: skip
    if not len(users):
        return NO_LINKS
    n = len(chosen)
    together = _together(users, ts_ms, items, n, now_ms)
    ordered = kept & (past.kinds == Kind.ORDER)
    beside = _beside(past.users[ordered], past.ts_ms[ordered], place[past.items[ordered]], n, now_ms)
    return Links(
        [item_ids[at] for at in chosen], repeat_rates(users, items, n),
        _strongest(_follows(users, ts_ms, items, n, now_ms)), _strongest(together), _strongest(beside + _shares(together)),
        average_gaps(order_gaps(past, now_ms), len(item_ids))[chosen],
    )  # fmt: skip


def repeat_rates(users: Ints, items: Ints, n: int) -> Float32:
    """Log of the smoothed share of each item's users who come back for it (N,); one row a user, time and item, (E,) each."""
    pairs, times = np.unique(np.stack([users, items]), axis=1, return_counts=True)
    touched = np.bincount(pairs[1], minlength=n)
    again = np.bincount(pairs[1], weights=times > 1, minlength=n)
    return np.log((again + REPEAT_PRIOR[0]) / (touched + REPEAT_PRIOR[1])).astype(np.float32)


class Gaps(NamedTuple):
    """Between two days on which a user ordered an item, with none in between: (G,) each."""

    users: Ints
    items: Ints
    days: Doubles

    @property
    def usual(self) -> float:
        """Mean over all."""
        return float(self.days.mean()) if len(self.days) else GAP_UNKNOWN_DAYS


def order_gaps(past: Past, until_ms: int) -> Gaps:
    """Of the orders before `until_ms`."""
    some = (past.kinds == Kind.ORDER) & (past.ts_ms < until_ms)
    rows = np.unique(np.stack([past.users[some], past.items[some], past.ts_ms[some] // DAY_MS]), axis=1)  # (3, E)
    again = np.all(rows[:2, 1:] == rows[:2, :-1], axis=0)
    return Gaps(rows[0, 1:][again], rows[1, 1:][again], np.diff(rows[2])[again].astype(np.float64))


def average_gaps(gaps: Gaps, n: int, prior: float = GAP_PRIOR) -> Float32:
    """Mean days between two purchases of each item by one user (N,), drawn towards the mean over all."""
    seen, days = np.bincount(gaps.items, minlength=n), np.bincount(gaps.items, weights=gaps.days, minlength=n)
    with np.errstate(invalid="ignore"):
        average = (days + prior * gaps.usual) / (seen + prior)
    return np.where(seen + prior > 0, average, gaps.usual).astype(np.float32)


def _together(
    users: Ints, ts_ms: Ints, items: Ints, n: int, now_ms: int
) -> Float32:
    decay = np.exp2(-(now_ms - ts_ms) / DAY_MS / LINKS_DAYS)
    x = sparse.csr_matrix((decay, (users, items)), shape=(int(users.max()) + 1, n))  # (U, N); equal places are added
    x.data = np.minimum(x.data, 1.0)
    inverse = _inverse((x.T @ x).toarray(), TOGETHER_RIDGE)
    weights = -inverse / np.diag(inverse)[None, :]
    np.fill_diagonal(weights, 0.0)
    return np.asarray(weights, dtype=np.float32)


def _follows(
    users: Ints, ts_ms: Ints, items: Ints, n: int, now_ms: int
) -> Float32:
    before, after, at_ms = _moments(users, ts_ms, items, n)
    if not len(at_ms):
        return np.zeros((n, n), dtype=np.float32)
    weight = np.exp2(-(now_ms - at_ms) / DAY_MS / MOMENT_HALF_LIFE_DAYS) / np.sqrt(np.asarray(after.sum(axis=1)).ravel())
    weighted = sparse.diags(weight) @ before
    gram = (before.T @ weighted).toarray()
    gram[np.diag_indices(n)] += FOLLOWS_RIDGE
    return np.asarray(linalg.solve(gram, (weighted.T @ after).toarray(), assume_a="pos"), dtype=np.float32)


def orders(users: Ints, ts_ms: Ints, items: Ints, n: int) -> tuple[sparse.csr_matrix, Ints]:
    """What a user ordered at one time: the items of each order, 1 or none (O, N), and its time (O,)."""
    times, row = np.unique(np.stack([users, ts_ms]), axis=1, return_inverse=True)
    found = sparse.csr_matrix((np.ones(len(items)), (row.ravel(), items)), shape=(times.shape[1], n))
    found.data = np.minimum(found.data, 1.0)
    return found, times[1]


def _beside(users: Ints, ts_ms: Ints, items: Ints, n: int, now_ms: int) -> Float32:
    """(N, N): two answers to what else is in an order, added up; the lines of the orders, (E,) each. The chance that it is,
    divided by a power of its popularity, which says most of one item; and EASE over orders, which says most of several. A
    line of an order of s counts 1/√(s − 1), so that a wholesaler's hundreds do not drown what belongs together.
    """
    if not len(items):
        return np.zeros((n, n), dtype=np.float32)
    x, at_ms = orders(users, ts_ms, items, n)
    sizes = np.asarray(x.sum(axis=1)).ravel()
    weight = np.exp2(-(now_ms - at_ms) / DAY_MS / ORDER_HALF_LIFE_DAYS) / np.sqrt(np.maximum(sizes - 1, 1))
    gram = (x.T @ (sparse.diags(weight) @ x)).toarray()  # (N, N)
    of_item = np.diag(gram).copy()  # (N,)
    chance = gram / (of_item[:, None] + CHANCE_PRIOR) / (of_item[None, :] + 1) ** CHANCE_POPULARITY
    inverse = _inverse(gram, ORDER_RIDGE)
    ease = -inverse / np.diag(inverse)[None, :]
    for one in (chance, ease):
        np.fill_diagonal(one, 0.0)
    return np.asarray(_shares(chance) + _shares(ease), dtype=np.float32)


def _moments(
    users: Ints, ts_ms: Ints, items: Ints, n: int
) -> tuple[sparse.csr_matrix, sparse.csr_matrix, Ints]:
    """Each moment of a user after the first: decayed history before it (M, N), its items (M, N), its time (M,)."""
    starts = np.flatnonzero(np.r_[True, (users[1:] != users[:-1]) | (ts_ms[1:] != ts_ms[:-1])])  # of moments
    ends = np.r_[starts[1:], len(users)]
    first = np.searchsorted(users, users[starts])  # of the user's touches
    later = starts > first  # moments with a past
    starts, ends, first = starts[later], ends[later], np.maximum(first[later], starts[later] - HISTORY_MAX)
    (before, past), (after, present) = _ranges(first, starts), _ranges(starts, ends)
    decay = np.exp2(-(ts_ms[starts][before] - ts_ms[past]) / DAY_MS / LINKS_DAYS)
    history = sparse.csr_matrix((decay, (before, items[past])), shape=(len(starts), n))
    history.data = np.minimum(history.data, 1.0)
    touched = sparse.csr_matrix((np.ones(len(present)), (after, items[present])), shape=(len(starts), n))
    return history, touched, ts_ms[starts]


def _ranges(starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """The numbers of all ranges, one after the other: of which range each is, and itself.

    >>> [one.tolist() for one in _ranges(np.array([3, 7]), np.array([5, 8]))]
    [[0, 0, 1], [3, 4, 7]]
    """
    lengths = ends - starts
    of = np.repeat(np.arange(len(starts)), lengths)
    return of, np.arange(len(of)) + (starts - np.cumsum(lengths) + lengths)[of]


def _inverse(gram: Doubles, ridge: float) -> Doubles:
    gram[np.diag_indices_from(gram)] += ridge
    return np.asarray(linalg.inv(gram, assume_a="pos"))


def _shares(weights: Doubles | Float32) -> Doubles:
    """The LINKS_PER_ITEM largest weights of each row as shares that add up to 1; a row of nothing stays one."""
    kept = np.maximum(weights, 0.0, dtype=np.float64)
    if len(kept) > LINKS_PER_ITEM:
        kept[kept < np.partition(kept, -LINKS_PER_ITEM, axis=1)[:, -LINKS_PER_ITEM, None]] = 0.0
    return np.asarray(kept / np.maximum(kept.sum(axis=1, keepdims=True), 1e-12))


def _strongest(weights: Doubles | Float32) -> Weights:
    """The LINKS_PER_ITEM largest weights of each row; below 0 none."""
    width = min(len(weights), LINKS_PER_ITEM)
    some = np.sort(np.argpartition(-weights, width - 1, axis=1)[:, :width], axis=1)  # so the first of equal ones is first
    best = np.asarray(np.take_along_axis(weights, some, axis=1), dtype=np.float64)
    columns = np.take_along_axis(some, np.argsort(-best, axis=1, kind="stable"), axis=1)
    values = np.maximum(np.take_along_axis(weights, columns, axis=1), 0.0)
    return Weights(columns.astype(np.int32), values)
