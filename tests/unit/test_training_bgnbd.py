"""BG/NBD: the published fit, and the laws of the process it describes."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from producers.datasets import cdnow
from stream.core.survival.churn import ChurnPolicy, p_after
from stream.core.user.featurize import CHURN_FEATURES
from tests.support.needs import needs_file
from training.churn import bgnbd, churn
from training.churn.bgnbd import BgNbd, Purchases
from training.churn.evaluate_churn import purchases
from training.history import snapshot
from training.history.snapshot import Visit


def test_the_published_fit_of_cdnow(data_sets: Path) -> None:
    """Fader, Hardie and Lee (2005), table 2: 39 weeks of CDNOW, in weeks."""
    path = needs_file(data_sets / "cdnow" / "purchases.csv.gz")
    history = snapshot.from_dataset("cdnow", path)
    cut_ms = int((datetime(1997, 10, 1, tzinfo=UTC) + cdnow.MOVED).timestamp() * 1000)
    past = history.until(cut_ms)
    users = sorted({event.user for event in past.events})
    days = purchases(past, users, cut_ms)
    weeks = Purchases(days.repeats, days.last / 7, days.watched / 7)
    fitted = bgnbd.fit(weeks)
    assert len(users) == 2_357
    assert (fitted.r, fitted.alpha, fitted.a, fitted.b) == pytest.approx((0.243, 4.414, 0.793, 2.426), abs=6e-4)
    assert fitted.log_likelihood == pytest.approx(-9582.4, abs=0.05)
    in_days = bgnbd.fit(days)
    assert in_days.p_no_purchase(days, 91) == pytest.approx(fitted.p_no_purchase(weeks, 13), abs=1e-3)


Flags = npt.NDArray[np.bool_]


def simulated(model: BgNbd, users: int, watched: float, horizon: float) -> tuple[Purchases, Flags, Flags]:
    """The process as the paper tells it: what is known, who is still a customer, who buys nothing within the horizon."""
    rng = np.random.default_rng(5)
    rate, leaves = rng.gamma(model.r, 1 / model.alpha, users), rng.beta(model.a, model.b, users)
    repeats, last, next_at = np.zeros(users), np.zeros(users), rng.exponential(1 / rate)
    alive = rng.random(users) >= leaves * model.early
    while np.any(buys := alive & (next_at < watched)):
        repeats[buys] += 1
        last[buys] = next_at[buys]
        alive[buys] = rng.random(buys.sum()) >= leaves[buys]
        next_at[buys] += rng.exponential(1 / rate[buys])
    return Purchases(repeats, last, np.full(users, watched)), alive, ~alive | (next_at >= watched + horizon)


def test_probabilities_are_those_of_the_simulated_process_and_the_fit_finds_its_parameters() -> None:
    truth = BgNbd(0.6, 5.0, 0.9, 2.5, 0.0)
    known, alive, silent = simulated(truth, 200_000, watched=40.0, horizon=13.0)
    for p, happened in ((truth.p_alive(known), alive), (truth.p_no_purchase(known, 13.0), silent)):
        for low in np.arange(0.0, 1.0, 0.2):
            some = (p >= low) & (p < low + 0.2)
            if some.sum() > 2_000:
                assert happened[some].mean() == pytest.approx(p[some].mean(), abs=0.015)
    fitted = bgnbd.fit(known)
    assert (fitted.r, fitted.alpha, fitted.a, fitted.b) == pytest.approx((truth.r, truth.alpha, truth.a, truth.b), rel=0.06)


def test_a_net_that_has_learned_nothing_says_what_bg_nbd_says_and_the_visits_tell_its_parameters() -> None:
    truth = BgNbd(0.6, 30.0, 0.5, 2.5, 0.0)
    known, _, _ = simulated(truth, 20_000, watched=150.0, horizon=1.0)
    features = np.zeros((len(known.repeats), len(CHURN_FEATURES)), dtype=np.float32)
    features[:, churn.TENURE], features[:, churn.ACTIVE_DAYS] = np.log1p(known.last), np.log1p(known.repeats + 1)
    away = known.watched - known.last
    visits = [Visit(f"u{at}", 0, features[at], float(away[at]), censored=True) for at in range(len(features))]
    fitted = bgnbd.fit(churn.purchases_of(visits))
    assert (fitted.r, fitted.alpha, fitted.a, fitted.b) == pytest.approx((0.6, 30.0, 0.5, 2.5), rel=0.15)
    net = churn.HazardNet(torch.zeros(len(CHURN_FEATURES)), torch.ones(len(CHURN_FEATURES)), (truth,)).eval()
    for silence, horizon in ((0.0, 14.0), (14.0, 7.0), (60.0, 120.0)):  # from edge to edge, where nothing is interpolated
        at = Purchases(known.repeats[:500], known.last[:500], known.last[:500] + silence)
        said = p_after(churn.curves(net, features[:500]), np.full(500, silence), ChurnPolicy(horizon_days=horizon))
        np.testing.assert_allclose(said, truth.p_no_purchase(at, horizon), atol=2e-3)
    alone = churn.purchases_of([Visit("u", 0, features[0] * 0, 1.0, censored=True)])
    assert bgnbd.fit_if_determined(alone) is None


def test_longer_horizons_are_less_likely_to_stay_silent_and_time_units_do_not_matter() -> None:
    known = Purchases(np.array([0.0, 2.0, 9.0]), np.array([0.0, 12.0, 30.0]), np.array([30.0, 30.0, 31.0]))
    model = BgNbd(0.243, 4.414, 0.793, 2.426, 0.0)
    curve = np.stack([model.p_no_purchase(known, h) for h in (0.0, 1.0, 10.0, 1e9)])
    assert np.all(np.diff(curve, axis=0) <= 0) and curve[0] == pytest.approx([1.0, 1.0, 1.0])
    assert curve[3, 1:] == pytest.approx(1 - model.p_alive(known)[1:], abs=1e-2)
    daily = BgNbd(0.243, 4.414 * 7, 0.793, 2.426, 0.0)
    in_days = Purchases(known.repeats, known.last * 7, known.watched * 7)
    assert daily.p_no_purchase(in_days, 70.0) == pytest.approx(curve[2])


def test_what_cannot_be_fitted_is_said() -> None:
    with pytest.raises(ValueError, match="bought twice"):
        bgnbd.fit(Purchases(np.zeros(3), np.zeros(3), np.ones(3)))
    with pytest.raises(ValueError, match="before the first one or after"):
        Purchases(np.array([1.0]), np.array([5.0]), np.array([4.0]))


def test_with_early_dropout_one_time_buyers_differ_and_the_fit_finds_it() -> None:
    """MBG/NBD's process: who bought once may have gone already."""
    truth = BgNbd(0.8, 6.0, 0.7, 1.8, 0.0, early=True)
    known, alive, silent = simulated(truth, 150_000, watched=40.0, horizon=13.0)
    for p, happened in ((truth.p_alive(known), alive), (truth.p_no_purchase(known, 13.0), silent)):
        for low in np.arange(0.0, 1.0, 0.2):
            some = (p >= low) & (p < low + 0.2)
            if some.sum() > 2_000:
                assert happened[some].mean() == pytest.approx(p[some].mean(), abs=0.015)
    fitted = bgnbd.fit(known, early=True)
    assert (fitted.r, fitted.alpha, fitted.a, fitted.b) == pytest.approx((truth.r, truth.alpha, truth.a, truth.b), rel=0.06)
    assert fitted.log_likelihood > bgnbd.fit(known).log_likelihood
    once = Purchases(np.zeros(2), np.zeros(2), np.array([1.0, 40.0]))
    assert truth.p_alive(once)[0] > truth.p_alive(once)[1]
