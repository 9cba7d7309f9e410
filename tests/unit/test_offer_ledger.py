"""What is learned from the logs: the same as a recomputation, in any order and however often it is interrupted; and the
policy made of it, whose propensities are what it does."""

from __future__ import annotations

import random
import zlib
from collections import Counter
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.events import Product, Properties
from schemas.offers import MICROS, OfferTotals, PlacementTotals, UserOffers
from schemas.outputs import OfferCap, OfferCost, Offered
from stream.core.offers.offer_ledger import (
    BITS,
    CLICKED,
    EARLY_MS,
    ORDERED,
    REVENUE_MAX,
    SEEN,
    Learned,
    Ledger,
    revenue_micros,
)
from stream.core.offers.offer_policy import expand, policy
from stream.core.statistics.bandit import EXPLORE, BayesianLinear, choose
from stream.core.user.state import DAY_MS

T0 = 20_000 * DAY_MS
WINDOW = 3_600_000
PARTITIONS = 3
OFFERS = ("red", "blue")


def partition_of(key: bytes) -> int:
    return zlib.crc32(key) % PARTITIONS


def offered(offer: str = "red", groups: tuple[str, ...] = (), *, reward: Any = "click", holdout: bool = False,
            cap: OfferCap | None = None, instead: str = "", instead_cap: OfferCap | None = None) -> Offered:  # fmt: skip
    return Offered(
        placement="home", offer_id=offer, propensity=1.0, candidates={offer: 1.0}, refused={}, holdout=holdout,
        rules_version="r", policy_version="p", reward=reward, window_ms=WINDOW, about=("*", f"offer={offer}"), groups=groups,
        cost=OfferCost(impression=0.1, click=0.3, order=2.5), cap=cap, instead=instead,
        instead_cap=instead_cap,
    )  # fmt: skip


class Said(NamedTuple):
    """One record of either log; `what` is a decision, or a bit."""

    at: int
    user: bytes
    ident: str
    what: Offered | int
    revenue: int = 0


users = st.sampled_from([b"t/u1", b"t/u2", b"t/u3", b"s/u1"])
decisions = st.builds(
    lambda user, number, at, offer, groups, reward, holdout, instead: Said(
        T0 + at, user, f"offer-{user.decode()}-{number}",
        offered(offer, groups, reward=reward, holdout=holdout, cap=OfferCap(count=2, hours=0.5) if number % 2 else None,
                instead=instead, instead_cap=OfferCap(count=1, hours=0.5) if number == 3 else None)),
    users, st.integers(0, 4), st.integers(0, 4 * WINDOW), st.sampled_from(OFFERS),
    st.sampled_from([(), ("buyer",), ("away", "buyer")]), st.sampled_from(["click", "order"]), st.booleans(),
    st.sampled_from(["", "red", "never shown"]),
)  # fmt: skip
reactions = st.builds(
    lambda user, number, at, bit, revenue: Said(T0 + at, user, f"offer-{user.decode()}-{number}", bit, revenue),
    users, st.integers(0, 5), st.integers(0, 6 * WINDOW), st.sampled_from(sorted(BITS.values())),
    st.integers(0, 90 * MICROS),
)  # fmt: skip


def logs(some: list[Said]) -> dict[int, tuple[list[Said], list[Said]]]:
    """Partition → its decisions and its events, each in the broker's order; an id is decided about once."""
    once = {one.ident: one for one in reversed(some) if isinstance(one.what, Offered)}
    found: dict[int, tuple[list[Said], list[Said]]] = {number: ([], []) for number in range(PARTITIONS)}
    kept = (one for one in some if not isinstance(one.what, Offered) or once[one.ident] is one)
    for one in sorted(kept, key=lambda one: one.at):
        found[partition_of(one.user)][0 if isinstance(one.what, Offered) else 1].append(one)
    return found


