"""How well it foresees that a user buys an item again, and what completes a basket.

At the split every known user is asked about every item they bought before: bought again within 30, 60 or 90 days? Ours is
fitted on the same questions at earlier times whose answers were known by the split, and reads the replayed state alone.
Users are drawn with replacement, with all their pairs. Sub-task `cross-sell`: see `cross_sell`; `reminders`, through the
worker's own desk: see `reminders`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from stream.core.repurchase import FEATURES
from stream.core.state import DAY_MS
from training import baselines, cross_sell, links, reminders, report, repurchase
from training.clustered import by_user, clustered
from training.comparison import Comparison, Measures, merged
from training.evaluations import Evaluated, Request, iso
from training.metrics import FloatArray
from training.panel.method import Past
from training.repurchase import HORIZONS_DAYS, SHORT_DAYS, Pairs, Values
from training.snapshot import EmptyHistory, History, Replay, from_dataset, interactions

SERVED = "clickwake"
CROSS_SELL_DAYS = 30.0
PICKED = ("log_orders", "log_item_silence")


def run(request: Request) -> Evaluated:
    """`clickwake evaluate repurchase`; the default split leaves the longest horizon after it."""
    history = from_dataset(request.dataset, request.path)
    split_ms = request.split_ms or int(history.to_ms - max(HORIZONS_DAYS) * DAY_MS)
    return evaluated(history, split_ms, request.settings.training.seed, request.say)


def evaluated(history: History, split_ms: int, seed: int = 0, say: Callable[[str], None] = lambda text: None) -> Evaluated:
    """Everything that is measured at one split. Raises `EmptyHistory` where too little lies before or after it."""
    earlier_ms = int(split_ms - max(HORIZONS_DAYS) * DAY_MS)
    if history.to_ms < split_ms + (max(HORIZONS_DAYS) - 1) * DAY_MS or history.from_ms >= earlier_ms:
        raise EmptyHistory(f"{history.name} holds {iso(history.from_ms)} to {iso(history.to_ms)}: "
                           f"{max(HORIZONS_DAYS):g} days are needed before the split and after it")
    past, number = interactions(history)
    item_ids = list(history.items)
    replay = Replay(history)
    pairs: list[Pairs] = []
    # what was known of the longest horizon, and newer questions of the shortest
    for at_ms in (earlier_ms, int(split_ms - min(HORIZONS_DAYS) * DAY_MS), split_ms):
        say(f"asking at {iso(at_ms)}")
        replay.advance(at_ms)
        following = repurchase.next_orders(past, number, item_ids, at_ms)
        rates = repurchase.links_until(past, item_ids, at_ms)
        pairs.append(repurchase.ask(replay.snapshot.states, number, following, rates, at_ms))
    early, late, test = pairs
    if not len(test.x):
        raise EmptyHistory(f"{history.name}: nobody bought an item before {iso(split_ms)}; name another split")
    usual_days = links.order_gaps(past, split_ms).usual
    model = repurchase.fit(
        [(early, (*SHORT_DAYS, *HORIZONS_DAYS)), (late, (*SHORT_DAYS, *HORIZONS_DAYS[:1]))], usual_days, seed)
    models: dict[str, Measures] = {}
    ahead: dict[str, Measures] = {}
    said: dict[float, tuple[FloatArray, FloatArray]] = {}
    rules = interval_rules(past, item_ids, test)
    for days in HORIZONS_DAYS:
        y = test.bought(days)
        say(f"{len(y)} pairs of {len(np.unique(test.users))} users, {y.mean():.1%} bought again within {days:g} days")
        p = model.p_within(test.x, days)
        said[days] = (p, y)
        found = {SERVED: p, **learned_before(early, test, days, seed), **rules}
        part, difference = clustered(found, y, test.users, SERVED, scores={*rules})
        models = merged(models, {name: {f"{days:g}d.{one}": v for one, v in of.items()} for name, of in part.items()})
        ahead = merged(ahead, {name: {f"{days:g}d.{one}": v for one, v in of.items()} for name, of in difference.items()})
    say("completing baskets")
    tenant = history.events[0].tenant
    hits, users = cross_sell.recall(past, item_ids, replay.snapshot.counts.counts, tenant, split_ms,
                                    int(split_ms + CROSS_SELL_DAYS * DAY_MS), seed)
    part, difference = by_user(hits, users, SERVED, "cross-sell.recall@10")
    say("saying reminders as a worker would")
    known = repurchase.links_until(past, item_ids, split_ms)
    told, told_ahead = reminders.evaluated(history, past, number, split_ms, model, known, SERVED)
    comparison = Comparison(
        task="repurchase", dataset=history.name, split=iso(split_ms), n=len(test.x), served=SERVED,
        models=merged(models, part, told), ahead=merged(ahead, difference, told_ahead),
        settings={"users": float(len(np.unique(test.users))), "baskets": float(len(users)), "seed": float(seed),
                  "power_of_days": model.shape, **dict(zip(FEATURES, model.weights, strict=True))},
    )  # fmt: skip
    figures: dict[str, report.Draw] = {
        f"Bought again within {days:g} days": lambda figure, one=one: report.calibration(  # type: ignore[misc]
            figure, *one, of="buying again"
        )
        for days, one in said.items()
    }
    return Evaluated(comparison, figures)


def interval_rules(past: Past, item_ids: list[str], test: Pairs) -> dict[str, Values]:
    """Scores of the rules that need no fitting (P,). An interval rule says: due when the silence reaches the interval."""
    gaps = links.order_gaps(past, test.now_ms)
    of_item = links.average_gaps(gaps, len(item_ids), prior=0.0).astype(np.float64)
    own: dict[tuple[int, int], list[float]] = {}
    for user, item, gap in zip(gaps.users.tolist(), gaps.items.tolist(), gaps.days.tolist(), strict=True):
        own.setdefault((user, item), []).append(gap)
    column = {item_id: at for at, item_id in enumerate(item_ids)}
    columns = np.array([column[item] for item in test.items], dtype=np.int64)
    item_interval = of_item[columns]
    personal = np.array([
        np.mean(own[user, item]) if (user, item) in own else usual_one
        for user, item, usual_one in zip(test.users.tolist(), columns.tolist(), item_interval.tolist(), strict=True)
    ])  # fmt: skip
    silence = np.expm1(test.x[:, FEATURES.index("log_item_silence")].astype(np.float64))
    return {
        "item's average interval: due": (silence >= item_interval).astype(np.float64),
        "item's average interval: how near": -np.abs(np.log((silence + 1) / (item_interval + 1))),
        "own average interval: how near": -np.abs(np.log((silence + 1) / (personal + 1))),
        "personal frequency": test.x[:, FEATURES.index("log_orders")].astype(np.float64) - 1e-6 * silence,
        "recency of the item": -silence,
    }


def learned_before(early: Pairs, test: Pairs, days: float, seed: int) -> dict[str, Values]:
    """P(bought again) of models learned on the same earlier questions, each for this horizon alone (P,)."""
    y = early.bought(days)
    if not 0 < y.sum() < len(y):
        return {}
    pick = [FEATURES.index(name) for name in PICKED]
    beta = baselines.logistic(early.x[:, pick], y)
    trees = HistGradientBoostingClassifier(max_iter=100, learning_rate=0.08, min_samples_leaf=100, random_state=seed)
    trees.fit(early.x, y)
    return {
        "logistic, orders and silence": baselines.predict(beta, test.x[:, pick]),
        "gradient boosting": np.asarray(trees.predict_proba(test.x)[:, 1]),
    }
