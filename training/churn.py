"""Churn as a hazard model: for each interval of silence, the rate of coming back in it.

The rate is BG/NBD's for the user's count of active days and time between the first and the last of them, times a factor that
a small net reads off all features and that is held near 1. Likelihood with exact censoring: piecewise exponential model,
Friedman, Annals of Statistics 10 (1982), section 2. Calibration, where it helps: Platt (1999) on the logit of P(no return
within the horizon), on visits later than those trained on.

Brier and AUC at the cut-offs of docs/results.md, Online Retail: the net alone .208 / .751, BG/NBD alone .204 / .740, both
.200 / .755. What was chosen here was chosen one horizon earlier.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit
from torch import Tensor, nn

from stream.core.churn import EDGES_DAYS, ChurnPolicy, log_survival_at
from stream.core.featurize import CHURN_FEATURES, Float32
from stream.core.state import DAY_MS
from training import bgnbd
from training.bgnbd import BgNbd, Purchases
from training.metrics import auc, brier, ece
from training.snapshot import Visit, visit_arrays

HIDDEN = 32
STEPS = 600
BATCH = 2_048
CALIBRATION_SHARE = 0.25  # the latest visits
SILENCES_DAYS = (0.0, 3.0, 7.0, 14.0, 30.0)  # at which the calibration fold is asked
HORIZONS_DAYS = (14.0, 30.0, 60.0, 90.0)
STAYING_AWAY_MAX = 0.6  # where more than this do not return within a horizon, silence so short says nothing
PRECISION_WANTED = 0.8
AT_ONCE_MAX = 0.1  # share of visits that may end above the threshold: an alert on the heels of a visit is no news
ALERTS_MIN = 30  # below this a precision is chance
CLEAR_BELOW = 0.15  # hysteresis
LOG_RATE_MIN, LOG_RATE_MAX = -12.0, 2.0  # a return a day in 160,000, and seven a day
INTEGRATED_MAX = 8.0  # of a rate over one interval: three in 10,000 outlive it, and sums stay exact in float32
# On steps between intervals: where nothing was watched yet, the rate goes on as before. Few visits last until the late
# intervals, so a little weighs much there: with 0.02 the chance to stay away 14 more days after 14 days of silence was put
# at 0.26 where Kaplan-Meier says 0.40 (simulated shop), and of those who had left 1 in 24 was alerted instead of 15.
SMOOTHNESS = 0.0005
PRIOR_VISITS = 1_000  # the factor being 1 weighs as much as so many visits
UNDETERMINED = BgNbd(r=1.0, alpha=30.0, a=1e-3, b=1.0, log_likelihood=float("nan"))  # where nobody has come back yet
TENURE, ACTIVE_DAYS = CHURN_FEATURES.index("log_tenure_days"), CHURN_FEATURES.index("log_active_days")


class HazardNet(nn.Module):
    """features (B, F) → log S at EDGES_DAYS (B, E), never rising, 0 at silence 0."""

    def __init__(self, mean: Tensor, std: Tensor, prior: BgNbd = UNDETERMINED) -> None:
        super().__init__()
        self.prior = prior  # in days
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        intervals = len(EDGES_DAYS) - 1
        self.layers = nn.Sequential(
            nn.Linear(len(CHURN_FEATURES), HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU()
        )
        self.out = nn.Linear(HIDDEN, intervals)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.edges: Tensor
        self.widths: Tensor
        self.register_buffer("edges", torch.tensor(EDGES_DAYS, dtype=torch.float32))  # (E,)
        self.register_buffer("widths", torch.tensor(np.diff(EDGES_DAYS), dtype=torch.float32))  # days (E - 1,)

    def log_factors(self, features: Tensor) -> Tensor:
        """Log of what the prior's rates are multiplied by (B, E - 1)."""
        scaled = (features - self.mean) / self.std
        return torch.as_tensor(self.out(self.layers(scaled.clamp(-5.0, 5.0))))

    def prior_log_rates(self, features: Tensor) -> Tensor:
        """BG/NBD's daily rate of returning in each interval after an active day (B, E - 1).

        Gone for good after it with chance d = a / (a + b + x - 1), x repeats; else back at the rate Gamma(r + x, alpha + t):
        S(s) = d + (1 - d) ((alpha + t) / (alpha + t + s))^(r + x). In float64, because differences of nearly equal survivals
        count: in float32 ONNX and torch were a hundredth apart.
        """
        prior, features = self.prior, features.double()
        repeats = (features[:, ACTIVE_DAYS : ACTIVE_DAYS + 1].exp() - 2.0).clamp(min=0.0)  # (B, 1)
        since = prior.alpha + (features[:, TENURE : TENURE + 1].exp() - 1.0).clamp(min=0.0)
        gone = (prior.a / (prior.a + prior.b + (repeats - 1.0).clamp(min=0.0))) * (repeats > 0.5).double()
        stays = gone + (1.0 - gone) * (-(prior.r + repeats) * (1.0 + self.edges / since).log()).exp()  # (B, E)
        back = (stays[:, :-1] / stays[:, 1:].clamp(min=1e-300)).log()  # integrated hazard of each interval
        return (back / self.widths).clamp(min=math.exp(LOG_RATE_MIN)).log().float()

    def log_rates(self, features: Tensor) -> Tensor:
        """Log of the daily rate of returning in each interval (B, E - 1)."""
        return (self.prior_log_rates(features) + self.log_factors(features)).clamp(LOG_RATE_MIN, LOG_RATE_MAX)

    def forward(self, features: Tensor) -> Tensor:
        stays = -(self.log_rates(features).exp() * self.widths).clamp(max=INTEGRATED_MAX)  # (B, E - 1)
        return torch.cat([stays[:, :1] * 0.0, stays.cumsum(1)], dim=1)


