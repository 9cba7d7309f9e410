"""What goes with a basket: laws of the scores, what is learned of orders, planted complements through the worker's path."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.catalog import Item
from stream.core.ranking import links, scenarios
from stream.core.ranking.counts import CountsPolicy, ItemCount
from stream.core.ranking.index import ItemIndex
from stream.core.ranking.links import Links, Weights, no_weights
from stream.core.ranking.recommend import Rules
from stream.core.user.state import DAY_MS, Kind, UserState
from tests.unit.test_training_repurchase import START_MS, order
from training.history.snapshot import Replay, from_events, interactions
from training.panel.method import Past
from training.recommend import links as learning
from training.repurchase import cross_sell

N = 6
cells = st.lists(st.just(0.0) | st.floats(0.015625, 5, width=32), min_size=N * N, max_size=N * N)


def index(learned: list[float], rules: list[float], rows: int = N) -> ItemIndex:
    """Items i0 …; learned and rules (N, N) are weights of what goes with each, links know the first `rows` items."""
    table = np.array(learned, dtype=np.float32).reshape(N, N)[:rows]
    np.fill_diagonal(table, 0)
    columns = np.tile(np.arange(N, dtype=np.int32), (rows, 1))[:, :rows]
    beside = Weights(columns, table[:, :rows])
    known = Links([f"i{n}" for n in range(rows)], np.zeros(rows, np.float32), no_weights(rows), no_weights(rows), beside)
    made = ItemIndex(2, CountsPolicy(), known)
    for n in range(N):
        made.put(Item(item_id=f"i{n}", tenant="t"), np.zeros(2, np.float32))
        successors = {f"i{other}": rules[n * N + other] for other in range(N) if other != n and rules[n * N + other]}
        made.set_counts(f"i{n}", 0, ItemCount(successors=successors, ts_ms=1, rules_ts_ms=1))
    return made


@settings(max_examples=100, deadline=None)
@given(cells, cells, st.integers(1, N), st.lists(st.integers(0, N - 1), min_size=1, unique=True))
def test_each_item_of_a_basket_has_the_same_say_and_nothing_inside_is_said(
    learned: list[float], rules: list[float], rows: int, basket: list[int]
) -> None:
    made = index(learned, rules, rows)
    alone = np.concatenate([scenarios.complements(made, [row]) for row in basket])  # (S, N)
    sums = alone.sum(axis=1)
    assert (alone >= 0).all() and all(one == 0 or one == pytest.approx(1, abs=1e-4) for one in sums)
    known = [bool(made.links.beside.values[row].any()) if row < rows else False for row in basket]
    ruled = [bool(len(made.successors(row)[0])) for row in basket]
    assert [one > 0 for one in sums] == [a or b for a, b in zip(known, ruled, strict=True)]
    together = scenarios.complements(made, basket)
    assert not together[:, basket].any()
    outside = np.setdiff1d(np.arange(N), basket)
    np.testing.assert_allclose(together[:, outside], alone[:, outside], rtol=1e-6)
    said = scenarios.beside([f"i{n}" for n in basket], UserState(), made, Rules(top_n=N))
    back = scenarios.beside([f"i{n}" for n in reversed(basket)], UserState(), made, Rules(top_n=N))
    assert {one.item_id: one.score for one in said} == pytest.approx({one.item_id: one.score for one in back}, abs=1e-5)
    assert not {one.item_id for one in said} & {f"i{n}" for n in basket}


def test_an_item_newer_than_the_bundle_is_answered_by_live_rules_alone() -> None:
    none, rules = [0.0] * N * N, [0.0] * N * N
    rules[5 * N + 2] = 3.0  # i5 → i2
    (one,) = scenarios.beside(["i5"], UserState(), index(none, rules, rows=3), Rules())
    assert (one.item_id, one.score) == ("i2", 1.0)


def test_a_bundle_from_before_orders_were_learned_answers_by_what_the_same_users_touch() -> None:
    together = Weights(np.array([[1], [0]], np.int32), np.array([[0.5], [0.25]], np.float32))
    whole = Links(["a", "b"], np.zeros(2, np.float32), no_weights(2), together, no_weights(2))
    with np.load(io.BytesIO(links.to_bytes(whole))) as arrays:
        older = {name: value for name, value in arrays.items() if not name.startswith("beside")}
    buffer = io.BytesIO()
    np.savez(buffer, **older)
    read = links.from_bytes(buffer.getvalue())
    assert np.array_equal(read.beside.columns, together.columns) and np.array_equal(read.beside.values, together.values)
    assert links.from_bytes(links.to_bytes(whole)).beside.values.shape == (2, 0)


def lines(some: list[tuple[int, int, list[int]]], n: int, kind: Kind = Kind.ORDER) -> Past:
    """(user, day, items) each."""
    rows = [(user, item, day * DAY_MS, kind) for user, day, items in some for item in items]
    users, items, ts_ms, kinds = np.array(sorted(rows, key=lambda one: one[2]), dtype=np.int64).T
    return Past(users, items, ts_ms, kinds, n)


def first(weights: Weights, row: int) -> int:
    return int(weights.columns[row][weights.values[row].argmax()])


def test_what_is_bought_on_purpose_together_is_not_drowned_by_what_is_bought_with_everything() -> None:
    """20 items in pairs (0, 1), (2, 3) …; item 20 is in every order; wholesalers take 18 of the 20 at once, and often one of
    a pair without the other."""
    rng = np.random.default_rng(4)
    pairs = [(user, user % 60, [2 * (user % 10), 2 * (user % 10) + 1, 20]) for user in range(80)]
    bulk = [(100 + at, at % 60, [*rng.permutation(20)[:18].tolist(), 20]) for at in range(40)]
    past = lines(pairs + bulk, 21)
    found = learning.fit(past, [f"i{n}" for n in range(21)], 61 * DAY_MS)
    assert [first(found.beside, row) for row in range(20)] == [row ^ 1 for row in range(20)]
    assert (found.beside.values >= 0).all() and not found.beside.values[found.beside.columns == np.arange(21)[:, None]].any()
    viewed = learning.fit(lines(pairs + bulk, 21, Kind.VIEW), [f"i{n}" for n in range(21)], 61 * DAY_MS)
    assert [first(viewed.beside, row) for row in range(20)] == [first(viewed.together, row) for row in range(20)]


def test_planted_complements_are_said_by_the_worker_and_the_others_are_asked_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cross_sell, "SETTINGS", cross_sell.SETTINGS[::7])  # for time
    rng = np.random.default_rng(5)
    events: list[dict[str, Any]] = []
    for user in range(60):
        for day in np.flatnonzero(rng.random(120) < 0.08).tolist():
            pair = int(rng.integers(0, 12))
            events.append(order(user, day, ["bag", f"cup{pair}", f"saucer{pair}", f"x{rng.integers(30)}"]))
    history, split_ms = from_events(events), START_MS + 90 * DAY_MS
    before = history.until(split_ms)
    past, number = interactions(history)
    known, _ = interactions(before)
    replaying = Replay(before)
    replaying.advance(split_ms)
    learned = learning.fit(known, list(before.items), before.to_ms + 1)
    served = cross_sell.Served(before, replaying.snapshot.counts.counts, learned)
    for pair in range(12):
        said = served.ask("new", UserState(), [f"cup{pair}"], split_ms, Rules())
        assert said[0] == f"saucer{pair}" and f"cup{pair}" not in said
    state = replaying.snapshot.states["u3"]
    bought = {item for item, stat in state.items.items() if stat.orders}
    assert not bought & set(served.ask("u3", state, ["cup1"], split_ms, Rules())), "the worker's rule about the past holds"
    assert bought & set(served.ask("u3", state, ["cup1"], split_ms, Rules(exclude="none")))
    assert state.ring == replaying.snapshot.states["u3"].ring and not state.put_event_id, "asking leaves no trace"
    found = cross_sell.evaluated(before, past, list(history.items), number, replaying.snapshot, learned, split_ms,
                                 split_ms + 30 * DAY_MS)  # fmt: skip
    assert list(found) == list(cross_sell.RULES)
    for values, users in found.values():
        assert all(len(one) == len(users) > 20 for some in values.values() for one in some.values())
        ours = values[cross_sell.SERVED]["recall@10"].mean()
        assert ours > values[cross_sell.POPULARITY]["recall@10"].mean() + 0.1
    assert found["cross-sell"][0][cross_sell.KNN]["hr@10"].mean() > 0.9, "a fair rival"


def test_half_of_each_order_is_given_by_lot_and_nothing_is_asked_twice() -> None:
    past = lines([(user, user % 40, list(range(user % 8))) for user in range(200)], 9)
    asked = cross_sell.baskets(past, 20 * DAY_MS, 40 * DAY_MS, seed=1)
    assert len(asked) > 50
    for one in asked:
        whole = np.concatenate([one.given, one.wanted])
        assert len(np.unique(whole)) == len(whole) == one.user % 8 and len(one.given) == len(whole) // 2
    assert all(len(one.given) == 1 for one in cross_sell.baskets(past, 20 * DAY_MS, 40 * DAY_MS, one=True))
    assert cross_sell.baskets(past, 90 * DAY_MS, 99 * DAY_MS) == []
