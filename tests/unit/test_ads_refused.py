"""Who refuses advertising gets none: from the event through the fold to what is delivered and offered, and back again."""

from __future__ import annotations

from datetime import time, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.outputs import DeliveryRecord
from stream.adapters.kafka.refusals import AdsRefusals
from stream.api.offers import AskOffer, AskOfferFor, Person
from stream.core.segments.segment_fields import values_of
from stream.core.segments.segment_rules import Rule, RulesFile, compiled
from stream.core.user import identity
from stream.core.user.state import ADS_REFUSED, Stated, UserState
from stream.delivery.rules import Delivery
from stream.partition import NOBODY, unpack
from stream.settings import Settings
from tests.support.fakes import DAY_MS, T0_MS, FakeModels, FakeRecord, event
from tests.unit.test_deliveries import CART, SAVE, TEA, alert, change, due
from tests.unit.test_deliveries import Bench as Deliveries
from tests.unit.test_forgetting import erase
from tests.unit.test_offer_desk import Desk
from tests.unit.test_personalize import IDENTITY, Bench

NO, YES = {"consent": {"ads": False}}, {"consent": {"ads": True}}
BY_DEFAULT = {"consent": {"ads": False, "assumed": True}}
OFFERS = """
holdout: 0.2
placements: [{name: home, control: plain}, {name: bare}, {name: help, purpose: service}]
offers:
  - {id: plain, placements: [home]}
  - {id: summer, placements: [home]}
  - {id: rich, placements: [home, bare, help]}
"""
SERVICE = Delivery(name="parcels", channel="crm", about="segment", segment="full cart", purpose="service")


class Told(AdsRefusals):
    """Reads what a bench has sent, instead of a broker's topic."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(Settings())
        self.bench, self.read = bench, 0

    async def caught_up(self) -> None:
        sent = [one for topic, _, one in self.bench.outputs.sent if topic == "ads-refusals"][self.read :]
        self.read += len(sent)
        self._note([FakeRecord(one.key, one.value, 0, 0) for one in sent])


class Shop:
    """The personalize worker's core, and deliveries to users of tenant `t` by what it says."""

    def __init__(self, *deliveries: Delivery) -> None:
        self.bench, self.heard = Bench(FakeModels()), 0
        self.bench.items()
        self.deliveries = Deliveries(*deliveries, refusals=Told(self.bench))  # type: ignore[arg-type]

    async def says(self, user: str, at: int, context: dict[str, Any] | None, **more: Any) -> None:
        await self.bench.feed(event(user=user, ts_ms=T0_MS + at, id=f"{user}{at}", context=context, **more))

    async def hear(self) -> None:
        """The messages about identities that are new."""
        sent = self.bench.outputs.sent
        while new := [one.value for topic, _, one in sent if topic == "identity" and one.value][self.heard :]:
            self.heard += len(new)
            await self.bench.feed(*new, source=IDENTITY)

    async def take(self, *said: Any) -> list[DeliveryRecord]:
        """What became of it."""
        before = len(self.deliveries.logged)
        await self.deliveries.made.take(said)
        return self.deliveries.logged[before:]

    def state(self, user: str) -> UserState:
        raw = self.bench.store.values.get(f"t/{user}".encode())
        return unpack(raw) if raw else NOBODY


def of(made: Any, user: str = "u", **changed: Any) -> Any:
    return msgspec.structs.replace(made, tenant="t", user_id=user, **changed)


def reminder(number: int, user: str = "u") -> Any:
    return of(due(), user, reminder_id=f"n{number}")


async def statuses(shop: Shop, *said: Any) -> list[str]:
    return [one.status for one in await shop.take(*said)]


async def test_advertising_of_every_kind_ends_with_the_event_and_begins_again_with_a_later_one() -> None:
    free = Delivery(name="free", channel="crm", about="churn", cap_days=0, purpose="service")
    shop = Shop(SAVE, TEA, CART, SERVICE, free)
    several = [of(alert()), of(due()), of(change())]
    await shop.says("u", 1, NO)
    became = [(one.delivery, one.status, one.reason) for one in await shop.take(*several)]
    refused = [(name, "suppressed", ADS_REFUSED) for name in ("save", "again", "cart")]
    assert sorted(became) == sorted([*refused, ("free", "sent", ""), ("parcels", "sent", "")])
    assert {one.delivery for one in shop.deliveries.sent} == {"free", "parcels"}
    await shop.says("u", 3, YES)
    await shop.says("u", 2, NO)  # came late
    await shop.says("v", 4, None)
    assert await statuses(shop, reminder(2), reminder(3, "v")) == ["sent", "sent"]
    assert await shop.take(*several) == [], "what was suppressed is not made up for"


async def test_the_event_that_causes_a_message_is_not_overtaken_by_it() -> None:
    shop = Shop(CART)
    await shop.says("u", 1, NO, name="Product Added")
    await shop.bench.close()
    topics = [topic for topic, _, _ in shop.bench.outputs.sent]
    assert topics[0] == "ads-refusals" and {"recommendations", "personalize-state"} <= set(topics[1:])


async def test_what_waits_for_the_morning_is_judged_anew() -> None:
    shop = Shop(Delivery(name="night", channel="crm", about="reminder", quiet=(time(11), time(13))))
    assert await statuses(shop, reminder(1), reminder(2, "v")) == ["deferred", "deferred"]
    await shop.says("u", 1, NO)
    shop.deliveries.now += timedelta(hours=1)
    await shop.deliveries.made.take_due()
    assert {one.user_id: (one.status, one.reason) for one in shop.deliveries.logged[2:]} == {
        "u": ("suppressed", ADS_REFUSED), "v": ("sent", "")}  # fmt: skip


