"""One HTML page without outside parts: loss, comparison with intervals, calibration."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from schemas.release import Manifest
from training.churn.churn import ChurnFit
from training.evaluation import comparison as comparisons
from training.evaluation.comparison import Comparison
from training.evaluation.metrics import FloatArray, calibration_bins
from training.recommend.fit import Curve

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}"
    "table{border-collapse:collapse}td,th{padding:.25rem .75rem;border-bottom:1px solid #ddd;text-align:right}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}"
)
Draw = Callable[[Any], None]  # draws on a matplotlib figure
TITLES = {
    "new": "Only items new to the user", "long-tail": "Items outside the most touched fifth",
    "cold": "Items with fewer than five touches, ranked among themselves", "successive": "Before every moment",
    "successive-new": "Before every moment: only items new to the user",
    "users-new": "Users here on one day so far", "users-occasional": "Users here on two to five days",
    "users-regular": "Users here on more days", "exposure": "The long tail in what is shown, and in what is wanted",
    "exposure-by-brand": "Each brand's share of what is shown, places counted by how much they are looked at",
    "exposure-gap-by-brand": "Each brand's share of what is shown minus its share of what is wanted",
    "exposure-by-category": "Each category's share of what is shown, places counted by how much they are looked at",
    "exposure-gap-by-category": "Each category's share of what is shown minus its share of what is wanted",
    "successive-users-new": "Before every moment: users here on one day so far",
    "successive-users-occasional": "Before every moment: users here on two to five days",
    "successive-users-regular": "Before every moment: users here on more days",
    "successive-exposure": "Before every moment: exposure of the long tail",
    "target": "The policy that served the other log, whose own clicks say what is true",
    "learned": "Policies learned from the first half of the log, judged by the second",
    "effects": "Effects of offers against the plain one, by newer and regular buyers",
    "staying": "Moments after which users are in the cluster they were in",
    "successive-long-tail": "Before every moment: the long tail", "successive-cold": "Before every moment: cold items",
}  # fmt: skip
WHOLE = {  # of a task, before its sub-tasks
    "recommend": "All items", "text": "All items", "churn": "All customers", "repurchase": "Items bought before",
    "satisfaction": "All reviews", "explanations": "All that was recommended with a reason",
    "strategies": "Opinions whose strategy was decided after the split", "promotions": "All customers",
    "clusters": "All users",
}  # fmt: skip


def page(manifest: Manifest, curve: Curve, found: Comparison, fitted: ChurnFit) -> str:
    """The report of one bundle."""
    policy = fitted.policy
    parts = [
        f"<h1>Bundle {html.escape(manifest.model_version)}</h1>",
        f"<p>Data from {manifest.data_from:%Y-%m-%d} to {manifest.data_to:%Y-%m-%d}. The user encoder trained for "
        f"{curve.seconds:.0f} s and stopped {html.escape(curve.stopped)}.</p>",
        "<h2>Recommendations on held-out days</h2>",
        "<p>Each known user's next moment, every item ranked; mean and 95% bootstrap interval over users. Learned without "
        "these days; the released models then learned from them too.</p>",
        *(_compared(found) or ["<p>Nobody came back in the held-out days.</p>"]),
        "<h2>Training</h2>",
        _figure(lambda figure: _loss(figure, curve)),
        "<h2>Churn</h2>",
        f"<p>Asked: no return within {policy.horizon_days:g} days. Raised at {policy.raise_at:g}, cleared below "
        f"{policy.clear_at:g}. Later visits than those the net learned from.</p>",
        _figure(lambda figure: calibration(figure, *fitted.calibration)),
        *_persuasion(manifest), "<h2>Weights</h2>", _values(manifest.blend), "<h2>Metrics</h2>", _values(manifest.metrics),
    ]  # fmt: skip
    return _html("Clickwake bundle", parts)


def _persuasion(manifest: Manifest) -> list[str]:
    """Of each delivery whose alerts go where they pay; nothing while there is none."""
    parts = ["<h2>Whom messages persuade</h2>", "<p>Judged on users the model had not seen, in returns a 1,000 users; "
             "docs/deliveries.md.</p>"] if manifest.uplift else []  # fmt: skip
    for name, figures in manifest.uplift.items():
        parts += [f"<h3>{html.escape(name)}</h3>", _values(figures)]
    return parts


def comparison_page(found: Comparison, figures: dict[str, Draw]) -> str:
    """The page of an evaluation: a table and bars for each sub-task, then the pictures that explain it."""
    parts = [
        f"<h1>{html.escape(found.task.capitalize())}: {html.escape(found.dataset)}</h1>",
        f"<p>Split {html.escape(found.split)}, {found.n} asked. Served, and measured through its ONNX files: "
        f"<b>{html.escape(found.served)}</b>. 95% bootstrap intervals; ▲ the served model is better than this one, ▼ worse, "
        "= level, by the interval of the paired difference.</p>",
    ]
    parts += _compared(found)
    for title, draw in figures.items():
        parts += [f"<h2>{html.escape(title)}</h2>", _figure(draw)]
    if found.settings:
        parts += ["<h2>Settings</h2>", _values(found.settings)]
    return _html("Clickwake evaluation", parts)


def _compared(found: Comparison) -> list[str]:
    """A heading, bars and a table for each sub-task."""
    parts = []
    for group, measures in comparisons.groups(found).items():
        parts.append(f"<h3>{html.escape(_title(found.task, group))}</h3>")
        draw = _group_bars if group.startswith(comparisons.NEUTRAL_TASKS) else _measure_bars
        parts.append(_figure(lambda figure, shown=measures, draw=draw: draw(figure, found, shown)))  # type: ignore[misc]
        parts.append(_comparison_table(found, measures))
    return parts


def _title(task: str, group: str) -> str:
    return TITLES.get(group, group.capitalize()) if group else WHOLE[task]


def _group_bars(figure: Any, found: Comparison, measures: list[str]) -> None:
    """The served model's measures below each other: groups of items, not measures of the same thing."""
    some = {name.rpartition(".")[2]: found.models[found.served][name] for name in measures}
    figure.set_size_inches(9, 1.2 + 0.28 * len(some))
    axis = figure.subplots()
    sides = np.array([[one.value - one.low, one.high - one.value] for one in some.values()]).T
    axis.barh(list(some), [one.value for one in some.values()], xerr=np.nan_to_num(np.clip(sides, 0, None)), color="#c8553d")
    axis.axvline(0, lw=0.5, color="#999")
    axis.invert_yaxis()


