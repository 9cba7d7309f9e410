"""How well it recommends: time split, each known user's next moment, every item ranked, against strong baselines.

Ours is asked through the exported ONNX bundle and stream.core, as a worker would ask it, at the time of the split: the
counts, states and ages are those of that moment. The blend was fitted on moments before the split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stream.adapters.onnx import Bundle
from stream.core.counts import CountsPolicy
from stream.core.featurize import Float32
from stream.core.index import ItemIndex
from stream.core.recommend import Blend
from training import baselines, blend
from training.blend import Question
from training.metrics import Interval, bootstrap
from training.offline import index_of, parts_of
from training.snapshot import History, Snapshot, next_moments

USERS_MAX = 2_000  # asked; drawn by a fixed seed when there are more
CELLS_MAX = 40_000_000  # users × items held at once, some 160 MB a part
TASKS = ("all", "new")


@dataclass(frozen=True)
class Row:
    """One method on one task; `versus` is ours minus this method, paired by user."""

    task: str
    method: str
    users: int
    recall_at_20: Interval
    ndcg_at_10: Interval
    recall_versus: Interval | None = None
    ndcg_versus: Interval | None = None


def question(history: History, snapshot: Snapshot, split_ms: int, end_ms: int) -> tuple[Question, list[str]]:
    """Users known before `split_ms` and their first moment in [split_ms, end_ms); items are the history's, in order."""
    later = (event for event in history.events if split_ms <= event.ts_ms < end_ms)
    known = [user for user, state in snapshot.states.items() if state.history()]
    following = next_moments(later, known)
    users = sorted(following)
    most = min(USERS_MAX, max(1, CELLS_MAX // max(1, len(history.items))))
    if len(users) > most:
        users = sorted(np.random.default_rng(0).choice(users, most, replace=False).tolist())
    column = {item: at for at, item in enumerate(history.items)}
    wanted, seen = np.zeros((2, len(users), len(column)), dtype=bool)
    for at, user in enumerate(users):
        wanted[at, [column[item] for item in following[user][1]]] = True
        seen[at, [column[item] for item in snapshot.touched.get(user, ())]] = True
    return Question([snapshot.states[user] for user in users], split_ms, wanted, seen), users


def ours(bundle: Bundle, index: ItemIndex, asked: Question, weights: Blend) -> Float32:
    """Scores (U, N)."""
    parts = parts_of(bundle, index, asked.states, asked.now_ms, weights)
    return parts.total()[:, : asked.wanted.shape[1]]


def compare(
    history: History, snapshot: Snapshot, bundle: Bundle, text: Float32, split_ms: int, end_ms: int, weights: Blend,
    policy: CountsPolicy, with_baselines: bool = True,
) -> list[Row]:  # fmt: skip
    """All methods on both tasks. `snapshot` is the replay until `split_ms`."""
    asked, users = question(history, snapshot, split_ms, end_ms)
    index = index_of(bundle, history.items, text, snapshot, policy)
    scores: dict[str, npt.NDArray[Any]] = {"clickwake": ours(bundle, index, asked, weights)}
    if not users:
        return []
    if with_baselines:
        only_model = Blend(model=1.0, personal=0.0, rules=0.0, popularity=0.0)
        scores["clickwake, encoder alone"] = ours(bundle, index, asked, only_model)
        data = baselines.Interactions(history.until(split_ms), list(history.items), users)
        scores["popularity, 30 days"] = baselines.popularity(data)
        scores["personal frequency"] = baselines.personal_frequency(data)
        scores["item-kNN"] = baselines.item_knn(data)
        ease = baselines.ease(data)
        if ease is not None:
            scores["EASE"] = ease
    rows: list[Row] = []
    for task in TASKS:
        wanted = asked.wanted if task == "all" else asked.wanted & ~asked.seen
        allowed = None if task == "all" else ~asked.seen
        values = {name: blend.measures(blend.ranked(one, allowed), wanted) for name, one in scores.items()}
        recall, ndcg = values["clickwake"]
        for name, (r, n) in values.items():
            versus = (None, None) if name == "clickwake" else (bootstrap(recall - r), bootstrap(ndcg - n))
            rows.append(Row(task, name, len(r), bootstrap(r), bootstrap(n), *versus))
    return rows


def as_metrics(rows: list[Row]) -> dict[str, float]:
    """The figures that stand in the manifest."""
    metrics: dict[str, float] = {}
    for row in rows:
        name = row.method.replace(",", "").replace(" ", "_").replace("-", "_").lower()
        metrics[f"{name}_{row.task}_recall_at_20"] = round(row.recall_at_20.value, 5)
        metrics[f"{name}_{row.task}_ndcg_at_10"] = round(row.ndcg_at_10.value, 5)
        if row.method == "clickwake":
            metrics[f"users_{row.task}"] = float(row.users)
    return {name: value for name, value in metrics.items() if np.isfinite(value)}
