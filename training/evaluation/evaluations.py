"""What `clickwake evaluate …` runs and shows: each task answers with a `Comparison` and the pictures that explain it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from stream import settings as settings_module
from stream.settings import Settings
from training import checkpoint
from training.evaluation import comparison as comparisons
from training.evaluation import report
from training.evaluation.comparison import Comparison
from training.evaluation.report import Draw
from training.history.snapshot import History, from_dataset
from training.printing import EXPECTED, console, fail, print_json, to_json

TASKS = {  # task → module with `run(request) -> Evaluated`
    "recommend": "training.recommend.evaluate_recommend",
    "churn": "training.churn.evaluate_churn",
    "repurchase": "training.repurchase.evaluate_repurchase",
    "satisfaction": "training.opinions.evaluate_satisfaction",
    "text": "training.text.evaluate_text",
    "promotions": "training.promotions.evaluate_promotions",
    "clusters": "training.clusters.evaluate_clusters",
    "explanations": "training.recommend.evaluate_explanations",
    "strategies": "training.opinions.evaluate_strategies",
}


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    settings: Settings
    dataset: str
    path: Path
    split: datetime | None  # UTC; None: the task's default
    say: Callable[[str], None]
    options: dict[str, float] = field(default_factory=dict)  # of the task: horizon_days, seeds …
    output: Path | None = None  # a folder for what the task makes beside figures
    source: Callable[[Settings], Any] | None = None  # of a history, or of reviews, that is no data set

    def history(self) -> History:
        """The history that was named. Raises `EmptyHistory`, DatasetError, ConnectionError."""
        history: History = self.source(self.settings) if self.source else from_dataset(self.dataset, self.path)
        return history

    @property
    def split_ms(self) -> int | None:
        return None if self.split is None else int(self.split.timestamp() * 1000)


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found, and pictures for its page: title → how to draw it on a matplotlib figure."""

    comparison: Comparison
    figures: dict[str, Draw] = field(default_factory=dict)


def main(
    task: str, dataset: str, path: Path, split: datetime | None, as_json: bool, report_dir: Path | None,
    options: dict[str, float] | None = None, output: Path | None = None,
    source: Callable[[Settings], Any] | None = None,
) -> None:  # fmt: skip
    """Run one task, print it, and write its page when a folder is named."""
    run: Callable[[Request], Evaluated] = importlib.import_module(TASKS[task]).run
    settings = settings_module.load()
    at = None if split is None else split.replace(tzinfo=UTC)
    try:
        found = run(Request(settings, dataset, path, at, console.print, options or {}, output, source))
    except EXPECTED as error:
        fail(error)
    checkpoint.clear(settings.training_dir)
    if report_dir is not None:
        report_dir.mkdir(parents=True, exist_ok=True)
        (report_dir / "index.html").write_text(report.comparison_page(found.comparison, found.figures))
        (report_dir / "comparison.json").write_text(to_json(comparisons.rounded(found.comparison)))
        console.print(f"report: {report_dir / 'index.html'}")
    if as_json:
        print_json(comparisons.rounded(found.comparison))
        return
    for table in comparisons.tables(found.comparison):
        Console().print(table)
    Console().print("▲ the served model is better than this one (95% interval of the paired difference), ▼ worse, = level")
