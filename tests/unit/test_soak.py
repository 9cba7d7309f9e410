"""What the soak calls growth."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.soak import Samples, judged


def seen(mb_per_h: float, lag_per_s: float) -> Samples:
    """Half an hour in which batches need up to 60 MB for a moment, after ten minutes in which caches fill."""
    noise = np.random.default_rng(7)
    samples = Samples(warm_up_s=600.0, at_s=[float(second) for second in range(2_400)])
    held = 500e6 + np.minimum(np.arange(2_400), 600) * 1e5 + np.arange(2_400) * mb_per_h * 1e6 / 3_600
    samples.memory["personalize"] = (held + noise.gamma(1.0, 15e6, 2_400)).tolist()
    samples.lag["sink"] = (noise.uniform(0, 5_000, 2_400) + np.arange(2_400) * lag_per_s).tolist()
    return samples


@pytest.mark.parametrize(("mb_per_h", "lag_per_s", "failures"), [
    (0.0, 0.0, []),
    (4.0, 0.0, ["personalize grows"]),
    (0.0, 4.0, ["sink falls behind"]),
])  # fmt: skip
def test_growth_far_below_what_batches_need_is_seen_and_noise_is_not_growth(mb_per_h: float, lag_per_s: float,
                                                                             failures: list[str]) -> None:
    found = judged(seen(mb_per_h, lag_per_s), rate=2_000.0, sent=1, seconds=2_400.0, wrong=[])
    assert [failure.split(" by ")[0] for failure in found["failures"]] == failures
    memory = found["memory"]["personalize"]
    assert memory["low"] <= mb_per_h <= memory["high"] and len(memory["floors_mb"]) == 29
