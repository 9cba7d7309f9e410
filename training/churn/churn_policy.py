"""What is learned about a churn model on a later fold: its calibration, the width of its interval, and when to alert.

Calibration, where it helps: Platt (1999) on the logit of P(no return within the horizon), on visits later than those trained
on.
"""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.special import expit

from stream.core.survival.churn import ChurnPolicy, p_after
from training.evaluation.metrics import brier
from training.history.snapshot import Visit, visit_arrays

SILENCES_DAYS = (0.0, 3.0, 7.0, 14.0, 30.0)  # at which the calibration fold is asked
HORIZONS_DAYS = (14.0, 30.0, 60.0, 90.0)
STAYING_AWAY_MAX = 0.6  # where more than this do not return within a horizon, silence so short says nothing
PRECISION_WANTED = 0.8
AT_ONCE_MAX = 0.1  # share of visits that may end above the threshold: an alert on the heels of a visit is no news
ALERTS_MIN = 30  # below this a precision is chance
CLEAR_BELOW = 0.15  # hysteresis


def asked(
    survival: npt.NDArray[np.float64], days: npt.NDArray[np.float64], censored: npt.NDArray[np.bool_],
    followed: npt.NDArray[np.float64], policy: ChurnPolicy, silences: tuple[float, ...],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:  # fmt: skip
    """(p (K,), stayed away (K,)) for every visit and silence at which the user is still away and the truth is known.

    `followed` (V,): days between the visit and the fold's end. Known is what could be followed until the horizon was over,
    whether the user returned or not: a return that comes early shows at once, staying away only in the end, so counting
    every return that was seen would make everybody look loyal (a hazard model that was exactly right, 0.66, was
    calibrated to 0.53 on 30 days).
    """
    p_all, y_all = [], []
    for silence in silences:
        until = silence + policy.horizon_days
        known = (days > silence) & (followed >= until) & (~censored | (days >= until))
        p_all.append(p_after(survival[known], np.full(int(known.sum()), silence), policy))
        y_all.append((days[known] >= until).astype(np.float64))
    return np.concatenate(p_all), np.concatenate(y_all)


def horizon_of(days: npt.NDArray[np.float64], followed: npt.NDArray[np.float64]) -> float:
    """The shortest horizon for which not returning is no longer what nearly everybody does."""
    for horizon in HORIZONS_DAYS:
        known = followed >= horizon
        if known.sum() >= ALERTS_MIN and float((days[known] >= horizon).mean()) <= STAYING_AWAY_MAX:
            return horizon
    return HORIZONS_DAYS[0]


def calibrated_if_it_helps(
    policy: ChurnPolicy, visits: list[Visit], survival: npt.NDArray[np.float64], followed: npt.NDArray[np.float64]
) -> ChurnPolicy:  # fmt: skip
    """Two parameters from the earlier half of the fold must be right about the later half, or the curves stay as they are:
    a season that passes would be taken for an error of the model."""
    _, days, censored = visit_arrays(visits)
    ends = np.array([one.last_ts_ms for one in visits])
    early = ends <= np.median(ends)

    def of(fold: npt.NDArray[np.bool_], by: ChurnPolicy) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        return asked(survival[fold], days[fold], censored[fold], followed[fold], by, SILENCES_DAYS)

    tried = calibrated(policy, *of(early, policy))
    before, after = of(~early, policy), of(~early, tried)
    if not len(before[0]) or brier(*after) >= brier(*before):
        return policy
    return calibrated(policy, *of(np.ones(len(visits), dtype=bool), policy))


def calibrated(policy: ChurnPolicy, p: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> ChurnPolicy:
    """Platt's two parameters by Newton's method, with his smoothed targets; unchanged where one class is missing."""
    positive, negative = float(y.sum()), float(len(y) - y.sum())
    if min(positive, negative) < ALERTS_MIN:
        return policy
    target = np.where(y > 0, (positive + 1) / (positive + 2), 1 / (negative + 2))
    x = np.stack([np.log(p / (1 - p)), np.ones(len(p))], axis=1)  # (K, 2)
    beta = np.array([1.0, 0.0])
    for _ in range(50):
        q = expit(x @ beta)
        gradient = x.T @ (q - target) + 1e-3 * (beta - [1.0, 0.0])
        hessian = x.T @ (x * (q * (1 - q))[:, None]) + 1e-3 * np.eye(2)
        step = np.clip(np.linalg.solve(hessian, gradient), -1.0, 1.0)  # Newton's first steps may be far too long
        beta = beta - step
        if np.abs(step).max() < 1e-8:
            break
    if beta[0] <= 0:  # would turn the ranking around: the fold says nothing about the slope
        return policy
    return msgspec.structs.replace(policy, calib_a=float(beta[0]), calib_b=float(beta[1]))


def interval_logit(q: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """Largest gap, on the logit scale, between said and seen over tenths, at least the binomial 90% width."""
    widths = [0.1]
    for part in np.array_split(np.argsort(q), 10):
        if len(part) >= ALERTS_MIN:
            said = float(q[part].mean())
            seen = float((y[part].sum() + 1) / (len(part) + 2))
            gap = abs(np.log(said / (1 - said)) - np.log(seen / (1 - seen)))
            widths.append(max(gap, 1.645 / np.sqrt(len(part) * seen * (1 - seen))))
    return float(np.clip(np.sort(widths)[int(0.9 * (len(widths) - 1))], 0.1, 2.0))


def thresholds(
    policy: ChurnPolicy, survival: npt.NDArray[np.float64], days: npt.NDArray[np.float64], censored: npt.NDArray[np.bool_],
    followed: npt.NDArray[np.float64],
) -> tuple[ChurnPolicy, dict[str, float]]:  # fmt: skip
    """The lowest raise_at with the wanted precision and few alerts on the heels of a visit, else the most precise."""
    grid = np.concatenate([np.arange(0, 30, 1.0), np.arange(30, 121, 5.0)])  # silences (G,)
    p = np.stack([p_after(survival, np.full(len(survival), silence), policy) for silence in grid], axis=1)  # (V, G)
    tried: list[tuple[float, float, float, int]] = []  # raise_at, precision, at once, alerts
    for raise_at in np.arange(0.5, 0.96, 0.025):
        reached = p >= raise_at
        due = np.where(reached.any(1), grid[reached.argmax(1)], np.inf)
        until = due + policy.horizon_days
        raised = (due < days) & (followed >= until) & (~censored | (days >= until))
        precision = float((days[raised] >= due[raised] + policy.horizon_days).mean()) if raised.any() else 0.0
        tried.append((float(raise_at), precision, float((due == 0).mean()), int(raised.sum())))
    enough = [one for one in tried if one[3] >= ALERTS_MIN]
    good = [one for one in enough if one[1] >= PRECISION_WANTED and one[2] <= AT_ONCE_MAX]
    calm = [one for one in enough if one[2] <= AT_ONCE_MAX]
    if good:
        best = good[0]
    elif calm or enough:
        best = max(calm or enough, key=lambda one: (one[1], -one[0]))
    else:
        # too little was followed for a horizon to measure any: alert on whoever is more likely gone than not
        best = (tried[0][0], float("nan"), float("nan"), 0)
    raise_at = round(best[0], 3)
    chosen = msgspec.structs.replace(policy, raise_at=raise_at, clear_at=round(raise_at - CLEAR_BELOW, 3))
    metrics = {"churn_alert_precision": best[1], "churn_alerts": float(best[3]), "churn_alerts_at_once": best[2]}
    return chosen, {name: value for name, value in metrics.items() if np.isfinite(value)}
