"""Learned item-to-item weights: what follows an item and what goes together with it, as sparse rows of a bundle.

Learned offline (training/links.py), asked live: the weights of a user's items are added up, so every score splits exactly
by the event that caused it. Item numbers here are the bundle's; `ItemIndex` translates them into its rows.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stream.core.featurize import Float32

KINDS = ("follows", "together")
REPEAT_UNKNOWN = -1.5  # log rate of an item the links do not know: about a fifth of buyers come back for one


class Weights(NamedTuple):
    """A sparse matrix by rows: row i holds `columns[start[i]:start[i + 1]]` and their `values`."""

    start: npt.NDArray[np.int64]  # (M + 1,)
    columns: npt.NDArray[np.int32]  # (W,)
    values: Float32  # (W,), above 0

    def of(
        self, rows: npt.NDArray[np.int64], factors: Float32
    ) -> tuple[npt.NDArray[np.int32], Float32, npt.NDArray[np.int64]]:
        """Columns (W',), values times the row's factor (W',) and the position in `rows` each comes from (W',)."""
        if not len(rows):
            return np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.int64)
        starts, ends = self.start[rows], self.start[rows + 1]
        lengths = ends - starts
        at = np.repeat(starts - np.concatenate(([0], np.cumsum(lengths)[:-1])), lengths) + np.arange(lengths.sum())
        origin = np.repeat(np.arange(len(rows)), lengths)
        return self.columns[at], self.values[at] * factors[origin], origin


class Links(NamedTuple):
    """The links of M items."""

    ids: list[str]
    repeat: Float32  # (M,) log of the share of an item's users who come back for it, smoothed
    follows: Weights  # what is touched after it
    together: Weights  # what the same users touch


NONE = Weights(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
NO_LINKS = Links([], np.zeros(0, np.float32), NONE, NONE)


def to_bytes(links: Links) -> bytes:
    """The file in a bundle; values in half precision, their order is what counts."""
    buffer = io.BytesIO()
    arrays = {
        f"{kind}_{name}": value.astype(np.float16) if name == "values" else value
        for kind in KINDS for name, value in getattr(links, kind)._asdict().items()
    }  # fmt: skip
    np.savez_compressed(buffer, ids=np.array(links.ids, dtype=np.str_), repeat=links.repeat, **arrays)
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
        start, columns = arrays[f"{kind}_start"].astype(np.int64), arrays[f"{kind}_columns"].astype(np.int32)
        values = arrays[f"{kind}_values"].astype(np.float32)
        whole = len(start) == len(ids) + 1 and [start[0], start[-1]] == [0, len(columns)] and (np.diff(start) >= 0).all()
        if not whole or len(values) != len(columns):
            raise ValueError(f"item_links.npz: the rows of {kind!r} do not fit {len(ids)} items")
        if len(columns) and not (columns.min() >= 0 and columns.max() < len(ids) and np.isfinite(values).all()):
            raise ValueError(f"item_links.npz: {kind!r} names items beyond {len(ids)}, or values that are no numbers")
        kinds.append(Weights(start, columns, values))
    repeat = arrays["repeat"].astype(np.float32)
    if repeat.shape != (len(ids),) or not np.isfinite(repeat).all():
        raise ValueError(f"item_links.npz has repeat rates of shape {repeat.shape} for {len(ids)} items")
    return Links(ids, repeat, *kinds)
