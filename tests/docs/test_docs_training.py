"""Every `clickwake train` and `clickwake evaluate` of the README and of docs/, in a block or between backticks, as it stands
there, through the front door, in a folder where small files with a planted truth have the names of the public data sets.
What would take minutes all the same is made smaller by `SMALLER`; those that are not run are in `NOT_RUN`, with the
reason."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from clickwake.cli import app
from stream.adapters.models import model_store
from tests.support import public_sets
from tests.support.guides import SHELL, blocks, commands, guides, spoken, words
from tests.support.reviews import tiny_bert
from training.churn import alerting
from training.clusters import evaluate_clusters
from training.evaluation import comparison, metrics
from training.recommend import evaluate_recommend

FILES: dict[str, Callable[[Path], Path]] = {
    "transactions.csv.gz": public_sets.shop, "purchases.csv.gz": public_sets.purchases,
    "users_interactions.csv.gz": public_sets.readers, "email_test.csv.gz": public_sets.mailing,
    "user_behavior.csv.gz": public_sets.browsers,
}  # fmt: skip
STANDS_FOR = {"DATASET PATH": "online-retail transactions.csv.gz"}  # what is left to the reader → what it is here
NOT_RUN = {
    r"clickwake train( +#|$)": "from ClickHouse: tests/integration/test_training_loop.py",
    r"--every": "goes on until it is stopped: tests/integration/test_training_loop.py",
    r"evaluate satisfaction": "tests/unit/test_satisfaction_evaluation.py runs it so",
    r"evaluate promotions shop": "from ClickHouse: tests/integration/test_offer_views.py",
    r"evaluate promotions open-bandit": "tests/unit/test_promotions_evaluation.py runs it so",
    r"--ablations --freshness": "twenty trainings; each of both is run by itself",
    r"evaluate clusters (online-retail|DATASET)": "its planted customers are all alike; the same runs on the simulated shop",
    r"…": "short for what is shown whole elsewhere",
}
# how a command begins → options that it gets, so that it takes seconds; the first that fits counts
SMALLER = {
    r"evaluate repurchase simulated": {"--shoppers": "60", "--days": "240"},
    r"evaluate recommend .*--report": {"--seeds": "2", "--no-panel": ""},
    r"evaluate recommend": {"--seeds": "1", "--no-panel": ""}, r"evaluate text": {"--seeds": "1"},
    r"evaluate clusters": {"--shoppers": "60"}, r"evaluate explanations": {"--users": "10"},
    r"evaluate strategies": {"--worlds": "1", "--shoppers": "80", "--days": "60"},
}  # fmt: skip
# option → what is judged by it alone
ADDS = {
    "--ablations": {"clickwake, without text", "clickwake, pre-trained", "clickwake, live counts as of the split"},
    "--freshness": {"clickwake, 7 days old, live counts", "clickwake, 7 days old, counts as old as the model"},
    "--retrain": {"clickwake, alone"},
}
ROUNDS = 50  # of each bootstrap
pytestmark = pytest.mark.timeout(600)  # `evaluate text` learns and exports six times


def smaller(command: str) -> list[str]:
    """The words after `clickwake`, with the options of SMALLER in the place of those that are shown.

    >>> smaller("clickwake evaluate clusters --shoppers 400 --retrain")
    ['evaluate', 'clusters', '--retrain', '--shoppers', '60']
    """
    _, *said = command.split()
    more = next((more for begins, more in SMALLER.items() if re.match(begins, " ".join(said))), {})
    for option, value in more.items():
        if option in said:
            at = said.index(option)
            del said[at : at + 1 + bool(value)]
        said += [option, value] if value else [option]
    return said


def plain(found: Iterable[str]) -> set[str]:
    """Those of the commands that are run, without their comments and the variables set for them."""
    said = {" ".join(words(one) or ()) for one in found if not any(re.search(why, one) for why in NOT_RUN)}
    for what, meant in STANDS_FOR.items():
        said = {one.replace(what, meant) for one in said}
    return said


def does(command: str, other: str) -> bool:
    """Whether a command does what another one says, once both are made smaller: the other one is no more than its name, or
    has none but its options.

    >>> does("clickwake evaluate clusters --retrain", "clickwake evaluate clusters")
    True
    >>> does("clickwake evaluate clusters cdnow purchases.csv.gz --retrain", "clickwake evaluate clusters --retrain")
    False
    >>> does("clickwake evaluate text taobao a.csv --keep b", "clickwake evaluate text taobao a.csv --seeds 2")
    True
    """
    long, short = smaller(command), smaller(other)
    what = [list(itertools.takewhile(lambda word: not word.startswith("-"), one)) for one in (long, short)]
    named = f"{command} ".startswith(f"{other} ")
    return named or (what[0] == what[1] and set(short) <= set(long))


def shown() -> list[str]:
    """Each command once; those between backticks without what another one does."""
    ours = re.compile(r"clickwake (train|evaluate)\b")
    whole = [one for path in guides() for block in blocks(path, *SHELL) for one in commands(block) if ours.search(one)]
    between = [one.text for path in guides() for one in spoken(path) if ours.search(one.text)]
    wanted = [*whole, *between]
    assert {why for why in NOT_RUN if not any(re.search(why, one) for one in wanted)} == set(), "these are no longer needed"
    run = plain(whole)
    for one in sorted(plain(between), key=len, reverse=True):
        if not any(does(other, one) for other in run):
            run.add(one)
    return sorted(run)


def test_what_headings_say_is_run_too() -> None:
    """With the variables that are set for it, and over two lines."""
    run = shown()
    for what in ("taobao", *ADDS, "evaluate clusters --retrain"):
        assert any(what in one for one in run), what


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
    monkeypatch.setattr(evaluate_recommend, "FRESHNESS_DAYS", (7,))
    monkeypatch.setattr(evaluate_recommend, "LEARNED_AGAIN", ("without text", "pre-trained"))
    monkeypatch.setattr(evaluate_clusters, "DRAWS", 5)
    monkeypatch.setattr(evaluate_clusters, "STAYING_USERS_MAX", 20)


@pytest.mark.parametrize("command", shown())
def test_it_runs_as_it_is_shown(command: str, folder: Path) -> None:
    arguments = smaller(command)
    done = CliRunner().invoke(app, [*arguments, "--json"])
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
    for option, models in ADDS.items():
        assert option not in arguments or models <= set(found["models"])
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
    assert ours["ndcg@10"]["value"] > 0.7 and found["n"] > 25, "what comes next is certain"
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
    assert {"stability.ari", "staying.share"} <= ours.keys() and found["settings"]["k of clickwake"] >= 2
    assert "k-means on words, TF-IDF" in found["models"]
    if found["dataset"] == "simulated shop":
        assert {"department.ari", "style.ari"} <= ours.keys() and "k-means on categories, TF-IDF" in found["models"]


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
