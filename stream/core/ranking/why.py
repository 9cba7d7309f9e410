"""Why a user is shown an item, or is not: its place, what its score is made of, and which rule removed it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from schemas.outputs import Reason, RecommendedItem
from stream.core.ranking.choice import Choice
from stream.core.ranking.diversity import nearest
from stream.core.ranking.index import ItemIndex
from stream.core.ranking.recommend import excluded
from stream.core.user.featurize import Float32
from stream.core.user.state import UserState


class Disliked(msgspec.Struct, frozen=True, kw_only=True):
    """How people's dissatisfaction lowered an item: mean satisfaction, 0 to 1, of so many opinions; the factor of its score;
    and the place that it would have without."""

    satisfaction: float
    opinions: int
    factor: float
    place_without: int | None


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """One item for one user, by one request. `position`: where it is shown, from 1; null where it is not. `place`: by its
    score, 1 for the highest among the items that rules and filter let through; null for one they do not. The two differ
    where items are pinned, capped, explored or chosen to differ. `lift`: the score against that of the average item.
    `shares`: what each part of the mixture adds, summing to 1. `reasons`: the events that add most; `rest`: what is made of
    others (`others`), of events no longer known (`forgotten`), and of none (`popularity`: what everybody does; `model`: no
    event speaks for what it says); reasons and rest sum to 1, too. `removed_by`: why it is not shown, in words; empty where
    it is."""

    item_id: str
    shown: bool
    position: int | None
    place: int | None
    of_items: int
    score: float
    source: str
    lift: float
    shares: dict[str, float]
    reasons: tuple[Reason, ...]
    rest: dict[str, float]
    removed_by: tuple[str, ...]
    disliked: Disliked | None = None  # null where it changed nothing


def why(
    row: int, choice: Choice, state: UserState, index: ItemIndex, told: RecommendedItem, shares: Mapping[str, float],
    rest: Mapping[str, float],
) -> Why:  # fmt: skip
    """Explain one row of a choice for a user; `told`: the item as it would be shown; `shares`: what its score is made of;
    `rest`: what beside the reasons that are told."""
    total = choice.total
    whole = max(float(total.sum(dtype=np.float64)), 1e-12)
    position = choice.rows.index(row) + 1 if row in choice.rows else None
    place = _place(row, total, choice)
    return Why(
        item_id=index.ids[row], shown=position is not None, position=position, place=place, of_items=choice.candidates,
        score=told.score, source=told.source, lift=round(float(total[row]) / whole * max(1, len(total)), 3),
        shares=dict(shares), reasons=told.reasons, rest=dict(rest), disliked=_disliked(row, choice, index),
        removed_by=() if position is not None else _removed_by(row, choice, state, index, place),
    )  # fmt: skip


def _place(row: int, scores: Float32, choice: Choice) -> int | None:
    """Among what is allowed; ties go to the lower row, as in ranking."""
    if not choice.allowed[row]:
        return None
    before = (scores > scores[row]) & choice.allowed
    return int(before.sum() + ((scores == scores[row]) & choice.allowed)[:row].sum()) + 1


def _disliked(row: int, choice: Choice, index: ItemIndex) -> Disliked | None:
    factors = index.demotion
    if factors is None or factors[row] >= 1.0:
        return None
    n, whole = index.satisfaction(row)
    before = (choice.total / np.maximum(factors[: len(choice.total)], np.float32(1e-9))).astype(np.float32)
    return Disliked(satisfaction=round(whole / n, 4), opinions=int(n), factor=round(float(factors[row]), 4),
                    place_without=_place(row, before, choice))  # fmt: skip


def _removed_by(
    row: int, choice: Choice, state: UserState, index: ItemIndex, place: int | None
) -> tuple[str, ...]:  # fmt: skip
    """In plain words; the last resort is its place."""
    item, rules, found = index.items[row], choice.rules, []
    if not index.recommendable[row]:
        if item is None:
            found.append("the catalog does not have it")
        else:
            found += [words for words, so in (("blocked in the catalog", item.blocked), ("out of stock", not item.in_stock))
                      if so] or ["removed from the catalog"]  # fmt: skip
    if row in excluded(state, index, rules):
        found.append("the user bought it" if rules.exclude == "bought" else "the user dealt with it")
    found += [words for words, met in choice.conditions.items() if not met[row]]
    if row in choice.ranked:
        found.append("its place was given to an item that nobody knows yet, to learn about it")
    if found or place is None:
        return tuple(found)
    code = index.category[row]
    same = sum(1 for one in choice.ranked if index.category[one] == code and not index.pinned[one])
    if code >= 0 and not index.pinned[row] and same >= rules.category_cap:
        return (f"its category has {same} before it, more are not shown at once",)
    if rules.diversity:
        return (_too_alike(row, choice, index, place),)
    if place <= rules.top_n:
        return (f"its place is {place}, but pinned items come first and {rules.top_n} are shown",)
    return (f"its place is {place}, {rules.top_n} are shown",)


def _too_alike(row: int, choice: Choice, index: ItemIndex, place: int) -> str:
    rules = choice.rules
    others = "pinned items first, the others" if any(index.pinned[one] for one in choice.ranked) else "and they are"
    words = f"its place is {place}, {rules.top_n} are shown, {others} chosen to differ (diversity {rules.diversity:g})"
    alike = nearest(index.matrix[row], index.matrix[choice.ranked])
    return words if alike is None else f"{words}: it is most like {index.ids[choice.ranked[alike]]!r}"
