"""From a request to what is chosen: its filter and boost over all items, its scenario's own conditions, the rules, and the
experiment's arm. What is shown and why something is not are both read from the `Chosen` that comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from schemas.events import Instant
from schemas.outputs import Applied, Reason, RecommendedItem
from stream.api.experiments import NO_ARM
from stream.api.requests import Ask, condition, factor
from stream.core.experiments.experiments import Arm, explored
from stream.core.ranking import scenarios
from stream.core.ranking.choice import Choice, allowed_of, choose
from stream.core.ranking.index import ItemIndex
from stream.core.ranking.recommend import REASONS_MAX, SHARE_LEAST, Rules, rest, shares_by_source
from stream.core.ranking.scenarios import Bool
from stream.core.ranking.why import Why, why
from stream.core.survival.reminders import Policy, categories_due, due_now
from stream.core.user.featurize import Float32
from stream.core.user.state import Kind, UserState
from stream.http.answers import Refused, invalid
from stream.outbox import utc
from stream.recommending import Scored, degraded
from stream.serving import Serving

BOOST_MAX = 1e6  # of a factor: beyond it, float32 scores overflow
FILTERED = "the request's filter leaves it out"


class Wanted(NamedTuple):
    """A request as it is carried out: `ask` with the arm's words where it says nothing itself. `explore`: share of places
    for items that nobody knows. `filtered`: what is said of an item that the filter leaves out."""

    ask: Ask
    rules: Rules
    arm: Arm = NO_ARM
    explore: float = 0.0
    filtered: str = FILTERED

    def applied(self) -> Applied:
        """For the log of decisions."""
        rules = self.rules
        return Applied(n=rules.top_n, exclude=rules.exclude, category_cap=rules.category_cap, filter=self.ask.filter,
                       boost=self.ask.boost, diversity=rules.diversity, explore=self.explore)  # fmt: skip


class ForUser(NamedTuple):
    """Scores by the whole mixture, the boost included."""

    scored: Scored

    def told(self, rows: list[int], index: ItemIndex, most: int) -> tuple[RecommendedItem, ...]:
        return self.scored.explained(rows, index, most)

    def rest(self, row: int, index: ItemIndex, reasons: Sequence[Reason]) -> dict[str, float]:
        one = self.scored
        return rest(row, one.scores, one.known, one.weights, index, reasons)

    def shares(self, row: int) -> dict[str, float]:
        return shares_by_source(row, self.scored.scores)


class AboutItems(NamedTuple):
    """Scores by given items, or by none in particular."""

    source: str
    by_given: Float32  # (S, N)
    given: list[int]
    total: Float32  # (N,)
    state: UserState

    def told(self, rows: list[int], index: ItemIndex, most: int) -> tuple[RecommendedItem, ...]:
        return scenarios.told(rows, self.by_given, self.given, self.total, self.source, index, self.state, most)

    def rest(self, row: int, index: ItemIndex, reasons: Sequence[Reason]) -> dict[str, float]:
        """Of given items the others; without any, all of it is what everybody does."""
        left = 1 - sum(one.share for one in reasons) if self.total[row] > 0 else 0.0
        return {"others" if self.given else "popularity": round(left, 4)} if left > SHARE_LEAST else {}

    def shares(self, row: int) -> dict[str, float]:
        return {self.source: 1.0} if self.total[row] > 0 else {}


class Due(NamedTuple):
    """Chances of a purchase of what is due, the boost included."""

    state: UserState
    total: Float32  # (N,)

    def told(self, rows: list[int], index: ItemIndex, most: int) -> tuple[RecommendedItem, ...]:
        """The score is the chance; the reasons are the item's orders that are remembered, the newest first. The chance is of
        all its orders together, so each has the same share."""
        return tuple(
            RecommendedItem(
                item_id=(item := index.ids[row]), score=round(float(self.total[row]), 6),
                source="pinned" if index.pinned[row] else "due",
                reasons=tuple(Reason(event_id=event_id, item_id=item, share=round(1 / self._orders(item), 4))
                              for event_id in self._remembered(item)[:most]),
            )
            for row in rows
        )  # fmt: skip

    def rest(self, row: int, index: ItemIndex, reasons: Sequence[Reason]) -> dict[str, float]:
        if not self.total[row] > 0:
            return {}
        item = index.ids[row]
        orders, known = self._orders(item), len(self._remembered(item))
        found = {"others": (known - len(reasons)) / orders, "forgotten": (orders - known) / orders}
        return {name: round(share, 4) for name, share in found.items() if share > 0}

    def shares(self, row: int) -> dict[str, float]:
        return {"due": 1.0} if self.total[row] > 0 else {}

    def _remembered(self, item: str) -> list[str]:
        """An event of each order of the item that is remembered, the newest first: lines of one order are of one instant."""
        orders = {touch.ts_ms: touch.event_id for touch in self.state.own_touches()
                  if touch.item_id == item and touch.kind == Kind.ORDER}  # fmt: skip
        return [orders[ts_ms] for ts_ms in sorted(orders, reverse=True)]

    def _orders(self, item: str) -> int:
        stat = self.state.items.get(item)
        return max(stat.orders if stat else 0, len(self._remembered(item)), 1)


class DueCategory(msgspec.Struct, frozen=True, kw_only=True):
    """A category that the user is expected to buy of again. `probability`: of a purchase within a window's length from now;
    `window_from`: since when it is due."""

    category: str
    probability: float
    last_bought_ts: Instant
    interval_days: float
    window_from: Instant


class Chosen(NamedTuple):
    """What was chosen for a user, from what, and how it is told."""

    catalog: ItemIndex
    state: UserState
    choice: Choice
    basis: ForUser | AboutItems | Due
    degraded: str | None
    categories: tuple[DueCategory, ...] = ()

    def items(self) -> tuple[RecommendedItem, ...]:
        """As shown, best first."""
        return self._told(self.choice.rows)

    def why(self, row: int, most: int) -> Why:
        """Why a row is among them, or is not, by so many events at most."""
        (told,) = self._told([row], most)
        rest = self.basis.rest(row, self.catalog, told.reasons)
        return why(row, self.choice, self.state, self.catalog, told, self.basis.shares(row), rest)

    def _told(self, rows: list[int], most: int = REASONS_MAX) -> tuple[RecommendedItem, ...]:
        new = self.choice.explored
        return tuple(msgspec.structs.replace(one, source="explore") if row in new else one
                     for row, one in zip(rows, self.basis.told(rows, self.catalog, most), strict=True))  # fmt: skip


def for_user(serving: Serving, index: ItemIndex, scored: Scored, wanted: Wanted, who: str, now_ms: int) -> Chosen:
    """Scenarios that are scored for the user. Raises Refused."""
    state, total = scored.state, scored.scores.total
    conditions = _filtered(wanted, index, len(total))
    if wanted.ask.scenario == "again":
        conditions["the user never bought it"] = scenarios.again(state, index)[: len(total)]
    scored = boosted(scored, wanted.ask.boost, index)
    choice = choose(scored.scores.total, state, index, wanted.rules, conditions)
    found = explored(choice.ranked, scored.scores, index, choice.allowed, wanted.rules.category_cap, wanted.explore, who,
                     now_ms)  # fmt: skip
    return Chosen(index, state, choice._replace(rows=found.rows, chances=found.chances), ForUser(scored),
                  degraded(index, serving, scored.known, explained=True))  # fmt: skip


def about_items(index: ItemIndex, state: UserState, wanted: Wanted, now_ms: int) -> Chosen:
    """Scenarios that are not scored for the user; the rules about their past apply all the same. Raises Refused."""
    ask, n = wanted.ask, len(index)
    given = _given(index, state, ask)
    conditions = _filtered(wanted, index, n)
    if ask.scenario == "popular":
        by_given: Float32 = scenarios.popular(index, now_ms)[None]
    elif ask.scenario == "trending":
        by_given = scenarios.trending(index, now_ms)[None]
    elif ask.scenario == "similar":
        by_given = scenarios.similar(index, given)
    else:
        by_given = scenarios.complements(index, given)
    if given:
        other = np.ones(n, dtype=bool)
        other[given] = False
        conditions["it is what was asked about"] = other
    total = by_given.sum(axis=0) if len(by_given) else np.zeros(n, dtype=np.float32)
    if ask.scenario != "popular":  # what nobody has touched is the least popular, but it rises in nothing
        conditions["it does not rise" if ask.scenario == "trending" else "nothing given speaks for it"] = total > 0
    if index.demotion is not None:
        total = total * index.demotion[:n]
    total = total * _factors(ask.boost, index, n)
    choice = choose(total, state, index, wanted.rules, conditions)
    why_not = "no_items" if not n else None if choice.rows else "no_history" if not given else None
    return Chosen(index, state, choice,
                  AboutItems(ask.scenario, by_given if given else by_given[:0], given, total, state), why_not)  # fmt: skip


def due(serving: Serving, tenant: str, state: UserState, wanted: Wanted, now_ms: int, policy: Policy) -> Chosen:
    """What the user is expected to buy again now, by the model that reminders are said by. Raises Refused."""
    index, rhythms = serving.index(tenant), serving.rhythms(tenant)
    n = len(index)
    total = np.zeros(n, dtype=np.float32)
    for item, chance in (due_now(state, now_ms, rhythms, policy) if rhythms else {}).items():
        if (row := index.row_of.get(item)) is not None:
            total[row] = chance
    conditions = _filtered(wanted, index, n) | {"it is not due": total > 0}
    if index.demotion is not None:
        total = total * index.demotion[:n]
    total = total * _factors(wanted.ask.boost, index, n)
    choice = choose(total, state, index, wanted.rules, conditions)
    why_not = "no_items" if not n else "counts_only" if rhythms is None else None if state.orders else "no_history"
    return Chosen(index, state, choice, Due(state, total), why_not)


def of_due_categories(
    serving: Serving, tenant: str, scored: Scored, wanted: Wanted, now_ms: int, policy: Policy
) -> Chosen:  # fmt: skip
    """Items of the categories that the user is expected to buy of again now. An item's score is the category's chance times
    the item's share of the scores of what may be chosen of it; so the likelier category comes first, but each with its best.
    Raises Refused."""
    index, rhythms, state, n = serving.index(tenant), serving.rhythms(tenant), scored.state, len(scored.scores.total)
    found = categories_due(state, now_ms, rhythms, policy) if rhythms else []
    of_each = [index.of_category(one.category)[:n] for one, _ in found]
    of_any = np.logical_or.reduce(of_each) if of_each else np.zeros(n, dtype=bool)
    conditions = _filtered(wanted, index, n) | {"it is of no category that is due": of_any}
    allowed = allowed_of(n, state, index, wanted.rules, conditions)
    factors = np.zeros(n, dtype=np.float32)
    for inside, (_, chance) in zip(of_each, found, strict=True):
        for some in (inside & allowed, inside & ~allowed):  # each by itself: what may not be chosen takes nobody's share
            factors[some] = chance / max(float(scored.scores.total[some].sum(dtype=np.float64)), 1e-12)
    scored = _scaled(scored, factors * _factors(wanted.ask.boost, index, n))
    why_not = degraded(index, serving, scored.known, explained=True)
    if why_not is None:
        why_not = "counts_only" if rhythms is None else None if state.orders else "no_history"
    told = tuple(DueCategory(category=one.category, probability=round(chance, 6), last_bought_ts=utc(one.bought_ts_ms),
                             interval_days=round(one.interval_days, 3), window_from=utc(one.from_ms))
                 for one, chance in found)  # fmt: skip
    return Chosen(index, state, choose(scored.scores.total, state, index, wanted.rules, conditions), ForUser(scored),
                  why_not, told)  # fmt: skip


def boosted(scored: Scored, boost: str | None, index: ItemIndex) -> Scored:
    """With the boost in its scores and in what they are made of. Raises Refused."""
    return _scaled(scored, _factors(boost, index, len(scored.scores.total)))


def _scaled(scored: Scored, factors: Float32) -> Scored:
    scores = scored.scores
    return scored._replace(scores=scores._replace(total=scores.total * factors, boost=scores.boost * factors))


def unknown_item(item_id: str) -> Refused:
    return Refused(404, "unknown_item", f"Item {item_id!r} is in no catalog and in no event.")


def _filtered(wanted: Wanted, index: ItemIndex, n: int) -> dict[str, Bool]:
    parsed = condition(wanted.ask.filter)
    if parsed is None:
        return {}
    met = np.broadcast_to(np.asarray(parsed.evaluate(index.columns)), len(index))[:n]
    return {wanted.filtered: np.array(met, dtype=bool)}


def _factors(boost: str | None, index: ItemIndex, n: int) -> Float32:
    """(N,) of the boost; what is no number, or negative, counts as 0."""
    parsed = factor(boost)
    if parsed is None:
        return np.ones(n, dtype=np.float32)
    factors = np.broadcast_to(np.asarray(parsed.evaluate(index.columns), dtype=np.float64), len(index))[:n]
    return np.clip(np.nan_to_num(factors, nan=0.0), 0.0, BOOST_MAX).astype(np.float32)


def _given(index: ItemIndex, state: UserState, ask: Ask) -> list[int]:
    """Rows a scenario is about; items nobody knows are left out unless all are."""
    if ask.scenario not in ("similar", "complements"):
        return []
    wanted = list(ask.items)
    if not wanted and ask.scenario == "complements":
        wanted = scenarios.basket(state)
    if not wanted and ask.scenario == "similar":
        raise invalid("items", "required", "The scenario `similar` is about `items`: name at least one.")
    rows = [index.row_of[item] for item in dict.fromkeys(wanted) if item in index.row_of]
    if ask.items and not rows:
        raise unknown_item(ask.items[0])
    return rows
