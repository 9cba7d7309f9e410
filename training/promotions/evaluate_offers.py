"""Which policy would have earned how much at a shop's own placements, from the log of what was decided by lot.

Judged are decisions that were seen and whose window is over, by whether the reward came, and by what it is worth: that is
what the policy goes by, and so the verdicts do. Intervals are bootstraps over users: what one user does again is no news.
Held-out users saw the control alone, so that their own rate says, without any estimate, what always showing it brings.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from producers.datasets.table import DatasetError
from schemas.offers import PlacementTotals
from stream.api.offers import load
from stream.core.offers.offer_policy import expand, policy
from training.evaluation.comparison import Comparison, Measures
from training.evaluation.evaluations import Evaluated, Request
from training.evaluation.metrics import FloatArray, Interval, interval
from training.promotions.off_policy import Log, ahead, decision, judge, resampled
from training.promotions.offer_log import SHOP, Shown

SERVED, ALIKE, LEARNED, HELD_OUT = "as served", "all alike", "learned", "held out"
PARTS = 5
PRIOR_REWARDS = 2.0  # an offer's rate is drawn to the mean of all by as many impressions as bring so many rewards
ALWAYS_MAX = 10  # offers that are judged alone: those shown the most
OFFERS_MAX = 500  # of a placement: an array of decisions by offers is held in memory
EFFECTIVE_MIN = 100.0  # decisions that a policy's weights must be worth: of fewer, a bootstrap's interval promises too much


def run(request: Request) -> Evaluated:
    """`clickwake evaluate promotions shop`."""
    if request.source is None:
        raise DatasetError("the shop's own decisions are read from ClickHouse: leave the path out")
    placements: Mapping[str, Sequence[Shown]] = request.source(request.settings)
    worth = values(request)
    seed = request.settings.training.seed
    models: dict[str, Measures] = {}
    differences: dict[str, Measures] = {}
    said: dict[str, float | str] = {"seed": float(seed)}
    n = 0
    for name, shown in placements.items():
        n += _placement(name, shown, worth, seed, models, differences, said)
        request.say(f"{name}: {said[f'{name}: impressions']:,.0f} impressions of {said[f'{name}: users']:,.0f} users")
    comparison = Comparison(
        task="promotions", dataset=SHOP, split="own decisions, each policy learned without the users it is judged by", n=n,
        served=SERVED, models=models, ahead=differences, settings=said,
    )  # fmt: skip
    return Evaluated(comparison)


def values(request: Request) -> dict[str, float]:
    """Of one reward of each offer, as the file says now; 1 where there is none."""
    path = request.settings.offers_file
    placements = load(path).placements.values() if path.exists() else ()
    return {one.id: one.value for place in placements for one in place.offers}


def _placement(
    name: str, shown: Sequence[Shown], worth: Mapping[str, float], seed: int, models: dict[str, Measures],
    differences: dict[str, Measures], said: dict[str, float | str],
) -> int:  # fmt: skip
    """Adds what was found under the placement's name; returns how many decisions were judged."""
    judged = [one for one in shown if one.within and not one.holdout and one.chances.get(one.offer, 0.0) > 0]
    offers = [offer for offer, _ in Counter(one.offer for one in judged).most_common()]
    offers += sorted({offer for one in judged for offer in one.chances} - set(offers))
    if len(offers) > OFFERS_MAX:
        raise DatasetError(f"{len(offers)} offers or texts were in question at {name}, {OFFERS_MAX} at most can be judged "
                           "beside each other: ask about a shorter period with --since and --until")  # fmt: skip
    log, chances = logged(judged, offers)
    users = [one.user for one in judged]
    folds = np.array([fold(user) for user in users])
    expected = crossed(log, folds, len(offers))
    each = np.array([worth.get(offer, 1.0) for offer in offers])  # (A,) of one reward
    chosen = policies(judged, shown, offers, chances, folds, worth)
    found = {policy_name: judge(log, one, expected, seed, users) for policy_name, one in chosen.items()}
    valued = log._replace(rewards=log.rewards * each[log.actions])
    earned = {policy_name: judge(valued, one, expected * each, seed, users) for policy_name, one in chosen.items()}
    for policy_name, by in found.items():
        models.setdefault(policy_name, {}).update({f"{name}.{estimator}": value for estimator, value in by.values.items()})
        models[policy_name][f"{name}.value"] = earned[policy_name].values["DR"]
        said[f"{name}: effective impressions, {policy_name}"] = by.effective
        if policy_name != SERVED:
            differences.setdefault(policy_name, {})[f"{name}.DR"] = ahead(found[SERVED], by)
            differences[policy_name][f"{name}.value"] = ahead(earned[SERVED], earned[policy_name])
            more = ahead(earned[policy_name], earned[SERVED])
            said[f"{name}: {policy_name}"] = decision(more) if by.effective >= EFFECTIVE_MIN else "no decision"
    own, draws = rate(users, log.rewards, seed)
    models[SERVED][f"{name}.rate"] = own
    held = [one for one in shown if one.within and one.holdout]
    if held:
        came = np.array([one.rewarded for one in held], dtype=np.float64)
        theirs, their_draws = rate([one.user for one in held], came, seed + 1)
        brought = came * np.array([worth.get(one.offer, 1.0) for one in held])
        value, value_draws = rate([one.user for one in held], brought, seed + 1)
        models.setdefault(HELD_OUT, {}).update({f"{name}.rate": theirs, f"{name}.value": value})
        served = earned[SERVED]
        difference = interval(served.values["DR"].value - value.value, served.draws["DR"] - value_draws)
        differences.setdefault(HELD_OUT, {}).update({
            f"{name}.rate": interval(own.value - theirs.value, draws - their_draws), f"{name}.value": difference,
        })  # fmt: skip
        enough = min(len({one.user for one in held}), len(set(users))) >= EFFECTIVE_MIN
        said[f"{name}: {SERVED} against {HELD_OUT}"] = decision(difference) if enough else "no decision"
    said |= {f"{name}: impressions": float(len(judged)), f"{name}: users": float(len(set(users))),
             f"{name}: impressions held out": float(len(held))}  # fmt: skip
    return len(judged)


