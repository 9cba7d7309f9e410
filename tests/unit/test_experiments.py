"""Experiments: who is in which arm, what explores, and intervals that hold whenever somebody looks."""

from __future__ import annotations

from collections import Counter
from math import log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.catalog import Item
from stream.api.experiments import Experiments, ExperimentsError, load
from stream.core.experiments.experiments import Arm, Experiment, Explored, assigned, explored
from stream.core.ranking.counts import CountsPolicy, ItemCount
from stream.core.ranking.index import ItemIndex
from stream.core.ranking.recommend import Evidence, Rules, Scores, rank
from stream.core.user.state import UserState

CAPS = Experiment(name="caps", arms=(Arm(name="three"), Arm(name="five", weight=3.0, category_cap=5)), share=0.5)
RHO2, ALPHA = 0.085**2, 0.05


def test_users_are_split_as_the_weights_say_and_stay_where_they_are() -> None:
    users = [f"u{n}" for n in range(8_000)]
    found = Counter(one.arm.name if (one := assigned([CAPS], "shop", user, "for_you")) else "out" for user in users)
    assert abs(found["out"] / 8_000 - 0.5) < 0.02 and abs(found["five"] / (8_000 - found["out"]) - 0.75) < 0.03
    assert all(assigned([CAPS], "shop", user, "for_you") == assigned([CAPS], "shop", user, "for_you") for user in users[:50])
    other = Experiment(name="other", arms=CAPS.arms)
    both = [(assigned([CAPS], "shop", u, "for_you"), assigned([other], "shop", u, "for_you")) for u in users]
    inside = [(a.arm.name, b.arm.name) for a, b in both if a and b]
    assert abs(Counter(inside)["three", "three"] / len(inside) - 0.25 * 0.25) < 0.02, "experiments are independent"
    assert assigned([CAPS], "shop", users[0], "similar") is None


def test_no_version_draws_anew_who_is_in_which_arm_and_which_places_explore() -> None:
    """As running experiments have drawn them: another answer would move their users."""
    arms = [one.arm.name if (one := assigned([CAPS], "shop", f"u{n}", "for_you")) else "out" for n in range(12)]
    assert arms == ["out"] * 6 + ["five", "out", "out", "three", "out", "five"]
    index, scores = scored(40)
    only, rows = np.ones(40, dtype=bool), list(range(10))
    drawn = [explored(rows, scores, index, only, 3, 0.2, f"t/u{user}", 5).rows for user in range(1, 4)]
    places = [[place for place, row in enumerate(found) if row > 9] for found in drawn]
    assert places == [[2, 3, 4, 7, 9], [3, 4, 7], [2, 4, 6]]


def scored(n: int) -> tuple[ItemIndex, Scores]:
    """n items of which the later half is cold; the encoder likes high numbers."""
    index = ItemIndex(2, CountsPolicy())
    for at in range(n):
        index.put(Item(item_id=f"i{at}", tenant="t", title="x"), np.ones(2, dtype=np.float32))
        if at < n // 2:
            index.set_counts(f"i{at}", 0, ItemCount(popularity=50.0, ts_ms=1, recent=50.0, lasting=50.0))
    nothing = Evidence(*(np.zeros(0, dtype=np.int64),) * 2, np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.int64))
    total = np.arange(n, 0, -1, dtype=np.float32)
    return index, Scores(total, np.ones(n, dtype=np.float32), np.arange(n, dtype=np.float32),
                         np.zeros((n, 3), dtype=np.float32), nothing)  # fmt: skip


def test_a_share_of_places_goes_to_cold_items_for_a_day() -> None:
    index, scores = scored(40)
    only, rows = np.ones(40, dtype=bool), list(range(10))
    replaced = 0
    for user in range(500):
        found, new, _ = explored(rows, scores, index, only, 3, 0.2, f"t/u{user}", 5)
        assert set(new) <= set(range(20, 40)) and len(set(found)) == 10
        assert len(new) == sum(a != b for a, b in zip(found, rows, strict=True))
        assert new == sorted(new, reverse=True), "those that the encoder likes most come first"
        assert explored(rows, scores, index, only, 3, 0.2, f"t/u{user}", 86_000_000)[0] == found
        replaced += len(new)
    assert abs(replaced / 5_000 - 0.2) < 0.02
    only[20:] = False
    assert explored(rows, scores, index, only, 3, 0.2, "t/u1", 5) == (rows, [], (1.0,) * 10), "a filter holds for them too"
    assert explored(rows, scores, index, only, 3, 0.0, "t/u1", 5) == (rows, [], (1.0,) * 10)


def held_as_said(rows: list[int], index: ItemIndex, scores: Scores, only: Any, cap: int, explore: float) -> list[Explored]:
    """What 2,000 users see: each place holds each item as often as is said of it, and the chances of a place sum to 1."""
    held: Counter[tuple[int, int]] = Counter()
    said: dict[tuple[int, int], float] = {}
    several = [explored(rows, scores, index, only, cap, explore, f"t/u{user}", 5) for user in range(2_000)]
    for found in several:
        assert len(set(found.rows)) == len(found.chances) == len(rows) and set(found.new) == set(found.rows) - set(rows)
        for place in enumerate(found.rows):
            held[place] += 1
            assert said.setdefault(place, found.chances[place[0]]) == found.chances[place[0]], "it depends on nothing else"
    for place, chance in said.items():
        assert abs(held[place] / 2_000 - chance) < 4.5 * sqrt(max(chance * (1 - chance), 1e-4) / 2_000), (place, chance)
    for at in range(len(rows)):
        assert sum(chance for (place, _), chance in said.items() if place == at) == pytest.approx(1, abs=0.01)
    return several


