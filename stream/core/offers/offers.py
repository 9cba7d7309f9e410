"""Which offers may be shown to a user at a placement: the file's meaning, budgets, pacing, caps, hold-out and guardrails.
Pure: times, the user's values and what was counted are passed in.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from schemas.events import Id, Instant, ms
from schemas.offers import MICROS, OfferTotals
from schemas.outputs import OfferBudget, OfferCap, OfferCost
from stream.core.expressions.expression import Expression, ExpressionError, parse
from stream.core.expressions.measures import FUNCTIONS
from stream.core.offers.nearness import CUTS
from stream.core.segments.audience import POPULATIONS
from stream.core.segments.segment_fields import FIELDS
from stream.core.statistics.confidence import Rate, rate
from stream.core.user.state import ADS_REFUSED, DAY_MS

OFFERS_MAX = 200
FEATURES_MAX = 512  # of one placement: its matrix is published whole, 1 MB at most
PACE_AHEAD = 1 / 48  # of the time of a budget: so far may spending be ahead of the even line, half an hour of a day
HOUR_MS = 3_600_000

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9 _.-]{0,63}$")]
Tag = Annotated[str, msgspec.Meta(pattern=r"^[^&=*]{1,64}$")]
Event = Literal["click", "order"]
GROUPS: Mapping[str, str] = {
    "buyer": "orders > 0", "loyal": "orders >= 3", "away": "days_since_seen > 7", "full cart": "cart_items > 0",
}  # fmt: skip
_OF_SEGMENTS = re.compile(rf"\b({'|'.join((*FUNCTIONS, *POPULATIONS, 'trait'))})\s*\(")


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the file: what it does not know is an error."""


class Guardrail(_Part, frozen=True, kw_only=True):
    """Stops an offer whose rate of `metric` an impression is credibly below the control's among held-out users who would
    have been shown it; by impressions whose window is over, at least `impressions_min` on either side."""

    metric: Event = "click"
    impressions_min: Annotated[int, msgspec.Meta(ge=10)] = 200


class Offer(_Part, frozen=True, kw_only=True, rename={"since": "from"}):
    """`items`: what it is about, by which it is near to a user. `when` and `segments`: who may get it (a condition, any of
    the segments). `value`: of one reward, against others'. `from`, `until`: when it is valid. `pacing`: whether budgets are
    spread evenly over their time."""

    id: Name
    placements: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1)]
    text: str = ""
    category: Tag | None = None
    tags: Annotated[tuple[Tag, ...], msgspec.Meta(max_length=8)] = ()
    items: Annotated[tuple[Id, ...], msgspec.Meta(max_length=16)] = ()
    when: str | None = None
    segments: tuple[str, ...] = ()
    value: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 1.0
    since: Instant | None = None
    until: Instant | None = None
    budget: OfferBudget = OfferBudget()
    cost: OfferCost = OfferCost()
    pacing: Literal["even", "none"] = "even"
    cap: OfferCap | None = None

    @property
    def about(self) -> tuple[str, ...]:
        """What it is, whoever it is for, as features: something, itself, its category, its tags."""
        category = () if self.category is None else (f"category={self.category}",)
        return ("*", f"offer={self.id}", *category, *(f"tag={tag}" for tag in dict.fromkeys(self.tags)))


class Placement(_Part, frozen=True, kw_only=True):
    """`control`: the offer that held-out users see; nothing without. `reward`: what is learned from, within `window_hours`
    of the decision. `groups`: conditions on users, by which offers are told apart. `tenant`: whose; everybody's without.
    `purpose`: who refuses advertising sees the control, or nothing, unless it is a `service`."""

    name: Name
    control: Name | None = None
    reward: Event = "click"
    window_hours: Annotated[float, msgspec.Meta(gt=0, le=168)] = 24.0
    groups: Annotated[dict[Name, str], msgspec.Meta(max_length=8)] = msgspec.field(default_factory=lambda: dict(GROUPS))
    guardrail: Guardrail | None = None
    tenant: str | None = None
    purpose: Literal["ads", "service"] = "ads"


class OffersFile(_Part, frozen=True, kw_only=True):
    """`holdout`: the share of users who are kept out of all placements, for comparison."""

    holdout: Annotated[float, msgspec.Meta(ge=0, le=0.9)] = 0.0
    placements: Annotated[tuple[Placement, ...], msgspec.Meta(max_length=50)] = ()
    offers: Annotated[tuple[Offer, ...], msgspec.Meta(max_length=OFFERS_MAX)] = ()


class OffersError(ValueError):
    """The file cannot be used; the message says where and why."""


