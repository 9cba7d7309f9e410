"""How well it foresees that a user buys an item again, and what completes a basket.

At the split every known user is asked about every item they bought before: bought again within 30, 60 or 90 days? Ours is
what training makes of the history before the split (`repurchase.learn`, `links.fit`), as a bundle would hold it, and reads
the replayed state alone. Users are drawn with replacement, with all their pairs. Sub-tasks `cross-sell…`: see `cross_sell`;
`reminders…`, through the worker's own desk: see `reminder_rivals`; `due`, as the read API answers: see `due`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from producers.simulate.world import World
from stream.core.survival.repurchase import FEATURES, Repurchase
from stream.core.user.state import DAY_MS
from training.churn import baselines
from training.evaluation import report
from training.evaluation.clustered import by_user, clustered
from training.evaluation.comparison import Comparison, Measures, iso, merged
from training.evaluation.evaluations import Evaluated, Request
from training.evaluation.metrics import FloatArray
from training.history.snapshot import EmptyHistory, History, Replay, from_dataset, from_events, interactions
from training.panel.method import Past
from training.recommend import links
from training.repurchase import cross_sell, due, reminder_rivals, repurchase
from training.repurchase.repurchase import HORIZONS_DAYS, Pairs, Values

SERVED, SIMULATED = "clickwake", "simulated"
CROSS_SELL_DAYS = 30.0
PICKED = ("log_orders", "log_item_silence")


def run(request: Request) -> Evaluated:
    """`clickwake evaluate repurchase`; the default split leaves the longest horizon after it."""
    if request.dataset == SIMULATED:
        seed, shoppers, days = (int(request.options[name]) for name in ("seed", "shoppers", "days"))
        world = World(seed=seed, shoppers=shoppers, days=days)
        name = f"a simulated shop: {shoppers} shoppers, {days} days, seed {seed}"
        history = from_events(world.history(), world.items(), name)
    else:
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
    before, item_ids = history.until(split_ms), list(history.items)
    known, _ = interactions(before)  # of the same user numbers; columns are those of `before`
    replaying = Replay(before)
    say(f"learning from what came before {iso(split_ms)}")
    early = repurchase.ask_at(replaying, known, number, earlier_ms)  # all its answers are known by the split
    model, linked = repurchase.learn(replaying, known, number, seed), links.fit(known, list(before.items), before.to_ms + 1)
    if model is None:
        raise EmptyHistory(f"{history.name}: nobody bought an item again before {iso(split_ms)}; name another split")
    replaying.advance(split_ms)
    following = repurchase.next_orders(past, number, item_ids, split_ms)
    test = repurchase.ask(replaying.snapshot.states, number, following, linked, split_ms)
    models, ahead, said = bought_again(model, early, test, interval_rules(past, item_ids, test), seed, say)
    say("completing baskets")
    asked = cross_sell.evaluated(before, past, item_ids, number, replaying.snapshot, linked, split_ms,
                                 int(split_ms + CROSS_SELL_DAYS * DAY_MS), seed)  # fmt: skip
    for task, (values, users) in asked.items():
        for measure in cross_sell.MEASURES:
            of_each = {name: of[measure] for name, of in values.items()}
            part, difference = by_user(of_each, users, SERVED, f"{task}.{measure}")
            models, ahead = merged(models, part), merged(ahead, difference)
    say("saying reminders as a worker would")
    told, told_ahead, whence = reminder_rivals.evaluated(history, past, number, split_ms, model, linked, SERVED)
    say("asking what is due")
    due_now, due_ahead, due_asked = due.evaluated(history, past, number, split_ms, model, linked, SERVED)
    baskets = {f"{task} baskets": float(len(users)) for task, (_, users) in asked.items()}
    comparison = Comparison(
        task="repurchase", dataset=history.name, split=iso(split_ms), n=len(test.x), served=SERVED,
        models=merged(models, told, due_now), ahead=merged(ahead, told_ahead, due_ahead),
        settings={"users": float(len(np.unique(test.users))), **baskets, **due_asked, "seed": float(seed),
                  "categories": whence, "power_of_days": model.shape, **dict(zip(FEATURES, model.weights, strict=True))},
    )  # fmt: skip
    figures: dict[str, report.Draw] = {
        f"Bought again within {days:g} days": lambda figure, one=one: report.calibration(  # type: ignore[misc]
            figure, *one, of="buying again"
        )
        for days, one in said.items()
    }
    return Evaluated(comparison, figures)


def bought_again(
    model: Repurchase, early: Pairs, test: Pairs, rules: dict[str, Values], seed: int, say: Callable[[str], None]
) -> tuple[dict[str, Measures], dict[str, Measures], dict[float, tuple[FloatArray, FloatArray]]]:
    """(models, ahead, horizon → what ours said and what came) of the pairs at the split."""
    models: dict[str, Measures] = {}
    ahead: dict[str, Measures] = {}
    said: dict[float, tuple[FloatArray, FloatArray]] = {}
    for days in HORIZONS_DAYS:
        y = test.bought(days)
        say(f"{len(y)} pairs of {len(np.unique(test.users))} users, {y.mean():.1%} bought again within {days:g} days")
        p = model.p_within(test.x, days)
        said[days] = (p, y)
        found = {SERVED: p, **learned_before(early, test, days, seed), **rules}
        part, difference = clustered(found, y, test.users, SERVED, scores={*rules})
        models = merged(models, {name: {f"{days:g}d.{one}": v for one, v in of.items()} for name, of in part.items()})
        ahead = merged(ahead, {name: {f"{days:g}d.{one}": v for one, v in of.items()} for name, of in difference.items()})
    return models, ahead, said


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
