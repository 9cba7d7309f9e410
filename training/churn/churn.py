"""Churn as a hazard model: for each interval of silence, the rate of coming back in it.

Three small models of one form are averaged: a known rate times a factor that is learned from the features and held near 1.
The known rates are BG/NBD's and MBG/NBD's for the user's active days, and what everybody's return looks like. The factor's
logarithm is a line over log silence, whose level and slope are linear in the features, plus what a small net adds.
Likelihood with exact censoring: piecewise exponential model, Friedman, Annals of Statistics 10 (1982), section 2. The mean
of their log survivals is a log survival: it starts at 0 and never rises. Calibration and thresholds: `churn_policy`.

Chosen at earlier cut-offs (docs/results.md), AUC on Online Retail, 45 days after 2011-04-17, and CDNOW, 91 after 2025-12-31:
BG/NBD times a net's factor .745 / .794; with the line .748 / .796, on MBG/NBD's rates .747 / .797, on everybody's .749 /
.813; the three together .750 / .811, with the best Brier. Training on the users as they are asked (landmarks) and 17 more
features (basket, value, weekday, refunds, items bought again) gained nothing on Online Retail. At the cut-offs of
docs/results.md, which chose nothing, little of that is left: AUC .754 instead of .752 and .829 instead of .831.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from stream.core.survival.churn import EDGES_DAYS, ChurnPolicy
from stream.core.user.featurize import CHURN_FEATURES, Float32
from stream.core.user.state import DAY_MS
from training.churn import bgnbd, churn_policy
from training.churn.bgnbd import BgNbd, Purchases
from training.churn.churn_policy import ALERTS_MIN, SILENCES_DAYS, asked
from training.evaluation.metrics import auc, brier, ece
from training.history.snapshot import Visit, visit_arrays

HIDDEN = 32
STEPS = 400
BATCH = 2_048
LEARNING_RATE = 5e-3
CALIBRATION_SHARE = 0.25  # the latest visits
LOG_RATE_MIN, LOG_RATE_MAX = -12.0, 2.0  # a return a day in 160,000, and seven a day
INTEGRATED_MAX = 8.0  # of a rate over one interval: three in 10,000 outlive it, and sums stay exact in float32
# On steps between intervals: where nothing was watched yet, the rate goes on as before. Few visits last until the late
# intervals, so a little weighs much there: with 0.02 the chance to stay away 14 more days after 14 days of silence was put
# at 0.26 where Kaplan-Meier says 0.40 (simulated shop), and of those who had left 1 in 24 was alerted instead of 15.
SMOOTHNESS = 0.0005
NET_VISITS = 1_000  # the net's part being 0 weighs as much as so many visits
LINE_VISITS = 100  # … and the line's
COMMON_DAYS = 100.0  # an interval's common rate is that of the interval before, until so many days were watched in it
FIRST_RATE = 0.02
UNDETERMINED = BgNbd(r=1.0, alpha=30.0, a=1e-3, b=1.0, log_likelihood=float("nan"))  # where nobody has come back yet
TENURE, ACTIVE_DAYS = CHURN_FEATURES.index("log_tenure_days"), CHURN_FEATURES.index("log_active_days")
INTERVALS = len(EDGES_DAYS) - 1

Rates = npt.NDArray[np.float64]  # returns a day in each interval (E - 1,), the same for everybody
Known = BgNbd | Rates


class Hazards(nn.Module):
    """features (B, F) → log of the daily rate of returning in each interval (B, E - 1): what is known, times a factor."""

    def __init__(self, mean: Tensor, std: Tensor, known: Known = UNDETERMINED) -> None:
        super().__init__()
        self.process = known if isinstance(known, BgNbd) else None  # in days
        self.mean: Tensor
        self.std: Tensor
        self.edges: Tensor
        self.widths: Tensor
        self.common: Tensor
        self.line_over: Tensor
        common = np.ones(INTERVALS) if isinstance(known, BgNbd) else known
        middle = (EDGES_DAYS[1:] + EDGES_DAYS[:-1]) / 2
        over = np.stack([np.ones(INTERVALS), (np.log1p(middle) - 3.0) / 1.5])  # level, and slope over log silence
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.register_buffer("edges", torch.tensor(EDGES_DAYS, dtype=torch.float32))  # (E,)
        self.register_buffer("widths", torch.tensor(np.diff(EDGES_DAYS), dtype=torch.float32))  # days (E - 1,)
        self.register_buffer("common", torch.tensor(np.log(common), dtype=torch.float32))  # (E - 1,)
        self.register_buffer("line_over", torch.tensor(over, dtype=torch.float32))  # (2, E - 1)
        self.line = nn.Linear(len(CHURN_FEATURES), 2)
        self.layers = nn.Sequential(
            nn.Linear(len(CHURN_FEATURES), HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU()
        )
        self.out = nn.Linear(HIDDEN, INTERVALS)
        for last in (self.line, self.out):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def log_factors(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logs of what the known rates are multiplied by, (B, E - 1) each: the line's and the net's."""
        scaled = ((features - self.mean) / self.std).clamp(-5.0, 5.0)
        return self.line(scaled) @ self.line_over, self.out(self.layers(scaled))

    def known_log_rates(self, features: Tensor) -> Tensor:
        """The process's daily rate of returning in each interval after an active day, or everybody's (B, E - 1).

        Gone for good after that day with chance d = a / (a + b + k - 1), k days after which one could have gone; else back
        at the rate Gamma(r + x, alpha + t), x repeats: S(s) = d + (1 - d) ((alpha + t) / (alpha + t + s))^(r + x). In
        float64, because differences of nearly equal survivals count: in float32 ONNX and torch were a hundredth apart.
        """
        if self.process is None:
            return self.common + features[:, :1] * 0.0
        known, features = self.process, features.double()
        repeats = (features[:, ACTIVE_DAYS : ACTIVE_DAYS + 1].exp() - 2.0).clamp(min=0.0)  # (B, 1)
        since = known.alpha + (features[:, TENURE : TENURE + 1].exp() - 1.0).clamp(min=0.0)
        leaves = repeats + float(known.early)
        gone = (known.a / (known.a + known.b + (leaves - 1.0).clamp(min=0.0))) * (leaves > 0.5).double()
        stays = gone + (1.0 - gone) * (-(known.r + repeats) * (1.0 + self.edges / since).log()).exp()  # (B, E)
        back = (stays[:, :-1] / stays[:, 1:].clamp(min=1e-300)).log()  # integrated hazard of each interval
        return (back / self.widths).clamp(min=math.exp(LOG_RATE_MIN)).log().float()

    def log_rates(self, features: Tensor) -> Tensor:
        """Log of the daily rate of returning in each interval (B, E - 1)."""
        return (self.known_log_rates(features) + sum(self.log_factors(features))).clamp(LOG_RATE_MIN, LOG_RATE_MAX)

    def forward(self, features: Tensor) -> Tensor:
        """log S at EDGES_DAYS (B, E), never rising, 0 at silence 0."""
        stays = -(self.log_rates(features).exp() * self.widths).clamp(max=INTEGRATED_MAX)  # (B, E - 1)
        return torch.cat([stays[:, :1] * 0.0, stays.cumsum(1)], dim=1)


