"""Plants the shoppers: tastes and their changes, rhythm, cohorts, identities, repurchase cycles, and when each visit starts.

Every shopper has draws of their own (seed, number), so one shopper does not depend on how many others there are.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from producers.simulate import vocabulary as words
from producers.simulate.catalog import BRANDS_PER_DEPARTMENT, Catalog
from producers.simulate.planted import (
    BrandFall,
    Cohort,
    Cycle,
    Identity,
    Interval,
    Promotion,
    Shop,
    ShopperTruth,
    TastePeriod,
)
from producers.simulate.truth import Truth

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
SESSION_GAP_MS = HOUR_MS  # two visits of one shopper never overlap: a visit lasts at most 30 min

COHORTS: tuple[tuple[Cohort, float], ...] = (
    ("regular", 0.52), ("abrupt", 0.13), ("gradual", 0.12), ("holiday", 0.12), ("one_time", 0.11))
IDENTITIES: tuple[tuple[Identity, float], ...] = (("known", 0.54), ("later", 0.28), ("never", 0.12), ("shared", 0.06))

RATE_MEDIAN, RATE_SIGMA = 0.38, 0.6  # sessions a day
RATE_MIN, RATE_MAX = 0.08, 2.0
STARTED_SHARE = 0.7  # of shoppers are there when the world begins; the others join over its first two thirds
TASTE_CHANGE_DAYS = 90.0  # mean time between two changes of taste
TASTE_CHANGES_MAX = 3
FADE_DAYS = (14.0, 35.0)  # a gradual leaver's visits become rarer over this time
CYCLE_DAYS = (14.0, 45.0)
HOLIDAY_DAYS = (10.0, 28.0)
STAY_DAYS_MIN = 14.0  # leavers are customers for at least so long, where the world is long enough
BRAND_FALL_AFTER = 0.6  # of the days; the share of good reviews is about 0.75 before it
BRAND_FALL_P_GOOD = 0.15
BRAND_FALL_ASKED = 200  # shoppers whose taste says which brand is bought most
PROMOTION_EVERY_DAYS, PROMOTION_DAYS = 9, (3, 6)

# Share of a day's visits by hour (UTC): lunch break and evening.
HOURS = np.array([.5, .3, .2, .1, .1, .3, 1, 2, 3, 3.5, 4, 4.5, 5.5, 5, 4, 3.8, 4, 4.8, 6, 7.5, 8.5, 8, 5, 2])


class Planted(NamedTuple):
    """`starts_ms[i]` are the starts of shopper i's visits, ascending."""

    shoppers: list[ShopperTruth]
    starts_ms: list[npt.NDArray[np.int64]]


class Life(NamedTuple):
    """When a shopper is there."""

    joined_ms: int
    left_ms: int | None
    fades_ms: int | None
    holidays: tuple[Interval, ...]


def _weights(names: list[str], liked: list[int], strengths: list[float], rng: np.random.Generator,
             rest: float) -> dict[str, float]:
    """Weights by name: the liked ones strong, the others between 0 and `rest`."""
    values = rng.uniform(0.0, rest, size=len(names))
    for index, strength in zip(liked, strengths, strict=True):
        values[index] = strength + rng.uniform(-0.05, 0.05)
    return {name: round(float(value), 3) for name, value in zip(names, values, strict=True)}


DEPARTMENT_NAMES = [department.name for department in words.DEPARTMENTS]
DEPARTMENT_SIZES = np.array([department.size for department in words.DEPARTMENTS])
STYLE_NAMES = [style.name for style in words.STYLES]


def _choose(rng: np.random.Generator, p: npt.NDArray[np.float64], count: int) -> list[int]:
    return [int(i) for i in rng.choice(len(p), size=count, replace=False, p=p / p.sum())]


def _taste(from_ms: int, departments: list[int], styles: list[int], catalog: Catalog,
           rng: np.random.Generator) -> TastePeriod:
    own = [b for d in departments for b in range(d * BRANDS_PER_DEPARTMENT, (d + 1) * BRANDS_PER_DEPARTMENT)]
    brands = rng.choice(own, size=3, replace=False)
    return TastePeriod(
        from_ms=from_ms,
        departments=_weights(DEPARTMENT_NAMES, departments, [1.0, 0.9, 0.8][: len(departments)], rng, 0.1),
        styles=_weights(STYLE_NAMES, styles, [1.0, 0.8], rng, 0.1),
        brands={catalog.brands[int(b)]: round(float(rng.uniform(0.5, 1.0)), 3) for b in brands},
    )


