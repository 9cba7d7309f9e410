"""`clickwake evaluate` as a person or a machine runs it: one JSON object of one form, and a page that stands alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from producers.datasets import taobao
from training import evaluate_recommend, evaluations, report
from training.texts import Texts

FROM_S = taobao.WINDOW_S[0]
DAYS = 9


@pytest.fixture
def walkers(tmp_path: Path) -> Path:
    """80 users who walk round a ring of 25 items, three steps a day."""
    rng = np.random.default_rng(4)
    rows = [",".join(taobao.HEADER)]
    for user, first in enumerate(rng.integers(0, 25, 80)):
        for step in range(3 * DAYS - 1):
            at = FROM_S + step * 28_800 + int(rng.integers(0, 20_000))
            rows.append(f"{user},{(first + step) % 25},c,pv,{at}")
    path = tmp_path / "walkers.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLICKWAKE_MODELS__REGISTRY", str(tmp_path / "registry"))
    monkeypatch.setenv("CLICKWAKE_TRAINING__BUDGET_S", "8")
    monkeypatch.setattr(evaluate_recommend, "MOMENTS_MAX", 60)
    nothing = Texts("none", {}, np.zeros((0, 8), dtype=np.float32))  # the set has no texts: no need to export an encoder
    monkeypatch.setattr(evaluate_recommend, "encode", lambda settings, items, say: nothing)


def test_recommend_prints_one_object_and_writes_a_page(
    walkers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"seeds": 2.0, "panel": 0.0, "ablations": 0.0, "freshness": 0.0}
    evaluations.main("recommend", "taobao", walkers, None, True, tmp_path / "report", options)
    found = json.loads(capsys.readouterr().out)
    assert {"task", "dataset", "split", "n", "models", "served"} <= found.keys()
    assert (found["task"], found["dataset"], found["served"]) == ("recommend", "taobao", "clickwake")
    assert found["n"] > 50 and "clickwake, seed 0" not in found["models"]
    for measures in found["models"].values():
        assert all(value.keys() == {"value", "low", "high"} for value in measures.values())
    ours = found["models"]["clickwake"]
    assert ours["ndcg@10"]["value"] > 0.7  # what comes next is certain; of 25 items chance finds .2
    assert ours["successive.ndcg@10"]["low"] > 0.6 and 0 < ours["coverage@10"]["value"] <= 1
    page = (tmp_path / "report" / "index.html").read_text()
    assert "data:image/png;base64," in page and "http" not in page
    assert json.loads((tmp_path / "report" / "comparison.json").read_text()) == found


def test_a_split_after_which_nobody_comes_back_is_said(walkers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from datetime import datetime

    with pytest.raises(SystemExit):
        evaluations.main("recommend", "taobao", walkers, datetime(2017, 12, 30), False, None, {"panel": 0.0})
    assert "came back" in capsys.readouterr().err


def test_every_evaluation_has_a_heading_on_its_page() -> None:
    assert set(report.WHOLE) == set(evaluations.TASKS)
