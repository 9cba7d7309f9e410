"""Strategies beside each other for the same users and items: what may be said, and what an experiment should try.

Two strategies are told apart where the 95% interval of their difference excludes 0; else there is no decision. The best one
and those that cannot be told from it seed the experiment, with the number of opinions that would tell them apart (two means,
known noise: Cohen, "Statistical Power Analysis", 1988, chapter 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from statistics import NormalDist
from typing import Literal

import msgspec

from stream.core.opinions.strategies import Asked, Carried, Model
from stream.core.statistics.pooling import Estimate

ERROR, POWER = 0.05, 0.8  # of the experiment that is to decide
LEAST = 0.05  # a fifth of a star: less is not worth telling apart
Verdict = Literal["better", "worse", "no decision"]


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """A strategy, the mean satisfaction that is expected under it, and what carries that. Against the best one: by how much
    it is behind, and what may be said. `by_lot`: both were chosen by chances that were logged; else it is not randomised."""

    strategy: str
    satisfaction: Estimate
    opinions: int
    effective: float
    per_day: float
    behind: Estimate
    verdict: Verdict
    by_lot: bool


class Seed(msgspec.Struct, frozen=True, kw_only=True):
    """What to try against each other: the best, and those that cannot be told from it. `opinions_each`: so many under each
    tell a difference of `difference` apart (error 5%, power 80%), which takes `days` at the present rate; null where none
    come in. `why` they are worth trying."""

    arms: tuple[str, ...]
    difference: float
    opinions_each: int
    days: int | None
    why: str


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """`noise`: standard deviation of one opinion around what is expected of it. `arms`: the best first."""

    users: int
    items: int
    opinions: int
    noise: float
    arms: tuple[Arm, ...]
    seed: Seed


def compare(model: Model, asked: Asked, least: float = LEAST) -> Compared:
    """Every strategy for the same users and items."""
    x = {name: model.x(asked, name) for name in model.levels.strategies}
    found = {name: model.posterior.of(one) for name, one in x.items()}
    order = sorted(found, key=lambda name: (-found[name].value, name))
    arms = [_arm(name, model, order[0], found[name], model.posterior.of(x[name] - x[order[0]])) for name in order]
    if arms[1:] and all(one.verdict == "worse" for one in arms[1:]):
        arms[0] = msgspec.structs.replace(arms[0], verdict="better")
    noise, opinions = model.posterior.noise, sum(one.opinions for one in model.carried.values())
    return Compared(users=asked.users, items=asked.items, opinions=opinions, noise=noise, arms=tuple(arms),
                    seed=seed(arms, noise, least))  # fmt: skip


def _arm(name: str, model: Model, best: str, found: Estimate, behind: Estimate) -> Arm:
    own = model.carried[name]
    return Arm(strategy=name, satisfaction=within(found), opinions=own.opinions, effective=own.effective,
               per_day=own.per_day, behind=behind, verdict="worse" if behind.high < 0 else "no decision",
               by_lot=compared_by_lot(own, model.carried[best]))  # fmt: skip


def compared_by_lot(one: Carried, other: Carried) -> bool:
    """Whether two strategies were alternatives, or the same, of choices whose chances are known."""
    return one.by_lot and other.by_lot and one.context == other.context


def seed(arms: Sequence[Arm], noise: float, least: float) -> Seed:
    """What to try, of arms with the best first."""
    tried = [one for one in arms[1:] if one.verdict == "no decision"]
    why = "cannot be told from the best yet" if len(arms) > 1 else "there is no other strategy to compare it with"
    if not tried and len(arms) > 1:
        tried = [] if arms[1].by_lot else [arms[1]]
        why = "the best one is clear of it, but by choices that were not by lot" if tried else "the best one is clear"
    nearest = min((abs(one.behind.value) for one in tried), default=least)
    difference, chosen = max(least, nearest), [*arms[:1], *tried]
    each = opinions_needed(noise, difference)
    rate = sum(one.per_day for one in chosen)
    days = ceil(each * len(chosen) / rate) if rate > 0 else None
    return Seed(arms=tuple(one.strategy for one in chosen), difference=difference, opinions_each=each, days=days, why=why)


def opinions_needed(noise: float, difference: float) -> int:
    """Under each of two strategies, until a difference of their means is found with POWER at an error of ERROR.

    >>> opinions_needed(0.3, 0.1), opinions_needed(0.3, 0.05)
    (142, 566)
    """
    z = NormalDist().inv_cdf(1 - ERROR / 2) + NormalDist().inv_cdf(POWER)
    return ceil(2 * (z * noise / difference) ** 2)


def within(one: Estimate) -> Estimate:
    """A mean of satisfactions lies between 0 and 1."""
    return Estimate(*(min(1.0, max(0.0, end)) for end in (one.value, one.low, one.high)))
