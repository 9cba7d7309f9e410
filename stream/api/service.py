"""Answers of the read API, without HTTP: states from the replica, scores from `stream.core`, decisions to their log.

A request: 1 the user's state is read from the replica; 2 scored, together with others that wait; 3 what the request asks to
choose from and to prefer is applied to all items; 4 the rules rank; 5 the answer gets an id that stands for its content;
6 it is noted for the log of decisions. Nothing waits for Kafka: an answer says how old what it knows is.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
import numpy as np

from schemas.catalog import Item
from schemas.events import Instant, key
from schemas.outputs import Decision, RecommendedItem, output_id
from stream.adapters.decisions import DecisionLog
from stream.adapters.replica import StateReplica
from stream.adapters.serving_readers import ServingReaders
from stream.api.coalesce import Coalescer
from stream.api.experiments import NO_ARM, Experiments
from stream.api.requests import Ask, Neighbors, ToRank, condition, factor
from stream.core import churn, scenarios, segments
from stream.core.experiments import Arm, assigned, explored
from stream.core.expression import Expression
from stream.core.featurize import Float32, churn_features
from stream.core.index import ItemIndex
from stream.core.recommend import Rules, excluded, rank
from stream.core.scenarios import PERSONAL, Bool
from stream.core.state import DAY_MS, NOTHING_STATED, Kind, Stated, UserState
from stream.core.why import Why, why
from stream.http.answers import Refused, invalid
from stream.outbox import utc
from stream.partition import NOBODY
from stream.ports import Clock
from stream.recommending import Scored, degraded
from stream.serving import Serving
from stream.settings import Settings

BOOST_MAX = 1e6  # of a factor: beyond it, float32 scores overflow


class Recommended(RecommendedItem, frozen=True, kw_only=True):
    """`item`: what was asked of the catalog about it."""

    item: dict[str, Any] | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """`recommendation_id` stands for the content: send it back in `properties.recommendation_id` of what people do with it.
    `stale_ms`: how old at most what the API knows is, beside what the workers have written."""

    recommendation_id: str
    user_id: str
    scenario: str
    items: tuple[Recommended, ...]
    as_of_event_id: str
    as_of_ts: Instant | None
    model_version: str
    degraded: str | None
    stale_ms: int
    experiment: str = ""
    arm: str = ""


class Ranked(msgspec.Struct, frozen=True, kw_only=True):
    """Given items, best first. `unknown` are in no catalog and no event."""

    user_id: str
    items: tuple[RecommendedItem, ...]
    unknown: tuple[str, ...]
    model_version: str
    stale_ms: int


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """One thing the user did to an item."""

    at: Instant
    event_id: str
    item_id: str
    did: str
    value: float


class ChurnNow(msgspec.Struct, frozen=True, kw_only=True):
    """`p_no_return`: chance of no event within `horizon_days` from now; `curve`: chance of no event until so many days after
    the last one. `due_at`: when silence alone raises an alert; null: it does not within a year."""

    p_no_return: float
    interval: tuple[float, float]
    horizon_days: float
    silent_days: float
    due_at: Instant | None
    alerted: bool
    curve: tuple[tuple[float, float], ...]


class Advertising(msgspec.Struct, frozen=True, kw_only=True):
    """What was said last of advertising. `assumed`: not by the user, it is the tenant's default."""

    refused: bool
    stated_at: Instant
    assumed: bool


