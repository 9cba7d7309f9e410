"""A bundle on the newest held-out days of a history, beside what costs nothing to run; the figures of its manifest."""

from __future__ import annotations

import numpy as np

from stream.adapters.models.onnx import Bundle
from stream.core.ranking.blend import Blend
from stream.core.ranking.counts import CountsPolicy
from training.evaluation.comparison import Comparison, Measures, iso, means, merged, under
from training.history.snapshot import History, Replay, interactions
from training.panel import roster
from training.recommend import exposure, links
from training.recommend.asking import Columns, next_of
from training.recommend.judging import Judge, Ours, Panelist, Ranker, Values
from training.text.texts import Texts

USERS_MAX = 2_000
SERVED = "clickwake"
QUICK = ("popularity-30", "personal-frequency", "ease")


def values(
    history: History, split_ms: int, end_ms: int, texts: Texts, bundle: Bundle, blend: Blend, *, relink: bool,
    beside: tuple[str, ...] = (),
) -> dict[str, Values]:  # fmt: skip
    """Model → sub-task → measure → each user's value, for every known user's next moment in [split_ms, end_ms); the
    questions depend on the history alone, so the values of two bundles can be paired.

    `beside`: with these methods, and with exposure by brand. `relink`: ask with links learned up to the split instead of the
    bundle's own, for a bundle learned before it.
    """
    past, _ = interactions(history, split_ms)
    columns = Columns(history)
    replay = Replay(history, CountsPolicy.from_manifest(bundle.manifest.counts))
    replay.advance(split_ms)
    linked = links.fit(past, list(history.items), split_ms) if relink else None
    rankers: dict[str, Ranker] = {SERVED: Ours(bundle, history, texts, replay.snapshot.counts, blend, links=linked)}
    for method in roster.panel(beside) if beside else ():
        method.fit(past, seed=0, budget_s=10.0, threads=1)
        rankers[method.name] = Panelist(method, history, split_ms)
    touched = np.bincount(past.items, minlength=past.n_items)
    by = exposure.groups(history.items, touched) if beside else None
    judge = Judge(columns, touched, replay.snapshot.counts, by)
    asked = next_of(replay, columns, split_ms, end_ms, USERS_MAX)
    verdicts = judge.judge(rankers, asked, together=True)
    shares = {} if by is None or not asked else {name: exposure.measured(by, one.by_group) for name, one in verdicts.items()}
    return {name: one.values() | shares.get(name, {}) for name, one in verdicts.items()}


def compare(history: History, split_ms: int, end_ms: int, texts: Texts, bundle: Bundle, blend: Blend) -> Comparison:
    """A bundle learned before the split, with links up to it, beside quick methods."""
    return comparison(
        history.name, split_ms, values(history, split_ms, end_ms, texts, bundle, blend, relink=True, beside=QUICK), SERVED
    )


def comparison(dataset: str, split_ms: int, found: dict[str, Values], served: str) -> Comparison:
    """Intervals and paired differences of what was found, sub-task by sub-task."""
    models: dict[str, Measures] = {}
    ahead: dict[str, Measures] = {}
    for task in found[served]:
        some, differences = means({name: one[task] for name, one in found.items() if task in one}, served)
        models = merged(models, under(task, some) if task else some)
        ahead = merged(ahead, under(task, differences) if task else differences)
    n = len(found[served].get("", {}).get("hr@10", ()))
    return Comparison(task="recommend", dataset=dataset, split=iso(split_ms), n=n, models=models, ahead=ahead, served=served)


def as_metrics(found: Comparison) -> dict[str, float]:
    """The figures that stand in the manifest: `clickwake_all_ndcg_at_10`, `ease_new_recall_at_20` …"""
    metrics: dict[str, float] = {"users_all": float(found.n)}
    for model, measures in found.models.items():
        name = model.replace(",", "").replace(" ", "_").replace("-", "_").lower()
        for measure, value in measures.items():
            task, _, kind = measure.rpartition(".")
            if kind in ("recall@20", "ndcg@10") and task in ("", "new") and np.isfinite(value.value):
                metrics[f"{name}_{task or 'all'}_{kind.replace('@', '_at_')}"] = round(value.value, 5)
    return metrics
