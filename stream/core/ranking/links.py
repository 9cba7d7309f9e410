"""Learned item-to-item weights: what follows an item, what goes together with it and what completes a basket with it, as
sparse rows of a bundle.

Learned offline (training/recommend/links.py), asked live: the weights of a user's items are added up, so every score
splits exactly by the event that caused it. Item numbers here are the bundle's; `ItemIndex` translates them into its rows.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stream.core.user.featurize import Float32

KINDS = ("follows", "together", "beside")
REPEAT_UNKNOWN = -1.5  # log rate of an item the links do not know: about a fifth of buyers come back for one


class Weights(NamedTuple):
    """The strongest links of M items, W each: columns (M, W) and values (M, W) of at least 0; a value of 0 is no link."""

    columns: npt.NDArray[np.int32]
    values: Float32

    def of(
        self, rows: npt.NDArray[np.int64], factors: Float32
    ) -> tuple[npt.NDArray[np.int32], Float32, npt.NDArray[np.int64]]:
        """For R rows: columns (R·W,), values times the row's factor (R·W,), and the place in `rows` each is from (R·W,)."""
        origin = np.repeat(np.arange(len(rows)), self.columns.shape[1])
        return self.columns[rows].ravel(), (self.values[rows] * factors[:, None]).ravel(), origin


class Links(NamedTuple):
    """The links of M items."""

    ids: list[str]
    repeat: Float32  # (M,) log of the share of an item's users who come back for it, smoothed
    follows: Weights  # what is touched after it
    together: Weights  # what the same users touch
    beside: Weights  # what is in one order with it; before 0.5.0 as `together`
    gap_days: Float32 = np.zeros(0, np.float32)  # (M,) between two purchases of it by one user, smoothed; (0,): not known


def no_weights(items: int) -> Weights:
    """Nothing is linked."""
    return Weights(np.zeros((items, 0), np.int32), np.zeros((items, 0), np.float32))


NO_LINKS = Links([], np.zeros(0, np.float32), no_weights(0), no_weights(0), no_weights(0))


def to_bytes(links: Links) -> bytes:
    """The file in a bundle; values in half precision, their order is what counts."""
    buffer = io.BytesIO()
    arrays = {
        f"{kind}_{name}": value.astype(np.float16) if name == "values" else value
        for kind in KINDS for name, value in getattr(links, kind)._asdict().items()
    }  # fmt: skip
    np.savez_compressed(buffer, ids=np.array(links.ids, dtype=np.str_), repeat=links.repeat,
                        gap_days=links.gap_days, **arrays)
    return buffer.getvalue()


def from_bytes(data: bytes) -> Links:
    """Inverse of `to_bytes`. Raises ValueError for arrays that do not fit together.

    >>> from_bytes(to_bytes(NO_LINKS)).ids
    []
    """
    arrays = np.load(io.BytesIO(data), allow_pickle=False)
    ids = [str(one) for one in arrays["ids"]]
    kinds = []
    for kind in KINDS:
        name = kind if kind != "beside" or "beside_columns" in arrays else "together"  # before 0.5.0
        columns, values = arrays[f"{name}_columns"].astype(np.int32), arrays[f"{name}_values"].astype(np.float32)
        if columns.shape != values.shape or columns.ndim != 2 or len(columns) != len(ids):
            raise ValueError(f"item_links.npz: {kind!r} has {columns.shape} and {values.shape} for {len(ids)} items")
        if columns.size and not (columns.min() >= 0 and columns.max() < len(ids) and np.isfinite(values).all()):
            raise ValueError(f"item_links.npz: {kind!r} names items beyond {len(ids)}, or values that are no numbers")
        kinds.append(Weights(columns, values))
    repeat = arrays["repeat"].astype(np.float32)
    if repeat.shape != (len(ids),) or not np.isfinite(repeat).all():
        raise ValueError(f"item_links.npz has repeat rates of shape {repeat.shape} for {len(ids)} items")
    gap_days = arrays["gap_days"].astype(np.float32) if "gap_days" in arrays else np.zeros(0, np.float32)  # since 0.4.0
    if gap_days.shape not in ((0,), (len(ids),)) or not (np.isfinite(gap_days).all() and (gap_days >= 0).all()):
        raise ValueError(f"item_links.npz has gaps of shape {gap_days.shape} for {len(ids)} items, or negative ones")
    follows, together, beside = kinds
    return Links(ids, repeat, follows, together, beside, gap_days)