def logged(judged: Sequence[Shown], offers: Sequence[str]) -> tuple[Log, FloatArray]:
    """What was done, and the chance of each offer at each decision (N, A)."""
    at = {offer: number for number, offer in enumerate(offers)}
    chances = np.zeros((len(judged), len(offers)))  # (N, A)
    for row, one in enumerate(judged):
        for offer, chance in one.chances.items():
            chances[row, at[offer]] = chance
    actions = np.array([at[one.offer] for one in judged], dtype=np.int64)  # (N,)
    rewards = np.array([one.rewarded for one in judged], dtype=np.float64)  # (N,)
    return Log(actions, rewards, chances[np.arange(len(judged)), actions]), chances


def fold(user: str) -> int:
    """Which part of the users: by hash, so that a user is in one of them for ever."""
    return hashlib.blake2b(user.encode(), digest_size=1).digest()[0] % PARTS


def crossed(log: Log, folds: npt.NDArray[np.int64], offers: int) -> FloatArray:
    """(N, A): the rate of each offer, by what the other parts of the users did."""
    expected = np.zeros((len(folds), offers))
    for part in range(PARTS):
        others = folds != part
        mean = (log.rewards[others].sum() + PRIOR_REWARDS) / (others.sum() + 2 * PRIOR_REWARDS)
        shown = np.bincount(log.actions[others], minlength=offers)
        rewarded = np.bincount(log.actions[others], weights=log.rewards[others], minlength=offers)
        expected[~others] = (rewarded + PRIOR_REWARDS) / (shown + PRIOR_REWARDS / mean)
    return expected


def policies(
    judged: Sequence[Shown], shown: Sequence[Shown], offers: Sequence[str], chances: FloatArray,
    folds: npt.NDArray[np.int64], worth: Mapping[str, float],
) -> dict[str, FloatArray]:  # fmt: skip
    """Policies (N, A). A single offer always: where it might have been shown; elsewhere what was served."""
    may = chances > 0
    names = {one.offer: one.name for one in judged}
    found = {SERVED: chances, ALIKE: may / may.sum(axis=1, keepdims=True),
             LEARNED: learned(judged, shown, offers, may, folds, worth)}  # fmt: skip
    for number, offer in enumerate(offers[:ALWAYS_MAX]):
        if offer in names:
            found[f"always {names[offer]}"] = np.where(may[:, number : number + 1], np.eye(len(offers))[number], chances)
    return found


def learned(
    judged: Sequence[Shown], shown: Sequence[Shown], offers: Sequence[str], may: npt.NDArray[np.bool_],
    folds: npt.NDArray[np.int64], worth: Mapping[str, float],
) -> FloatArray:  # fmt: skip
    """(N, A): what is released now, as the worker learns it from all that was seen, less what the part of the users learned
    from whom it is judged by; and without nearness."""
    about = {one.offer: one.features for one in shown}  # the newest
    chosen = np.zeros(may.shape)
    for part in range(PARTS):
        known = policy(totals([one for one in shown if fold(one.user) != part]))
        made: dict[tuple[tuple[int, ...], tuple[str, ...]], FloatArray] = {}
        for row in np.flatnonzero(folds == part).tolist():
            there, groups = tuple(np.flatnonzero(may[row]).tolist()), judged[row].groups
            if (there, groups) not in made:
                made[there, groups] = known.propensities(
                    [about.get(offers[one], ("*", f"offer={offers[one]}")) for one in there],
                    [worth.get(offers[one], 1.0) for one in there], groups)  # fmt: skip
            chosen[row, there] = made[there, groups]
    return chosen


def totals(shown: Sequence[Shown]) -> PlacementTotals:
    """What the offers worker would have learned from these alone, without nearness."""
    seen = Counter((one.features, one.groups) for one in shown)
    rewarded = Counter((one.features, one.groups) for one in shown if one.rewarded)
    features = {kind: expand(*kind) for kind in seen}
    names = sorted({name for some in features.values() for name in some})
    at = {name: number for number, name in enumerate(names)}
    gram, moment = np.zeros((len(names), len(names)), np.uint32), np.zeros(len(names), np.uint32)
    for kind, count in seen.items():
        rows = [at[name] for name in features[kind]]
        gram[np.ix_(rows, rows)] += np.uint32(count)
        moment[rows] += np.uint32(rewarded[kind])
    return PlacementTotals(names=names, gram=gram.tobytes(), moment=moment.tobytes(), outcomes=len(shown),
                           rewards=rewarded.total())  # fmt: skip


def rate(users: Sequence[str], rewards: FloatArray, seed: int) -> tuple[Interval, FloatArray]:
    """Rewards an impression, and what it was in each bootstrap round."""
    sums = resampled(np.stack([rewards, np.ones(len(rewards))], axis=1), users, seed)  # (R, 2)
    draws = np.asarray(sums[:, 0] / np.maximum(sums[:, 1], 1e-12))
    return interval(float(rewards.mean()), draws), draws
