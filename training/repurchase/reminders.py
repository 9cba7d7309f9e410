"""Reminders as workers would have said them after a split, and as simple rules would: of those said, how many were bought?

Ours come out of the worker's own desk (`stream.due`, `stream.reminders`) over a partition's state, which is folded event by
event: history as an import, what comes after the split live. The rules know every purchase too, and say each reminder in a
window of the same length around their own interval. Which rules, and how many each may say:
`training.repurchase.reminder_rivals`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
import numpy as np

from schemas import topics
from schemas.events import key
from schemas.outputs import Reminder
from stream.core.ranking.counts import CountsPolicy, PartitionCounts
from stream.core.survival.reminders import INTERVAL_DAYS_MAX, INTERVAL_DAYS_MIN, WEEK_MS, Policy
from stream.core.user.fold import Outcome, fold
from stream.core.user.state import DAY_MS, Kind
from stream.due import DUE_USERS_MAX, DueDesk
from stream.outbox import Outbox
from stream.partition import NoStore, PartitionState
from stream.reminders import ReminderDesk
from stream.serving import Serving
from training.evaluation.clustered import DRAWS, Ints, Values
from training.evaluation.comparison import Measures
from training.evaluation.metrics import interval
from training.history.snapshot import History
from training.panel.method import Past
from training.recommend.without_encoder import WithoutEncoder


class Said(NamedTuple):
    """One reminder: which user, of which item or category, when, until when, and what it is preferred by."""

    user: str
    what: str
    from_ms: int
    until_ms: int
    score: float = 0.0


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
    """When each user ordered each of `names`, the columns of `past`: its items, or categories."""

    def __init__(self, past: Past, number: Mapping[str, int], names: list[str]) -> None:
        self.names, self.users = names, {at: user for user, at in number.items()}
        some = past.kinds == Kind.ORDER
        rows = np.unique(np.stack([past.users[some], past.items[some], past.ts_ms[some]]), axis=1)  # (3, E)
        starts = np.flatnonzero(np.any(rows[:2, 1:] != rows[:2, :-1], axis=0)) + 1
        self.times: dict[tuple[int, int], list[int]] = {
            (int(part[0, 0]), int(part[1, 0])): part[2].tolist() for part in np.split(rows, starts, axis=1) if part.size
        }
        self._by_name = {(self.users[user], names[column]): times for (user, column), times in self.times.items()}

    def bought(self, one: Said) -> bool:
        return any(one.from_ms < at <= one.until_ms for at in self._by_name.get((one.user, one.what), ()))

    def by_rule(
        self, gap_days: Values, split_ms: int, end_ms: int, policy: Policy, *, own: bool = False, orders_min: int = 1,
        only_before: Mapping[tuple[int, int], float] | None = None,
    ) -> list[Said]:
        """Reminders after each purchase at the average interval (N,), or at the user's own where one is known; only after
        `orders_min` orders, and after those that came before a time of (user, column). There is most reason for what was
        ordered most often, then for the shorter interval: a window covers more of it."""
        found = []
        for (user, column), times in self.times.items():
            latest_ms = np.inf if only_before is None else only_before.get((user, column), np.inf)
            for at, bought_ms in enumerate(times):
                days = (bought_ms - times[0]) / DAY_MS / at if own and at else float(gap_days[column])
                if at + 1 < orders_min or bought_ms >= latest_ms or not INTERVAL_DAYS_MIN <= days <= INTERVAL_DAYS_MAX:
                    continue
                from_ms = bought_ms + round(max(days - policy.window_days / 2, days / 2) * DAY_MS)
                until_ms = from_ms + round(policy.window_days * DAY_MS)
                bought_before = at + 1 < len(times) and times[at + 1] <= from_ms
                if split_ms < from_ms and until_ms <= end_ms and not bought_before:
                    score = at + 1 + 1 / (1 + days)
                    found.append(Said(self.users[user], self.names[column], from_ms, until_ms, score))
        return found


def capped(said: list[Said], week_max: int) -> list[Said]:
    """At most so many a user in any 7 days, the first ones.

    >>> day = 86_400_000
    >>> [one.from_ms // day for one in capped([Said("u", "i", day * at, 0) for at in (1, 2, 3, 9)], 2)]
    [1, 2, 9]
    """
    kept: list[Said] = []
    last: dict[str, list[int]] = {}
    for one in sorted(said, key=lambda one: (one.from_ms, one.user, one.what)):
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
        hit = np.array([purchases.bought(one) for one in some], dtype=np.float64)
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
