"""Users divided into clusters by their vectors: anew, or going on from how they were divided before.

Anew: k-means on vectors of length 1, so that the nearest centroid is the nearest by cosine (Dhillon & Modha, "Concept
Decompositions for Large Sparse Text Data", 2001). k is the one with the largest mean silhouette by cosine (Rousseeuw 1987)
among those whose every cluster has MEMBERS_MIN users.

Going on: each training learns another space, and where users are not of kinds k-means divides each space along something
else. So an old cluster begins where its present users are in the new space, and labels and centroids are improved in turns
from there, which makes this the largest it can be, summed over users:

    (1 - HISTORY) cos(user, centroid of the cluster they are in) + HISTORY cos(user, centroid of the one they were in)

The first is the quality of the snapshot, the second the cost of history (Chakrabarti, Kumar & Tomkins, "Evolutionary
Clustering", KDD 2006). Only cosines are asked: a rotated space gives the same division.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_score
from threadpoolctl import threadpool_limits

from stream.core.featurize import Float32
from training.metrics import FloatArray

CLUSTERS_MIN, CLUSTERS_MAX = 2, 16
MEMBERS_MIN = 10  # a smaller cluster says something of few people
SILHOUETTE_MAX = 3_000  # users looked at for the silhouette: it costs the square
RESTARTS = 10  # of k-means; the best is taken
HISTORY = 0.5  # see above; docs/results.md, "Between trainings", has what it does
ROUNDS_MAX = 300  # of going on; it ends by itself when nobody moves
MARGIN = 0.05  # of silhouette, by which a division anew must be better to be taken; docs/results.md has the noise

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Division:
    """Who is where, and what was measured on the way."""

    labels: Ints  # (U,) the nearest centroid by cosine
    centroids: Float32  # (K, D), length 1
    measured: dict[str, float]


def divide(vectors: Float32, before: Ints, seed: int) -> Division | None:
    """Vectors (U, D) of length 1 divided, going on from labels `before` (U,), -1: in none, unless a division anew has a
    silhouette that is larger by more than MARGIN. None where there are too few users.

    Measured: `silhouette`, and `silhouette_<k>` of each k anew; where there was a division before, also
    `silhouette_continued`, whether it goes on (`continued`, 1 or 0), and `again`: the adjusted Rand index of the division
    anew with the one before, that is how far this training finds it without being told.
    """
    new, old = anew(vectors, seed), continued(vectors, before)
    if old is None:
        return new
    score, measured = silhouette(vectors, old.labels, seed), {} if new is None else dict(new.measured)
    goes_on = measured.get("silhouette", -1.0) - score <= MARGIN
    measured |= {"silhouette_continued": round(score, 6), "continued": float(goes_on)}
    if new is None or goes_on:
        measured["silhouette"] = round(score, 6)
    if new is not None:
        some = before >= 0
        measured["again"] = round(float(adjusted_rand_score(before[some], new.labels[some])), 6)
    chosen = old if new is None or goes_on else new
    return Division(chosen.labels, chosen.centroids, measured)


def anew(vectors: Float32, seed: int) -> Division | None:
    """The division with the largest silhouette; None where there are too few users, or where no k gives clusters that are
    large enough."""
    measured: dict[str, float] = {}
    best: tuple[float, Ints, Float32] | None = None
    sample = _sample(len(vectors), seed)
    for k in range(CLUSTERS_MIN, min(CLUSTERS_MAX, len(vectors) // MEMBERS_MIN) + 1):
        labels, centroids = kmeans(vectors, k, seed)
        if len(np.unique(labels[sample])) < k or np.bincount(labels, minlength=k).min() < MEMBERS_MIN:
            continue
        score = silhouette(vectors, labels, seed)
        measured[f"silhouette_{k}"] = round(score, 6)
        if best is None or score > best[0]:
            best = score, labels, centroids
    return None if best is None else Division(best[1], best[2], measured | {"silhouette": round(best[0], 6)})


def kmeans(vectors: Float32, k: int, seed: int, restarts: int = RESTARTS) -> tuple[Ints, Float32]:
    """Labels (U,), the nearest centroid by cosine, and centroids (K, D) of length 1."""
    with threadpool_limits(1):  # on busy cores a second thread waits at barriers and slows the first
        centroids = KMeans(k, n_init=restarts, random_state=seed).fit(vectors).cluster_centers_.astype(np.float32)
    centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-9)
    return np.asarray((vectors @ centroids.T).argmax(axis=1), dtype=np.int64), centroids


def continued(vectors: FloatArray, before: Ints, history: float = HISTORY) -> Division | None:
    """The division that goes on from labels `before` (U,), -1: in none. Old clusters of which fewer than MEMBERS_MIN users
    are there are left out, and so are those that lose theirs, the smallest first; None where fewer than two are left."""
    exact, some = vectors.astype(np.float64), before >= 0
    present = np.bincount(before[some], minlength=1)
    with threadpool_limits(1):
        anchors = _sums(exact[some], before[some], len(present))[present >= MEMBERS_MIN]  # (K, D)
        while len(anchors) >= CLUSTERS_MIN:
            labels, centroids = _improved(exact, anchors, history)
            sizes = np.bincount(labels, minlength=len(anchors))
            if sizes.min() >= MEMBERS_MIN:
                return Division(labels, centroids.astype(np.float32), {})
            anchors = anchors[sizes > sizes.min()]
    return None


def silhouette(vectors: Float32, labels: Ints, seed: int) -> float:
    """Mean by cosine, of at most SILHOUETTE_MAX users; -1 where these are all in one cluster."""
    sample = _sample(len(vectors), seed)
    if len(np.unique(labels[sample])) < CLUSTERS_MIN:
        return -1.0
    return float(silhouette_score(vectors[sample], labels[sample], metric="cosine"))


def _improved(vectors: Doubles, anchors: Doubles, history: float) -> tuple[Ints, Doubles]:
    """Labels (U,) and centroids (K, D) that no turn betters, from the sums of the old clusters' vectors (K, D)."""
    centroids = _unit(anchors)
    labels = _nearest(vectors, centroids)
    for _ in range(ROUNDS_MAX):
        centroids = _unit((1 - history) * _sums(vectors, labels, len(anchors)) + history * anchors)
        now = _nearest(vectors, centroids)
        if (now == labels).all():
            break
        labels = now
    return now, centroids


def _nearest(vectors: Doubles, centroids: Doubles) -> Ints:
    return np.asarray((vectors @ centroids.T).argmax(axis=1), dtype=np.int64)


def _sums(vectors: Doubles, labels: Ints, k: int) -> Doubles:
    """(K, D) of the vectors (U, D) of each label."""
    return np.asarray(np.eye(k)[:, labels] @ vectors, dtype=np.float64)


def _unit(rows: Doubles) -> Doubles:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), dtype=np.float64)


def _sample(size: int, seed: int) -> Ints:
    return np.sort(np.random.default_rng(seed).choice(size, min(size, SILHOUETTE_MAX), replace=False))
