"""BG/NBD: a customer buys at a rate of his own until, after some purchase, he has gone for good.

Source: Fader, Hardie and Lee, "Counting Your Customers the Easy Way: An Alternative to the Pareto/NBD Model", Marketing
Science 24 (2005). Equation numbers are theirs. P(no purchase within h) follows from their assumptions: who is still there
has the rate Gamma(r + x, alpha + T), and nobody leaves but after a purchase.

MBG/NBD: the same, but a customer may have gone after the first purchase too, so that one-time buyers differ by how long they
have been silent. Batislam, Denizel and Filiztekin, "Empirical validation and comparison of models for customer base
analysis", International Journal of Research in Marketing 24 (2007).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit, gammaln

Values = npt.NDArray[np.float64]
LOG_MAX = 12.0  # of a parameter's logarithm, either way: beyond it the likelihood is flat


@dataclass(frozen=True)
class Purchases:
    """What the model knows of U customers, in one unit of time: repeat purchases x (U,), time of the last one since the
    first purchase, 0 without repeats (U,), and time watched since the first purchase (U,)."""

    repeats: Values
    last: Values
    watched: Values

    def __post_init__(self) -> None:
        if not (len(self.repeats) == len(self.last) == len(self.watched)):
            raise ValueError(f"{len(self.repeats)} repeats, {len(self.last)} last and {len(self.watched)} watched times")
        if np.any(self.last > self.watched) or np.any(self.last < 0) or np.any(self.repeats < 0):
            raise ValueError("a last purchase lies before the first one or after the end of watching")


@dataclass(frozen=True)
class BgNbd:
    """r, alpha: of the gamma distribution of rates; a, b: of the beta distribution of dropout after a purchase.

    `early`: after the first purchase too (MBG/NBD), else only after repeat purchases.
    """

    r: float
    alpha: float
    a: float
    b: float
    log_likelihood: float
    early: bool = False

    def p_alive(self, known: Purchases) -> Values:
        """P(still a customer at the end of watching) (U,): without `early` 1 for who never came back. Equation 2 of their
        note of 2008, and its like for MBG/NBD."""
        leaves = known.repeats + self.early  # how often the customer could have left
        odds = (np.log(self.a) - np.log(self.b + np.maximum(leaves, 1) - 1)
                + (self.r + known.repeats) * (np.log(self.alpha + known.watched) - np.log(self.alpha + known.last)))
        return np.where(leaves > 0, expit(-odds), 1.0)

    def p_no_purchase(self, known: Purchases, horizon: float) -> Values:
        """P(no purchase within `horizon` after the end of watching) (U,).

        >>> new = Purchases(np.array([0.0]), np.array([0.0]), np.array([0.0]))
        >>> BgNbd(1.0, 1.0, 1.0, 1.0, 0.0).p_no_purchase(new, 1.0).tolist()
        [0.5]
        """
        silent: Values = -(self.r + known.repeats) * np.log1p(horizon / (self.alpha + known.watched))
        p: Values = 1.0 + self.p_alive(known) * np.expm1(silent)
        return p


def log_likelihood(r: float, alpha: float, a: float, b: float, known: Purchases, early: bool = False) -> float:
    """Equation 6, summed over customers; with `early` that of MBG/NBD."""
    x = known.repeats
    leaves = x + early
    common = (gammaln(r + x) - gammaln(r) + r * np.log(alpha)
              + gammaln(a + b) + gammaln(b + leaves) - gammaln(b) - gammaln(a + b + leaves))
    stayed = -(r + x) * np.log(alpha + known.watched)
    left = np.log(a) - np.log(b + np.maximum(leaves, 1) - 1) - (r + x) * np.log(alpha + known.last)
    return float(np.sum(common + np.where(leaves > 0, np.logaddexp(stayed, left), stayed)))


class Undetermined(ValueError):
    """The data do not determine the parameters, such as without any repeat purchase."""


def fit_if_determined(known: Purchases, early: bool = False) -> BgNbd | None:
    """`fit`, or None for whoever can do without it."""
    try:
        return fit(known, early)
    except Undetermined:
        return None


def fit(known: Purchases, early: bool = False) -> BgNbd:
    """Maximum likelihood. Raises `Undetermined`."""
    if not np.any(known.repeats > 0):
        raise Undetermined("nobody bought twice: rates and dropout cannot be told apart")
    # in units of the mean time watched, so that one start does for days and for weeks
    unit = float(known.watched.mean()) or 1.0
    scaled = Purchases(known.repeats, known.last / unit, known.watched / unit)

    def loss(logs: Values) -> float:
        r, alpha, a, b = np.exp(np.clip(logs, -LOG_MAX, LOG_MAX))
        return -log_likelihood(r, alpha, a, b, scaled, early) / len(known.repeats)

    found = minimize(loss, np.zeros(4), method="L-BFGS-B", bounds=[(-LOG_MAX, LOG_MAX)] * 4)
    if not found.success:
        raise Undetermined(f"BG/NBD does not converge on {len(known.repeats)} customers: {found.message}")
    r, alpha, a, b = (float(value) for value in np.exp(found.x))
    alpha *= unit
    return BgNbd(r, alpha, a, b, log_likelihood(r, alpha, a, b, known, early), early)
