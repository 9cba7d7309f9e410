"""How well it foresees churn: at a cut-off, who will not be seen again within the horizon.

Ours learned on what came before the cut-off and is asked as a worker asks: state → features → exported ONNX → `stream.core`.
Asked is everybody who bought before the cut-off (everybody known, where nothing is ever bought), whatever their silence.
Who only gives something back has not come back. Sub-tasks: other horizons, who was here on one day only and who came again,
and alerts after the cut-off at a precision that is given (`alerting`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.ensemble import HistGradientBoostingClassifier

from stream.adapters.models import onnx
from stream.core.survival.churn import ChurnPolicy, interval, p_after
from stream.core.user.featurize import CHURN_FEATURES, Float32, churn_features
from stream.core.user.state import DAY_MS, UserState
from training import export, parity
from training.churn import alerting, baselines, bgnbd, churn
from training.churn.bgnbd import Purchases
from training.evaluation import report
from training.evaluation.comparison import Comparison, Measures, iso, merged, statistics, under
from training.evaluation.evaluations import Evaluated, Request
from training.evaluation.metrics import FloatArray, auc, brier, calibration_bins, ece, ece_by_chance
from training.history.snapshot import NO_RETURN, EmptyHistory, History, Snapshot, Visit, from_dataset, replay

FOLDS = 5
SERVED = "clickwake"
RECENCY = "recency alone"
BOOSTING = "gradient boosting, learned one horizon earlier"
LOGISTIC = "logistic log-RFM, learned one horizon earlier"
HORIZONS_DAYS = (30.0, 60.0, 90.0)
GROUP_MIN = 50  # a sub-task with fewer says nothing
MEASURES = {"auc": auc, "brier": brier, "ece": ece}

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Asked:
    """Users at a cut-off: features (U, F), silence (U,) in days, and whether they stayed away (U,)."""

    users: list[str]
    features: Float32
    silence_days: Values
    away: Values

    @property
    def once(self) -> npt.NDArray[np.bool_]:
        """Who was here on one day only (U,)."""
        return np.expm1(self.features[:, churn.ACTIVE_DAYS]) < 1.5


class Served:
    """The exported churn model, asked as a worker asks it."""

    def __init__(self, net: torch.nn.Module) -> None:
        example = torch.zeros(3, len(CHURN_FEATURES))
        batch = {"features": {0: torch.export.Dim("batch")}}
        self._session = onnx.session(export.to_onnx(net, (example,), ["features"], ["log_survival"], batch), 1)
        self._net = net

    def curves(self, features: Float32) -> Float32:
        """log S (B, E) of features (B, F). Raises `ParityFailed` where ONNX does not say what was trained."""
        (said,) = self._session.run(None, {"features": features})
        parity.agree(f"churn for {len(features)} users", np.exp(said), np.exp(churn.curves(self._net, features)))
        return np.asarray(said, dtype=np.float32)


def customers(states: dict[str, UserState]) -> dict[str, UserState]:
    """Known users who bought; who is known where nobody bought; everybody where nobody is known."""
    known = {user: state for user, state in states.items() if state.known} or states
    return {user: state for user, state in known.items() if state.orders > 0} or known


def asked(history: History, snapshot: Snapshot, cut_ms: int, horizon_days: float) -> Asked:
    """Customers of a snapshot taken at `cut_ms`, and what they did in the horizon after it."""
    end_ms = cut_ms + horizon_days * DAY_MS
    back = {one.user for one in history.events if cut_ms <= one.ts_ms < end_ms and one.event not in NO_RETURN}
    known = customers(snapshot.states)
    return Asked(
        list(known),
        np.stack([churn_features(state) for state in known.values()]),
        np.array([(cut_ms - state.last_ts_ms) / DAY_MS for state in known.values()]),
        np.array([float(user not in back) for user in known]),
    )


def asked_before(visits: Iterable[Visit], users: set[str], at_ms: int, horizon_days: float) -> Asked:
    """The same at an earlier time that lies a horizon or more before the snapshot, from its visits."""
    until_ms = at_ms + horizon_days * DAY_MS
    ends_ms = [(one, one.last_ts_ms + round(one.days * DAY_MS)) for one in visits if one.user in users]
    then = [(one, end_ms) for one, end_ms in ends_ms
            if one.last_ts_ms < at_ms <= end_ms and (not one.censored or end_ms >= until_ms)]  # fmt: skip
    open_then = [one for one, _ in then]
    silence = np.array([(at_ms - one.last_ts_ms) / DAY_MS for one in open_then])
    away = np.array([float(end_ms >= until_ms) for _, end_ms in then])
    features = np.array([one.features for one in open_then], dtype=np.float32).reshape(-1, len(CHURN_FEATURES))
    return Asked([one.user for one in open_then], features, silence, away)


def purchases(past: History, users: list[str], cut_ms: int) -> Purchases:
    """What BG/NBD knows of the users at the cut-off: their days with events, in days. Several events of a day are one."""
    days: dict[str, set[int]] = {user: set() for user in users}
    for event in past.events:
        if event.user in days:
            days[event.user].add(event.ts_ms // DAY_MS)
    first, last = (np.array([float(end(days[user])) for user in users]) for end in (min, max))
    repeats = np.array([len(days[user]) - 1.0 for user in users])
    watched = np.maximum(last, cut_ms // DAY_MS - 1) - first  # a cut-off within a day: its events are of that day
    return Purchases(repeats, last - first, watched)


def competitors(
    past: History, snapshot: Snapshot, test: Asked, cut_ms: int, horizon_days: float, seed: int
) -> dict[str, Values]:
    """P(away), or a score, of each baseline (U,)."""
    found = {RECENCY: test.silence_days}
    x = baselines.rfm(test.features, test.silence_days)
    train = asked_before(snapshot.visits, set(test.users), int(cut_ms - horizon_days * DAY_MS), horizon_days)
    if 0 < train.away.sum() < len(train.away):
        beta = baselines.logistic(baselines.rfm(train.features, train.silence_days), train.away)
        found[LOGISTIC] = baselines.predict(beta, x)
        trees = HistGradientBoostingClassifier(max_iter=100, learning_rate=0.05, min_samples_leaf=30, random_state=seed)
        trees.fit(np.c_[train.silence_days, train.features], train.away)
        found[BOOSTING] = trees.predict_proba(np.c_[test.silence_days, test.features])[:, 1]
    known = purchases(past, test.users, cut_ms)
    if (model := bgnbd.fit_if_determined(known)) is not None:
        found["BG/NBD, P(0 purchases)"] = model.p_no_purchase(known, horizon_days)
    fold = np.random.default_rng(seed).integers(0, FOLDS, len(test.away))
    q = np.zeros(len(test.away))
    for one in range(FOLDS):
        rest = fold != one
        q[~rest] = baselines.predict(baselines.logistic(x[rest], test.away[rest]), x[~rest])
    found["logistic log-RFM, cross-validated on the answers themselves"] = q
    return found


def coverage(p: FloatArray, y: FloatArray, policy: ChurnPolicy) -> float:
    """Share of tenths in which what was seen lies in the interval that an alert would have given."""
    inside = []
    for said, seen, _ in calibration_bins(p, y):
        low, high = interval(float(np.clip(said, 1e-6, 1 - 1e-6)), policy)
        inside.append(low <= seen <= high)
    return float(np.mean(inside))


def by_group(
    predictions: dict[str, FloatArray], away: Values, groups: dict[str, npt.NDArray[np.bool_]]
) -> tuple[dict[str, Measures], dict[str, Measures]]:
    """(models, ahead) of each group that is large enough, its name before its measures; "" is the task itself."""
    models: dict[str, Measures] = {}
    ahead: dict[str, Measures] = {}
    for name, some in groups.items():
        if some.sum() >= GROUP_MIN:
            part = {model: one[some] for model, one in predictions.items()}
            found, differences = statistics(part, away[some], MEASURES, SERVED, only={RECENCY: {"auc"}})
            models = merged(models, under(name, found) if name else found)
            ahead = merged(ahead, under(name, differences) if name else differences)
    return models, ahead


def run(request: Request) -> Evaluated:
    """`clickwake evaluate churn`; the default cut-off is as late as the horizon allows."""
    horizon_days = request.options.get("horizon_days", 90.0)
    history = from_dataset(request.dataset, request.path)
    cut_ms = request.split_ms or int(history.to_ms - horizon_days * DAY_MS)
    return evaluated(history, cut_ms, horizon_days, request.settings.training.seed, request.say)


def evaluated(history: History, cut_ms: int, horizon_days: float, seed: int, say: Any = lambda text: None) -> Evaluated:
    """Everything that is measured at one cut-off. Raises `EmptyHistory` when the history ends before the horizon does."""
    if history.to_ms < cut_ms + horizon_days * DAY_MS - DAY_MS:
        raise EmptyHistory(f"{history.name} ends before {horizon_days:g} days after the split; choose an earlier one")
    past = history.until(cut_ms)
    snapshot = replay(past, end_ms=cut_ms)
    say(f"learning from {len(snapshot.visits)} visits before {iso(cut_ms)}")
    fitted = churn.fit(snapshot.visits, seed=seed, end_ms=cut_ms, horizon_days=horizon_days)
    served = Served(fitted.net)
    models: dict[str, Measures] = {}
    ahead: dict[str, Measures] = {}
    said: dict[float, tuple[FloatArray, FloatArray]] = {}
    for days in (horizon_days, *(one for one in HORIZONS_DAYS if one < horizon_days)):
        test = asked(history, snapshot, cut_ms, days)
        say(f"asking {len(test.users)} customers about {days:g} days")
        policy = fitted.policy if days == horizon_days else ChurnPolicy(horizon_days=days)  # calibrated for one horizon
        p = p_after(served.curves(test.features), test.silence_days, policy)
        predictions = {SERVED: p, **competitors(past, snapshot, test, cut_ms, days, seed)}
        said[days] = (p, test.away)
        groups = {f"{days:g}d": np.ones(len(p), dtype=bool)}
        if days == horizon_days:
            groups = {"": np.ones(len(p), dtype=bool), "one-time": test.once, "repeat": ~test.once}
        some, differences = by_group(predictions, test.away, groups)
        models, ahead = merged(models, some), merged(ahead, differences)
    figures: dict[str, report.Draw] = {
        f"Calibration, {days:g} days": lambda figure, one=one: report.calibration(figure, *one)  # type: ignore[misc]
        for days, one in sorted(said.items())
    }
    p, y = said[horizon_days]
    settings: dict[str, float | str] = {"horizon_days": horizon_days, "seed": float(seed),
                                        "tenths_within_interval": coverage(p, y, fitted.policy),
                                        "ece_by_chance": ece_by_chance(p),
                                        "said_away": float(p.mean()), "seen_away": float(y.mean())}
    if (window := silences(history, cut_ms)) is not None:
        say("raising alerts after the split")
        measures, tried = alerting.compare(window[0], served.curves(window[1]))
        models = merged(models, {SERVED: measures["model"], RECENCY: measures["silence"]})
        settings["alert_horizon_days"] = alerting.HORIZON_DAYS
        figures["Alerts after the split: precision by alerts a day"] = lambda figure: _draw_alerts(figure, tried, window[0])
    return Evaluated(Comparison(
        task="churn", dataset=history.name, split=iso(cut_ms), n=len(y), models=models, ahead=ahead, served=SERVED,
        settings=settings,
    ), figures)  # fmt: skip


def silences(history: History, cut_ms: int) -> tuple[alerting.Silences, Float32] | None:
    """Silences of customers that reach beyond the cut-off, and their features (V, F); None where no horizon is left."""
    until_ms = int(history.to_ms - alerting.HORIZON_DAYS * DAY_MS)
    if until_ms <= cut_ms:
        return None
    whole = replay(history)
    users = customers(whole.states)
    ends = [one.last_ts_ms + round(one.days * DAY_MS) for one in whole.visits]
    some = [one for one, end in zip(whole.visits, ends, strict=True)
            if one.user in users and end > cut_ms and (not one.censored or end >= history.to_ms)]  # fmt: skip
    began = np.array([one.last_ts_ms for one in some], dtype=np.int64)
    days = np.array([one.days for one in some])
    features = np.array([one.features for one in some], dtype=np.float32).reshape(-1, len(CHURN_FEATURES))
    return alerting.Silences(began, days, cut_ms, until_ms), features


def _draw_alerts(figure: Any, tried: dict[str, list[alerting.Raised]], window: alerting.Silences) -> None:
    axis = figure.subplots()
    days = (window.until_ms - window.from_ms) / DAY_MS
    for name, label, colour in (("model", SERVED, "#c8553d"), ("silence", "same silence for everybody", "#4a7ebb")):
        some = [one for one in tried[name] if len(one.at) >= alerting.ALERTS_MIN]
        axis.plot([len(one.at) / days for one in some], [one.precision for one in some], ".-", color=colour, label=label)
    axis.set_xlabel("alerts a day")
    axis.set_ylabel(f"share that stays away {alerting.HORIZON_DAYS:g} days")
    axis.legend()
