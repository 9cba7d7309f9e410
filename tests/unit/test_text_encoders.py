"""Text encoders beside the plain one: in eight bits, and adapted to what is touched together."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from clickwake.cli import app
from stream.adapters.models.onnx import TextEncoder
from stream.settings import Models, Settings, Training
from tests.support.fakes import event
from tests.support.reviews import BAD, GOOD, PLAIN, tiny_bert
from training import schedule
from training.evaluation.metrics import Interval
from training.history.snapshot import DAY_MS
from training.panel.method import Past
from training.release import release
from training.text import text_adaptation, text_encoder
from training.text.evaluate_text import ADAPTED, INT8, verdicts
from training.text.text_adaptation import Recipe

QUICK = Recipe(masked_epochs=4.0, masked_batch=16, masked_rate=1e-3, pair_batch=16, pair_rate=2e-3)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"))


def past(rows: list[tuple[int, int, int]]) -> Past:
    users, items, ts_ms = np.array(rows, dtype=np.int64).T
    return Past(users, items, ts_ms, np.zeros(len(rows), dtype=np.int64), int(items.max()) + 1)


def test_pairs_are_two_items_of_one_user_within_a_day() -> None:
    rows = [(user, item, user * 7 + item * (DAY_MS // 4)) for user in range(3) for item in range(12)]
    rows += [(3, 5, 0), (3, 5, 1), (4, 6, 0), (4, 7, 2 * DAY_MS)]  # twice the same; two days apart
    pairs = text_adaptation.pairs_of(past(rows), 500, np.random.default_rng(0))
    assert len(pairs) > 100 and pairs.shape[1] == 2
    apart = pairs[:, 1] - pairs[:, 0]
    assert apart.min() == 1 and apart.max() == 4  # a quarter of a day each


def test_no_pairs_where_nobody_touches_two_items() -> None:
    alone = past([(user, user, 0) for user in range(5)])
    assert len(text_adaptation.pairs_of(alone, 100, np.random.default_rng(0))) == 0


def test_what_goes_together_reads_alike_afterwards(bert: Path, tmp_path: Path) -> None:
    words = [*GOOD["en"], *BAD["en"], *PLAIN["en"]]
    texts = [f"{one} {other}" for one in words[:8] for other in words[8:14]]
    kind = np.array([at % 2 for at in range(len(texts))])  # by the second word
    rng = np.random.default_rng(0)
    pairs = np.array([rng.choice(np.flatnonzero(kind == at % 2), 2, replace=False) for at in range(2_000)])

    def contrast(folder: Path) -> float:
        """How much nearer texts of one kind are to each other than to the others."""
        vectors = TextEncoder(*text_encoder.graphs(folder, int8=False), threads=1).encode(texts)
        cosines = vectors @ vectors.T
        same = kind[:, None] == kind[None, :]
        return float(cosines[same & ~np.eye(len(texts), dtype=bool)].mean() - cosines[~same].mean())

    said: list[str] = []
    adapted = text_adaptation.adapt(bert, texts, pairs, seed=1, budget_s=120.0, recipe=QUICK, say=said.append)
    text_adaptation.save(adapted, bert, tmp_path / "adapted")
    assert contrast(tmp_path / "adapted") > contrast(bert) + 0.3
    assert [one.split(":")[0] for one in said] == ["masked words", "texts that go together"]


def test_eight_bits_are_another_space_with_nearly_the_same_vectors(bert: Path, tmp_path: Path) -> None:
    settings = Settings(models=Models(registry=str(tmp_path)), training=Training(text_model=bert))
    coarse = settings.model_copy(update={"training": settings.training.model_copy(update={"text_int8": True})})
    spaces = [text_encoder.export(one) for one in (settings, coarse)]
    assert spaces[0] != spaces[1]
    graphs = [(tmp_path / "text" / space / "model.onnx").read_bytes() for space in spaces]
    assert len(graphs[1]) < len(graphs[0])
    tokenizer = (bert / "tokenizer.json").read_bytes()
    exact, small = (TextEncoder(graph, tokenizer, threads=1).encode(["red mug", "ceramic x"]) for graph in graphs)
    assert (exact * small).sum(axis=1).min() > 0.95
    assert not np.array_equal(exact, small)


@pytest.mark.parametrize(("there", "why"), [((), "has no tokenizer.json"), (("tokenizer.json",), "has no *.safetensors")])
def test_a_folder_that_is_no_bert_is_said(
    there: tuple[str, ...], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, events = tmp_path / "bert", tmp_path / "events.jsonl"
    folder.mkdir()
    for name in there:
        (folder / name).write_text("{}")
    events.write_bytes(msgspec.json.encode(event()) + b"\n")
    monkeypatch.setenv("CLICKWAKE_HOME", str(tmp_path))
    monkeypatch.setenv("CLICKWAKE_TRAINING__TEXT_MODEL", str(folder))
    done = CliRunner().invoke(app, ["train", "--events", str(events), "--no-release"])
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.exception
    assert why in " ".join(done.output.split())


def test_the_schedule_goes_on_with_a_folder_that_is_no_bert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=tmp_path, training=Training(text_model=tmp_path))
    stop = threading.Event()

    def tried(settings: Settings, tenant: str) -> None:
        stop.set()
        text_encoder.export(settings)

    monkeypatch.setattr(schedule, "run_once", tried)
    monkeypatch.setattr(release, "current", lambda settings: None)
    with capture_logs() as said:
        schedule.run(settings, 60.0, "t", stop)
    assert [one["event"] for one in said] == ["text encoder not exported", "no training this time"]


def test_what_is_worth_having() -> None:
    level, worse, better = Interval(0.0, -0.01, 0.01), Interval(0.005, 0.001, 0.009), Interval(-0.01, -0.02, -0.001)
    assert verdicts(0.4, {INT8: level, ADAPTED: better}, 1.4)[INT8].startswith("worth having")
    assert verdicts(0.4, {INT8: level, ADAPTED: better}, 1.4)[ADAPTED].startswith("worth having")
    assert verdicts(0.4, {INT8: level, ADAPTED: level}, 1.2)[INT8].startswith("not worth having")  # too slow
    assert verdicts(0.4, {INT8: worse, ADAPTED: level}, 2.0)[INT8].startswith("not worth having")  # 1.25% lost
    assert verdicts(0.4, {INT8: level, ADAPTED: level}, 2.0)[ADAPTED].startswith("not worth having")  # not surely
