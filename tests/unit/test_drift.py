"""Drift tells another population from the same one drawn again."""

from __future__ import annotations

import numpy as np

from stream.core.statistics.drift import PSI_MAX, Inputs, drift
from training.history.live import Hits
from training.release.watch import difference, fell, rate


def drawn(seed: int, names: tuple[str, ...], gap_h: float, n: int = 4_000) -> Inputs:
    rng = np.random.default_rng(seed)
    users = np.sort(rng.integers(0, 50, n))
    times = np.cumsum(rng.exponential(gap_h * 3_600_000, n)).astype(np.int64)
    return Inputs([f"u{user:02d}" for user in users], rng.choice(names, n).tolist(), times)


def test_the_same_population_drawn_again_is_near_and_another_is_not() -> None:
    reference = drawn(0, ("view", "cart"), 2.0)
    again = drift(reference, drawn(1, ("view", "cart"), 2.0))
    assert max(again.values()) < 0.05
    assert drift(reference, drawn(2, ("view", "search"), 2.0))["event"] > PSI_MAX
    assert drift(reference, drawn(3, ("view", "cart"), 12.0))["gap"] > PSI_MAX


def test_nothing_to_compare_is_no_difference() -> None:
    nobody = Inputs([], [], np.zeros(0, dtype=np.int64))
    assert drift(nobody, nobody) == {"event": 0.0, "gap": 0.0}


def hits(share: float, users: int, seed: int) -> Hits:
    rng = np.random.default_rng(seed)
    served = rng.integers(1, 10, users)
    return Hits(served, rng.binomial(served, share))


def test_a_fall_is_told_from_chance() -> None:
    old = hits(0.3, 400, 0)
    low, value, high = rate(old).low, rate(old).value, rate(old).high
    assert low < 0.3 < high and low < value < high
    assert fell(difference(hits(0.2, 400, 1), old), value)
    assert not fell(difference(hits(0.29, 400, 2), old), value)  # within the band
    assert not fell(difference(hits(0.2, 5, 3), old), value) or rate(hits(0.2, 5, 3)).high < 0.3  # few users say little
