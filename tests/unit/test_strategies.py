"""Satisfaction by user, item and strategy: laws of the posterior, nothing known too early, weights by chances, verdicts."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from clickwake import strategies as command
from stream.adapters.database.strategies import version_of
from stream.api.offers import load
from stream.core.offers.offers import NO_OFFERS
from stream.core.opinions.strategies import NONE, Levels, Rated, as_of, carried, known_ms, learn, weights
from stream.core.opinions.strategy_comparison import Arm, Seed, compare, opinions_needed, seed, within
from stream.core.statistics import pooling
from stream.core.statistics.pooling import Estimate, Pooled, t_quantile
from stream.core.user.state import DAY_MS

BLOCKS = ["", "a", "a", "b", "b", "b"]
A, B = "offer/home/a", "offer/home/b"


def rated(at: int, strategy: str = A, y: float = 0.5, *, user: str = "u", item: str = "i", groups: tuple[str, ...] = (),
          propensity: float | None = 0.5, context: str = "placement/home", decided: int | None = None) -> Rated:  # fmt: skip
    return Rated(user, item, "garden", groups, strategy, context, propensity, at if decided is None else decided, at, y)


def outcomes(n: int, of: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(of)
    x = rng.normal(size=(n, len(BLOCKS)))
    x[:, 0] = 1
    return x, x @ np.array([0.7, 0.2, -0.2, 0.0, 0.05, 0.0]) + rng.normal(0, 0.3, n), rng.uniform(0.2, 2, n)


# ---- the posterior


@given(st.integers(0, 40), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_the_posterior_is_the_direct_solution_in_any_order_and_parts(n: int, of: int) -> None:
    x, y, w = outcomes(n, of)
    once, parts, order = Pooled(BLOCKS), Pooled(BLOCKS), np.random.default_rng(of).permutation(n)
    once.learn(x, y, w)
    for some in np.array_split(order, 3):
        parts.learn(x[some], y[some], w[some])
    found, again = once.posterior(), parts.posterior()
    assert again.mean == pytest.approx(found.mean) and again.noise == pytest.approx(found.noise)
    ridge = np.diag([found.spreads[name] ** -2 if name else pooling.LOOSE for name in BLOCKS])
    precision = x.T @ (x * w[:, None]) + ridge
    assert found.mean == pytest.approx(np.linalg.solve(precision, x.T @ (w * y)), abs=1e-9)
    left = (w * (y - x @ found.mean) ** 2).sum() + found.mean @ ridge @ found.mean
    degrees = pooling.OUTCOMES_BEFORE + w.sum()
    variance = (pooling.OUTCOMES_BEFORE * pooling.NOISE_BEFORE**2 + left) / degrees
    assert (found.degrees, found.noise**2) == pytest.approx((degrees, variance))
    assert found.root @ found.root.T == pytest.approx(variance * np.linalg.inv(precision), abs=1e-9)


def test_the_evidence_is_that_of_the_joint_student_t() -> None:
    x, y, _ = outcomes(25)
    sums = Pooled(BLOCKS)
    sums.learn(x, y, np.ones(25))

    def joint(spreads: dict[str, float]) -> float:
        before = np.diag([spreads[name] ** 2 if name else 1 / pooling.LOOSE for name in BLOCKS])
        shape = pooling.NOISE_BEFORE**2 * (np.eye(25) + x @ before @ x.T)
        return float(stats.multivariate_t.logpdf(y, shape=shape, df=pooling.OUTCOMES_BEFORE))

    one, other = {"a": 0.1, "b": 0.4}, {"a": 0.8, "b": 0.02}
    assert sums.evidence(one) - sums.evidence(other) == pytest.approx(joint(one) - joint(other), abs=1e-6)


def test_without_data_it_is_what_was_believed_and_a_block_of_small_effects_is_drawn_together() -> None:
    nothing = Pooled(BLOCKS).posterior()
    assert (nothing.mean == 0).all() and nothing.noise == pytest.approx(pooling.NOISE_BEFORE)
    believed = nothing.spreads["a"]
    assert nothing.spreads["b"] == pytest.approx(believed) and 1 < believed / pooling.SPREAD_BEFORE < pooling.SPREAD_FOLD
    one = nothing.of(np.eye(len(BLOCKS))[1])
    half = t_quantile(0.975, pooling.OUTCOMES_BEFORE) * pooling.NOISE_BEFORE * believed
    assert (one.low, one.high) == pytest.approx((-half, half))
    x, y, w = outcomes(4_000)
    sums = Pooled(BLOCKS)
    sums.learn(x, y, w)
    found = sums.posterior()
    assert found.spreads["a"] > found.spreads["b"]
    assert found.mean[1:3] == pytest.approx([0.2, -0.2], abs=0.03) and found.noise == pytest.approx(0.3, abs=0.02)


def test_intervals_hold_as_often_as_they_say() -> None:
    rng, hits = np.random.default_rng(5), []
    for of in range(120):
        theta = np.concatenate([[0.7], rng.normal(0, 0.06, 2), rng.normal(0, 0.06, 3)])
        x = np.hstack([np.ones((60, 1)), rng.normal(size=(60, 5))])
        sums = Pooled(BLOCKS)
        sums.learn(x, x @ theta + rng.normal(0, 0.3, 60), np.ones(60))
        found = sums.posterior()
        for at in range(1, 6):
            one = found.of(np.eye(6)[at])
            hits.append(one.low <= theta[at] <= one.high)
        assert found.seen(x[0]).high > found.of(x[0]).high, of
    assert 0.92 <= np.mean(hits) <= 0.99


@pytest.mark.parametrize("degrees", [10, 25.5, 400])
def test_quantiles_of_student_t(degrees: float) -> None:
    for share in (0.6, 0.9, 0.975):
        assert t_quantile(share, degrees) == pytest.approx(stats.t.ppf(share, degrees), abs=5e-4)


# ---- what is known when


SOME = st.lists(st.tuples(st.integers(0, 50), st.integers(-5, 20), st.sampled_from("uvw"), st.sampled_from("ij"),
                          st.floats(0, 1)), min_size=1, max_size=25)  # fmt: skip


@given(SOME, st.floats(0, 1), st.data())
def test_nothing_is_known_that_was_said_later(some: list[tuple[int, int, str, str, float]], other: float,
                                              data: st.DataObject) -> None:  # fmt: skip
    rows = [rated(said, y=y, user=user, item=item, decided=said - before) for said, before, user, item, y in some]
    found, _ = as_of(rows)
    at = data.draw(st.integers(0, len(rows) - 1))
    cut = known_ms(rows[at])
    changed = [row._replace(satisfaction=other) if row.said_ms >= cut else row for row in rows]
    assert as_of(changed)[0][at] == pytest.approx(found[at])
    kept = [row for row in rows if row.said_ms < cut]
    assert as_of([*kept, rows[at]])[0][-1] == pytest.approx(found[at])


def test_leanings_are_drawn_to_the_mean() -> None:
    rows = [rated(1, y=1.0, user="glad"), rated(2, y=0.0, user="sour", item="j"), rated(3, y=0.5, user="new", item="k")]
    _, known = as_of(rows)
    assert known.user("glad") > 0 > known.user("sour") and known.item("i") > 0 > known.item("j")
    assert known.user("stranger") == known.item("unheard of") == 0
    assert abs(known.item("i")) < abs(known.user("glad"))  # ten opinions of an average item against three of a user


def test_opinions_in_any_order_teach_the_same() -> None:
    rng = random.Random(3)
    rows = [rated(10 * at, rng.choice([A, B, NONE]), rng.random(), user=f"u{at % 7}", item=f"i{at % 5}",
                  groups=("new",) if at % 2 else ("loyal",), decided=10 * at - rng.randrange(90))
            for at in range(80)]  # fmt: skip
    model = learn(rows)
    rng.shuffle(rows)
    again = learn(rows)
    assert again.levels == model.levels and again.posterior.mean == pytest.approx(model.posterior.mean)
    with pytest.raises(ValueError, match="no opinions"):
        learn([])


# ---- chances


def test_an_opinion_weighs_by_the_inverse_of_its_chance_and_all_by_what_they_are_worth() -> None:
    rows = [rated(1, propensity=0.8), rated(2, propensity=0.2), rated(3, B, propensity=None), rated(4, B)]
    found = weights(rows)
    assert found[1] / found[0] == pytest.approx(4) and found[2:].tolist() == [1, 1]
    assert found[:2].sum() == pytest.approx((1 / 0.8 + 5) ** 2 / (1 / 0.8**2 + 25))
    known = carried(rows)
    assert known[A].by_lot and not known[B].by_lot and known[A].effective == pytest.approx(found[:2].sum())


def hidden(n: int, of: int) -> list[Rated]:
    """Grumblers, whom nothing tells apart, get b more often; neither offer changes what anybody thinks."""
    rng = np.random.default_rng(of)
    rows = []
    for at in range(n):
        grumbler = rng.random() < 0.5
        chance = 0.8 if grumbler else 0.2
        got_b = rng.random() < chance
        y = float(np.clip(rng.normal(0.5 if grumbler else 0.8, 0.15), 0, 1))
        rows.append(rated(at, B if got_b else A, y, user=f"u{at}", item=f"i{at % 9}",
                          propensity=chance if got_b else 1 - chance))  # fmt: skip
    return rows


def test_chances_undo_what_a_policy_chose() -> None:
    rows = hidden(3_000, 1)
    blind, seeing = learn([row._replace(propensity=None) for row in rows]), learn(rows)
    naive, known = (compare(one, one.asked({"x": ()}, {"y": "garden"})) for one in (blind, seeing))
    assert naive.arms[1].strategy == B and naive.arms[1].verdict == "worse" and not naive.arms[1].by_lot
    assert [one.verdict for one in known.arms] == ["no decision"] * 2 and all(one.by_lot for one in known.arms)
    assert abs(known.arms[1].behind.value) < 0.03 < 0.1 < abs(naive.arms[1].behind.value)


# ---- what is said


def planted(n: int) -> list[Rated]:
    """a pleases the new and displeases the loyal; b is for all alike; none came by themselves."""
    rng = np.random.default_rng(2)
    rows = []
    for at in range(n):
        group, strategy = ("new", "loyal")[rng.integers(2)], (A, B, NONE)[rng.integers(3)]
        mean = 0.65 + {"new": 0.15, "loyal": -0.15}[group] * (strategy == A)
        rows.append(rated(at * DAY_MS // 20, strategy, float(np.clip(rng.normal(mean, 0.2), 0, 1)), user=f"u{at % 97}",
                          item=f"i{at % 11}", groups=(group,), propensity=None if strategy == NONE else 0.5,
                          context="" if strategy == NONE else "placement/home"))  # fmt: skip
    return rows


def test_a_strategy_that_pleases_one_group_and_displeases_another() -> None:
    model = learn(planted(1_500))
    new = compare(model, model.asked({"u1": ("new",)}, {"i1": "garden"}))
    loyal = compare(model, model.asked({"u1": ("loyal",)}, {"i1": "garden"}))
    assert new.arms[0].strategy == A and {one.verdict for one in new.arms[1:]} == {"worse"}
    assert new.arms[0].verdict == "better" and not next(one for one in new.arms if one.strategy == NONE).by_lot
    assert loyal.arms[-1].strategy == A and loyal.arms[-1].verdict == "worse"
    assert {one.verdict for one in loyal.arms[:2]} == {"no decision"}
    assert set(loyal.seed.arms) == {B, NONE} and loyal.seed.opinions_each == opinions_needed(loyal.noise, 0.05)
    assert loyal.seed.days and new.opinions == 1_500 and new.noise == pytest.approx(0.2, abs=0.02)
    both = compare(model, model.asked({"u1": ("new",), "u2": ("loyal",)}, {"i1": "garden"}))
    halves = [next(one.satisfaction.value for one in part.arms if one.strategy == A) for part in (new, loyal)]
    assert next(one.satisfaction.value for one in both.arms if one.strategy == A) == pytest.approx(np.mean(halves), abs=0.02)
    with pytest.raises(ValueError, match="0 users"):
        model.asked({}, {"i": ""})


def test_a_strategy_alone_is_not_better_than_anything() -> None:
    model = learn([rated(at * DAY_MS, A, 1.0, user=f"u{at}") for at in range(300)])
    found = compare(model, model.asked({"u1": ()}, {"i": "garden"}))
    assert [(one.strategy, one.verdict) for one in found.arms] == [(A, "no decision")]
    assert found.seed.arms == (A,) and found.seed.why == "there is no other strategy to compare it with"


def test_rare_names_are_not_told_apart() -> None:
    rows = [rated(at, f"offer/home/o{at % 25}", groups=(f"g{at % 30}",)) for at in range(300)]
    rows = [row._replace(category=f"c{at % 40}") for at, row in enumerate(rows)]
    levels = Levels.of(rows)
    assert [len(one) for one in levels] == [20, 12, 20] and levels.categories[-1] == "other"
    assert levels.category(["c39", "never heard of"])[:, -1].tolist()[1] == 1
    assert len(levels.blocks()) == levels.of_rows(rows[:2], np.zeros((2, 2))).shape[1]


def arm(name: str, behind: float, *, by_lot: bool, verdict: str, per_day: float = 2.0) -> Arm:
    return Arm(strategy=name, satisfaction=Estimate(0.7, 0.6, 0.8), opinions=9, effective=9.0, per_day=per_day,
               behind=Estimate(behind, behind - 0.1, behind + 0.1), verdict=verdict, by_lot=by_lot)  # type: ignore[arg-type]


def test_the_seed_tries_what_cannot_be_told_apart_and_what_was_not_by_lot() -> None:
    best = arm(A, 0, by_lot=True, verdict="better")
    level, clear = arm(B, -0.08, by_lot=True, verdict="no decision"), arm(B, -0.2, by_lot=True, verdict="worse")
    chosen = arm(NONE, -0.2, by_lot=False, verdict="worse", per_day=0.0)
    both = seed([best, level, chosen], 0.3, 0.05)
    assert both.arms == (A, B) and both.difference == 0.08 and both.opinions_each == opinions_needed(0.3, 0.08)
    assert both.days == -(-both.opinions_each * 2 // 4)
    assert seed([best, clear], 0.3, 0.05).arms == (A,)
    confirmed = seed([best, chosen], 0.3, 0.05)
    assert confirmed.arms == (A, NONE) and "not by lot" in confirmed.why
    assert seed([arm(A, 0, by_lot=True, verdict="better", per_day=0.0)], 0.3, 0.05).days is None


FILE = """
placements:
  - {name: home, control: b, reward: order, window_hours: 48, groups: {buyer: orders > 0}}
