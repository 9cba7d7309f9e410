"""How far live inputs are from those a bundle learned from: population stability index of events and of times between them.

PSI = Σ (q − p) ln(q / p) over bins, p the reference and q what is seen now (Siddiqi, "Credit Risk Scorecards", 2006, ch. 10;
below 0.1 nothing happened, above 0.25 the population is another). Both windows are of one length, because the times between
a user's events are cut off by the window's ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

PSI_MAX = 0.25
WINDOW_DAYS_MAX, WINDOW_DAYS_MIN = 7.0, 1.0  # of the windows compared; less than a day would compare night with day
BINS = 10
SHARE_MIN = 1e-3  # of a bin that is empty on one side: PSI stays finite, one stray event does not make it large

Floats = npt.NDArray[np.float64]


class Inputs(NamedTuple):
    """Events of a window, by user and then time."""

    users: Sequence[str]
    names: Sequence[str]
    ts_ms: npt.NDArray[np.int64]

    def gaps_h(self) -> Floats:
        """Hours between two successive events of one user."""
        users = np.asarray(self.users)
        return np.asarray(np.diff(self.ts_ms)[users[1:] == users[:-1]] / 3_600_000, dtype=np.float64)


def drift(reference: Inputs, live: Inputs) -> dict[str, float]:
    """Feature → PSI: which events come, and the time between two of a user.

    >>> same = Inputs(["u", "u"], ["a", "b"], np.array([0, 1]))
    >>> drift(same, same)
    {'event': 0.0, 'gap': 0.0}
    """
    return {
        "event": psi(*_shares_of_names(reference.names, live.names)),
        "gap": psi(*_shares_of_values(reference.gaps_h(), live.gaps_h())),
    }


def psi(p: Floats, q: Floats) -> float:
    """Of two distributions over the same bins (N,)."""
    p, q = np.maximum(p, SHARE_MIN), np.maximum(q, SHARE_MIN)
    return float(np.sum((q - p) * np.log(q / p)))


def _shares_of_names(reference: Sequence[str], live: Sequence[str]) -> tuple[Floats, Floats]:
    names = sorted({*reference, *live})
    number = {name: at for at, name in enumerate(names)}
    counts = [np.bincount([number[name] for name in some], minlength=len(names)) for some in (reference, live)]
    return counts[0] / max(1, counts[0].sum()), counts[1] / max(1, counts[1].sum())


def _shares_of_values(reference: Floats, live: Floats) -> tuple[Floats, Floats]:
    """Over the reference's tenths; nothing to compare is no difference."""
    if not len(reference) or not len(live):
        return np.zeros(1), np.zeros(1)
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, BINS + 1)[1:-1]))
    bins = [np.searchsorted(edges, some, side="right") for some in (reference, live)]
    counts = [np.bincount(some, minlength=len(edges) + 1) for some in bins]
    return counts[0] / len(reference), counts[1] / len(live)