def _tastes(life: Life, end_ms: int, catalog: Catalog, rng: np.random.Generator) -> tuple[TastePeriod, ...]:
    """Two or three departments and two styles; at each change the strongest department or style gives way to a new one."""
    departments = _choose(rng, DEPARTMENT_SIZES, int(rng.integers(2, 4)))
    styles = _choose(rng, np.ones(len(STYLE_NAMES)), 2)
    tastes = [_taste(life.joined_ms, departments, styles, catalog, rng)]
    stay_ms = (life.left_ms or end_ms) - life.joined_ms
    changes = min(int(rng.poisson(stay_ms / DAY_MS / TASTE_CHANGE_DAYS)), TASTE_CHANGES_MAX)
    for fraction in sorted(rng.uniform(0.15, 0.85, size=changes)):
        if rng.random() < 0.65:
            other = DEPARTMENT_SIZES.copy()
            other[departments] = 0
            departments = [_choose(rng, other, 1)[0], *departments[1:]]
        else:
            fresh = np.ones(len(STYLE_NAMES))
            fresh[styles] = 0
            styles = [_choose(rng, fresh, 1)[0], *styles[1:]]
        tastes.append(_taste(life.joined_ms + int(fraction * stay_ms), departments, styles, catalog, rng))
    return tuple(tastes)


def _life(cohort: Cohort, shop: Shop, rng: np.random.Generator) -> Life:
    span = shop.to_ms - shop.from_ms
    joined = shop.from_ms if rng.random() < STARTED_SHARE else shop.from_ms + int(rng.uniform(0.0, 0.66) * span)
    rest = shop.to_ms - joined
    if cohort == "one_time":
        at = joined + int(rng.uniform(0.0, 0.95) * rest)
        return Life(at, at + 2 * HOUR_MS, None, ())
    if cohort in ("abrupt", "gradual"):
        stay = min(STAY_DAYS_MIN * DAY_MS, 0.4 * rest)
        left = joined + int(rng.uniform(stay, 0.98 * rest))
        if cohort == "abrupt":
            return Life(joined, left, None, ())
        return Life(joined, left, max(joined, left - int(rng.uniform(*FADE_DAYS) * DAY_MS)), ())
    if cohort == "holiday":
        away = int(min(rng.uniform(*HOLIDAY_DAYS) * DAY_MS, 0.4 * rest))
        begin = joined + int(rng.uniform(0.15, 0.95 - away / rest) * rest)
        return Life(joined, None, None, (Interval(from_ms=begin, to_ms=begin + away),))
    return Life(joined, None, None, ())


