"""Bandit, off-policy estimators and uplift on planted truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from producers.datasets.table import DatasetError
from stream.core.statistics.bandit import EXPLORE, BayesianLinear, choose
from tests.support.needs import needs_file
from training.promotions import campaigns, uplift
from training.promotions.off_policy import ESTIMATORS, Log, ahead, decision, judge

RATES = np.array([0.1, 0.3, 0.2])


def test_the_bandit_finds_the_best_offer_and_its_propensities_are_what_it_does() -> None:
    rng, model, offers = np.random.default_rng(0), BayesianLinear(3), np.eye(3)[None]  # (1, K, F)
    taken = []
    for step in range(1_500):
        choice = choose(model.propensities(offers, step)[0], f"decision {step}")
        reward = float(rng.random() < RATES[choice.chosen])
        model.learn(offers[0, choice.chosen][None], np.array([reward]))
        taken.append(choice.chosen)
    assert np.mean(np.array(taken[-500:]) == 1) > 0.7, "the best one is taken most"
    assert RATES[taken].mean() > RATES.mean() + 0.05
    shares = model.propensities(offers, 1)[0]
    assert shares.sum() == pytest.approx(1) and shares.min() >= EXPLORE / 3
    assert np.array_equal(shares, model.propensities(offers, 1)[0]), "the same seed, the same shares"
    often = np.bincount([choose(shares, f"id {n}").chosen for n in range(20_000)], minlength=3) / 20_000
    assert np.abs(often - shares).max() < 0.015


def test_what_it_knows_is_a_sum_of_outcomes() -> None:
    rng = np.random.default_rng(1)
    x, r = rng.normal(size=(40, 4)), rng.normal(size=40)
    whole, parts = BayesianLinear(4), BayesianLinear(4)
    whole.learn(x, r)
    for at in rng.permutation(40):
        parts.learn(x[at][None], r[at][None])
    assert np.allclose(whole.posterior()[0], parts.posterior()[0]) and whole.outcomes == parts.outcomes == 40


def log_of(n: int, seed: int) -> Log:
    rng = np.random.default_rng(seed)
    behaviour = np.array([0.6, 0.2, 0.2])
    actions = rng.choice(3, n, p=behaviour)
    return Log(actions, (rng.random(n) < RATES[actions]).astype(np.float64), behaviour[actions])


def test_intervals_cover_the_true_value_of_another_policy() -> None:
    policy = np.array([0.1, 0.7, 0.2])
    truth, wrong = float(policy @ RATES), np.array([0.4, 0.1, 0.9])
    covered = dict.fromkeys(ESTIMATORS, 0)
    for seed in range(60):
        log = log_of(800, seed)
        found = judge(log, np.tile(policy, (800, 1)), np.tile(wrong, (800, 1)), seed)
        for name in ESTIMATORS:
            covered[name] += found.values[name].low <= truth <= found.values[name].high
        assert 200 < found.effective < 800
    assert all(count >= 52 for count in covered.values()), covered  # 57 of 60 expected, whatever the model believes


def test_nothing_is_concluded_from_little_and_something_from_much() -> None:
    best, worst = (np.tile(np.eye(3)[at], (6_000, 1)) for at in (1, 0))
    much = log_of(6_000, 0)
    assert decision(ahead(judge(much, best), judge(much, worst))) == "better"
    assert decision(ahead(judge(much, worst), judge(much, best))) == "worse"
    few = Log(*(one[:30] for one in much))
    assert decision(ahead(judge(few, best[:30]), judge(few, worst[:30]))) == "no decision"


def test_uplift_sorts_by_gain_where_response_does_not() -> None:
    rng = np.random.default_rng(2)
    n = 8_000
    x = rng.normal(size=(n, 3))
    treated = rng.random(n) < 0.5
    base, gain = 1 / (1 + np.exp(-1.5 * x[:, 0])) * 0.5, 0.25 / (1 + np.exp(-3 * x[:, 1]))  # who buys anyway, who is moved
    outcome = (rng.random(n) < base + gain * treated).astype(np.float64)
    half = np.arange(n) < n // 2
    model = uplift.fit(x[half], treated[half], outcome[half])
    t, y = treated[~half].astype(np.float64), outcome[~half]
    ours, response, lot = (uplift.qini(score, t, y) for score in (
        model.gain(x[~half]), model.response(x[~half]), rng.random(n // 2)))  # fmt: skip
    assert ours > response and ours > lot + 5
    assert uplift.curve(model.gain(x[~half]), t, y)[-1] == pytest.approx(y @ t - y @ (1 - t) * t.sum() / (1 - t).sum())


def test_a_file_that_is_no_log_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "men.csv"
    path.write_text("timestamp,item_id\n1,2\n")
    with pytest.raises(DatasetError, match="no column position, click, propensity_score"):
        campaigns.bandit(path)
    with pytest.raises(DatasetError, match=r"absent\.csv"):
        campaigns.mailing(tmp_path / "absent.csv")


def test_the_real_logs_are_read(data_sets: Path) -> None:
    found = campaigns.bandit(needs_file(data_sets / "open-bandit" / "random" / "men" / "men.csv.gz"))
    assert found.items == 34 and found.log.propensities == pytest.approx(1 / 34) and set(found.positions) == {0, 1, 2}
    mail = campaigns.mailing(data_sets / "hillstrom" / "email_test.csv.gz")
    assert len(mail.treated) == 21_222 and mail.features.shape[1] == len(mail.names)
