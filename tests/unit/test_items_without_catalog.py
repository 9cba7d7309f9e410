"""Items that no catalog names: what training learned of them is what workers rank with, and ids made up are nowhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from schemas.catalog import Item
from stream.adapters.models import model_store
from stream.adapters.models.onnx import Bundle
from stream.core.ranking.counts import CountsPolicy, PartitionCounts
from stream.serving import Serving
from tests.support import bundles
from tests.support.fakes import T0_MS, FakeModels, event
from tests.support.histories import drawn_texts
from training.history import snapshot
from training.recommend import offline


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    registry = str(tmp_path_factory.mktemp("registry"))
    manifest = bundles.publish(registry, bundles.exported())
    path = Path(model_store.bundle_uri(registry, manifest.model_version)) / "manifest.json"
    return model_store.verify(str(path.parent), path.read_bytes())


def test_a_shop_without_a_catalog_ranks_with_the_vectors_of_training(bundle: Bundle) -> None:
    ids = ["i3", "i7", "made-up"]
    events = [event(user=f"u{at}", ts_ms=T0_MS + at, item=item) for at, item in enumerate(ids)]
    history = snapshot.from_events(events)
    texts = drawn_texts([], bundles.SPACE, bundles.TEXT_DIM)
    expected = offline.index_of(bundle, history.items, texts, PartitionCounts(CountsPolicy()))
    serving = Serving(bundle).index("t")
    for item in ids:
        serving.notice(item)
    assert serving.ids == expected.ids == ids
    np.testing.assert_array_equal(serving.matrix, expected.matrix)
    np.testing.assert_allclose(np.linalg.norm(serving.matrix, axis=1), [1, 1, 0], atol=1e-5)
    assert serving.placed.tolist() == expected.placed.tolist() == [True, True, False]


def test_of_items_that_no_catalog_names_the_most_touched_are_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among equals the lower id. Who touched others was there all the same."""
    monkeypatch.setattr(snapshot, "UNLISTED_MAX", 2)
    touched = ["x9", "cup", "x2", "x1", "x7", "x7", "x7"]
    events = [event(user=f"u{at}", ts_ms=T0_MS + at, item=item) for at, item in enumerate(touched)]
    order = {"products": [{"product_id": item} for item in ("x9", "x1", "cup")], "product_id": "cup", "revenue": 5.0}
    events.append(event(user="buyer", ts_ms=T0_MS + 9, name="Order Completed", properties=order))
    events.append(event(user="bot", ts_ms=T0_MS + 10, name="Order Completed", properties={
        "products": [{"product_id": "x2"}], "product_id": "cup"}))  # fmt: skip
    history = snapshot.from_events(events, [Item(item_id="cup", tenant="t", title="cup")])
    assert list(history.items) == ["cup", "x1", "x7"] and history.items["cup"].title == "cup"
    past, number = snapshot.interactions(history)
    assert len(number) == 6 and np.bincount(past.items).tolist() == [2, 2, 3]
    assert len(history.events) == len(events) and history.events[7].properties.revenue == 5.0
    assert {len(snapshot.replay(history).states[user].ring) for user in ("u0", "bot")} == {0}


def test_the_catalog_has_the_last_word() -> None:
    models = FakeModels()
    models.learned = {"a": np.array([1, 0, 0, 0], np.float32)}
    serving = Serving(models)
    index = serving.index("t")
    index.notice("a")
    assert index.matrix[0].tolist() == [1, 0, 0, 0]
    serving.put_items([(Item(item_id="a", tenant="t", title="cup"), np.array([0, 1, 0, 0], np.float32))])
    assert index.matrix[0].tolist() == [0, 1, 0, 0] and len(index) == 1