@pytest.mark.parametrize(("explore", "cold"), [(0.3, 20), (0.5, 2), (1.0, 3), (0.9, 1)])
def test_places_hold_what_they_hold_as_often_as_is_said(explore: float, cold: int) -> None:
    index, scores = scored(40)
    only = np.ones(40, dtype=bool)
    only[20 : 40 - cold] = False
    held_as_said(list(range(5)), index, scores, only, 3, explore)


@pytest.mark.parametrize("explore", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("cap", [1, 2, 3])
def test_what_is_pinned_keeps_its_place_and_the_cap_holds_with_the_chances_that_are_said(explore: float, cap: int) -> None:
    """Of four categories and none; the encoder likes cold items of those best that are ranked as often as may be."""
    index, scores = scored(40)
    for at in range(40):
        kind = "" if at % 9 == 8 else f"c{at % 4}"
        index.put(Item(item_id=f"i{at}", tenant="t", title="x", category=kind, pinned=at in (4, 8, 12)),
                  np.ones(2, dtype=np.float32))  # fmt: skip
    ranked = rank(scores.total, UserState(), index, Rules(top_n=9, category_cap=cap))
    pinned = [at for at, row in enumerate(ranked) if index.pinned[row]]
    assert pinned == [0, 1, 2]
    several = held_as_said(ranked, index, scores, np.ones(40, dtype=bool), cap, explore)
    for found in several:
        assert found.rows[:3] == ranked[:3] and found.chances[:3] == (1.0,) * 3
        kinds = Counter(int(index.category[row]) for row in found.rows if index.category[row] >= 0 and not index.pinned[row])
        assert max(kinds.values()) <= cap
    swapped = {row for found in several for row in found.new}
    assert swapped & {row for row in range(20, 40) if index.category[row] >= 0}, "a full category's own items come in too"


def half_width(users: int, rate: float) -> float:
    """As `experiment_results` has it."""
    p = (rate * users + 1) / (users + 2)
    return sqrt(p * (1 - p)) * sqrt(2 * (users * RHO2 + 1) / (users**2 * RHO2) * log(sqrt(users * RHO2 + 1) / ALPHA))


def test_who_looks_all_the_time_is_fooled_no_more_often_than_said() -> None:
    rng, wrong, wrong_once = np.random.default_rng(0), 0, 0
    for _ in range(300):
        seen = rng.random(4_000) < 0.1
        rates = np.cumsum(seen) / np.arange(1, 4_001)
        looks = range(99, 4_000, 50)
        wrong += any(abs(rates[at] - 0.1) > half_width(at + 1, float(rates[at])) for at in looks)
        wrong_once += any(abs(rates[at] - 0.1) > 1.96 * sqrt(rates[at] * (1 - rates[at]) / (at + 1)) for at in looks)
    assert wrong / 300 <= 0.05 < wrong_once / 300, (wrong, wrong_once)


@pytest.mark.parametrize(("text", "complaint"), [
    ("experiments: [{name: a}]", "missing required field `arms`"),
    ("experiments: [{name: a, arms: [{name: x}, {name: x}]}]", "two arms of one name"),
    ("experiments: [{name: a, arms: [{name: x, boost: prize}]}]", "arm 'x': there is no field 'prize'"),
    ("experiments: [{name: a, arms: [{name: x, filter: price}]}]", "gives a number, wanted is a flag"),
    ("experiments: [{name: a, arms: [{name: x}]}, {name: a, arms: [{name: x}]}]", "have one name"),
    ("experiments: [{name: a, arms: []}]", "length >= 1"),
    ("experiments: [{name: a, scenario: similar, arms: [{name: x}, {name: new, explore: 0.1}]}]", "arm 'new': `explore` "
     "counts in scenarios for_you and again only, and does nothing in similar"),
])
def test_what_is_wrong_with_the_file_is_said_and_what_ran_goes_on(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "experiments.yml"
    path.write_text("experiments: [{name: good, arms: [{name: x}]}]")
    running = Experiments(path)
    assert [one.name for one in running.current()] == ["good"]
    path.write_text(text)
    with pytest.raises(ExperimentsError) as refused:
        load(path)
    assert complaint in str(refused.value) and str(path) in str(refused.value)
    running._looked_at = 0.0
    assert [one.name for one in running.current()] == ["good"]


def test_an_arm_explores_in_scenarios_that_are_scored_for_the_user(tmp_path: Path) -> None:
    path = tmp_path / "experiments.yml"
    path.write_text("experiments: [{name: a, scenario: again, arms: [{name: x}, {name: new, explore: 0.1}]}, "
                    "{name: b, scenario: popular, arms: [{name: x, explore: 0}]}]")
    assert [arm.explore for one in load(path) for arm in one.arms] == [None, 0.1, 0.0]


def test_popularity_is_a_number_at_any_time() -> None:
    """A user of whom nothing is known has no time of their own; one who was away for years has an old one."""
    index, _ = scored(4)
    index.set_counts("i0", 1, ItemCount(popularity=9.0, ts_ms=1_795_602_600_000, recent=9.0, lasting=9.0))
    for now_ms in (0, 1, 1_700_000_000_000, 1_795_602_600_000, 2_000_000_000_000):
        assert np.isfinite(index.popularity(now_ms)).all(), now_ms
