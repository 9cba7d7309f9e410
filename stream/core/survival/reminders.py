"""When a reminder of a purchase is due, which of those due are said, and what became of them.

A purchase is expected again after an interval: the user's own between orders of the item, drawn towards the item's average;
or that of a category of which several items were bought, each once. It is due in a window around that time. At the window's
start the chance of a purchase within it is asked of `stream.core.survival.repurchase`, of all that begin within a day at
once: the likeliest are said, up to a bound a week. All is a function of the state and of due times, not of when it is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np

from stream.core.survival.repurchase import Repurchase, features
from stream.core.user.state import DAY_MS, ItemStat, Reminded, UserState

AVERAGE_WEIGHT = 1.0  # the item's average interval weighs as much as so many of the user's own
INTERVAL_DAYS_MIN = 2.0  # faster is a habit that nobody need be reminded of, or one order in several parts
INTERVAL_DAYS_MAX = 365.0
WEEK_MS = 7 * DAY_MS
CATEGORY_DAYS_MIN = 2  # different days of purchases that a category's rhythm is read from


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds, from the settings."""

    week_max: int = 2  # reminders a user and 7 days; 0: none
    probability_min: float = 0.25
    window_days: float = 14.0


class Rhythms(NamedTuple):
    """What is known of items beyond the user."""

    model: Repurchase
    repeat: Callable[[str], float]  # log share of an item's users who come back for it
    gap_days: Callable[[str], float]  # average interval of an item
    category: Callable[[str], str]  # empty: none known
    offered: Callable[[str], bool]  # whether it can be bought now, as the catalog says


class Expected(NamedTuple):
    """A purchase that is expected again."""

    items: tuple[str, ...]  # the item, or those of the category
    category: str
    bought_ts_ms: int
    repeats: int  # intervals of the user's own that are known
    interval_days: float
    from_ms: int
    until_ms: int

    @property
    def item_id(self) -> str:
        """Empty for a category."""
        return self.items[0] if len(self.items) == 1 else ""


Rhythm = tuple[tuple[str, ...], str, int, int, float]  # items, category, bought_ts_ms, repeats, interval_days


def expected(state: UserState, rhythms: Rhythms, policy: Policy) -> list[Expected]:
    """All purchases that are expected again, each with its window; nothing of an anonymous id whose owner is known."""
    found: list[Rhythm] = []
    for item_id, stat in _ordered(state):
        repeats, days = _interval(stat, rhythms.gap_days(item_id))
        found.append(((item_id,), rhythms.category(item_id), stat.last_order_ts_ms, repeats, days))
    found += _of_categories(state, rhythms)
    window_ms = round(policy.window_days * DAY_MS)
    return [
        Expected(items, category, bought_ms, repeats, days, from_ms, from_ms + window_ms)
        for items, category, bought_ms, repeats, days in found if (from_ms := _from_ms(bought_ms, days, policy))
    ]  # fmt: skip


def next_due_ms(state: UserState, rhythms: Rhythms | None, policy: Policy) -> int:
    """When the next reminder is due, or the window of an open one ends; 0: never."""
    ends = [one.until_ts_ms for one in state.reminders.said if not one.outcome]
    if rhythms is not None and policy.week_max:
        gap_days, past_ms = rhythms.gap_days, state.reminders.past_ts_ms
        starts = [_from_ms(stat.last_order_ts_ms, _interval(stat, gap_days(item_id))[1], policy)
                  for item_id, stat in _ordered(state)]  # fmt: skip
        starts += [_from_ms(bought_ms, days, policy) for _, _, bought_ms, _, days in _of_categories(state, rhythms)]
        ends += [one for one in starts if one > past_ms]
    return min(ends, default=0)


def _ordered(state: UserState) -> list[tuple[str, ItemStat]]:
    if not state.orders or state.claims:
        return []
    return [one for one in state.items.items() if one[1].orders]


def _interval(stat: ItemStat, average_days: float) -> tuple[int, float]:
    """How many intervals of the user's own are known, and the days that are expected."""
    repeats = stat.orders - 1
    if repeats < 1 or stat.order_span_ms <= 0:
        return 0, average_days
    return repeats, (stat.order_span_ms / DAY_MS + AVERAGE_WEIGHT * average_days) / (repeats + AVERAGE_WEIGHT)


def _from_ms(bought_ts_ms: int, days: float, policy: Policy) -> int:
    """Where the window around the expected time begins, of a short interval after its first half. 0: nowhere."""
    if not INTERVAL_DAYS_MIN <= days <= INTERVAL_DAYS_MAX:
        return 0
    return bought_ts_ms + round(max(days - policy.window_days / 2, days / 2) * DAY_MS)


