"""`clickwake evaluate satisfaction`: reviews with planted answers, from the file to the comparison and its page."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from clickwake.cli import app
from stream.adapters.models import satisfaction as serving
from tests.support.reviews import planted, tiny_bert
from training.opinions import satisfaction
from training.opinions.satisfaction_net import Recipe


def test_womens_clothing_by_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some, path = planted(700, seed=0), tmp_path / "reviews.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["Clothing ID", "Title", "Review Text", "Rating", "Recommended IND"])
        for text, stars, flag, item in zip(some.texts, some.stars, some.recommended, some.groups, strict=True):
            rows.writerow([item, "", text, stars, int(flag)])
    (tmp_path / "bert").mkdir()
    monkeypatch.setattr(satisfaction, "RECIPE", Recipe(epochs=8, rate=2e-3, layer_decay=1.0, head_rate=3e-3))
    monkeypatch.setenv("CLICKWAKE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CLICKWAKE_TRAINING__TEXT_MODEL", str(tiny_bert(tmp_path / "bert")))
    done = CliRunner().invoke(app, ["evaluate", "satisfaction", "womens-clothing", str(path), "--json", "--publish",
                                    "--report", str(tmp_path / "page")])  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["task"] == "satisfaction" and found["served"] == "clickwake" and "hash of the item" in found["split"]
    assert len(found["models"]) == 3 and found["settings"]["encoder"] == "bert"
    for measures in found["models"].values():
        assert set(measures) == {"auc", "f1_minority", "accuracy", "brier", "ece", "stars_mae"}
        assert measures["auc"]["low"] <= measures["auc"]["value"] <= measures["auc"]["high"]
    assert found["models"]["clickwake"]["auc"]["value"] > 0.95
    assert "Fine-tuning" in (tmp_path / "page" / "index.html").read_text()
    registry = str(tmp_path / "home" / "models")
    published = serving.newest(registry, "en")
    assert published is not None
    said = serving.load(registry, published).read(["love great perfect soft dress", "awful returned cheap itchy dress"])
    assert said.recommended.tolist() == [True, False]


def test_chinese_reviews_with_one_category_left_out_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some, path = planted(900, seed=0, language="zh"), tmp_path / "shopping.csv"
    lines = [f"{'书籍' if at % 3 else '水果'},{int(flag)},{text}{at}"
             for at, (text, flag) in enumerate(zip(some.texts, some.recommended, strict=True))]  # fmt: skip
    path.write_text("\n".join(["cat,label,review", *lines]), encoding="utf-8")
    monkeypatch.setenv("CLICKWAKE_HOME", str(tmp_path / "home"))
    done = CliRunner().invoke(app, ["evaluate", "satisfaction", "chinese-reviews", str(path), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["n"] == 900 and found["settings"]["encoder"].startswith("none")
    served = found["models"]["clickwake"]
    assert {"accuracy", "books.accuracy", "fruit.accuracy", "fruit.auc"} <= set(served)
    shares = np.array([600, 300]) / 900
    whole = shares @ [served["books.accuracy"]["value"], served["fruit.accuracy"]["value"]]
    assert served["accuracy"]["value"] == pytest.approx(whole, abs=1e-5) and whole > 0.9


@pytest.mark.parametrize(("arguments", "said"), [
    (["books", "x.csv"], "unknown reviews"), (["womens-clothing", "x.csv", "--split", "category"], "split by item"),
])  # fmt: skip
def test_what_cannot_be_asked_is_said(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["evaluate", "satisfaction", *arguments])
    assert done.exit_code == 2 and said in done.output.replace("\n", " ")