@dataclass
class ChurnFit:
    """The net, its policy, and what the calibration fold said."""

    net: HazardNet
    policy: ChurnPolicy
    loss: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    calibration: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] = (np.zeros(0), np.zeros(0))  # (p, stayed away)


def exposure(days: npt.NDArray[np.float64], censored: npt.NDArray[np.bool_]) -> tuple[Float32, Float32]:
    """(watched (V, E-1), returned (V, E-1)): the share of each interval spent away, and the interval of the return.

    A visit censored within an interval counts with the part that was watched. Counting whole intervals only would leave
    the censored out where the returned are counted, and so overstate the return in the wide late intervals.

    >>> watched, returned = exposure(np.array([3.0, 3.0]), np.array([False, True]))
    >>> watched[:, :4].tolist(), returned[:, :4].tolist()
    ([[1.0, 1.0, 0.5, 0.0], [1.0, 1.0, 0.5, 0.0]], [[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    """
    starts, ends = EDGES_DAYS[:-1], EDGES_DAYS[1:]
    watched = np.clip((days[:, None] - starts) / (ends - starts), 0.0, 1.0)  # (V, E - 1)
    returned = (days[:, None] >= starts) & (days[:, None] < ends) & ~censored[:, None]
    return watched.astype(np.float32), returned.astype(np.float32)


def fit(visits: list[Visit], *, seed: int, end_ms: int, horizon_days: float | None = None) -> ChurnFit:
    """Train on the earlier visits, calibrate on the later ones, choose the thresholds there, then train on all.

    `horizon_days` None takes the shortest horizon for which not returning is no longer what nearly everybody does.
    The net that is calibrated never sees how a visit of its fold continued after the fold's end: it is censored there.
    """
    torch.set_num_threads(1)  # for nets this small a second thread only waits
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    cut = max(1, int(len(visits) * (1 - CALIBRATION_SHARE)))
    cut_ms = visits[cut].last_ts_ms if cut < len(visits) else end_ms
    net, _ = _train(censor([one for one in visits if one.last_ts_ms < cut_ms] or visits, cut_ms), rng)
    later = [one for one in visits if one.last_ts_ms >= cut_ms] or visits
    features, days, censored = visit_arrays(later)
    followed = (end_ms - np.array([one.last_ts_ms for one in later], dtype=np.float64)) / DAY_MS  # (V,)
    survival = curves(net, features)
    horizon = horizon_days or _horizon(days, followed)
    policy = ChurnPolicy(horizon_days=horizon)
    policy = _calibrated_if_it_helps(policy, later, survival, followed)
    p, stayed = asked(survival, days, censored, followed, policy, SILENCES_DAYS)
    if len(p) >= ALERTS_MIN:
        policy = msgspec.structs.replace(policy, interval_logit=_interval_logit(p, stayed))
    policy, chosen = _thresholds(policy, survival, days, censored, followed)
    p, stayed = asked(survival, days, censored, followed, policy, SILENCES_DAYS)
    final, losses = _train(visits, rng)  # the thresholds are chosen; now the newest visits may teach too
    return ChurnFit(final, policy, losses, chosen, (p, stayed))


@torch.no_grad()
def curves(net: HazardNet, features: Float32) -> npt.NDArray[np.float64]:
    """log S (V, E) of features (V, F)."""
    return np.asarray(net(torch.from_numpy(features)).numpy().astype(np.float64))


def censor(visits: list[Visit], at_ms: int) -> list[Visit]:
    """What was known of these visits at `at_ms`."""
    known = []
    for one in visits:
        days = (at_ms - one.last_ts_ms) / DAY_MS
        cut = Visit(one.user, one.last_ts_ms, one.features, max(0.0, days), censored=True)
        known.append(one if one.days <= days else cut)
    return known


