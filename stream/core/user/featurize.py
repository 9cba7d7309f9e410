"""State to model inputs. One pure function of (state, time) serves training and serving, so there is no skew."""

from __future__ import annotations

from math import expm1, log1p
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from stream.core.user.state import DAY_MS, UserState

FEATURE_VERSION = 1
HOUR_MS = 3_600_000
CHURN_FEATURES = (
    "log_tenure_days", "log_active_days", "log_order_days", "log_events", "log_orders", "log_revenue",
    "log_gap_mean_days", "log_gap_last_days", "log_gap_max_days", "gap_cv",
    "log_days_active_7", "log_days_active_30", "log_recent_touches_7", "order_share",
)  # fmt: skip

ALERT_FEATURES = (*CHURN_FEATURES, "log_silence_days")  # of a user at the moment of an alert

Float32 = npt.NDArray[np.float32]


class Sequence(NamedTuple):
    """The last events of one user, oldest first, all of length L."""

    item_ids: list[str]
    kinds: list[int]
    ts_ms: list[int]
    event_ids: list[str]


class Vectors(Protocol):
    """What featurize needs of an item index."""

    dim: int

    def rows(self, item_ids: list[str]) -> npt.NDArray[np.int64]:
        """Row numbers (L,), -1 for an unknown item."""
        ...

    @property
    def matrix(self) -> Float32:
        """Item vectors (N, D)."""
        ...


def sequence(state: UserState, now_ms: int, events_max: int) -> Sequence:
    """The last `events_max` touches at or before `now_ms`."""
    history = [touch for touch in state.history() if touch.ts_ms <= now_ms][-events_max:]
    return Sequence(
        [touch.item_id for touch in history],
        [touch.kind for touch in history],
        [touch.ts_ms for touch in history],
        [touch.event_id for touch in history],
    )


def batch(sequences: list[Sequence], vectors: Vectors, now_ms: list[int], events_max: int) -> dict[str, npt.NDArray[Any]]:
    """Model inputs of B users, left-aligned, padded at the end.

    Returns items (B, L, D) float32, kinds (B, L) int64, ages (B, L) float32 = log1p(hours before now), mask (B, L) bool
    (False for padding and for items without a vector). L is the longest sequence, at least 1.
    """
    length = max(1, min(events_max, max((len(s.item_ids) for s in sequences), default=1)))
    size = len(sequences)
    rows = np.full((size, length), -1, dtype=np.int64)  # (B, L)
    kinds = np.zeros((size, length), dtype=np.int64)  # (B, L)
    ages = np.zeros((size, length), dtype=np.float32)  # (B, L)
    for at, (one, now) in enumerate(zip(sequences, now_ms, strict=True)):
        n = min(len(one.item_ids), length)
        if n == 0:
            continue
        rows[at, :n] = vectors.rows(one.item_ids[-n:])
        kinds[at, :n] = one.kinds[-n:]
        ages[at, :n] = np.log1p(np.maximum(0, now - np.asarray(one.ts_ms[-n:], dtype=np.int64)) / HOUR_MS)
    mask = rows >= 0
    items = np.zeros((size, length, vectors.dim), dtype=np.float32)  # (B, L, D)
    if mask.any():
        items[mask] = vectors.matrix[rows[mask]]
    return {"items": items, "kinds": kinds, "ages": ages, "mask": mask}


def churn_features(state: UserState) -> Float32:
    """(F,) float32 in the order of CHURN_FEATURES, as of the user's last event: silence is not among them."""
    days = np.asarray(state.days, dtype=np.float64)
    gaps = np.diff(days) if len(days) > 1 else np.zeros(0)
    last_day = days[-1] if len(days) else 0.0
    week_ago = state.last_ts_ms - 7 * DAY_MS
    recent = sum(1 for touch in state.ring if touch.ts_ms >= week_ago)
    values = [
        log1p((state.last_ts_ms - state.first_ts_ms) / DAY_MS),
        log1p(len(days)),
        log1p(len(state.order_days)),
        log1p(state.events),
        log1p(state.orders),
        log1p(max(0.0, state.revenue)),
        log1p(gaps.mean()) if len(gaps) else -1.0,
        log1p(gaps[-1]) if len(gaps) else -1.0,
        log1p(gaps.max()) if len(gaps) else -1.0,
        float(gaps.std() / gaps.mean()) if len(gaps) > 1 else -1.0,
        log1p(float((days > last_day - 7).sum())),
        log1p(float((days > last_day - 30).sum())),
        log1p(recent),
        len(state.order_days) / max(1, len(days)),
    ]
    return np.asarray(values, dtype=np.float32)


def alert_features(state: UserState, ts_ms: int) -> Float32:
    """(F + 1,) float32 in the order of ALERT_FEATURES: what is known of a user when an alert is raised at `ts_ms`."""
    silence_days = max(0, ts_ms - state.last_ts_ms) / DAY_MS
    return np.append(churn_features(state), np.float32(log1p(silence_days)))


def mean_order(features: tuple[float, ...]) -> float | None:
    """A user's revenue an order, from ALERT_FEATURES; None for who never ordered.

    >>> mean_order((0.0,) * 4 + (log1p(2), log1p(30.0)) + (0.0,) * 9)
    15.0
    >>> mean_order(()) is None
    True
    """
    known = dict(zip(ALERT_FEATURES, features, strict=False))
    orders = round(expm1(known.get("log_orders", 0.0)))
    return round(expm1(known["log_revenue"]) / orders, 4) if orders else None
