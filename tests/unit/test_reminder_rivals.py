"""Reminders against rules: as many of each, nobody preferred; and what a category knows that an item does not."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.catalog import Item
from stream.core.survival.reminders import WEEK_MS, Policy
from stream.core.user.state import DAY_MS, Kind
from tests.unit.test_training_repurchase import DAYS, SPLIT_MS, learned, order
from training.evaluation.metrics import Interval
from training.history import snapshot
from training.history.categories import CATALOG, DERIVED, NONE, TITLES_MIN, categories, with_categories
from training.history.snapshot import History
from training.panel.method import Past
from training.repurchase import reminder_rivals, repurchase
from training.repurchase.reminder_rivals import ALIKE, CATEGORY, ITEM, OWN, at_equal_volume
from training.repurchase.reminders import Purchases, Said, judged

NAMES = ["a", "b", "c"]
USERS = {f"u{n}": n for n in range(4)}
said = st.lists(st.builds(
    lambda user, what, day, score: Said(user, what, day * DAY_MS, (day + 14) * DAY_MS, score),
    st.sampled_from(sorted(USERS)), st.sampled_from(NAMES), st.integers(0, 60), st.integers(0, 9),
), max_size=30)  # fmt: skip
methods = st.dictionaries(st.sampled_from(("x", "y", "z")), said, min_size=1)
bought = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 80)), min_size=1, max_size=40)


@given(methods, st.integers(0, 3))
def test_of_each_method_as_many_its_best_within_the_cap_of_a_week(given_: dict[str, list[Said]], week_max: int) -> None:
    found = at_equal_volume(given_, week_max)
    assert len({len(some) for some in found.values()}) == 1
    assert found == at_equal_volume(dict(reversed(given_.items())), week_max), "no method comes first"
    for name, some in found.items():
        assert all(some.count(one) <= given_[name].count(one) for one in some)
        assert [one.score for one in some] == sorted((one.score for one in some), reverse=True)
        times = defaultdict(list)
        for one in some:
            times[one.user].append(one.from_ms)
        for of_user in times.values():
            assert all(sum(at - WEEK_MS < other <= at for other in of_user) <= week_max for at in of_user)
    alone = {name: at_equal_volume({name: some}, week_max)[name] for name, some in given_.items()}
    assert {name: some[: min(map(len, alone.values()))] for name, some in alone.items()} == found


def purchases(rows: list[tuple[int, int, int]]) -> Purchases:
    users, items, days = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    return Purchases(Past(users, items, days * DAY_MS, np.full(len(users), int(Kind.ORDER)), len(NAMES)), USERS, NAMES)


@settings(max_examples=40)
@given(said, said, bought, st.integers(1, 3))
def test_the_comparison_says_of_one_what_it_denies_of_the_other(
    one: list[Said], other: list[Said], rows: list[tuple[int, int, int]], week_max: int
) -> None:
    """Whoever is called the served one: the same shares, and the difference with the other sign."""
    equal = at_equal_volume({"x": one, "y": other}, week_max)
    models, ahead = judged(equal, purchases(rows), "x", "g")
    models_, ahead_ = judged(dict(reversed(equal.items())), purchases(rows), "y", "g")
    assert models == models_ and len(ahead) == len(ahead_)
    for measure, value in ahead.get("y", {}).items():
        turned = ahead_["x"][measure]
        assert (turned.value, turned.low, turned.high) == pytest.approx((-value.value, -value.high, -value.low))
    if ahead:
        hits = [sum(purchases(rows).bought(said) for said in equal[name]) for name in ("x", "y")]
        assert ahead["y"]["g.precision"].value == pytest.approx((hits[0] - hits[1]) / len(equal["x"]))
    against_itself = judged({"x": one, "y": one}, purchases(rows), "x", "g")[1]
    assert against_itself == ({"y": {"g.precision": Interval(0.0, 0.0, 0.0)}} if one else {})


def shop(category: dict[str, str], orders: list[tuple[int, int, str]]) -> History:
    """Orders (user, day, item); each item's category."""
    events: list[dict[str, Any]] = [order(user, day, [item]) for user, day, item in orders]
    return snapshot.from_events(events, [Item(item_id=item, tenant="t", category=of) for item, of in category.items()])