class Compiled(NamedTuple):
    """A placement that was understood, its offers in the file's order."""

    placement: Placement
    offers: tuple[Offer, ...]
    conditions: Mapping[str, Expression]  # by offer
    groups: tuple[tuple[str, Expression], ...]

    def groups_of(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """The groups that a user with these values is in."""
        return tuple(name for name, condition in self.groups if bool(condition.evaluate(values)))


class OfferRules(NamedTuple):
    """`version` stands for all of the file. `reads_churn`: whether a condition asks for the model's probability."""

    version: str
    holdout: float
    placements: Mapping[str, Compiled]
    reads_churn: bool

    def at(self, tenant: str, placement: str) -> Compiled | None:
        found = self.placements.get(placement)
        return None if found is None or found.placement.tenant not in (None, tenant) else found


NO_OFFERS = OfferRules("", 0.0, {}, False)


def compiled(file: OffersFile) -> OfferRules:
    """Raises OffersError, which names the place in the file.

    >>> compiled(OffersFile(placements=(Placement(name="home"),), offers=(Offer(id="a", placements=("hom",)),)))
    Traceback (most recent call last):
    stream.core.offers.offers.OffersError: offers[0].placements[0]: no placement 'hom'; there are home
    """
    names = [one.name for one in file.placements]
    _unique("placements", "name", names)
    _unique("offers", "id", [one.id for one in file.offers])
    conditions = {}
    for at, one in enumerate(file.offers):
        where = f"offers[{at}]"
        for number, name in enumerate(one.placements):
            if name not in names:
                raise OffersError(f"{where}.placements[{number}]: no placement {name!r}; there are "
                                  f"{', '.join(names) or 'none'}")  # fmt: skip
        if one.since is not None and one.until is not None and one.since >= one.until:
            raise OffersError(f"{where}.until: {one.until:%Y-%m-%d %H:%M} is not after `from`")
        if (one.budget.money, one.budget.money_per_day) != (None, None) and one.cost == OfferCost():
            raise OffersError(f"{where}.cost: a budget of money needs what an impression, a click or an order costs")
        if one.when is not None:
            conditions[one.id] = _condition(f"{where}.when", one.when)
    placements = {one.name: _placement(f"placements[{at}]", one, file, conditions) for at, one in enumerate(file.placements)}
    read = [*conditions.values(), *(group for one in placements.values() for _, group in one.groups)]
    version = hashlib.blake2b(msgspec.json.encode(file), digest_size=6).hexdigest()
    return OfferRules(version, file.holdout, placements, any("churn" in one.names for one in read))


def _placement(where: str, placement: Placement, file: OffersFile, conditions: Mapping[str, Expression]) -> Compiled:
    offers = tuple(one for one in file.offers if placement.name in one.placements)
    if placement.control is not None and placement.control not in {one.id for one in offers}:
        raise OffersError(f"{where}.control: no offer {placement.control!r} at this placement; there are "
                          f"{', '.join(one.id for one in offers) or 'none'}")  # fmt: skip
    if placement.guardrail is not None and (placement.control is None or not file.holdout):
        raise OffersError(f"{where}.guardrail: it compares with the control's rate among users who are held out: give a "
                          "`control`, and a `holdout` above 0")  # fmt: skip
    if placement.guardrail is not None and any(one.id == placement.control and one.cap is not None for one in offers):
        raise OffersError(f"{where}.guardrail: it compares with the control, {placement.control!r}, which may have no cap: "
                          "who is held out would use it up, and others would not")  # fmt: skip
    groups = tuple((name, _condition(f"{where}.groups.{name}", text)) for name, text in placement.groups.items())
    near = CUTS if any(one.items for one in offers) else ()
    features = (len({name for one in offers for name in one.about}) + len(near)) * (1 + len(groups))
    if features > FEATURES_MAX:
        raise OffersError(f"{where}: {features} features, one for each offer, category, tag and step of nearness with each "
                          f"group; at most {FEATURES_MAX}. Leave groups or tags out")  # fmt: skip
    return Compiled(placement, offers, {one.id: conditions[one.id] for one in offers if one.id in conditions}, groups)


def _unique(where: str, what: str, names: Sequence[str]) -> None:
    for at, name in enumerate(names):
        if name in names[:at]:
            raise OffersError(f"{where}[{at}].{what}: there is one named {name!r} before")


def _condition(where: str, text: str) -> Expression:
    try:
        return parse(text, FIELDS, "flag")
    except ExpressionError as error:
        found = _OF_SEGMENTS.search(text)
        instead = found and (f". {found[1]}(…) is for rules of segments: word it there, and name the segment in `segments` "
                             "of an offer")  # fmt: skip
        raise OffersError(f"{where}: {error}{instead or ''}") from error


def held_out(rules: OfferRules, tenant: str, user: str) -> bool:
    """A hash of the user: the same everywhere and at any time; a larger share keeps who was held out before.

    >>> held_out(NO_OFFERS, "shop", "u1")
    False
    """
    digest = hashlib.blake2b(f"offers\x1fholdout\x1f{tenant}\x1f{user}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < rules.holdout


class Standing(NamedTuple):
    """What is known when an offer is asked for. `totals`: by offer at this placement; `spent`: by offer at all placements;
    `seen`: when the user saw each offer, in ms."""

    now_ms: int
    totals: Mapping[str, OfferTotals]
    spent: Mapping[str, OfferTotals]
    seen: Mapping[str, Sequence[int]]


def refusal(
    where: Compiled, offer: Offer, values: Mapping[str, Any], segments: Sequence[str], standing: Standing
) -> str | None:
    """Why an offer may not be shown to this user now; None when it may."""
    condition, now_ms, placement = where.conditions.get(offer.id), standing.now_ms, where.placement
    if values["ads_refused"] and placement.purpose == "ads" and offer.id != placement.control:
        return ADS_REFUSED
    if offer.since is not None and now_ms < ms(offer.since):
        return f"not before {_moment(offer.since)}"
    if offer.until is not None and now_ms >= ms(offer.until):
        return f"over since {_moment(offer.until)}"
    if condition is not None and not bool(condition.evaluate(values)):
        return f"not {condition.text}"
    if offer.segments and not set(offer.segments) & set(segments):
        return f"in none of {', '.join(offer.segments)}"
    return (budget_spent(offer, standing.spent.get(offer.id, OfferTotals()), now_ms)
            or _capped(offer, standing.seen.get(offer.id, ()), now_ms)
            or guardrail(placement, offer.id, standing.totals))  # fmt: skip


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M %Z}"


def _capped(offer: Offer, seen: Sequence[int], now_ms: int) -> str | None:
    if offer.cap is None:
        return None
    lately = sum(1 for at in seen if at > now_ms - offer.cap.hours * HOUR_MS)
    return f"seen {lately} times within {offer.cap.hours:g} hours" if lately >= offer.cap.count else None


def budget_spent(offer: Offer, spent: OfferTotals, now_ms: int) -> str | None:
    """Which of an offer's budgets lets nothing more through now; None when none does.

    Evenly: of a budget for a time, no more than the part of it that has passed, and PACE_AHEAD of it. The time is the day,
    or, of a budget in all, that between `from` and `until` where both are given.
    """
    budget, day = offer.budget, now_ms // DAY_MS
    of_day = spent.days.get(day, (0, 0))
    passed = (now_ms % DAY_MS) / DAY_MS
    whole = None
    if offer.since is not None and offer.until is not None:
        whole = (now_ms - ms(offer.since)) / (ms(offer.until) - ms(offer.since))
    for name, limit, used, part in (
        ("impressions", budget.impressions, spent.impressions, whole),
        ("money", _micros(budget.money), spent.spent_micros, whole),
        ("impressions of the day", budget.impressions_per_day, of_day[0], passed),
        ("money of the day", _micros(budget.money_per_day), of_day[1], passed),
    ):  # fmt: skip
        if limit is None:
            continue
        if used >= limit:
            return f"{name} spent"
        if offer.pacing == "even" and part is not None and used >= allowed(limit, part):
            return f"{name} paced"
    return None


def allowed(limit: float, passed: float) -> float:
    """How much of a budget may be spent when this part of its time has passed.

    >>> allowed(480, 0.0), round(allowed(480, 0.5)), allowed(480, 1.0)
    (10.0, 250, 480)
    """
    return min(limit, limit * (passed + PACE_AHEAD))


def _micros(money: float | None) -> int | None:
    return None if money is None else round(money * MICROS)


def rates(metric: Event, totals: OfferTotals) -> tuple[Rate, Rate]:
    """Clicks or orders an impression whose window is over, where the control could have been shown: of the offer, and of the
    control among held-out users who would have been shown it. Whom it suits, and how new it is, is thus no difference
    (Johnson, Lewis & Nubbemeyer, "Ghost Ads: Improving the Economics of Measuring Online Ad Effectiveness", Journal of
    Marketing Research 54, 2017)."""
    if metric == "click":
        return rate(totals.over_clicks, totals.over_impressions), rate(totals.control_clicks, totals.control_impressions)
    return rate(totals.over_orders, totals.over_impressions), rate(totals.control_orders, totals.control_impressions)


def guardrail(placement: Placement, offer_id: str, totals: Mapping[str, OfferTotals]) -> str | None:
    """Why the offer is stopped; None while it is not. It is by the counts alone: it holds as long as they say so."""
    rail = placement.guardrail
    if rail is None or offer_id == placement.control or offer_id not in totals:
        return None
    own, other = rates(rail.metric, totals[offer_id])
    if min(own.n, other.n) < rail.impressions_min or own.high >= other.low:
        return None
    return f"stopped: {rail.metric}s {own} are below the control's {other}"