def _measure_bars(figure: Any, found: Comparison, measures: list[str]) -> None:
    shown = measures[:3]
    figure.set_size_inches(9, 1.2 + 0.28 * len(found.models))
    for axis, measure in zip(np.atleast_1d(figure.subplots(1, len(shown), sharey=True)), shown, strict=True):
        some = {name: values[measure] for name, values in found.models.items() if measure in values}
        centre = np.array([one.value for one in some.values()])
        sides = np.array([[one.value - one.low, one.high - one.value] for one in some.values()]).T
        colours = ["#c8553d" if name == found.served else "#4a7ebb" for name in some]
        axis.barh(list(some), centre, xerr=np.nan_to_num(np.clip(sides, 0, None)), color=colours)
        axis.set_title(measure.rpartition(".")[2])
        axis.tick_params(labelsize=8)
    axis.invert_yaxis()


def _comparison_table(found: Comparison, measures: list[str]) -> str:
    head = "".join(f"<th>{html.escape(one.rpartition('.')[2])}" for one in measures)
    lines = []
    for name, values in found.models.items():
        if any(one in values for one in measures):
            against = found.ahead.get(name, {})
            cells = "".join(
                f"<td title='ours minus it: {comparisons.cell(against.get(one), signed=True)}'>"
                f"{comparisons.cell(values.get(one))} {comparisons.mark(one, against.get(one))}</td>"
                for one in measures
            )
            lines.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
    return f"<table><tr><th>model{head}</tr>{''.join(lines)}</table>"


def _html(title: str, parts: list[str]) -> str:
    body = "\n".join(parts)
    head = f"<meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang=en>{head}{body}</html>"


def _figure(draw: Draw) -> str:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _loss(figure: Any, curve: Curve) -> None:
    axis = figure.subplots()
    axis.plot(curve.loss, lw=0.5, color="#bbb", label="batch")
    axis.plot(curve.check_steps, curve.validation_loss, "o-", color="#4a7ebb", label="validation")
    axis.set_xlabel("step")
    axis.set_ylabel("loss")
    axis.legend()


def calibration(figure: Any, p: FloatArray, y: FloatArray, of: str = "no return") -> None:
    """What was said, in tenths, beside what was seen."""
    axis = figure.subplots()
    bins = calibration_bins(p, y) if len(p) else []
    axis.plot([0, 1], [0, 1], lw=0.5, color="#999")
    axis.plot([said for said, _, _ in bins], [seen for _, seen, _ in bins], "o-", color="#4a7ebb")
    axis.set_xlabel(f"said: probability of {of}")
    axis.set_ylabel("seen")
    axis.set_aspect("equal")


def _values(values: Mapping[str, float | str]) -> str:
    lines = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value if isinstance(value, str) else f'{value:.5g}')}</td></tr>"
        for name, value in values.items()
    )
    return f"<table>{lines}</table>"