class User(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a user. `churn` is null without a model, `ads` where nothing was ever said of advertising, both times
    where no event is known: of who refuses a profile, `ads` alone is."""

    user_id: str
    first_seen: Instant | None
    last_seen: Instant | None
    events: int
    orders: int
    revenue: float
    active_days: int
    cart: tuple[str, ...]
    segments: tuple[str, ...]
    anonymous_ids: tuple[str, ...]
    history: tuple[Done, ...]
    churn: ChurnNow | None
    model_version: str
    stale_ms: int
    ads: Advertising | None


class _Chosen(NamedTuple):
    items: tuple[RecommendedItem, ...]
    candidates: int
    degraded: str | None


class Service:
    """One process's answers. `run` follows, until cancelled; `ready` says why it cannot answer yet."""

    def __init__(self, settings: Settings, ranking: ServingReaders, replica: StateReplica, decisions: DecisionLog,
                 clock: Clock) -> None:  # fmt: skip
        self.settings, self.ranking, self.replica, self.decisions, self.clock = settings, ranking, replica, decisions, clock
        self.experiments = Experiments(settings.experiments_file)
        self._coalescer = Coalescer(lambda: self.ranking.serving.current, ranking.run_model)
        own = settings.personalize
        self._rules = Rules(top_n=own.recommend_top_n, category_cap=own.category_cap, exclude=own.exclude)

    async def recommend(self, tenant: str, user: str, ask: Ask) -> Answer:
        """The best items for a user in a scenario. Raises Refused."""
        found = assigned(self.experiments.current(), tenant, user, ask.scenario)
        arm = found.arm if found else NO_ARM
        asked, who = _with_arm(ask, arm), f"{tenant}/{user}"
        if ask.scenario in PERSONAL:
            serving, scored = await self._scored(tenant, user)
            index, state = serving.index(tenant), scored.state
            chosen = self._chosen(serving, index, scored, asked, self._now_ms(tenant, user, state), arm, who)
        else:  # not scored for the user
            serving, state = self._current(), self.replica.read(key(tenant, user)) or NOBODY
            index = serving.index(tenant)
            chosen = self._about_items(index, state, asked, self._now_ms(tenant, user, state))
        items = chosen.items
        as_of = utc(state.last_ts_ms) if state.last_event_id else None
        ident = output_id(
            "decision", tenant, user, ask.scenario, state.last_event_id, serving.version, chosen.degraded or "", arm.name,
            msgspec.json.encode((ask.as_asked(), [(one.item_id, one.source) for one in items])).decode(),
        )
        if self.settings.api.log_decisions:
            self.decisions.note(Decision(
                recommendation_id=ident, tenant=tenant, user_id=user, scenario=ask.scenario, items=items,
                candidates=chosen.candidates, as_of_event_id=state.last_event_id, as_of_ts=as_of, served_at=self._now(),
                model_version=serving.version, request=ask.as_asked(), degraded=chosen.degraded,
                experiment=found.experiment if found else "", arm=arm.name if found else "",
            ))  # fmt: skip
        return Answer(
            recommendation_id=ident, user_id=user, scenario=ask.scenario, items=_with_fields(items, index, ask.fields),
            as_of_event_id=state.last_event_id, as_of_ts=as_of, model_version=serving.version, degraded=chosen.degraded,
            stale_ms=self.replica.behind_ms(), experiment=found.experiment if found else "", arm=arm.name if found else "",
        )

    async def recommend_many(self, tenant: str, users: tuple[str, ...], ask: Ask) -> list[Answer]:
        """`recommend` for several users, scored together."""
        if len(users) > self.settings.api.users_max:
            raise Refused(413, "too_many_users", f"At most {self.settings.api.users_max} users a request, not {len(users)}.")
        return list(await asyncio.gather(*(self.recommend(tenant, user, ask) for user in users)))

    async def rank(self, tenant: str, ask: ToRank) -> Ranked:
        """Given items in the user's order."""
        boost = factor(ask.boost)
        serving, scored = await self._scored(tenant, ask.user_id)
        index, scores = serving.index(tenant), scored.scores
        rows = [index.row_of[item] for item in ask.items if item in index.row_of]
        rows = [row for row in dict.fromkeys(rows) if row < len(scores.total)]
        total = _boosted(scores.total, boost, index)
        order = sorted(rows, key=lambda row: (-total[row], row))
        told = scored._replace(scores=scores._replace(total=total)).explained(order, index)
        return Ranked(user_id=ask.user_id, items=told, unknown=tuple(i for i in ask.items if i not in index.row_of),
                      model_version=serving.version, stale_ms=self.replica.behind_ms())  # fmt: skip

    async def why(self, tenant: str, user: str, item_id: str) -> Why:
        """Why the item is recommended to the user, or is not. Raises Refused 404 for an item nobody knows."""
        serving, scored = await self._scored(tenant, user)
        row = self._row(serving.index(tenant), item_id)
        if row >= len(scored.scores.total):
            raise _unknown_item(item_id)
        return why(row, scored.scores, scored.state, scored.known, scored.weights, serving.index(tenant), self._rules)

    def neighbors(self, tenant: str, item_id: str, ask: Neighbors) -> Answer:
        """Items like a given one, for nobody in particular. Raises Refused 404."""
        serving = self._current()
        index = serving.index(tenant)
        self._row(index, item_id)
        asked = Ask(scenario="similar", n=ask.n, items=(item_id,), filter=ask.filter, exclude="none")
        chosen = self._about_items(index, NOBODY, asked, 0)
        return Answer(
            recommendation_id=output_id("neighbors", tenant, item_id, serving.version, str(ask.n), ask.filter or ""),
            user_id="", scenario="similar", items=_with_fields(chosen.items, index, ask.fields), as_of_event_id="",
            as_of_ts=None, model_version=serving.version, degraded=chosen.degraded, stale_ms=self.replica.behind_ms(),
        )  # fmt: skip

    async def user(self, tenant: str, user: str) -> User:
        """What is known of a user. Raises Refused 404."""
        state = self.replica.read(key(tenant, user))
        if state is None:
            raise Refused(404, "unknown_user", f"Nothing is known of user {user!r}: no event of theirs was folded.")
        serving = self._current()
        history = tuple(
            Done(at=utc(touch.ts_ms), event_id=touch.event_id, item_id=touch.item_id, did=Kind(touch.kind).name.lower(),
                 value=touch.value) for touch in reversed(state.history())
        )  # fmt: skip
        return User(
            user_id=user, first_seen=utc(state.first_ts_ms) if state.events else None,
            last_seen=utc(state.last_ts_ms) if state.events else None, events=state.events,
            orders=state.orders, revenue=round(state.revenue, 2), active_days=len(state.days),
            cart=tuple(scenarios.basket(state)), segments=tuple(segments.members(state)),
            anonymous_ids=tuple(sorted(state.linked)), history=history,
            churn=await self._churn(serving, state, self._now_ms(tenant, user, state)) if state.events else None,
            model_version=serving.version, stale_ms=self.replica.behind_ms(), ads=_advertising(state.ads),
        )  # fmt: skip

    def person(self, tenant: str, user: str) -> tuple[UserState, int]:
        """A user's state, and the present in event time; that of nobody for who is not known."""
        state = self.replica.read(key(tenant, user)) or NOBODY
        return state, self._now_ms(tenant, user, state)

    async def p_no_return(self, state: UserState, now_ms: int) -> float:
        """The model's probability of churn; 0 without a model."""
        found = await self._churn(self._current(), state, now_ms)
        return 0.0 if found is None else found.p_no_return

    async def _churn(self, serving: Serving, state: UserState, now_ms: int) -> ChurnNow | None:
        if serving.models is None:
            return None
        curve = (await self.ranking.run_model(serving.models.survival, churn_features(state)[None]))[0]  # (E,)
        silent_days = max(0.0, (now_ms - state.last_ts_ms) / DAY_MS)
        p = float(churn.p_no_return(curve, silent_days, serving.churn))
        return ChurnNow(
            p_no_return=round(p, 4), interval=churn.interval(p, serving.churn), horizon_days=serving.churn.horizon_days,
            silent_days=round(silent_days, 3), due_at=utc(state.due_ts_ms) if state.due_ts_ms else None,
            alerted=state.alert.raised,
            curve=tuple((float(day), round(float(chance), 4)) for day, chance
                        in zip(churn.EDGES_DAYS, np.exp(curve), strict=True)),
        )  # fmt: skip

    async def _scored(self, tenant: str, user: str) -> tuple[Serving, Scored]:
        self._current()
        state = self.replica.read(key(tenant, user)) or NOBODY
        return await self._coalescer.score(tenant, state, self._now_ms(tenant, user, state))

    def _current(self) -> Serving:
        self.ranking.serving.take_counts()
        return self.ranking.serving.current

    def _chosen(
        self, serving: Serving, index: ItemIndex, scored: Scored, ask: Ask, now_ms: int, arm: Arm, who: str
    ) -> _Chosen:
        state, total = scored.state, scored.scores.total
        n = len(total)
        only = _condition(ask.filter, index, n)
        rules = self._asked(ask)
        if ask.scenario == "again":
            only &= scenarios.bought(state, index)[:n]
            rules = msgspec.structs.replace(rules, exclude="none")
        total = _boosted(total, factor(ask.boost), index)
        rows = rank(total, state, index, rules, only) if n else []
        told = scored._replace(scores=scored.scores._replace(total=total))
        rows, new = explored(rows, told.scores, index, only, arm, who, now_ms)
        items = tuple(msgspec.structs.replace(one, source="explore") if index.row_of[one.item_id] in new else one
                      for one in told.explained(rows, index))  # fmt: skip
        return _Chosen(items, _candidates(state, index, rules, only),
                       degraded(index, serving, scored.known, explained=True))  # fmt: skip

    def _about_items(self, index: ItemIndex, state: UserState, ask: Ask, now_ms: int) -> _Chosen:
        """Scenarios that are not scored for the user; the rules about their past apply all the same."""
        given = self._given(index, state, ask)
        n = len(index)
        only = _condition(ask.filter, index, n)
        if ask.scenario == "popular":
            by_given: Float32 = scenarios.popular(index, now_ms)[None]
        elif ask.scenario == "trending":
            by_given = scenarios.trending(index, now_ms)[None]
        elif ask.scenario == "similar":
            by_given = scenarios.similar(index, given)
        else:
            by_given = scenarios.complements(index, given)
        only[given] = False
        total = by_given.sum(axis=0) if len(by_given) else np.zeros(n, dtype=np.float32)
        if ask.scenario != "popular":  # what nobody has touched is the least popular, but it rises in nothing
            only &= total > 0
        if index.demotion is not None:
            total = total * index.demotion[:n]
        total, rules = _boosted(total, factor(ask.boost), index), self._asked(ask)
        rows = rank(total, state, index, rules, only) if n else []
        why_not = "no_items" if not n else None if rows else "no_history" if not given else None
        return _Chosen(scenarios.told(rows, by_given if given else by_given[:0], given, total, ask.scenario, index),
                       _candidates(state, index, rules, only), why_not)  # fmt: skip

    def _given(self, index: ItemIndex, state: UserState, ask: Ask) -> list[int]:
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
            raise _unknown_item(ask.items[0])
        return rows

    def _asked(self, ask: Ask) -> Rules:
        own, most = self._rules, self.settings.api.top_n_max
        if ask.n > most:
            raise invalid("n", "maximum", f"At most {most} items are answered, not {ask.n}.")
        exclude = ask.exclude or ("none" if ask.scenario in ("similar", "popular", "trending") else own.exclude)
        return Rules(top_n=ask.n, category_cap=ask.category_cap or own.category_cap, exclude=exclude)

    def _row(self, index: ItemIndex, item_id: str) -> int:
        row = index.row_of.get(item_id)
        if row is None:
            raise _unknown_item(item_id)
        return row

    def _now_ms(self, tenant: str, user: str, state: UserState) -> int:
        """The present in event time, carried on by nothing but events; by the wall clock before the first live one."""
        return max(state.last_ts_ms, self.replica.clock_ms(key(tenant, user))) or self.clock.now_ms()

    def _now(self) -> datetime:
        return utc(self.clock.now_ms())


def _advertising(said: Stated) -> Advertising | None:
    if said == NOTHING_STATED:
        return None
    return Advertising(refused=said.refused, stated_at=utc(said.ts_ms), assumed=not said.own)


def _with_arm(ask: Ask, arm: Arm) -> Ask:
    """The request, with what the arm says where it says nothing itself."""
    return msgspec.structs.replace(
        ask, filter=ask.filter or arm.filter, boost=ask.boost or arm.boost, exclude=ask.exclude or arm.exclude,
        category_cap=ask.category_cap or arm.category_cap,
    )  # fmt: skip


def _unknown_item(item_id: str) -> Refused:
    return Refused(404, "unknown_item", f"Item {item_id!r} is in no catalog and in no event.")


def _condition(text: str | None, index: ItemIndex, n: int) -> Bool:
    """(N,): items that a filter lets through; all without one."""
    parsed = condition(text)
    if parsed is None:
        return np.ones(n, dtype=bool)
    return np.array(np.broadcast_to(np.asarray(parsed.evaluate(index.columns)), len(index))[:n], dtype=bool)


def _boosted(total: Float32, boost: Expression | None, index: ItemIndex) -> Float32:
    """Scores times the boost; what is no number, or negative, counts as 0."""
    if boost is None:
        return total
    factors = np.broadcast_to(np.asarray(boost.evaluate(index.columns), dtype=np.float64), len(index))[: len(total)]
    return (total * np.clip(np.nan_to_num(factors, nan=0.0), 0.0, BOOST_MAX)).astype(np.float32)


def _candidates(state: UserState, index: ItemIndex, rules: Rules, only: Bool) -> int:
    allowed = index.recommendable[: len(only)] & only
    allowed[[row for row in excluded(state, index, rules) if row < len(only)]] = False
    return int(allowed.sum())


def _with_fields(
    items: tuple[RecommendedItem, ...], index: ItemIndex, fields: tuple[str, ...]
) -> tuple[Recommended, ...]:  # fmt: skip
    found = []
    for one in items:
        item: Item | None = index.items[index.row_of[one.item_id]]
        extra = {name: getattr(item, name, None) for name in fields} if fields else None
        found.append(Recommended(item_id=one.item_id, score=one.score, source=one.source, reasons=one.reasons, item=extra))
    return tuple(found)