def recomputed(of: dict[int, tuple[list[Said], list[Said]]]) -> dict[tuple[str, str], PlacementTotals]:
    """The whole log at once, decision by decision, without a ledger: the truth."""
    gram: Counter[tuple[str, str]] = Counter()
    found: dict[tuple[str, str], Any] = {}
    for made, done in of.values():
        clock = done[-1].at if done else 0
        for one in made:
            assert isinstance(one.what, Offered)
            about = [event for event in done if event.ident == one.ident and event.user == one.user
                     and one.at - EARLY_MS <= event.at <= one.at + WINDOW]  # fmt: skip
            if not about:
                continue
            where = (one.user.decode().partition("/")[0], "home")
            names, moment, offers, counts = found.setdefault(where, (Counter(), Counter(), {}, [0, 0]))
            clicks, orders = ([event for event in about if event.what == bit] for bit in (CLICKED, ORDERED))
            rewarded = bool(clicks if one.what.reward == "click" else orders)
            features = expand(one.what.about, one.what.groups)
            gram.update((f"{where}{a}", b) for a in features for b in features)
            names.update(features)
            moment.update({name: int(rewarded) for name in features})
            counts[0] += 1
            counts[1] += rewarded
            totals = offers.setdefault(one.what.offer_id, OfferTotals())
            out = one.what.holdout
            totals.impressions, totals.held_impressions = totals.impressions + 1, totals.held_impressions + out
            totals.clicks, totals.held_clicks = totals.clicks + bool(clicks), totals.held_clicks + (out and bool(clicks))
            totals.orders, totals.held_orders = totals.orders + bool(orders), totals.held_orders + (out and bool(orders))
            totals.revenue_micros += orders[0].revenue if orders else 0
            totals.spent_micros += 100_000 + 300_000 * bool(clicks) + 2_500_000 * bool(orders)
            if one.at + WINDOW < clock and one.what.instead:
                judged = one.what.instead if out else one.what.offer_id
                totals, side = offers.setdefault(judged, OfferTotals()), "control" if out else "over"
                for what, count in (("impressions", 1), ("clicks", bool(clicks)), ("orders", bool(orders))):
                    setattr(totals, f"{side}_{what}", getattr(totals, f"{side}_{what}") + count)
    return {where: PlacementTotals(
        names=sorted(names), outcomes=counts[0], rewards=counts[1], offers={name: offers[name] for name in sorted(offers)},
        gram=np.array([[gram[f"{where}{a}", b] for b in sorted(names)] for a in sorted(names)], dtype=np.uint32).tobytes(),
        moment=np.array([moment[name] for name in sorted(names)], dtype=np.uint32).tobytes(),
    ) for where, (names, moment, offers, counts) in found.items()}  # fmt: skip


def without_days(ledger: Ledger) -> dict[tuple[str, str], PlacementTotals]:
    found = {where: learned.totals() for where, learned in ledger.placements.items()}
    for totals in found.values():
        for one in totals.offers.values():
            assert sum(count for count, _ in one.days.values()) == one.impressions
            assert sum(micros for _, micros in one.days.values()) == one.spent_micros
            one.days = {}
    return found


def folded(of: dict[int, tuple[list[Said], list[Said]]], rng: random.Random, crashes: int) -> Ledger:
    """As the worker does: turns of some events of some partitions, decisions read up to the events; what is published
    survives a crash, and the turn after it is read again."""
    ledger, topic = Ledger(partition_of), dict[bytes, bytes]()
    positions = {number: [0, 0] for number in of}
    while any(at != [len(made), len(done)] for at, (made, done) in zip(positions.values(), of.values(), strict=True)):
        before = {number: list(at) for number, at in positions.items()}
        for number in rng.sample(sorted(of), rng.randint(1, len(of))):
            made, done = of[number]
            upto = min(len(done), positions[number][1] + rng.randint(0, 4))
            newest = done[upto - 1].at if upto else 0
            while positions[number][0] < len(made) and (made[positions[number][0]].at <= newest or rng.random() < 0.6):
                one = made[positions[number][0]]
                assert isinstance(one.what, Offered)
                for _ in range(rng.randint(1, 2)):  # replicas log the same decision
                    ledger.decide(one.user, one.ident, one.what, one.at)
                positions[number][0] += 1
            for one in done[positions[number][1] : upto]:
                assert isinstance(one.what, int)
                ledger.react(one.user, one.ident, one.what, one.at, one.revenue)
            positions[number][1] = upto
            if upto:
                ledger.tick(number, newest)
        if crashes and rng.random() < 0.3:
            crashes, positions, ledger = crashes - 1, before, Ledger(partition_of)
            for name, value in topic.items():
                ledger.restore(name, value)
            continue
        for name, published in ledger.take_changed().items():
            if published is None:
                topic.pop(name, None)
            else:
                topic[name] = published
    return ledger


@settings(max_examples=150, deadline=None)
@given(some=st.lists(st.one_of(decisions, reactions), max_size=60), seed=st.integers(0, 2**32))
def test_what_is_learned_is_the_log_recomputed_however_it_was_read_and_interrupted(some: list[Said], seed: int) -> None:
    of = logs(some)
    ledger = folded(of, random.Random(seed), crashes=3)
    assert without_days(ledger) == recomputed(of)
    for number in of:
        ledger.tick(number, T0 + 10 * DAY_MS)
    assert not ledger.users, "nothing is remembered of a user once it is over"


