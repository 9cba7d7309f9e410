"""Which offer a user sees at a placement: the file of offers, and a decision with the chance it was taken with.

A request: 1 offers that may not be shown are left out, each with the reason; 2 a user who is held out gets the control, or
nothing, and what step 3 would have chosen is logged where a guardrail compares with it; 3 for anybody else the policy gives
each offer its chance, and a hash of user, placement and moment is held against them; 4 the decision is noted for the log,
from which the offers worker learns, unless nothing may be kept of the user. Nothing is drawn by chance: the same request
within DECISION_S against the same policy has the same answer and the same id.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from schemas.events import Id, Instant, key
from schemas.offers import PlacementTotals
from schemas.outputs import Decision, Offered, output_id
from stream.adapters.kafka.decisions import DecisionLog
from stream.adapters.kafka.offers import OffersReader
from stream.adapters.watched import Watched
from stream.api.texts import TextFeatures
from stream.core.offers.offer_ledger import ID_PREFIX
from stream.core.offers.offer_policy import Policy, policy, text_id
from stream.core.offers.offers import (
    HOUR_MS,
    NO_OFFERS,
    Compiled,
    Offer,
    OfferRules,
    OffersError,
    OffersFile,
    Standing,
    compiled,
    held_out,
    refusal,
)
from stream.core.segments import segments
from stream.core.segments.segment_fields import values_of
from stream.core.statistics.bandit import choose
from stream.core.user.state import UserState
from stream.http.answers import Refused, invalid
from stream.outbox import utc
from stream.ports import Clock

LOOK_S = 1.0  # at the file
DECISION_S = 60  # without an id of the caller's, asking again within such a minute is the same decision
POLICIES_MAX = 64
POLICY_S = 1.0  # a policy is made anew from what was learned at most this often


def load(path: Path) -> OfferRules:
    """Raises OffersError."""
    try:
        return compiled(msgspec.yaml.decode(path.read_bytes(), type=OffersFile))
    except (OSError, msgspec.MsgspecError, OffersError) as error:
        raise OffersError(f"{path}: {error}") from error


Text = Annotated[str, msgspec.Meta(min_length=1, max_length=1_000)]


class AskOffer(msgspec.Struct, frozen=True, kw_only=True):
    """`id`: what stands for the moment of the decision (a page view, a message): asking again with it chooses alike.
    `offers`: only from these, of the file's. `log`: whether it is shown to the user, and counts as a
    decision."""

    placement: str
    id: Annotated[str, msgspec.Meta(max_length=256)] = ""
    offers: Annotated[tuple[Id, ...], msgspec.Meta(max_length=200)] = ()
    log: bool = True


class AskOfferFor(AskOffer, frozen=True, kw_only=True):
    """`texts`: subject lines, captions … to choose from instead of the file's offers; held-out users see the first."""

    user_id: Id
    texts: Annotated[tuple[Text, ...], msgspec.Meta(max_length=50)] = ()


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    offer_id: str
    text: str
    category: str | None
    tags: tuple[str, ...]


class OfferAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """`offer` null: show nothing. Send `recommendation_id` back in `properties.recommendation_id` of Promotion Viewed,
    Promotion Clicked and Order Completed. `propensity`: the chance of this choice; `candidates`: of each offer; `refused`:
    why not the others. `holdout`: the user is kept out for comparison."""

    recommendation_id: str
    user_id: str
    placement: str
    offer: Shown | None
    propensity: float
    candidates: dict[str, float]
    refused: dict[str, str]
    holdout: bool
    rules_version: str
    policy_version: str
    as_of_event_id: str
    as_of_ts: Instant | None
    stale_ms: int


class Person(NamedTuple):
    """Whom it is for. `now_ms`: the present in event time, by which the state is judged. `kept`: whether the decision may be
    kept, by the list of erasures."""

    tenant: str
    user: str
    state: UserState
    now_ms: int
    kept: bool = True


class _Weighed(NamedTuple):
    """What a choice is made from."""

    rules: OfferRules
    where: Compiled
    about: dict[str, tuple[str, ...]]  # by offer; with how near it is to the user
    policy_version: str
    holdout: bool
    groups: tuple[str, ...]
    candidates: dict[str, float]
    instead: dict[str, float]  # chances of what a guardrail compares with; empty where none asks, or nothing can be compared
    refused: dict[str, str]
    at_ms: int


