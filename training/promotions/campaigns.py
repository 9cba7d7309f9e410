"""Logs of campaigns that were decided by lot, by which others can be judged: Open Bandit and Hillstrom's e-mail test."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from producers.datasets.table import DatasetError
from training.evaluation.metrics import FloatArray
from training.promotions.off_policy import Log

BANDIT = "open-bandit"
EMAIL = "hillstrom"
AFFINITY = "user-item_affinity_"


class Impressions(NamedTuple):
    """One log of Open Bandit, in time order: Saito et al., "Open Bandit Dataset and Pipeline" (2021)."""

    log: Log
    positions: npt.NDArray[np.int64]  # (N,) 0, 1, 2 on the page
    affinities: FloatArray  # (N, A): clicks of the user on each item before

    @property
    def items(self) -> int:
        return int(self.affinities.shape[1])


class Mailing(NamedTuple):
    """Customers who got an e-mail or none by lot (Hillstrom 2008)."""

    features: FloatArray  # (N, F)
    treated: npt.NDArray[np.bool_]  # (N,)
    visited: FloatArray  # (N,)
    names: tuple[str, ...]


def bandit(path: Path) -> Impressions:
    """One log: a CSV file with propensities. Raises DatasetError."""
    table = _read(path, ("timestamp", "item_id", "position", "click", "propensity_score"))
    table = table.sort_values("timestamp", kind="stable")
    affinities = table[[name for name in table.columns if name.startswith(AFFINITY)]].to_numpy(np.float64)
    propensities = table["propensity_score"].to_numpy(np.float64)
    if not affinities.shape[1] or not ((propensities > 0) & (propensities <= 1)).all():
        raise DatasetError(f"{path}: no log of Open Bandit: it needs columns {AFFINITY}0 … and propensities above 0")
    log = Log(table["item_id"].to_numpy(np.int64), table["click"].to_numpy(np.float64), propensities)
    return Impressions(log, table["position"].to_numpy(np.int64) - 1, affinities)


def mailing(path: Path, arm: str = "Womens E-Mail") -> Mailing:
    """Those who got the arm's e-mail and those who got none. Raises DatasetError."""
    table = _read(path, ("recency", "history", "mens", "womens", "newbie", "zip_code", "channel", "segment", "visit"))
    table = table[table["segment"].isin([arm, "No E-Mail"])].reset_index(drop=True)
    if table["segment"].nunique() != 2:
        raise DatasetError(f"{path}: it has no customers of both arms, {arm!r} and 'No E-Mail'")
    plain = pd.DataFrame({
        "recency": table["recency"], "log_history": np.log(table["history"]), "mens": table["mens"],
        "womens": table["womens"], "newbie": table["newbie"], "both": table["mens"] * table["womens"],
    })  # fmt: skip
    wide = pd.concat([plain, pd.get_dummies(table["zip_code"]), pd.get_dummies(table["channel"])], axis=1)
    return Mailing(wide.to_numpy(np.float64), (table["segment"] == arm).to_numpy(),
                   table["visit"].to_numpy(np.float64), tuple(map(str, wide.columns)))  # fmt: skip


def _read(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: {error}") from error
    if missing := [name for name in columns if name not in table.columns]:
        raise DatasetError(f"{path}: it has no column {', '.join(missing)}; expected are {', '.join(columns)}")
    return table