offers:
  - {id: a, placements: [home, cart], text: "A!", tags: [discount], budget: {impressions_per_day: 100}}
  - {id: b, placements: [home], from: 2026-01-01T00:00:00Z}
  - {id: c, placements: [home]}
"""


def test_the_snippet_is_a_file_of_offers_with_what_the_present_one_says(tmp_path: Path) -> None:
    path = tmp_path / "offers.yml"
    path.write_text(FILE.replace(", cart", ""))
    tried = Seed(arms=(A, B, NONE, "delivery/save them"), difference=0.05, opinions_each=500, days=12, why="level")
    text = command.snippet(tried, load(path), "worth saving")
    path.write_text(text)
    found = load(path)
    offers = {one.id: one for one in found.placements["home"].offers}
    assert offers.keys() == {"a", "b"} and found.holdout == 0.25
    assert (offers["a"].text, offers["a"].tags, offers["a"].budget.impressions_per_day) == ("A!", ("discount",), 100)
    assert offers["b"].since is not None and offers["b"].segments == ("worth saving",)
    place = found.placements["home"].placement
    assert (place.control, place.reward, place.window_hours, place.groups) == (None, "order", 48, {"buyer": "orders > 0"})
    assert "500 opinions" in text and "12 days" in text and "deliveries.yml" in text
    path.write_text(command.snippet(msgspec.structs.replace(tried, arms=(A,), days=None), NO_OFFERS, None))
    assert [one.id for one in load(path).placements["home"].offers] == ["a"]
    assert "no offer" in command.snippet(msgspec.structs.replace(tried, arms=(NONE,)), NO_OFFERS, None)


def test_a_picture(tmp_path: Path) -> None:
    model = learn(planted(60))
    command.draw(compare(model, model.asked({"u1": ()}, {"i1": ""})), tmp_path / "strategies.png")
    assert (tmp_path / "strategies.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_predicted_of_many_is_what_is_asked_of_one_and_a_model_is_known_by_its_opinions() -> None:
    draw = random.Random(2)
    rows = [rated(at * DAY_MS, draw.choice((A, B)), draw.random(), user=f"u{at % 7}", item=f"i{at % 5}",
                  groups=("new",) if at % 7 < 3 else ()) for at in range(200)]  # fmt: skip
    model = learn(rows)
    users, items = {"u1": ("new",), "u5": (), "stranger": ("new",)}, {f"i{n}": "garden" for n in range(3_000)} | {"x": ""}
    found: dict[tuple[str, str], np.ndarray] = {}
    for one in model.predicted(users, items):
        found |= {(one.user, item): values for item, values in zip(one.items, one.values, strict=True)}
    assert found.keys() == {(user, item) for user in users for item in items}
    for user, item in (("u1", "i0"), ("u5", "i4"), ("stranger", "x"), ("u1", "i2999")):
        asked = model.asked({user: users[user]}, {item: items[item]})
        for number, name in enumerate(model.levels.strategies):
            mean = within(model.posterior.of(model.x(asked, name)))
            assert found[user, item][number] == pytest.approx((mean.value, mean.low, mean.high))
    assert version_of(rows) == version_of(list(rows)) != version_of([*rows, rated(1)])
