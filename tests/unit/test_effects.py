"""What experiments show: whoever looks all the time is led astray no more often than said, and what is there is found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.core.experiments.effects import MEASURES, SIZES_ALPHA, Verdict, judged, role_of, sizes
from stream.core.experiments.experiments import Arm, Experiment
from stream.core.statistics.confidence import ALPHA, SOME_MIN, USERS_MIN, Sample, difference

USERS, LOOKS = 12_000, np.arange(400, 12_001, 400)
THREE = Experiment(name="three", arms=(Arm(name="a", weight=8), Arm(name="b"), Arm(name="c")), primary="revenue")


def sample(values: Any, past: Any) -> Sample:
    if len(values) < 2:
        return Sample(len(values), 0.0, 0.0, 0)
    both = np.cov(values, past)
    return Sample(len(values), float(values.mean()), float(both[0, 0]), int((values != 0).sum()), float(past.mean()),
                  float(both[1, 1]), float(both[0, 1]))  # fmt: skip


class Crowd:
    """Users one after the other: few of them buy, some of these very much (orders of 33 in the median, log sd 1.5); who
    bought before buys again. `lift`: factors of orders and of alerts in the last arm."""

    def __init__(self, rng: np.random.Generator, weights: tuple[float, ...], lift: tuple[float, float] = (1.0, 1.0)) -> None:
        n, last = USERS, len(weights) - 1
        self.arm = rng.choice(len(weights), n, p=np.array(weights) / sum(weights))
        keen = rng.gamma(0.5, 2.0, n)  # mean 1
        more, worse = (np.where(self.arm == last, one, 1.0) for one in lift)
        orders, before = rng.poisson(0.1 * keen * more), rng.poisson(0.4 * keen)
        dear = np.exp(rng.normal(0.0, 0.5, n))
        revenue, spent = (self._money(rng, of, dear) for of in (orders, before))
        none = np.zeros(n)
        self.values = {
            "clicked": (rng.random(n) < 0.15, none), "orders": (orders, before), "revenue": (revenue, spent),
            "alerted": (rng.random(n) < 0.04 * worse, none), "dissatisfied": (rng.random(n) < 0.005, none),
        }  # fmt: skip

    @staticmethod
    def _money(rng: np.random.Generator, orders: Any, dear: Any) -> Any:
        found, who = np.zeros(USERS), np.repeat(np.arange(USERS), orders)
        np.add.at(found, who, np.exp(rng.normal(3.5, 1.5, len(who))) * dear[who])
        return found

    def looks(self, experiment: Experiment) -> Iterator[dict[tuple[str, str], Sample]]:
        """What is known after so many users, from running sums."""
        at = {arm.name: self.arm == number for number, arm in enumerate(experiment.arms)}
        sums = {(name, metric): _running(mask, *(one.astype(np.float64) for one in self.values[metric]))
                for name, mask in at.items() for metric in MEASURES}  # fmt: skip
        for look in range(len(LOOKS)):
            yield {key: one[look] for key, one in sums.items()}


def _running(mask: Any, values: Any, past: Any) -> list[Sample]:
    def until(some: Any) -> Any:
        return np.cumsum(np.where(mask, some, 0.0))[LOOKS - 1]

    n, some = until(np.ones(USERS)), until(values != 0)
    enough = np.maximum(n, 2)
    mean, before = until(values) / enough, until(past) / enough
    moments = [(until(a * b) - enough * x * y) / (enough - 1) for a, b, x, y in (
        (values, values, mean, mean), (past, past, before, before), (values, past, mean, before))]  # fmt: skip
    columns = (n, mean, moments[0], some, before, moments[1], moments[2])
    rows = zip(*(one.tolist() for one in columns), strict=True)
    return [Sample(int(row[0]), row[1], row[2], int(row[3]), *row[4:]) for row in rows]


def first_words(crowd: Crowd, experiment: Experiment) -> dict[str, tuple[int, str]]:
    """Role → the first look at which any arm was said something of by it, and what; `before the end` nothing."""
    said: dict[str, tuple[int, str]] = {}
    for look, known in zip(LOOKS.tolist(), crowd.looks(experiment), strict=True):
        for verdict in judged(experiment, known):
            for one in verdict.effects:
                if one.verdict:
                    said.setdefault(one.role, (look, one.verdict))
    return said


def test_running_sums_are_what_the_users_add_up_to() -> None:
    crowd = Crowd(np.random.default_rng(9), (1, 1, 1))
    (*_, last) = crowd.looks(THREE)
    for (name, metric), found in last.items():
        mask = crowd.arm == "abc".index(name)
        values, past = (one[mask].astype(np.float64) for one in crowd.values[metric])
        assert found == pytest.approx(sample(values, past), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("weights", [(8, 1, 1), (1, 1, 1)])
def test_where_arms_are_alike_nothing_is_said_however_often_one_looks(weights: tuple[int, ...]) -> None:
    """Two arms against the first, with a tenth of the users or a third: of each role, any word at any look is an error."""
    runs = 100
    said = [first_words(Crowd(np.random.default_rng(seed), weights), THREE) for seed in range(runs)]
    for role in ("primary", "guardrail", "secondary"):
        wrong = sum(role in one for one in said)
        assert wrong <= ALPHA * runs, (role, wrong, runs)


def test_what_is_there_is_found_and_harm_stops_an_arm() -> None:
    even = Experiment(name="two", arms=(Arm(name="a"), Arm(name="b")), primary="orders")
    said = [first_words(Crowd(np.random.default_rng(seed), (1, 1), (1.4, 1.5)), even) for seed in range(20)]
    assert sum(one.get("primary", (0, ""))[1] == "better" for one in said) >= 0.9 * 20
    assert sum(one.get("guardrail", (0, ""))[1] == "stop" for one in said) >= 0.8 * 20
    (*_, last) = Crowd(np.random.default_rng(0), (1, 1), (1.4, 1.5)).looks(even)
    (verdict,) = judged(even, last)
    assert verdict.decision == "stop", "whatever the primary says"
    assert {one.metric: one.verdict for one in verdict.effects}["orders"] == "better"


def test_users_own_past_makes_it_sooner_sure_and_changes_no_truth() -> None:
    sharper, shift = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        past = rng.exponential(10.0, 8_000)
        values = past + rng.normal(0, 5, 8_000)
        halves = [sample(values[part], past[part]) for part in (slice(0, 4_000), slice(4_000, 8_000))]
        plain = [one._replace(before=0.0, before_variance=0.0, covariance=0.0) for one in halves]
        with_past, without = difference(*halves), difference(*plain)
        sharper.append((with_past.high - with_past.low) / (without.high - without.low))
        shift.append(with_past.value)
    assert max(sharper) < 0.5, "the rest has a quarter of the variance and less"
    assert abs(np.mean(shift)) < 3 * 5 * np.sqrt(2 / 4_000 / 20)


@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_more_arms_and_measures_make_it_no_easier(arms: int, seed: int) -> None:
    """Of equal samples the interval is the wider, the more is compared beside it; and it holds the difference."""
    rng = np.random.default_rng(seed)
    one, two = (Sample(2_000, rng.random(), 1 + rng.random(), 900) for _ in range(2))
    names = [f"a{n}" for n in range(arms + 1)]
    known = {(name, metric): one if name == "a0" else two for name in names for metric in MEASURES}
    found = judged(Experiment(name="e", arms=tuple(Arm(name=name) for name in names)), known)
    assert [verdict.arm for verdict in found] == names[1:] and {verdict.against for verdict in found} == {"a0"}
    for verdict in found:
        widths = {}
        for effect in verdict.effects:
            assert effect.low is not None and effect.high is not None and effect.low < effect.difference < effect.high
            widths[effect.role] = effect.high - effect.low
        assert widths["primary"] < widths["secondary"] == widths["guardrail"]
        alone = difference(two, one, ALPHA / arms)
        assert widths["primary"] == pytest.approx(alone.high - alone.low)


@pytest.mark.parametrize("weights", [(8, 1, 1), (1, 1)])
def test_sizes_as_they_were_assigned_are_called_so_however_often_one_looks(weights: tuple[int, ...]) -> None:
    rng, names = np.random.default_rng(4), "abc"[: len(weights)]
    arms = tuple(Arm(name=name, weight=weight) for name, weight in zip(names, weights, strict=True))
    one = Experiment(name="e", arms=arms)
    wrong = 0
    for _ in range(300):
        looks = rng.multinomial(200, np.array(weights) / sum(weights), size=50).cumsum(axis=0)  # up to 10,000 users
        wrong += not all(sizes(one, dict(zip(names, look, strict=True))).as_assigned for look in looks.tolist())
    assert wrong <= 3 * SIZES_ALPHA * 300


@pytest.mark.parametrize(("lost", "until"), [(0.3, 2_000), (0.1, 20_000), (0.03, 200_000)])
def test_users_who_are_missing_from_an_arm_are_found_and_nothing_is_decided(lost: float, until: int) -> None:
    even = Experiment(name="two", arms=(Arm(name="a"), Arm(name="b")))
    rng = np.random.default_rng(5)
    seen = [rng.binomial(until, (1 - lost) / (2 - lost)) for _ in range(50)]
    found = [sizes(even, {"a": until - n, "b": n}) for n in seen]
    assert sum(not one.as_assigned for one in found) >= 0.9 * len(found)
    sure = {("a", "clicked"): Sample(5_000, 0.2, 0.16, 1_000), ("b", "clicked"): Sample(5_000, 0.3, 0.21, 1_500)}
    assert [judged(even, sure, as_assigned=yes)[0].decision for yes in (True, False)] == ["better", "not as assigned"]
    harm = {("a", "alerted"): Sample(5_000, 0.1, 0.09, 500), ("b", "alerted"): Sample(5_000, 0.3, 0.21, 1_500)}
    assert judged(even, sure | harm, as_assigned=False)[0].decision == "stop"


def test_an_arm_that_the_file_does_not_have_was_assigned_nobody() -> None:
    even = Experiment(name="two", arms=(Arm(name="a"), Arm(name="b")))
    found = sizes(even, {"a": 50, "b": 50, "c": 1})
    assert (found.assigned, found.chance, found.as_assigned) == ({"c": 0.0, "a": 0.5, "b": 0.5}, 0.0, False)
    assert sizes(even, {"a": 2}).users == {"a": 2, "b": 0}


def test_too_few_say_nothing() -> None:
    sure, none = Sample(USERS_MIN, 1.0, 0.01, 20), Sample(USERS_MIN, 0.0, 0.01, 0)
    for own, other in ((sure._replace(n=USERS_MIN - 1), sure), (sure, none), (Sample(0, 0.0, 0.0, 0), sure)):
        two = Experiment(name="e", arms=(Arm(name="a"), Arm(name="b")))
        (verdict,) = judged(two, {("a", "clicked"): other, ("b", "clicked"): own})
        assert verdict.decision == "no decision" and {one.verdict for one in verdict.effects} == {""}
        assert {(one.low, one.high) for one in verdict.effects} == {(None, None)}
    assert difference(sure._replace(some=SOME_MIN), none).low > 0


def test_every_measure_has_one_role() -> None:
    one = Experiment(name="e", arms=(Arm(name="a"),), primary="revenue", guardrails=("dissatisfied",))
    assert {metric: role_of(one, metric) for metric in MEASURES} == {
        "clicked": "secondary", "orders": "secondary", "revenue": "primary", "alerted": "secondary",
        "dissatisfied": "guardrail"}  # fmt: skip
    assert judged(one, {}) == [], "one arm has nothing to be compared with"
    assert isinstance(judged(THREE, {})[0], Verdict)
