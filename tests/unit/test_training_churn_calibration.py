"""Calibration holds against a known truth: memoryless users, watched for a limited time."""

from __future__ import annotations

import numpy as np
import pytest

from stream.core.survival.churn import EDGES_DAYS, ChurnPolicy, p_after
from stream.core.user.featurize import CHURN_FEATURES
from stream.core.user.state import DAY_MS
from training.churn import churn, churn_policy
from training.history.snapshot import Visit

VISITS = 6_000


def watched(hazard: float, fold_days: float, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """(days away, censored, days followed) of visits spread evenly over a fold."""
    rng = np.random.default_rng(seed)
    followed = rng.uniform(0, fold_days, VISITS)
    away = rng.exponential(1 / hazard, VISITS)
    return np.minimum(away, followed), away > followed, followed


@pytest.mark.parametrize("hazard", [0.03, 0.08])
@pytest.mark.parametrize("fold_days", [30.0, 90.0])
def test_what_is_asked_has_the_true_share_at_every_silence(hazard: float, fold_days: float) -> None:
    days, censored, followed = watched(hazard, fold_days)
    policy = ChurnPolicy(horizon_days=14.0)
    curves = np.tile(-hazard * EDGES_DAYS, (VISITS, 1))
    for silence in (0.0, 7.0, 14.0):
        _, stayed = churn_policy.asked(curves, days, censored, followed, policy, (silence,))
        spread = 4 * 0.5 / np.sqrt(len(stayed))
        assert len(stayed) > 100 and abs(stayed.mean() - np.exp(-14 * hazard)) < spread


def test_a_model_that_is_right_is_left_alone() -> None:
    days, censored, followed = watched(0.03, 30.0)
    curves = np.tile(-0.03 * EDGES_DAYS, (VISITS, 1))
    policy = ChurnPolicy(horizon_days=14.0)
    p, stayed = churn_policy.asked(curves, days, censored, followed, policy, churn_policy.SILENCES_DAYS)
    fitted = churn_policy.calibrated(policy, p, stayed)
    truth = np.exp(-14 * 0.03)
    said = 1 / (1 + np.exp(-(fitted.calib_a * np.log(truth / (1 - truth)) + fitted.calib_b)))
    assert abs(said - truth) < 0.02


def test_nobody_is_asked_beyond_what_was_watched() -> None:
    days, censored, followed = watched(0.05, 10.0)
    curves, policy = np.tile(-0.05 * EDGES_DAYS, (VISITS, 1)), ChurnPolicy(horizon_days=14.0)
    p, stayed = churn_policy.asked(curves, days, censored, followed, policy, churn_policy.SILENCES_DAYS)
    assert len(p) == len(stayed) == 0


def test_the_whole_fit_says_what_is_true() -> None:
    """End to end: train, calibrate, ask; the truth is one hazard for everybody and features that mean nothing."""
    hazard, span_days = 0.06, 120.0
    rng = np.random.default_rng(5)
    start = np.sort(rng.uniform(0, span_days, 6_000))
    away, left = rng.exponential(1 / hazard, len(start)), span_days - start
    features = rng.normal(size=(len(start), len(CHURN_FEATURES))).astype(np.float32)
    features[:, [churn.TENURE, churn.ACTIVE_DAYS]] = 0.0, np.log1p(1.0)  # everybody is here for the first time
    visits = [
        Visit(f"u{at}", round(start[at] * DAY_MS), features[at], float(min(away[at], left[at])), bool(away[at] > left[at]))
        for at in range(len(start))
    ]
    fitted = churn.fit(visits, seed=7, end_ms=round(span_days * DAY_MS), horizon_days=14.0)
    curves = churn.curves(fitted.net, features[:500])
    said = p_after(curves, np.full(500, 3.0), fitted.policy)
    assert abs(float(said.mean()) - np.exp(-14 * hazard)) < 0.05