class OfferDesk:
    """One process's choices. `churn_of(state, now_ms)`: the model's probability, asked for where a condition reads it."""

    def __init__(
        self, path: Path, learned: OffersReader, decisions: DecisionLog, clock: Clock,
        churn_of: Callable[[UserState, int], Awaitable[float]], texts: TextFeatures,
    ) -> None:  # fmt: skip
        self.learned, self.decisions, self.clock, self.churn_of, self.texts = learned, decisions, clock, churn_of, texts
        self._file: Watched[OfferRules] = Watched(path, load, NO_OFFERS, "offers")
        self._looked_at = 0.0
        self._policies: OrderedDict[tuple[str, str], tuple[PlacementTotals, float, Policy]] = OrderedDict()

    def rules(self) -> OfferRules:
        """Looks at the file at most once a second."""
        if time.monotonic() - self._looked_at > LOOK_S:
            self._looked_at = time.monotonic()
            self._file.look()
        return self._file.value

    async def offer(self, person: Person, ask: AskOffer) -> OfferAnswer:
        """The offer of a user at a placement. Raises Refused."""
        rules = self.rules()
        where = rules.at(person.tenant, ask.placement)
        if where is None:
            raise Refused(404, "unknown_placement", f"There is no placement {ask.placement!r} in the file of offers.")
        if isinstance(ask, AskOfferFor) and ask.texts:
            where = _of_texts(where, ask)
            offers = list(where.offers)
            said = await self.texts.about([one.text for one in offers], person.tenant, person.state.history())
        else:
            offers = self._asked_for(where, ask)
            near = self.texts.near([one.items for one in offers], person.tenant, person.state.history())
            said = [one.about + more for one, more in zip(offers, near, strict=True)]
        about = dict(zip((one.id for one in offers), said, strict=True))
        churn = await self.churn_of(person.state, person.now_ms) if rules.reads_churn else 0.0
        values = values_of(person.state, person.now_ms, churn)
        at_ms, out = self.clock.now_ms(), held_out(rules, person.tenant, person.user)
        refused = self._refused(where, offers, person, values, at_ms)
        allowed = [one for one in offers if one.id not in refused]
        groups, made, control = where.groups_of(values), self._policy(person.tenant, ask.placement), where.placement.control
        instead: dict[str, float] = {}
        if where.placement.guardrail is not None and any(one.id == control for one in allowed):  # both sides could see it
            instead = _chances(made, allowed, about, groups) if out else {str(control): 1.0}
        if out:
            refused |= {one.id: "the user is held out" for one in allowed if one.id != control}
            candidates = {one.id: 1.0 for one in allowed if one.id == control}
        else:
            candidates = _chances(made, allowed, about, groups)
        weighed = _Weighed(rules, where, about, made.version, out, groups, candidates, instead, refused, at_ms)
        return self._decided(person, ask, weighed)

    def _decided(self, person: Person, ask: AskOffer, weighed: _Weighed) -> OfferAnswer:
        """Steps 3 and 4: the choice, its id, its log."""
        moment = ask.id or str(weighed.at_ms // (1000 * DECISION_S))
        lot = "\x1f".join((person.tenant, person.user, ask.placement, moment))
        (chosen, propensity), (instead, _) = _taken(weighed.candidates, lot), _taken(weighed.instead, lot)
        taken = next((one for one in weighed.where.offers if one.id == chosen), None)
        hour = weighed.at_ms // HOUR_MS  # an id that comes again much later is another decision
        content = msgspec.json.encode((weighed.candidates, sorted(weighed.refused), weighed.groups,
                                       weighed.about.get(chosen, ()))).decode()  # fmt: skip
        ident = ID_PREFIX + output_id("offer", person.tenant, person.user, ask.placement, moment, str(hour),
                                      weighed.rules.version, weighed.policy_version, content)  # fmt: skip
        state = person.state
        as_of = utc(state.last_ts_ms) if state.last_event_id else None
        if ask.log and person.kept:
            self.decisions.note(Decision(
                recommendation_id=ident, tenant=person.tenant, user_id=person.user, scenario="offer", items=(),
                candidates=len(weighed.candidates), as_of_event_id=state.last_event_id, as_of_ts=as_of,
                served_at=utc(weighed.at_ms), model_version=weighed.policy_version,
                request={"id": ask.id} if ask.id else {}, offer=_offered(weighed, taken, propensity, instead),
            ))  # fmt: skip
        return OfferAnswer(
            recommendation_id=ident, user_id=person.user, placement=ask.placement,
            offer=None if taken is None else _shown(taken), propensity=propensity, candidates=weighed.candidates,
            refused=weighed.refused, holdout=weighed.holdout, rules_version=weighed.rules.version,
            policy_version=weighed.policy_version, as_of_event_id=state.last_event_id, as_of_ts=as_of,
            stale_ms=self.learned.behind_ms(),
        )  # fmt: skip

    def _asked_for(self, where: Compiled, ask: AskOffer) -> list[Offer]:
        known = {one.id for one in where.offers}
        for one in ask.offers:
            if one not in known:
                raise invalid("offers", "unknown", f"There is no offer {one!r} at {ask.placement!r}; there are "
                              f"{', '.join(sorted(known)) or 'none'}.")  # fmt: skip
        return [one for one in where.offers if not ask.offers or one.id in ask.offers]

    def _refused(
        self, where: Compiled, offers: Sequence[Offer], person: Person, values: Mapping[str, Any], at_ms: int
    ) -> dict[str, str]:
        totals = self.learned.totals(person.tenant, where.placement.name)
        standing = Standing(at_ms, totals.offers, self.learned.spent(person.tenant),
                            self.learned.seen(key(person.tenant, person.user)))  # fmt: skip
        inside = segments.members(person.state)
        found = {one.id: refusal(where, one, values, inside, standing) for one in offers}
        return {offer: why for offer, why in found.items() if why is not None}

    def _policy(self, tenant: str, placement: str) -> Policy:
        """By what was learned, made anew at most once in POLICY_S."""
        totals, found = self.learned.totals(tenant, placement), self._policies.get((tenant, placement))
        if found is not None and (found[0] is totals or time.monotonic() - found[1] < POLICY_S):
            return found[2]
        made = policy(totals)
        self._policies[tenant, placement] = (totals, time.monotonic(), made)
        while len(self._policies) > POLICIES_MAX:
            self._policies.popitem(last=False)
        return made


def _of_texts(where: Compiled, ask: AskOfferFor) -> Compiled:
    """The placement with the given texts for its offers. Raises Refused."""
    if ask.offers:
        raise invalid("texts", "oneOf", "Choose from `offers` or from `texts`, not from both.")
    offers = tuple(Offer(id=text_id(one), placements=(ask.placement,), text=one) for one in dict.fromkeys(ask.texts))
    own = msgspec.structs.replace(where.placement, control=offers[0].id, guardrail=None)
    return where._replace(placement=own, offers=offers, conditions={})


def _chances(
    made: Policy, allowed: Sequence[Offer], about: Mapping[str, Sequence[str]], groups: Sequence[str]
) -> dict[str, float]:
    if not allowed:
        return {}
    chances = made.propensities([about[one.id] for one in allowed], [one.value for one in allowed], groups)
    return {one.id: float(chance) for one, chance in zip(allowed, chances, strict=True)}


def _offered(weighed: _Weighed, taken: Offer | None, propensity: float, instead: str) -> Offered:
    own = weighed.where.placement
    other = next((one for one in weighed.where.offers if one.id == instead), None)
    found = Offered(
        placement=own.name, offer_id="", propensity=propensity, candidates=weighed.candidates, refused=weighed.refused,
        holdout=weighed.holdout, rules_version=weighed.rules.version, policy_version=weighed.policy_version,
        reward=own.reward, window_ms=round(own.window_hours * HOUR_MS), groups=weighed.groups, instead=instead,
        instead_cap=None if other is None else other.cap,
    )  # fmt: skip
    if taken is None:
        return found
    return msgspec.structs.replace(found, offer_id=taken.id, about=weighed.about[taken.id], cost=taken.cost,
                                   budget=taken.budget, cap=taken.cap, text=taken.text)


def _shown(taken: Offer) -> Shown:
    return Shown(offer_id=taken.id, text=taken.text, category=taken.category, tags=taken.tags)


def _taken(candidates: Mapping[str, float], decision_id: str) -> tuple[str, float]:
    """What is shown, and its chance; nothing for certain where there is no candidate."""
    if not candidates:
        return "", 1.0
    names = list(candidates)
    at = choose(np.array([candidates[name] for name in names]), decision_id).chosen
    return names[at], candidates[names[at]]
