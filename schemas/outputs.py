"""What the personalize worker says: recommendations and churn alerts, as JSON with CloudEvents headers."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec

from schemas.events import Instant
from schemas.opinions import SatisfactionAlert

NEVER = datetime.fromtimestamp(0, UTC)


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """A past event's share in a score; shares of one item sum to at most 1."""

    event_id: str
    item_id: str
    share: float


class RecommendedItem(msgspec.Struct, frozen=True, kw_only=True):
    item_id: str
    score: float  # the chance that this item comes next, as the blend sees it
    source: str  # the part of the blend that contributed most: model, personal, links, rules, popularity, pinned
    reasons: tuple[Reason, ...] = ()


class Recommendation(msgspec.Struct, frozen=True, kw_only=True):
    """`degraded` is null, or names the shortcut that was taken: explanations (left out), counts_only (no model
    yet), no_history (nothing known of the user), no_items (nothing known to recommend)."""

    recommendation_id: str
    tenant: str
    user_id: str
    items: tuple[RecommendedItem, ...]
    as_of_event_id: str
    as_of_ts: Instant
    model_version: str
    degraded: str | None = None


class Complements(msgspec.Struct, frozen=True, kw_only=True):
    """What goes with a user's basket, on `clickwake.complements.v1`, once `as_of_event_id` has put something into it.
    `basket`: its items at `as_of_ts`, when this was said, oldest first. Reasons name items of it, no events."""

    recommendation_id: str
    tenant: str
    user_id: str
    basket: tuple[str, ...]
    items: tuple[RecommendedItem, ...]
    as_of_event_id: str
    as_of_ts: Instant
    model_version: str


class OfferCost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an offer costs the shop each time, in money of any currency."""

    impression: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0
    click: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0
    order: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0


class OfferCap(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """So many impressions of one offer a user within so many hours."""

    count: Annotated[int, msgspec.Meta(ge=1, le=100)]
    hours: Annotated[float, msgspec.Meta(gt=0, le=720)]


class OfferBudget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Impressions, or money by the offer's costs; in all, or a day (UTC)."""

    impressions: Annotated[int, msgspec.Meta(ge=0, le=2**53)] | None = None
    impressions_per_day: Annotated[int, msgspec.Meta(ge=0, le=2**53)] | None = None
    money: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None = None
    money_per_day: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None = None


class Offered(msgspec.Struct, frozen=True, kw_only=True):
    """What a decision about an offer was made of, so that its log alone tells what was learned from it. `candidates`: offers
    that might have been shown, and the chance of each; `refused`: the others, and why not. `offer_id` is empty, and nothing
    is learned, where nothing was shown. `about` and `groups`: what the chosen offer is, and which groups the user is in;
    `text`: its words, as they were shown (missing before 0.7.0). `instead`: what a guardrail compares with, where the
    control could have been shown: of a user who is held out what would have been, of others the control; `instead_cap`: its
    cap (both missing before 0.10.0)."""

    placement: str
    offer_id: str
    propensity: float  # the chance of what was chosen, `offer_id` empty included
    candidates: dict[str, float]
    refused: dict[str, str]
    holdout: bool  # of a user who is kept out for comparison: sees the control, or nothing
    rules_version: str
    policy_version: str
    reward: Literal["click", "order"]
    window_ms: int  # what the user does counts for so long
    about: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    cost: OfferCost = OfferCost()
    budget: OfferBudget = OfferBudget()
    cap: OfferCap | None = None
    text: str = ""
    instead: str = ""
    instead_cap: OfferCap | None = None


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """What a decision was made by: the request's words, where it says nothing the experiment's arm's, else the defaults.
    `category_cap` null: none, as where given items were ranked. `explore`: the arm's share of places. `diversity`: how much
    items were chosen to differ, from 0 to 1; before 0.6.0 they never were."""

    n: int
    exclude: Literal["none", "bought", "seen"]
    category_cap: int | None = None
    filter: str | None = None
    boost: str | None = None
    explore: float = 0.0
    diversity: float = 0.0


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """An answer of the read API as it was served, on `clickwake.decisions.v1`, once an answer. `candidates`: items that the
    rules and the request's filter let through; `request`: what was asked beyond the user, as it was asked; `applied`: what
    it was answered by. `propensities`: for each item the chance, over users, that its place holds it; below 1 where
    exploration drew. Both are missing before 0.5.0. `offer`: of a decision about a promotion, whose scenario is `offer`, and
    which has no items. The scenario `rank` is of given items: all that are known, the first ones with reasons."""

    recommendation_id: str
    tenant: str
    user_id: str
    scenario: str
    items: tuple[RecommendedItem, ...]
    candidates: int
    as_of_event_id: str
    as_of_ts: Instant | None
    served_at: Instant
    model_version: str
    request: dict[str, str] = {}
    degraded: str | None = None
    experiment: str = ""  # that the user is in, and the arm; empty for none
    arm: str = ""
    offer: Offered | None = None
    applied: Applied | None = None
    propensities: tuple[float, ...] = ()


