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

from producers.datasets import cdnow, deskdrop, online_retail, taobao

RING = 12
TITLES = [f"{how} {what}" for how in ("SOFT", "BLUE", "RED", "CHEAP") for what in ("DRESS", "SHIRT", "MUG")]
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


def shop(path: Path, customers: int = 60) -> Path:
    """Online Retail, December to August: customers go round a ring of twelve items, two an order and an order every ten days
    or so, and come to each again; a third leave for good at some time."""
    rng, rows = np.random.default_rng(5), []
    for customer in range(customers):
        place, day, orders = int(rng.integers(RING)), rng.uniform(0, 20), 0
        leaves = rng.uniform(60, 273) if customer % 3 == 0 else 273.4
        while day < leaves:
            at = datetime(2010, 12, 1, 8) + timedelta(days=round(day, 4))
            for item in (place % RING, (place + 1) % RING):
                rows.append((f"{customer + 100}{orders:03}", f"{10_001 + item}", TITLES[item], 1 + item % 3,
                             f"{at:%Y-%m-%d %H:%M:%S}", f"{2 + item / 2:.2f}", f"{customer}.0", "France"))  # fmt: skip
            place, day, orders = place + 2, day + 4 + rng.exponential(6), orders + 1
    return write(path, online_retail.HEADER, rows)


def readers(path: Path, people: int = 80) -> Path:
    """Deskdrop: people read their way round a ring of articles, one a day or so."""
    rng, rows = np.random.default_rng(6), []
    for person in range(people):
        first, day = int(rng.integers(2 * RING)), rng.uniform(0, 20)
        for step in range(14):
            kind = "LIKE" if rng.random() < 0.1 else "VIEW"
            rows.append((1_457_963_676 + round(day * 86_400), kind, 8_000 + (first + step) % (2 * RING), -person - 1,
                         f"{person}-{step}", "", "SP", "BR"))  # fmt: skip
            day += rng.uniform(0.5, 1.5)
    return write(path, deskdrop.HEADER, rows)


def browsers(path: Path, people: int = 80) -> Path:
    """Taobao: people look their way round a ring of twelve items, three a day; some they want, and some they buy."""
    rng, rows = np.random.default_rng(9), []
    for person in range(people):
        place, at_s = int(rng.integers(RING)), taobao.WINDOW_S[0] + rng.uniform(0, 86_400)
        while at_s < taobao.WINDOW_S[1]:
            kind = ("pv", "cart", "fav", "buy")[int(rng.choice(4, p=(0.7, 0.1, 0.1, 0.1)))]
            rows.append((person, 4_000 + place % RING, 70 + place % 3, kind, int(at_s)))
            place, at_s = place + 1, at_s + rng.uniform(20_000, 36_000)
    return write(path, taobao.HEADER, rows)


def purchases(path: Path, customers: int = 120) -> Path:
    """CDNOW, eighteen months: two of three leave for good at some day, the others buy every month or so."""
    rng, rows = np.random.default_rng(7), []
    for customer in range(customers):
        day, leaves = rng.uniform(0, 80), rng.uniform(60, 800) if customer % 3 else 546.0
        while day < min(leaves, 546.0):
            rows.append((f"{customer:05}", f"{datetime(1997, 1, 1) + timedelta(days=day):%Y%m%d}", 1, "14.50"))
            day += 1 + rng.exponential(29.0)
    return write(path, cdnow.HEADER, rows)


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
