"""Laws of how near texts are to a user: what is near has all that the less near has, only the last touches count and only
how long they lie apart; and of the policy that begins with it: nearer is likelier until more is known."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.offers import PlacementTotals
from stream.core.offers.nearness import CUTS, TOUCHES_MAX, nearness, steps, taste
from stream.core.offers.offer_ledger import Learned
from stream.core.offers.offer_policy import LEAN, expand, lean, policy
from stream.core.statistics.bandit import EXPLORE, BayesianLinear, draw
from stream.core.user.state import DAY_MS, Kind, Touch

DIM = 6
ITEMS = {f"i{n}": one / np.linalg.norm(one) for n, one in enumerate(np.random.default_rng(3).normal(size=(9, DIM)))}
VECTORS = {item: one.astype(np.float32) for item, one in ITEMS.items()}
T0_MS = 20_000 * DAY_MS

seeds = st.integers(0, 2**32 - 1)
histories = st.lists(st.tuples(st.integers(0, 60 * DAY_MS), st.sampled_from([*ITEMS, "bare"])), max_size=45).map(
    lambda some: [Touch(T0_MS + at, f"e{n}", item, Kind.VIEW, 0.0) for n, (at, item) in enumerate(sorted(some))])


def unit(seed: int, n: int) -> Any:
    """(n, DIM) of length 1."""
    drawn = np.random.default_rng(seed).normal(size=(n, DIM))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


@given(st.floats(-2, 2), st.floats(-2, 2))
def test_what_is_nearer_has_all_that_the_less_near_has(one: float, other: float) -> None:
    near, far = steps(max(one, other)), steps(min(one, other))
    assert near[: len(far)] == far and len(set(near)) == len(near) <= len(CUTS)


@given(histories, st.integers(-9 * DAY_MS, 9 * DAY_MS))
def test_a_taste_is_that_of_the_last_touches_whenever_it_was(history: list[Touch], later_ms: int) -> None:
    found = taste(history, VECTORS.get)
    known = [one for one in history[-TOUCHES_MAX:] if one.item_id in VECTORS]
    assert (found is None) == (not known)
    if found is None:
        return
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)
    weights = np.array([2.0 ** -((known[-1].ts_ms - one.ts_ms) / (7 * DAY_MS)) for one in known])
    mean = weights @ np.array([ITEMS[one.item_id] for one in known])
    assert found == pytest.approx(mean / np.linalg.norm(mean), abs=1e-4)
    moved = [Touch(one.ts_ms + later_ms, one.event_id, one.item_id, one.kind, 0.0) for one in history]
    again = taste(moved, VECTORS.get)
    assert again is not None and np.array_equal(found, again), "it does not change with time alone"


@given(seeds, st.integers(1, 20), seeds)
def test_nearness_is_among_the_given_texts_whatever_their_order(seed: int, n: int, order: int) -> None:
    texts, liked = unit(seed, n), unit(seed + 1, 1)[0]
    near = nearness(texts, liked)
    assert abs(float(near.sum())) < 1e-4 and int(near.argmax()) == int((texts @ liked).argmax())
    shuffled = np.random.default_rng(order).permutation(n)
    assert nearness(texts[shuffled], liked) == pytest.approx(near[shuffled], abs=1e-5)
    alike = nearness(np.tile(texts[:1], (n, 1)), liked)
    assert {steps(float(one)) for one in alike} == {steps(0.0)}, "of texts that are all alike none is nearer"


@given(histories, seeds)
def test_who_dealt_with_one_thing_is_nearest_to_what_is_said_of_it(history: list[Touch], seed: int) -> None:
    only = [one for one in history if one.item_id == "i0"]
    texts = np.vstack([VECTORS["i0"][None], unit(seed, 3)])
    liked = taste(only, VECTORS.get)
    if liked is not None:
        near = nearness(texts, liked)
        assert near.argmax() == 0 and all(set(steps(float(one))) <= set(steps(float(near[0]))) for one in near)


@given(st.integers(0, len(CUTS)), st.integers(0, len(CUTS)), st.lists(st.sampled_from(["buyer", "away"]), unique=True))
def test_before_any_reward_a_nearer_text_is_likelier_by_what_is_believed(one: int, other: int, groups: list[str]) -> None:
    """Of two texts that are alike but for it: the difference is normal, of so many steps."""
    made, between = policy(PlacementTotals()), abs(one - other)
    names = [(*("*", "text=x"), *(f"near={n}" for n in range(1, end + 1))) for end in (one, other)]
    chance = float(made.propensities(names, [1.0, 1.0], groups)[0 if one > other else 1])
    if one == other:
        return
    believed = NormalDist(LEAN * between, ((1 + len(groups)) * between) ** 0.5)
    assert abs(chance - ((1 - EXPLORE) * (1 - believed.cdf(0)) + EXPLORE / 2)) < 0.12  # four standard errors of 256 draws


outcomes = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, len(CUTS)), st.integers(0, 9), st.integers(0, 9)), max_size=8)


def learned(some: list[tuple[str, int, int, int]]) -> PlacementTotals:
    """Of (text, steps, clicks, more impressions)."""
    found = Learned(PlacementTotals())
    for text, near, clicks, more in some:
        rows = found.rows(expand(("*", f"text={text}", *(f"near={n}" for n in range(1, near + 1))), ("buyer",)))
        found.gram[np.ix_(rows, rows)] += clicks + more
        found.moment[rows] += clicks
        found.outcomes, found.rewards = found.outcomes + clicks + more, found.rewards + clicks
    return found.totals()


@settings(max_examples=40)
@given(outcomes)
def test_what_is_believed_weighs_as_one_outcome_and_nothing_where_nearness_is_unknown(
    some: list[tuple[str, int, int, int]],
) -> None:
    totals = learned(some)
    made, n = policy(totals), len(totals.names)
    plain = BayesianLinear(n, noise=made.spread)
    plain.gram[:] = np.frombuffer(totals.gram, dtype=np.uint32).reshape(n, n)
    plain.moment[:] = np.frombuffer(totals.moment, dtype=np.uint32)
    before = draw(plain, int(made.version, 16))
    shift = np.linalg.solve(plain.gram + np.eye(n), made.spread * np.array([lean(name) for name in totals.names]))
    assert made.draws == pytest.approx(before + shift, abs=1e-9)
    if not any(name.startswith("near=") for name in totals.names):
        assert np.array_equal(made.draws, before), "what was logged before there was nearness is read as it was"


@settings(max_examples=10)
@given(seeds)
def test_what_is_learned_of_nearness_holds_for_texts_nobody_has_seen(seed: int) -> None:
    """Where the far ones are clicked, the policy has turned; where the near ones are, it has not."""
    rng = np.random.default_rng(seed)
    far, near = ("*", "text=far"), ("*", "text=near", *steps(1.0))
    for pays, at_least, at_most in ((0, 0.0, 0.45), (len(CUTS), 0.55, 1.0)):
        some = [(f"s{n}", end, *((30, 20) if end == pays else (2, 48))) for n in range(6)
                for end in (0, len(CUTS)) if rng.random() < 0.9]  # fmt: skip
        chance = policy(learned(some)).propensities([far, near], [1.0, 1.0], ("buyer",))[1]
        assert at_least <= chance <= at_most
