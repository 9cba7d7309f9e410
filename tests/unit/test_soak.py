"""What the soak calls growth."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.soak import Samples, judged


def seen(mb_per_h: float, lag_per_s: float, noise_mb: float = 0.1, quiet_s: int = 8) -> Samples:
    """Half an hour in which batches need up to 60 MB for a moment, after ten minutes in which caches fill; `quiet_s` at the
    end of each minute nothing is under way."""
    noise = np.random.default_rng(8)
    samples = Samples(warm_up_s=600.0, at_s=[float(second) for second in range(2_400)])
    kept = 400e6 + np.minimum(np.arange(2_400), 600) * 1e5 + np.arange(2_400) * mb_per_h * 1e6 / 3_600
    samples.memory["personalize"] = (kept + 100e6 + noise.gamma(1.0, 15e6, 2_400)).tolist()
    held = kept + noise.gamma(1.0, noise_mb * 1e6, 2_400)
    samples.held["personalize"] = np.where(np.arange(2_400) % 60 >= 60 - quiet_s, held, np.nan).tolist()
    samples.blocks["personalize"] = [np.nan] * 2_400
    samples.lag["sink"] = (noise.uniform(0, 5_000, 2_400) + np.arange(2_400) * lag_per_s).tolist()
    return samples


@pytest.mark.parametrize(("mb_per_h", "lag_per_s", "noise_mb", "failures"), [
    (0.0, 0.0, 0.1, []),
    (4.0, 0.0, 0.1, ["personalize grows:"]),
    (0.0, 0.0, 10.0, ["personalize is not shown to grow by less than 1 MB/h:"]),
    (0.0, 4.0, 0.1, ["sink falls behind by"]),
])  # fmt: skip
def test_growth_far_below_what_batches_need_is_seen_and_noise_is_not_growth(
    mb_per_h: float, lag_per_s: float, noise_mb: float, failures: list[str]
) -> None:
    found = judged(seen(mb_per_h, lag_per_s, noise_mb), rate=2_000.0, sent=1, seconds=2_400.0, wrong=[])
    assert len(found["failures"]) == len(failures)
    assert all(said.startswith(wanted) for said, wanted in zip(found["failures"], failures, strict=True))
    memory = found["memory"]["personalize"]
    assert memory["low"] <= mb_per_h <= memory["high"] and len(memory["held_mb"]) == 29


def test_where_work_is_never_done_nothing_is_judged() -> None:
    found = judged(seen(0.0, 0.0, quiet_s=0), rate=2_000.0, sent=1, seconds=2_400.0, wrong=[])
    assert "work was never done before the next minute began" in found["failures"][0] and not found["memory"]