class HazardNet(nn.Module):
    """features (B, F) → log S at EDGES_DAYS (B, E), the mean of its parts': never rising, 0 at silence 0."""

    def __init__(self, mean: Tensor, std: Tensor, known: tuple[Known, ...] = (UNDETERMINED,)) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Hazards(mean, std, one) for one in known)

    def forward(self, features: Tensor) -> Tensor:
        return torch.stack([part(features) for part in self.parts]).mean(0)


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
    policy = ChurnPolicy(horizon_days=horizon_days or churn_policy.horizon_of(days, followed))
    policy = churn_policy.calibrated_if_it_helps(policy, later, survival, followed)
    p, stayed = asked(survival, days, censored, followed, policy, SILENCES_DAYS)
    if len(p) >= ALERTS_MIN:
        policy = msgspec.structs.replace(policy, interval_logit=churn_policy.interval_logit(p, stayed))
    policy, chosen = churn_policy.thresholds(policy, survival, days, censored, followed)
    final, losses = _train(visits, rng)  # the thresholds are chosen; now the newest visits may teach too
    return ChurnFit(final, policy, losses, chosen, (p, stayed))


@torch.no_grad()
def curves(net: nn.Module, features: Float32) -> npt.NDArray[np.float64]:
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


def purchases_of(visits: list[Visit]) -> Purchases:
    """What BG/NBD knows of the users, in days, as their last visits show them."""
    last = list({one.user: one for one in visits}.values())  # in the order of time: the last one wins
    features, days, _ = visit_arrays(last)
    tenure = np.expm1(features[:, TENURE].astype(np.float64)).clip(min=0.0)
    repeats = (np.expm1(features[:, ACTIVE_DAYS].astype(np.float64)) - 1.0).clip(min=0.0).round()
    since_first = np.where(repeats > 0, tenure, 0.0)
    return Purchases(repeats, since_first, since_first + days)


