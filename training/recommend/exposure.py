"""Who gets how much of what is shown: exposure by brand, or by category where the catalog names no brands, beside demand.

What is shown at a place counts by how likely the place is to be looked at, 1 / log2(1 + place), and a group's share of that
is set against its share of what was wanted: exposure in proportion to relevance, Singh and Joachims, "Fairness of Exposure
in Rankings" (KDD 2018), section 4.2. Both are means over questions, so their difference has an interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from schemas.catalog import Item
from training.evaluation.metrics import FloatArray, Interval

GROUPS_MAX = 8  # the most touched before the split: chosen by demand, not by what was found; the rest are OTHERS
OTHERS = "all others"
SHOWN = 10  # places
SHOWN_TASK, GAP_TASK = "exposure-by-{}", "exposure-gap-by-{}"
NOT_NAMED = "the catalog names neither brands nor categories"


class Groups(NamedTuple):
    """Items by brand or category."""

    kind: str  # brand or category
    names: tuple[str, ...]  # (G,) the last is OTHERS
    of: npt.NDArray[np.int64]  # (N,) group of each item
    touched: FloatArray  # (G,) share of the touches before the split

    def shares(self, items: npt.NDArray[np.int64], weights: FloatArray) -> FloatArray:
        """(G,): each group's part of the weights (n,) of these items (n,); zeros for no items."""
        found = np.bincount(self.of[items], weights=weights, minlength=len(self.names))
        return np.asarray(found / max(float(weights.sum()), 1e-12))


def groups(items: Mapping[str, Item], touched: npt.NDArray[np.int64]) -> Groups | None:
    """Of a catalog whose n-th item was touched so often (N,) before the split; None where it names at most one group.

    >>> some = {n: Item(item_id=n, tenant="t", brand=brand) for n, brand in (("a", "Clay"), ("b", "Ox."), ("c", ""))}
    >>> found = groups(some, np.array([1, 3, 0]))
    >>> found.kind, found.names, found.of.tolist(), found.touched.tolist()
    ('brand', ('Ox', 'Clay', 'all others'), [1, 0, 2], [0.75, 0.25, 0.0])
    """
    for kind in ("brand", "category"):
        said = np.array([_plain(getattr(item, kind)) for item in items.values()], dtype=np.str_)
        known = sorted(set(said.tolist()) - {""})
        if len(known) > 1:
            demand = {name: int(touched[said == name].sum()) for name in known}
            names = sorted(known, key=lambda name: (-demand[name], name))[:GROUPS_MAX]
            place = {name: at for at, name in enumerate(names)}
            of = np.array([place.get(name, len(names)) for name in said.tolist()], dtype=np.int64)
            share = np.bincount(of, weights=touched, minlength=len(names) + 1) / max(1, int(touched.sum()))
            return Groups(kind, (*names, OTHERS), of, share)
    return None


def attention(places: int) -> FloatArray:
    """(n,): how much a place in the list is looked at, beside the first.

    >>> attention(3).round(3).tolist()
    [1.0, 0.631, 0.5]
    """
    return np.asarray(1 / np.log2(np.arange(places) + 2))


def of_question(by: Groups, ranked: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]) -> FloatArray:
    """(2, G): shares of what was shown, and of what was wanted."""
    shown = ranked[:SHOWN]
    return np.stack([by.shares(shown, attention(len(shown))), by.shares(wanted, np.ones(len(wanted)))])


def measured(by: Groups, questions: list[FloatArray]) -> dict[str, dict[str, FloatArray]]:
    """Sub-task → group → (Q,): the share of what was shown; and that minus the share of what was wanted."""
    table = np.array(questions)  # (Q, 2, G)
    return {
        SHOWN_TASK.format(by.kind): {name: table[:, 0, at] for at, name in enumerate(by.names)},
        GAP_TASK.format(by.kind): {name: table[:, 0, at] - table[:, 1, at] for at, name in enumerate(by.names)},
    }


def said(by: Groups | None, measures: Mapping[str, Interval]) -> dict[str, float | str]:
    """For an evaluation's settings: each group's share of the touches before the split, and the largest gaps of the served
    model, with intervals that hold for all groups at once (Bonferroni): the largest of many is large by chance."""
    if by is None:
        return {"exposure by brand": NOT_NAMED}
    wider = NormalDist().inv_cdf(1 - 0.025 / len(by.names)) / NormalDist().inv_cdf(1 - 0.025)
    gaps = {name: _widened(measures[f"{GAP_TASK.format(by.kind)}.{name}"], wider) for name in by.names}
    most, least = (pick(gaps, key=lambda name: gaps[name].value) for pick in (max, min))
    found: dict[str, float | str] = {f"touches before, {name}": float(share)
                                     for name, share in zip(by.names, by.touched, strict=True)}  # fmt: skip
    found[f"{by.kind} shown too much"] = _gap(most, gaps[most]) if gaps[most].low > 0 else "none beyond chance"
    found[f"{by.kind} shown too little"] = _gap(least, gaps[least]) if gaps[least].high < 0 else "none beyond chance"
    return found


def _widened(one: Interval, factor: float) -> Interval:
    return Interval(one.value, one.value - factor * (one.value - one.low), one.value + factor * (one.high - one.value))


def _gap(name: str, one: Interval) -> str:
    return f"{name}: {one.value:+.3f} ({one.low:+.3f} to {one.high:+.3f}) of exposure beside demand"


def _plain(name: str) -> str:
    """A name as a measure's: a dot would stand for a sub-task."""
    return " ".join(name.replace(".", " ").split())