def test_an_impression_is_seen_within_its_window_and_counted_once() -> None:
    ledger = Ledger(partition_of)
    ledger.react(b"t/u", "offer-1", SEEN, T0 - 5)  # in the log before its decision
    ledger.decide(b"t/u", "offer-1", offered(cap=OfferCap(count=2, hours=1)), T0)
    ledger.decide(b"t/u", "offer-1", offered(), T0 + 1)
    ledger.react(b"t/u", "offer-1", ORDERED, T0 + 7, 5 * MICROS)
    ledger.react(b"t/u", "offer-1", ORDERED, T0 + 8, 7 * MICROS)
    ledger.react(b"t/other", "offer-1", CLICKED, T0 + 8)  # somebody else's id
    ledger.react(b"t/u", "offer-1", CLICKED, T0 + WINDOW + 1)  # too late
    (learned,) = ledger.placements.values()
    totals = learned.totals()
    days = {19_999: (1, 100_000), 20_000: (0, 2_500_000)}
    assert totals.offers == {"red": OfferTotals(1, 0, 1, 5 * MICROS, 2_600_000, 0, 0, 0, days)}
    assert (totals.outcomes, totals.rewards) == (1, 0)


def test_what_guardrails_compare_is_counted_once_the_window_is_over_and_for_what_would_have_been_shown() -> None:
    ledger = Ledger(partition_of)
    for user, offer, instead in ((b"t/u1", "red", "plain"), (b"t/u2", "plain", "red"), (b"t/u3", "plain", ""),
                                 (b"t/u4", "plain", "blue"), (b"t/u5", "red", "")):  # fmt: skip
        ledger.decide(user, "offer-1", offered(offer, holdout=offer == "plain", instead=instead), T0)
        if user != b"t/u4":  # who has not seen it; of u3 and u5 nothing can be compared
            ledger.react(user, "offer-1", CLICKED if user == b"t/u1" else SEEN, T0 + WINDOW)
    (learned,) = ledger.placements.values()

    def final(clock: int) -> dict[str, tuple[int, ...]]:
        for partition in range(PARTITIONS):
            ledger.tick(partition, clock)
        return {name: (one.over_impressions, one.over_clicks, one.control_impressions, one.control_clicks)
                for name, one in learned.offers.items()}  # fmt: skip

    assert final(T0 + WINDOW) == {"red": (0, 0, 0, 0), "plain": (0, 0, 0, 0)}, "an order may still come"
    ledger.take_changed()
    assert final(T0 + WINDOW + 1) == {"red": (1, 1, 1, 0), "plain": (0, 0, 0, 0)}
    assert b"#placement/t/home" in ledger.take_changed() and not ledger.users
    assert final(T0 + DAY_MS) == {"red": (1, 1, 1, 0), "plain": (0, 0, 0, 0)}


def test_who_is_held_out_uses_up_the_cap_of_what_would_have_been_shown() -> None:
    ledger, cap = Ledger(partition_of), OfferCap(count=2, hours=1)
    for number in range(3):
        ledger.decide(b"t/held", f"offer-{number}", offered("plain", holdout=True, instead="red", instead_cap=cap), T0)
        ledger.react(b"t/held", f"offer-{number}", SEEN, T0 + number)
        ledger.decide(b"t/free", f"offer-{number}", offered("blue", instead="plain"), T0)
        ledger.react(b"t/free", f"offer-{number}", SEEN, T0 + number)
    assert msgspec.msgpack.decode(ledger.users[b"t/held"], type=UserOffers).seen == {"red": [T0 + 1, T0 + 2]}
    assert msgspec.msgpack.decode(ledger.users[b"t/free"], type=UserOffers).seen == {}
    for partition in range(PARTITIONS):
        ledger.tick(partition, T0 + 3 + 3_600_000)
    assert not ledger.users


def test_users_who_are_erased_are_forgotten_and_the_sums_stay() -> None:
    ledger = Ledger(partition_of)
    for user in (b"t/u", b"t/v"):
        ledger.decide(user, "offer-1", offered(), T0)
        ledger.react(user, "offer-1", SEEN, T0 + 5)
    ledger.take_changed()
    assert ledger.forget([b"t/u", b"t/nobody"], lambda key, newest: newest <= T0) == 1
    assert ledger.take_changed() == {b"t/u": None}
    assert [one.outcomes for one in ledger.placements.values()] == [2]


