"""What one visit to the shop does, event by event.

A visit is a generator that is resumed at the time of each event, so that what it looks at (its recommendations) is what
is there at that moment. It yields `(event, time of the next event)`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from producers.simulate import strategies as offers
from producers.simulate import vocabulary as words
from producers.simulate.planted import Promotion, ShopperTruth
from producers.simulate.stage import DAY_MS, Draws, Floor, Memory, Mind, Recommendations, Shown, iso
from schemas import events as names

DECK = 32  # products drawn at a time from a shopper's taste, and from the shop's noise
LOOKS_MEAN, LOOKS_MAX = 4.6, 20  # products looked at in one visit
GAP_MEAN_S, GAP_MAX_S = 25.0, 60.0  # between two events: with LOOKS_MAX a visit stays below the gap between visits
LIST_SIZE = 6
SHOWN_MAX = 10  # recommendations a shopper reads at most
ATTENTION_DECAY = 0.85  # chance to read on after each position
P_CLICK_IN_TASTE, P_CLICK_OTHER = 0.25, 0.012  # for each recommended product that is read
P_CART_IN_TASTE, P_CART_OTHER = 0.16, 0.02
P_REVIEW = 0.3  # of ordered products are reviewed, some days later
REVIEW_DAYS = (3.0, 14.0)
PENDING_MAX = 5
CURRENCY = "EUR"
COUNTRIES = ("DE", "FR", "NL", "AT")

Body = tuple[str, str | None, dict[str, Any]]  # type, event name, properties (traits for identify)


class Visit:
    """One visit. `recommendations` is None where nobody recommends anything; `lane` is what the events carry."""

    def __init__(self, floor: Floor, shopper: ShopperTruth, memory: Memory, mind: Mind, start_ms: int,
                 recommendations: Recommendations | None, lane: str) -> None:
        self.floor, self.shopper, self.memory, self.mind, self.lane = floor, shopper, memory, mind, lane
        self.start_ms, self.now_ms, self.recommendations = start_ms, start_ms, recommendations
        self.draw = Draws(floor.shop.seed, 0x715, shopper.number, memory.visits)
        devices = shopper.anonymous_ids
        self.device = devices[0] if len(devices) == 1 or self.draw.chance(0.7) else devices[1]
        self.context = {"sessionId": f"{self.device}-{start_ms // 1000}", "library": {"name": "clickwake-simulate"}}
        self.known = self._logged_in()
        self.taste_deck: list[int] = []
        self.noise_deck: list[int] = []
        self.cart: dict[int, int] = {}
        self.promotion: Promotion | None = None  # the one the shopper clicked
        memory.visits += 1

    # ---- driver

    def events(self) -> Iterator[tuple[dict[str, Any], int]]:
        """The events of the visit in time order; each is decided when the generator is resumed."""
        shopper, memory = self.shopper, self.memory
        for kind, name, properties in self._flow():
            stamp = iso(self.now_ms)
            event: dict[str, Any] = {
                "messageId": f"sim-{self.floor.world_id}-{shopper.number}-{memory.sent}", "type": kind, "timestamp": stamp,
                "originalTimestamp": stamp, "tenant": self.floor.shop.tenant, "lane": self.lane, "context": self.context,
            }
            if name is not None:
                event["event"] = name
            if self.known:
                event["userId"] = shopper.user_id
            event["anonymousId"] = self.device
            if kind == "alias":
                event["previousId"] = self.device
            if properties:
                event["traits" if kind == "identify" else "properties"] = properties
            memory.sent += 1
            gap_s = min(1.0 + self.draw.exponential(GAP_MEAN_S), GAP_MAX_S)
            following = self.now_ms + int(gap_s * 1000)
            yield event, following
            self.now_ms = following

    def _flow(self) -> Iterator[Body]:
        yield from self._arrive()
        yield from self._see_promotions()
        yield from self._review()
        yield from self._replenish()
        looks = min(1 + int(self.draw.exponential(LOOKS_MEAN - 0.5)), LOOKS_MAX)
        if self.shopper.cohort == "one_time":
            looks += 2
        for _ in range(looks):
            yield from self._look()
        yield from self._check_out()

    # ---- arriving

    def _logged_in(self) -> bool:
        if self.shopper.identity == "known":
            return True
        return self.device in self.memory.identified and (self.shopper.identity == "later" or self.draw.chance(0.6))

    def _must_identify(self) -> bool:
        if self.known or self.shopper.identity == "never":
            return False
        return self.shopper.identify_at_ms is None or self.start_ms >= self.shopper.identify_at_ms

    def _arrive(self) -> Iterator[Body]:
        if self.draw.chance(0.7):
            yield "page", None, {"path": "/", "title": "Home"}
        if not self._must_identify():
            return
        if self.draw.chance(0.5):
            yield from self._look()
        first = not self.memory.identified
        self.memory.identified.add(self.device)
        self.known = True
        if first and self.shopper.identity == "later" and self.shopper.number % 2:
            yield "alias", None, {}
        user = self.shopper.user_id
        yield "identify", None, {"email": f"{user}@example.com", "country": COUNTRIES[self.shopper.number % len(COUNTRIES)]}

    def _see_promotions(self) -> Iterator[Body]:
        running = [p for p in self.floor.promotions if p.from_ms <= self.now_ms < p.to_ms]
        for promotion in running:
            if not self.draw.chance(self.shopper.promotion_attention):
                continue
            seen = {"promotion_id": promotion.promotion_id, "name": f"{promotion.discount:.0%} off {promotion.department}"}
            yield "track", names.PROMOTION_VIEWED, seen
            taste = max((t for t in self.shopper.tastes if t.from_ms <= self.now_ms), key=lambda t: t.from_ms,
                        default=self.shopper.tastes[0])
            fits = taste.departments.get(promotion.department, 0.0) > 0.5
            if self.draw.chance((0.5 if fits else 0.05) * (0.5 + self.shopper.price_sensitivity)):
                self.promotion = promotion
                yield "track", names.PROMOTION_CLICKED, dict(seen)
                yield from self._browse_offers(promotion)

    def _browse_offers(self, promotion: Promotion) -> Iterator[Body]:
        """Two of the products on offer that the shopper would look at anyway, if there are any."""
        for _ in range(2):
            offers = (self._deal(taste=True) for _ in range(DECK))
            index = next((index for index in offers if self._discounted(index) is promotion), None)
            if index is not None:
                yield from self._view(index)
                yield from self._want(index)

    def _review(self) -> Iterator[Body]:
        due = [entry for entry in self.memory.reviews if entry[0] <= self.now_ms]
        if not due:
            return
        self.memory.reviews = [entry for entry in self.memory.reviews if entry[0] > self.now_ms]
        for _, index, added in due:
            product, good = self.floor.catalog.products[index], self.draw.chance(self._p_good(index, added))
            texts = words.PRAISE if good else words.BLAME
            body = texts[self.draw.below(len(texts))].format(
                style=words.STYLES[product.style].name, noun=product.noun, material=product.material, use=product.use)
            rating = 4 + self.draw.below(2) if good else 1 + self.draw.below(3)
            yield "track", names.PRODUCT_REVIEWED, {
                "product_id": product.item.item_id, "rating": rating, "review_body": body,
                "review_id": f"r-{self.shopper.number}-{self.memory.sent}"}

    def _p_good(self, index: int, added: float) -> float:
        """Chance of a good review: taste, and what the strategy adds, until what the brand sells goes bad."""
        fall = self.floor.fall
        if self.now_ms >= fall.from_ms and self.floor.catalog.products[index].item.brand == fall.brand:
            return fall.p_good
        taste = 0.9 if self.mind.mask[index] else 0.4
        return offers.p_good(taste, added) if added else taste

    def _replenish(self) -> Iterator[Body]:
        for number, cycle in enumerate(self.shopper.cycles):
            due_ms = self.memory.cycle_due_ms[number]
            if self.now_ms < due_ms or (due_ms == 0 and not self.draw.chance(0.4)):
                continue
            index = self.floor.catalog.number[cycle.item_id]
            self.memory.cycle_due_ms[number] = self.now_ms + int(cycle.period_days * self.draw.between(0.9, 1.1) * DAY_MS)
            yield from self._view(index)
            self.cart[index] = 1 + self.draw.below(2)
            yield "track", names.PRODUCT_ADDED, {**self.floor.base[index], "quantity": self.cart[index]}

    # ---- looking around

    def _deal(self, taste: bool) -> int:
        """The next product from the shopper's taste, or from everything."""
        deck = self.taste_deck if taste else self.noise_deck
        if not deck:
            cumulative = self.mind.cumulative if taste else self.floor.noise
            found = cumulative.searchsorted(self.draw.rng.random(DECK))  # (DECK,)
            deck.extend(np.minimum(found, len(cumulative) - 1).tolist())
        return deck.pop()

    def _look(self) -> Iterator[Body]:
        if self.recommendations is not None and self.draw.chance(self.shopper.recommendation_attention):
            clicked = yield from self._read_recommendations(self.recommendations)
            if clicked:
                return
        if self.memory.recent and self.draw.chance(0.08):
            yield from self._view(self.memory.recent[self.draw.below(len(self.memory.recent))])
            return
        index = self._deal(taste=not self.draw.chance(self.shopper.noise_share))
        way = self.draw.uniform()
        if way < 0.2:
            product = self.floor.catalog.products[index]
            style = words.STYLES[product.style].name
            yield "track", names.PRODUCTS_SEARCHED, {"query": f"{style} {product.noun}" if way < 0.1 else product.noun}
        elif way < 0.4:
            yield "track", names.PRODUCT_LIST_VIEWED, self._list_around(index)
        yield from self._view(index)
        yield from self._want(index)

    def _list_around(self, index: int) -> dict[str, Any]:
        category = self.floor.catalog.by_category[self.floor.catalog.products[index].category]
        begin = self.draw.below(len(category))
        shown = {index, *(category[(begin + k) % len(category)] for k in range(LIST_SIZE - 1))}
        base = self.floor.base
        return {"list_id": base[index]["category"], "category": base[index]["category"],
                "products": [{"product_id": base[i]["product_id"], "position": k + 1} for k, i in enumerate(sorted(shown))]}

    def _read_recommendations(self, recommendations: Recommendations) -> Generator[Body, None, bool]:
        """Reads down the list, clicks at most one product; returns whether it did."""
        found = recommendations((self.shopper.user_id if self.known else None) or self.device)
        shown = found if isinstance(found, Shown) else Shown(found)
        for position, item in enumerate(shown.items[:SHOWN_MAX], start=1):
            index = self.floor.catalog.number.get(item)
            p = P_CLICK_IN_TASTE if index is not None and self.mind.mask[index] else P_CLICK_OTHER
            if index is not None and self.draw.chance(p):
                click = {**self.floor.base[index], "list_id": "recommendations", "position": position}
                if shown.recommendation_id:
                    click["recommendation_id"] = shown.recommendation_id
                yield "track", names.PRODUCT_CLICKED, click
                yield from self._view(index)
                yield from self._want(index)
                return True
            if not self.draw.chance(ATTENTION_DECAY):
                break
        return False

    def _view(self, index: int) -> Iterator[Body]:
        recent = self.memory.recent
        if index not in recent:
            recent.append(index)
            if len(recent) > 8:
                del recent[0]
        yield "track", names.PRODUCT_VIEWED, dict(self.floor.base[index])

    def _want(self, index: int) -> Iterator[Body]:
        """Into the cart, onto the wish list, or neither."""
        product = self.floor.catalog.products[index]
        p = P_CART_IN_TASTE if self.mind.mask[index] else P_CART_OTHER
        if self._discounted(index) is not None:
            p *= 1.5 + 1.5 * self.shopper.price_sensitivity
        if self.shopper.cohort == "one_time":
            p = max(p, 0.3)
        durable = not words.DEPARTMENTS[product.department].consumable
        if not product.item.in_stock or index in self.cart or (durable and index in self.memory.bought):
            return
        wish = self.draw.uniform()
        if wish < p:
            self.cart[index] = 1
            yield "track", names.PRODUCT_ADDED, {**self.floor.base[index], "quantity": 1}
        elif wish > 0.97:
            yield "track", names.PRODUCT_WISHLISTED, dict(self.floor.base[index])

    def _discounted(self, index: int) -> Promotion | None:
        promotion = self.promotion
        department = words.DEPARTMENTS[self.floor.catalog.products[index].department].name
        return promotion if promotion is not None and promotion.department == department else None

    # ---- buying

    def _check_out(self) -> Iterator[Body]:
        if self.cart and self.draw.chance(0.12):
            index = next(iter(self.cart))
            del self.cart[index]
            yield "track", names.PRODUCT_REMOVED, {**self.floor.base[index], "quantity": 1}
        if not self.cart or not (self.shopper.cohort == "one_time" or self.draw.chance(0.75)):
            return
        order_id = f"o{self.floor.shop.seed}-{self.shopper.number}-{self.memory.orders}"
        yield "track", names.CHECKOUT_STARTED, {"order_id": order_id, **self._order()}
        coupon = next((p for p in map(self._discounted, self.cart) if p is not None), None)
        if coupon is not None and self.draw.chance(0.4 + 0.6 * self.shopper.price_sensitivity):
            yield "track", names.COUPON_APPLIED, {"order_id": order_id, "coupon_id": coupon.coupon, "coupon": coupon.coupon}
        elif coupon is not None:
            coupon = None
        if self.shopper.cohort != "one_time" and not self.draw.chance(0.85):
            return
        sent_back, added = self._offered(order_id)
        self.memory.orders += 1
        self._remember_order(added)
        yield "track", names.ORDER_COMPLETED, {"order_id": order_id, **self._order(coupon), **sent_back}

    def _offered(self, order_id: str) -> tuple[dict[str, str], float]:
        """What an order says of the offer it is made under, and what that adds to the chance of a good review."""
        if not self.floor.strategies:
            return {}, 0.0
        who = offers.buyer(self.memory.orders)
        chosen = offers.drawn(self.floor.strategies, who, order_id)
        sent_back = offers.recommendation_id(self.floor.world_id, order_id)
        return {"recommendation_id": sent_back}, chosen.p_good_added.get(who, 0.0)

    def _order(self, coupon: Promotion | None = None) -> dict[str, Any]:
        lines, total = [], 0.0
        for index, quantity in self.cart.items():
            lines.append({**self.floor.base[index], "quantity": quantity})
            off = coupon.discount if coupon is not None and self._discounted(index) is coupon else 0.0
            total += quantity * self.floor.prices[index] * (1.0 - off)
        order = {"revenue": round(total, 2), "currency": CURRENCY, "products": lines}
        return order if coupon is None else {**order, "coupon": coupon.coupon}

    def _remember_order(self, added: float) -> None:
        for index in self.cart:
            self.memory.bought.add(index)
            if self.draw.chance(P_REVIEW) and len(self.memory.reviews) < PENDING_MAX:
                due_ms = self.now_ms + int(self.draw.between(*REVIEW_DAYS) * DAY_MS)
                self.memory.reviews.append((due_ms, index, added))
