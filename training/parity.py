"""Whether two computations of the same vectors agree: number by number, in direction, and in what they would rank first."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

DELTA_MAX = 1e-4  # of outputs scaled to unit length
COSINE_MIN = 0.99999
TOP = 10
TIE = 1e-5  # scores that are closer are a tie: float32 sums of D terms in another order differ by about 1e-7
CANDIDATES = 500  # random unit vectors to be ranked

FloatArray = npt.NDArray[Any]


class ParityFailed(RuntimeError):
    """ONNX does not say what torch says; the message names the model, the shape and the difference."""


def agree(where: str, found: FloatArray, expected: FloatArray) -> float:
    """The largest |Δ| of two arrays of one shape. Raises `ParityFailed` above DELTA_MAX, for NaN too."""
    delta = float(np.abs(found - expected).max(initial=0.0))
    if not delta <= DELTA_MAX:  # not: NaN must fail too
        raise ParityFailed(f"{where}: ONNX and torch differ by {delta:.2g}, allowed is {DELTA_MAX}; not released")
    return delta


def agree_as_vectors(where: str, found: FloatArray, expected: FloatArray) -> float:
    """`agree` for vectors (B, D) that rank by their product with items: their directions and first items agree too."""
    items = np.random.default_rng(0).normal(size=(CANDIDATES, found.shape[1]))  # (C, D)
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    delta = agree(where, found, expected)
    point_alike(where, found, expected)
    ranks_alike(where, found @ items.T, expected @ items.T)
    return delta


def point_alike(where: str, found: FloatArray, expected: FloatArray) -> None:
    """Raises `ParityFailed` when the cosine of any two rows of (B, D) is below COSINE_MIN; zeros point nowhere."""
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)  # (B,)
    some = lengths > 1e-12
    cosine = float(((found * expected).sum(1)[some] / lengths[some]).min(initial=1.0))
    if cosine < COSINE_MIN:
        raise ParityFailed(f"{where}: the cosine of ONNX and torch is {cosine:.6f}, needed is {COSINE_MIN}; not released")


def ranks_alike(where: str, found: FloatArray, expected: FloatArray) -> None:
    """Raises `ParityFailed` unless scores (B, C) have the same first ten, but for ties.

    At each rank the item that `found` puts there must be worth, by `expected`, what stands there by `expected`.

    >>> ranks_alike("x", np.array([[1.0, 0.9, 0.0]]), np.array([[1.0, 1.0, 0.0]]))
    """
    k = min(TOP, expected.shape[1])
    best = -np.sort(-expected, axis=1)[:, :k]  # (B, K)
    chosen = np.take_along_axis(expected, np.argsort(-found, axis=1, kind="stable")[:, :k], axis=1)  # (B, K)
    worst = float(np.abs(chosen - best).max(initial=0.0))
    if worst > TIE * max(1.0, float(np.abs(best).max(initial=0.0))):
        raise ParityFailed(f"{where}: the first {k} of ONNX are not torch's, by {worst:.2g} of the score; not released")
