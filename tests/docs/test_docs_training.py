"""Every `clickwake train` and `clickwake evaluate` of the README and of docs/, as it stands there, through the front door,
in a folder where small files with a planted truth have the names of the public data sets. What would take minutes all the
same is made smaller by `SMALLER`; those that are not run are in `NOT_RUN`, with the reason."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from clickwake.cli import app
from stream.adapters.models import model_store
from tests.support import public_sets
from tests.support.guides import SHELL, blocks, commands, guides, words
from tests.support.reviews import tiny_bert
from training.churn import alerting
from training.clusters import evaluate_clusters
from training.evaluation import comparison, metrics
from training.recommend import evaluate_recommend

FILES: dict[str, Callable[[Path], Path]] = {
    "transactions.csv.gz": public_sets.shop, "purchases.csv.gz": public_sets.purchases,
    "users_interactions.csv.gz": public_sets.readers, "email_test.csv.gz": public_sets.mailing,
}  # fmt: skip
# commands that pages speak of, but do not show in a block
SPOKEN_OF = ("clickwake evaluate explanations --events shop.jsonl --items shop.items.jsonl --users 60",
             "clickwake evaluate strategies --worlds 3 --shoppers 500")  # fmt: skip
NOT_RUN = {
    r"clickwake train( +#|$)": "from ClickHouse: tests/integration/test_training_loop.py",
    r"--every": "goes on until it is stopped: tests/integration/test_training_loop.py",
    r"evaluate satisfaction": "tests/unit/test_satisfaction_evaluation.py runs it so",
    r"evaluate promotions shop": "from ClickHouse: tests/integration/test_offer_views.py",
    r"--ablations --freshness": "twenty trainings",
}
# how a command begins → what is said after it, so that it takes seconds; the last word counts
SMALLER = {
    "evaluate repurchase simulated": ["--shoppers", "60", "--days", "240"],
    "evaluate recommend": ["--seeds", "2", "--no-panel"], "evaluate text": ["--seeds", "1"],
    "evaluate clusters": ["--shoppers", "60"], "evaluate explanations": ["--users", "10"],
    "evaluate strategies": ["--worlds", "1", "--shoppers", "80", "--days", "60"],
}  # fmt: skip
ROUNDS = 50  # of each bootstrap
pytestmark = pytest.mark.timeout(600)  # `evaluate text` learns and exports six times


def shown() -> list[str]:
    """Each command once, without its comment."""
    found = [one for path in guides() for block in blocks(path, *SHELL) for one in commands(block)]
    wanted = [one for one in (*found, *SPOKEN_OF) if re.search(r"clickwake (train|evaluate)\b", one)]
    assert {why for why in NOT_RUN if not any(re.search(why, one) for one in wanted)} == set(), "these are no longer needed"
    return sorted({" ".join(words(one) or ()) for one in wanted if not any(re.search(why, one) for why in NOT_RUN)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages name, and a home."""
    folder = tmp_path_factory.mktemp("sets")
    for name, make in FILES.items():
        make(folder / name)
    (folder / "bert").mkdir()
    tiny_bert(folder / "bert")
    world = ["--shoppers", "60", "--days", "60", "--items", "200"]
    said = CliRunner().invoke(app, ["simulate", "--to", str(folder / "shop.jsonl"), *world])
    assert said.exit_code == 0, said.output
    return folder


@pytest.fixture(autouse=True)
def small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for name, value in {"HOME": ".clickwake", "TRAINING__BUDGET_S": "3", "TRAINING__TEXT_MODEL": "bert"}.items():
        monkeypatch.setenv(f"CLICKWAKE_{name}", value)
    for module in (metrics, comparison, alerting):
        monkeypatch.setattr(module, "BOOTSTRAP_ROUNDS", ROUNDS)
    monkeypatch.setattr(evaluate_recommend, "MOMENTS_MAX", 60)
    monkeypatch.setattr(evaluate_clusters, "DRAWS", 5)
    monkeypatch.setattr(evaluate_clusters, "STAYING_USERS_MAX", 20)


