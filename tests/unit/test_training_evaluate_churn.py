"""The churn evaluation on planted histories: it asks ONNX, sees no future, and its alerts are what they are said to be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stream.core.survival.churn import EDGES_DAYS, ChurnPolicy, p_after, p_no_return
from stream.core.user.featurize import CHURN_FEATURES
from stream.core.user.state import DAY_MS
from training.churn import alerting, churn, evaluate_churn
from training.history import snapshot
from training.history.snapshot import EmptyHistory, History, Visit

START_MS = 1_600_000_000_000
DAYS = 200
CUT_MS = START_MS + 140 * DAY_MS


def event(user: int, day: float, name: str = "Order Completed") -> dict[str, Any]:
    return {
        "messageId": f"{user}-{day}-{name}", "type": "track", "event": name, "tenant": "t", "userId": f"u{user}",
        "lane": "import", "timestamp": np.datetime64(START_MS + round(day * DAY_MS), "ms").astype(str) + "Z",
        "properties": {"order_id": f"{user}-{day}", "revenue": 5.0},
    }  # fmt: skip


@pytest.fixture(scope="module")
def history() -> History:
    """600 users: two of three leave for good at a random day, the others buy every ten days."""
    rng = np.random.default_rng(4)
    events = []
    for user in range(600):
        leaves = rng.uniform(5, 1.5 * DAYS) if user % 3 else DAYS
        day = rng.uniform(0, 40)
        while day < min(leaves, DAYS):
            events.append(event(user, round(day, 3)))
            day += rng.exponential(10.0) + 0.5
    return snapshot.from_events(events)


def test_users_are_asked_as_before_the_cut_whatever_comes_after(history: History) -> None:
    past = history.until(CUT_MS)
    seen = [evaluate_churn.asked(one, snapshot.replay(past, end_ms=CUT_MS), CUT_MS, 30.0) for one in (history, past)]
    assert seen[0].users == seen[1].users
    np.testing.assert_array_equal(seen[0].features, seen[1].features)
    assert seen[1].away.all() and not seen[0].away.all()


def test_earlier_questions_are_those_of_an_earlier_replay(history: History) -> None:
    earlier_ms = CUT_MS - 30 * DAY_MS
    now = snapshot.replay(history.until(CUT_MS), end_ms=CUT_MS)
    then = snapshot.replay(history.until(earlier_ms), end_ms=earlier_ms)
    replayed = evaluate_churn.asked(history.until(CUT_MS), then, earlier_ms, 30.0)
    read = evaluate_churn.asked_before(now.visits, set(now.states), earlier_ms, 30.0)
    at = {user: row for row, user in enumerate(read.users)}
    rows = [at[user] for user in replayed.users]
    np.testing.assert_array_equal(read.features[rows], replayed.features)
    np.testing.assert_allclose(read.silence_days[rows], replayed.silence_days)
    np.testing.assert_array_equal(read.away[rows], replayed.away)


def test_who_only_gives_back_has_not_come_back() -> None:
    events = [event(1, 0.0), event(1, 20.0, "Order Refunded"), event(2, 0.0), event(2, 20.0)]
    history = snapshot.from_events(events)
    cut_ms = START_MS + 10 * DAY_MS
    asked = evaluate_churn.asked(history, snapshot.replay(history.until(cut_ms), end_ms=cut_ms), cut_ms, 30.0)
    assert dict(zip(asked.users, asked.away.tolist(), strict=True)) == {"u1": 1.0, "u2": 0.0}
    visits = {one.user: one for one in snapshot.replay(history).visits if one.days == pytest.approx(20.0)}
    assert (visits["u1"].censored, visits["u2"].censored) == (True, False)


def test_the_evaluation_finds_who_left_and_reports_every_task(history: History) -> None:
    found = evaluate_churn.evaluated(history, CUT_MS, 59.0, seed=1).comparison
    ours = found.models["clickwake"]
    assert ours["auc"].value > 0.8 and ours["repeat.auc"].value > 0.8
    assert {"30d.auc", "30d.brier", "30d.ece"} <= set(ours)
    assert any(name.startswith("alerts-at-70") for name in ours)
    assert {evaluate_churn.BOOSTING, evaluate_churn.LOGISTIC, evaluate_churn.RECENCY} <= set(found.models)
    assert set(found.models[evaluate_churn.RECENCY]) & {"brier", "ece"} == set()
    with pytest.raises(EmptyHistory, match="choose an earlier one"):
        evaluate_churn.evaluated(history, CUT_MS, 90.0, seed=1)


def test_each_user_at_their_own_silence_is_what_is_said_of_one() -> None:
    rng = np.random.default_rng(0)
    curves = -np.cumsum(rng.random((200, len(EDGES_DAYS))), axis=1)
    curves -= curves[:, :1]
    silence = np.r_[EDGES_DAYS, rng.uniform(0, 900, 200 - len(EDGES_DAYS))]
    policy = ChurnPolicy(horizon_days=60.0, calib_a=0.8, calib_b=0.1)
    one_by_one = [float(p_no_return(curve, days, policy)) for curve, days in zip(curves, silence, strict=True)]
    np.testing.assert_allclose(p_after(curves, silence, policy), one_by_one, rtol=1e-9)


def test_common_rates_are_returns_a_day_and_go_on_where_nothing_was_watched() -> None:
    rng = np.random.default_rng(2)
    away = rng.exponential(1 / 0.05, 20_000)
    watched, returned = churn.exposure(np.minimum(away, 40.0), away > 40.0)
    rates = churn.common_rates(watched, returned)
    assert rates == pytest.approx(np.full(len(rates), 0.05), rel=0.1)


def test_alerts_are_raised_once_a_silence_and_judged_by_the_horizon() -> None:
    """A curve that never returns is due at once; one that surely returns never is."""
    began_ms = START_MS + np.array([0, 0, -50]) * DAY_MS
    window = alerting.Silences(began_ms, np.array([100.0, 5.0, 200.0]), START_MS, START_MS + 60 * DAY_MS)
    gone = alerting.by_model(window, np.zeros((3, len(EDGES_DAYS))), 0.9)
    assert gone.at.tolist() == [0, 1] and gone.right.tolist() == [True, False]  # the third was due before the window
    sure = np.tile(-10.0 * EDGES_DAYS, (3, 1))
    assert not len(alerting.by_model(window, sure, 0.9).at)
    assert alerting.by_silence(window, 55.0).at.tolist() == [0, 2]


def test_features_of_the_model_and_of_the_evaluation_are_one_list() -> None:
    assert CHURN_FEATURES[churn.ACTIVE_DAYS] == "log_active_days" and CHURN_FEATURES[churn.TENURE] == "log_tenure_days"


def test_permuted_silences_teach_nothing() -> None:
    """A feature that tells rates apart does so no longer when silences are dealt out at random."""
    rng = np.random.default_rng(6)
    features = rng.normal(size=(3_000, len(CHURN_FEATURES))).astype(np.float32)
    features[:, [churn.TENURE, churn.ACTIVE_DAYS]] = 0.0, np.log1p(1.0)  # everybody is here for the first time
    away = rng.exponential(20.0 * np.exp(features[:, 5]))
    spread = []
    for days in (away, rng.permutation(away)):
        visits = [Visit(f"u{at}", START_MS, features[at], float(days[at]), censored=False) for at in range(len(features))]
        net, _ = churn._train(visits, np.random.default_rng(0))
        spread.append(np.std(p_after(churn.curves(net, features), np.zeros(3_000), ChurnPolicy(horizon_days=30.0))))
    assert spread[0] > 0.2 and spread[1] < spread[0] / 2  # what is left is chance, learned by heart
