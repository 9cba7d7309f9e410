"""Who sees which arm of an experiment, and what an arm changes. Pure, by hashes: the same user is always in the same arm,
and a place that explores does so for a day.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import comb
from typing import Annotated, Literal, NamedTuple

import msgspec

from stream.core.index import ItemIndex
from stream.core.recommend import Scores
from stream.core.scenarios import Bool, Scenario
from stream.core.state import DAY_MS

COLD_TOUCHES = 3.0  # weight of touches in the long run below which nobody knows how an item does
Primary = Literal["clicked", "orders", "revenue"]
Guardrail = Literal["alerted", "dissatisfied"]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9 _-]{0,63}$")]


class Arm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is different for its users, where a request does not say so itself."""

    name: Name
    weight: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    boost: str | None = None
    filter: str | None = None
    exclude: Literal["none", "bought", "seen"] | None = None
    category_cap: Annotated[int, msgspec.Meta(ge=1)] | None = None
    diversity: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    explore: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None


class Experiment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`share` of users are in it; the first arm is what the others are compared with. `primary`: by what it is decided;
    `guardrails`: what stops an arm. See `stream.core.effects`."""

    name: Name
    arms: Annotated[tuple[Arm, ...], msgspec.Meta(min_length=1, max_length=10)]
    scenario: Scenario = "for_you"
    share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    tenant: str | None = None
    primary: Primary = "clicked"
    guardrails: tuple[Guardrail, ...] = ("alerted", "dissatisfied")


class ExperimentsFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    experiments: Annotated[tuple[Experiment, ...], msgspec.Meta(max_length=50)] = ()


class Assigned(NamedTuple):
    experiment: str
    arm: Arm


def assigned(experiments: Sequence[Experiment], tenant: str, user: str, scenario: str) -> Assigned | None:
    """The first experiment of this scenario that the user is in, and the arm.

    >>> one = Experiment(name="caps", arms=(Arm(name="three"), Arm(name="five", category_cap=5)))
    >>> {assigned([one], "shop", f"u{n}", "for_you").arm.name for n in range(20)} == {"three", "five"}
    True
    """
    for one in experiments:
        if one.scenario != scenario or one.tenant not in (None, tenant) or _unit(one.name, "in", tenant, user) >= one.share:
            continue
        drawn, whole = _unit(one.name, "arm", tenant, user), sum(arm.weight for arm in one.arms)
        for arm in one.arms:
            drawn -= arm.weight / whole
            if drawn < 0:
                return Assigned(one.name, arm)
        return Assigned(one.name, one.arms[-1])
    return None


class Explored(NamedTuple):
    """Rows to show; those among them that exploration put in; and the chance of each place to hold what it holds."""

    rows: list[int]
    new: list[int]
    chances: tuple[float, ...]


def explored(
    rows: list[int], scores: Scores, index: ItemIndex, only: Bool, share: float, who: str, now_ms: int
) -> Explored:  # fmt: skip
    """Ranked rows with a share of the places given to cold items, those that the encoder likes most for this user. Which
    places: by the hash of user, place and day, each alike and for itself, so that chances are known: over users, the k-th
    cold item is at a place when it is drawn and k places before it are."""
    if not share or not rows:
        return Explored(rows, [], (1.0,) * len(rows))
    n, day = len(scores.total), now_ms // DAY_MS
    lasting = index.popularity(now_ms)[:n, 2]
    cold = index.recommendable[:n] & only[:n] & index.placed[:n] & (lasting < COLD_TOUCHES)
    cold[rows] = False
    places = [at for at in range(len(rows)) if _unit("explore", who, str(at), str(day)) < share]
    candidates = sorted(cold.nonzero()[0].tolist(), key=lambda row: (-float(scores.encoder[row]), row))[: len(places)]
    taken = dict(zip(places, candidates, strict=False))
    drawn = list(taken)
    chances = tuple(
        _p_cold(share, at, drawn.index(at)) if at in taken
        else 1 - sum(_p_cold(share, at, k) for k in range(min(int(cold.sum()), at + 1)))
        for at in range(len(rows))
    )  # fmt: skip
    return Explored([taken.get(at, row) for at, row in enumerate(rows)], list(taken.values()), chances)


def _p_cold(explore: float, at: int, k: int) -> float:
    """The chance that a place holds the k-th cold item, with `at` places before it; k from 0.

    >>> [_p_cold(0.5, 1, k) for k in range(2)]
    [0.25, 0.25]
    """
    return explore * comb(at, k) * explore**k * (1 - explore) ** (at - k)


def _unit(*parts: str) -> float:
    """A number below 1 that these words stand for."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest(), "big") / 2**64
