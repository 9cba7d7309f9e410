"""What is touched most, by everybody or by the user. Counts are live."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stream.core.user.featurize import Float32
from stream.core.user.state import DAY_MS
from training.panel.method import Asked, Doubles, Ints, Past

TIE_DAYS = 30  # the popularity that ranks what a method has no opinion on
TIE = 1e-6  # … of the best score: below every opinion that matters


class _Log:
    """Touches in order of time, growing by doubling: one later event costs O(1)."""

    def __init__(self, past: Past) -> None:
        self._items, self._ts_ms, self._size = past.items.copy(), past.ts_ms.copy(), len(past.items)

    def append(self, item: int, ts_ms: int) -> None:
        if self._size == len(self._items):
            room = np.zeros(max(1_024, self._size), dtype=np.int64)
            self._items, self._ts_ms = np.concatenate([self._items, room]), np.concatenate([self._ts_ms, room])
        self._items[self._size], self._ts_ms[self._size] = item, ts_ms
        self._size += 1

    def counts(self, n_items: int, now_ms: int, days: int | None) -> Doubles:
        """(N,) touches in (now - days, now]."""
        ts_ms = self._ts_ms[: self._size]
        since = 0 if days is None else int(np.searchsorted(ts_ms, now_ms - days * DAY_MS, side="right"))
        until = int(np.searchsorted(ts_ms, now_ms, side="right"))
        return np.bincount(self._items[since:until], minlength=n_items).astype(np.float64)


class Popularity:
    """Touches of the last `days`, or of all time; the same for everybody who asks at the same time."""

    def __init__(self, days: int | None) -> None:
        self.name = "popularity" if days is None else f"popularity, {days} days"
        self.days = days

    def fit(self, past: Past, *, seed: int, budget_s: float, threads: int) -> None:
        self._n_items, self._log = past.n_items, _Log(past)

    def score(self, asked: Sequence[Asked]) -> Float32:
        scores = np.zeros((len(asked), self._n_items), dtype=np.float32)
        times = np.array([one.now_ms for one in asked], dtype=np.int64)
        for now_ms in np.unique(times):
            scores[times == now_ms] = self._log.counts(self._n_items, int(now_ms), self.days)
        return scores

    def observe(self, user: int, item: int, ts_ms: int, kind: int) -> None:
        self._log.append(item, ts_ms)


class PersonalFrequency:
    """At how many times the user touched each item; popularity of 30 days breaks ties and ranks the rest."""

    name = "personal frequency"

    def fit(self, past: Past, *, seed: int, budget_s: float, threads: int) -> None:
        self._popularity = Popularity(TIE_DAYS)
        self._popularity.fit(past, seed=seed, budget_s=budget_s, threads=threads)

    def score(self, asked: Sequence[Asked]) -> Float32:
        scores = self._popularity.score(asked)
        scores /= 2 * np.maximum(1, scores.max(axis=1, keepdims=True, initial=0))  # less than one touch
        for row, one in enumerate(asked):
            items, times = touched(one)
            scores[row, items] += times
        return scores

    def observe(self, user: int, item: int, ts_ms: int, kind: int) -> None:
        self._popularity.observe(user, item, ts_ms, kind)


def touched(one: Asked) -> tuple[Ints, Ints]:
    """Own items and at how many times each was touched: an item on two lines of an order was touched once."""
    moments = np.unique(np.stack([one.items, one.ts_ms], axis=1), axis=0)
    return np.unique(moments[:, 0], return_counts=True)


def recent(past: Past) -> Doubles:
    """(N,) touches of the last 30 days of the past."""
    return _Log(past).counts(past.n_items, past.end_ms, TIE_DAYS)


def completed(scores: Doubles | Float32, popular: Doubles | Float32) -> Float32:
    """Scores (B, N) divided by each row's best, and what has none ranked by popularity (N,) or (B, N), below the rest.

    So somebody new is offered what is popular, by every method.
    """
    best = np.abs(scores).max(axis=1, keepdims=True, initial=0.0)
    scaled = np.divide(scores, best, out=np.zeros(scores.shape), where=best > 0)
    tie = popular / np.maximum(1.0, popular.max(axis=-1, keepdims=True, initial=0.0))
    return np.asarray(np.where(scaled == 0.0, np.where(best > 0, TIE, 1.0) * tie, scaled), dtype=np.float32)
