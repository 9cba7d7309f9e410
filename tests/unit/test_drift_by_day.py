"""The dashboard's drift: on each day what `clickwake models watch` would have said; nothing where there is too little."""

from __future__ import annotations

import numpy as np

from clickwake.dashboard import charts
from clickwake.dashboard.models_page import EVENTS_MIN, _by_day
from stream.core.statistics.drift import PSI_MAX, Inputs, drift
from stream.core.user.state import DAY_MS
from tests.support.fakes import T0_MS

DAYS, LEARNED_DAY, CHANGED_DAY = 20, 8, 14


def shop(per_day: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Events of ten users, by user and time; from CHANGED_DAY on they search instead of looking."""
    rng = np.random.default_rng(3)
    days = np.repeat(np.arange(DAYS), per_day)
    users = rng.integers(0, 10, len(days))
    times = T0_MS + ((days + rng.random(len(days))) * DAY_MS).astype(np.int64)
    names = np.where(rng.random(len(days)) < 0.2, "cart", np.where(days < CHANGED_DAY, "view", "search"))
    order = np.lexsort((times, users))
    return np.array([f"u{one}" for one in users[order]], dtype=object), names[order].astype(object), times[order]


def test_the_day_on_which_the_shop_changed_is_seen() -> None:
    users, names, times = shop(200)
    learned_ms, newest_ms = T0_MS + LEARNED_DAY * DAY_MS, int(times.max())
    found = _by_day(users, names, times, learned_ms, newest_ms)
    assert len(found.days) == DAYS - LEARNED_DAY - 1  # not on the first day after it learned
    before = CHANGED_DAY - LEARNED_DAY - 1
    assert max(found.psi["event"][: before - 1]) < 0.1 and max(found.psi["gap"]) < 0.1
    assert min(found.psi["event"][before + 1 :]) > PSI_MAX

    def window(until_ms: int) -> Inputs:
        some = (times > until_ms - 7 * DAY_MS) & (times <= until_ms)
        return Inputs(users[some].tolist(), names[some].tolist(), times[some])

    said = drift(window(learned_ms), window(newest_ms))
    assert all(found.psi[name][-1] == round(value, 4) for name, value in said.items())


def test_nothing_is_said_of_too_few_events_or_too_short_a_time() -> None:
    users, names, times = shop(EVENTS_MIN // 8)
    assert _by_day(users, names, times, T0_MS + LEARNED_DAY * DAY_MS, T0_MS + (LEARNED_DAY + 3) * DAY_MS).days == []
    users, names, times = shop(200)
    assert _by_day(users, names, times, int(times.max()) - DAY_MS // 2, int(times.max())).days == []


def test_a_limit_is_always_in_the_picture() -> None:
    low = charts.against("t", ["1"], {"PSI": [0.01]}, {"limit": PSI_MAX})
    assert low["yAxis"]["max"] > PSI_MAX and low["series"][0]["markLine"]["data"][0]["yAxis"] == PSI_MAX
    assert charts.against("t", ["1"], {"PSI": [0.9, None]}, {"limit": PSI_MAX})["yAxis"]["max"] > 0.9