@pytest.mark.parametrize("command", shown())
def test_it_runs_as_it_is_shown(command: str, folder: Path) -> None:
    arguments = command.split()[1:]
    smaller = (more for begins, more in SMALLER.items() if " ".join(arguments).startswith(begins))
    done = CliRunner().invoke(app, [*arguments, *next(smaller, []), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    if arguments[0] == "train":
        trained(found, folder)
        return
    assert (found["task"], found["n"] > 0) == (arguments[1], True)
    assert found["served"] in found["models"] and found["served"] not in found["ahead"]
    assert set(found["ahead"]) <= set(found["models"])
    for measures in (*found["models"].values(), *found["ahead"].values()):
        assert all(one.keys() == {"value", "low", "high"} for one in measures.values())
    if "--split" in arguments:
        assert found["split"] == f"{arguments[arguments.index('--split') + 1]}T00:00:00Z"
    JUDGED[arguments[1]](found, folder)
    if "--report" in arguments:
        assert json.loads((folder / "report" / "comparison.json").read_text()) == found
        page = (folder / "report" / "index.html").read_text()
        assert "data:image/png;base64," in page and "http" not in page, "it stands alone"


def trained(found: dict[str, Any], folder: Path) -> None:
    manifest = found["manifest"]
    assert found["released"] is None and re.fullmatch(r"[0-9a-f]{64}", found["manifest_sha256"])
    assert {"user_encoder.onnx", "churn.onnx", "golden.npz", "report/index.html"} <= manifest["files"].keys()
    assert manifest["data_from"].startswith("2010-12-0") and manifest["metrics"]["clickwake_all_ndcg_at_10"] > 0.5
    known = model_store.versions(str(folder / ".clickwake" / "models"))
    assert [one.model_version for one in known] == [manifest["model_version"]]


def ring_is_found(found: dict[str, Any], folder: Path) -> None:
    ours = found["models"]["clickwake"]
    assert ours["ndcg@10"]["low"] > 0.6 and ours["successive.ndcg@10"]["low"] > 0.6, "of twelve items chance finds .4"
    assert ours["ndcg@10"]["value"] > 0.7 and found["n"] > 30, "what comes next is certain"
    assert 0 < ours["coverage@10"]["value"] <= 1 and "clickwake, seed 0" not in found["models"]


def leavers_are_found(found: dict[str, Any], folder: Path) -> None:
    ours = found["models"]["clickwake"]
    assert ours["auc"]["low"] > 0.6 and {"brier", "ece", "30d.auc", "60d.auc"} <= ours.keys()
    assert {"recency alone", "logistic log-RFM, learned one horizon earlier"} <= found["ahead"].keys()
    assert 0 < found["settings"]["seen_away"] < 1


def periods_are_found(found: dict[str, Any], folder: Path) -> None:
    ours = found["models"]["clickwake"]
    assert ours["30d.auc"]["low"] > 0.6 and {"60d.auc", "90d.auc"} <= ours.keys()
    for task in ("cross-sell", "reminders", "due"):
        assert any(name.startswith(task) for name in ours), task


def encoders_are_compared(found: dict[str, Any], folder: Path) -> None:
    assert set(found["models"]) == {"as it is", "in eight bits", "adapted to the catalog"}
    assert all("worth having: NDCG@10" in found["settings"][name] for name in found["ahead"])
    assert (folder / "adapted" / "model.safetensors").exists() and (folder / "adapted" / "tokenizer.json").exists()


def clusters_are_judged(found: dict[str, Any], folder: Path) -> None:
    ours = found["models"]["clickwake"]
    assert {"department.ari", "style.ari", "stability.ari", "staying.share"} <= ours.keys()
    assert found["settings"]["k of clickwake"] >= 2 and "k-means on categories, TF-IDF" in found["models"]


def reasons_are_judged(found: dict[str, Any], folder: Path) -> None:
    ours = found["models"]["clickwake"]
    assert {"hurts_more", "falls_further", "is_the_first", "score_lost"} <= ours.keys()
    assert ours["hurts_more"]["low"] > 0.5 and 0 < found["settings"]["users"] <= 10


def effects_are_judged(found: dict[str, Any], folder: Path) -> None:
    ours = found["models"]["clickwake"]
    assert {"rmse", "rmse_expected", "coverage", "effects.mae", "effects.found", "effects.wrong"} <= ours.keys()
    assert found["settings"] == {"worlds": 1.0, "shoppers": 80.0, "days": 60.0, "seed": 7.0}


def the_moved_are_found(found: dict[str, Any], folder: Path) -> None:
    assert found["models"]["clickwake"]["qini"]["low"] > 0 and found["ahead"]["by lot"]["qini"]["low"] > 0


# evaluation → what else holds of it
JUDGED: dict[str, Callable[[dict[str, Any], Path], None]] = {
    "recommend": ring_is_found, "churn": leavers_are_found, "repurchase": periods_are_found, "text": encoders_are_compared,
    "clusters": clusters_are_judged, "explanations": reasons_are_judged, "strategies": effects_are_judged,
    "promotions": the_moved_are_found,
}  # fmt: skip
