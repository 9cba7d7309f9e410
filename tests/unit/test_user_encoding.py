"""The user encoder in pieces: what a user gets does not depend on who is encoded with them; calls are as small as said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from stream.adapters.models import onnx
from stream.adapters.models.onnx import Bundle
from tests.support import bundles
from tests.support.bundles import SPACE, Exported
from training import export


@pytest.fixture(scope="module")
def bundle(exported: Exported) -> Bundle:
    files = bundles.files_of(exported)
    return export.open_files(export.draft(exported.model, SPACE, None, files, (0, 1)), files)


def users(count: int, longest: int, dim: int, seed: int) -> dict[str, Any]:
    """Model inputs of users with 0 to `longest` events, some of them about items that nobody knows."""
    draw = np.random.default_rng(seed)
    there = np.arange(longest)[None] < draw.integers(0, longest + 1, count)[:, None]  # (B, L)
    mask = there & (draw.random((count, longest)) < 0.9)
    return {"items": (draw.standard_normal((count, longest, dim)) * mask[..., None]).astype(np.float32),
            "kinds": draw.integers(1, 9, (count, longest)) * there,
            "ages": (draw.random((count, longest)) * there).astype(np.float32), "mask": mask}  # fmt: skip


@pytest.mark.parametrize(("count", "longest"), [(1, 50), (3, 1), (40, 50), (130, 17)])
def test_in_pieces_everybody_gets_what_they_get_alone(
    bundle: Bundle, count: int, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays, most, seen = users(count, longest, bundle.manifest.dim, seed=count), onnx.TOUCHES_MAX, []
    once = bundle._encode

    def watched(some: Mapping[str, Any]) -> Any:
        seen.append(some["mask"].size)
        return once(some)

    monkeypatch.setattr(bundle, "_encode", watched)
    vectors, weights = bundle.encode(arrays)
    assert max(seen) <= max(most, longest)
    for at in range(count):
        if arrays["mask"][at].any():  # who has no event has no vector; see `recommending.encoded`
            alone, its_weights = once({name: one[at : at + 1] for name, one in arrays.items()})
            np.testing.assert_allclose(vectors[at], alone[0], atol=2e-5)
            np.testing.assert_allclose(weights[at], its_weights[0], atol=2e-6)
