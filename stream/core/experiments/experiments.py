"""Who sees which arm of an experiment, and what an arm changes. Pure, by hashes: the same user is always in the same arm,
and a place that explores does so for a day.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from math import comb
from typing import Annotated, Literal, NamedTuple

import msgspec
import numpy as np

from stream.core.ranking.index import ItemIndex
from stream.core.ranking.recommend import Scores
from stream.core.ranking.scenarios import Bool, Scenario
from stream.core.user.state import DAY_MS

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
    `guardrails`: what stops an arm. See `stream.core.experiments.effects`."""

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
    rows: list[int], scores: Scores, index: ItemIndex, only: Bool, category_cap: int, share: float, who: str, now_ms: int
) -> Explored:  # fmt: skip
    """Ranked rows with a share of the places given to cold items, those that the encoder likes most for this user; what is
    pinned keeps its place, and the cap holds. Which places: by the hash of user, place and day, each alike and for itself,
    so that chances are known: over users, the k-th cold item of a stream is at a place when that is drawn and k of the
    stream's places before it are."""
    if not share or not rows:
        return Explored(rows, [], (1.0,) * len(rows))
    n, day = len(scores.total), now_ms // DAY_MS
    lasting = index.popularity(now_ms)[:n, 2]
    cold = index.recommendable[:n] & only[:n] & index.placed[:n] & (lasting < COLD_TOUCHES)
    cold[rows] = False
    among = cold.nonzero()[0]
    likest = among[np.argsort(-scores.encoder[among], kind="stable")]  # ties go to the lower row
    held, chances = list(rows), [1.0] * len(rows)
    for places, candidates in _streams(rows, likest.tolist(), index, category_cap):
        k = 0
        for before, at in enumerate(places):
            if k < len(candidates) and _unit("explore", who, str(at), str(day)) < share:
                held[at], chances[at] = candidates[k], _p_cold(share, before, k)
                k += 1
            else:
                chances[at] = 1.0 - sum(_p_cold(share, before, k) for k in range(min(len(candidates), before + 1)))
    return Explored(held, [row for row, ranked in zip(held, rows, strict=True) if row != ranked], tuple(chances))


def _streams(rows: list[int], likest: list[int], index: ItemIndex, category_cap: int) -> list[tuple[list[int], list[int]]]:
    """Places, and the cold items that they are given to, in order; no place and no item is in two. A category of which as
    many are ranked as may be shown changes places with its own cold items only; all other places go to what the other
    categories have room for. So the cap holds whichever places are drawn, and what is drawn in one stream is nothing to
    another."""
    category, pinned = index.category, index.pinned
    free = [at for at, row in enumerate(rows) if not pinned[row]]
    shown = Counter(int(category[rows[at]]) for at in free)
    full = {code for code, count in shown.items() if code >= 0 and count >= category_cap}
    cold: dict[int, list[int]] = {-1: []}  # by category where that is full; -1: by none
    for row in likest:
        code = int(category[row])
        if code >= 0 and code not in full:
            if shown[code] >= category_cap:
                continue
            shown[code] += 1
        cold.setdefault(code if code in full else -1, []).append(row)
    places: dict[int, list[int]] = {}
    for at in free:
        code = int(category[rows[at]])
        places.setdefault(code if code in cold else -1, []).append(at)
    return [(some, cold[code]) for code, some in places.items()]


def _p_cold(explore: float, at: int, k: int) -> float:
    """The chance that a place holds its stream's k-th cold item, with `at` of its places before it; k from 0.

    >>> [_p_cold(0.5, 1, k) for k in range(2)]
    [0.25, 0.25]
    """
    return explore * comb(at, k) * explore**k * (1 - explore) ** (at - k)


def _unit(*parts: str) -> float:
    """A number below 1 that these words stand for."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest(), "big") / 2**64
