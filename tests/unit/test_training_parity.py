"""What is exported says what torch says, over batches, lengths and padding; a graph that says something else is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from stream.core.user.featurize import CHURN_FEATURES
from training import export, parity
from training.churn.churn import HazardNet
from training.parity import ParityFailed
from training.recommend.user_encoder import Config, Recommender

SMALL = Config(dim=16, layers=1, heads=2, text_dim=12)


@pytest.fixture(scope="module")
def recommender() -> Recommender:
    torch.manual_seed(0)
    return Recommender(SMALL, torch.randn(9, 12)).eval()


@pytest.fixture(scope="module")
def net() -> HazardNet:
    torch.manual_seed(0)
    return HazardNet(torch.zeros(len(CHURN_FEATURES)), torch.ones(len(CHURN_FEATURES))).eval()


@pytest.fixture(scope="module")
def built(recommender: Recommender, net: HazardNet) -> dict[str, bytes]:
    return export.files(recommender, net, [f"i{n}" for n in range(9)])


def perturbed(graph: bytes, by: float) -> bytes:
    """The same graph with each weight matrix changed a little."""
    model = onnx.load_from_string(graph)
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim == 2:
            moved = values + rng.normal(scale=by, size=values.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
    return bytes(model.SerializeToString())


def test_export_has_parity(recommender: Recommender, net: HazardNet, built: dict[str, bytes]) -> None:
    assert export.check_parity(recommender, net, built) <= parity.DELTA_MAX


@pytest.mark.parametrize("name", ["user_encoder", "item_adapter", "churn"])
def test_a_graph_with_slightly_other_weights_is_refused(
    recommender: Recommender, net: HazardNet, built: dict[str, bytes], name: str
) -> None:
    other = built | {f"{name}.onnx": perturbed(built[f"{name}.onnx"], by=2e-3)}
    with pytest.raises(ParityFailed, match=f"{name} at batch 1"):
        export.check_parity(recommender, net, other)


def test_vectors_that_are_close_but_rank_otherwise_do_not_agree() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(500, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    near = vectors + rng.uniform(-9e-5, 9e-5, vectors.shape)
    parity.agree("near", near, vectors)
    parity.point_alike("near", near, vectors)
    with pytest.raises(ParityFailed, match="the first 10 of ONNX are not torch's"):
        parity.agree_as_vectors("near", near, vectors)


def test_short_vectors_that_are_close_but_point_elsewhere_do_not_agree() -> None:
    with pytest.raises(ParityFailed, match=r"the cosine of ONNX and torch is 0\.9"):
        parity.agree_as_vectors("short", np.array([[1e-4, 4e-5]]), np.array([[1e-4, 0.0]]))


def test_ties_may_stand_in_any_order_and_nothing_else_may() -> None:
    expected = np.array([[0.5, 0.5, 0.4, 0.3]])
    parity.ranks_alike("ties", np.array([[0.5, 0.500001, 0.4, 0.3]]), expected)
    with pytest.raises(ParityFailed):
        parity.ranks_alike("swapped", np.array([[0.5, 0.5, 0.3, 0.4]]), expected)


def test_no_number_is_no_agreement() -> None:
    with pytest.raises(ParityFailed, match="differ by nan"):
        parity.agree("nan", np.array([np.nan]), np.array([0.0]))
