"""Fitting when items are bought again: questions at an earlier time, whose answers are known by now, and a regression.

One pair of user and item is asked at one time about several horizons; the log-logistic model of
`stream.core.survival.repurchase` is then a logistic regression with log days as one more feature (the proportional odds of
Bennett, 1983).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stream.core.ranking.links import Links, no_weights
from stream.core.survival.repurchase import FEATURES, Repurchase, features, repeat_of
from stream.core.user.featurize import Float32
from stream.core.user.state import DAY_MS, Kind, UserState
from training.churn import baselines
from training.history.snapshot import Replay
from training.panel.method import Past
from training.recommend import links

HORIZONS_DAYS = (30.0, 60.0, 90.0)
SHORT_DAYS = (7.0, 14.0)  # learned from beside them: a reminder is about days, not months
RIDGE = 10.0
SHAPE_MIN = 0.05  # the chance must rise with the days
PAIRS_MAX = 200_000  # learned from, drawn from all

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """Users and items they bought before, asked at `now_ms`: user numbers (P,), items, features (P, F), and days until the
    pair's next purchase (P,), inf for none that is known."""

    users: npt.NDArray[np.int64]
    items: list[str]
    x: Float32
    until_days: Values
    now_ms: int

    def bought(self, days: float) -> Values:
        """Whether within so many days (P,)."""
        return (self.until_days <= days).astype(np.float64)


def links_until(past: Past, item_ids: list[str], until_ms: int) -> Links:
    """The items' rates of being come back for, as a bundle learned then would hold them, and no weights."""
    before = past.ts_ms < until_ms
    users, _, items = np.unique(np.stack([past.users[before], past.ts_ms[before], past.items[before]]), axis=1)
    n = len(item_ids)
    gaps = links.average_gaps(links.order_gaps(past, until_ms), n)
    none = no_weights(n)
    return Links(item_ids, links.repeat_rates(users, items, n), none, none, none, gaps)


def next_orders(past: Past, number: Mapping[str, int], item_ids: list[str], from_ms: int) -> dict[tuple[int, str], int]:
    """(user number, item) → time of the first order at or after `from_ms`."""
    some = (past.kinds == Kind.ORDER) & (past.ts_ms >= from_ms)
    order = np.argsort(-past.ts_ms[some], kind="stable")  # the earliest is written last
    columns = (one[some][order].tolist() for one in (past.users, past.items, past.ts_ms))
    return {(user, item_ids[item]): ts_ms for user, item, ts_ms in zip(*columns, strict=True)}


def ask_at(replaying: Replay, past: Past, number: Mapping[str, int], at_ms: int) -> Pairs:
    """Every known user's pairs at a time the replay has not passed, with the answers that `past` holds and the items' rates
    as of then."""
    replaying.advance(at_ms)
    item_ids = list(replaying.history.items)
    following, rates = next_orders(past, number, item_ids, at_ms), links_until(past, item_ids, at_ms)
    return ask(replaying.snapshot.states, number, following, rates, at_ms)


def ask(
    states: Mapping[str, UserState], number: Mapping[str, int], following: Mapping[tuple[int, str], int],
    known_links: Links, now_ms: int,
) -> Pairs:  # fmt: skip
    """Every known user's pairs at a time, from states as they were then."""
    repeat = repeat_of(known_links)
    users: list[int] = []
    items: list[str] = []
    rows: list[Float32] = []
    until: list[float] = []
    for user, state in states.items():
        if not state.known:
            continue
        some, x = features(state, now_ms, repeat)
        at = number[user] if some else -1
        users += [at] * len(some)
        items += some
        rows.append(x)
        until += [(following[at, item] - now_ms) / DAY_MS if (at, item) in following else np.inf for item in some]
    x = np.concatenate(rows) if rows else np.zeros((0, len(FEATURES)), dtype=np.float32)
    return Pairs(np.array(users, dtype=np.int64), items, x, np.array(until, dtype=np.float64), now_ms)


def fit(
    asked: list[tuple[Pairs, tuple[float, ...]]], usual_days: float = links.GAP_UNKNOWN_DAYS, seed: int = 0
) -> Repurchase:
    """From pairs and the horizons that are known of them; `usual_days` as in `Repurchase`. Raises ValueError
    where nothing was bought again, or all."""
    rng = np.random.default_rng(seed)
    rows, logs, answers = [], [], []
    for pairs, horizons in asked:
        for days in horizons:
            rows.append(pairs.x)
            logs.append(np.full(len(pairs.x), np.log(days)))
            answers.append(pairs.bought(days))
    x = np.concatenate([np.concatenate(rows).astype(np.float64), np.concatenate(logs)[:, None]], axis=1)  # (P, F + 1)
    y = np.concatenate(answers)
    if len(y) > PAIRS_MAX:
        some = rng.choice(len(y), PAIRS_MAX, replace=False)
        x, y = x[some], y[some]
    if not 0 < y.sum() < len(y):
        raise ValueError(f"of {len(y)} pairs of user and item {y.sum():.0f} were bought again: nothing to tell apart")
    mean, std = x.mean(0), np.maximum(x.std(0), 1e-6)
    beta = baselines.logistic(((x - mean) / std).astype(np.float32), y, RIDGE)
    weights = beta[:-1] / std
    constant = float(beta[-1] - weights @ mean)
    shape = max(SHAPE_MIN, float(weights[-1]))
    return Repurchase(weights=tuple(weights[:-1].tolist()), constant=constant, shape=shape, usual_days=usual_days)


def learn(replaying: Replay, past: Past, number: Mapping[str, int], seed: int = 0) -> Repurchase | None:
    """From a whole history that is being replayed, asked on the way at times whose answers it knows: as long before its end
    as its longest horizon, if it is three times as long, and as its shortest. None where that teaches nothing.

    `past` and `number` are the history's interactions. Leaves the replay at the last time it was asked."""
    history = replaying.history
    known = [days for days in HORIZONS_DAYS if history.to_ms - history.from_ms >= 3 * days * DAY_MS]
    if not known:
        return None
    asked = []
    for longest in sorted({known[-1], known[0]}, reverse=True):
        pairs = ask_at(replaying, past, number, int(history.to_ms - longest * DAY_MS))
        asked.append((pairs, (*SHORT_DAYS, *(days for days in known if days <= longest))))
    try:
        return fit(asked, links.order_gaps(past, history.to_ms + 1).usual, seed)
    except ValueError:  # nothing was bought again
        return None
