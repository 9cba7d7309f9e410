"""Satisfaction models: what is planted in reviews is learned, exported as learned, calibrated, and refused when damaged."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from pydantic import SecretStr

from stream.adapters.models import satisfaction as serving
from stream.adapters.models import signing
from stream.adapters.models.model_store import BundleRefused
from stream.adapters.models.satisfaction import ENCODER, NGRAMS, Satisfaction
from stream.settings import Models, Settings, Training
from tests.support.reviews import planted, tiny_bert
from training.opinions import ngrams, satisfaction, satisfaction_net
from training.opinions.reviews import Reviews
from training.opinions.satisfaction import Learned
from training.opinions.satisfaction_net import Recipe, SatisfactionNet
from training.parity import ParityFailed


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def settings(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    training = Training(satisfaction_encoders={"en": bert}, satisfaction_budget_s=60.0)
    return Settings(models=Models(registry=str(tmp_path_factory.mktemp("registry"))), training=training)


@pytest.fixture(scope="module")
def parts() -> tuple[Reviews, Reviews, Reviews]:
    return planted(600, seed=0), planted(200, seed=1), planted(200, seed=2)


@pytest.fixture(scope="module")
def learned(settings: Settings, parts: tuple[Reviews, Reviews, Reviews]) -> Learned:
    with pytest.MonkeyPatch.context() as patched:  # a tiny encoder that knows nothing yet learns faster and longer
        patched.setattr(satisfaction, "RECIPE", Recipe(epochs=10, rate=2e-3, layer_decay=1.0, head_rate=3e-3))
        return satisfaction.learn(parts[0], parts[1], settings, seed=3, say=lambda _: None)


def test_what_is_planted_is_read_from_reviews_not_seen(learned: Learned, parts: tuple[Reviews, Reviews, Reviews]) -> None:
    test = parts[2]
    said = learned.model.read(test.texts)
    assert np.mean((said.p_recommended >= 0.5) == (test.recommended > 0)) > 0.95
    assert satisfaction.f1_minority(said.recommended, test.recommended, minority=False) > 0.9
    assert said.stars is not None
    np.testing.assert_allclose(said.stars.sum(axis=1), 1.0)
    assert np.abs(serving.median_stars(said.stars) - test.stars).mean() < 0.4
    expected = said.expected_stars()
    assert expected is not None and np.corrcoef(expected, test.stars)[0, 1] > 0.9


def test_what_a_review_says_does_not_depend_on_the_others(learned: Learned, parts: tuple[Reviews, Reviews, Reviews]) -> None:
    texts = [*parts[2].texts[:40], "", "x" * 9_000, "茶 \ud800 42".encode("utf-8", "replace").decode()]
    together = learned.model.read(texts)
    alone = [learned.model.read([text]) for text in texts]
    np.testing.assert_allclose(together.p_recommended, [one.p_recommended[0] for one in alone], atol=1e-5)
    backwards = learned.model.read(texts[::-1])
    np.testing.assert_allclose(together.p_recommended, backwards.p_recommended[::-1], atol=1e-5)
    assert len(learned.model.read([]).p_recommended) == 0


def test_the_same_seed_gives_the_same_net(bert: Path, parts: tuple[Reviews, Reviews, Reviews]) -> None:
    some, validation = parts[0].take(np.arange(64)), parts[1].take(np.arange(32))
    recipe = Recipe(epochs=1)
    nets = [satisfaction_net.fine_tune(bert, some, validation, seed=5, budget_s=60, recipe=recipe)[0] for _ in range(2)]
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        np.testing.assert_array_equal(one.detach().numpy(), other.detach().numpy())


def test_training_ends_with_its_budget(bert: Path, parts: tuple[Reviews, Reviews, Reviews]) -> None:
    _, tuning = satisfaction_net.fine_tune(bert, parts[0], parts[1], seed=5, budget_s=1e-6)
    assert len(tuning.loss) == 1 and tuning.best_epoch == 1 and tuning.stopped.startswith("budget of 1e-06 s")


def test_a_graph_with_slightly_other_weights_is_refused(bert: Path, learned: Learned) -> None:
    net = SatisfactionNet(satisfaction_net.load_bert(bert)).eval()
    graph = satisfaction.to_onnx(net, ["recommended", "stars"])
    assert satisfaction.check_parity(net, graph, bert) < 1e-4
    with pytest.raises(ParityFailed, match="satisfaction at batch 1, recommended"):
        satisfaction.check_parity(net, learned.files[ENCODER], bert)


def test_the_graph_of_n_grams_says_what_sklearn_says(parts: tuple[Reviews, Reviews, Reviews]) -> None:
    model = ngrams.fit(parts[0], parts[1])
    graph = ngrams.to_onnx(model)
    assert ngrams.check_parity(model, graph, parts[2].texts) < 1e-4
    loaded = onnx.load_from_string(graph)
    for tensor in loaded.graph.initializer:
        if tensor.name == "weights":
            moved = numpy_helper.to_array(tensor) * np.float32(1.1)
            tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
    with pytest.raises(ParityFailed, match="n-grams in a batch"):
        ngrams.check_parity(model, bytes(loaded.SerializeToString()), parts[2].texts)


def test_a_language_without_an_encoder_has_n_grams_alone(settings: Settings) -> None:
    train, validation, test = (planted(400, seed=seed, language="zh") for seed in range(3))
    learned = satisfaction.learn(train, validation, settings, seed=0, say=lambda _: None)
    assert set(learned.files) == {NGRAMS} and learned.tuning is None
    said = learned.model.read(test.texts)
    assert said.stars is None and said.expected_stars() is None
    assert np.mean((said.p_recommended >= 0.5) == (test.recommended > 0)) > 0.95


def test_a_part_stays_only_if_it_helps(learned: Learned, parts: tuple[Reviews, Reviews, Reviews]) -> None:
    """N-grams of another language say nothing, so the blend is as good without them."""
    chinese = [planted(300, seed=seed, language="zh") for seed in range(2)]
    useless = ngrams.fit(*chinese)
    files = learned.files | {NGRAMS: ngrams.to_onnx(useless)}
    draft = msgspec.structs.replace(learned.model.manifest, ngrams=useless.policy)
    manifest, kept = satisfaction.calibrated(draft, files, parts[1], threads=1)
    assert NGRAMS not in kept and manifest.ngrams is None and manifest.ngrams_weight == 0.0 and manifest.encoder_weight > 0


def test_published_loaded_and_refused(settings: Settings, learned: Learned, tmp_path: Path) -> None:
    model_id = satisfaction.publish(settings, learned)
    assert serving.newest(settings.registry, "en") == model_id
    assert serving.newest(settings.registry, "zh") is None
    loaded = serving.load(settings.registry, model_id)
    texts = list(loaded.manifest.golden)
    np.testing.assert_allclose(loaded.read(texts).p_recommended, learned.model.read(texts).p_recommended, atol=1e-6)
    folder = Path(settings.registry) / "satisfaction" / model_id
    whole = (folder / ENCODER).read_bytes()
    (folder / ENCODER).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BundleRefused, match=r"encoder\.onnx is damaged"):
        serving.load(settings.registry, model_id)
    (folder / ENCODER).write_bytes(whole)
    other = msgspec.structs.replace(loaded.manifest, constant=loaded.manifest.constant + 1.0)
    (folder / "manifest.json").write_bytes(msgspec.json.encode(other))
    with pytest.raises(BundleRefused, match="golden texts"):
        serving.load(settings.registry, model_id)
    (folder / "manifest.json").write_bytes(b"{}")
    with pytest.raises(BundleRefused, match="unreadable"):
        serving.load(settings.registry, model_id)
    with pytest.raises(BundleRefused, match="missing"):
        serving.load(str(tmp_path), model_id)


def test_signed_models_only_where_keys_are_in_use(settings: Settings, learned: Learned, tmp_path: Path) -> None:
    public = signing.keygen(tmp_path / "signing.key")
    key = SecretStr(str(tmp_path / "signing.key"))
    own = Models(registry=str(tmp_path), signing_key=key, verify_keys=(public.text,))
    keyed = settings.model_copy(update={"models": own})
    model_id = satisfaction.publish(keyed, learned)
    keys = signing.trusted(own)
    assert serving.load(str(tmp_path), model_id, keys=keys).manifest.id == model_id
    (tmp_path / "satisfaction" / model_id / signing.SIGNATURE).unlink()
    with pytest.raises(BundleRefused, match="not signed"):
        serving.load(str(tmp_path), model_id, keys=keys)


def test_a_model_of_nothing_is_none(learned: Learned) -> None:
    with pytest.raises(ValueError, match="neither an encoder nor n-grams"):
        Satisfaction(learned.model.manifest, {}, 1)


def test_the_threshold_is_where_f1_of_the_rarer_answer_is_best() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(2_000) < 0.8).astype(float)
    p = 1 / (1 + np.exp(-(2 * y - 1 + rng.normal(size=2_000))))
    cut = satisfaction.best_threshold(p, y)
    best = satisfaction.f1_minority(p >= cut, y, minority=False)
    assert all(best >= satisfaction.f1_minority(p >= other, y, minority=False) for other in np.linspace(0, 1, 201))
