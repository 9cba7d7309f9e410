"""What the read API chooses: decisions that replay, with the chances they were taken with; hold-out, reasons, texts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from schemas.catalog import Item, ItemVector
from schemas.events import key
from schemas.offers import OfferTotals, PlacementTotals
from schemas.outputs import Decision, OfferCap
from stream.api.offers import AskOffer, AskOfferFor, OfferDesk, Person
from stream.api.texts import TextFeatures
from stream.core.offers.nearness import CUTS, nearness, steps, taste
from stream.core.offers.offer_ledger import CLICKED, SEEN, Learned, Ledger
from stream.core.offers.offer_policy import expand, policy, text_about, text_id
from stream.core.offers.offers import guardrail, held_out, rates
from stream.core.statistics.confidence import rate
from stream.core.user.state import DAY_MS, Kind, Touch, UserState
from stream.http.answers import Refused
from stream.serving import ServingState
from stream.settings import Settings
from tests.support.fakes import T0_MS, FakeClock

FILE = """
holdout: 0.2
placements:
  - {name: home, control: plain, groups: {buyer: orders > 0}, guardrail: {}}
  - {name: mail, groups: {}}
  - {name: shop two, tenant: two}
  - {name: shelf, groups: {}}
offers:
  - {id: plain, placements: [home]}
  - {id: summer, placements: [home], tags: [new]}
  - {id: often, placements: [home], cap: {count: 2, hours: 1}}
  - {id: rich, placements: [home, mail], budget: {impressions: 10}}
  - {id: risky, placements: [home], when: churn > 0.5}
  - {id: outdoors, placements: [shelf], items: [spade, hose, i-gone]}
  - {id: indoors, placements: [shelf], items: [pan]}
  - {id: sold out, placements: [shelf], items: [i-gone]}
  - {id: all, placements: [shelf]}
"""


class FakeLearned:
    """What the worker would have published."""

    def __init__(self) -> None:
        self.by_placement: dict[str, PlacementTotals] = {}
        self.everywhere: dict[str, OfferTotals] = {}
        self.times: dict[str, list[int]] = {}

    def totals(self, tenant: str, placement: str) -> PlacementTotals:
        return self.by_placement.get(placement, PlacementTotals())

    def spent(self, tenant: str) -> dict[str, OfferTotals]:
        return self.everywhere

    def seen(self, user_key: bytes) -> dict[str, list[int]]:
        return self.times

    def behind_ms(self) -> int:
        return 7


class FakeLog(list[Decision]):
    def note(self, decision: Decision) -> None:
        self.append(decision)


class FakeTexts(TextFeatures):
    """Vectors by their first letter: texts, and items, that begin alike are alike. Items of offers are the catalog's."""

    def __init__(self) -> None:
        super().__init__(Settings(), ServingState())

    async def about(self, texts: list[str], tenant: str = "t", touches: Sequence[Touch] = ()) -> list[tuple[str, ...]]:
        vectors = [_like(text) for text in texts]
        liked = taste(touches, _like)
        near = [()] * len(texts) if liked is None else [steps(float(one)) for one in nearness(np.stack(vectors), liked)]
        return [text_about(text, vector, "space") + more for text, vector, more in zip(texts, vectors, near, strict=True)]


def _like(text: str) -> Any:
    drawn = np.random.default_rng(ord(text[0])).normal(size=8).astype(np.float32)
    return drawn / np.linalg.norm(drawn)


class Desk(OfferDesk):
    def __init__(self, folder: Path) -> None:
        (folder / "offers.yml").write_text(FILE)
        self.fake, self.log, self.now, self.churn = FakeLearned(), FakeLog(), FakeClock(), 0.0

        async def churn_of(state: UserState, now_ms: int) -> float:
            return self.churn

        self.fake_texts = FakeTexts()
        fakes: tuple[Any, ...] = (self.fake, self.log, self.now, churn_of, self.fake_texts)
        super().__init__(folder / "offers.yml", *fakes)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def person(user: str, orders: int = 0) -> Person:
    return Person("t", user, UserState(orders=orders, last_event_id="m1", last_ts_ms=T0_MS), T0_MS)


def looked_at(user: str, *items: str, tenant: str = "t") -> Person:
    ring = [Touch(T0_MS + at, f"e{at}", item, Kind.VIEW, 0.0) for at, item in enumerate(items)]
    return Person(tenant, user, UserState(ring=ring, last_event_id="m1", last_ts_ms=T0_MS), T0_MS)


