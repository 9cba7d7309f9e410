"""Scores of all items for a batch of users, the catalog's rules, and which past event is to be thanked for each item.

The score is the mixture of `blend`: the chance that an item comes next. Its parts are distributions over items:
encoder: softmax of user · item; again: what the user dealt with before, touches decayed by several half-lives; follows and
together: links learned offline, asked with the user's items; rules: what follows the last items by the live counts, nearest
first; popularity: the live counts over all users, by three half-lives. Only the encoder's and the popularities' parts are
dense, so that a user costs little more than the items they are linked to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.outputs import Reason, RecommendedItem
from stream.core.ranking.blend import AGAIN_DAYS, AGAIN_LOG_DAYS, PARTS, POPULAR, Blend
from stream.core.ranking.diversity import POOL, varied
from stream.core.ranking.index import ItemIndex
from stream.core.user.featurize import Float32, Sequence
from stream.core.user.state import DAY_MS, UserState
from stream.core.user.totals import bought, dealt_with

REASONS_MAX = 3
SHARE_MIN = 0.001  # of a score: an event that adds less is no reason
SHARE_LEAST = 5e-5  # of a score: less is rounding
RULES_ITEMS_MAX = 10  # last distinct items whose rules are asked
RULES_STEP = 0.8  # weight of the k-th last item is RULES_STEP ** k
LINKS_DAYS = 60.0  # half-life of an item in the user's history when links are asked
SOURCES = ("model", "personal", "links", "rules", "popularity")
_SOURCE_OF = tuple(
    {"encoder": 0, "again": 1, "follows": 2, "together": 2, "rules": 3, "popular": 4}[part.split("_")[0]] for part in PARTS
)
_NEVER = np.float32(-1e9)
_NO_EVENT = -1


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What may be recommended, beyond the catalog's own marks."""

    top_n: int = 10
    category_cap: int = 3
    exclude: Literal["none", "bought", "seen"] = "bought"
    diversity: float = 0.0  # 0: by scores alone; 1: as different as can be, see `diversity.varied`


