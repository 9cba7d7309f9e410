"""Answers of the read API, without HTTP: states from the replica, scores from `stream.core`, decisions to their log.

A request: 1 the user's state is read from the replica; 2 scored, together with others that wait; 3 what the request asks to
choose from and to prefer is applied to all items; 4 the rules rank; 5 the answer gets an id that stands for its content;
6 it is noted for the log of decisions, unless the list of erasures says that nothing is kept of the user. Nothing waits for
Kafka: an answer says how old what it knows is.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import NamedTuple

import msgspec
import numpy as np

from schemas.events import key
from schemas.outputs import Applied, Decision, RecommendedItem, output_id
from stream.adapters.kafka.decisions import DecisionLog
from stream.adapters.kafka.replica import StateReplica
from stream.adapters.kafka.serving_readers import ServingReaders
from stream.api.answers import (
    Advertising,
    Answer,
    ChurnNow,
    Done,
    Explained,
    Happened,
    Items,
    OfferServed,
    Ranked,
    User,
    fields_of,
    with_fields,
)
from stream.api.choosing import (
    FILTERED,
    Chosen,
    Wanted,
    about_items,
    boosted,
    due,
    for_user,
    of_due_categories,
    unknown_item,
)
from stream.api.coalesce import Coalescer
from stream.api.experiments import NO_ARM, Experiments
from stream.api.nearest import Nearest, nearest
from stream.api.offers import OfferAnswer, Person
from stream.api.requests import Ask, Neighbors, ToRank
from stream.core.experiments.experiments import Arm, assigned
from stream.core.ranking import scenarios
from stream.core.ranking.recommend import REASONS_MAX, Rules
from stream.core.ranking.scenarios import PERSONAL
from stream.core.segments import segments
from stream.core.survival import churn
from stream.core.survival.reminders import Policy
from stream.core.user.featurize import churn_features
from stream.core.user.state import DAY_MS, NOTHING_STATED, Kind, Stated, UserState
from stream.core.user.totals import totals
from stream.http.answers import Refused, invalid
from stream.outbox import utc
from stream.partition import NOBODY
from stream.ports import Clock, Erasures
from stream.pseudonyms import Pseudonyms
from stream.recommending import Scored, degraded, rules_of
from stream.serving import Serving
from stream.settings import Settings

REASONED_MAX = 20  # items of a ranking that are logged with their reasons: a thousand with all of them are half a megabyte


class Who(NamedTuple):
    """A user who is asked about. `name` is what they are called downstream, in the log of decisions too; `held` is the name
    that their state is under, which may be an older one; `names` are all that they may be on a list by. Answers say the id
    that was asked."""

    name: str
    held: str
    names: tuple[str, ...]


class _Decided(NamedTuple):
    """`chosen` by `wanted`, with what; `experiment` and `arm` are empty outside of one."""

    version: str
    wanted: Wanted
    chosen: Chosen
    experiment: str
    arm: str


class Service:
    """One process's answers. `run` follows, until cancelled; `ready` says why it cannot answer yet."""

    def __init__(self, settings: Settings, ranking: ServingReaders, replica: StateReplica, decisions: DecisionLog,
                 clock: Clock, erasures: Erasures) -> None:  # fmt: skip
        self.settings, self.ranking, self.replica, self.decisions, self.clock = settings, ranking, replica, decisions, clock
        self.erasures = erasures
        self.pseudonyms = Pseudonyms(settings.privacy)
        self.experiments = Experiments(settings.experiments_file)
        self._coalescer = Coalescer(lambda: self.ranking.serving.current, ranking.run_model)
        own = settings.personalize
        self._reminders = Policy(window_days=own.reminders_window_days)
        self._rules = rules_of(own)

    def who(self, tenant: str, user: str) -> Who:
        """Where ids are pseudonyms, the state is looked for under each key, newest first, and under the id itself."""
        if not self.pseudonyms:
            return Who(user, user, (user,))
        name, names = self.pseudonyms.ids_of(tenant, user)[0], tuple(self.pseudonyms.names_of(tenant, user))
        held = (one for one in names if self.replica.holds(key(tenant, one)))
        return Who(name, next(held, name), names)

    async def recommend(self, tenant: str, user: str, ask: Ask) -> Answer:
        """The best items for a user in a scenario. Raises Refused."""
        who = self.who(tenant, user)
        version, wanted, chosen, experiment, arm = await self._decided(tenant, who, ask)
        items, state, choice, applied = chosen.items(), chosen.state, chosen.choice, wanted.applied()
        ident = output_id(
            "decision", tenant, who.name, ask.scenario, state.last_event_id, version, chosen.degraded or "", wanted.arm.name,
            msgspec.json.encode((ask.as_asked(), applied, [(one.item_id, one.source) for one in items])).decode(),
        )
        if ask.log:
            self._note(who, state, Decision(
                recommendation_id=ident, tenant=tenant, user_id=who.name, scenario=ask.scenario, items=items,
                candidates=choice.candidates, as_of_event_id=state.last_event_id, as_of_ts=_as_of(state),
                served_at=self._now(), model_version=version, request=ask.as_asked(), degraded=chosen.degraded,
                experiment=experiment, arm=arm, applied=applied,
                propensities=tuple(round(one, 6) for one in choice.chances),
            ))  # fmt: skip
        return Answer(
            recommendation_id=ident, user_id=user, scenario=ask.scenario, experiment=experiment, arm=arm,
            items=with_fields(items, chosen.catalog, ask.fields), categories=chosen.categories,
            as_of_event_id=state.last_event_id, as_of_ts=_as_of(state),
            model_version=version, degraded=chosen.degraded, stale_ms=self.replica.behind_ms(),
        )  # fmt: skip

    async def _decided(self, tenant: str, who: Who, ask: Ask) -> _Decided:
        """What a request chooses for a user, in the arm that they are in."""
        found = assigned(self.experiments.current(), tenant, who.name, ask.scenario)
        arm = found.arm if found else NO_ARM
        asked = _with_arm(ask, arm)
        filtered = FILTERED if ask.filter else f"the filter of the experiment's arm {arm.name!r} leaves it out"
        explore = self.settings.api.explore if asked.explore is None else asked.explore
        wanted = Wanted(asked, self._asked(asked), arm, explore if ask.scenario in PERSONAL else 0.0, filtered)
        if ask.scenario in (*PERSONAL, "due_categories"):
            serving, scored = await self._scored(tenant, who)
            now_ms = self._now_ms(tenant, who, scored.state)
            if ask.scenario == "due_categories":
                chosen = of_due_categories(serving, tenant, scored, wanted, now_ms, self._reminders)
            else:
                chosen = for_user(serving, serving.index(tenant), scored, wanted, f"{tenant}/{who.name}", now_ms)
        else:  # not scored for the user
            serving, state = self._current(), self.replica.read(key(tenant, who.held)) or NOBODY
            now_ms = self._now_ms(tenant, who, state)
            if ask.scenario == "due":
                chosen = due(serving, tenant, state, wanted, now_ms, self._reminders)
            else:
                chosen = about_items(serving.index(tenant), state, wanted, now_ms)
        return _Decided(serving.version, wanted, chosen, found.experiment if found else "", arm.name if found else "")

    def _note(self, who: Who, state: UserState, decision: Decision) -> None:
        if self.settings.api.log_decisions and self._kept(decision.tenant, who, state):
            self.decisions.note(decision)

    def _kept(self, tenant: str, who: Who, state: UserState) -> bool:
        """Whether what is decided by this profile may be kept, by the list of erasures."""
        began_ms = state.began_ms if state.last_event_id else self.clock.now_ms()
        return not any(self.erasures.takes(key(tenant, one), began_ms) for one in who.names)

    def check_count(self, users: tuple[str, ...]) -> None:
        """Raises Refused 413 for more users than one request may ask about."""
        if len(users) > self.settings.api.users_max:
            raise Refused(413, "too_many_users", f"At most {self.settings.api.users_max} users a request, not {len(users)}.")

    async def recommend_many(self, tenant: str, users: tuple[str, ...], ask: Ask) -> list[Answer]:
        """`recommend` for several users, scored together."""
        return list(await asyncio.gather(*(self.recommend(tenant, user, ask) for user in users)))

    async def rank(self, tenant: str, ask: ToRank) -> Ranked:
        """Given items in the user's order, as a decision of the scenario `rank`. Raises Refused."""
        who = self.who(tenant, ask.user_id)
        serving, scored = await self._scored(tenant, who)
        index, state = serving.index(tenant), scored.state
        scored = boosted(scored, ask.boost, index)
        total = scored.scores.total
        rows = [index.row_of[item] for item in dict.fromkeys(ask.items) if item in index.row_of]
        order = sorted((row for row in rows if row < len(total)), key=lambda row: (-total[row], row))
        items, why_not = scored.explained(order, index), degraded(index, serving, scored.known, explained=True)
        ident = output_id(
            "rank", tenant, who.name, state.last_event_id, serving.version, why_not or "", ask.boost or "",
            msgspec.json.encode([(one.item_id, one.source) for one in items]).decode(),
        )
        if ask.log:
            self._note(who, state, Decision(
                recommendation_id=ident, tenant=tenant, user_id=who.name, scenario="rank", items=_logged(items),
                candidates=len(items), as_of_event_id=state.last_event_id, as_of_ts=_as_of(state), served_at=self._now(),
                model_version=serving.version, request={"boost": ask.boost} if ask.boost else {}, degraded=why_not,
                applied=Applied(n=len(items), exclude="none", boost=ask.boost), propensities=(1.0,) * len(items),
            ))  # fmt: skip
        return Ranked(
            recommendation_id=ident, user_id=ask.user_id, items=items,
            unknown=tuple(item for item in ask.items if item not in index.row_of), as_of_event_id=state.last_event_id,
            as_of_ts=_as_of(state), model_version=serving.version, degraded=why_not, stale_ms=self.replica.behind_ms(),
        )  # fmt: skip

    async def why(
        self, tenant: str, user: str, item_id: str, ask: Ask, reasons: int = REASONS_MAX
    ) -> Explained:  # fmt: skip
        """Why the item is among what the same request recommends to the user, or is not, by so many `reasons` at most.
        Raises Refused: 404 for an item nobody knows."""
        version, _, chosen, experiment, arm = await self._decided(tenant, self.who(tenant, user), ask)
        row, state = chosen.catalog.row_of.get(item_id), chosen.state
        if row is None or row >= len(chosen.choice.total):
            raise unknown_item(item_id)
        told = chosen.why(row, reasons)
        return Explained(
            **msgspec.structs.asdict(told), user_id=user, scenario=ask.scenario, experiment=experiment, arm=arm,
            item=fields_of(item_id, chosen.catalog, ask.fields), as_of_event_id=state.last_event_id, as_of_ts=_as_of(state),
            model_version=version, degraded=chosen.degraded, stale_ms=self.replica.behind_ms(),
        )  # fmt: skip

    def neighbors(self, tenant: str, item_id: str, ask: Neighbors) -> Items:
        """Items like a given one, for nobody in particular, and so no decision. Raises Refused 404."""
        serving = self._current()
        index = serving.index(tenant)
        if item_id not in index.row_of:
            raise unknown_item(item_id)
        asked = Ask(scenario="similar", n=ask.n, items=(item_id,), filter=ask.filter, exclude="none", diversity=0.0)
        chosen = about_items(index, NOBODY, Wanted(asked, self._asked(asked)), 0)
        return Items(
            user_id="", scenario="similar", items=with_fields(chosen.items(), index, ask.fields), as_of_event_id="",
            as_of_ts=None, model_version=serving.version, degraded=chosen.degraded, stale_ms=self.replica.behind_ms(),
        )  # fmt: skip

    async def nearest(self, tenant: str, user: str, ask: Nearest) -> Items:
        """Items nearest to the user's vector: where the model sees them, and so no decision. Raises Refused."""
        rules = self._asked(Ask(n=ask.n))
        serving, scored = await self._scored(tenant, self.who(tenant, user))
        index, state = serving.index(tenant), scored.state
        items = nearest(scored.vector, index, rules.top_n)
        return Items(
            user_id=user, scenario="nearest", items=with_fields(items, index, ask.fields),
            as_of_event_id=state.last_event_id, as_of_ts=_as_of(state), model_version=serving.version,
            degraded=degraded(index, serving, scored.known, explained=True), stale_ms=self.replica.behind_ms(),
        )  # fmt: skip

    async def user(self, tenant: str, user: str) -> User:
        """What is known of a user. Raises Refused 404."""
        who = self.who(tenant, user)
        state = self.replica.read(key(tenant, who.held))
        if state is None:
            raise Refused(404, "unknown_user", f"Nothing is known of user {user!r}: no event of theirs was folded.")
        serving, whole = self._current(), totals(state)
        history = tuple(
            Done(at=utc(touch.ts_ms), event_id=touch.event_id, item_id=touch.item_id, did=Kind(touch.kind).name.lower(),
                 value=touch.value) for touch in reversed(state.history())
        )  # fmt: skip
        activity = tuple(Happened(at=utc(one.ts_ms), event=one.event, text=one.text) for one in reversed(state.activity()))
        return User(
            user_id=user, first_seen=utc(whole.first_ts_ms) if whole.events else None,
            last_seen=utc(whole.last_ts_ms) if whole.events else None, events=whole.events,
            orders=whole.orders, revenue=round(whole.revenue, 2), active_days=len(whole.days),
            cart=tuple(scenarios.basket(state)), segments=tuple(segments.members(state)),
            anonymous_ids=tuple(sorted(state.linked)), as_of_event_id=state.last_event_id, as_of_ts=_as_of(state),
            history=history, activity=activity,
            churn=await self._churn(serving, state, self._now_ms(tenant, who, state)) if state.events else None,
            model_version=serving.version, stale_ms=self.replica.behind_ms(), ads=_advertising(state.ads),
        )  # fmt: skip

    def person(self, tenant: str, user: str) -> Person:
        """Whom an offer is for; with the state of nobody for who is not known."""
        who = self.who(tenant, user)
        state = self.replica.read(key(tenant, who.held)) or NOBODY
        return Person(tenant, who.name, state, self._now_ms(tenant, who, state), self._kept(tenant, who, state))

    def offered(self, user: str, answer: OfferAnswer) -> OfferServed:
        """An offer to the user who was asked about, with what every answer says of its making: it knows a user's state, and
        what offers have learned."""
        own = {"user_id": user, "stale_ms": max(answer.stale_ms, self.replica.behind_ms())}
        return OfferServed(**msgspec.structs.asdict(answer) | own, model_version=self._current().version)

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

    async def _scored(self, tenant: str, who: Who) -> tuple[Serving, Scored]:
        self._current()
        state = self.replica.read(key(tenant, who.held)) or NOBODY
        return await self._coalescer.score(tenant, state, self._now_ms(tenant, who, state))

    def _current(self) -> Serving:
        self.ranking.serving.take_counts()
        return self.ranking.serving.current

    def _asked(self, ask: Ask) -> Rules:
        own, most = self._rules, self.settings.api.top_n_max
        if ask.n > most:
            raise invalid("n", "maximum", f"At most {most} items are answered, not {ask.n}.")
        usual = own.exclude if ask.scenario in (*PERSONAL, "complements") else "none"
        exclude = "none" if ask.scenario == "again" else ask.exclude or usual  # of what was bought nothing would be left
        diversity = own.diversity if ask.diversity is None else ask.diversity
        cap = ask.n if ask.scenario == "due_categories" else own.category_cap  # it is about nothing but a few categories
        return Rules(top_n=ask.n, category_cap=ask.category_cap or cap, exclude=exclude, diversity=diversity)

    def _now_ms(self, tenant: str, who: Who, state: UserState) -> int:
        """The present in event time, carried on by nothing but events; by the wall clock before the first live one."""
        return max(state.last_ts_ms, self.replica.clock_ms(key(tenant, who.held))) or self.clock.now_ms()

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
        diversity=arm.diversity if ask.diversity is None else ask.diversity,
        explore=arm.explore if ask.explore is None else ask.explore,
    )  # fmt: skip


def _as_of(state: UserState) -> datetime | None:
    return utc(state.last_ts_ms) if state.last_event_id else None


def _logged(items: tuple[RecommendedItem, ...]) -> tuple[RecommendedItem, ...]:
    """A ranking as it is logged: whole, but for the reasons of what comes late in it."""
    return items[:REASONED_MAX] + tuple(msgspec.structs.replace(one, reasons=()) for one in items[REASONED_MAX:])
