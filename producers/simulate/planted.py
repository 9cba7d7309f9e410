"""What is planted in the simulated shop, as it is written to the truth file. Times are milliseconds since 1970."""

from __future__ import annotations

from typing import Literal

import msgspec

Cohort = Literal["regular", "abrupt", "gradual", "holiday", "one_time"]
Identity = Literal["known", "later", "never", "shared"]
Buyer = Literal["newer", "regular"]  # by how many orders there were before
Mischief = Literal["duplicate", "out_of_order", "malformed", "future", "epoch"]

LEAVERS: tuple[Cohort, ...] = ("abrupt", "gradual", "one_time")


class TastePeriod(msgspec.Struct, frozen=True, kw_only=True):
    """What a shopper likes from `from_ms` until the next period; weights in [0, 1], one that is not named is 0."""

    from_ms: int
    departments: dict[str, float]
    styles: dict[str, float]
    brands: dict[str, float]


class Cycle(msgspec.Struct, frozen=True, kw_only=True):
    """A consumable that is bought again on the first visit after `period_days` (within ±10%) have passed."""

    item_id: str
    period_days: float


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    from_ms: int
    to_ms: int


class ShopperTruth(msgspec.Struct, frozen=True, kw_only=True, tag="shopper", tag_field="kind"):
    """One person. `user_id` is None when they never identify; the first anonymous id is the main device's.

    `left_at_ms`: from then on there is no visit, ever; None for those who stay. `fades_from_ms`: when a gradual leaver's
    visits begin to become rarer. `identify_at_ms`: visits before it are anonymous.
    """

    number: int
    cohort: Cohort
    identity: Identity
    user_id: str | None
    anonymous_ids: tuple[str, ...]
    shared_with: int | None  # number of the shopper who uses the same device
    identify_at_ms: int | None
    joined_at_ms: int
    left_at_ms: int | None
    fades_from_ms: int | None
    holidays: tuple[Interval, ...]
    sessions_per_day: float
    price_sensitivity: float  # 0 none, 1 strong
    noise_share: float  # of views that have nothing to do with taste
    recommendation_attention: float  # chance to look at the recommendations at each step
    promotion_attention: float
    cycles: tuple[Cycle, ...]
    tastes: tuple[TastePeriod, ...]


class ItemTruth(msgspec.Struct, frozen=True, kw_only=True, tag="item", tag_field="kind"):
    item_id: str
    department: str
    style: str
    brand: str
    popularity: float


class Promotion(msgspec.Struct, frozen=True, kw_only=True, tag="promotion", tag_field="kind"):
    promotion_id: str
    department: str
    coupon: str
    discount: float
    from_ms: int
    to_ms: int


class BrandFall(msgspec.Struct, frozen=True, kw_only=True, tag="brand_fall", tag_field="kind"):
    """What the brand sells goes bad: from then on a review of it is good with this chance, whoever writes it."""

    brand: str
    from_ms: int
    p_good: float


class Strategy(msgspec.Struct, frozen=True, kw_only=True, tag="strategy", tag_field="kind"):
    """An offer under which orders are made: the chance with which a buyer gets it, which is logged, and what it adds to the
    chance that a review of what was ordered is good."""

    placement: str
    offer_id: str
    chance: dict[Buyer, float]
    p_good_added: dict[Buyer, float]


class MessRecord(msgspec.Struct, frozen=True, kw_only=True, tag="mess", tag_field="kind"):
    """`position` is the record's number in the output, from 0; `message_id` the event it was made of."""

    what: Mischief
    position: int
    message_id: str


Line = ShopperTruth | ItemTruth | Promotion | BrandFall | Strategy | MessRecord


class Shop(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of the world; the same ones plant the same truth."""

    seed: int
    shoppers: int
    days: int
    items: int
    tenant: str
    from_ms: int
    to_ms: int


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """`truth.json`."""

    shop: Shop
    cohorts: dict[str, int]
    identities: dict[str, int]
    departments: dict[str, int]
    styles: dict[str, int]
    taste_changes: int
    left: int
    mess: dict[str, int]
    definitions: dict[str, str]
