"""Do more people complain than usual? Tickets about one thing, day by day, against its own past.

Tickets a day are taken for Poisson, with as much more variance as the past shows. For each of the last days, as the first
after a change: how much likelier are the tickets since then if twice, four or eight times as many are usual (the mean of the
three ratios) than if as many are as before? A rise is said when the largest passes the log of `opinions_per_false_alarm`:
Page's cumulative sum over a window (Lai, "Sequential Changepoint Detection in Quality Control and Dynamical Systems",
1995); its day is the change point. As many as before: as on the days of the present regime before the window, with one
ticket and one standard error on top for how little is known. A sum that passes the limit begins on a day with tickets, and
none does so by chance with more than 1 / limit, so that the mean number of tickets between false alarms is at least the
limit but for what the estimate and the variance are off; simulated figures are in docs/satisfaction.md.

Days are of the events' time and their counts only grow: tickets of the same days give the same sums in any order, and the
last day counts as a whole one before it is over, so that it is never taken for worse than it will be.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec

from stream.core.statistics.changes import Policy

DAYS_MAX = 200  # that are kept: what was usual before is forgotten
WINDOW_DAYS = 28  # in which a change is looked for; slower ones become usual
PAST_DAYS_MIN = 14  # before anything is said: two weeks hold every day of a week twice
CALM_DAYS = 14  # as few as before the rise, until it is over
TICKETS_MIN = 5  # fewer are no flood, however seldom they were
FACTORS = (2.0, 4.0, 8.0)


class Tickets(msgspec.Struct, array_like=True):
    """Tickets about an item or brand. Days are counted from 1970-01-01, UTC. A regime begins with each change."""

    days: dict[int, int] = msgspec.field(default_factory=dict)
    since: int = -1  # first day of the regime; -1: there was no ticket yet
    latest: int = -1
    changed: bool = False  # the regime began with a change: what was before counts no more
    usual: float = 0.0  # tickets a day that were usual at most before the rise that was said; 0: none was

    def between(self, begin: int, end: int) -> int:
        """Tickets of the days from `begin` to before `end`."""
        return sum(count for day, count in self.days.items() if begin <= day < end)


class Turn(NamedTuple):
    """A change; rates are tickets a day."""

    rose: bool
    day: int
    before: float
    after: float
    n_before: int
    n_after: int


def add(tickets: Tickets, day: int) -> None:
    """Count one ticket of a day.

    >>> one = Tickets()
    >>> for day in (20_000, 20_003, 20_003, 19_999): add(one, day)
    >>> (one.since, one.latest, one.days[20_003])
    (19999, 20003, 2)
    """
    if tickets.since < 0:
        tickets.since = tickets.latest = day
    elif day < tickets.since:
        if tickets.changed:
            return
        tickets.since = day
    tickets.latest = max(tickets.latest, day)
    tickets.days[day] = tickets.days.get(day, 0) + 1
    if tickets.latest - tickets.since >= DAYS_MAX:
        _begin(tickets, tickets.latest - DAYS_MAX + 1, changed=tickets.changed)


def turned(tickets: Tickets, policy: Policy, *, live: bool = True) -> Turn | None:
    """The change that the tickets show, which begins a new regime in place. History begins new regimes too, and is not
    waited for to calm down."""
    turn = _calmed(tickets) if tickets.usual else None
    if turn is not None:
        tickets.usual = 0.0
    else:
        turn, usual = _risen(tickets, policy)
        if turn is None:
            return None
        tickets.usual = usual if live else 0.0
    _begin(tickets, turn.day, changed=True)
    return turn


def _begin(tickets: Tickets, day: int, *, changed: bool) -> None:
    tickets.days = {one: count for one, count in tickets.days.items() if one >= day}
    tickets.since, tickets.changed = day, changed


def _calmed(tickets: Tickets) -> Turn | None:
    """Whether the last days had no more than was usual at most before the rise."""
    first = tickets.latest - CALM_DAYS + 1
    if first <= tickets.since:
        return None
    n = tickets.between(first, tickets.latest + 1)
    if n > tickets.usual * CALM_DAYS:
        return None
    n_before = tickets.between(tickets.since, first)
    return Turn(False, first, n_before / (first - tickets.since), n / CALM_DAYS, n_before, n)


def _risen(tickets: Tickets, policy: Policy) -> tuple[Turn | None, float]:
    """The rise, and what was usual at most before it, in tickets a day."""
    first = max(tickets.latest - WINDOW_DAYS + 1, tickets.since + PAST_DAYS_MIN)  # of the window
    if tickets.since < 0 or first > tickets.latest:
        return None, 0.0
    days = first - tickets.since
    past = tickets.between(tickets.since, first)
    usual = (past + 1 + math.sqrt(past + 1)) / days
    spread = _spread(tickets, first)
    best, day, n = 0.0, 0, 0
    for one in range(tickets.latest, first - 1, -1):
        count = tickets.days.get(one, 0)
        n += count
        sum_ = _log_ratio(n, usual * (tickets.latest - one + 1), spread) if count and n >= TICKETS_MIN else 0.0
        if sum_ > best:
            best, day = sum_, one
    if best <= math.log(policy.opinions_per_false_alarm):
        return None, usual
    n_before, n_after = tickets.between(tickets.since, day), tickets.between(day, tickets.latest + 1)
    after = n_after / (tickets.latest - day + 1)
    return Turn(True, day, n_before / (day - tickets.since), after, n_before, n_after), usual


def _log_ratio(n: int, expected: float, spread: float) -> float:
    """How much likelier `n` tickets are under one of the factors than under `expected` ones.

    >>> round(_log_ratio(8, 1.0, 1.0), 2), _log_ratio(1, 1.0, 1.0) < 0
    (8.74, True)
    """
    logs = [(n * math.log(factor) - expected * (factor - 1)) / spread for factor in FACTORS]
    most = max(logs)
    return most + math.log(sum(math.exp(one - most) for one in logs) / len(FACTORS))


def _spread(tickets: Tickets, end: int) -> float:
    """Variance of the past days' tickets by their mean, 1 at least: weekdays, campaigns and what else comes in lots."""
    days = end - tickets.since
    counts = [count for day, count in tickets.days.items() if day < end]
    n = sum(counts)
    if not n:
        return 1.0
    mean = n / days
    squares = sum((count - mean) ** 2 for count in counts) + (days - len(counts)) * mean**2
    return max(1.0, squares / (days - 1) / mean)