class Evidence(NamedTuple):
    """Weighted values of the sparse parts, one entry for each item and event that speaks for it."""

    parts: npt.NDArray[np.int64]  # (E,) numbers in PARTS
    rows: npt.NDArray[np.int64]  # (E,)
    values: Float32  # (E,)
    events: npt.NDArray[np.int64]  # (E,) positions in the user's sequence, -1 for an event that is no longer there

    def about(self, rows: list[int], n: int) -> tuple[Evidence, npt.NDArray[np.int64]]:
        """The entries about some of n rows, and the place in `rows` of each."""
        place = np.full(n, -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        at = place[self.rows]
        some = np.flatnonzero(at >= 0)
        return Evidence(self.parts[some], self.rows[some], self.values[some], self.events[some]), at[some]


class Scores(NamedTuple):
    """One user's scores over N items, and what they are made of."""

    total: Float32  # (N,)
    boost: Float32  # (N,)
    encoder: Float32  # (N,) before the boost, as are the following
    popularity: Float32  # (N, 3)
    evidence: Evidence

    def by_part(self, rows: list[int]) -> npt.NDArray[np.float64]:
        """(K, R): what each part adds to the scores of some rows."""
        found = np.zeros((len(PARTS), len(rows)), dtype=np.float64)
        found[0] = self.encoder[rows]
        found[POPULAR:] = self.popularity[rows].T
        some, at = self.evidence.about(rows, len(self.total))
        np.add.at(found, (some.parts, at), some.values)
        return found * self.boost[rows]


class Common(NamedTuple):
    """What is the same for every user asked at one time."""

    popularity: Float32  # (N, 3), each a distribution
    boosts: Float32  # (2, N)

    @classmethod
    def at(cls, index: ItemIndex, blend: Blend, now_ms: int) -> Common:
        weights = index.popularity(now_ms)  # (N, 3)
        whole = weights.sum(axis=0, dtype=np.float64)
        boosts, demotion = blend.boosts_of(index.features(weights)), index.demotion
        return cls(weights / np.maximum(whole, 1e-9).astype(np.float32), boosts if demotion is None else boosts * demotion)


def user_features(state: UserState, now_ms: int) -> Float32:
    """(U,) in the order of `blend.USER_FEATURES`: days active, items dealt with, silence, share of them touched again."""
    items = len(state.items)
    again = sum(1 for stat in state.items.values() if stat.touches > 1)
    silence_days = max(0, now_ms - state.last_ts_ms) / DAY_MS
    return np.array(
        [math.log1p(len(state.days)), math.log1p(items), math.log1p(silence_days), again / max(1, items)],
        dtype=np.float32,
    )


def score(
    users: Float32 | None, states: list[UserState], sequences: list[Sequence], index: ItemIndex, blend: Blend,
    now_ms: list[int],
) -> list[Scores]:  # fmt: skip
    """Scores for B users. `users` (B, D), or None when the encoder was skipped (counts only)."""
    common = Common.at(index, blend, max(now_ms, default=0))
    nearness = users @ index.matrix.T if users is not None else None  # (B, N)
    return [
        _score(None if nearness is None or users is None or not users[at].any() else nearness[at],
               state, one, index, blend, now, common)
        for at, (state, one, now) in enumerate(zip(states, sequences, now_ms, strict=True))
    ]  # fmt: skip


def _score(
    nearness: Float32 | None, state: UserState, one: Sequence, index: ItemIndex, blend: Blend, now_ms: int, common: Common
) -> Scores:
    n = len(common.popularity)
    shares = blend.shares_of(user_features(state, now_ms))  # (K,)
    encoder = np.zeros(n, dtype=np.float32)
    if nearness is not None and n:
        encoder = np.exp(nearness - nearness.max()) * index.placed[:n]  # an id that somebody made up takes nobody's share
        encoder *= shares[0] / max(float(encoder.sum(dtype=np.float64)), 1e-12)  # float32 sums depend on how many there are
    popularity = common.popularity * shares[POPULAR:]  # (N, 3)
    base = encoder + popularity.sum(axis=1)
    last = {item_id: position for position, item_id in enumerate(one.item_ids)}
    dealt = _dealt_with(state, last, index, now_ms)
    evidence = _joined([*_again(dealt, shares), *_linked(dealt, index, shares), *_ruled(one, index, shares, n)])
    base += np.bincount(evidence.rows, weights=evidence.values, minlength=n).astype(np.float32)
    boost = common.boosts[0].copy()
    boost[dealt.rows] = common.boosts[1, dealt.rows]
    return Scores(base * boost, boost, encoder, popularity, evidence)


class _Dealt(NamedTuple):
    """The items a user dealt with that the index knows."""

    rows: npt.NDArray[np.int64]  # (R,)
    touches: Float32  # (R,) orders count three times
    age_days: Float32  # (R,) since the last
    events: npt.NDArray[np.int64]  # (R,) position of the last in the sequence, -1 where it is no longer there


def _dealt_with(state: UserState, last: dict[str, int], index: ItemIndex, now_ms: int) -> _Dealt:
    row_of = index.row_of
    found = [
        (row_of[item_id], stat.touches + 2 * stat.orders, now_ms - stat.last_ts_ms, last.get(item_id, _NO_EVENT))
        for item_id, stat in state.items.items() if item_id in row_of
    ]  # fmt: skip
    rows, touches, ages_ms, events = np.array(found, dtype=np.int64).reshape(-1, 4).T
    ages_days = (np.maximum(ages_ms, 0) / DAY_MS).astype(np.float32)
    return _Dealt(rows, touches.astype(np.float32), ages_days, events)


def _again(dealt: _Dealt, shares: Float32) -> list[Evidence]:
    found = []
    for part, days in enumerate((*AGAIN_DAYS, AGAIN_LOG_DAYS), start=1):
        counted = dealt.touches if part <= len(AGAIN_DAYS) else np.log1p(dealt.touches)
        found.append(_part(part, shares, dealt.rows, counted * np.exp2(-dealt.age_days / np.float32(days)), dealt.events))
    return found


def _linked(dealt: _Dealt, index: ItemIndex, shares: Float32) -> list[Evidence]:
    factors = np.exp2(-dealt.age_days / np.float32(LINKS_DAYS))
    found = []
    for name in ("follows", "together"):
        rows, values, origin = index.linked(getattr(index.links, name), dealt.rows, factors)
        found.append(_part(PARTS.index(name), shares, rows, values, dealt.events[origin]))
    return found


def _ruled(one: Sequence, index: ItemIndex, shares: Float32, n: int) -> list[Evidence]:
    """Rules of the last distinct items, nearest first, among the first n rows."""
    rows, values, events = [], [], []
    seen: set[str] = set()
    for position in range(len(one.item_ids) - 1, -1, -1):
        item_id = one.item_ids[position]
        if item_id in seen:
            continue
        if len(seen) == RULES_ITEMS_MAX:
            break
        weight = np.float32(RULES_STEP ** len(seen))
        seen.add(item_id)
        row = index.row_of.get(item_id)
        if row is not None:
            following, chances = index.successors(row)
            known = following < n  # a rule may name an item that nobody has asked for yet
            rows.append(following[known])
            values.append(weight * chances[known])
            events.append(np.full(int(known.sum()), position))
    if not rows:
        return []
    return [_part(PARTS.index("rules"), shares, np.concatenate(rows), np.concatenate(values), np.concatenate(events))]


def _part(
    part: int, shares: Float32, rows: npt.NDArray[np.int64], values: Float32, events: npt.NDArray[np.int64]
) -> Evidence:
    """The values as a distribution, times the part's share."""
    whole = float(values.sum(dtype=np.float64))
    factor = np.float32(shares[part] / whole if whole > 0 else 0.0)
    return Evidence(np.full(len(rows), part), rows, values * factor, events)


def _joined(several: list[Evidence]) -> Evidence:
    return Evidence(*(np.concatenate(column) for column in zip(*several, strict=True)))


def excluded(state: UserState, index: ItemIndex, rules: Rules) -> list[int]:
    """Rows that the rules keep from this user because of their past."""
    if rules.exclude == "none":
        return []
    items = dealt_with(state) if rules.exclude == "seen" else bought(state)
    return [row for item_id in items if (row := index.row_of.get(item_id)) is not None]


def rank(
    total: Float32, state: UserState, index: ItemIndex, rules: Rules, only: npt.NDArray[np.bool_] | None = None
) -> list[int]:
    """Rows of the recommended items, best first; total (N,) is one user's scores, `only` (N,) what a request asks to choose
    from. Ties go to the lower row."""
    n = len(total)
    allowed = index.recommendable[:n].copy()
    allowed[[row for row in excluded(state, index, rules) if row < n]] = False
    if only is not None:
        allowed &= only[:n]
    # in float64: at 1e6 the next float32 is further away than chances differ, and what is pinned would be in rows' order
    lifted = total + index.pinned[:n] * np.float64(1e6) if index.pinned[:n].any() else total
    masked = np.where(allowed, lifted, _NEVER)
    width = min(n, max(POOL if rules.diversity else 0, rules.top_n * (8 if rules.category_cap else 1)))
    while True:
        best = np.arange(n)
        if width < n:  # values first, then rows: partitioning values is vectorised, partitioning rows is not
            best = np.flatnonzero(masked >= -np.partition(-masked, width - 1)[width - 1])
        best = best[np.argsort(-masked[best], kind="stable")][:width]
        best = best[masked[best] > _NEVER / 2]
        chosen = _varied(best, total, index, rules) if rules.diversity else _cap(best, index, rules)
        if len(chosen) == rules.top_n or width >= n:
            return chosen
        width = min(n, width * 4)


def _varied(best: npt.NDArray[np.int64], total: Float32, index: ItemIndex, rules: Rules) -> list[int]:
    chosen = varied(total[best], index.matrix[best], index.pinned[best], index.category[best], rules.top_n,
                    rules.category_cap, rules.diversity)  # fmt: skip
    return [int(row) for row in best[chosen]]


def _cap(best: npt.NDArray[np.int64], index: ItemIndex, rules: Rules) -> list[int]:
    chosen: list[int] = []
    used: dict[int, int] = {}
    columns = (best, index.category[best], index.pinned[best])  # whole columns: numpy's scalars are slow
    for row, code, pinned in zip(*(one.tolist() for one in columns), strict=True):
        if len(chosen) == rules.top_n:
            break
        if code >= 0 and not pinned:
            if used.get(code, 0) >= rules.category_cap:
                continue
            used[code] = used.get(code, 0) + 1
        chosen.append(row)
    return chosen


def explain(
    rows: list[int], scores: Scores, one: Sequence, weights: Float32 | None, index: ItemIndex, most: int = REASONS_MAX
) -> tuple[RecommendedItem, ...]:
    """The chosen rows with their share of all scores, main source and the events, `most` at most, with the largest shares.

    weights (L,) are the encoder's: its user vector is a weighted sum of item vectors, so u·v splits exactly by event.
    """
    if not rows:
        return ()
    by_part = scores.by_part(rows)  # (K, R)
    by_source = _by_source(by_part)
    main = by_source.argmax(axis=0).tolist()
    whole = max(float(scores.total.sum(dtype=np.float64)), 1e-12)
    reasons = _reasons(rows, scores, by_part, one, weights, index, most) if one.item_ids else [()] * len(rows)
    return tuple(
        RecommendedItem(
            item_id=index.ids[row], score=round(value / whole, 6),
            source="pinned" if index.pinned[row] else SOURCES[source], reasons=why,
        )
        for row, value, source, why in zip(rows, scores.total[rows].tolist(), main, reasons, strict=True)
    )  # fmt: skip


def shares_by_source(row: int, scores: Scores) -> dict[str, float]:
    """What each source adds to one row's score; sums to 1 unless the score is 0."""
    by_source = _by_source(scores.by_part([row]))[:, 0]
    shares = (by_source / max(by_source.sum(), 1e-12)).tolist()
    return {name: round(share, 4) for name, share in zip(SOURCES, shares, strict=True)}


def rest(
    row: int, scores: Scores, one: Sequence, weights: Float32 | None, index: ItemIndex, reasons: Iterable[Reason]
) -> dict[str, float]:  # fmt: skip
    """What one row's score is made of beside some events. `others`: events that are not among them; `forgotten`: what the
    user did so long ago that the events are no longer known; `popularity`: what everybody does; `model`: what the encoder
    says without that an event speaks for it. With the shares of the events it sums to 1; empty if the score is 0."""
    whole = float(scores.total[row])
    if whole <= 0:
        return {}
    by_part = scores.by_part([row])
    events = float(_by_event([row], scores, by_part[0], one, weights, index).sum()) / whole
    some, _ = scores.evidence.about([row], len(scores.total))
    forgotten = float(some.values[some.events == _NO_EVENT].sum() * scores.boost[row]) / whole
    popularity = float(by_part[POPULAR:].sum()) / whole
    found = {
        "others": events - sum(one.share for one in reasons), "forgotten": forgotten, "popularity": popularity,
        "model": 1 - events - forgotten - popularity,
    }  # fmt: skip
    return {name: round(share, 4) for name, share in found.items() if share > SHARE_LEAST}


def _by_source(by_part: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(K, R) → (S, R)"""
    found = np.zeros((len(SOURCES), by_part.shape[1]))
    np.add.at(found, np.array(_SOURCE_OF), by_part)
    return found


def _reasons(
    rows: list[int], scores: Scores, by_part: npt.NDArray[np.float64], one: Sequence, weights: Float32 | None,
    index: ItemIndex, most: int,
) -> list[tuple[Reason, ...]]:  # fmt: skip
    """For each row the events with the largest shares of its score."""
    by_event = _by_event(rows, scores, by_part[0], one, weights, index)  # (L, R)
    shares = by_event / np.maximum(scores.total[rows].astype(np.float64), 1e-12)
    top = np.argsort(-by_event, axis=0, kind="stable")[:most]  # (3, R)
    return [
        tuple(
            Reason(event_id=one.event_ids[i], item_id=one.item_ids[i], share=round(share, 4))
            for i, share in zip(events, shares[events, column].tolist(), strict=True) if share >= SHARE_MIN
        )
        for column, events in enumerate(top.T.tolist())
    ]  # fmt: skip


def _by_event(
    rows: list[int], scores: Scores, encoder: npt.NDArray[np.float64], one: Sequence, weights: Float32 | None,
    index: ItemIndex,
) -> npt.NDArray[np.float64]:  # fmt: skip
    """(L, R): which event contributes how much to each row's score; encoder (R,) is that part's."""
    by_event = np.zeros((len(one.item_ids), len(rows)), dtype=np.float64)
    if weights is not None:
        known = index.rows(one.item_ids)
        raw = weights[: len(known), None] * (index.matrix[known] @ index.matrix[rows].T) * (known >= 0)[:, None]  # (L, R)
        raw = np.maximum(raw, 0.0, dtype=np.float64)  # an event that speaks against an item is no reason for it
        total = raw.sum(axis=0)
        by_event += np.divide(raw * encoder, total, out=np.zeros_like(raw), where=total > 1e-9)
    some, at = scores.evidence.about(rows, len(scores.total))
    seen = np.flatnonzero(some.events >= 0)
    np.add.at(by_event, (some.events[seen], at[seen]), some.values[seen] * scores.boost[some.rows[seen]])
    return by_event