class ChurnAlert(msgspec.Struct, frozen=True, kw_only=True):
    """`probability` is P(no return within `horizon_days`) at `as_of_ts`; `interval` a 90% interval of it. When raised:
    `features` are what was known of the user (`stream.core.user.featurize.ALERT_FEATURES`), kept so that whom a message
    persuades is learned from the very values it is decided by; `effects`: delivery → P(back within 7 days) if it is sent,
    and if not, for those deliveries of which the model knows."""

    alert_id: str
    tenant: str
    user_id: str
    state: Literal["raised", "cleared"]
    probability: float
    horizon_days: int
    interval: tuple[float, float]
    reasons: tuple[str, ...]
    last_event_ts: Instant
    as_of_ts: Instant
    model_version: str
    features: tuple[float, ...] = ()
    effects: dict[str, tuple[float, float]] = {}


class Reminder(msgspec.Struct, frozen=True, kw_only=True):
    """A purchase is due again, on `clickwake.reminders.v1`: `due`, and later what came of it under the same id, `bought`
    within the window or `lapsed` at its end. Of an item, or where `item_id` is empty of a category. `probability`: P(bought
    from `window_from` to `window_to`) as it was said; `as_of_ts`: when it was due, bought, or over."""

    reminder_id: str
    tenant: str
    user_id: str
    state: Literal["due", "bought", "lapsed"]
    item_id: str
    category: str
    last_bought_ts: Instant
    interval_days: float
    window_from: Instant
    window_to: Instant
    probability: float
    reasons: tuple[str, ...]
    as_of_ts: Instant
    model_version: str


class SegmentChange(msgspec.Struct, frozen=True, kw_only=True):
    """A user entered or left a segment, on `clickwake.segment-changes.v1`. `number` counts the changes of this user and
    segment, and the id stands for it, so that a replay says the same; `values` are the fields that the rule reads.
    `profile_since`: when the profile began that these changes are of, and that numbers are counted in (missing before
    0.9.0). `forgotten`: they left because consent to a profile was withdrawn, or they were erased, by no rule."""

    change_id: str
    tenant: str
    user_id: str
    segment: str
    change: Literal["entered", "left"]
    number: int
    values: dict[str, float]
    as_of_event_id: str
    as_of_ts: Instant
    rules_version: str
    model_version: str
    profile_since: Instant | None = None
    forgotten: bool = False

    @property
    def turn(self) -> tuple[datetime, int]:
        """Orders the changes of one user and segment."""
        return self.profile_since or NEVER, self.number


class AdsRefusal(msgspec.Struct, frozen=True, kw_only=True):
    """A user refuses advertising since `stated_at`, on `clickwake.ads-refusals.v1`; a tombstone once they allow it or are
    erased. `assumed`: they said nothing, it is the tenant's default."""

    tenant: str
    user_id: str
    stated_at: Instant
    assumed: bool = False


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """What a message is foreseen to bring: `gain` = `uplift` × `value` − `cost`. `value`: of this user's return; `uplift`:
    P(back within 7 days) if it is sent minus if not. Without a model that knows of the delivery, both are null."""

    value: float
    cost: float
    uplift: float | None = None
    gain: float | None = None
    model_version: str = ""


class DeliveryRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a message, on `clickwake.deliveries.v1`; the last record of a `delivery_id` counts. The alert, change
    or reminder itself is kept while it still waits (deferred until `until`). `about_id`: its id. `decided_at`: when it was
    decided by lot whether it goes out, with the chance `propensity`; `reason`: why, in words. `thing`: the item or brand,
    `item/sku-1`, that a message to the shop's own people is about; then `user_id` is empty."""

    delivery_id: str
    tenant: str
    user_id: str
    delivery: str
    channel: str
    about_kind: Literal["churn-alert", "segment-change", "reminder", "satisfaction-alert"]
    about_id: str
    status: Literal["sent", "held_out", "left_out", "capped", "suppressed", "expired", "deferred", "failed"]
    at: Instant
    attempts: int = 0
    until: Instant | None = None
    error: str = ""
    alert: ChurnAlert | None = None
    segment_change: SegmentChange | None = None
    decided_at: Instant | None = None
    propensity: float | None = None
    expected: Expected | None = None
    reason: str = ""
    reminder: Reminder | None = None
    thing: str = ""
    satisfaction_alert: SatisfactionAlert | None = None

    @property
    def subject(self) -> str:
        """Whom or what it is about."""
        return f"{self.tenant}/{self.user_id or self.thing}"


def output_id(kind: str, *parts: str) -> str:
    """An id derived from what it stands for, so that a replay emits the same one.

    >>> output_id("recommendation", "shop", "m-1", "v1") == output_id("recommendation", "shop", "m-1", "v1")
    True
    >>> len(output_id("alert", "shop", "u1"))
    32
    """
    return hashlib.blake2b("\x1f".join((kind, *parts)).encode(), digest_size=16).hexdigest()
