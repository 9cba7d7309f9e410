"""How well offers are chosen, from logs that were drawn by lot.

open-bandit: `path` is the folder with `random/` and `bts/`. The random log judges the policy that the other log was served
by, whose own clicks say what is true: an estimator is right when its interval covers them. Then policies learned from the
first half of the random log are judged by its second half against taking every item alike, and nothing is concluded where
intervals say nothing.
hillstrom: whom to mail, learned and judged in turns over five parts of the customers (a hash of the row decides), against
mailing by lot and mailing those who are the most likely to visit.
shop: the shop's own decisions, see `training.promotions.evaluate_offers`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from producers.datasets.table import DatasetError
from stream.adapters.models.onnx import session
from stream.core.statistics.bandit import BayesianLinear, Float64
from training.churn import baselines
from training.evaluation.comparison import Comparison, Measures, merged, statistics
from training.evaluation.evaluations import Evaluated, Request
from training.evaluation.metrics import BOOTSTRAP_ROUNDS, FloatArray, Interval, bootstrap, interval
from training.promotions import campaigns, evaluate_offers, persuasion, uplift
from training.promotions.campaigns import BANDIT, EMAIL, Impressions
from training.promotions.off_policy import ESTIMATORS, Log, ahead, decision, judge
from training.promotions.offer_log import SHOP

SERVED = "clickwake"
PARTS = 5
TRUTH = "served itself"
PRIOR_REWARDS = 2.0  # an item's rate is drawn to the mean of all by as many impressions as bring so many clicks


def run(request: Request) -> Evaluated:
    """`clickwake evaluate promotions`."""
    if request.split is not None:
        raise DatasetError("promotions are split by themselves: leave --split out")
    if request.dataset == SHOP:
        return evaluate_offers.run(request)
    if request.dataset == BANDIT:
        return offers(request.path, request.settings.training.seed, request)
    if request.dataset == EMAIL:
        return whom(request.path, request.settings.training.seed, request)
    raise DatasetError(f"unknown campaign {request.dataset!r}; known are {BANDIT}, {EMAIL} and {SHOP}")


def offers(path: Path, seed: int, request: Request) -> Evaluated:
    """Open Bandit."""
    random, served = (campaigns.bandit(path / name / "men" / "men.csv.gz") for name in ("random", "bts"))
    request.say(f"{len(random.log.actions):,} impressions by lot with {random.log.rewards.sum():.0f} clicks, "
                f"{len(served.log.actions):,} by the target with {served.log.rewards.sum():.0f}")  # fmt: skip
    target = frequencies(served)[random.positions]  # (N, A)
    found = judge(random.log, target, crossed(random, seed), seed)
    truth = bootstrap(served.log.rewards, seed)
    models: dict[str, Measures] = {TRUTH: {"target.click_rate": truth}}
    differences: dict[str, Measures] = {}
    for name in ESTIMATORS:
        models[name] = {"target.click_rate": found.values[name]}
        covered = found.values[name].low <= truth.value <= found.values[name].high
        request.say(f"{name}: {found.values[name].value:.4f}, {'covers' if covered else 'misses'} {truth.value:.4f}")
    part, against, said = learned(random, seed)
    comparison = Comparison(
        task="promotions", dataset=BANDIT, split="random log to target; policies: first half by time, second half",
        n=len(random.log.actions), served="DR", models=merged(models, part), ahead=merged(differences, against),
        settings={"effective_impressions": found.effective, "seed": float(seed), **said},
    )  # fmt: skip
    return Evaluated(comparison)


def frequencies(served: Impressions) -> FloatArray:
    """(P, A): how often a policy took each item at each position. It looks at nothing else, so this is the policy."""
    counts = np.zeros((int(served.positions.max()) + 1, served.items))
    np.add.at(counts, (served.positions, served.log.actions), 1)
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def crossed(some: Impressions, seed: int) -> FloatArray:
    """(N, A): expected clicks, each part's by a model of the other parts, so that no decision judges itself."""
    folds = np.random.default_rng(seed).integers(0, PARTS, len(some.log.actions))
    expected = np.zeros((len(folds), some.items))
    for fold in range(PARTS):
        expected[folds == fold] = rates(some, folds != fold)[some.positions[folds == fold]]
    return expected


def rates(some: Impressions, rows: npt.NDArray[np.bool_]) -> FloatArray:
    """(P, A): clicks of each item, drawn to the mean of all, times the position's share of it."""
    log = some.log
    mean = log.rewards[rows].mean()
    shown = np.bincount(log.actions[rows], minlength=some.items)
    clicked = np.bincount(log.actions[rows], weights=log.rewards[rows], minlength=some.items)
    weight = PRIOR_REWARDS / max(mean, 1e-9)
    of_item = (clicked + weight * mean) / (shown + weight)
    positions = int(some.positions.max()) + 1
    at = np.bincount(some.positions[rows], minlength=positions)
    of_position = (np.bincount(some.positions[rows], weights=log.rewards[rows], minlength=positions) + PRIOR_REWARDS) / (
        at * mean + PRIOR_REWARDS)
    return np.asarray(of_position[:, None] * of_item[None, :])


