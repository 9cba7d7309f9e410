"""One rich value of each thing that travels or is stored, and how it is written and read."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from schemas.catalog import Item, ItemVector
from schemas.dead_letter import DeadLetter, Failure, Message, Source
from schemas.erasure import Erasure
from schemas.events import Event
from schemas.offers import OfferTotals, Open, PlacementTotals, Positions, UserOffers
from schemas.opinions import Aspect, Opinion, Quote, SatisfactionAlert
from schemas.outputs import (
    AdsRefusal,
    Applied,
    ChurnAlert,
    Complements,
    Decision,
    DeliveryRecord,
    Expected,
    OfferBudget,
    OfferCap,
    OfferCost,
    Offered,
    Reason,
    Recommendation,
    RecommendedItem,
    Reminder,
    SegmentChange,
)
from schemas.release import FileEntry, Manifest, ModelRelease, Verdict
from stream.core.opinions.complaints import Tickets
from stream.core.opinions.satisfaction import Place, Subject
from stream.core.ranking.counts import ItemCount
from stream.core.segments.audience import Audience, Cluster
from stream.core.statistics.changes import Run
from stream.core.user import identity
from stream.core.user.state import (
    Activity,
    Alert,
    ItemStat,
    Kind,
    Placed,
    Reminded,
    Reminders,
    Stated,
    Touch,
    Trait,
    UserState,
)
from stream.core.user.traits import Said
from stream.partition import Accounts, Brought, Meta, pack, unpack

VERSION: str = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["version"]
AT = datetime(2026, 11, 25, 10, 30, tzinfo=UTC)
DAY = 20_782


class Form(NamedTuple):
    sample: Any
    write: Callable[[Any], bytes]
    read: Callable[[bytes], Any]


def _json(sample: Any) -> Form:
    return Form(sample, msgspec.json.encode, msgspec.json.Decoder(type(sample)).decode)


def _msgpack(sample: Any) -> Form:
    return Form(sample, msgspec.msgpack.encode, msgspec.msgpack.Decoder(type(sample)).decode)


def _identity(sample: identity.Message) -> Form:
    return Form(sample, identity.encode, identity.decode)


EVENT = {
    "messageId": "m1", "type": "track", "event": "Order Completed", "userId": "u1", "anonymousId": "a1", "tenant": "shop",
    "lane": "live", "timestamp": "2026-11-25T10:30:00.125Z", "originalTimestamp": "2026-11-25T10:29:59Z",
    "properties": {"order_id": "o1", "revenue": 19.0, "currency": "EUR", "coupon": "AUTUMN", "recommendation_id": "r1",
                   "products": [{"product_id": "sku-1", "price": 9.5, "quantity": 2, "name": "Red mug", "brand": "Clay"}]},
    "context": {"sessionId": "s1", "consent": {"analytics": True, "personalization": True, "ads": False}},
}  # fmt: skip
STATE = UserState(
    ring=[Touch(1_795_602_600_000, "m0", "sku-1", Kind.VIEW, 0.0),
          Touch(1_795_602_600_125, "m1", "sku-1", Kind.ORDER, 19.0)],
    items={"sku-1": ItemStat(2, 1, 1_795_602_600_125, 1_795_602_600_125, 0)},
    seen={7: 1_795_602_600_000, 9: 1_795_602_600_125},
    seen_horizon_ms=5, first_ts_ms=1_795_602_600_000, last_ts_ms=1_795_602_600_125, last_event_id="m1", events=2, orders=1,
    revenue=19.0, days=[DAY], order_days=[DAY], alert=Alert(True, False, 3, 2, "m0"), recommended_ts_ms=4, due_ts_ms=6,
    linked={"a1": [Touch(1_795_602_500_000, "m-1", "sku-2", Kind.CLICK, 0.0)]}, claims=[(8, "u1")], claimed={"a1": 8},
    known=True, segments={"lifecycle/new": (1, 1_795_602_600_000)},
    reminders=Reminders(10, 9, [Reminded("sku-1", "Kitchen", 1, 9, 12, 8.5, 0.5, "v1", "bought")], 1),
    placed=Placed("v1", 77, "garden spade"), put_event_id="m0", ads=Stated(True, 1_795_602_600_000, True),
    activities=[Activity(1_795_602_600_000, 7, "Products Searched", "red mug")],
    linked_activities={"a1": [Activity(1_795_602_500_000, 5, "page", "/", {"size": "XL"})]},
    ordered=[Touch(1_795_602_400_000, "m-2", "sku-3", Kind.ORDER, 4.5)], ordered_ts_ms=1_795_602_600_125,
    since_ms=1_795_602_500_000, traits={"plan": Trait(1_795_602_600_000, 7, "pro")},
    linked_traits={"a1": {"size": Trait(1_795_602_500_000, 5, "XL")}}, forgot_ms=1_795_602_400_000,
)  # fmt: skip
ITEM = Item(item_id="sku-1", tenant="shop", title="Red mug", brand="Clay", category="Kitchen", description="Warm.",
            pinned=True)  # fmt: skip
REASON = Reason(event_id="m1", item_id="sku-1", share=0.5)
FORMS: dict[str, Form] = {
    "event.json": Form(EVENT, msgspec.json.encode, msgspec.json.Decoder(Event).decode),
    "item.json": _json(ITEM),
    "item-vector.msgpack": _msgpack(ItemVector(space="s", content_hash="h", vector=b"\0\0\x80?", item=ITEM)),
    "recommendation.json": _json(Recommendation(
        recommendation_id="r1", tenant="shop", user_id="u1", as_of_event_id="m1", as_of_ts=AT, model_version="v1",
        items=(RecommendedItem(item_id="sku-2", score=0.25, source="links", reasons=(REASON,)),))),
    "complements.json": _json(Complements(
        recommendation_id="r3", tenant="shop", user_id="u1", basket=("sku-1",), as_of_event_id="m1", as_of_ts=AT,
        items=(RecommendedItem(item_id="sku-2", score=0.25, source="complements",
                               reasons=(Reason(event_id="", item_id="sku-1", share=1.0),)),), model_version="v1")),
    "churn-alert.json": _json(ChurnAlert(
        alert_id="c1", tenant="shop", user_id="u1", state="raised", probability=0.83, horizon_days=14, interval=(0.7, 0.9),
        reasons=("silent for 9 days",), last_event_ts=AT, as_of_ts=AT, model_version="v1", features=(0.5, 2.25),
        effects={"save": (0.25, 0.125)})),
    "decision.json": _json(Decision(
        recommendation_id="r2", tenant="shop", user_id="u1", scenario="similar", candidates=7, as_of_event_id="m1",
        as_of_ts=AT, served_at=AT, model_version="v1", request={"filter": "price < 5"}, experiment="caps", arm="five",
        items=(RecommendedItem(item_id="sku-2", score=0.25, source="similar", reasons=(REASON,)),),
        applied=Applied(n=5, exclude="seen", category_cap=5, filter="price < 5", explore=0.25), propensities=(0.75,))),
    "offer-decision.json": _json(Decision(
        recommendation_id="offer-r3", tenant="shop", user_id="u1", scenario="offer", candidates=2, as_of_event_id="m1",
        as_of_ts=AT, served_at=AT, model_version="ab", items=(), offer=Offered(
            placement="home", offer_id="summer", propensity=0.75, candidates={"summer": 0.75, "plain": 0.25},
            refused={"late": "over since 2026-11-01 00:00 UTC"}, holdout=False, rules_version="cd", policy_version="ab",
            reward="click", window_ms=86_400_000, about=("*", "offer=summer", "tag=new"), groups=("buyer",),
            cost=OfferCost(impression=0.01, click=0.2), budget=OfferBudget(impressions_per_day=100, money=9.5),
            cap=OfferCap(count=3, hours=24.0), text="20% off", instead="plain",
            instead_cap=OfferCap(count=2, hours=48.0)))),
    "segment-change.json": _json(SegmentChange(
        change_id="s1", tenant="shop", user_id="u1", segment="lifecycle/new", change="left", number=2,
        values={"days_since_first": 7.5}, as_of_event_id="m1", as_of_ts=AT, rules_version="ab", model_version="v1",
        profile_since=AT, forgotten=True)),
    "reminder.json": _json(Reminder(
        reminder_id="n1", tenant="shop", user_id="u1", state="due", item_id="sku-1", category="Kitchen", last_bought_ts=AT,
        interval_days=30.5, window_from=AT, window_to=AT, probability=0.4, reasons=("bought 23.0 days before",), as_of_ts=AT,
        model_version="v1")),
    "ads-refusal.json": _json(AdsRefusal(tenant="shop", user_id="u1", stated_at=AT)),
    "staff-delivery.json": _json(DeliveryRecord(
        delivery_id="d2", tenant="shop", user_id="", delivery="buyers", channel="team", about_kind="satisfaction-alert",
        about_id="a1", status="deferred", at=AT, until=AT, error="quiet hours", thing="brand/Clay",
        satisfaction_alert=SatisfactionAlert(
            alert_id="a1", tenant="shop", about="brand", name="Clay", state="raised", number=1, changed_at=AT, as_of_ts=AT,
            before=0.75, after=0.25, opinions_before=40, opinions_after=9, evidence=(), opinions_per_false_alarm=1000))),
    "delivery.json": _json(DeliveryRecord(
        delivery_id="d1", tenant="shop", user_id="u1", delivery="save", channel="crm", about_kind="churn-alert",
        about_id="c1", status="deferred", at=AT, attempts=3, until=AT, error="away", alert=ChurnAlert(
            alert_id="c1", tenant="shop", user_id="u1", state="raised", probability=0.83, horizon_days=14,
            interval=(0.7, 0.9), reasons=("silent for 9 days",), last_event_ts=AT, as_of_ts=AT, model_version="v1"),
        decided_at=AT, propensity=0.9, reason="expected gain 2.00, above 0.00",
        expected=Expected(value=20.0, cost=0.5, uplift=0.125, gain=2.0, model_version="v1"))),
    "opinion.json": _json(Opinion(
        opinion_id="o1", tenant="shop", user_id="u1", event_id="m1", source="review", lane="live", said_at=AT,
        item_id="sku-1", brand="Clay", language="en", satisfaction=0.25, stars=2.0, stars_read=1.75, p_satisfied=0.125,
        aspects=(Aspect(aspect="quality", words=("handle",), sentence="The handle broke.", p_satisfied=0.0625),),
        telling="The handle broke.", model_version="v1")),
    "satisfaction-alert.json": _json(SatisfactionAlert(
        alert_id="a1", tenant="shop", about="brand", name="Clay", state="raised", number=1, changed_at=AT, as_of_ts=AT,
        before=0.75, after=2.5, opinions_before=40, opinions_after=9, opinions_per_false_alarm=1000, reason="tickets",
        evidence=(Quote(opinion_id="o1", sentence="The handle broke.", satisfaction=None, said_at=AT),))),
    "satisfaction.msgpack": _msgpack(Subject(
        opinions=50, n=9, total=2.25, levels=[3, 3, 3, 0, 0], fall=Run(1.5, [1, 0, 0, 0, 0], 0.0, 7),
        raised=True, changes=1, seen=[7, 9], places=[Place(1, 5, "o1", 0.25)],
        tickets=Tickets({20_000: 3, 20_007: 1}, 20_000, 20_007, True, 0.5), tickets_last=[Place(1, 6, "o2", 0.0)])),
    "dead-letter.json": _json(DeadLetter(
        dead_letter_id="d1", tenant="shop", kind="undecodable", payload=b"{", payload_bytes=1, first_seen=AT, attempts=2,
        failure=Failure(timestamp=AT, messages=(Message(path="", keyword="json", message="truncated"),)),
        source=Source(topic="clickwake.events.v1", partition=1, offset=5))),
    "release.json": _json(ModelRelease(
        model_version="v1", uri="bundles/v1", manifest_sha256="ab", released_at=AT, reason="r")),
    "manifest.json": _json(Manifest(
        format_version=2, model_version="v1", parent="v0", created_at=AT, feature_version=1, text_space="s", text_dim=384,
        dim=128, tokenizer_sha256="cd", events_max=50, blend={"encoder": 0.5}, counts={"half_life_days": 14.0},
        churn={"raise_at": 0.8}, data_from=AT, data_to=AT, metrics={"users_all": 9.0},
        files={"churn.onnx": FileEntry(sha256="ef", bytes=3)}, uplift={"save": {"qini": 3.5}}, repurchase={"shape": 0.9})),
    "verdict.json": _json(Verdict(
        model_version="v1", against="v0", released=False, reason="worse", judged_at=AT, days_from=AT, days_to=AT, users=50,
        ahead={"ndcg@10": (-0.1, -0.2, -0.01)})),
    "placement-totals.msgpack": _msgpack(PlacementTotals(
        names=["*", "offer=summer"], gram=b"\2\0\0\0" + b"\1\0\0\0" * 3, moment=b"\1\0\0\0" * 2, outcomes=2, rewards=1,
        left_out=3, offers={"summer": OfferTotals(2, 1, 1, 19_000_000, 220_000, 1, 1, 0, {DAY: (2, 220_000)},
                                                  1, 1, 0, 2, 1, 1)})),
    "user-offers.msgpack": _msgpack(UserOffers(
        open={"offer-r3": Open("home", "summer", 5, 86_400_000, "click", ("*", "offer=summer"), ("buyer",),
                               (10_000, 200_000, 0), (3, 86_400_000), False, 3, "plain", (2, 172_800_000))},
        early=[("offer-r4", 1, 6, 0)], seen={"summer": [6]}, seen_until_ms={"summer": 86_400_006})),
    "positions.msgpack": _msgpack(Positions(offsets={"events": {0: 7}, "decisions": {0: 2}}, clocks_ms={0: 6},
                                             topic_ids={"events": "a"})),
    "audience.json": _json(Audience(
        users=90, clusters=(Cluster(id="c3", name="garden spade", terms=("garden", "spade"), users=30, items=("sku-1",),
                                    centroid=(0.6, 0.8)),),
        quantiles={"buyers": {"revenue": (1.0, 2.5)}}, measured={"silhouette_3": 0.5})),
    "state.msgpack": Form(STATE, pack, unpack),
    "partition.msgpack": _msgpack(Meta(
        offsets={"clickwake.events.v1": ("id", 41)}, clock_ms=7, live_since_ms=6, owed=[b"shop/u1"],
        marks={"clickwake.events.v1": 1_795_602_600_125}, reminding_since_ms=5,
        accounts=Accounts(40, {"folded": 1, "dropped:erased": 1}), ahead={b"shop/u2": Brought(43, {"folded": 2})},
        changelog="id")),
    "erasure.json": _json(Erasure(
        erasure_id="e1", tenant="shop", requested_at=AT, suppress=True, user_id="u1", devices=("a1",), receipt="{}",
        signature="c2ln")),
    "claim.msgpack": _identity(identity.Claim("shop", "a1", "u1", 8, "import")),
    "answer.msgpack": _identity(identity.Answer("shop", "a1", "u1", tuple(STATE.ring), STATE.ads, tuple(STATE.activities),
                                                STATE.traits, 7)),
    "erase.msgpack": _identity(identity.Erase("shop", "u1")),
    "forget.msgpack": _identity(identity.Forget("shop", holder="a1", other="u1", ads_stay=True, met_ms=8)),
    "recall.msgpack": _identity(identity.Recall("shop", "u1", (Said("plan", STATE.traits["plan"], 1_795_602_600_200),))),
    "item-count.msgpack": _msgpack(ItemCount(2.5, 7, {"sku-2": 1.0}, 7, 41, 1.5, 3.5)),
}  # fmt: skip
