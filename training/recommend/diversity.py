"""What it costs to choose items that differ: each user's next moment ranked as the read API ranks, from little to much.

How alike a list is, is judged by vectors that it was not chosen by: the mean cosine between the texts of its items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stream.core.ranking.recommend import Rules, rank
from stream.core.user.featurize import Float32
from training.evaluation.comparison import Measures, means, under
from training.evaluation.metrics import FloatArray, measures
from training.recommend.asking import Columns, Question
from training.recommend.judging import BATCH, Ours, batched
from training.text.texts import Texts

K = 10
LEVELS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
TASK = "differing"


def measured(
    ours: Ours, asked: Sequence[Question], columns: Columns, texts: Texts, item_ids: list[str], served: str
) -> tuple[dict[str, Measures], dict[str, Measures]]:  # fmt: skip
    """(models, ahead): NDCG@10 and how alike the ten are, by score alone and at each of LEVELS; nobody's past is left out,
    and categories have no cap."""
    near = texts.of(item_ids)  # (N, T)
    near = near / np.maximum(np.linalg.norm(near, axis=1, keepdims=True), 1e-9)
    values: dict[str, dict[str, list[float]]] = {}
    scores = (total for some in batched(asked, BATCH) for total in ours.scores(some))
    for question, total in zip(asked, scores, strict=True):
        known = columns.known(question.now_ms)
        for level in (0.0, *LEVELS):
            rules = Rules(top_n=K, category_cap=len(item_ids), exclude="none", diversity=level)
            rows = rank(total, question.state, ours.index, rules, known)
            found = values.setdefault(f"{served}, diversity {level:g}" if level else served, {"ndcg@10": [], "alike@10": []})
            found["ndcg@10"].append(measures(np.array(rows, dtype=np.int64), question.wanted)[1])
            found["alike@10"].append(alike(near[rows]))
    arrays: dict[str, dict[str, FloatArray]] = {
        name: {measure: np.array(each) for measure, each in one.items()} for name, one in values.items()
    }
    models, ahead = means(arrays, served)
    return under(TASK, models), under(TASK, ahead)


def alike(vectors: Float32) -> float:
    """The mean cosine between any two of some unit vectors (R, T); 0 of fewer than two.

    >>> alike(np.eye(2, dtype=np.float32)), alike(np.ones((3, 1), dtype=np.float32))
    (0.0, 1.0)
    """
    n = len(vectors)
    if n < 2:
        return 0.0
    return float(((vectors @ vectors.T).sum() - np.square(vectors).sum()) / (n * (n - 1)))
