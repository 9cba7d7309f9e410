"""How well it foresees churn: at a cut-off, who will not be seen again within the horizon.

Ours learned on what came before the cut-off; everybody known then is asked at the cut-off, whatever their silence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stream.core.churn import SILENCE_DAYS_MAX
from stream.core.featurize import Float32, churn_features
from stream.core.state import DAY_MS
from training import baselines, bgnbd, churn, report
from training.bgnbd import Purchases
from training.comparison import Comparison, statistics
from training.evaluations import Evaluated, Request, iso
from training.metrics import auc, brier, ece
from training.snapshot import EmptyHistory, History, Snapshot, from_dataset, replay

FOLDS = 5
SERVED = "clickwake"
RECENCY = "recency alone"
MEASURES = {"auc": auc, "brier": brier, "ece": ece}


@dataclass(frozen=True)
class Asked:
    """Users at a cut-off: features (U, F), silence (U,) in days, and whether they stayed away (U,)."""

    users: list[str]
    features: Float32
    silence_days: npt.NDArray[np.float64]
    away: npt.NDArray[np.float64]


def asked(history: History, snapshot: Snapshot, cut_ms: int, horizon_days: float) -> Asked:
    """Known users of a snapshot taken at `cut_ms`, and what they did in the horizon after it."""
    end_ms = cut_ms + horizon_days * DAY_MS
    back = {event.user for event in history.events if cut_ms <= event.ts_ms < end_ms}
    known = {user: state for user, state in snapshot.states.items() if state.known} or snapshot.states
    users = [user for user, state in known.items() if cut_ms - state.last_ts_ms <= SILENCE_DAYS_MAX * DAY_MS]
    return Asked(
        users,
        np.stack([churn_features(known[user]) for user in users]),
        np.array([(cut_ms - known[user].last_ts_ms) / DAY_MS for user in users]),
        np.array([float(user not in back) for user in users]),
    )


def purchases(past: History, users: list[str], cut_ms: int) -> Purchases:
    """What BG/NBD knows of the users at the cut-off: their days with events, in days. Several events of a day are one."""
    days: dict[str, set[int]] = {user: set() for user in users}
    for event in past.events:
        if event.user in days:
            days[event.user].add(event.ts_ms // DAY_MS)
    first, last = (np.array([float(end(days[user])) for user in users]) for end in (min, max))
    repeats = np.array([len(days[user]) - 1.0 for user in users])
    return Purchases(repeats, last - first, cut_ms // DAY_MS - 1 - first)


def run(request: Request) -> Evaluated:
    """`clickwake evaluate churn`; the default cut-off is as late as the horizon allows."""
    horizon_days = request.options.get("horizon_days", 90.0)
    history = from_dataset(request.dataset, request.path)
    cut_ms = request.split_ms or int(history.to_ms - horizon_days * DAY_MS)
    predictions, y = foreseen(history, cut_ms, horizon_days, request.settings.training.seed)
    models, ahead = statistics(predictions, y, MEASURES, SERVED, only={RECENCY: {"auc"}})
    found = Comparison(task="churn", dataset=request.dataset, split=iso(cut_ms), n=len(y), models=models, ahead=ahead,
                       served=SERVED, settings={"horizon_days": horizon_days})
    return Evaluated(found, {"Calibration": lambda figure: report.calibration(figure, predictions[SERVED], y)})


def foreseen(
    history: History, cut_ms: int, horizon_days: float, seed: int
) -> tuple[dict[str, npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
    """P(away) or a score of ours, recency, BG/NBD and logistic regressions on log RFM, (U,) each, and who stayed away (U,).

    Raises `EmptyHistory` when the history ends before the horizon does.
    """
    if history.to_ms < cut_ms + horizon_days * DAY_MS - DAY_MS:
        raise EmptyHistory(f"{history.name} ends before {horizon_days:g} days after the split; choose an earlier one")
    past = history.until(cut_ms)
    snapshot = replay(past, end_ms=cut_ms)
    fitted = churn.fit(snapshot.visits, seed=seed, end_ms=cut_ms, horizon_days=horizon_days)
    test = asked(history, snapshot, cut_ms, horizon_days)
    y = test.away
    found = {
        SERVED: churn.p_after(churn.curves(fitted.net, test.features), test.silence_days, fitted.policy),
        RECENCY: test.silence_days,
    }
    x = baselines.rfm(test.features, test.silence_days)
    earlier_ms = int(cut_ms - horizon_days * DAY_MS)
    before = history.until(earlier_ms)
    if before.events:
        train = asked(past, replay(before), earlier_ms, horizon_days)
        beta = baselines.logistic(baselines.rfm(train.features, train.silence_days), train.away)
        found["logistic log-RFM, learned one horizon earlier"] = baselines.predict(beta, x)
    known = purchases(past, test.users, cut_ms)
    if (model := bgnbd.fit_if_determined(known)) is not None:
        found["BG/NBD, P(0 purchases)"] = model.p_no_purchase(known, horizon_days)
    fold = np.random.default_rng(seed).integers(0, FOLDS, len(y))
    q = np.zeros(len(y))
    for one in range(FOLDS):
        q[fold == one] = baselines.predict(baselines.logistic(x[fold != one], y[fold != one]), x[fold == one])
    found["logistic log-RFM, cross-validated on the answers themselves"] = q
    return found, y