def prior_of(visits: list[Visit]) -> BgNbd:
    """BG/NBD, in days, of the users as their last visits show them; `UNDETERMINED` where nothing repeats or it does not
    converge."""
    last = list({one.user: one for one in visits}.values())  # in the order of time: the last one wins
    features, days, _ = visit_arrays(last)
    tenure = np.expm1(features[:, TENURE].astype(np.float64)).clip(min=0.0)
    repeats = (np.expm1(features[:, ACTIVE_DAYS].astype(np.float64)) - 1.0).clip(min=0.0).round()
    since_first = np.where(repeats > 0, tenure, 0.0)
    return bgnbd.fit_if_determined(Purchases(repeats, since_first, since_first + days)) or UNDETERMINED


def _train(visits: list[Visit], rng: np.random.Generator) -> tuple[HazardNet, list[float]]:
    features, days, censored = visit_arrays(visits)
    watched, returned = exposure(days, censored)
    x, w, r = torch.from_numpy(features), torch.from_numpy(watched), torch.from_numpy(returned)
    net = HazardNet(x.mean(0), x.std(0, correction=0).clamp(min=1e-3), prior_of(visits))
    held = 0.0 if net.prior is UNDETERMINED else PRIOR_VISITS / len(visits)
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3, weight_decay=1e-2)
    losses = []
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / STEPS)
        at = torch.from_numpy(rng.integers(0, len(x), min(BATCH, len(x))))
        factors, log_rates = net.log_factors(x[at]), net.log_rates(x[at])  # (B, E - 1) each
        likelihood = (log_rates * r[at] - log_rates.exp() * net.widths * w[at]).sum(1).mean()
        rough = factors.diff(dim=1).pow(2).sum(1).mean()
        loss = held * factors.pow(2).mean() + SMOOTHNESS * rough - likelihood
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    return net.eval(), losses