async def test_the_same_moment_has_the_same_decision_and_others_follow_the_chances(desk: Desk) -> None:
    ask = AskOffer(placement="home", id="page 1")
    once, again = await desk.offer(person("u1"), ask), await desk.offer(person("u1"), ask)
    assert once == again and once.recommendation_id.startswith("offer-") and once.stale_ms == 7
    desk.now.at_ms += 3_600_000
    later = await desk.offer(person("u1"), ask)
    assert later.offer == once.offer and later.recommendation_id != once.recommendation_id, "another decision, chosen alike"
    found = [await desk.offer(person(f"v{n}"), AskOffer(placement="home", id="x")) for n in range(3_000)]
    free = [one for one in found if not one.holdout]
    chances, taken = free[0].candidates, Counter(one.offer.offer_id for one in free if one.offer)
    assert chances.keys() == {"plain", "summer", "often", "rich"} and sum(chances.values()) == pytest.approx(1)
    assert all(abs(taken[name] / len(free) - chance) < 0.05 for name, chance in chances.items())
    assert all(one.offer and one.propensity == one.candidates[one.offer.offer_id] for one in free)


async def test_who_is_held_out_sees_the_control_or_nothing_and_it_is_logged(desk: Desk) -> None:
    at_home = [await desk.offer(person(f"u{n}"), AskOffer(placement="home")) for n in range(500)]
    by_mail = [await desk.offer(person(f"u{n}"), AskOffer(placement="mail")) for n in range(500)]
    out = [one for one in at_home if one.holdout]
    assert 60 < len(out) < 140 and all(one.offer and one.offer.offer_id == "plain" and one.propensity == 1 for one in out)
    others = dict.fromkeys(("summer", "often", "rich"), "the user is held out")
    assert out[0].refused == {"risky": "not churn > 0.5"} | others
    assert [one.holdout for one in at_home] == [one.holdout for one in by_mail], "the same users everywhere"
    assert all((one.offer is None) == one.holdout for one in by_mail)
    logged = {one.recommendation_id: one.offer for one in desk.log}
    for answer in (*at_home, *by_mail):
        offered = logged[answer.recommendation_id]
        assert offered is not None and offered.holdout == answer.holdout and offered.refused == answer.refused
        assert offered.offer_id == (answer.offer.offer_id if answer.offer else "")
        assert offered.candidates == answer.candidates
        assert bool(offered.about) == (answer.offer is not None) and offered.policy_version == answer.policy_version
    instead = {(one.placement, one.holdout, one.instead) for one in logged.values() if one is not None}
    assert {name for where, held, name in instead if where == "home" and held} == {"plain", *others}, "by their chances"
    assert {name for where, held, name in instead if where == "home" and not held} == {"plain"}, "with the control"
    assert {name for where, held, name in instead if where == "mail"} == {""}, "no guardrail asks"


async def test_nothing_is_compared_without_the_control_and_caps_are_of_what_would_be_shown(desk: Desk) -> None:
    for n in range(60):
        await desk.offer(person(f"u{n}"), AskOffer(placement="home", offers=("often", "summer")))
    assert {(one.offer.instead, one.offer.instead_cap) for one in desk.log if one.offer} == {("", None)}
    desk.log.clear()
    for n in range(300):
        await desk.offer(person(f"u{n}"), AskOffer(placement="home"))
    caps = {one.offer.instead: one.offer.instead_cap for one in desk.log if one.offer and one.offer.holdout}
    assert caps == {"plain": None, "summer": None, "rich": None, "often": OfferCap(count=2, hours=1)}


async def test_what_may_not_be_shown_is_left_out_with_its_reason(desk: Desk) -> None:
    user = next(f"u{n}" for n in range(50) if not held_out(desk.rules(), "t", f"u{n}"))
    desk.fake.times = {"often": [T0_MS - 5, T0_MS - 9]}
    desk.fake.everywhere = {"rich": OfferTotals(impressions=10)}
    desk.churn = 0.7
    refused = (await desk.offer(person(user), AskOffer(placement="home"))).refused
    assert refused == {"often": "seen 2 times within 1 hours", "rich": "impressions spent"}
    nothing = await desk.offer(person(user), AskOffer(placement="mail"))
    assert nothing.offer is None and nothing.propensity == 1 and not nothing.candidates
    with pytest.raises(Refused, match="no placement 'shop two'"):
        await desk.offer(person(user), AskOffer(placement="shop two"))
    with pytest.raises(Refused, match="no offer 'rich2'"):
        await desk.offer(person(user), AskOffer(placement="home", offers=("rich2",)))


