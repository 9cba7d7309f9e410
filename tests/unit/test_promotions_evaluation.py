"""`clickwake evaluate promotions`, through the front door: on the public logs, of which docs/results.md says what comes out,
and on small ones of the same form, whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from clickwake.cli import app
from tests.support import public_sets
from tests.support.needs import needs_file
from tests.support.public_sets import GAIN, TARGET
from training.evaluation import comparison
from training.evaluation.metrics import Interval
from training.promotions import evaluate_promotions
from training.promotions.off_policy import ESTIMATORS, decision

TRUTH, SERVED = evaluate_promotions.TRUTH, evaluate_promotions.SERVED
ROUNDS = 300  # of the bootstrap over customers: the command draws 1,000, which takes three times as long
OTHERS = ("every item alike", "the item clicked most")


def asked(*arguments: str | Path) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["evaluate", "promotions", *map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["task"] == "promotions" and found["dataset"] == arguments[0]
    return found


def of(model: dict[str, Any], measure: str) -> Interval:
    return Interval(**model[measure])


def covers(one: Interval, value: float) -> bool:
    return one.low <= value <= one.high


def assert_only_what_intervals_say_is_concluded(found: dict[str, Any]) -> None:
    for name in OTHERS:
        assert found["settings"][f"{SERVED} against {name}"] == decision(of(found["ahead"][name], "learned.click_rate"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "BOOTSTRAP_ROUNDS", ROUNDS)
    monkeypatch.setattr(evaluate_promotions, "BOOTSTRAP_ROUNDS", ROUNDS)


# --- which offer -----------------------------------------------------------------------------------------------------------


def test_open_bandit_each_interval_covers_what_the_target_earned_by_itself(data_sets: Path) -> None:
    found = asked("open-bandit", needs_file(data_sets / "open-bandit" / "random" / "men" / "men.csv.gz").parents[2])
    models, truth = found["models"], of(found["models"][TRUTH], "target.click_rate")
    assert found["n"] == 10_000 and truth.value == pytest.approx(0.0069)
    for name in ESTIMATORS:
        said = of(models[name], "target.click_rate")
        assert covers(said, truth.value), f"{name} misses {truth.value}"
        assert said.value == pytest.approx(0.0057, abs=1e-4) and said.low < 0.0034 < 0.0085 < said.high
    assert found["settings"]["effective_impressions"] == pytest.approx(2_869, abs=1)
    assert_only_what_intervals_say_is_concluded(found)
    assert found["settings"][f"{SERVED} against every item alike"] == "worse", "23 clicks are not enough: a published loss"
    assert of(models[SERVED], "learned.click_rate").value == pytest.approx(0.0033, abs=1e-4)
    assert all(found["settings"][f"effective_impressions, {name}"] > 0 for name in (SERVED, *OTHERS))


@pytest.mark.parametrize(("rates", "concluded"), [
    ((0.2, 0.2, 0.2, 0.2), "no decision"), ((0.1, 0.1, 0.4, 0.1), "better"),
], ids=["items alike", "one is better"])  # fmt: skip
def test_a_planted_log(rates: tuple[float, ...], concluded: str, tmp_path: Path) -> None:
    truth = public_sets.impressions(tmp_path, rates)
    found = asked("open-bandit", tmp_path)
    for name in (TRUTH, *ESTIMATORS):
        assert covers(of(found["models"][name], "target.click_rate"), truth), name
    worth = 1 / (len(rates) * np.square(TARGET).sum())  # (Σw)² / Σw² of a log by lot, a decision
    assert found["settings"]["effective_impressions"] == pytest.approx(found["n"] * worth, rel=0.05)
    assert_only_what_intervals_say_is_concluded(found)
    assert found["settings"][f"{SERVED} against every item alike"] == concluded


# --- whom to mail ----------------------------------------------------------------------------------------------------------


def test_hillstrom_qini_excludes_0_and_is_ahead_of_a_lottery(data_sets: Path, quick: None) -> None:
    found = asked("hillstrom", needs_file(data_sets / "hillstrom" / "email_test.csv.gz"))
    models, ahead = found["models"], found["ahead"]
    assert found["n"] == 21_222 and found["served"] == SERVED
    values = {SERVED: 3.6, "response": 2.7, "response, logistic, all": 1.8, "by lot": 0.4}
    assert {name: one["qini"]["value"] for name, one in models.items()} == pytest.approx(values, abs=0.06)
    assert of(models[SERVED], "qini").low > 0 and covers(of(models["by lot"], "qini"), 0)
    assert of(ahead["by lot"], "qini").low > 0 and of(ahead["response, logistic, all"], "qini").low > 0
    assert covers(of(ahead["response"], "qini"), 0), "level with the response model of the mailed: published as such"
    gained = {share: of(models[SERVED], f"gain_in_best_{share}") for share in ("10%", "30%")}
    assert {share: one.value for share, one in gained.items()} == pytest.approx({"10%": 0.072, "30%": 0.073}, abs=6e-4)
    assert all(one.low > 0 for one in gained.values())


def test_a_planted_test_finds_whom_the_mail_moves(tmp_path: Path, quick: None) -> None:
    """Those who visit anyway are found by the response models; who visits because of the mail is somebody else."""
    found = asked("hillstrom", public_sets.mailing(tmp_path / "email_test.csv.gz"), "--report", tmp_path / "page")
    assert 5_500 < found["n"] < 6_500, "the third arm is left out"
    assert of(found["models"][SERVED], "qini").low > 0 and covers(of(found["models"]["by lot"], "qini"), 0)
    for name in ("by lot", "response", "response, logistic, all"):
        assert of(found["ahead"][name], "qini").low > 0, name
    assert covers(of(found["models"][SERVED], "gain_in_best_30%"), GAIN)
    page = (tmp_path / "page" / "index.html").read_text()
    assert "Visits gained per 1,000 customers" in page and "data:image/png;base64," in page


@pytest.mark.parametrize(("dataset", "said"), [
    ("open-bandit", "men.csv.gz"), ("hillstrom", "absent.csv"), ("lottery", "known are open-bandit, hillstrom and shop"),
])  # fmt: skip
def test_what_cannot_be_asked_is_said(dataset: str, said: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["evaluate", "promotions", dataset, str(tmp_path / "absent.csv")])
    assert done.exit_code == 1 and said in done.output.replace("\n", "")