async def test_a_refusal_on_a_device_is_its_owners_and_a_later_word_counts() -> None:
    shop = Shop(TEA)
    await shop.bench.feed(event(user="", userId=None, anonymousId="d", ts_ms=T0_MS, id="d1", context=NO))
    await shop.says("u", 5, None, anonymousId="d")
    await shop.hear()
    assert await statuses(shop, reminder(1)) == ["suppressed"]
    await shop.bench.feed(identity.encode(identity.Answer("t", "d", "u", ())), source=IDENTITY)
    assert await statuses(shop, reminder(2)) == ["suppressed"], "an older answer takes nothing back"
    await shop.says("u", 6, YES)
    assert await statuses(shop, reminder(3)) == ["sent"]


async def test_who_refuses_a_profile_too_is_known_for_the_refusal_alone() -> None:
    shop = Shop(SAVE)
    await shop.says("u", 1, NO)
    await shop.says("u", 2, {"consent": {"personalization": False}})
    await shop.says("v", 3, {"consent": {"personalization": False, "ads": False}})
    await shop.bench.close()
    for user, at in (("u", 1), ("v", 3)):
        assert shop.state(user) == UserState(ads=shop.state(user).ads)
        assert (shop.state(user).ads.refused, shop.state(user).ads.ts_ms) == (True, T0_MS + at)
    assert await statuses(shop, of(alert()), of(alert(), "v", alert_id="a2")) == ["suppressed", "suppressed"]
    await shop.says("v", 2, {"consent": {"personalization": False, "ads": True}})
    await shop.says("u", 4, {"consent": {"personalization": False, "ads": True}})
    await shop.bench.close()
    assert [shop.state(one).ads.refused for one in "uv"] == [False, True]


async def test_a_device_keeps_its_refusal_when_its_owner_wants_no_profile_and_loses_it_with_an_erasure() -> None:
    for erased in (False, True):
        shop = Shop()
        await shop.bench.feed(event(user="", userId=None, anonymousId="d", ts_ms=T0_MS, id="d1", context=NO))
        await shop.says("u", 5, None, anonymousId="d")
        await shop.hear()
        await shop.bench.close()
        if erased:
            await erase(shop.bench, "u", T0_MS + DAY_MS)
        else:
            await shop.says("u", 6, {"consent": {"personalization": False}})
            await shop.hear()
            await shop.bench.close()
        for one in ("u", "d"):
            assert shop.state(one) == (NOBODY if erased else UserState(ads=Stated(True, T0_MS, True)))


async def test_erasure_takes_the_refusal_and_late_words_do_not_bring_it_back() -> None:
    shop = Shop(SAVE)
    await shop.says("u", 1, NO)
    await shop.bench.close()
    await erase(shop.bench, "u", T0_MS + DAY_MS)
    await shop.says("u", 2, NO)
    await shop.says("u", 3, {"consent": {"personalization": False, "ads": False}})
    await shop.bench.close()
    assert shop.state("u") == NOBODY
    last = [one for topic, _, one in shop.bench.outputs.sent if topic == "ads-refusals"][-1]
    assert (last.key, last.value) == (b"t/u", None)


async def test_what_the_tenant_assumes_takes_nobodys_word_back() -> None:
    shop = Shop(TEA)
    await shop.says("u", 1, BY_DEFAULT)
    assert await statuses(shop, reminder(1)) == ["suppressed"]
    await shop.says("u", 2, YES)
    await shop.says("u", 3, BY_DEFAULT, name="Order Completed")  # from the shop's server
    assert await statuses(shop, reminder(2)) == ["sent"]


def test_a_segment_of_those_who_refuse() -> None:
    rules = compiled(RulesFile(segments=(Rule(name="no ads", when="ads_refused"),), lifecycle=False))
    refusing, silent = UserState(ads=Stated(True, 5, True)), UserState()
    assert [rules.inside("t", values_of(one, T0_MS, 0.0)) for one in (refusing, silent)] == [["no ads"], []]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = Desk(tmp_path)
    (tmp_path / "offers.yml").write_text(OFFERS)
    return made


async def test_who_refuses_is_offered_the_control_or_nothing_and_the_log_says_why(desk: Desk) -> None:
    shop = Shop()
    for number in range(60):
        await shop.says(f"u{number}", 1, NO)
    await shop.bench.close()
    for number in range(60):
        who = Person("t", f"u{number}", shop.state(f"u{number}"), T0_MS)
        home = await desk.offer(who, AskOffer(placement="home"))
        assert home.offer is not None and home.offer.offer_id == "plain" and home.propensity == 1.0
        assert home.refused == dict.fromkeys(("summer", "rich"), ADS_REFUSED)
        bare = await desk.offer(who, AskOffer(placement="bare"))
        assert (bare.offer, bare.refused, bare.propensity) == (None, {"rich": ADS_REFUSED}, 1.0)
        service = await desk.offer(who, AskOffer(placement="help"))
        assert service.holdout or (service.offer is not None and service.offer.offer_id == "rich")
        texts = await desk.offer(who, AskOfferFor(user_id=who.user, placement="bare", texts=("first", "second")))
        assert texts.offer is not None and texts.offer.text == "first" and list(texts.refused.values()) == [ADS_REFUSED]
    assert any(one.holdout for one in (decision.offer for decision in desk.log) if one), "the held-out among them too"
    logged = [decision.offer for decision in desk.log if decision.offer and decision.offer.placement == "home"]
    assert all(one.refused["summer"] == ADS_REFUSED and one.offer_id == "plain" for one in logged) and len(logged) == 60
    await shop.says("u1", 2, YES)
    await shop.bench.close()
    again = await desk.offer(Person("t", "u1", shop.state("u1"), T0_MS), AskOffer(placement="home"))
    assert ADS_REFUSED not in again.refused.values()
