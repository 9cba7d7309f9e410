"""What the read API answers with: the words of each answer, and what they promise."""

from __future__ import annotations

from typing import Any

import msgspec

from schemas.catalog import Item
from schemas.events import Instant
from schemas.outputs import RecommendedItem
from stream.api.choosing import DueCategory
from stream.api.offers import OfferAnswer
from stream.core.ranking.index import ItemIndex
from stream.core.ranking.why import Why

STALE, AS_OF = "Clickwake-Stale-Ms", "Clickwake-As-Of"  # headers: a 304 has no body that could say it


class Recommended(RecommendedItem, frozen=True, kw_only=True):
    """`item`: what was asked of the catalog about it."""

    item: dict[str, Any] | None = None


class Items(msgspec.Struct, frozen=True, kw_only=True):
    """Items, best first. As in every answer, `as_of_event_id` and `as_of_ts` are the last event of the user that it knows of
    (empty and null for nobody), `model_version` the release it was made with, and `stale_ms` how old at most what the API
    knows is, beside what the workers have written."""

    user_id: str
    scenario: str
    items: tuple[Recommended, ...]
    as_of_event_id: str
    as_of_ts: Instant | None
    model_version: str
    degraded: str | None
    stale_ms: int


class Answer(Items, frozen=True, kw_only=True):
    """`recommendation_id` stands for the content: send it back in `properties.recommendation_id` of what is done with it.
    `categories`: of the scenario `due_categories`, those that are due, the likeliest first."""

    recommendation_id: str
    categories: tuple[DueCategory, ...] = ()
    experiment: str = ""
    arm: str = ""


class Ranked(msgspec.Struct, frozen=True, kw_only=True):
    """Given items, best first, with an id as of recommendations. `unknown` are in no catalog and no event."""

    recommendation_id: str
    user_id: str
    items: tuple[RecommendedItem, ...]
    unknown: tuple[str, ...]
    as_of_event_id: str
    as_of_ts: Instant | None
    model_version: str
    degraded: str | None
    stale_ms: int


class Explained(Why, frozen=True, kw_only=True):
    """Of which user, by which request's scenario and experiment, and how fresh. `item`: what was asked of the catalog."""

    user_id: str
    scenario: str
    experiment: str
    arm: str
    item: dict[str, Any] | None
    as_of_event_id: str
    as_of_ts: Instant | None
    model_version: str
    degraded: str | None
    stale_ms: int


class OfferServed(OfferAnswer, frozen=True, kw_only=True):
    """`model_version`: the release by which conditions about churn are judged."""

    model_version: str


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """One thing the user did to an item."""

    at: Instant
    event_id: str
    item_id: str
    did: str
    value: float


class Happened(msgspec.Struct, frozen=True, kw_only=True):
    """Another event of the user's: a search, a page, one of the shop's own. `text`: what was searched, or where."""

    at: Instant
    event: str
    text: str


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
    """What is known of a user, what they did as a guest included. Of `active_days` 64 stands for 64 or more. `churn` is null
    without a model, `ads` where nothing was ever said of advertising, both times where no event is known: of who refuses a
    profile, `ads` alone is."""

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
    as_of_event_id: str
    as_of_ts: Instant | None
    history: tuple[Done, ...]
    activity: tuple[Happened, ...]
    churn: ChurnNow | None
    model_version: str
    stale_ms: int
    ads: Advertising | None


def with_fields(
    items: tuple[RecommendedItem, ...], index: ItemIndex, fields: tuple[str, ...]
) -> tuple[Recommended, ...]:  # fmt: skip
    """Items as they are answered, with what was asked of the catalog about each."""
    return tuple(
        Recommended(item_id=one.item_id, score=one.score, source=one.source, reasons=one.reasons,
                    item=fields_of(one.item_id, index, fields))
        for one in items
    )  # fmt: skip


def fields_of(item_id: str, index: ItemIndex, fields: tuple[str, ...]) -> dict[str, Any] | None:
    """What was asked of the catalog about an item; null where nothing was."""
    item: Item | None = index.items[index.row_of[item_id]]
    return {name: getattr(item, name, None) for name in fields} if fields else None