def test_where_a_category_has_a_period_its_average_interval_is_right_of_items_that_nobody_bought_twice_yet() -> None:
    """Coffee runs out after 20 days, soap, which more people buy, after 50, of whatever make. Until the split everybody
    bought makes that are no longer sold, from then on makes that nobody had: of these only the category knows."""
    rng, category = np.random.default_rng(4), dict[str, str]()
    orders: list[tuple[int, int, str]] = []
    for user in range(80):
        kind, period, old_until = (("coffee", 20, 185), ("soap", 50, 155))[user % 4 > 0]
        for make, first, last in ((f"old {kind} {user}", 0, old_until), (f"new {kind} {user}", 200, DAYS)):
            category[make] = kind
            orders += [(user, day, make) for day in range(first + int(rng.integers(0, 30)), last, period)]
    history = shop(category, orders)
    past, number = snapshot.interactions(history)
    model = learned(history.until(SPLIT_MS))
    assert model is not None
    known = repurchase.links_until(past, list(history.items), SPLIT_MS)
    found, _, whence = reminder_rivals.evaluated(history, past, number, SPLIT_MS, model, known, "clickwake")
    of_kind, of_item = found[CATEGORY], found[ITEM]
    assert whence == CATALOG
    assert of_kind["reminders.precision"].low > 0.9 > 0.1 > of_item["reminders.precision"].high
    for group in ("reminders.equal", "reminders.many.equal"):
        assert len({one[f"{group}.said"].value for one in found.values() if f"{group}.said" in one}) == 1
        assert {"clickwake", ITEM, CATEGORY, OWN} == {name for name, one in found.items() if f"{group}.said" in one}
        assert found["clickwake"][f"{group}.said"].value > 20
    assert of_kind["reminders.many.equal.precision"].low > of_item["reminders.many.equal.precision"].high


def test_a_category_is_due_after_its_own_interval_and_where_nothing_is_bought_twice_one_rule_says_so_alone() -> None:
    """Everybody buys some book every 30 days, half of them never the same one twice."""
    rng = np.random.default_rng(5)
    orders = [(user, day, f"book {user} {number if user % 2 else 0}") for user in range(40)
              for number, day in enumerate(range(int(rng.integers(0, 30)), DAYS, 30))]  # fmt: skip
    history = shop({item: "book" for _, _, item in orders}, orders)
    past, number = snapshot.interactions(history)
    kinds = categories(history)
    assert kinds.names == ["book"] and not kinds.of.any()
    asked = reminder_rivals.Asked(history, past, number, SPLIT_MS)
    ours = [Said("u1", "book", SPLIT_MS + DAY_MS, SPLIT_MS + 2 * DAY_MS)] * 2
    models, _ = reminder_rivals.of_categories(asked, kinds, ours, Policy(), "ours", "g")
    assert {name: one["g.category.said"].value for name, one in models.items()} == {
        "ours": 2, CATEGORY: 2, ALIKE: 2, OWN: 2}  # fmt: skip
    many = [Said(f"u{user}", "book", SPLIT_MS + 10 * day * DAY_MS, 0) for user in range(1, 40, 2) for day in range(1, 9)]
    models, _ = reminder_rivals.of_categories(asked, kinds, many, Policy(), "ours", "g")
    assert models[ALIKE]["g.category.precision"].low == models[CATEGORY]["g.category.precision"].low == 1.0
    assert 40 <= models[ALIKE]["g.category.said"].value <= 80, "of the half that never buys one twice"


def titled(*titles: str, category: str = "") -> History:
    items = [Item(item_id=f"i{n}", tenant="t", title=title) for n, title in enumerate(titles)]
    items += [Item(item_id="one", tenant="t", category=category)]
    return snapshot.from_events([order(1, 1, ["one"])], items)


def test_categories_are_the_catalogs_where_it_has_any_and_derived_where_enough_titles_end_in_a_word() -> None:
    mugs = [f"MUG no. {n} LARGE" for n in range(TITLES_MIN)]
    assert with_categories(titled(*mugs[1:]))[1] == with_categories(titled(*["PINK"] * 30))[1] == NONE
    history, whence = with_categories(titled(*mugs, "Mugs, hearts", category=""))
    assert whence == DERIVED and {item.category for item in history.items.values()} == {"mug", ""}
    own = titled(*mugs, category="kitchen")
    assert with_categories(own) == (own, CATALOG)
    kinds = categories(own)
    assert kinds.of.tolist() == [-1] * TITLES_MIN + [0]
    assert len(set(kinds.of_every_item().tolist())) == len(own.items), "an item without a category is alone"
    past = Past(np.zeros(3, dtype=np.int64), np.array([0, len(mugs), 1]), np.arange(3), np.full(3, 6), len(own.items))
    assert kinds.of_past(past).items.tolist() == [0] and kinds.of_past(past).ts_ms.tolist() == [1]
