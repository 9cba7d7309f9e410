"""Buying again: laws of the run-time part."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.survival.repurchase import FEATURES, Repurchase, features
from stream.core.user.state import DAY_MS, ItemStat, UserState

NOW_MS = 400 * DAY_MS
F = len(FEATURES)
finite = st.floats(-3, 3)
models = st.builds(
    lambda weights, constant, shape: Repurchase(weights=tuple(weights), constant=constant, shape=shape),
    st.lists(finite, min_size=F, max_size=F), finite, st.floats(0.05, 3.0),
)  # fmt: skip


def state(orders: int, last_days_ago: int, days: list[int]) -> UserState:
    last_ms = NOW_MS - last_days_ago * DAY_MS
    stat = ItemStat(touches=orders, orders=orders, last_ts_ms=last_ms, last_order_ts_ms=last_ms)
    return UserState(
        items={"a": stat, "seen": ItemStat(touches=3)}, order_days=days, days=days, first_ts_ms=days[0] * DAY_MS,
        last_ts_ms=max(last_ms, days[-1] * DAY_MS), orders=len(days),
    )  # fmt: skip


@given(models, st.integers(1, 50), st.integers(0, 300))
def test_a_chance_rises_with_the_days_and_is_reached_on_the_day_it_is_due(model: Repurchase, orders: int, ago: int) -> None:
    _, x = features(state(orders, ago, [90, 100, 390]), NOW_MS, lambda item: -1.5)
    assert np.isfinite(x).all()
    p = np.array([model.p_within(x, days)[0] for days in (1.0, 7.0, 30.0, 90.0)])
    assert np.all(np.diff(p) >= 0) and np.all((p >= 0) & (p <= 1))
    due = model.due_days(x, 0.3)
    if 1e-3 < due[0] < 1e6:
        assert model.p_within(x, float(due[0]))[0] == pytest.approx(0.3, abs=1e-6)


def test_only_what_was_bought_is_asked_about_and_nothing_after_now_is_used() -> None:
    items, x = features(state(3, 10, [350, 370, 390]), NOW_MS, lambda item: -1.5)
    assert items == ["a"] and x.shape == (1, F)
    assert features(UserState(), NOW_MS, lambda item: -1.5)[0] == []


def test_a_share_is_that_of_the_item_until_the_user_has_a_history() -> None:
    at = FEATURES.index("logit_share")
    once = [features(state(1, 0, [400]), NOW_MS, lambda item, rate=rate: rate)[1][0, at] for rate in (-3.0, -0.5)]  # type: ignore[misc]
    often = [features(state(20, 0, list(range(380, 401))), NOW_MS, lambda item, rate=rate: rate)[1][0, at]  # type: ignore[misc]
             for rate in (-3.0, -0.5)]
    assert once[0] < once[1]
    assert abs(often[0] - often[1]) < abs(once[0] - once[1])
    assert min(often) > max(once)
