"""Why a user is shown an item, or is not: its place, what its score is made of, and which rule removed it."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.outputs import Reason
from stream.core.featurize import Float32, Sequence
from stream.core.index import ItemIndex
from stream.core.recommend import Rules, Scores, excluded, explain, rank, shares_by_source
from stream.core.state import UserState


class Disliked(msgspec.Struct, frozen=True, kw_only=True):
    """How people's dissatisfaction lowered an item: mean satisfaction, 0 to 1, of so many opinions; the factor of its score;
    and the place that it would have without."""

    satisfaction: float
    opinions: int
    factor: float
    place_without: int | None


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """One item for one user. `place`: 1 for the highest score among the items that rules let through; null for one they do
    not. `lift`: the score against that of the average item. `shares`: what each part of the mixture adds, summing to 1."""

    item_id: str
    shown: bool
    place: int | None
    of_items: int
    score: float
    lift: float
    shares: dict[str, float]
    reasons: tuple[Reason, ...]
    removed_by: tuple[str, ...]
    disliked: Disliked | None = None  # null where it changed nothing


def why(
    row: int, scores: Scores, state: UserState, known: Sequence, weights: Float32 | None, index: ItemIndex, rules: Rules
) -> Why:
    """Explain one row; weights (L,) are the encoder's for the events in `known`."""
    total, shown = scores.total, rank(scores.total, state, index, rules)
    allowed = index.recommendable[: len(total)].copy()
    past = excluded(state, index, rules)
    allowed[past] = False
    whole = max(float(total.sum(dtype=np.float64)), 1e-12)
    told = explain([row], scores, known, weights, index)[0]
    place = int((total[allowed] > total[row]).sum()) + 1 if allowed[row] else None
    return Why(
        item_id=index.ids[row], shown=row in shown, place=place, of_items=int(allowed.sum()), score=told.score,
        lift=round(float(total[row]) / whole * max(1, len(total)), 3), shares=shares_by_source(row, scores),
        reasons=told.reasons, removed_by=() if row in shown else _removed_by(row, index, rules, row in past, shown, place),
        disliked=_disliked(row, total, allowed, index),
    )  # fmt: skip


def _disliked(row: int, total: Float32, allowed: npt.NDArray[np.bool_], index: ItemIndex) -> Disliked | None:
    factors = index.demotion
    if factors is None or factors[row] >= 1.0:
        return None
    n, whole = index.satisfaction(row)
    before = total / np.maximum(factors[: len(total)], np.float32(1e-9))
    place = int((before[allowed] > before[row]).sum()) + 1 if allowed[row] else None
    return Disliked(satisfaction=round(whole / n, 4), opinions=int(n), factor=round(float(factors[row]), 4),
                    place_without=place)  # fmt: skip


def _removed_by(
    row: int, index: ItemIndex, rules: Rules, past: bool, shown: list[int], place: int | None
) -> tuple[str, ...]:  # fmt: skip
    """In plain words; the last resort is its place."""
    item, found = index.items[row], []
    if not index.recommendable[row]:
        if item is None:
            found.append("the catalog does not have it")
        else:
            found += [words for words, so in (("blocked in the catalog", item.blocked), ("out of stock", not item.in_stock))
                      if so] or ["removed from the catalog"]  # fmt: skip
    if past:
        found.append("the user bought it" if rules.exclude == "bought" else "the user dealt with it")
    code = index.category[row]
    same = sum(1 for one in shown if index.category[one] == code and not index.pinned[one])
    if not found and code >= 0 and same >= rules.category_cap:
        found.append(f"{same} items of its category are before it, more are not shown at once")
    if not found and place is not None:
        found.append(f"its place is {place}, {rules.top_n} are shown")
    return tuple(found)
