"""Items that no training moment touches are placed by their text alone; the others keep what was learned of them."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from stream.core.user.featurize import Sequence
from stream.core.user.state import Kind
from training.history.snapshot import Moment
from training.recommend import fit
from training.recommend.user_encoder import RESIDUAL_START, Config

HOUR_MS = 3_600_000
ITEMS = [f"i{n}" for n in range(12)]
TOUCHED = ITEMS[:8]
WITHOUT_TEXT = 11  # nobody touched it either: nothing is known of it


def test_untouched_items_have_no_residual() -> None:
    rng = np.random.default_rng(1)
    moments = []
    for at in range(60):
        past = [TOUCHED[n] for n in rng.integers(0, len(TOUCHED), 3)]
        times = [(at * 10 + n) * HOUR_MS for n in range(1, 4)]
        history = Sequence(past, [int(Kind.VIEW)] * 3, times, [f"e{at}-{n}" for n in range(3)])
        moments.append(Moment(f"u{at % 7}", times[-1] + HOUR_MS, history, (TOUCHED[int(rng.integers(0, len(TOUCHED)))],)))
    text = rng.normal(size=(len(ITEMS), 16)).astype(np.float32)
    text[WITHOUT_TEXT] = 0.0
    config = Config(dim=16, heads=2, text_dim=16)
    model, _ = fit.fit(moments, ITEMS, text, config, seed=3, budget_s=60.0, steps_max=4)
    lengths = model.residuals.weight.detach().norm(dim=1).numpy()
    assert (lengths[len(TOUCHED) :] == 0).all() and (lengths[: len(TOUCHED)] > RESIDUAL_START / 2).all()
    with torch.no_grad():
        vectors, alone = model.item_vectors(), functional.normalize(model.adapter(torch.from_numpy(text)), dim=1)
    assert torch.allclose(vectors[len(TOUCHED) :], alone[len(TOUCHED) :], atol=1e-6)
    assert not vectors[WITHOUT_TEXT].any()
