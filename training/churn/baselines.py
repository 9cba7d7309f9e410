"""Logistic regression on log RFM: what an expert would use for churn, to be compared with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stream.core.user.featurize import CHURN_FEATURES, Float32


def logistic(features: Float32, y: npt.NDArray[np.float64], ridge: float = 1.0) -> npt.NDArray[np.float64]:
    """Weights (F + 1,) of a ridge logistic regression by Newton's method; the last is the constant."""
    x = np.concatenate([features.astype(np.float64), np.ones((len(features), 1))], axis=1)
    penalty = np.diag([ridge] * features.shape[1] + [0.0])
    beta = np.zeros(x.shape[1])
    for _ in range(50):
        q = 1 / (1 + np.exp(-np.clip(x @ beta, -30, 30)))
        step = np.linalg.solve(x.T @ (x * (q * (1 - q))[:, None]) + penalty + 1e-9 * np.eye(len(beta)),
                               x.T @ (q - y) + penalty @ beta)
        beta = beta - step
        if np.abs(step).max() < 1e-8:
            break
    return np.asarray(beta)


def predict(beta: npt.NDArray[np.float64], features: Float32) -> npt.NDArray[np.float64]:
    """Probabilities (V,) of `logistic`."""
    return np.asarray(1 / (1 + np.exp(-np.clip(features @ beta[:-1] + beta[-1], -30, 30))))


def rfm(features: Float32, silence_days: npt.NDArray[np.float64]) -> Float32:
    """Log recency, frequency, monetary, tenure (V, 4) from churn features and the silence so far."""
    pick = [CHURN_FEATURES.index(name) for name in ("log_active_days", "log_revenue", "log_tenure_days")]
    return np.concatenate([np.log1p(silence_days)[:, None], features[:, pick]], axis=1).astype(np.float32)
