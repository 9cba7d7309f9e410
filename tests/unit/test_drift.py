"""Drift tells another population from the same one drawn again."""

from __future__ import annotations

import numpy as np
from msgspec.structs import astuple

from stream.core.statistics.drift import PSI_MAX, Inputs, drift
from training.history.live import Hits
from training.release.watch import at_common_hours, difference, fell, rate, shares


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
    served = rng.integers(0, 3, (users, 24))
    return Hits(served, rng.binomial(served, share))


def test_a_fall_is_told_from_chance() -> None:
    old = hits(0.3, 400, 0)
    even = np.full(24, 1 / 24)
    value, low, high = astuple(rate(old, even))
    assert low < 0.3 < high and low < value < high
    assert fell(difference(hits(0.2, 400, 1), old, even), value)
    assert not fell(difference(hits(0.29, 400, 2), old, even), value)  # within the band
    few = hits(0.2, 5, 3)
    assert not fell(difference(few, old, even), value) or rate(few, even).high < 0.3  # few users say little


def test_night_is_compared_with_night() -> None:
    """People look at .1 of what is shown at night and at .5 by day. One bundle runs mostly at night, the other by day."""
    rng, by_hour = np.random.default_rng(5), np.where(np.arange(24) < 8, 0.1, 0.5)

    def ran(night: int, day: int) -> Hits:
        served = rng.poisson(np.where(np.arange(24) < 8, night, day) / 24, (600, 24))
        return Hits(served, rng.binomial(served, by_hour))

    own, other = at_common_hours(ran(20, 1), ran(1, 20))
    ahead = difference(own, other, shares(own))
    assert ahead.low < 0 < ahead.high and own.hit.sum() / own.total < 0.7 * other.hit.sum() / other.total
    worse = Hits(own.served, rng.binomial(own.hit, 0.7))
    assert fell(difference(worse, other, shares(worse)), rate(other, shares(worse)).value)
    night, day = np.arange(24) < 6, np.arange(24) > 6
    apart = at_common_hours(Hits(own.served * night, own.hit), Hits(other.served * day, other.hit))
    assert [one.total for one in apart] == [0, 0]
