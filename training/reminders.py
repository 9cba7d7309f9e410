"""Reminders as workers would have said them after a split, and as simple rules would: of those said, how many were bought?

Ours come out of the worker's own desk (`stream.due`, `stream.reminders`) over a partition's state, which is folded event by
event: history as an import, what comes after the split live. The rules know every purchase too, and say each reminder in a
window of the same length around their own interval, at most as many a user and week, in the order of time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
import numpy as np

from schemas import topics
from schemas.events import key, ms
from schemas.outputs import Reminder
from stream.core.counts import CountsPolicy, PartitionCounts
from stream.core.fold import Outcome, fold
from stream.core.links import Links
from stream.core.reminders import INTERVAL_DAYS_MAX, INTERVAL_DAYS_MIN, WEEK_MS, Policy
from stream.core.repurchase import Repurchase
from stream.core.state import DAY_MS, Kind
from stream.due import DUE_USERS_MAX, DueDesk
from stream.outbox import Outbox
from stream.partition import NoStore, PartitionState
from stream.reminders import ReminderDesk
from stream.serving import Serving
from training.clustered import DRAWS, Ints, Values
from training.comparison import Measures, merged
from training.links import average_gaps, order_gaps
from training.metrics import interval
from training.panel.method import Past
from training.snapshot import History
from training.without_encoder import WithoutEncoder

MANY_FROM = 0.1  # on Online Retail about as many as the strongest rule says
LOYAL_ORDERS = 3  # of an item, then a simple rule trusts the user's own interval


class Said(NamedTuple):
    """One reminder of a rule: which user, of what, when, until when."""

    user: str
    item_id: str
    from_ms: int
    until_ms: int


def served(history: History, split_ms: int, models: WithoutEncoder, policy: Policy) -> list[Reminder]:
    """Every reminder a worker says after the split, outcomes too."""
    return asyncio.run(_served(history, split_ms, models, policy))


async def _served(history: History, split_ms: int, models: WithoutEncoder, policy: Policy) -> list[Reminder]:
    serving = Serving(models)
    serving.put_items([(item, np.zeros(models.manifest.text_dim, dtype=np.float32)) for item in history.items.values()])
    desk, outbox = DueDesk(ReminderDesk(policy)), Outbox()
    part = PartitionState(0, NoStore(), PartitionCounts(CountsPolicy()), 1 << 40, 0)
    at_ms = 0
    for event in history.events:
        user, live = key(event.tenant, event.user), event.ts_ms >= split_ms
        if (live and event.ts_ms != at_ms) or len(part.unscheduled) >= DUE_USERS_MAX:  # an interval closes, time passes
            while part.unscheduled:
                await desk.reschedule(part, serving, outbox)
            await desk.pass_time(part, serving, part.meta.clock_ms, outbox)
        at_ms = event.ts_ms
        if live:
            desk.advance(part, at_ms)
            if desk.came_due(part, user):
                await desk.before_event(part, serving, user, outbox)
        state = part.read(user)
        if fold(state, event, part.meta.clock_ms, 0)[0] is Outcome.FOLDED:
            part.touched(user, state, "live" if live else "import")
    while part.unscheduled:
        await desk.reschedule(part, serving, outbox)
    await desk.pass_time(part, serving, part.meta.clock_ms, outbox)
    _, records = outbox.records.get(topics.REMINDERS.entity, (topics.REMINDERS, []))
    return [msgspec.json.decode(record.value or b"", type=Reminder) for record in records]


class Purchases:
    """When each user ordered each item."""

    def __init__(self, history: History, past: Past, number: Mapping[str, int]) -> None:
        self.item_ids, self.users = list(history.items), {at: user for user, at in number.items()}
        some = past.kinds == Kind.ORDER
        rows = np.unique(np.stack([past.users[some], past.items[some], past.ts_ms[some]]), axis=1)  # (3, E)
        starts = np.flatnonzero(np.r_[True, np.any(rows[:2, 1:] != rows[:2, :-1], axis=0)])
        self.times: dict[tuple[int, int], list[int]] = {
            (int(part[0, 0]), int(part[1, 0])): part[2].tolist() for part in np.split(rows, starts[1:], axis=1)
        }
        self._by_name = {(self.users[user], self.item_ids[item]): times for (user, item), times in self.times.items()}

    def bought(self, user: str, item_id: str, from_ms: int, until_ms: int) -> bool:
        return any(from_ms < at <= until_ms for at in self._by_name.get((user, item_id), ()))

    def by_rule(
        self, gap_days: Values, split_ms: int, end_ms: int, policy: Policy, *, own: bool = False, orders_min: int = 1
    ) -> list[Said]:
        """Reminders after each purchase at the item's average interval (N,), or at the user's own where one is known; only
        of items ordered on `orders_min` occasions."""
        found = []
        for (user, item), times in self.times.items():
            for at, bought_ms in enumerate(times):
                days = (bought_ms - times[0]) / DAY_MS / at if own and at else float(gap_days[item])
                if at + 1 < orders_min or not INTERVAL_DAYS_MIN <= days <= INTERVAL_DAYS_MAX:
                    continue
                from_ms = bought_ms + round(max(days - policy.window_days / 2, days / 2) * DAY_MS)
                until_ms = from_ms + round(policy.window_days * DAY_MS)
                bought_before = at + 1 < len(times) and times[at + 1] <= from_ms
                if split_ms < from_ms and until_ms <= end_ms and not bought_before:
                    found.append(Said(self.users[user], self.item_ids[item], from_ms, until_ms))
        return found


def capped(said: list[Said], week_max: int) -> list[Said]:
    """At most so many a user in any 7 days, the first ones.

    >>> day = 86_400_000
    >>> [one.from_ms // day for one in capped([Said("u", "i", day * at, 0) for at in (1, 2, 3, 9)], 2)]
    [1, 2, 9]
    """
    kept: list[Said] = []
    last: dict[str, list[int]] = {}
    for one in sorted(said, key=lambda one: (one.from_ms, one.user, one.item_id)):
        times = last.setdefault(one.user, [])
        if sum(at > one.from_ms - WEEK_MS for at in times) < week_max:
            times.append(one.from_ms)
            kept.append(one)
    return kept


def judged(
    methods: Mapping[str, list[Said]], purchases: Purchases, served_name: str, group: str
) -> tuple[dict[str, Measures], dict[str, Measures]]:
    """(models, ahead): the share of reminders that were bought in their window, and how many were said; intervals over
    users drawn with all their reminders, the same draws for every method. A method that said nothing has no share."""
    place = {user: at for at, user in enumerate(sorted({one.user for some in methods.values() for one in some}))}
    n, rng = len(place), np.random.default_rng(0)
    if not n:
        return {}, {}
    draws: Ints = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(DRAWS)])  # (draws, U)
    models: dict[str, Measures] = {}
    share: dict[str, tuple[float, Values]] = {}
    for name, some in methods.items():
        at = np.array([place[one.user] for one in some], dtype=np.int64)
        hit = np.array([purchases.bought(*one) for one in some], dtype=np.float64)
        said, hits = np.bincount(at, minlength=n), np.bincount(at, weights=hit, minlength=n)  # (U,), (U,)
        models[name] = {f"{group}.said": interval(float(said.sum()), (draws @ said).astype(np.float64))}
        if some:
            share[name] = float(hits.sum() / said.sum()), (draws @ hits) / np.maximum(draws @ said, 1)
            models[name][f"{group}.precision"] = interval(*share[name])
    if served_name not in share:
        return models, {}
    own, drawn = share[served_name]
    ahead = {name: {f"{group}.precision": interval(own - value, drawn - others)}
             for name, (value, others) in share.items() if name != served_name}  # fmt: skip
    return models, ahead


def rules(
    purchases: Purchases, gap_days: Values, split_ms: int, end_ms: int, policy: Policy
) -> dict[str, list[Said]]:
    """What ours is held against; intervals of items are of the time before the split."""
    item = purchases.by_rule(gap_days, split_ms, end_ms, policy)
    return {
        "item's average interval": item,
        "item's average interval, as many a week": capped(item, policy.week_max),
        "own average interval, as many a week": capped(
            purchases.by_rule(gap_days, split_ms, end_ms, policy, own=True), policy.week_max),
        f"own average interval from {LOYAL_ORDERS} orders on, as many a week": capped(
            purchases.by_rule(gap_days, split_ms, end_ms, policy, own=True, orders_min=LOYAL_ORDERS), policy.week_max),
    }  # fmt: skip


def evaluated(
    history: History, past: Past, number: Mapping[str, int], split_ms: int, model: Repurchase, links: Links,
    served_name: str,
) -> tuple[dict[str, Measures], dict[str, Measures]]:
    """(models, ahead) of reminders whose window is over by the history's end: `reminders` as the settings are, and under
    `reminders.many` with a lower threshold, as simple rules say more."""
    purchases, models = Purchases(history, past, number), WithoutEncoder(model, links)
    gap_days = average_gaps(order_gaps(past, split_ms), len(purchases.item_ids), prior=0.0).astype(np.float64)
    parts = []
    for group, policy in (("reminders", Policy()), ("reminders.many", Policy(probability_min=MANY_FROM))):
        ours = [Said(one.user_id, one.item_id, ms(one.window_from), ms(one.window_to))
                for one in served(history, split_ms, models, policy) if one.state == "due" and one.item_id]  # fmt: skip
        methods = {served_name: [one for one in ours if one.until_ms <= history.to_ms]}
        methods |= rules(purchases, gap_days, split_ms, history.to_ms, policy)
        parts.append(judged(methods, purchases, served_name, group))
    return merged(*(one for one, _ in parts)), merged(*(one for _, one in parts))
