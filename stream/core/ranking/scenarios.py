"""What else than "for you" may be asked for: what resembles an item, what goes with a basket, what rises, what is bought
again, and what is due now, or of what category something is. Each gives scores over all items, so that the same rules,
filters and boosts apply to all.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from schemas.outputs import Reason, RecommendedItem
from stream.core.ranking.index import ItemIndex
from stream.core.ranking.recommend import REASONS_MAX, Rules, rank
from stream.core.user.featurize import Float32
from stream.core.user.state import Kind, UserState
from stream.core.user.totals import bought

Scenario = Literal["for_you", "again", "similar", "complements", "popular", "trending", "due", "due_categories"]
LEARNED = 0.75  # of what goes with an item; NDCG@10 on Online Retail's orders of May 2011: .319, half .309, .9 .320
PERSONAL: tuple[Scenario, ...] = ("for_you", "again")  # scored by the whole mixture, for the user

Bool = npt.NDArray[np.bool_]


def basket(state: UserState) -> list[str]:
    """Items in the user's cart: put there since the last order and not taken out, oldest first.

    >>> from stream.core.user.state import Touch
    >>> kinds = [("a", Kind.CART), ("b", Kind.CART), ("a", Kind.UNCART), ("c", Kind.VIEW)]
    >>> basket(UserState(ring=[Touch(at, f"m{at}", item, kind, 0.0) for at, (item, kind) in enumerate(kinds)]))
    ['b']
    """
    inside: dict[str, None] = {}
    for touch in state.history():
        if touch.kind == Kind.ORDER:
            inside.clear()
        elif touch.kind == Kind.CART:
            inside[touch.item_id] = None
        elif touch.kind == Kind.UNCART:
            inside.pop(touch.item_id, None)
    return list(inside)


def again(state: UserState, index: ItemIndex) -> Bool:
    """(N,): items the user ordered before."""
    found = np.zeros(len(index), dtype=bool)
    found[[row for item_id in bought(state) if (row := index.row_of.get(item_id)) is not None]] = True
    return found


def similar(index: ItemIndex, rows: list[int]) -> Float32:
    """(S, N): how near each item is to each given one. By the cosine of their vectors, which are of length one; by what
    follows where an item has no vector; a tenth of it by what is bought together, which breaks ties between like texts."""
    near: Float32 = np.maximum(index.matrix[rows] @ index.matrix.T, 0)  # (S, N)
    return np.asarray(near + np.float32(0.1) * complements(index, rows), dtype=np.float32)


def complements(index: ItemIndex, rows: list[int]) -> Float32:
    """(S, N): what is taken together with each given item, a distribution for each of which anything is known: LEARNED by
    links, the rest by live sequence rules, which know what is new; all by the one where the other says nothing."""
    found = np.zeros((len(rows), len(index)), dtype=np.float32)
    for at, row in enumerate(rows):
        linked, values, _ = index.linked(index.links.beside, np.array([row]), np.ones(1, dtype=np.float32))
        after, weights = index.successors(row)
        inside = after < found.shape[1]
        whole = float(values.sum())
        learned = 0.0 if whole <= 0 else LEARNED if len(after) else 1.0
        np.add.at(found[at], linked, values * np.float32(learned / max(whole, 1e-9)))
        np.add.at(found[at], after[inside], weights[inside] * np.float32(1 - learned))
    found[:, rows] = 0  # what is there already is no complement
    return found


def beside(basket: list[str], state: UserState, index: ItemIndex, rules: Rules) -> tuple[RecommendedItem, ...]:
    """What goes with a basket, by the rules about the user's past; nothing when nobody knows anything to go with it."""
    given = [index.row_of[item_id] for item_id in basket if item_id in index.row_of]
    by_given = complements(index, given)  # (S, N)
    total = by_given.sum(axis=0)  # (N,)
    if index.demotion is not None:
        total = total * index.demotion[: len(total)]
    if not total.any():
        return ()
    return told(rank(total, state, index, rules, total > 0), by_given, given, total, "complements", index, state)


def popular(index: ItemIndex, now_ms: int) -> Float32:
    """(N,): touches decayed by the usual half-life."""
    return index.popularity(now_ms)[:, 1]


def trending(index: ItemIndex, now_ms: int) -> Float32:
    """(N,): what is touched now beyond what it is touched usually, in standard deviations of a count: (recent − expected) /
    √(expected + 1), expected by the usual half-life's weight scaled to the recent one's total."""
    recent, usual, _ = index.popularity(now_ms).T
    expected = usual * (recent.sum(dtype=np.float64) / max(float(usual.sum(dtype=np.float64)), 1e-9))
    return np.asarray(np.maximum(recent - expected, 0) / np.sqrt(expected + 1), dtype=np.float32)


def told(
    rows: list[int], by_given: Float32, given: list[int], total: Float32, source: str, index: ItemIndex, state: UserState,
    most: int = REASONS_MAX,
) -> tuple[RecommendedItem, ...]:  # fmt: skip
    """Chosen rows with the given items, `most` at most, that speak for each, and the user's newest event about each of
    these, if one is remembered; by_given (S, N), total (N,)."""
    events = {touch.item_id: touch.event_id for touch in state.history()}
    whole = max(float(total.sum(dtype=np.float64)), 1e-12)
    items = []
    for row in rows:
        shares = by_given[:, row] / max(float(by_given[:, row].sum(dtype=np.float64)), 1e-12)
        strongest = np.argsort(-shares, kind="stable")[:most]
        why = tuple(Reason(event_id=events.get(item := index.ids[given[at]], ""), item_id=item,
                           share=round(float(shares[at]), 4)) for at in strongest if shares[at] > 0)  # fmt: skip
        items.append(RecommendedItem(item_id=index.ids[row], score=round(float(total[row]) / whole, 6),
                                     source="pinned" if index.pinned[row] else source, reasons=why))  # fmt: skip
    return tuple(items)
