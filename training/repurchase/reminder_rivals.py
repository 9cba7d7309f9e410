"""Which rules reminders are held against, and how many each may say.

`reminders`: as the settings are; rules say all that is due, or the first ones in the order of time, as many a user and week.
`reminders.many`: ours with a lower threshold, as simple rules say more. `….equal`: of each method as many in all, those that
it has most reason for. `….category`: likewise reminders of anything of a category.

The category's average interval is that between two orders of one item of it by one user, for an item; between two orders of
anything of it, for the category.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from schemas.events import ms
from stream.core.ranking.links import Links
from stream.core.survival.reminders import CATEGORY_DAYS_MIN, WEEK_MS, Policy
from stream.core.survival.repurchase import Repurchase
from training.evaluation.clustered import Values
from training.evaluation.comparison import Measures, merged
from training.history.categories import DERIVED, NONE, Categories, categories, with_categories
from training.history.snapshot import History
from training.panel.method import Past
from training.recommend.links import Gaps, average_gaps, order_gaps
from training.recommend.without_encoder import WithoutEncoder
from training.repurchase.reminders import Purchases, Said, capped, judged, served

MANY_FROM = 0.1  # on Online Retail about as many as the strongest rule says
ITEM, CATEGORY, OWN = "item's average interval", "category's average interval", "own average interval"
ALIKE = f"{CATEGORY}, where no item was bought twice"  # said on the same occasions as ours of a category
LOYAL_ORDERS = 3  # of an item, then a simple rule trusts the user's own interval

Judged = tuple[dict[str, Measures], dict[str, Measures]]


class Asked(NamedTuple):
    """What all methods are asked about: a history with its interactions and users' numbers, from a split on."""

    history: History
    past: Past
    number: Mapping[str, int]
    split_ms: int


def at_equal_volume(methods: Mapping[str, list[Said]], week_max: int) -> dict[str, list[Said]]:
    """Of each method as many as of the one that can say fewest, its best by score, at most `week_max` a user in any 7 days.
    No method is another than the rest: neither the order nor who is served matters. How many there will be is known in
    hindsight only, of all alike.

    >>> day = 86_400_000
    >>> methods = {"a": [Said("u", "i", day * at, 0, at) for at in (1, 2, 3, 12)], "b": [Said("u", "i", 0, 0)] * 2}
    >>> {name: [one.from_ms // day for one in some] for name, some in at_equal_volume(methods, 2).items()}
    {'a': [12, 3], 'b': [0, 0]}
    """
    best = {name: _best(some, week_max) for name, some in methods.items()}
    n = min(map(len, best.values()), default=0)
    return {name: some[:n] for name, some in best.items()}


def _best(said: list[Said], week_max: int) -> list[Said]:
    kept: list[Said] = []
    times: dict[str, list[int]] = {}
    for one in sorted(said, key=lambda one: (-one.score, one.from_ms, one.user, one.what)):
        mine = sorted([*times.get(one.user, ()), one.from_ms])
        if all(mine[at] - mine[at - week_max] >= WEEK_MS for at in range(week_max, len(mine))):
            times[one.user] = mine
            kept.append(one)
    return kept


def rules(
    purchases: Purchases, item_days: Values, kind_days: Values | None, split_ms: int, end_ms: int, policy: Policy
) -> dict[str, list[Said]]:
    """Rules for items, by intervals (N,) of items and, where there are any, of their categories: both of the time before the
    split. Each says all that is due, or as many a week."""
    def rule(days: Values, *, own: bool = False, orders_min: int = 1) -> list[Said]:
        return purchases.by_rule(days, split_ms, end_ms, policy, own=own, orders_min=orders_min)

    every = {ITEM: rule(item_days)} | ({} if kind_days is None else {CATEGORY: rule(kind_days)})
    every |= {OWN: rule(item_days, own=True),
              f"{OWN} from {LOYAL_ORDERS} orders on": rule(item_days, own=True, orders_min=LOYAL_ORDERS)}  # fmt: skip
    return every | {f"{name}, as many a week": capped(some, policy.week_max) for name, some in every.items()}