def learned(random: Impressions, seed: int) -> tuple[dict[str, Measures], dict[str, Measures], dict[str, float | str]]:
    """Policies of the first half on the second: (models, ahead, what may be concluded)."""
    n = len(random.log.actions)
    first, second = np.arange(n) < n // 2, np.arange(n) >= n // 2
    log = Log(random.log.actions[second], random.log.rewards[second], random.log.propensities[second])
    expected = rates(random, first)[random.positions[second]]
    seen = random.log.rewards[first]
    model = BayesianLinear(random.items + 2, ridge=PRIOR_REWARDS / seen.mean(), noise=float(seen.std()))
    model.learn(_contexts(random, first)[np.arange(first.sum()), random.log.actions[first]], seen.astype(np.float64))
    best = rates(random, first)[0].argmax()
    policies = {
        SERVED: model.propensities(_contexts(random, second), seed),
        "every item alike": np.full_like(expected, 1 / random.items),
        "the item clicked most": np.eye(random.items)[np.full(int(second.sum()), best)],
    }  # fmt: skip
    judged = {name: judge(log, policy, expected, seed) for name, policy in policies.items()}
    models: dict[str, Measures] = {name: {"learned.click_rate": one.values["DR"]} for name, one in judged.items()}
    against = {name: ahead(judged[SERVED], one) for name, one in judged.items() if name != SERVED}
    said: dict[str, float | str] = {f"{SERVED} against {name}": decision(one) for name, one in against.items()}
    said |= {f"effective_impressions, {name}": one.effective for name, one in judged.items()}
    return models, {name: {"learned.click_rate": one} for name, one in against.items()}, said


def _contexts(some: Impressions, rows: npt.NDArray[np.bool_]) -> Float64:
    """(n, A, A + 2): for each item its indicator, the user's affinity to it, and 1."""
    affinities = some.affinities[rows]
    wide = np.zeros((len(affinities), some.items, some.items + 2))
    wide[:, np.arange(some.items), np.arange(some.items)] = 1
    wide[:, :, -2], wide[:, :, -1] = affinities, 1
    return wide


def whom(path: Path, seed: int, request: Request) -> Evaluated:
    """Hillstrom: women's e-mail, visits within two weeks."""
    mail = campaigns.mailing(path)
    treated = mail.treated.astype(np.float64)
    request.say(f"{len(treated):,} customers; visited {mail.visited[mail.treated].mean():.1%} with the e-mail, "
                f"{mail.visited[~mail.treated].mean():.1%} without")  # fmt: skip
    parts = np.array([hashlib.blake2b(str(row).encode(), digest_size=1).digest()[0] % PARTS for row in range(len(treated))])
    scores = {SERVED: np.zeros(len(treated)), "response": np.zeros(len(treated)), "response, logistic, all": treated * 0}
    for part in range(PARTS):
        held, known = parts == part, parts != part
        model = uplift.fit(mail.features[known], mail.treated[known], mail.visited[known])
        served = session(persuasion.graph({"e-mail": model}), request.settings.training.threads)
        (chances,) = served.run(None, {"features": mail.features[held].astype(np.float32)})  # (n, 1, 2)
        scores[SERVED][held] = chances[:, 0, 0] - chances[:, 0, 1]
        scores["response"][held] = model.response(mail.features[held])
        beta = baselines.logistic(mail.features[known].astype(np.float32), mail.visited[known])
        scores["response, logistic, all"][held] = baselines.predict(beta, mail.features[held].astype(np.float32))
    scores["by lot"] = np.random.default_rng(seed).random(len(treated))
    both = np.stack([treated, mail.visited], axis=1)  # what is drawn together

    def qini(predictions: FloatArray, truth: FloatArray) -> float:
        return uplift.qini(predictions, truth[:, 0], truth[:, 1])

    models, against = statistics(scores, both, {"qini": qini}, SERVED, seed)
    for name, score in scores.items():  # the best tenth and third, as a marketer would ask
        for share in (0.1, 0.3):
            models[name][f"gain_in_best_{share:.0%}"] = _gain(score, treated, mail.visited, share, seed)
    comparison = Comparison(
        task="promotions", dataset=EMAIL, split=f"{PARTS} parts of the customers, each judged by the other {PARTS - 1}",
        n=len(treated), served=SERVED, models=models, ahead=against,
        settings={"seed": float(seed), "parts": float(PARTS), "arm": "Womens E-Mail", "outcome": "visit"},
    )  # fmt: skip
    curves = {name: uplift.curve(score, treated, mail.visited) / len(treated) * 1_000 for name, score in scores.items()}
    title = "Visits gained per 1,000 customers, by share mailed"
    return Evaluated(comparison, {title: lambda figure: _draw(figure, curves)})


def _gain(scores: FloatArray, treated: FloatArray, outcome: FloatArray, share: float, seed: int) -> Interval:
    """Difference of visit rates, mailed minus not, among the best share of the customers."""
    some = np.argsort(-scores, kind="stable")[: round(share * len(scores))]
    t, y = treated[some] > 0, outcome[some]
    rng = np.random.default_rng(seed)
    draws = [_difference(t[at], y[at]) for at in rng.integers(0, len(some), (BOOTSTRAP_ROUNDS, len(some)))]
    return interval(_difference(t, y), np.array(draws))


def _difference(treated: npt.NDArray[np.bool_], outcome: FloatArray) -> float:
    return float(outcome[treated].mean() - outcome[~treated].mean())


def _draw(figure: Any, curves: Mapping[str, FloatArray]) -> None:
    axis = figure.subplots()
    for name, one in curves.items():
        axis.plot(np.linspace(0, 1, len(one)), one, label=name, lw=2 if name == SERVED else 1)
    axis.set_xlabel("share of customers mailed")
    axis.set_ylabel("visits gained")
    axis.legend()
