"""Sequence rules with decay: what followed the items touched last. Live."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from stream.core.user.featurize import Float32
from stream.core.user.state import DAY_MS
from training.panel.method import Asked, Doubles, Past, histories, matrix
from training.panel.popularity import TIE_DAYS, Popularity, completed
from training.panel.validation import HeldOut, choose

STEPS = 10  # a touch is a successor of that many touches before it


class Setting(NamedTuple):
    half_life_days: float
    items: int  # the user's last, whose successors are proposed
    fading: float  # the k-th last of them counts k to the power of -fading


SETTINGS = [
    Setting(days, items, fading)
    for days in (60.0, 14.0, np.inf)
    for items, fading in ((10, 1.0), (1, 1.0), (10, 0.0), (50, 0.5), (50, 0.0))
]


class SequenceRules:
    """Ludewig & Jannach, "Evaluation of session-based recommendation algorithms" (2018), sequential rules.

    A step of distance k from item i to item j adds 1/k to the rule i → j, and half as much `half_life_days` earlier.
    """

    name = "sequence rules with decay"

    def fit(self, past: Past, *, seed: int, budget_s: float, threads: int) -> None:
        def scores(setting: Setting, held: HeldOut) -> Float32:
            self._learn(held.earlier, setting)
            return self.score(held.asked)

        self._learn(past, choose(SETTINGS, past, scores, seed, budget_s))

    def _learn(self, past: Past, setting: Setting) -> None:
        self.setting, self._end_ms = setting, past.end_ms
        self._popularity = Popularity(TIE_DAYS)
        self._popularity.fit(past, seed=0, budget_s=0.0, threads=1)
        self._later: dict[int, dict[int, float]] = defaultdict(dict)  # rules since the past ended: i → j → weight
        self._last = {one.user: deque(one.items[-STEPS:].tolist(), STEPS) for one in histories(past)}
        order = np.argsort(past.users, kind="stable")
        users, items = past.users[order], past.items[order]
        decay = np.exp2((past.ts_ms[order] - self._end_ms) / (setting.half_life_days * DAY_MS))
        shape = (past.n_items, past.n_items)
        self._rules = sparse.csr_matrix(shape, dtype=np.float64)
        for k in range(1, STEPS + 1):
            same = users[k:] == users[:-k]
            pairs = (items[:-k][same], items[k:][same])
            self._rules = self._rules + sparse.csr_matrix((decay[k:][same] / k, pairs), shape=shape)

    def score(self, asked: Sequence[Asked]) -> Float32:
        last = [one._replace(items=one.items[-self.setting.items :]) for one in asked]
        mine = matrix(last, self._rules.shape[0], self._faded)  # (B, N)
        scores = (mine @ self._rules).toarray()
        for row, one in enumerate(last) if self._later else ():
            for item, weight in zip(one.items.tolist(), self._faded(one), strict=True):
                for successor, added in self._later.get(item, {}).items():
                    scores[row, successor] += weight * added
        return completed(scores, self._popularity.score(asked))

    def _faded(self, one: Asked) -> Doubles:
        return np.asarray(np.arange(len(one.items), 0, -1) ** -self.setting.fading)

    def observe(self, user: int, item: int, ts_ms: int, kind: int) -> None:
        self._popularity.observe(user, item, ts_ms, kind)
        if user < 0:
            return  # nobody's history: nothing it could have followed
        last = self._last.setdefault(user, deque(maxlen=STEPS))
        grown = 2.0 ** ((ts_ms - self._end_ms) / (self.setting.half_life_days * DAY_MS))
        for k, before in enumerate(reversed(last), 1):
            rules = self._later[before]
            rules[item] = rules.get(item, 0.0) + grown / k
        last.append(item)
