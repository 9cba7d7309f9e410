"""Lists whose items differ: greedy as it is defined, within the rules, and measurably less alike."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.catalog import Item
from stream.core.ranking.counts import CountsPolicy
from stream.core.ranking.diversity import NEW_MIN, nearest, varied
from stream.core.ranking.index import ItemIndex
from stream.core.ranking.recommend import Rules, rank
from stream.core.user.state import UserState
from training.recommend import diversity
from training.recommend.asking import Question
from training.text.texts import Texts


def unit(rng: np.random.Generator, n: int, dim: int) -> Any:
    vectors = rng.normal(size=(n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def by_determinants(scores: Any, vectors: Any, n: int, diversity: float) -> list[int]:
    """The definition: whoever raises (1 - d) of the sum of log scores + d log det of the chosen ones' products most."""
    chosen: list[int] = []
    while len(chosen) < n:
        gains = {}
        for at in set(range(len(scores))) - set(chosen):
            some = vectors[[*chosen, at]].astype(np.float64)
            before = vectors[chosen].astype(np.float64)
            new = np.linalg.det(some @ some.T) / (np.linalg.det(before @ before.T) if chosen else 1.0)
            gains[at] = (1 - diversity) * np.log(scores[at]) + diversity * np.log(max(new, NEW_MIN))
        chosen.append(max(gains, key=lambda at: (gains[at], -at)))
    return chosen


@given(seed=st.integers(0, 2**32 - 1), diversity=st.floats(0.05, 0.95))
def test_the_next_is_the_one_that_adds_most(seed: int, diversity: float) -> None:
    rng = np.random.default_rng(seed)
    scores = np.sort(rng.random(9).astype(np.float32) + 0.01)[::-1]
    vectors = unit(rng, 9, 6)
    none, kinds = np.zeros(9, dtype=bool), np.full(9, -1, dtype=np.int32)
    found = varied(scores, vectors, none, kinds, 4, 9, diversity)
    assert found == by_determinants(scores, vectors, 4, diversity)
    assert varied(scores, vectors, none, kinds, 9, 9, 0.0) == list(range(9)), "0 is the order of scores"


def shop(rng: np.random.Generator, items: int, groups: int, pinned: float = 0.05) -> ItemIndex:
    """Items in groups of near vectors; a category is half a group, some are pinned, the last have no vector."""
    index, centres = ItemIndex(8, CountsPolicy()), unit(rng, groups, 8)
    for at in range(items):
        vector = centres[at % groups] + 0.2 * unit(rng, 1, 8)[0]
        vector = np.zeros(8) if at >= items - 3 else vector / np.linalg.norm(vector)
        index.put(Item(item_id=f"i{at}", tenant="t", title="x", category=f"c{at % (2 * groups)}",
                       pinned=rng.random() < pinned, in_stock=rng.random() < 0.9), vector.astype(np.float32))  # fmt: skip
    return index


@given(seed=st.integers(0, 2**32 - 1), diversity=st.sampled_from([0.1, 0.5, 1.0]), cap=st.integers(1, 4),
       items=st.sampled_from([0, 1, 40, 900]), n=st.sampled_from([1, 10, 100]))  # fmt: skip
def test_the_rules_hold_however_much_they_differ(seed: int, diversity: float, cap: int, items: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    index, total = shop(rng, items, 5), rng.random(items).astype(np.float32)
    rules = Rules(top_n=n, category_cap=cap, diversity=diversity)
    rows, plain = (rank(total, UserState(), index, one) for one in (rules, Rules(top_n=n, category_cap=cap)))
    assert len(rows) == len(set(rows)) == len(plain), "as many as there are by score alone"
    assert index.recommendable[rows].all()
    assert sorted(rows, key=lambda row: not index.pinned[row]) == rows, "pinned items come first"
    codes = [int(index.category[row]) for row in rows if not index.pinned[row]]
    assert max((codes.count(code) for code in codes), default=0) <= cap
    if rows and not index.pinned[rows[0]]:
        assert rows[0] == plain[0], "the best one has nothing before it to differ from"


def test_pinned_items_come_in_the_order_of_their_scores() -> None:
    index, total = shop(np.random.default_rng(3), 40, 4, pinned=1.0), np.linspace(0.01, 0.02, 40, dtype=np.float32)
    rows = rank(total, UserState(), index, Rules(top_n=5, category_cap=40))
    best = np.flatnonzero(index.recommendable)[::-1][:5]
    assert rows == best.tolist()


def alike(index: ItemIndex, rows: list[int]) -> float:
    near = index.matrix[rows] @ index.matrix[rows].T
    return float(near[np.triu_indices(len(rows), 1)].mean())


@pytest.mark.parametrize("seed", range(5))
def test_more_of_it_is_less_alike_and_costs_score(seed: int) -> None:
    rng = np.random.default_rng(seed)
    index = shop(rng, 600, 6, pinned=0.0)
    taste = unit(rng, 1, 8)[0]
    total = np.exp(4 * (index.matrix @ taste)).astype(np.float32)
    lists = [rank(total, UserState(), index, Rules(category_cap=100, diversity=d)) for d in (0.0, 0.3, 0.7)]
    similar, scored = [alike(index, rows) for rows in lists], [float(np.log(total[rows]).sum()) for rows in lists]
    assert similar[0] > similar[1] > similar[2] and scored[0] > scored[1] > scored[2]


def test_who_is_like_nothing_is_told_so() -> None:
    one = np.array([0.0, 1.0], dtype=np.float32)
    assert nearest(one, np.zeros((0, 2), dtype=np.float32)) is None
    assert nearest(one, np.array([[1.0, 0.0], [0.0, -1.0]], dtype=np.float32)) is None


def test_what_it_costs_is_measured_as_it_is_served() -> None:
    """Two planted tastes: the score knows the one that is wanted, so that to differ is to miss."""
    rng = np.random.default_rng(4)
    index = shop(rng, 60, 4, pinned=0.0)
    for item in index.items:
        index.put(msgspec.structs.replace(item, in_stock=True), index.matrix[index.row_of[item.item_id]])
    ids = list(index.ids)
    wanted = np.arange(0, 60, 4)[:8]
    total = np.where(np.arange(60) % 4 == 0, 1.0, 0.2).astype(np.float32) + np.linspace(0.1, 0, 60, dtype=np.float32)
    asked = [Question("u", UserState(), 1, wanted, np.zeros(0, dtype=np.int64))] * 3
    columns: Any = SimpleNamespace(known=lambda now_ms: np.arange(60) < 56)
    ours: Any = SimpleNamespace(index=index, scores=lambda some: np.stack([total] * len(some)))
    models, ahead = diversity.measured(ours, asked, columns, Texts.named("s", ids, index.matrix.copy()), ids, "ours")
    at = [models[name] for name in ("ours", "ours, diversity 0.1", "ours, diversity 0.7")]
    assert at[0]["differing.ndcg@10"].value == pytest.approx(1.0), "the best eight, and two that nobody wanted"
    quality, similar = ([one[f"differing.{name}@10"].value for one in at] for name in ("ndcg", "alike"))
    assert quality[0] > quality[1] > quality[2] and min(similar[:2]) > similar[2]
    assert ahead["ours, diversity 0.7"]["differing.ndcg@10"].value == pytest.approx(quality[0] - quality[2])
