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

from training import division
from training.division import CLUSTERS_MIN, MEMBERS_MIN, Division, Ints

DIM = 6
Array = npt.NDArray[np.floating[Any]]

seeds = st.integers(0, 2**32 - 1)
ks = st.integers(CLUSTERS_MIN, 5)
histories = st.sampled_from([0.0, 0.3, division.HISTORY, 1.0])


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


def worth(vectors: Array, now: Ints, before: Ints, centroids: Array, history: float) -> float:
    """What is maximised, see the module."""
    some = before >= 0
    snapshot = (vectors * centroids[now]).sum()
    past = (vectors[some] * centroids[before[some]]).sum()
    return float((1 - history) * snapshot + history * past)


@given(seeds, ks, histories)
def test_what_is_settled_stays(seed: int, k: int, history: float) -> None:
    vectors, before = some_users(np.random.default_rng(seed), k)
    settled = division.continued(vectors, before, 0.0)
    if settled is not None:
        again = division.continued(vectors, settled.labels, history)
        assert again is not None and (again.labels == settled.labels).all()
        np.testing.assert_allclose(again.centroids, settled.centroids, atol=1e-6)


@given(seeds, ks, histories)
def test_a_turned_space_and_other_numbers_give_the_same(seed: int, k: int, history: float) -> None:
    rng = np.random.default_rng(seed)
    vectors, before = some_users(rng, k)
    turn, _ = np.linalg.qr(rng.normal(size=(DIM, DIM)))
    renamed = np.append(rng.permutation(k), -1)[before]
    found = division.continued(vectors, before, history)
    assert same(found, division.continued(vectors @ turn, before, history))
    assert same(found, division.continued(vectors, renamed, history))


@given(seeds, ks, st.integers(0, MEMBERS_MIN - 1), histories)
def test_an_old_cluster_of_few_is_as_if_it_had_not_been(seed: int, k: int, few: int, history: float) -> None:
    rng = np.random.default_rng(seed)
    vectors, before = some_users(rng, k)
    members = rng.permutation(len(vectors))[:few]
    with_few, without = before.copy(), before.copy()
    with_few[members], without[members] = k, -1
    found = division.continued(vectors, with_few, history)
    assert same(found, division.continued(vectors, without, history))
    if found is not None:
        assert CLUSTERS_MIN <= len(found.centroids) <= k
        assert np.bincount(found.labels, minlength=len(found.centroids)).min() >= MEMBERS_MIN


@given(seeds, ks, histories)
def test_it_is_worth_no_less_than_where_it_began(seed: int, k: int, history: float) -> None:
    vectors, before = some_users(np.random.default_rng(seed), k)
    found = division.continued(vectors, before, history)
    if found is not None and len(found.centroids) == k:
        begun = unit(np.stack([vectors[before == at].sum(axis=0) for at in range(k)]))
        first = (vectors @ begun.T).argmax(axis=1)
        now = worth(vectors, found.labels, before, found.centroids, history)
        assert now >= worth(vectors, first, before, begun, history) - 1e-4


def test_history_holds_a_division_that_nothing_in_the_space_suggests() -> None:
    """Users without kinds: another space divides them along something else, unless it is told."""
    agreed = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        vectors = unit(rng.normal(size=(400, DIM)) * np.linspace(1.5, 1, DIM))
        before = (vectors @ rng.normal(size=DIM) > 0).astype(np.int64)
        found = [division.continued(vectors, before, history) for history in (0.0, division.HISTORY, 1.0)]
        agreed.append([adjusted_rand_score(before, one.labels) for one in found if one is not None])
    free, ours, held = np.mean(agreed, axis=0)
    assert free < ours <= held and ours > 0.5


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
