"""Models and their export: laws of the user encoder, parity, censoring, calibration, a bundle that loads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from schemas.release import Manifest
from stream.adapters.models import model_store
from stream.core.survival.churn import EDGES_DAYS, p_after
from stream.core.user.featurize import CHURN_FEATURES
from training import export
from training.churn import churn
from training.churn.churn import HazardNet, exposure
from training.evaluation import metrics
from training.history.snapshot import Visit
from training.recommend.user_encoder import Config, Recommender

DAY_MS = 86_400_000
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


def _encode(model: Recommender, inputs: dict[str, Any]) -> tuple[Any, Any]:
    with torch.no_grad():
        user, weights = model.encoder(*(torch.from_numpy(one) for one in inputs.values()))
    return user.numpy(), weights.numpy()


def test_user_vector_is_the_weighted_sum_of_item_vectors(recommender: Recommender) -> None:
    inputs = export.random_inputs(6, 11, SMALL.dim, 1)
    user, weights = _encode(recommender, inputs)
    total = (weights[:, :, None] * inputs["items"]).sum(1)
    temperature = float(recommender.encoder.log_temperature.detach().exp())
    expected = total[:-1] / np.linalg.norm(total[:-1], axis=1, keepdims=True) * temperature
    np.testing.assert_allclose(user[:-1], expected, atol=1e-4)
    np.testing.assert_allclose(weights[:-1].sum(1), 1.0, atol=1e-5)
    assert not weights[~inputs["mask"]].any()


def test_user_without_events_is_zeros(recommender: Recommender) -> None:
    user, weights = _encode(recommender, export.random_inputs(6, 11, SMALL.dim, 1))
    assert not user[-1].any() and not weights[-1].any()


def test_padding_and_batch_do_not_change_a_user(recommender: Recommender) -> None:
    inputs = export.random_inputs(4, 9, SMALL.dim, 2)
    user, _ = _encode(recommender, inputs)
    alone, _ = _encode(recommender, {name: one[1:2, : inputs["mask"][1].sum()] for name, one in inputs.items()})
    np.testing.assert_allclose(alone[0], user[1], atol=1e-4)


def test_item_without_text_and_residual_is_nowhere(recommender: Recommender) -> None:
    with torch.no_grad():
        assert not recommender.adapter(torch.zeros(2, SMALL.text_dim)).any()


def _published(registry: str, recommender: Recommender, built: dict[str, bytes]) -> tuple[Manifest, str]:
    manifest = export.draft(recommender, "none", None, built, (0, DAY_MS))
    features = np.random.default_rng(0).normal(size=(5, len(CHURN_FEATURES))).astype(np.float32)
    golden = export.golden(export.open_files(manifest, built), features)
    return export.publish(registry, manifest, built | {"golden.npz": golden}, {"report/index.html": b"<p>"})


def test_published_bundle_loads_as_a_worker_does(tmp_path: Any, recommender: Recommender, built: dict[str, bytes]) -> None:
    manifest, _ = _published(str(tmp_path), recommender, built)
    assert [one.model_version for one in model_store.versions(str(tmp_path))] == [manifest.model_version]
    uri = model_store.bundle_uri(str(tmp_path), manifest.model_version)
    bundle = model_store.verify(uri, (tmp_path / "bundles" / manifest.model_version / "manifest.json").read_bytes())
    text = recommender.text.numpy()
    with torch.no_grad():
        expected = recommender.item_vectors().numpy()
    np.testing.assert_allclose(bundle.adapt(text, [f"i{n}" for n in range(9)]), expected, atol=1e-5)


def test_flipped_bit_is_refused(tmp_path: Any, recommender: Recommender, built: dict[str, bytes]) -> None:
    manifest, _ = _published(str(tmp_path), recommender, built)
    path = tmp_path / "bundles" / manifest.model_version / "churn.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(model_store.BundleRefused, match=r"churn\.onnx is damaged"):
        model_store.verify(str(path.parent), (path.parent / "manifest.json").read_bytes())


def test_survival_starts_at_one_and_never_rises(net: HazardNet) -> None:
    features = np.random.default_rng(1).normal(size=(20, len(CHURN_FEATURES))).astype(np.float32)
    curves = churn.curves(net, features)
    assert curves.shape == (20, len(EDGES_DAYS))
    assert not curves[:, 0].any()
    assert (np.diff(curves, axis=1) <= 0).all()


def test_a_censored_visit_never_counts_as_a_return() -> None:
    days = np.array([0.5, 3.0, 5.0, 900.0])
    _, returned = exposure(days, np.array([True] * 4))
    assert not returned.any()
    watched, returned = exposure(days, np.array([False] * 4))
    assert returned.sum(1).tolist() == [1, 1, 1, 0]
    np.testing.assert_allclose(watched @ np.diff(EDGES_DAYS), np.minimum(days, EDGES_DAYS[-1]))


def test_what_is_cut_off_was_not_known_then() -> None:
    visit = Visit("u", 10 * DAY_MS, np.zeros(len(CHURN_FEATURES), dtype=np.float32), 8.0, censored=False)
    (early,) = churn.censor([visit], 13 * DAY_MS)
    assert (early.days, early.censored) == (3.0, True)
    assert churn.censor([visit], 30 * DAY_MS) == [visit]


def test_churn_learns_planted_hazards_and_is_calibrated() -> None:
    """Half the users return after 3 days on average, half after 60; the feature that tells them apart is known."""
    rng = np.random.default_rng(0)
    end_ms, visits = 200 * DAY_MS, []
    for at in np.sort(rng.uniform(0, 150, 4_000)):
        loyal = rng.random() < 0.5
        features = np.zeros(len(CHURN_FEATURES), dtype=np.float32)
        features[0] = loyal
        away = rng.exponential(3.0 if loyal else 60.0)
        visits.append(Visit("u", int(at * DAY_MS), features, min(away, 200 - at), censored=bool(away > 200 - at)))
    fitted = churn.fit(visits, seed=3, end_ms=end_ms, horizon_days=14.0)
    features = np.zeros((2, len(CHURN_FEATURES)), dtype=np.float32)
    features[0, 0] = 1.0
    p = p_after(churn.curves(fitted.net, features), np.zeros(2), fitted.policy)
    np.testing.assert_allclose(p, np.exp([-14 / 3, -14 / 60]), atol=0.07)
    assert metrics.ece(*fitted.calibration) < 0.05
    assert fitted.policy.clear_at < fitted.policy.raise_at


def test_auc_agrees_with_the_definition() -> None:
    rng = np.random.default_rng(2)
    p, y = rng.integers(0, 8, 60) / 8, (rng.random(60) < 0.4).astype(float)
    pairs = [(a > b) + 0.5 * (a == b) for a in p[y > 0] for b in p[y == 0]]
    assert metrics.auc(p, y) == pytest.approx(np.mean(pairs))
