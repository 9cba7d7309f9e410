"""What an experiment has shown: each arm against the first, by each measure, and what may be done about it.

One measure decides, the primary. Its intervals of all arms hold together at 95%: each has 5% divided by the arms that are
compared (Bonferroni), so that whoever looks whenever they like is led astray by the primary at most once in twenty
experiments, and the same holds for all guardrails of all arms together. What else is measured is secondary: its intervals
hold together too, but they say what to try next, they decide nothing.

Arms whose sizes are not those that were assigned decide nothing either: somebody is missing from one of them, and who is
missing is hardly like those who are there (Fabijan et al., "Diagnosing Sample Ratio Mismatch in Online Controlled
Experiments", KDD 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from types import MappingProxyType
from typing import Literal, get_args

import msgspec

from stream.core.experiments.experiments import Experiment, Guardrail, Primary
from stream.core.statistics.confidence import ALPHA, Sample, chance_of_sizes, difference

Role = Literal["primary", "guardrail", "secondary"]
MEASURES: tuple[str, ...] = (*get_args(Primary), *get_args(Guardrail))
Seen = Literal["better", "worse", "stop", "higher", "lower", ""]  # empty: the interval holds 0
SEEN: Mapping[Role, tuple[Seen, Seen]] = MappingProxyType({  # of what is surely less, or surely more
    "primary": ("worse", "better"), "guardrail": ("lower", "stop"), "secondary": ("lower", "higher")})  # fmt: skip
NOTHING = Sample(0, 0.0, 0.0, 0)
SIZES_ALPHA = 0.001  # one experiment in a thousand is called ill without being so


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """One measure of an arm beside the first arm's: means a user, and the difference, by users' own past where that is
    known, from `low` to `high`; null while too little is known. Guardrails are better when lower."""

    arm: str
    metric: str
    role: Role
    users: int
    mean: float
    control_mean: float
    difference: float
    low: float | None
    high: float | None
    verdict: Seen


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """Users of each arm who saw an answer, beside the share that was assigned. `chance`: a p-value that holds at any
    time."""

    users: dict[str, int]
    assigned: dict[str, float]
    chance: float
    as_assigned: bool


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What may be done about an arm: `stop` because of a guardrail, whatever else is said; `not as assigned` where arms'
    sizes say that users are missing; else by the primary."""

    arm: str
    against: str
    decision: Literal["stop", "not as assigned", "better", "worse", "no decision"]
    effects: tuple[Effect, ...]


def role_of(experiment: Experiment, metric: str) -> Role:
    if metric == experiment.primary:
        return "primary"
    return "guardrail" if metric in experiment.guardrails else "secondary"


def sizes(experiment: Experiment, users: Mapping[str, int]) -> Sizes:
    """`users`: of each arm, all who saw an answer; an arm that the experiment does not have (any more) was assigned nobody.

    >>> from stream.core.experiments.experiments import Arm
    >>> one = Experiment(name="caps", arms=(Arm(name="three"), Arm(name="five", weight=3.0)))
    >>> sizes(one, {"three": 251, "five": 749}).as_assigned, sizes(one, {"three": 500, "five": 500}).as_assigned
    (True, False)
    """
    whole = sum(arm.weight for arm in experiment.arms)
    assigned = dict.fromkeys(users, 0.0) | {arm.name: arm.weight / whole for arm in experiment.arms}
    seen = {arm: users.get(arm, 0) for arm in assigned}
    chance = chance_of_sizes(list(seen.values()), list(assigned.values()))
    return Sizes(users=seen, assigned=assigned, chance=chance, as_assigned=chance > SIZES_ALPHA)


def judged(
    experiment: Experiment, samples: Mapping[tuple[str, str], Sample], *, as_assigned: bool = True
) -> list[Verdict]:
    """Every arm but the first, from (arm, measure) → its sample. `as_assigned`: what `sizes` says.

    >>> from stream.core.experiments.experiments import Arm
    >>> one = Experiment(name="caps", arms=(Arm(name="three"), Arm(name="five")), primary="orders")
    >>> sold = {("three", "orders"): Sample(9_000, 0.2, 0.2, 1_800), ("five", "orders"): Sample(9_000, 0.3, 0.3, 2_600)}
    >>> [(verdict.arm, verdict.decision) for verdict in judged(one, sold)]
    [('five', 'better')]
    """
    control, *others = [arm.name for arm in experiment.arms]
    roles = {metric: role_of(experiment, metric) for metric in MEASURES}
    found = []
    for arm in others:
        effects = tuple(
            _effect(arm, metric, role, samples.get((arm, metric), NOTHING), samples.get((control, metric), NOTHING),
                    ALPHA / len(others) / list(roles.values()).count(role))
            for metric, role in roles.items()
        )  # fmt: skip
        found.append(Verdict(arm=arm, against=control, decision=_decision(effects, as_assigned), effects=effects))
    return found


def _effect(arm: str, metric: str, role: Role, own: Sample, control: Sample, alpha: float) -> Effect:
    value, low, high = difference(own, control, alpha)
    less, more = SEEN[role]
    verdict: Seen = more if low > 0 else less if high < 0 else ""
    known = isfinite(value) and isfinite(high)
    return Effect(arm=arm, metric=metric, role=role, users=own.n, mean=own.mean, control_mean=control.mean,
                  difference=value, low=low if known else None, high=high if known else None, verdict=verdict)  # fmt: skip


def _decision(
    effects: tuple[Effect, ...], as_assigned: bool
) -> Literal["stop", "not as assigned", "better", "worse", "no decision"]:
    if any(one.verdict == "stop" for one in effects):
        return "stop"
    if not as_assigned:
        return "not as assigned"
    (primary,) = (one for one in effects if one.role == "primary")
    return "better" if primary.verdict == "better" else "worse" if primary.verdict == "worse" else "no decision"
