"""Laws of going on from an earlier division: what is settled stays, a turned space and other numbers change nothing, what
is too small goes, and a division anew is taken only where it is clearly better."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from training.clusters import division
from training.clusters.division import CLUSTERS_MIN, MEMBERS_MIN, Division, Ints

DIM = 6
Array = npt.NDArray[np.floating[Any]]

seeds = st.integers(0, 2**32 - 1)
ks = st.integers(CLUSTERS_MIN, 5)


def unit(rows: Array) -> Array:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def some_users(rng: np.random.Generator, k: int) -> tuple[Array, Ints]:
    """Users around k directions, more or less clearly, and where they were before: mostly by direction, some in none."""
    kinds = rng.integers(0, k, 120)
    vectors = unit(rng.normal(size=(k, DIM))[kinds] + rng.uniform(0.1, 2) * rng.normal(size=(120, DIM)))
    before = np.where(rng.random(120) < 0.7, kinds, rng.integers(-1, k, 120))
    return vectors, before


def same(one: Division | None, other: Division | None) -> bool:
    """The same users together, whatever the numbers."""
    if one is None or other is None:
        return one is other
    return bool(adjusted_rand_score(one.labels, other.labels) == 1.0)


def tightness(vectors: Array, labels: Ints) -> float:
    """Sum over users of the cosine with their cluster's mean: what spherical k-means maximises."""
    return float(sum(np.linalg.norm(vectors[labels == at].sum(axis=0)) for at in np.unique(labels)))


@given(seeds, ks)
def test_from_training_to_training_it_gets_no_looser_and_what_is_settled_stays(seed: int, k: int) -> None:
    """In one space; some thirty turns settle 120 users."""
    vectors, before = some_users(np.random.default_rng(seed), k)
    labels = np.maximum(before, 0)
    for _ in range(30):
        found = division.continued(vectors, labels)
        if found is None:
            return
        if len(found.centroids) == len(np.unique(labels)):
            assert tightness(vectors, found.labels) >= tightness(vectors, labels) - 1e-6
        if adjusted_rand_score(labels, found.labels) == 1.0:
            break
        labels = found.labels
    again = division.continued(vectors, found.labels)
    assert again is not None and (again.labels == found.labels).all()


@given(seeds, ks)
def test_a_turned_space_and_other_numbers_give_the_same(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    vectors, before = some_users(rng, k)
    turn, _ = np.linalg.qr(rng.normal(size=(DIM, DIM)))
    renamed = np.append(rng.permutation(k), -1)[before]
    found = division.continued(vectors, before)
    assert same(found, division.continued(vectors @ turn, before))
    assert same(found, division.continued(vectors, renamed))


@given(seeds, ks, st.integers(0, MEMBERS_MIN - 1))
def test_an_old_cluster_of_few_is_as_if_it_had_not_been(seed: int, k: int, few: int) -> None:
    rng = np.random.default_rng(seed)
    vectors, before = some_users(rng, k)
    members = rng.permutation(len(vectors))[:few]
    with_few, without = before.copy(), before.copy()
    with_few[members], without[members] = k, -1
    found = division.continued(vectors, with_few)
    assert same(found, division.continued(vectors, without))
    if found is not None:
        assert CLUSTERS_MIN <= len(found.centroids) <= k
        assert np.bincount(found.labels, minlength=len(found.centroids)).min() >= MEMBERS_MIN


def test_users_without_kinds_stay_where_they_were_rather_than_where_the_space_suggests() -> None:
    told, alone = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        vectors = unit(rng.normal(size=(400, DIM)) * np.linspace(1.5, 1, DIM)).astype(np.float32)
        before = (vectors @ rng.normal(size=DIM) > 0).astype(np.int64)
        found, (labels, _) = division.continued(vectors, before), division.kmeans(vectors, 2, seed)
        assert found is not None
        told.append(adjusted_rand_score(before, found.labels))
        alone.append(adjusted_rand_score(before, labels))
    assert np.mean(told) > 0.5 > 2 * np.mean(alone)


def of_kinds(noise: float) -> tuple[Array, Ints]:
    rng = np.random.default_rng(5)
    kinds = np.repeat([0, 1, 2], 60)
    return unit(np.eye(3, DIM)[kinds] + noise * rng.normal(size=(180, DIM))).astype(np.float32), kinds


def test_a_kind_that_is_new_is_worth_a_division_anew() -> None:
    vectors, kinds = of_kinds(0.1)
    found = division.divide(vectors, np.minimum(kinds, 1), 0)  # the last release had seen two of them as one
    assert found is not None and found.measured["continued"] == 0.0
    assert adjusted_rand_score(found.labels, kinds) == 1.0


@pytest.mark.parametrize("noise", [0.1, 0.2])
def test_where_nothing_changed_the_division_goes_on(noise: float) -> None:
    vectors, kinds = of_kinds(noise)
    before = np.where(np.arange(180) % 10 == 0, -1, kinds)
    found = division.divide(vectors, before, 0)
    assert found is not None and found.measured["continued"] == 1.0
    assert adjusted_rand_score(found.labels[before >= 0], before[before >= 0]) > 0.9
    assert {"again", "silhouette_continued", "silhouette_3"} <= found.measured.keys()


def test_the_same_seed_divides_the_same() -> None:
    vectors, kinds = of_kinds(0.2)
    for before in (kinds, np.full(180, -1)):
        one, other = division.divide(vectors, before, 7), division.divide(vectors, before, 7)
        assert one is not None and other is not None and one.measured == other.measured
        assert (one.labels == other.labels).all() and (one.centroids == other.centroids).all()


def test_too_few_users_are_no_division() -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(19, 8))).astype(np.float32)
    assert division.anew(vectors, 0) is None
    assert division.divide(vectors, np.arange(19) % 2, 0) is None
    assert division.divide(vectors[:0], np.zeros(0, dtype=np.int64), 0) is None


def test_structure_tells_kinds_from_a_cloud_without_any() -> None:
    """Also from a long one, which k-means cuts in two with a silhouette that is larger than that of some kinds."""
    rng = np.random.default_rng(0)
    kinds, _ = of_kinds(0.35)
    cloud = unit(np.eye(1, DIM) * 4 + rng.normal(size=(300, DIM)) * [1, 3, 0.5, 0.5, 0.5, 0.5]).astype(np.float32)
    nowhere = np.full(300, -1)
    of_kinds_, of_cloud = division.divide(kinds, nowhere[:180], 0), division.divide(cloud, nowhere, 0)
    assert of_kinds_ is not None and of_cloud is not None
    assert of_kinds_.measured["silhouette"] < of_cloud.measured["silhouette"]
    assert of_kinds_.measured["structure"] > 0.1 > 2 * of_cloud.measured["structure"]
