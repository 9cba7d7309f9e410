"""The simulated world: a catalog, shoppers, and the events they cause, in time order.

Deterministic: equal arguments and equal answers of the callback give equal events, byte for byte. `live` continues where
`history` ended; asked for another time, it quietly lives through the time before it first.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from producers.simulate import catalog
from producers.simulate import shoppers as planting
from producers.simulate.planted import ItemTruth, Shop
from producers.simulate.stage import Floor, Memory, Mind, Recommendations
from producers.simulate.strategies import PLANTED
from producers.simulate.truth import Time, Truth, ms_of
from producers.simulate.visit import CURRENCY, Visit
from producers.simulate.vocabulary import DEPARTMENTS, STYLES
from schemas.catalog import Item
from schemas.events import Lane

ITEMS, SHOPPERS, DAYS, SEED = 2_400, 400, 120, 7
TENANT = "demo"
START = datetime(2026, 1, 1, tzinfo=UTC)
TASTE_SHARPNESS = 3.2  # choice ∝ exp(3.2 · affinity) · popularity^0.5 · price fit
POPULARITY_IN_TASTE = 0.5
NOISE_POPULAR = 0.6  # of untargeted views follow popularity, the others are uniform
MINDS_CACHED_MAX = 4_000  # choice distributions kept, 20 KB each


class World:
    """A shop of `items` products and `shoppers` people over `days` from `start` (UTC). `strategies`: orders are made under
    offers drawn by lot, which change what is said of them; all else stays as it is."""

    def __init__(self, seed: int = SEED, shoppers: int = SHOPPERS, days: int = DAYS, start: datetime = START, *,
                 items: int = ITEMS, tenant: str = TENANT, strategies: bool = False) -> None:
        if shoppers < 1 or days < 1 or items < 100:
            raise ValueError(f"a world needs at least 1 shopper, 1 day and 100 items, not {shoppers}, {days} and {items}")
        if start.tzinfo is None:
            raise ValueError(f"start {start.isoformat()} has no time zone; give UTC, for example 2026-01-01T00:00:00+00:00")
        self.start, self.end = start, start + timedelta(days=days)
        self.shop = Shop(seed=seed, shoppers=shoppers, days=days, items=items, tenant=tenant, from_ms=ms_of(start),
                         to_ms=ms_of(self.end))
        self.catalog = catalog.build(seed, items, tenant, start)
        self.planted = planting.plant(self.shop, self.catalog)
        self.promotions = planting.promotions(self.shop)
        self._truth = Truth(
            self.shop, self.planted.shoppers,
            [ItemTruth(item_id=p.item.item_id, department=DEPARTMENTS[p.department].name, style=STYLES[p.style].name,
                       brand=p.item.brand, popularity=round(p.popularity, 4)) for p in self.catalog.products],
            self.promotions)
        self.fall = planting.brand_fall(self._truth)
        self._truth = self._truth.with_falls([self.fall]).with_strategies(PLANTED if strategies else ())
        self.floor = self._furnish()
        self.mind = functools.lru_cache(maxsize=MINDS_CACHED_MAX)(self._make_up_mind)
        self._ended: tuple[int, _Life] | None = None  # where the last history ended, for live to go on from

    def items(self) -> list[Item]:
        """The catalog."""
        return [product.item for product in self.catalog.products]

    def truth(self) -> Truth:
        """What was planted."""
        return self._truth

    def history(self, until: Time | None = None, *, from_: Time | None = None, lane: Lane = "import",
                pace: Callable[[int], None] | None = None) -> Iterator[dict[str, Any]]:
        """Events in [from_, until) (default: all), oldest first. Events are to be read, not changed.

        `pace(ts_ms)` is called before each event is decided and may wait until that time has come.
        """
        until_ms = self._bounded(until)
        life = _Life(self, lane)
        if from_ is not None:
            life.skip(min(ms_of(from_), until_ms))
        yield from life.run(until_ms, pace)
        self._ended = until_ms, life

    def live(self, from_: Time, until: Time | None = None, recommendations: Recommendations | None = None, *,
             pace: Callable[[int], None] | None = None) -> Iterator[dict[str, Any]]:
        """Events in [from_, until) of shoppers who may look at their latest recommendations.

        `recommendations(user)` is asked with the id the shop knows at that moment, at the moment a shopper looks; it
        returns item ids, best first, or a `Shown` that names the recommendation. `pace` is as in `history`.
        """
        from_ms, until_ms = ms_of(from_), self._bounded(until)
        ended, self._ended = self._ended, None
        if ended is not None and ended[0] == from_ms:
            life = ended[1]
        else:
            life = _Life(self, "import")
            life.skip(from_ms)
        life.go_live(recommendations)
        yield from life.run(until_ms, pace)

    # ---- made once

    def _bounded(self, until: Time | None) -> int:
        until_ms = self.shop.to_ms if until is None else ms_of(until)
        if until_ms > self.shop.to_ms:
            raise ValueError(f"the world ends at {self.end.isoformat()}, before the time asked for; make it with more days")
        return until_ms

    def _furnish(self) -> Floor:
        products = self.catalog.products
        popularity = np.array([product.popularity for product in products])  # (I,)
        noise = NOISE_POPULAR * popularity / popularity.sum() + (1 - NOISE_POPULAR) / len(products)
        self._popularity = popularity
        self._prices = np.array([product.item.price or 0.0 for product in products])
        mean = np.array([np.log(self._prices[members]).mean() if members else 0.0 for members in self.catalog.by_category])
        category = np.array([product.category for product in products])
        self._price_fit = np.log(self._prices) - mean[category]  # (I,), above 0: dear for its category
        shop = self.shop
        world = f"{shop.seed}/{shop.shoppers}/{shop.days}/{shop.items}/{shop.from_ms}"
        base = [{"product_id": p.item.item_id, "name": p.item.title, "category": p.item.category, "brand": p.item.brand,
                 "price": p.item.price, "currency": CURRENCY} for p in products]
        return Floor(shop, self.catalog, base, self._prices.tolist(), noise.cumsum(), self.promotions, self.fall,
                     hashlib.blake2b(world.encode(), digest_size=4).hexdigest(), self._truth.strategies)

    def _make_up_mind(self, number: int, period: int) -> Mind:
        shopper = self.planted.shoppers[number]
        logits = TASTE_SHARPNESS * self._truth.affinity(shopper.tastes[period])  # (I,)
        logits += POPULARITY_IN_TASTE * np.log(self._popularity) - shopper.price_sensitivity * self._price_fit
        weights = np.exp(logits - logits.max())
        return Mind((weights / weights.sum()).cumsum(), self._truth.mask(shopper, period))


class _Life:
    """The running world: visits under way, and what shoppers remember. Runs forward only."""

    def __init__(self, world: World, lane: Lane) -> None:
        self.world, self.lane = world, lane
        self.recommendations: Recommendations | None = None
        starts = world.planted.starts_ms
        shopper = np.repeat(np.arange(len(starts)), [len(s) for s in starts])
        at = np.concatenate(starts)
        order = np.lexsort((shopper, at))
        self._starts: list[tuple[int, int]] = list(zip(at[order].tolist(), shopper[order].tolist(), strict=True))
        self._next = 0
        self._memories = [Memory(len(s.cycles)) for s in world.planted.shoppers]
        self._open: list[tuple[int, int, Iterator[tuple[dict[str, Any], int]], Visit]] = []

    def go_live(self, recommendations: Recommendations | None) -> None:
        """From now on events are live, those of visits under way included."""
        self.lane, self.recommendations = "live", recommendations
        for _, _, _, visit in self._open:
            visit.lane, visit.recommendations = "live", recommendations

    def skip(self, until_ms: int) -> None:
        """Live through the time before `until_ms` without telling."""
        for _ in self.run(until_ms):
            pass

    def run(self, until_ms: int, pace: Callable[[int], None] | None = None) -> Iterator[dict[str, Any]]:
        """Events before `until_ms`, in time order; equal times by the order in which the visits began."""
        heap, starts = self._open, self._starts
        while True:
            begins = starts[self._next][0] if self._next < len(starts) else until_ms
            now_ms = min(heap[0][0], begins) if heap else begins
            if now_ms >= until_ms:
                return
            if pace is not None:
                pace(now_ms)
            if begins <= now_ms:
                self._begin(*starts[self._next])
                continue
            _, number, events, visit = heap[0]
            step = next(events, None)
            if step is None:
                heapq.heappop(heap)
                continue
            event, following_ms = step
            heapq.heapreplace(heap, (following_ms, number, events, visit))
            yield event

    def _begin(self, start_ms: int, number: int) -> None:
        world = self.world
        shopper = world.planted.shoppers[number]
        mind = world.mind(number, world.truth().period(shopper, start_ms))
        visit = Visit(world.floor, shopper, self._memories[number], mind, start_ms, self.recommendations, self.lane)
        heapq.heappush(self._open, (start_ms, self._next, visit.events(), visit))
        self._next += 1
