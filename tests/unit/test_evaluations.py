"""`clickwake evaluate` where there is nothing to judge by; what it finds and prints: tests/docs/test_docs_training.py."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from producers.datasets import taobao
from training.evaluation import evaluations, report
from training.recommend import evaluate_recommend
from training.text.texts import Texts

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


def test_a_split_after_which_nobody_comes_back_is_said_before_anything_is_learned(
    walkers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLICKWAKE_MODELS__REGISTRY", str(tmp_path / "registry"))
    nothing = Texts("none", {}, np.zeros((0, 8), dtype=np.float32))  # the set has no texts: no need to export an encoder
    monkeypatch.setattr(evaluate_recommend, "encode", lambda settings, items, say: nothing)
    with pytest.raises(SystemExit):
        evaluations.main("recommend", "taobao", walkers, datetime(2017, 12, 30), False, None, {"panel": 0.0})
    said = capsys.readouterr().err
    assert "nobody known before 2017-12-30" in said and "learning" not in said


def test_every_evaluation_has_a_heading_on_its_page() -> None:
    assert set(report.WHOLE) == set(evaluations.TASKS)
