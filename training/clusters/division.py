"""Users divided into clusters by their vectors: anew, or going on from how they were divided before.

Anew: k-means on vectors of length 1, so that the nearest centroid is the nearest by cosine (Dhillon & Modha, "Concept
Decompositions for Large Sparse Text Data", 2001). k is the one with the largest mean silhouette by cosine (Rousseeuw 1987)
among those whose every cluster has MEMBERS_MIN users.

Going on: each training learns another space, and where users are not of kinds k-means divides each space along something
else. So a cluster goes on as the mean of its present users in the new space, and everybody is with the nearest: one turn of
spherical k-means from the division before, after which users are no farther from their centroids, summed, than before it.
Of the quality of a snapshot and the cost of history (Chakrabarti, Kumar & Tomkins, "Evolutionary Clustering", KDD 2006) that
favours the second: further turns gain no silhouette and move more users (docs/results.md, "Between trainings"); the next
training takes the next turn. Only cosines are asked: a turned space gives the same division.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_score
from threadpoolctl import threadpool_limits

from stream.core.user.featurize import Float32
from training.evaluation.metrics import FloatArray

CLUSTERS_MIN, CLUSTERS_MAX = 2, 16
MEMBERS_MIN = 10  # a smaller cluster says something of few people
SILHOUETTE_MAX = 3_000  # users looked at for the silhouette: it costs the square
RESTARTS = 10  # of k-means; the best is taken
MARGIN = 0.02  # of silhouette, by which a division anew must be better: docs/results.md, "Between trainings", has the noise
REFERENCES, REFERENCE_RESTARTS = 4, 3  # clouds without groups to compare with, and of k-means in each

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Division:
    """Who is where, and what was measured on the way."""

    labels: Ints  # (U,) the nearest centroid by cosine
    centroids: Float32  # (K, D), length 1
    measured: dict[str, float]


def divide(vectors: Float32, before: Ints, seed: int) -> Division | None:
    """Vectors (U, D) of length 1 divided, going on from labels `before` (U,), -1: in none, unless a division anew has a
    silhouette that is larger by more than MARGIN. None where there are too few users.

    Measured: `silhouette` of what is taken, `silhouette_<k>` of each k anew and `structure` of the best of them, see there.
    Where there was a division before, also `silhouette_continued`, whether it goes on (`continued`, 1 or 0), and `again`,
    the adjusted Rand index of the division anew with the one before: how far this training finds it without being told.
    """
    new, old = anew(vectors, seed), continued(vectors, before)
    measured = {} if new is None else new.measured | {"structure": round(structure(vectors, new, seed), 6)}
    if old is None:
        return None if new is None else Division(new.labels, new.centroids, measured)
    score = silhouette(vectors, old.labels, seed)
    goes_on = measured.get("silhouette", -1.0) - score <= MARGIN
    measured |= {"silhouette_continued": round(score, 6), "continued": float(goes_on)}
    if new is None or goes_on:
        return Division(old.labels, old.centroids, measured | {"silhouette": round(score, 6)} | again(before, new))
    return Division(new.labels, new.centroids, measured | again(before, new))


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


def continued(vectors: FloatArray, before: Ints) -> Division | None:
    """The division that goes on from labels `before` (U,), -1: in none. Old clusters with fewer than MEMBERS_MIN of these
    users are left out, and so are those that would lose theirs, the smallest first; None where fewer than two are left."""
    exact, some = vectors.astype(np.float64), before >= 0
    present = np.bincount(before[some], minlength=1)
    sums = np.eye(len(present))[:, before[some]] @ exact[some]  # (K, D)
    centroids = (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12))[present >= MEMBERS_MIN]
    while len(centroids) >= CLUSTERS_MIN:
        labels = np.asarray((exact @ centroids.T).argmax(axis=1), dtype=np.int64)
        sizes = np.bincount(labels, minlength=len(centroids))
        if sizes.min() >= MEMBERS_MIN:
            return Division(labels, centroids.astype(np.float32), {})
        centroids = centroids[sizes > sizes.min()]
    return None


def again(before: Ints, new: Division | None) -> dict[str, float]:
    """How far a division anew is the one before, over the users who were in any."""
    some = before >= 0
    return {} if new is None else {"again": round(float(adjusted_rand_score(before[some], new.labels[some])), 6)}


def structure(vectors: Float32, found: Division, seed: int) -> float:
    """How much larger its silhouette is than what k-means reaches with as many clusters in a cloud that has none: drawn from
    the Gaussian with the mean and covariance of the vectors, brought to length 1 (the null of SigClust: Liu, Hayes, Nobel &
    Marron, "Statistical Significance of Clustering for High-Dimension, Low-Sample Size Data", 2008)."""
    rng = np.random.default_rng(seed)
    size, mean = min(len(vectors), SILHOUETTE_MAX), vectors.mean(axis=0)
    _, spread, axes = np.linalg.svd(vectors - mean, full_matrices=False)  # (R,), (R, D)
    reached = []
    for draw in range(REFERENCES):
        cloud = rng.normal(size=(size, len(spread))) * spread / np.sqrt(len(vectors)) @ axes + mean
        cloud = (cloud / np.linalg.norm(cloud, axis=1, keepdims=True)).astype(np.float32)
        labels, _ = kmeans(cloud, len(found.centroids), seed + draw, REFERENCE_RESTARTS)
        reached.append(silhouette(cloud, labels, seed))
    return found.measured["silhouette"] - float(np.mean(reached))


def silhouette(vectors: Float32, labels: Ints, seed: int) -> float:
    """Mean by cosine, of at most SILHOUETTE_MAX users; -1 where these are all in one cluster."""
    sample = _sample(len(vectors), seed)
    if len(np.unique(labels[sample])) < CLUSTERS_MIN:
        return -1.0
    return float(silhouette_score(vectors[sample], labels[sample], metric="cosine"))


def _sample(size: int, seed: int) -> Ints:
    return np.sort(np.random.default_rng(seed).choice(size, min(size, SILHOUETTE_MAX), replace=False))