def of_items(
    asked: Asked, kinds: Categories | None, ours: list[Said], policy: Policy, served_name: str, group: str
) -> list[Judged]:
    """Reminders of items as they are said, and of each method as many."""
    gaps, n = order_gaps(asked.past, asked.split_ms), len(asked.history.items)
    purchases, kind_days = Purchases(asked.past, asked.number, list(asked.history.items)), None
    if kinds is not None:
        of = kinds.of_every_item()
        kind_days = _averages(Gaps(gaps.users, of[gaps.items], gaps.days), len(kinds.names) + n)[of]
    others = rules(purchases, _averages(gaps, n), kind_days, asked.split_ms, asked.history.to_ms, policy)
    plain = {name: others[name] for name in (ITEM, CATEGORY, OWN) if name in others}
    equal = at_equal_volume({served_name: ours} | plain, policy.week_max)
    return [judged({served_name: ours} | others, purchases, served_name, group),
            judged(equal, purchases, served_name, f"{group}.equal")]  # fmt: skip


def of_categories(
    asked: Asked, kinds: Categories, ours: list[Said], policy: Policy, served_name: str, group: str
) -> Judged:
    """Reminders of categories, of each method as many. Ours says them only where of several items each was bought once;
    one rule does so, too."""
    past, split_ms, end_ms = kinds.of_past(asked.past), asked.split_ms, asked.history.to_ms
    purchases = Purchases(past, asked.number, kinds.names)
    days = _averages(order_gaps(past, split_ms), len(kinds.names))
    habit: dict[tuple[int, int], float] = {}  # when the user ordered an item of the category again
    for (user, item), times in Purchases(asked.past, asked.number, list(asked.history.items)).times.items():
        if len(times) > 1:
            place = user, int(kinds.of[item])
            habit[place] = min(times[1], habit.get(place, np.inf))
    alike = purchases.by_rule(days, split_ms, end_ms, policy, orders_min=CATEGORY_DAYS_MIN, only_before=habit)
    methods = {served_name: ours, CATEGORY: purchases.by_rule(days, split_ms, end_ms, policy), ALIKE: alike,
               OWN: purchases.by_rule(days, split_ms, end_ms, policy, own=True)}  # fmt: skip
    return judged(at_equal_volume(methods, policy.week_max), purchases, served_name, f"{group}.category")


def _averages(gaps: Gaps, n: int) -> Values:
    return average_gaps(gaps, n, prior=0.0).astype(np.float64)


def ours_of(history: History, split_ms: int, models: WithoutEncoder, policy: Policy) -> tuple[list[Said], list[Said]]:
    """What a worker says whose window is over by the end: of items, and of categories."""
    items: list[Said] = []
    kinds: list[Said] = []
    for one in served(history, split_ms, models, policy):
        if one.state == "due" and ms(one.window_to) <= history.to_ms:
            said = Said(one.user_id, one.item_id or one.category, ms(one.window_from), ms(one.window_to), one.probability)
            (items if one.item_id else kinds).append(said)
    return items, kinds


def evaluated(
    history: History, past: Past, number: Mapping[str, int], split_ms: int, model: Repurchase, links: Links,
    served_name: str,
) -> tuple[dict[str, Measures], dict[str, Measures], str]:
    """(models, ahead, whence categories are) of reminders whose window is over by the history's end. Where categories are
    derived, ours is asked of items without them, as such a catalog is served, and once more with them of categories."""
    asked, models = Asked(history, past, number, split_ms), WithoutEncoder(model, links)
    catalogued, whence = with_categories(history)
    kinds = None if whence == NONE else categories(catalogued)
    parts: list[Judged] = []
    for group, policy in (("reminders", Policy()), ("reminders.many", Policy(probability_min=MANY_FROM))):
        ours, ours_of_kinds = ours_of(history, split_ms, models, policy)
        parts += of_items(asked, kinds, ours, policy, served_name, group)
        if whence == DERIVED:
            ours_of_kinds = ours_of(catalogued, split_ms, models, policy)[1]
        if kinds is not None:
            parts.append(of_categories(asked, kinds, ours_of_kinds, policy, served_name, group))
    return merged(*(one for one, _ in parts)), merged(*(one for _, one in parts)), whence
