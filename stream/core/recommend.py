"""Scores of all items for a batch of users, the catalog's rules, and which past event is to be thanked for each item.

score = w_model·(user · item) + w_personal·personal + w_rules·rules + w_popularity·popularity, weights from the manifest.
personal: log(1 + touches + 2·orders), decayed by the time since; rules: what follows the last items, nearest first;
popularity: recent, over all users. The parts are kept apart so that a score can be explained by them.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.outputs import Reason, RecommendedItem
from stream.core.counts import HalfLife
from stream.core.featurize import Float32, Sequence
from stream.core.index import ItemIndex
from stream.core.state import DAY_MS, UserState

REASONS_MAX = 3
SOURCES = ("model", "personal", "rules", "popularity")
_NEVER = np.float32(-1e9)


class Blend(msgspec.Struct, frozen=True, kw_only=True):
    """Weights of the parts, fitted on validation, from the manifest."""

    model: float = 1.0
    personal: float = 0.3
    rules: float = 1.0
    popularity: float = 0.2
    personal_half_life_days: HalfLife = 60.0
    rules_step: float = 0.8  # weight of the k-th last item is rules_step ** k
    rules_items: int = 10

    @classmethod
    def from_manifest(cls, values: dict[str, float]) -> Blend:
        return msgspec.convert(values, cls, strict=False)


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What may be recommended, beyond the catalog's own marks."""

    top_n: int = 10
    category_cap: int = 3
    exclude: Literal["none", "bought", "seen"] = "bought"


class Parts(NamedTuple):
    """Weighted parts of the scores of B users over N items."""

    model: Float32  # (B, N)
    personal: Float32  # (B, N)
    rules: Float32  # (B, N)
    popularity: Float32  # (N,)

    def total(self) -> Float32:
        """(B, N)"""
        return self.model + self.personal + self.rules + self.popularity


def score(
    users: Float32 | None,
    states: list[UserState],
    sequences: list[Sequence],
    index: ItemIndex,
    blend: Blend,
    now_ms: list[int],
) -> Parts:
    """Weighted parts for B users. `users` (B, D), or None when the encoder was skipped (counts only)."""
    size, n = len(states), len(index)
    model = np.zeros((size, n), dtype=np.float32)
    if users is not None and n:
        model = np.float32(blend.model) * (users @ index.matrix.T)
    personal = np.zeros((size, n), dtype=np.float32)
    for at, (state, now) in enumerate(zip(states, now_ms, strict=True)):
        for item_id, stat in state.items.items():
            row = index.row_of.get(item_id)
            if row is not None:
                age_days = max(0, now - stat.last_ts_ms) / DAY_MS
                decay = 2.0 ** (-age_days / blend.personal_half_life_days)
                personal[at, row] = blend.personal * math.log1p(stat.touches + 2 * stat.orders) * decay
    rules = np.zeros((size, n), dtype=np.float32)
    for at, one in enumerate(sequences):
        for rows, values, _ in _rule_parts(one, index, blend):
            rules[at, rows[rows < n]] += values[rows < n]
    latest = max(now_ms, default=0)
    popularity = np.float32(blend.popularity) * index.popularity(latest)[:n]
    return Parts(model, personal, rules, popularity)


def _rule_parts(one: Sequence, index: ItemIndex, blend: Blend) -> list[tuple[npt.NDArray[np.int64], Float32, int]]:
    """(rows, weighted values, position in the sequence) for each of the last distinct items."""
    parts: list[tuple[npt.NDArray[np.int64], Float32, int]] = []
    seen: set[str] = set()
    for position in range(len(one.item_ids) - 1, -1, -1):
        item_id = one.item_ids[position]
        if item_id in seen:
            continue
        if len(seen) == blend.rules_items:
            break
        weight = np.float32(blend.rules * blend.rules_step ** len(seen))
        seen.add(item_id)
        row = index.row_of.get(item_id)
        if row is not None:
            rows, values = index.successors(row)
            if len(rows):
                parts.append((rows, weight * values, position))
    return parts