async def test_an_offer_that_the_guardrail_stops_is_no_candidate_and_another_is(desk: Desk) -> None:
    ask, user = AskOffer(placement="home"), next(f"u{n}" for n in range(50) if not held_out(desk.rules(), "t", f"u{n}"))
    control: dict[str, Any] = {"control_impressions": 1_000, "control_clicks": 100}
    desk.fake.by_placement["home"] = PlacementTotals(offers={"summer": OfferTotals(over_impressions=150, **control)})
    assert "summer" in (await desk.offer(person(user), ask)).candidates, "too little is known of it"
    desk.now.at_ms += 3_600_000
    worse, as_good = (OfferTotals(over_impressions=1_000, over_clicks=clicks, **control) for clicks in (10, 80))
    desk.fake.by_placement["home"] = PlacementTotals(offers={"summer": worse, "often": as_good})
    answer = await desk.offer(person(user), ask)
    assert answer.candidates.keys() == {"plain", "often", "rich"}
    assert answer.refused["summer"] == f"stopped: clicks {rate(10, 1_000)} are below the control's {rate(100, 1_000)}"
    logged = desk.log[-1].offer
    assert logged and logged.refused == answer.refused and logged.candidates == answer.candidates


async def test_an_offer_that_suits_who_hardly_clicks_is_not_stopped_by_those_who_click_anything(desk: Desk) -> None:
    """Buyers click three in ten of the control, the others one in a hundred, and of summer three: so they are given that."""
    rates_of = {("plain", 1): 0.3, ("plain", 0): 0.01, ("summer", 1): 0.05, ("summer", 0): 0.03}
    learned = Learned(PlacementTotals())
    for (offer, orders), clicked in rates_of.items():
        about = ("*", f"offer={offer}", *(("tag=new",) if offer == "summer" else ()))
        rows = learned.rows(expand(about, ("buyer",) if orders else ()))
        learned.gram[np.ix_(rows, rows)] += 4_000
        learned.moment[rows] += round(4_000 * clicked)
        learned.outcomes, learned.rewards = learned.outcomes + 4_000, learned.rewards + round(4_000 * clicked)
    desk.fake.by_placement["home"] = learned.totals()
    draw, ledger = random.Random(3), Ledger(lambda user: 0)
    for number in range(4_000):
        await desk.offer(person(f"v{number}", number % 2), AskOffer(placement="home", offers=("plain", "summer")))
        logged = desk.log[-1]
        assert logged.offer is not None
        user = key("t", logged.user_id)
        ledger.decide(user, logged.recommendation_id, logged.offer, T0_MS)
        clicks = draw.random() < rates_of[logged.offer.offer_id, number % 2]
        ledger.react(user, logged.recommendation_id, CLICKED if clicks else SEEN, T0_MS)
    ledger.tick(0, T0_MS + 2 * DAY_MS)
    totals = ledger.placements["t", "home"].offers
    plain, summer = totals["plain"], totals["summer"]
    assert rate(summer.clicks, summer.impressions).high < rate(plain.held_clicks, plain.held_impressions).low
    own, other = rates("click", summer)
    assert (own.n, own.value) == (summer.impressions, summer.clicks / summer.impressions)
    assert 200 < other.n < plain.held_impressions and other.value < own.value
    assert guardrail(desk.rules().placements["home"].placement, "summer", totals) is None


async def test_of_given_texts_what_is_liked_is_learned_for_texts_like_it(desk: Desk) -> None:
    """Texts that begin with A are clicked; of one that was never shown the beginning is known."""
    texts = FakeTexts()
    learned = Learned(PlacementTotals())
    for text, clicks in {"A garden": 60, "A mug": 55, "Buy now": 4, "Big sale": 6}.items():
        rows = learned.rows(expand((await texts.about([text]))[0], ()))
        learned.gram[np.ix_(rows, rows)] += 200
        learned.moment[rows] += clicks
        learned.outcomes, learned.rewards = learned.outcomes + 200, learned.rewards + clicks
    desk.fake.by_placement["mail"] = learned.totals()
    ask = AskOfferFor(user_id="", placement="mail", texts=("Bargains", "A new lamp", "Bargains"))
    found = [await desk.offer(person(f"u{n}"), ask) for n in range(60)]
    free = [one for one in found if not one.holdout]
    assert free[0].candidates.keys() == {text_id("Bargains"), text_id("A new lamp")}
    assert free[0].candidates[text_id("A new lamp")] > 0.6
    assert all(one.offer and one.offer.text == "Bargains" for one in found if one.holdout), "the first is the control"
    logged = {one.recommendation_id: one.offer for one in desk.log}
    for one in found:
        offered = logged[one.recommendation_id]
        assert offered and one.offer and offered.offer_id == text_id(one.offer.text)
        assert list(offered.about) == list((await texts.about([one.offer.text]))[0])
    with pytest.raises(Refused, match="not from both"):
        await desk.offer(person("u1"), AskOfferFor(user_id="", placement="mail", offers=("rich",), texts=("x",)))


