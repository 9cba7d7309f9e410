"""Churn alerts as they would have been raised after a cut-off, and how early, at a precision that is given.

Every silence of a window is followed: the alert is raised at the moment the policy names in advance, if the user has not
come back by then, and is right if the user then stays away for the whole horizon. The rule it is compared with alerts
everybody after the same silence. Both thresholds are read off the same window, the lowest that reaches the precision: the
question is what a precision costs, not whether it was foreseen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from stream.core.survival.churn import ChurnPolicy, due_ms
from stream.core.user.state import DAY_MS
from training.evaluation.comparison import Measures
from training.evaluation.metrics import BOOTSTRAP_ROUNDS, Interval, interval

HORIZON_DAYS = 30.0
PRECISIONS = (0.6, 0.7, 0.8)
RAISE_AT = np.arange(0.02, 0.99, 0.02)
SILENCES_DAYS = np.concatenate([np.arange(1.0, 60.0), np.arange(60.0, 366.0, 5.0)])
ALERTS_MIN = 30  # below this a precision is chance

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Silences:
    """Silences that reach into a window: when they began, ms (V,), their days (V,), until a return or the last that is
    known, and the window's ends, ms: alerts are raised in [from_ms, until_ms), and everybody is followed for a horizon after
    it."""

    began_ms: npt.NDArray[np.int64]
    days: Floats
    from_ms: int
    until_ms: int


@dataclass(frozen=True)
class Raised:
    """Alerts of one threshold: which silences (A,), after how many days (A,), and whether the user stayed away (A,)."""

    at: npt.NDArray[np.int64]
    after_days: Floats
    right: npt.NDArray[np.bool_]

    @property
    def precision(self) -> float:
        return float(self.right.mean()) if len(self.right) else float("nan")


def raised(silences: Silences, after_days: Floats) -> Raised:
    """The alerts when silence (V,) alone raises them after so many days each, inf for never.

    >>> two = Silences(np.array([0, 0]), np.array([90.0, 12.0]), 0, 60 * DAY_MS)
    >>> raised(two, np.array([10.0, 10.0])).right.tolist(), raised(two, np.array([20.0, 20.0])).at.tolist()
    ([True, False], [0])
    """
    alert_ms = silences.began_ms + np.where(np.isfinite(after_days), after_days, 0.0) * DAY_MS
    within = (alert_ms >= silences.from_ms) & (alert_ms < silences.until_ms)
    at = np.flatnonzero(np.isfinite(after_days) & within & (after_days < silences.days))
    return Raised(at, after_days[at], silences.days[at] >= after_days[at] + HORIZON_DAYS)


def by_model(silences: Silences, curves: npt.NDArray[np.floating], raise_at: float) -> Raised:
    """Alerts of the served curves (V, E), log survival, at a threshold; the timers are
    `stream.core.survival.churn.due_ms`."""
    policy = msgspec.structs.replace(ChurnPolicy(horizon_days=HORIZON_DAYS), raise_at=raise_at)
    due = due_ms(curves, silences.began_ms, policy)
    return raised(silences, np.where(due > 0, (due - silences.began_ms) / DAY_MS, np.inf))


def by_silence(silences: Silences, days: float) -> Raised:
    """Alerts of the rule: everybody after so many days."""
    return raised(silences, np.full(len(silences.days), days))


def first_at(tried: list[Raised], precision: float) -> Raised | None:
    """The first, in the order of rising thresholds, that is precise enough."""
    return next((one for one in tried if len(one.at) >= ALERTS_MIN and one.precision >= precision), None)


def compare(silences: Silences, curves: npt.NDArray[np.floating]) -> tuple[dict[str, Measures], dict[str, list[Raised]]]:
    """(rule → measures, rule → alerts by rising threshold); rules "model" and "silence".

    At each precision: alerts a day, the silence at which they are raised, and for the model how many days earlier than the
    rule it names those who really left.
    """
    tried = {
        "model": [by_model(silences, curves, float(at)) for at in RAISE_AT],
        "silence": [by_silence(silences, float(days)) for days in SILENCES_DAYS],
    }
    window_days = (silences.until_ms - silences.from_ms) / DAY_MS
    found: dict[str, Measures] = {name: {} for name in tried}
    for precision in PRECISIONS:
        chosen = {name: first_at(some, precision) for name, some in tried.items()}
        for name, one in chosen.items():
            if one is None:
                continue
            task = f"alerts-at-{precision:.0%}".rstrip("%")
            found[name][f"{task}.precision"] = _drawn(one.right.astype(np.float64), lambda some: float(np.mean(some)))
            found[name][f"{task}.a_day"] = _rate(len(one.at), window_days)
            found[name][f"{task}.silence_days"] = _drawn(one.after_days, lambda some: float(np.median(some)))
            rule = chosen["silence"]
            if name == "model" and rule is not None and one.right.any():
                earlier = float(rule.after_days[0]) - one.after_days[one.right]
                found[name][f"{task}.lead_days"] = _drawn(earlier, lambda some: float(np.median(some)))
    return found, tried


def _rate(n: int, days: float) -> Interval:
    """Alerts a day, with the interval of a Poisson count."""
    spread = 1.96 * float(np.sqrt(n))
    return Interval(n / days, max(0.0, n - spread) / days, (n + spread) / days)


def _drawn(values: Floats, of: Callable[[Floats], float]) -> Interval:
    """A figure of alerts with its interval over alerts drawn with replacement."""
    rng = np.random.default_rng(0)
    draws = [of(values[rng.integers(0, len(values), len(values))]) for _ in range(BOOTSTRAP_ROUNDS)]
    return interval(of(values), np.array(draws))
