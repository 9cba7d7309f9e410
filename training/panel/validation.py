"""How settings are chosen: by the last tenth of the past, in time, and never by anything later."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from stream.core.user.featurize import Float32
from training.evaluation.metrics import measures, top
from training.panel.method import Asked, Ints, Past, histories

SHARE = 0.1  # of the interactions, the latest
USERS_MAX = 1_000
CELLS_MAX = 20_000_000  # users × items of one validation
GRID_SHARE = 0.5  # of the budget, after which no further setting is tried
Setting = TypeVar("Setting")


class HeldOut(NamedTuple):
    """The earlier past, and what users known in it touched first after it."""

    earlier: Past
    asked: list[Asked]
    wanted: list[Ints]

    def quality(self, scores: Float32) -> float:
        """Recall@20 + NDCG@10, means over the users, on all items and once more on those new to the user; scores (B, N)."""
        everything, new = [], []
        for one, wanted, row in zip(self.asked, self.wanted, scores, strict=True):
            allowed = np.ones(len(row), dtype=bool)
            everything.append(sum(measures(top(row, allowed, wanted), wanted)[:2]))
            allowed[one.items] = False
            unseen = wanted[allowed[wanted]]
            if len(unseen):
                new.append(sum(measures(top(row, allowed, unseen), unseen)[:2]))
        return float(np.mean(everything) + (np.mean(new) if new else 0.0))


def held_out(past: Past, seed: int = 0) -> HeldOut | None:
    """None where there is nobody to ask."""
    if not len(past.ts_ms):
        return None
    cut_ms = int(past.ts_ms[int(len(past.ts_ms) * (1 - SHARE))])
    cut = int(np.searchsorted(past.ts_ms, cut_ms))
    earlier = past.take(slice(0, cut))
    later = {one.user: one for one in histories(past.take(slice(cut, None)))}
    asked = [one._replace(now_ms=cut_ms) for one in histories(earlier) if one.user in later]
    if not asked:
        return None
    most = min(USERS_MAX, max(1, CELLS_MAX // past.n_items))
    if len(asked) > most:
        asked = [asked[at] for at in np.sort(np.random.default_rng(seed).choice(len(asked), most, replace=False))]
    following = [later[one.user] for one in asked]
    return HeldOut(earlier, asked, [np.unique(one.items[one.ts_ms == one.ts_ms[0]]) for one in following])


def choose(
    settings: Sequence[Setting], past: Past, scores: Callable[[Setting, HeldOut], Float32], seed: int, budget_s: float
) -> Setting:
    """The setting that ranks best; the first one, which is the published default, where nothing can be judged.

    scores: fits a setting on `HeldOut.earlier` and answers `HeldOut.asked`, (B, N). Ties stay with the earlier setting.
    """
    judged = held_out(past, seed)
    best, reached, started = settings[0], -np.inf, time.monotonic()
    for setting in settings if judged is not None else ():
        assert judged is not None
        value = judged.quality(scores(setting, judged))
        if value > reached:
            best, reached = setting, value
        if time.monotonic() - started > GRID_SHARE * budget_s:
            break
    return best