def _of_categories(state: UserState, rhythms: Rhythms) -> list[Rhythm]:
    """Categories of which several items were ordered, each once: else an item of it has a rhythm of its own."""
    found = []
    by_category: dict[str, list[tuple[str, ItemStat]]] = {}
    for item_id, stat in _ordered(state):
        if category := rhythms.category(item_id):
            by_category.setdefault(category, []).append((item_id, stat))
    for category, items in by_category.items():
        days = {stat.last_order_ts_ms // DAY_MS for _, stat in items}
        if len(days) < CATEGORY_DAYS_MIN or any(stat.orders > 1 for _, stat in items):
            continue
        repeats = len(days) - 1
        interval_days = (max(days) - min(days) + AVERAGE_WEIGHT * rhythms.model.usual_days) / (repeats + AVERAGE_WEIGHT)
        last_ms = max(stat.last_order_ts_ms for _, stat in items)
        found.append((tuple(sorted(item for item, _ in items)), category, last_ms, repeats, interval_days))
    return found


def close(state: UserState, now_ms: int, category_of: Callable[[str], str]) -> list[tuple[Reminded, int]]:
    """Open reminders of which is known what became of them, and since when. Those that no bound counts any more are let go
    of."""
    closed = []
    for one in state.reminders.said:
        if one.outcome:
            continue
        bought_ms = _bought_ms(state, one, category_of)
        if one.bought_ts_ms < bought_ms <= one.until_ts_ms:
            one.outcome = "bought"
            closed.append((one, bought_ms))
        elif one.until_ts_ms <= now_ms:
            one.outcome = "lapsed"
            closed.append((one, one.until_ts_ms))
    mine = state.reminders
    mine.said = [one for one in mine.said if not one.outcome or one.from_ts_ms > mine.past_ts_ms - WEEK_MS]
    return closed


def _bought_ms(state: UserState, one: Reminded, category_of: Callable[[str], str]) -> int:
    """When the item, or anything of the category, was bought last; 0: never that is known."""
    if one.item_id:
        stat = state.items.get(one.item_id)
        return stat.last_order_ts_ms if stat else 0
    times = [stat.last_order_ts_ms for item, stat in state.items.items()
             if stat.orders and category_of(item) == one.category]  # fmt: skip
    return max(times, default=0)


def say(
    state: UserState, due_ms: int, rhythms: Rhythms, policy: Policy, version: str
) -> list[tuple[Reminded, Expected]]:
    """Reminders of what is due at `due_ms` and the day after it, the likeliest first; the state knows them from then on."""
    reminders = state.reminders
    end_ms = due_ms + DAY_MS
    after_ms, reminders.past_ts_ms = reminders.past_ts_ms, max(reminders.past_ts_ms, end_ms)
    room = policy.week_max - sum(one.from_ts_ms > due_ms - WEEK_MS for one in reminders.said)
    due = [one for one in expected(state, rhythms, policy)
           if after_ms < one.from_ms <= end_ms and any(map(rhythms.offered, one.items))]  # fmt: skip
    if not due or room <= 0:
        return []
    chances = _chances(state, due_ms, due, [(one.until_ms - due_ms) / DAY_MS for one in due], rhythms)
    ranked = sorted(zip(chances, due, strict=True), key=lambda one: (-one[0], one[1].category, one[1].items))
    found = [
        (Reminded(one.item_id, one.category, one.bought_ts_ms, due_ms, one.until_ms, round(one.interval_days, 3),
                  round(p, 6), version), one)
        for p, one in ranked[:room] if p >= policy.probability_min
    ]  # fmt: skip
    reminders.said += [reminded for reminded, _ in found]
    return found


def due_now(state: UserState, now_ms: int, rhythms: Rhythms, policy: Policy) -> dict[str, float]:
    """Items whose window has begun since they were bought last, whether a reminder was said or not, and P(bought within a
    window's length from now) of each; of a category's rhythm each of its items. What is overdue is still due, as far as the
    model still expects it. What the catalog has no more is among them."""
    due = _begun(state, now_ms, rhythms, policy)
    if not due:
        return {}
    known, x = features(state, now_ms, rhythms.repeat)
    chances = dict(zip(known, rhythms.model.p_within(x, policy.window_days).tolist(), strict=True))
    return {item: chances[item] for one in due for item in one.items}


def categories_due(state: UserState, now_ms: int, rhythms: Rhythms, policy: Policy) -> list[tuple[Expected, float]]:
    """Categories whose window has begun since anything of them was bought last, whether a reminder was said or not, and
    P(anything of it is bought within a window's length from now) of each, the likeliest first."""
    due = [one for one in _begun(state, now_ms, rhythms, policy) if not one.item_id]
    if not due:
        return []
    chances = _chances(state, now_ms, due, [policy.window_days] * len(due), rhythms)
    return sorted(zip(due, chances, strict=True), key=lambda one: (-one[1], one[0].category))


def _begun(state: UserState, now_ms: int, rhythms: Rhythms, policy: Policy) -> list[Expected]:
    return [one for one in expected(state, rhythms, policy) if one.from_ms <= now_ms]


def _chances(
    state: UserState, now_ms: int, due: list[Expected], within_days: list[float], rhythms: Rhythms
) -> list[float]:  # fmt: skip
    """P(bought within so many days of each), of a category that any of its items is, taken as independent."""
    known, x = features(state, now_ms, rhythms.repeat)
    row = {item_id: at for at, item_id in enumerate(known)}
    log_odds = rhythms.model.log_odds(x)
    found = []
    for one, days in zip(due, within_days, strict=True):
        logit = log_odds[[row[item] for item in one.items]] + rhythms.model.shape * np.log(days)
        found.append(float(1 - np.prod(1 / (1 + np.exp(logit)))))
    return found