def rank(total: Float32, state: UserState, index: ItemIndex, rules: Rules) -> list[int]:
    """Rows of the recommended items, best first; total (N,) is one user's scores. Ties go to the lower row."""
    n = len(total)
    allowed = index.recommendable[:n].copy()
    if rules.exclude != "none":
        for item_id, stat in state.items.items():
            row = index.row_of.get(item_id)
            if row is not None and row < n and (rules.exclude == "seen" or stat.orders > 0):
                allowed[row] = False
    lifted = total + index.pinned[:n] * np.float32(1e6) if index.pinned[:n].any() else total
    masked = np.where(allowed, lifted, _NEVER)
    width = min(n, rules.top_n * (8 if rules.category_cap else 1))
    while True:
        best = np.arange(n)
        if width < n:  # values first, then rows: partitioning values is vectorised, partitioning rows is not
            best = np.flatnonzero(masked >= -np.partition(-masked, width - 1)[width - 1])
        best = best[np.argsort(-masked[best], kind="stable")][:width]
        chosen = _cap(best, masked, index, rules)
        if len(chosen) == rules.top_n or width >= n:
            return chosen
        width = min(n, width * 4)


def _cap(best: npt.NDArray[np.int64], masked: Float32, index: ItemIndex, rules: Rules) -> list[int]:
    chosen: list[int] = []
    used: dict[int, int] = {}
    columns = (best, masked[best], index.category[best], index.pinned[best])  # whole columns: numpy's scalars are slow
    for row, value, code, pinned in zip(*(one.tolist() for one in columns), strict=True):
        if value <= _NEVER / 2 or len(chosen) == rules.top_n:
            break
        if code >= 0 and not pinned:
            if used.get(code, 0) >= rules.category_cap:
                continue
            used[code] = used.get(code, 0) + 1
        chosen.append(row)
    return chosen


def explain(
    rows: list[int], at: int, parts: Parts, one: Sequence, weights: Float32 | None, index: ItemIndex, blend: Blend
) -> tuple[RecommendedItem, ...]:
    """The chosen rows of user `at` with score, main source and the events with the largest shares.

    weights (L,) are the encoder's: its user vector is a weighted sum of item vectors, so u·v splits exactly by event.
    """
    columns = (parts.model[at, rows], parts.personal[at, rows], parts.rules[at, rows], parts.popularity[rows])  # each (R,)
    values = list(zip(*(column.tolist() for column in columns), strict=True))
    reasons = _reasons(rows, at, parts, one, weights, index, blend) if one.item_ids else [()] * len(rows)
    return tuple(
        RecommendedItem(
            item_id=index.ids[row], score=round(sum(named), 6),
            source="pinned" if index.pinned[row] else SOURCES[named.index(max(named))], reasons=why,
        )
        for row, named, why in zip(rows, values, reasons, strict=True)
    )  # fmt: skip


def _reasons(
    rows: list[int], at: int, parts: Parts, one: Sequence, weights: Float32 | None, index: ItemIndex, blend: Blend
) -> list[tuple[Reason, ...]]:
    """For each row the events with the largest shares of its score."""
    by_event = _by_event(rows, at, parts, one, weights, index, blend)  # (L, R)
    popularity = np.maximum(parts.popularity[rows], 0.0, dtype=np.float64)
    whole = np.maximum(np.clip(by_event, 0, None).sum(axis=0) + popularity, 1e-9)  # (R,)
    shares = by_event / whole
    top = np.argsort(-by_event, axis=0, kind="stable")[:REASONS_MAX]  # (3, R)
    return [
        tuple(
            Reason(event_id=one.event_ids[i], item_id=one.item_ids[i], share=round(share, 4))
            for i, share in zip(events, shares[events, column].tolist(), strict=True) if share > 0
        )
        for column, events in enumerate(top.T.tolist())
    ]  # fmt: skip


def _by_event(
    rows: list[int], at: int, parts: Parts, one: Sequence, weights: Float32 | None, index: ItemIndex, blend: Blend
) -> npt.NDArray[np.float64]:
    """(L, R): which event contributes how much to each row's score."""
    length = len(one.item_ids)
    by_event = np.zeros((length, len(rows)), dtype=np.float64)
    if weights is not None:
        known = index.rows(one.item_ids)
        raw = weights[:length, None] * (index.matrix[known] @ index.matrix[rows].T) * (known >= 0)[:, None]  # (L, R)
        total = raw.sum(axis=0)
        target = parts.model[at, rows]
        by_event += np.divide(raw * target, total, out=np.zeros_like(raw, dtype=np.float64), where=np.abs(total) > 1e-9)
    column_of = {row: column for column, row in enumerate(rows)}
    for successors, values, position in _rule_parts(one, index, blend):
        for row, value in zip(successors.tolist(), values.tolist(), strict=True):
            if row in column_of:
                by_event[position, column_of[row]] += value
    last_of = {item_id: position for position, item_id in enumerate(one.item_ids)}
    for column, row in enumerate(rows):
        last = last_of.get(index.ids[row])
        if last is not None:
            by_event[last, column] += parts.personal[at, row]
    return by_event