def _starts(life: Life, cohort: Cohort, rate: float, shop: Shop, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Visit starts: a Poisson process with a daily and weekly rhythm, thinned by fading and holidays."""
    if cohort == "one_time":
        return np.array([life.joined_ms], dtype=np.int64)
    end = (life.left_ms or shop.to_ms) - HOUR_MS  # the last visit ends before they are gone
    days = np.arange(life.joined_ms // DAY_MS, max(end, life.joined_ms) // DAY_MS + 1)  # (D,)
    weekend = rng.uniform(0.6, 1.8)
    per_day = np.where((days + 3) % 7 >= 5, rate * weekend, rate)  # day 0 was a Thursday
    hours = HOURS ** rng.uniform(0.7, 1.5)
    hour_of = np.roll(hours, int(rng.integers(-2, 3))) / hours.sum()
    counts = rng.poisson(per_day)  # (D,)
    visits = np.repeat(days, counts)  # (V,)
    hour = rng.choice(24, size=len(visits), p=hour_of)
    starts = visits * DAY_MS + hour * HOUR_MS + rng.integers(0, HOUR_MS, size=len(visits))
    keep = (starts >= life.joined_ms) & (starts < end)
    if life.fades_ms is not None and life.left_ms is not None:
        faded = np.clip((starts - life.fades_ms) / (life.left_ms - life.fades_ms), 0.0, 1.0)
        keep &= rng.random(len(starts)) >= 0.9 * faded
    for holiday in life.holidays:
        keep &= (starts < holiday.from_ms - HOUR_MS) | (starts >= holiday.to_ms)
    starts = np.sort(starts[keep])
    first = life.joined_ms + int(rng.uniform(0.0, min(2.0 / rate, 3.0)) * DAY_MS)
    if first < end and not any(h.from_ms - HOUR_MS <= first < h.to_ms for h in life.holidays):
        starts = np.concatenate([[first], starts[starts > first + SESSION_GAP_MS]])
    if len(starts) > 1:
        starts = starts[np.concatenate([[True], np.diff(starts) > SESSION_GAP_MS])]
    return starts.astype(np.int64) if len(starts) else np.array([life.joined_ms], dtype=np.int64)


def _cycles(cohort: Cohort, taste: TastePeriod, catalog: Catalog, rng: np.random.Generator) -> tuple[Cycle, ...]:
    """Up to two consumables bought again and again, preferably of a style the shopper likes."""
    if cohort == "one_time" or rng.random() < 0.4:
        return ()
    weights = np.array([
        product.popularity * (0.05 + taste.styles[STYLE_NAMES[product.style]])
        if words.DEPARTMENTS[product.department].consumable else 0.0 for product in catalog.products])
    count = min(int(rng.integers(1, 3)), int((weights > 0).sum()))
    chosen = _choose(rng, weights, count) if count else []
    return tuple(
        Cycle(item_id=catalog.products[i].item.item_id, period_days=round(float(rng.uniform(*CYCLE_DAYS)), 1))
        for i in chosen)


def _shopper(number: int, shop: Shop, catalog: Catalog) -> tuple[ShopperTruth, npt.NDArray[np.int64]]:
    rng = np.random.default_rng([shop.seed, 0x5409, number])
    cohort = COHORTS[int(rng.choice(len(COHORTS), p=[p for _, p in COHORTS]))][0]
    identity = IDENTITIES[int(rng.choice(len(IDENTITIES), p=[p for _, p in IDENTITIES]))][0]
    rate = float(np.clip(RATE_MEDIAN * np.exp(rng.normal(0.0, RATE_SIGMA)), RATE_MIN, RATE_MAX))
    life = _life(cohort, shop, rng)
    tastes = _tastes(life, shop.to_ms, catalog, rng)
    starts = _starts(life, cohort, rate, shop, rng)
    devices = 1 if identity in ("never", "shared") or cohort == "one_time" else int(rng.integers(1, 3))
    identify_at = None
    if identity == "later" and len(starts) > 1:
        identify_at = int(starts[min(int(rng.integers(1, 9)), len(starts) - 1)])
    elif identity == "later":
        identity, devices = "never", 1  # one visit only: there is no later
    anonymous = tuple(f"a{shop.seed}-{number:05d}-{device}" for device in range(devices))
    return ShopperTruth(
        number=number, cohort=cohort, identity=identity, user_id=None if identity == "never" else f"u{number:05d}",
        anonymous_ids=anonymous, shared_with=None, identify_at_ms=identify_at, joined_at_ms=int(starts[0]),
        left_at_ms=life.left_ms,
        fades_from_ms=None if life.fades_ms is None else max(life.fades_ms, int(starts[0])),
        holidays=life.holidays, sessions_per_day=round(rate, 3),
        price_sensitivity=round(float(rng.beta(2, 3)), 3), noise_share=round(float(rng.uniform(0.15, 0.25)), 3),
        recommendation_attention=round(float(rng.uniform(0.1, 0.5)), 3),
        promotion_attention=round(float(rng.uniform(0.1, 0.6)), 3),
        cycles=_cycles(cohort, tastes[0], catalog, rng), tastes=tastes,
    ), starts


def plant(shop: Shop, catalog: Catalog) -> Planted:
    """All shoppers of the world. Sharers are paired in order; one who is left over shares with nobody and is `known`."""
    drawn = [_shopper(number, shop, catalog) for number in range(shop.shoppers)]
    shoppers = [shopper for shopper, _ in drawn]
    sharers = [shopper for shopper in shoppers if shopper.identity == "shared"]
    for first, second in itertools.zip_longest(sharers[::2], sharers[1::2]):
        if second is None:
            shoppers[first.number] = replace(first, identity="known")
            continue
        shoppers[first.number] = replace(first, shared_with=second.number)
        shoppers[second.number] = replace(second, shared_with=first.number, anonymous_ids=first.anonymous_ids)
    return Planted(shoppers, [starts for _, starts in drawn])


def promotions(shop: Shop) -> list[Promotion]:
    """One campaign every nine days, on one department, for three to six days."""
    rng = np.random.default_rng([shop.seed, 0x940])
    result = []
    for number, begin in enumerate(range(shop.from_ms, shop.to_ms, PROMOTION_EVERY_DAYS * DAY_MS)):
        discount = int(rng.choice([10, 15, 20, 30]))
        result.append(Promotion(
            promotion_id=f"promo-{number + 1}", department=DEPARTMENT_NAMES[int(rng.integers(len(DEPARTMENT_NAMES)))],
            coupon=f"SAVE{discount}-{number + 1}", discount=discount / 100, from_ms=begin,
            to_ms=begin + int(rng.integers(*PROMOTION_DAYS)) * DAY_MS))
    return result


def brand_fall(truth: Truth) -> BrandFall:
    """The brand with most items to the taste of those who come often goes bad after some time. No random number is drawn, so
    that nothing else depends on it."""
    wanted: dict[str, float] = {}
    for shopper in truth.shoppers[:BRAND_FALL_ASKED]:
        for item, inside in zip(truth.items, truth.mask(shopper, 0), strict=True):
            if inside:
                wanted[item.brand] = wanted.get(item.brand, 0.0) + shopper.sessions_per_day * item.popularity**0.5
    shop = truth.shop
    day = int(BRAND_FALL_AFTER * (shop.to_ms - shop.from_ms)) // DAY_MS
    return BrandFall(brand=max(sorted(wanted), key=wanted.__getitem__), from_ms=shop.from_ms + day * DAY_MS,
                     p_good=BRAND_FALL_P_GOOD)
