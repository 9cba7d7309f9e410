"""A list whose items differ: chosen one after the other by score and by what each adds to those before it.

The greedy maximum of a determinantal point process (Chen, Zhang and Zhou, "Fast Greedy MAP Inference for Determinantal Point
Process to Improve Recommendation Diversity", NeurIPS 2018, algorithm 1): the next item has the largest (1 − d) log score +
d log(share of its vector, squared, that the chosen ones do not span). So d = 0 is the order of scores, an item that is the
same as a chosen one adds nothing, and a weighted sum of similarities needs no scale of its own. Every step costs one product
of W vectors with one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stream.core.user.featurize import Float32

POOL = 200  # of the best scores are chosen from, however different the others are
SCORE_MIN = 1e-12  # scores are chances; less is as good as none
NEW_MIN = 1e-3  # share of a vector below which it is spanned: a cosine of .9995 to one that is chosen
FIRST = 1e6  # beyond any sum of logarithms

Ints = npt.NDArray[np.int64]


def varied(
    scores: Float32, vectors: Float32, first: npt.NDArray[np.bool_], kinds: npt.NDArray[np.int32], n: int, cap: int,
    diversity: float,
) -> list[int]:  # fmt: skip
    """Positions of at most n of W candidates: scores (W,), vectors (W, D) of length one, zeros where an item has none, which
    is like nothing else. Those that are `first` (W,) come first; of a kind (W,), -1 for none, at most `cap` others, at
    least one. Ties go to the lower position.

    >>> scores, vectors = np.array([0.5, 0.4, 0.3], dtype=np.float32), np.eye(2, dtype=np.float32)[[0, 0, 1]]
    >>> [varied(scores, vectors, np.zeros(3, bool), np.full(3, -1, np.int32), 2, 9, d) for d in (0.0, 0.5)]
    [[0, 1], [0, 2]]
    """
    liked = (1 - diversity) * np.log(np.maximum(scores.astype(np.float64), SCORE_MIN)) + FIRST * first  # (W,)
    new = np.ones(len(scores))  # (W,) share of each vector, squared, that the chosen ones do not span
    spanned = np.zeros((n, len(scores)))  # (n, W) rows of the Cholesky factor
    used: dict[int, int] = {}
    chosen: list[int] = []
    for _ in range(min(n, len(scores))):
        at = int((liked + diversity * np.log(np.maximum(new, NEW_MIN))).argmax())
        if liked[at] == -np.inf:  # of what is left nothing may be chosen
            break
        liked[at] = -np.inf
        kind = int(kinds[at])
        if kind >= 0 and not first[at]:
            used[kind] = used.get(kind, 0) + 1
            if used[kind] >= cap:
                liked[(kinds == kind) & ~first] = -np.inf
        if new[at] > NEW_MIN:
            row = (vectors @ vectors[at] - spanned[: len(chosen), at] @ spanned[: len(chosen)]) / np.sqrt(new[at])  # (W,)
            spanned[len(chosen)] = row
            new -= row * row
        chosen.append(at)
    return chosen


def nearest(vector: Float32, others: Float32) -> int | None:
    """Which of some vectors (R, D) a vector (D,) is most like; None where it is like none of them.

    >>> nearest(np.array([1.0, 0.0], dtype=np.float32), np.eye(2, dtype=np.float32)[::-1])
    1
    """
    if not len(others):
        return None
    near = others @ vector  # (R,)
    return int(near.argmax()) if near.max() > 0 else None