async def test_who_dealt_with_something_gets_what_is_near_to_it_and_that_is_logged_and_learned(desk: Desk) -> None:
    ask = AskOfferFor(user_id="", placement="mail", texts=("A garden", "Kettles", "Zzz"))

    chances: dict[str, list[float]] = {"A": [], "K": []}
    for number, kind in [(number, kind) for number in range(40) for kind in chances]:
        answer = await desk.offer(looked_at(f"{kind}{number}", f"{kind}-1", f"{kind}-2"), ask)
        offered, chosen = desk.log[-1].offer, answer.offer
        assert offered and chosen and answer.candidates == offered.candidates
        near = [name for name in offered.about if name.startswith("near=")]
        assert (len(near) == len(CUTS)) == (chosen.text[0] == kind), "what is chosen is logged as it was judged"
        if not answer.holdout:
            chances[kind].append(answer.candidates[text_id("A garden")])
    assert min(chances["A"]) > 0.5 > max(chances["K"])
    once, again = await desk.offer(looked_at("u1", "A-1"), ask), await desk.offer(looked_at("u1", "A-1"), ask)
    moved = await desk.offer(looked_at("u1", "K-1"), ask)
    assert once == again and moved.recommendation_id != once.recommendation_id
    await desk.offer(person("u2"), ask)
    offered = desk.log[-1].offer
    assert offered and not [name for name in offered.about if name.startswith("near=")], "nothing is known of them"


async def test_an_offer_is_near_to_who_dealt_with_things_like_its_items_and_that_is_logged(desk: Desk) -> None:
    serving = desk.fake_texts._serving
    for item, angle in {"spade": 0.0, "hose": 0.3, "rake": 0.1, "pan": 1.5, "wok": 1.4}.items():
        vector = np.array([np.cos(angle), np.sin(angle)], dtype="<f4").tobytes()
        one = ItemVector(space="s", content_hash=item, vector=vector, item=Item(item_id=item, tenant="t"))
        serving.on_vector(f"s/t/{item}".encode(), msgspec.msgpack.encode(one))

    async def served(who: Person, *offers: str) -> tuple[dict[str, int], dict[str, float]]:
        """Steps of nearness of what is shown in many moments, and the chances."""
        steps: dict[str, int] = {}
        for moment in range(40):
            answer = await desk.offer(who, AskOffer(placement="shelf", id=str(moment), offers=offers))
            offered = desk.log[-1].offer
            assert offered and offered.candidates == answer.candidates
            near = sum(name.startswith("near=") for name in offered.about)
            assert steps.setdefault(offered.offer_id, near) == near
        return steps, answer.candidates

    user = next(f"u{n}" for n in range(50) if not held_out(desk.rules(), "t", f"u{n}"))
    steps, even = await served(looked_at(user, "rake"))
    assert set(steps.values()) == {0}, "no space is released"
    serving.current.space, serving.current.text_dim = "s", 2
    assert await served(looked_at(user)) == await served(looked_at(user, "i-gone")) == (steps, even)
    outside, chances = await served(looked_at(user, "rake", "i-gone"))
    assert outside == {"outdoors": len(CUTS), "sold out": 2, "all": 2} | ({"indoors": 0} if "indoors" in outside else {})
    inside, others = await served(looked_at(user, "wok"))
    assert inside["indoors"] == len(CUTS)
    assert chances["outdoors"] > even["outdoors"] + 0.1 > others["outdoors"] + 0.2
    assert others["indoors"] > even["indoors"] + 0.1 > chances["indoors"] + 0.2
    alone, _ = await served(looked_at(user, "rake"), "outdoors", "all")
    assert set(alone.values()) == {0}, "there is no other to be nearer than"
    other = next(f"u{n}" for n in range(50) if not held_out(desk.rules(), "two", f"u{n}"))
    assert set((await served(looked_at(other, "rake", tenant="two")))[0].values()) == {0}, "another's catalog"


def test_a_policy_of_nothing_gives_new_offers_about_the_same_chance() -> None:
    made = policy(PlacementTotals())
    chances = made.propensities([("*", f"offer=o{n}") for n in range(4)], [1.0] * 4, ("buyer",))
    assert np.abs(chances - 0.25).max() < 0.1
