"""Small files in the form of the public data sets, with a planted truth: what commands are shown to work on where the sets
themselves are not."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

HILLSTROM = ("row", "recency", "history_segment", "history", "mens", "womens", "zip_code", "newbie", "channel", "segment",
             "visit", "conversion", "spend")  # fmt: skip
ARMS = ("Womens E-Mail", "Mens E-Mail", "No E-Mail")
VISITS = (0.05, 0.45)  # P(visit) of old and of new customers
GAIN = 0.3  # … and what the e-mail adds to it for who has bought women's things
PLACES = (1.0, 0.8, 0.6)  # of an item's click rate, by position
TARGET = (0.1, 0.6, 0.2, 0.1)  # how often the policy that is to be judged takes each item


def write(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """A CSV file, gzip as the sets are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(header)
        lines.writerows(rows)
    return path


def mailing(path: Path, customers: int = 9_000) -> Path:
    """Hillstrom: new customers visit anyway; the e-mail brings those who have bought women's things."""
    rng, rows = np.random.default_rng(8), []
    for row in range(customers):
        newbie, womens, arm = int(rng.integers(2)), int(rng.integers(2)), ARMS[int(rng.integers(3))]
        chance = VISITS[newbie] + (GAIN * womens if arm == ARMS[0] else 0.0)
        rows.append((row, rng.integers(1, 13), "", round(rng.uniform(30, 900), 2), rng.integers(2), womens,
                     ("Urban", "Rural", "Surburban")[rng.integers(3)], newbie, ("Web", "Phone")[rng.integers(2)], arm,
                     int(rng.random() < chance), 0, 0))  # fmt: skip
    return write(path, HILLSTROM, rows)


def impressions(folder: Path, rates: Sequence[float], size: int = 3_000) -> float:
    """Open Bandit: one log by lot, one by TARGET, of items with these click rates; returns the target's true click rate."""
    header = ["", "timestamp", "item_id", "position", "click", "propensity_score"]
    header += [f"user-item_affinity_{item}" for item in range(len(rates))]
    for seed, (name, policy) in enumerate((("random", [1 / len(rates)] * len(rates)), ("bts", TARGET))):
        rng, rows = np.random.default_rng(seed), []
        for row in range(size):
            item, position = int(rng.choice(len(rates), p=policy)), int(rng.integers(len(PLACES)))
            at, clicked = datetime(2019, 11, 24) + timedelta(seconds=20 * row), rng.random() < rates[item] * PLACES[position]
            rows.append((row, f"{at.isoformat()}+00:00", item, position + 1, int(clicked), policy[item],
                         *[0.0] * len(rates)))  # fmt: skip
        write(folder / name / "men" / "men.csv.gz", header, rows)
    return float(np.dot(TARGET, rates) * np.mean(PLACES))