def common_rates(watched: Float32, returned: Float32) -> Rates:
    """Returns a day watched in each interval; where little was watched, nearly the rate of the interval before."""
    days, returns = watched.sum(0, dtype=np.float64) * np.diff(EDGES_DAYS), returned.sum(0, dtype=np.float64)
    rates, rate = np.zeros(INTERVALS), FIRST_RATE
    for at in range(INTERVALS):
        rate = rates[at] = (returns[at] + rate * COMMON_DAYS) / (days[at] + COMMON_DAYS)
    return rates


def _train(visits: list[Visit], rng: np.random.Generator) -> tuple[HazardNet, list[float]]:
    features, days, censored = visit_arrays(visits)
    watched, returned = exposure(days, censored)
    buyers = purchases_of(visits)
    processes = [bgnbd.fit_if_determined(buyers, early) for early in (False, True)]
    known: tuple[Known, ...] = (*(one for one in processes if one is not None), common_rates(watched, returned))
    x, w, r = torch.from_numpy(features), torch.from_numpy(watched), torch.from_numpy(returned)
    net = HazardNet(x.mean(0), x.std(0, correction=0).clamp(min=1e-3), known)
    losses = [_train_part(part, x, w, r, rng) for part in net.parts]
    return net.eval(), np.mean(losses, axis=0).tolist()


def _train_part(part: nn.Module, x: Tensor, w: Tensor, r: Tensor, rng: np.random.Generator) -> list[float]:
    """Features x (V, F), watched and returned w, r (V, E - 1)."""
    assert isinstance(part, Hazards)
    known = part.known_log_rates(x).detach()  # (V, E - 1)
    # without a process of each user's own, the factors carry everything
    free = 0.1 if part.process is None else 1.0
    optimizer = torch.optim.AdamW(part.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    losses = []
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / STEPS)
        at = torch.from_numpy(rng.integers(0, len(x), min(BATCH, len(x))))
        line, net = part.log_factors(x[at])  # (B, E - 1) each
        factors = line + net
        log_rates = (known[at] + factors).clamp(LOG_RATE_MIN, LOG_RATE_MAX)
        likelihood = (log_rates * r[at] - log_rates.exp() * part.widths * w[at]).sum(1).mean()
        held = (NET_VISITS * net.pow(2).mean() + free * LINE_VISITS * line.pow(2).mean()) / len(x)
        rough = factors.diff(dim=1).pow(2).sum(1).mean()
        loss = held + SMOOTHNESS * rough - likelihood
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def calibration_metrics(fitted: ChurnFit) -> dict[str, float]:
    """AUC, Brier and ECE on the calibration fold, which chose two parameters on it: slightly flattering."""
    p, stayed = fitted.calibration
    if not len(p):
        return {}
    values = {"churn_auc": auc(p, stayed), "churn_brier": brier(p, stayed), "churn_ece": ece(p, stayed)}
    return {name: round(value, 5) for name, value in values.items() if np.isfinite(value)}
