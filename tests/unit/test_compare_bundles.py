"""`clickwake models compare`: two bundles asked the same on the newest days of one history."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clickwake.cli import app
from stream.adapters.models.model_store import BundleRefused
from stream.core.ranking.blend import PARTS
from stream.settings import Models, Settings
from tests.support import bundles
from tests.support.bundles import Exported
from tests.support.histories import drawn_texts, ring_walk
from training.history import snapshot
from training.release import compare_bundles, shadow, watch
from training.release.watch import Watched
from training.text import texts


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn text vectors in the bundles' space, instead of a BERT's."""
    known = drawn_texts(bundles.ITEMS, bundles.SPACE, bundles.TEXT_DIM)
    monkeypatch.setattr(texts, "encode", lambda settings, items, say, *, running: known)


def test_a_bundle_that_asks_what_follows_is_better_than_one_that_asks_what_is_popular(
    tmp_path: Path, exported: Exported, drawn: None
) -> None:
    settings = Settings(models=Models(registry=str(tmp_path)))
    silent = dict.fromkeys(PARTS, -60.0)
    good = bundles.publish(str(tmp_path), exported, blend=silent | {"rules": 0.0}).model_version
    poor = bundles.publish(str(tmp_path), exported, seed=1, blend=silent | {"popular_60": 0.0}).model_version
    found = compare_bundles.compare(settings, ring_walk(80), good, poor)
    assert found.served == good and set(found.models) == {good, poor} and found.n > 10
    assert found.ahead[poor]["ndcg@10"].low > 0
    assert set(found.settings) == {f"{one} learned until" for one in (good, poor)}


def test_bundles_of_two_spaces_are_not_compared(tmp_path: Path, exported: Exported, drawn: None) -> None:
    settings = Settings(models=Models(registry=str(tmp_path)))
    one = bundles.publish(str(tmp_path), exported).model_version
    two = bundles.publish(str(tmp_path), exported, seed=1, space="elsewhere").model_version
    with pytest.raises(BundleRefused, match="made for different text encoders"):
        compare_bundles.compare(settings, ring_walk(80), one, two)
    with pytest.raises(BundleRefused, match=r"was made for text encoder elsewhere, this installation has tiny"):
        compare_bundles.compare(settings, ring_walk(80), two, two)
    with pytest.raises(BundleRefused, match="there is no bundle v9"):
        compare_bundles.compare(settings, ring_walk(80), one, "v9")


def test_the_command_prints_one_comparison(
    tmp_path: Path, exported: Exported, drawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = bundles.publish(str(tmp_path), exported).model_version
    two = bundles.publish(str(tmp_path), exported, seed=1).model_version
    monkeypatch.setenv("CLICKWAKE_MODELS__REGISTRY", str(tmp_path))
    monkeypatch.setenv("CLICKWAKE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(snapshot, "from_clickhouse", lambda settings, tenant: ring_walk(60))
    said = CliRunner().invoke(app, ["models", "compare", one, two, "--json"])
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert found["served"] == one and {"value", "low", "high"} == found["ahead"][two]["ndcg@10"].keys()
    refused = CliRunner().invoke(app, ["models", "compare", one, "v9"])
    assert refused.exit_code == 1


def test_a_candidate_of_another_text_encoder_is_not_asked_what_was_asked_live(
    tmp_path: Path, exported: Exported, drawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = bundles.publish(str(tmp_path), exported).model_version
    two = bundles.publish(str(tmp_path), exported, seed=1, space="elsewhere").model_version
    monkeypatch.setenv("CLICKWAKE_MODELS__REGISTRY", str(tmp_path))
    monkeypatch.setenv("CLICKWAKE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(snapshot, "from_clickhouse", lambda settings, tenant: ring_walk(60))
    monkeypatch.setattr(watch, "watch", lambda settings, tenant, horizon, act: Watched(current=one, horizon=horizon))
    monkeypatch.setattr(shadow, "compare", lambda *asked: pytest.fail("it was asked"))
    refused = CliRunner().invoke(app, ["models", "watch", "--candidate", two])
    assert refused.exit_code == 1 and isinstance(refused.exception, SystemExit), refused.exception
    assert "were made for different text encoders" in " ".join(refused.output.split())