def asked(
    survival: npt.NDArray[np.float64], days: npt.NDArray[np.float64], censored: npt.NDArray[np.bool_],
    followed: npt.NDArray[np.float64], policy: ChurnPolicy, silences: tuple[float, ...],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:  # fmt: skip
    """(p (K,), stayed away (K,)) for every visit and silence at which the user is still away and the truth is known.

    `followed` (V,): days between the visit and the fold's end. Known is what could be followed until the horizon was over,
    whether the user returned or not: a return that comes early shows at once, staying away only in the end, so counting
    every return that was seen would make everybody look loyal (a hazard model that was exactly right, 0.66, was
    calibrated to 0.53 on 30 days).
    """
    p_all, y_all = [], []
    for silence in silences:
        until = silence + policy.horizon_days
        known = (days > silence) & (followed >= until) & (~censored | (days >= until))
        p_all.append(p_after(survival[known], np.full(int(known.sum()), silence), policy))
        y_all.append((days[known] >= until).astype(np.float64))
    return np.concatenate(p_all), np.concatenate(y_all)


def p_after(
    survival: npt.NDArray[np.float64], silence: npt.NDArray[np.float64], policy: ChurnPolicy
) -> npt.NDArray[np.float64]:
    """`stream.core.churn.p_no_return` of many curves, each at its own silence."""
    if not len(survival):
        return np.zeros(0)
    log_p = np.array([
        log_survival_at(curve, s + policy.horizon_days) - log_survival_at(curve, s)
        for curve, s in zip(survival, silence, strict=True)
    ])  # fmt: skip
    p = np.clip(np.exp(log_p), 1e-6, 1 - 1e-6)
    return np.asarray(1 / (1 + np.exp(-(policy.calib_a * np.log(p / (1 - p)) + policy.calib_b))))


def _horizon(days: npt.NDArray[np.float64], followed: npt.NDArray[np.float64]) -> float:
    for horizon in HORIZONS_DAYS:
        known = followed >= horizon
        if known.sum() >= ALERTS_MIN and float((days[known] >= horizon).mean()) <= STAYING_AWAY_MAX:
            return horizon
    return HORIZONS_DAYS[0]


def _calibrated_if_it_helps(
    policy: ChurnPolicy, visits: list[Visit], survival: npt.NDArray[np.float64], followed: npt.NDArray[np.float64]
) -> ChurnPolicy:  # fmt: skip
    """Two parameters from the earlier half of the fold must be right about the later half, or the curves stay as they are:
    a season that passes would be taken for an error of the model."""
    _, days, censored = visit_arrays(visits)
    ends = np.array([one.last_ts_ms for one in visits])
    early = ends <= np.median(ends)

    def of(fold: npt.NDArray[np.bool_], by: ChurnPolicy) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        return asked(survival[fold], days[fold], censored[fold], followed[fold], by, SILENCES_DAYS)

    tried = _calibrated(policy, *of(early, policy))
    before, after = of(~early, policy), of(~early, tried)
    if not len(before[0]) or brier(*after) >= brier(*before):
        return policy
    return _calibrated(policy, *of(np.ones(len(visits), dtype=bool), policy))


def _calibrated(policy: ChurnPolicy, p: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> ChurnPolicy:
    """Platt's two parameters by Newton's method, with his smoothed targets; unchanged where one class is missing."""
    positive, negative = float(y.sum()), float(len(y) - y.sum())
    if min(positive, negative) < ALERTS_MIN:
        return policy
    target = np.where(y > 0, (positive + 1) / (positive + 2), 1 / (negative + 2))
    x = np.stack([np.log(p / (1 - p)), np.ones(len(p))], axis=1)  # (K, 2)
    beta = np.array([1.0, 0.0])
    for _ in range(50):
        q = expit(x @ beta)
        gradient = x.T @ (q - target) + 1e-3 * (beta - [1.0, 0.0])
        hessian = x.T @ (x * (q * (1 - q))[:, None]) + 1e-3 * np.eye(2)
        step = np.clip(np.linalg.solve(hessian, gradient), -1.0, 1.0)  # Newton's first steps may be far too long
        beta = beta - step
        if np.abs(step).max() < 1e-8:
            break
    if beta[0] <= 0:  # would turn the ranking around: the fold says nothing about the slope
        return policy
    return msgspec.structs.replace(policy, calib_a=float(beta[0]), calib_b=float(beta[1]))


def _interval_logit(q: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """Largest gap, on the logit scale, between said and seen over tenths, at least the binomial 90% width."""
    widths = [0.1]
    for part in np.array_split(np.argsort(q), 10):
        if len(part) >= ALERTS_MIN:
            said = float(q[part].mean())
            seen = float((y[part].sum() + 1) / (len(part) + 2))
            gap = abs(np.log(said / (1 - said)) - np.log(seen / (1 - seen)))
            widths.append(max(gap, 1.645 / np.sqrt(len(part) * seen * (1 - seen))))
    return float(np.clip(np.sort(widths)[int(0.9 * (len(widths) - 1))], 0.1, 2.0))


def _thresholds(
    policy: ChurnPolicy, survival: npt.NDArray[np.float64], days: npt.NDArray[np.float64], censored: npt.NDArray[np.bool_],
    followed: npt.NDArray[np.float64],
) -> tuple[ChurnPolicy, dict[str, float]]:  # fmt: skip
    """The lowest raise_at with the wanted precision and few alerts on the heels of a visit, else the most precise."""
    grid = np.concatenate([np.arange(0, 30, 1.0), np.arange(30, 121, 5.0)])  # silences (G,)
    p = np.stack([p_after(survival, np.full(len(survival), silence), policy) for silence in grid], axis=1)  # (V, G)
    tried: list[tuple[float, float, float, int]] = []  # raise_at, precision, at once, alerts
    for raise_at in np.arange(0.5, 0.96, 0.025):
        reached = p >= raise_at
        due = np.where(reached.any(1), grid[reached.argmax(1)], np.inf)
        until = due + policy.horizon_days
        raised = (due < days) & (followed >= until) & (~censored | (days >= until))
        precision = float((days[raised] >= due[raised] + policy.horizon_days).mean()) if raised.any() else 0.0
        tried.append((float(raise_at), precision, float((due == 0).mean()), int(raised.sum())))
    enough = [one for one in tried if one[3] >= ALERTS_MIN]
    good = [one for one in enough if one[1] >= PRECISION_WANTED and one[2] <= AT_ONCE_MAX]
    calm = [one for one in enough if one[2] <= AT_ONCE_MAX]
    if good:
        best = good[0]
    elif calm or enough:
        best = max(calm or enough, key=lambda one: (one[1], -one[0]))
    else:
        # too little was followed for a horizon to measure any: alert on whoever is more likely gone than not
        best = (tried[0][0], float("nan"), float("nan"), 0)
    raise_at = round(best[0], 3)
    chosen = ChurnPolicy(
        horizon_days=policy.horizon_days, raise_at=raise_at, clear_at=round(raise_at - CLEAR_BELOW, 3),
        calib_a=policy.calib_a, calib_b=policy.calib_b, interval_logit=policy.interval_logit,
    )  # fmt: skip
    metrics = {"churn_alert_precision": best[1], "churn_alerts": float(best[3]), "churn_alerts_at_once": best[2]}
    return chosen, {name: value for name, value in metrics.items() if np.isfinite(value)}


def calibration_metrics(fitted: ChurnFit) -> dict[str, float]:
    """AUC, Brier and ECE on the calibration fold, which chose two parameters on it: slightly flattering."""
    p, stayed = fitted.calibration
    if not len(p):
        return {}
    values = {"churn_auc": auc(p, stayed), "churn_brier": brier(p, stayed), "churn_ece": ece(p, stayed)}
    return {name: round(value, 5) for name, value in values.items() if np.isfinite(value)}
