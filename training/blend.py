"""Weights of the parts of the score, fitted on validation by coordinate search on a measure of ranking."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from stream.adapters.onnx import Bundle
from stream.core.featurize import Float32
from stream.core.index import ItemIndex
from stream.core.recommend import Blend, Parts
from stream.core.state import UserState
from training.offline import parts_of

K_RECALL, K_NDCG = 20, 10
ROUNDS = 3
WEIGHTS = {
    "model": (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0),
    "personal": (0.0, 0.1, 0.3, 0.6, 1.0, 1.5, 2.5, 4.0),
    "rules": (0.0, 0.1, 0.3, 0.6, 1.0, 2.0, 4.0),
    "popularity": (0.0, 0.1, 0.2, 0.4, 0.8, 1.5),
}
SHAPES = {
    "personal_half_life_days": (14.0, 30.0, 60.0, 120.0, 365.0),
    "rules_step": (0.5, 0.8, 0.9, 1.0),
    "rules_items": (1, 5, 10, 20, 40),
}


class Question(NamedTuple):
    """Users asked at one time, and what they then touched first."""

    states: list[UserState]
    now_ms: int
    wanted: npt.NDArray[np.bool_]  # (U, N)
    seen: npt.NDArray[np.bool_]  # (U, N): touched before, for the task of new items


def ranked(scores: Float32, allowed: npt.NDArray[np.bool_] | None = None, k: int = K_RECALL) -> npt.NDArray[np.int64]:
    """The best k columns of each row (U, K), ties to the lower column."""
    masked = scores if allowed is None else np.where(allowed, scores, -np.inf)
    k = min(k, masked.shape[1])
    best = np.sort(np.argpartition(-masked, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(-np.take_along_axis(masked, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1)


def measures(order: npt.NDArray[np.int64], wanted: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.float64], ...]:
    """Recall@20 and NDCG@10 of each user with something wanted: (U',), (U',)."""
    asked = wanted.any(1)
    hits = np.take_along_axis(wanted[asked], order[asked], axis=1)  # (U', K)
    size = wanted[asked].sum(1)
    discount = 1 / np.log2(np.arange(2, K_NDCG + 2))
    ideal = np.cumsum(discount)[np.minimum(size, K_NDCG) - 1]
    gained = hits[:, :K_NDCG] @ discount[: hits[:, :K_NDCG].shape[1]]
    return hits[:, :K_RECALL].sum(1) / size, gained / ideal


def objective(scores: Float32, question: Question) -> float:
    """Recall@20 + NDCG@10 over all items, plus the same over items new to the user: serving asks both."""
    recall, ndcg = measures(ranked(scores), question.wanted)
    value = float(recall.mean() + ndcg.mean()) if len(recall) else 0.0
    new = question.wanted & ~question.seen
    if new.any():
        recall, ndcg = measures(ranked(scores, ~question.seen), new)
        value += float(recall.mean() + ndcg.mean())
    return value


def fit(bundle: Bundle, index: ItemIndex, question: Question, start: Blend | None = None) -> tuple[Blend, float]:
    """The best blend found and its objective. Deterministic; ties stay with the value already held."""
    blend = start or Blend(model=0.2, personal=1.0, rules=1.0, popularity=0.2)
    if not len(question.states) or not question.wanted.any():
        return blend, float("nan")
    n = question.wanted.shape[1]
    unit = {"model": 1.0, "personal": 1.0, "rules": 1.0, "popularity": 1.0}

    def parts(of: Blend) -> Parts:
        raw = parts_of(bundle, index, question.states, question.now_ms, msgspec.structs.replace(of, **unit))
        return Parts(raw.model[:, :n], raw.personal[:, :n], raw.rules[:, :n], raw.popularity[:n])

    def total(raw: Parts, of: Blend) -> Float32:
        return np.asarray(
            np.float32(of.model) * raw.model + np.float32(of.personal) * raw.personal
            + np.float32(of.rules) * raw.rules + np.float32(of.popularity) * raw.popularity
        )  # fmt: skip

    held = parts(blend)
    best = objective(total(held, blend), question)
    for turn in range(ROUNDS):
        before = best
        for name, values in WEIGHTS.items():
            for value in values:
                candidate = msgspec.structs.replace(blend, **{name: value})
                reached = objective(total(held, candidate), question)
                if reached > best + 1e-9:
                    blend, best = candidate, reached
        for name, values in SHAPES.items() if turn < ROUNDS - 1 else ():
            for value in values:
                candidate = msgspec.structs.replace(blend, **{name: value})
                raw = parts(candidate)
                reached = objective(total(raw, candidate), question)
                if reached > best + 1e-9:
                    blend, best, held = candidate, reached, raw
        if best <= before + 1e-4:
            break
    return blend, best