def test_who_is_erased_and_comes_back_is_known_by_what_came_after() -> None:
    ledger = Ledger(partition_of)
    for at_ms, ident in ((T0, "offer-1"), (T0 + 10, "offer-2")):
        ledger.decide(b"t/u", ident, offered(cap=OfferCap(count=3, hours=24.0)), at_ms)
        ledger.react(b"t/u", ident, SEEN, at_ms + 1)
        ledger.react(b"t/u", f"{ident} unknown", CLICKED, at_ms + 1)
    assert ledger.forget([b"t/u"], lambda key, at_ms: at_ms <= T0 + 5) == 1
    left = msgspec.msgpack.decode(ledger.users[b"t/u"], type=UserOffers)
    assert [*left.open] == ["offer-2"] and [ident for ident, *_ in left.early] == ["offer-2 unknown"]
    assert [*left.seen.values()] == [[T0 + 11]] and left.seen_until_ms.keys() == left.seen.keys()
    assert ledger.forget([b"t/u"], lambda key, at_ms: at_ms <= T0 + 5) == 0


def learned_from(clicks: dict[tuple[str, tuple[str, ...]], tuple[int, int]]) -> PlacementTotals:
    """Totals of so many clicks of so many impressions, by offer and groups."""
    learned = Learned(PlacementTotals())
    for (offer, groups), (clicked, seen) in clicks.items():
        rows = learned.rows(expand(("*", f"offer={offer}"), groups))
        learned.gram[np.ix_(rows, rows)] += seen
        learned.moment[rows] += clicked
        learned.outcomes, learned.rewards = learned.outcomes + seen, learned.rewards + clicked
    return learned.totals()


ABOUT = [("*", "offer=red"), ("*", "offer=blue"), ("*", "offer=new")]
CLICKS = {("red", ()): (30, 300), ("blue", ()): (6, 300), ("red", ("buyer",)): (6, 300), ("blue", ("buyer",)): (30, 300)}


def test_the_posterior_is_that_of_all_outcomes_one_by_one() -> None:
    totals = learned_from(CLICKS)
    names = {name: at for at, name in enumerate(totals.names)}
    model = BayesianLinear(len(names))
    for (offer, groups), (clicked, seen) in CLICKS.items():
        x = np.zeros(len(names))
        x[[names[name] for name in expand(("*", f"offer={offer}"), groups)]] = 1
        for number in range(seen):
            model.learn(x[None], np.array([float(number < clicked)]))
    assert np.array_equal(np.frombuffer(totals.gram, dtype=np.uint32).reshape(len(names), -1), model.gram)
    assert np.array_equal(np.frombuffer(totals.moment, dtype=np.uint32), model.moment)


def test_each_group_gets_what_suits_it_and_what_nobody_knows_is_tried() -> None:
    made = policy(learned_from(CLICKS))
    for groups, best in (((), 0), (("buyer",), 1)):
        both = made.propensities(ABOUT[:2], [1.0, 1.0], groups)
        assert both[best] > 0.9 and both.sum() == pytest.approx(1) and both.min() >= EXPLORE / 2
        assert made.propensities(ABOUT, [1.0] * 3, groups)[2] > 0.1, "a new offer is tried"
    assert made.propensities(ABOUT[:2], [1.0, 100.0], ())[1] > 0.8, "what brings more is worth fewer clicks"
    again = policy(learned_from(CLICKS))
    assert again.version == made.version and np.array_equal(again.draws, made.draws)
    more = CLICKS | {("red", ()): (31, 301)}
    assert policy(learned_from(more)).version != made.version


@settings(max_examples=25, deadline=None)
@given(clicks=st.lists(st.tuples(st.integers(0, 40), st.integers(40, 200)), min_size=4, max_size=4), seed=st.integers(0, 9))
def test_propensities_sum_to_one_and_are_what_is_chosen(clicks: list[tuple[int, int]], seed: int) -> None:
    made = policy(learned_from(dict(zip(CLICKS, clicks, strict=True))))
    chances = made.propensities(ABOUT, [1.0, 0.5, 2.0], ("buyer",))
    assert chances.sum() == pytest.approx(1) and chances.min() >= EXPLORE / 3 - 1e-12
    chosen = np.bincount([choose(chances, f"{seed}/{n}").chosen for n in range(4_000)], minlength=3) / 4_000
    assert np.abs(chosen - chances).max() < 0.04  # five standard errors


def test_what_an_order_brought_is_a_number_whatever_was_said_of_it() -> None:
    def of(*lines: tuple[float, float]) -> int:
        return revenue_micros(Properties(products=tuple(
            Product(product_id="a", price=price, quantity=quantity) for price, quantity in lines)))  # fmt: skip

    assert revenue_micros(Properties(revenue=9.5)) == of((4.75, 2.0)) == 9_500_000
    assert of((1e308, 1e308), (-1e308, 1e308)) == 0  # infinity less infinity
    assert of((-1.0, 1.0)) == 0 and of((1e308, 1e308)) == REVENUE_MAX * MICROS
