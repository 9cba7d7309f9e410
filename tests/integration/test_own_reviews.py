"""`clickwake evaluate satisfaction shop`: a model of what the shop's own customers wrote, with stars beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clickwake.cli import app
from schemas import topics
from stream.adapters.models import satisfaction as serving
from tests.support.database import Database, on
from tests.support.fakes import T0_MS, event
from tests.support.reviews import planted, tiny_bert
from training.opinions import satisfaction
from training.opinions.satisfaction_net import Recipe


def test_texts_without_stars_are_read_by_what_the_others_taught(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = planted(900, seed=0)
    told = [
        event(name="Product Reviewed", user=f"u{at}", id=f"m{at}", ts_ms=T0_MS + at, tenant="shop",
              properties={"product_id": item, "rating": int(stars), "review_body": text})
        for at, (text, stars, item) in enumerate(zip(some.texts, some.stars, some.groups, strict=True))]  # fmt: skip
    database.store(on(topics.EVENTS, told))
    (tmp_path / "bert").mkdir()
    monkeypatch.setattr(satisfaction, "RECIPE", Recipe(epochs=8, rate=2e-3, layer_decay=1.0, head_rate=3e-3))
    own, bert = database.settings, tiny_bert(tmp_path / "bert")
    settings = {"HOME": tmp_path / "home", "TRAINING__TEXT_MODEL": bert, "CLICKHOUSE__HOST": own.host,
                "CLICKHOUSE__PORT": own.port, "CLICKHOUSE__DATABASE": own.database}  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(f"CLICKWAKE_{name}", str(value))
    command = ["evaluate", "satisfaction", "shop", "--json"]
    few = CliRunner().invoke(app, [*command, "--tenant", "another"])
    assert few.exit_code != 0 and "too few reviews" in few.output and "(none)" in few.output
    done = CliRunner().invoke(app, [*command, "--tenant", "shop", "--publish"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["models"]["clickwake"]["auc"]["value"] > 0.95
    registry = str(tmp_path / "home" / "models")
    published = serving.newest(registry, "en")
    assert published is not None
    said = serving.load(registry, published).read(["love great perfect soft dress", "awful returned cheap itchy dress"])
    assert said.recommended.tolist() == [True, False]
