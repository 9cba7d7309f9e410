"""Where the model sees a user: the items nearest to their vector, before counts, rules and scenarios have a say."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np

from schemas.outputs import RecommendedItem
from stream.api.requests import Field
from stream.core.ranking.index import ItemIndex
from stream.core.user.featurize import Float32


class Nearest(msgspec.Struct, frozen=True, kw_only=True):
    """How many items, and what of the catalog comes along."""

    n: Annotated[int, msgspec.Meta(ge=1)] = 10
    fields: tuple[Field, ...] = ()


def nearest(vector: Float32 | None, index: ItemIndex, n: int) -> tuple[RecommendedItem, ...]:
    """The n items of the greatest cosine, which is their score, with a user's vector (D,), of those that may be recommended
    and have a vector. None without a model, or where nothing is known of the user."""
    length = 0.0 if vector is None else float(np.linalg.norm(vector))
    if vector is None or length == 0:
        return ()
    cosines = index.matrix @ (vector / length)  # (N,)
    rows = np.flatnonzero(index.placed & index.recommendable)
    best = rows[np.argsort(-cosines[rows], kind="stable")][:n]
    return tuple(RecommendedItem(item_id=index.ids[row], score=round(float(cosines[row]), 6), source="model")
                 for row in best)  # fmt: skip
