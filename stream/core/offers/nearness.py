"""How near texts, or offers of items, are to what a user lately dealt with, as features of a policy that learns from counts.

What a user dealt with is the mean of their items' text vectors, the newer the heavier; its cosine with a text is how near
that is (Rocchio's profile, in the form of Pazzani & Billsus, "Content-Based Recommendation Systems", 2007). Texts are
chosen among each other, so it counts by how much one is nearer than the given texts are on average: what all of them have
in common with everything that is sold here falls out. Features are 0 or 1: which of CUTS that passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np

from stream.core.user.featurize import Float32
from stream.core.user.state import DAY_MS, Touch

TOUCHES_MAX = 32  # the last ones
HALF_LIFE_MS = 7 * DAY_MS  # before the newest of them a touch weighs half as much as that one
CUTS = (-0.09, -0.03, 0.03, 0.09, 0.15)  # of cosine; none at 0, where texts that are all alike lie
STEP = "near="


def taste(touches: Sequence[Touch], vector_of: Callable[[str], Float32 | None]) -> Float32 | None:
    """(T,) of length 1: where the items of the last touches, oldest first, lie on average; None where no item has a vector.
    `vector_of`: (T,) of length 1, what the text encoder says of an item. It does not change as time passes.

    >>> kinds = {"mug": np.float32([1, 0]), "spade": np.float32([0, 1])}
    >>> week = [(0, "mug"), (HALF_LIFE_MS, "spade"), (HALF_LIFE_MS, "of which nothing is known")]
    >>> touches = [Touch(ts_ms, "e", item, 1, 0.0) for ts_ms, item in week]
    >>> (taste(touches, kinds.get) * 5**0.5).round(3).tolist()
    [1.0, 2.0]
    """
    found = [(touch.ts_ms, vector) for touch in touches[-TOUCHES_MAX:] if (vector := vector_of(touch.item_id)) is not None]
    if not found:
        return None
    ages = np.array([found[-1][0] - ts_ms for ts_ms, _ in found], dtype=np.float64) / HALF_LIFE_MS  # (N,)
    mean = 0.5**ages @ np.stack([vector for _, vector in found])  # (T,)
    length = float(np.linalg.norm(mean))
    return None if length < 1e-9 else (mean / length).astype(np.float32)


def nearness(texts: Float32, liked: Float32) -> Float32:
    """(K,): by how much the cosine with `liked` (T,) of each of K texts (K, T), all of length 1, is above their mean."""
    cosines = texts @ liked  # (K,)
    return np.asarray(cosines - cosines.mean(), dtype=np.float32)


def steps_of_items(
    offers: Sequence[Sequence[str]], liked: Float32, vector_of: Callable[[str], Float32 | None]
) -> list[tuple[str, ...]]:
    """Features of offers by their items: of each the mean cosine of these with `liked` (T,), among the offers that have one.
    An offer that has none counts as their mean, neither near nor far; where not two have one, there is nothing to be nearer
    than, and none has a feature.

    >>> kinds = {"spade": np.float32([1, 0]), "mug": np.float32([0, 1])}
    >>> [len(one) for one in steps_of_items([["spade", "gone"], ["mug"], ["gone"], []], kinds["spade"], kinds.get)]
    [5, 0, 2, 2]
    >>> steps_of_items([["spade", "mug"], ["gone"]], kinds["spade"], kinds.get)
    [(), ()]
    """
    named = dict.fromkeys(item for items in offers for item in items)
    vectors = {item: vector for item in named if (vector := vector_of(item)) is not None}
    cosines = dict(zip(vectors, (np.stack([*vectors.values()]) @ liked).tolist(), strict=True)) if vectors else {}
    near = [fmean(some) if (some := [cosines[item] for item in items if item in cosines]) else None for items in offers]
    known = [one for one in near if one is not None]
    if len(known) < 2:
        return [()] * len(offers)
    return [steps(0.0 if one is None else one - fmean(known)) for one in near]


def steps(above: float) -> tuple[str, ...]:
    """Features of a text that is so much nearer than the others: nearer ones have all of those of less near ones.

    >>> steps(0.1), steps(-1.0)
    (('near=1', 'near=2', 'near=3', 'near=4'), ())
    """
    return tuple(f"{STEP}{number}" for number, cut in enumerate(CUTS, 1) if above > cut)
