"""What every evaluation gives: named models, named measures, each with an interval, and how far the served one is ahead.

A measure of a sub-task carries its name before a dot: `new.recall@20`. Intervals are 95% bootstraps over the examples
(users, reviews …), 1,000 draws, the same draws for every model, so that differences are paired. A win is a difference
whose interval excludes 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
from rich.table import Table

from training.evaluation.metrics import BOOTSTRAP_ROUNDS, FloatArray, Interval, bootstrap, interval

Measures = dict[str, Interval]  # measure → value
Statistic = Callable[[FloatArray, FloatArray], float]  # (predictions (U,), truth (U,)) → a measure of the whole sample
NEUTRAL = ("tail_shown@10", "tail_wanted", "coverage")  # described, not better or worse
NEUTRAL_TASKS = ("exposure-",)
LESS_IS_BETTER = ("brier", "ece", "mae", "stars_mae", "log_loss", "rmse", "rmse_expected", "wrong", "alike@10")


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One evaluation; what `--json` prints."""

    task: str  # one of evaluations.TASKS
    dataset: str
    split: str  # where the past ends: a time, or in words how the examples were split
    n: int  # examples asked: users, reviews …
    models: dict[str, Measures]
    served: str  # the model that workers run, measured through its ONNX files
    ahead: dict[str, Measures] = {}  # model → the served one minus this one, paired
    settings: dict[str, float | str] = {}  # what the figures depend on besides: seeds, horizon, weights


def iso(ts_ms: float) -> str:
    """A split as it is printed.

    >>> iso(1_312_156_800_000)
    '2011-08-01T00:00:00Z'
    """
    return f"{datetime.fromtimestamp(ts_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"


def means(values: Mapping[str, Mapping[str, FloatArray]], served: str) -> tuple[dict[str, Measures], dict[str, Measures]]:
    """(models, ahead) from each model's value of each example, model → measure → (U,); examples in the same order."""
    models = {name: {measure: bootstrap(each) for measure, each in one.items()} for name, one in values.items()}
    own = values[served]
    ahead = {
        name: {measure: bootstrap(own[measure] - each) for measure, each in one.items() if measure in own}
        for name, one in values.items() if name != served
    }  # fmt: skip
    return models, ahead


def statistics(
    predictions: Mapping[str, FloatArray], truth: FloatArray, measures: Mapping[str, Statistic],
    served: str, seed: int = 0, only: Mapping[str, set[str]] | None = None,
) -> tuple[dict[str, Measures], dict[str, Measures]]:  # fmt: skip
    """(models, ahead) for measures of a whole sample, such as AUC: predictions (U,) a model, truth (U,).

    `only` restricts a model to some measures: a score that is no probability has no Brier.
    """
    rng = np.random.default_rng(seed)
    drawn: dict[tuple[str, str], list[float]] = {}
    wanted = [(name, measure) for name in predictions for measure in measures if measure in (only or {}).get(name, measures)]
    for _ in range(BOOTSTRAP_ROUNDS):
        at = rng.integers(0, len(truth), len(truth))
        y = truth[at]
        for name, measure in wanted:
            drawn.setdefault((name, measure), []).append(measures[measure](predictions[name][at], y))
    models: dict[str, Measures] = {name: {} for name in predictions}
    ahead: dict[str, Measures] = {name: {} for name in predictions if name != served}
    point = {(name, measure): measures[measure](predictions[name], truth) for name, measure in wanted}
    for name, measure in wanted:
        models[name][measure] = interval(point[name, measure], np.array(drawn[name, measure]))
        if name != served and (served, measure) in point:
            difference = np.array(drawn[served, measure]) - np.array(drawn[name, measure])
            ahead[name][measure] = interval(point[served, measure] - point[name, measure], difference)
    return models, ahead


def under(task: str, measures: dict[str, Measures]) -> dict[str, Measures]:
    """The same with the sub-task's name before each measure."""
    return {name: {f"{task}.{measure}": value for measure, value in one.items()} for name, one in measures.items()}


def merged(*parts: dict[str, Measures]) -> dict[str, Measures]:
    """Measures of the same models from several sub-tasks in one."""
    whole: dict[str, Measures] = {}
    for part in parts:
        for name, one in part.items():
            whole.setdefault(name, {}).update(one)
    return whole


def groups(comparison: Comparison) -> dict[str, list[str]]:
    """Sub-task → its measures, in order; "" for those of the task itself."""
    found: dict[str, list[str]] = {}
    for one in comparison.models.values():
        for measure in one:
            group = measure.rpartition(".")[0]
            known = found.setdefault(group, [])
            if measure not in known:
                known.append(measure)
    return found


def cell(value: Interval | None, signed: bool = False) -> str:
    """
    >>> cell(Interval(0.25, 0.2, 0.3)), cell(None)
    ('0.2500 (0.2000 … 0.3000)', '–')
    """
    if value is None or not np.isfinite(value.value):
        return "–"
    form = "+.4f" if signed else ".4f"
    return f"{value.value:{form}} ({value.low:{form}} … {value.high:{form}})"


def verdict(measure: str, ahead: Interval | None) -> str:
    """What a paired difference says of the served model: better, worse, or level.

    >>> verdict("brier", Interval(-0.01, -0.02, -0.005)), verdict("auc", Interval(0.01, -0.01, 0.03))
    ('better', 'level')
    """
    task, _, name = measure.rpartition(".")
    if ahead is None or name in NEUTRAL or task.startswith(NEUTRAL_TASKS):
        return ""
    low, high = (-ahead.high, -ahead.low) if name in LESS_IS_BETTER else (ahead.low, ahead.high)
    return "better" if low > 0 else "worse" if high < 0 else "level"


def tables(comparison: Comparison) -> list[Table]:
    """One table a sub-task for the terminal: each measure, and after it whether the served model is better than that."""
    shown = []
    for group, measures in groups(comparison).items():
        title = f"{comparison.task} on {comparison.dataset}, split {comparison.split}" + (f": {group}" if group else "")
        table = Table("model", *(name.rpartition(".")[2] for name in measures), title=title)
        for name, values in comparison.models.items():
            if not any(measure in values for measure in measures):
                continue
            against = comparison.ahead.get(name, {})
            cells = (f"{_short(values.get(one))} {mark(one, against.get(one))}".strip() for one in measures)
            table.add_row(f"[bold]{name}[/bold]" if name == comparison.served else name, *cells)
        shown.append(table)
    return shown


def _short(value: Interval | None) -> str:
    return "–" if value is None or not np.isfinite(value.value) else f"{value.value:.4f} ±{(value.high - value.low) / 2:.3f}"


def mark(measure: str, ahead: Interval | None) -> str:
    """The verdict as a sign."""
    return {"better": "▲", "worse": "▼", "level": "=", "": ""}[verdict(measure, ahead)]


def rounded(comparison: Comparison, digits: int = 6) -> Any:
    """Plain values for JSON; NaN becomes null."""

    def plain(one: Measures) -> dict[str, dict[str, float | None]]:
        return {name: {side: _finite(getattr(value, side), digits) for side in ("value", "low", "high")}
                for name, value in one.items()}

    value = msgspec.structs.asdict(comparison)
    value["models"] = {name: plain(one) for name, one in comparison.models.items()}
    value["ahead"] = {name: plain(one) for name, one in comparison.ahead.items()}
    return value


def _finite(value: float, digits: int) -> float | None:
    return round(float(value), digits) if np.isfinite(value) else None

