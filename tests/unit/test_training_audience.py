"""Clusters and quantiles of a release: what was planted is found, names are readable and stay, the bundle carries them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score
from typer.testing import CliRunner

from clickwake.cli import app
from producers.simulate.world import World
from schemas.catalog import Item
from stream.adapters.models import model_store
from stream.adapters.models.model_store import BundleRefused
from stream.adapters.models.onnx import Bundle
from stream.core.segments.audience import Cluster
from stream.core.survival.churn import EDGES_DAYS, ChurnPolicy
from stream.core.user.featurize import CHURN_FEATURES, Float32
from stream.core.user.state import Touch, UserState
from tests.support import bundles
from tests.support.bundles import TEXT_DIM, Exported
from tests.support.fakes import DAY_MS, T0_MS, event
from training import export, train
from training.clusters import audience, between_trainings, evaluate_clusters
from training.evaluation import comparison, evaluations
from training.history import snapshot
from training.history.snapshot import History, Snapshot
from training.recommend import offline
from training.text.texts import Texts

KINDS = ("kitchen", "garden", "books")
NOUNS = {"kitchen": ("teapot", "saucepan"), "garden": ("spade", "planter"), "books": ("novel", "atlas")}


Files = dict[str, bytes]


class Shop(NamedTuple):
    """A history of users who are each of one kind, and a bundle that has seen none of it."""

    history: History
    texts: Texts
    snapshot: Snapshot
    truth: dict[str, int]


@pytest.fixture(scope="module")
def shop() -> Shop:
    """90 users who touch eight items of their kind and now and then another's; texts of a kind are alike."""
    rng = np.random.default_rng(3)
    items = [Item(item_id=f"{kind}{n}", tenant="t", title=f"the {NOUNS[kind][n % 2]} number {n}", category=kind)
             for kind in KINDS for n in range(8)]  # fmt: skip
    centre = {kind: rng.normal(size=TEXT_DIM) for kind in KINDS}
    vectors = np.array([centre[str(item.category)] + 0.3 * rng.normal(size=TEXT_DIM) for item in items], dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    events, truth = [], {}
    for user in range(90):
        truth[f"u{user}"] = user % 3
        for step in range(8):
            kind = KINDS[user % 3] if rng.random() < 0.95 else KINDS[int(rng.integers(3))]
            at_ms = T0_MS + int((step + rng.random()) * DAY_MS)
            buys = user % 2 == 0 and step == 7
            more = {"properties": {"order_id": f"o{user}", "products": [
                {"product_id": f"{kind}0", "price": float(user), "quantity": 1}]}} if buys else {}  # fmt: skip
            events.append(event(user=f"u{user}", ts_ms=at_ms, item=f"{kind}{int(rng.integers(8))}", id=f"m{user}-{step}",
                                name="Order Completed" if buys else "Product Viewed", **more))  # fmt: skip
    history = snapshot.from_events(events, items)
    texts = Texts.named("test", [item.item_id for item in items], vectors)
    return Shop(history, texts, snapshot.replay(history), truth)


def bundle_of(shop: Shop, exported: Exported, seed: int) -> tuple[Bundle, Files]:
    """Another seed is another space of vectors: what each kind of item has learned points elsewhere."""
    rng = np.random.default_rng(seed)
    learned = {kind: rng.normal(size=exported.model.config.dim) / 3 for kind in KINDS}
    ids = list(shop.history.items)
    table = bundles.npz(ids=np.array(ids), vectors=np.array([learned[one.rstrip("0123456789")] for one in ids], np.float32))
    files = exported.files | {"item_residuals.npz": table}
    return export.open_files(export.draft(exported.model, "test", None, files, (0, 1)), files), files


def with_clusters(shop: Shop, exported: Exported, seed: int, previous: Bundle | None = None) -> tuple[Bundle, Files]:
    bundle, files = bundle_of(shop, exported, seed)
    found = audience.discover(bundle, shop.snapshot, shop.history, shop.texts, ChurnPolicy(), previous)
    files = audience.with_file(files, found)
    return export.open_files(bundle.manifest, files), files


def test_a_release_finds_what_was_planted_and_names_it(shop: Shop, exported: Exported) -> None:
    bundle, _ = with_clusters(shop, exported, 1)
    found = bundle.audience
    assert sorted(one.users for one in found.clusters) == [30, 30, 30] and found.users == 90
    for one in found.clusters:
        (kind,) = {item.rstrip("0123456789") for item in one.items}
        assert {kind, *NOUNS[kind]} == set(one.terms[:3]), one
        assert set(one.name.split()) <= {kind, *NOUNS[kind]}, "the name is of the words that tell it from the others"
    index = offline.index_of(bundle, shop.history.items, shop.texts, shop.snapshot.counts)
    labels = audience.assigned(bundle, index, list(shop.snapshot.states.values()))
    assert adjusted_rand_score([shop.truth[user] for user in shop.snapshot.states], labels) > 0.95
    assert found.quantile("everybody", "revenue", 1.0) == 88.0
    assert found.quantile("everybody", "revenue", 0.4) == 0.0, "most have never bought"
    assert found.quantile("buyers", "revenue", 0.5) == pytest.approx(44.0)
    assert 0 < found.quantile("everybody", "churn", 0.5) < 1


def test_the_next_release_hands_ids_and_names_on_in_another_space_of_vectors(shop: Shop, exported: Exported) -> None:
    first, _ = with_clusters(shop, exported, 1)
    again = with_clusters(shop, exported, 2, first)[0].audience
    was = {one.name: one for one in first.audience.clusters}
    assert {one.name: one.id for one in again.clusters} == {one.name: one.id for one in was.values()}
    for one in again.clusters:
        assert set(one.terms) & set(was[one.name].terms) and one.centroid != was[one.name].centroid


def test_clusters_of_another_text_encoder_cannot_go_on(shop: Shop, exported: Exported) -> None:
    first, files = with_clusters(shop, exported, 1)
    old = export.open_files(msgspec.structs.replace(first.manifest, text_space="another"), files)
    again = with_clusters(shop, exported, 2, old)[0].audience
    assert not {one.id for one in again.clusters} & {one.id for one in first.audience.clusters}
    assert "continued" not in again.measured


def test_damaged_or_exchanged_clusters_are_refused_and_a_bundle_without_any_loads(
    shop: Shop, exported: Exported, tmp_path: Path
) -> None:
    bundle, files = with_clusters(shop, exported, 1)
    golden = {"golden.npz": export.golden(bundle, np.zeros((2, len(CHURN_FEATURES)), dtype=np.float32))}
    manifest, _ = export.publish(str(tmp_path), bundle.manifest, files | golden, {})
    uri = Path(model_store.bundle_uri(str(tmp_path), manifest.model_version))
    raw, whole = (uri / "manifest.json").read_bytes(), files["audience.json"]
    assert model_store.verify(str(uri), raw).audience == bundle.audience
    (uri / "audience.json").write_bytes(whole.replace(b'"c1"', b'"c7"'))
    with pytest.raises(BundleRefused, match=r"audience\.json is damaged"):
        model_store.verify(str(uri), raw)
    moved = msgspec.json.decode(whole)
    first, second = moved["clusters"][:2]
    first["centroid"], second["centroid"] = second["centroid"], first["centroid"]
    with pytest.raises(BundleRefused, match="golden near differs"):
        export.publish(str(tmp_path), manifest, files | golden | {"audience.json": msgspec.json.encode(moved)}, {})
    old = bundles.publish(str(tmp_path / "old"), exported)
    uri = Path(model_store.bundle_uri(str(tmp_path / "old"), old.model_version))
    assert model_store.verify(str(uri), (uri / "manifest.json").read_bytes()).audience.clusters == ()


def test_the_command_shows_clusters_and_how_far_a_training_finds_them_untold(
    shop: Shop, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = with_clusters(shop, exported, 1)
    bundle, files = with_clusters(shop, exported, 2, first)
    assert bundle.audience.measured["continued"] == 1.0 and bundle.audience.measured["again"] > 0.9
    golden = {"golden.npz": export.golden(bundle, np.zeros((2, len(CHURN_FEATURES)), dtype=np.float32))}
    manifest, _ = export.publish(str(tmp_path), bundle.manifest, files | golden, {})
    monkeypatch.setenv("CLICKWAKE_MODELS__REGISTRY", str(tmp_path))
    said = json.loads(CliRunner().invoke(app, ["segments", "clusters", "--json"]).stdout)
    assert said["release"] == manifest.model_version and said["measured"] == bundle.audience.measured
    assert [one["id"] for one in said["clusters"]] == [one.id for one in bundle.audience.clusters]
    shown = " ".join(CliRunner().invoke(app, ["segments", "clusters"]).stdout.split())
    assert f"agree with them by {bundle.audience.measured['again']:.2f}" in shown


def test_evaluate_clusters_prints_one_object_and_writes_a_page(
    shop: Shop, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, files = bundle_of(shop, exported, 1)
    world = World(seed=1, shoppers=5, days=20, items=100)
    truth = world.truth()
    owned = {owner.user_id or owner.anonymous_ids[0]: owner for owner in truth.shoppers if owner.shared_with is None}
    of = dict(zip(shop.truth, itertools.cycle(owned.values()), strict=False))
    monkeypatch.setattr(truth, "owners", lambda user: [of[user]])
    fitted = SimpleNamespace(policy=ChurnPolicy())
    learned = train.Learned(None, None, fitted, files, bundle, shop.snapshot)  # type: ignore[arg-type]  what is asked of it
    monkeypatch.setattr(train, "learn", lambda *args, **named: learned)
    monkeypatch.setattr(evaluate_clusters, "DRAWS", 3)
    monkeypatch.setattr(between_trainings, "MONTH_MS", 1)
    monkeypatch.setattr(comparison, "BOOTSTRAP_ROUNDS", 20)
    asked = evaluate_clusters.Shop(shop.history, shop.texts, truth)
    monkeypatch.setattr(evaluate_clusters, "shop_of", lambda request: asked)
    monkeypatch.setenv("CLICKWAKE_HOME", str(tmp_path))
    evaluations.main("clusters", "simulated", Path(), None, True, tmp_path / "report", {"retrain": 1.0})
    found = json.loads(capsys.readouterr().out)
    assert (found["task"], found["n"], found["settings"]["k of clickwake"]) == ("clusters", 90, 3.0)
    ours = found["models"]["clickwake"]
    assert ours["stability.ari"]["value"] > 0.95 and 0.5 < ours["staying.share"]["value"] <= 1
    for task in ("after another seed", "after a month more"):  # here the same vectors again: the seed is k-means' alone
        assert {"ari", "same name", "silhouette", "department, ari", "style, ari"} <= {
            measure.removeprefix(f"{task}.") for measure in ours}  # fmt: skip
        for model in ("clickwake", "clickwake, alone"):
            told = found["models"][model]
            assert told[f"{task}.ari"]["value"] > 0.9 and told[f"{task}.same name"]["value"] > 0.9
        assert found["settings"][f"{task}: continued"] == 1.0 and found["settings"][f"{task}: again"] > 0.9
        assert found["ahead"]["clickwake, alone"][f"{task}.silhouette"]["value"] == pytest.approx(0, abs=0.02)
    assert -1 <= ours["department.ari"]["value"] <= 1 and {"style.ari", "department, k as planted.ari"} <= ours.keys()
    assert found["models"]["k-means on category counts"]["stability.ari"]["value"] > 0.9
    assert (tmp_path / "report" / "index.html").read_text().count("data:image/png;base64,") >= 3


def test_a_user_is_asked_again_after_each_moment_by_what_was_known_then() -> None:
    ring = [Touch(at, f"e{at}", "i", 1, 0.0) for at in (1, 2, 3, 3, 4)]
    walk = evaluate_clusters.prefixes(UserState(ring=ring, last_ts_ms=4))
    assert [(len(one.ring), one.last_ts_ms) for one in walk] == [(4, 3), (5, 4)], "what came at one time is one moment"


labels = st.lists(st.integers(0, 3), min_size=8, max_size=60)


@given(labels, st.permutations(range(4)))
def test_matching_undoes_any_renaming(now: list[int], renamed: list[int]) -> None:
    """The same users under other numbers keep their ids; no id is given to two."""
    dense = np.unique(now, return_inverse=True)[1]
    old = [Cluster(id=f"c{at}", name=f"n{at}", terms=(), users=0, items=(), centroid=(1.0,)) for at in range(4)]
    before = np.array([renamed[at] for at in dense])
    found = audience.matched(dense, before, old)
    assert {new: one.id for new, one in found.items()} == {new: f"c{renamed[new]}" for new in set(dense.tolist())}
    assert audience.matched(dense, np.full(len(now), -1), old) == {}, "nobody was anywhere"


def test_clusters_that_have_nothing_to_do_with_each_other_hand_on_no_names() -> None:
    """Whatever their number: of two halves each has a third in common with each."""
    rng = np.random.default_rng(1)
    for k in (2, 3, 8):
        old = [Cluster(id=f"c{at}", name=f"n{at}", terms=(), users=0, items=(), centroid=(1.0,)) for at in range(k)]
        now, then = rng.integers(0, k, (2, 2_000))
        assert audience.matched(now, then, old) == {}
        mostly = np.where(rng.random(2_000) < 0.7, now, then)
        assert {new: one.id for new, one in audience.matched(now, mostly, old).items()} == {at: f"c{at}" for at in range(k)}


def test_a_new_cluster_gets_a_new_id_and_a_name_that_was_nobodys() -> None:
    old = [Cluster(id="c4", name="red mug", terms=(), users=5, items=(), centroid=(1.0, 0.0))]
    centroids = np.eye(3, dtype=np.float32)
    terms = [["red", "mug", "cup"], ["red", "reds", "mug"], []]
    found = audience.named(np.array([0, 0, 0, 1, 1, 2]), centroids, terms, [["a"], ["b"], []], {1: old[0]}, old)
    assert [(one.id, one.name, one.users) for one in found] == [
        ("c5", "red mug cup", 3), ("c4", "red mug", 2), ("c6", "group 6", 1)]  # fmt: skip


def test_terms_tell_a_cluster_from_the_others() -> None:
    items = {f"i{n}": Item(item_id=f"i{n}", tenant="t", title=title) for n, title in enumerate(
        ("common teapot", "common spade", "红色杯子"))}  # fmt: skip
    states = [UserState(ring=[Touch(1, "e", f"i{n}", 1, 0.0)]) for n in (0, 1, 2)]
    assert [one[0] for one in audience.terms_of(states, np.array([0, 1, 2]), 3, items)] == ["teapot", "spade", "杯子"]


def test_quantiles_are_of_whoever_there_is() -> None:
    class Calm:
        def survival(self, features: Float32) -> Float32:
            return np.zeros((len(features), len(EDGES_DAYS)), dtype=np.float32)

    states = [UserState(events=n, last_ts_ms=T0_MS) for n in range(1, 12)]
    found = audience.quantiles_of(states, T0_MS, Calm(), ChurnPolicy())  # type: ignore[arg-type]  only survival is asked
    assert found["everybody"]["events"][::10] == tuple(float(n) for n in range(1, 12)) and "buyers" not in found
