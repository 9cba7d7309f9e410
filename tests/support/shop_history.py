"""A small shop with history, as the dashboard shows it: events, one of which cannot be read, offers with a hold-out,
opinions of a brand that fell, alerts about users who stay away, recommendations of an old model, who was in a segment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec
from kafka import KafkaProducer

from schemas import topics
from schemas.events import ms
from schemas.opinions import Opinion, Quote, SatisfactionAlert
from schemas.outputs import (
    ChurnAlert,
    Decision,
    OfferBudget,
    OfferCost,
    Offered,
    Recommendation,
    RecommendedItem,
    SegmentChange,
    output_id,
)
from schemas.topics import Topic
from stream.alerts import reasons
from stream.core.user.state import UserState
from stream.settings import Settings
from tests.support.cluster import produce_events
from tests.support.fakes import event

HOUR_MS = 3_600_000
EVENTS = 280  # of the shop, beside reactions to offers
SEGMENTS = "rfm: true\nsegments:\n  - {name: lookers, when: views_7d >= 2 and orders == 0}\n"
SAID = 11  # opinions and alerts about them
ALERTS = 4  # about users; personalize may raise others
OLD_MODEL = "20260101T000000Z-0a1b2c3d"
PLANTED = (topics.OPINIONS, topics.SATISFACTION_ALERTS, topics.CHURN_ALERTS, topics.RECOMMENDATIONS, topics.SEGMENT_CHANGES)


def tell(settings: Settings, now: datetime) -> int:
    """Put all of it on the topics; returns how many events can be read."""
    now_ms = ms(now)
    _send(settings, topics.DECISIONS, [(f"t/{one.user_id}", one) for one in decisions(now)])
    opinions = opinions_of_clay(now)
    _send(settings, topics.OPINIONS, [("t/Clay", one) for one in opinions])
    _send(settings, topics.SATISFACTION_ALERTS, [("t/Clay", clay_fell(now, opinions))])
    _send(settings, topics.CHURN_ALERTS, [(f"t/{one.user_id}", one) for one in stay_away(now)])
    _send(settings, topics.RECOMMENDATIONS, [(f"t/{one.user_id}", one) for one in recommended(now)])
    _send(settings, topics.SEGMENT_CHANGES, [(f"t/{one.user_id}", one) for one in looked(now)])
    spoilt = event(user="u1", id="m-spoilt", ts_ms=now_ms - HOUR_MS, properties={"product_id": "i1", "price": "9,50 €"})
    return produce_events(settings, [*events(now_ms), *reactions(now_ms), (b"t/u1", json.dumps(spoilt).encode())]) - 1


def _send(settings: Settings, topic: Topic, records: Sequence[tuple[str, Any]]) -> None:
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers, acks="all")
    for key, record in records:
        producer.send(topic.name(settings.kafka.topic_prefix), key=key.encode(), value=msgspec.json.encode(record)).get(30)
    producer.close()


def events(now_ms: int) -> list[dict[str, Any]]:
    """Three days of twelve users who look, put into the cart and buy, each the item of their number, an act in three hours;
    u11 buys without a checkout."""
    names = ["Product Viewed", "Product Viewed", "Product Added", "Checkout Started", "Order Completed"]
    by_one_click = [*names[:3], "Cart Viewed", "Order Completed"]
    return [event(user=f"u{n % 12}", item=f"i{n % 12}", id=f"m{n}", ts_ms=now_ms - 72 * HOUR_MS + n * HOUR_MS // 4,
                  name=(by_one_click if n % 12 == 11 else names)[(n // 12) % 5],
                  properties={"product_id": f"i{n % 12}", "price": 5.0})
            for n in range(EVENTS)]  # fmt: skip


def decisions(now: datetime) -> list[Decision]:
    """Offers to twelve users: four are held out and see nothing."""
    return [Decision(
        recommendation_id=f"offer-{n}", tenant="t", user_id=f"u{n}", scenario="offer", items=(), candidates=2,
        as_of_event_id="m", as_of_ts=now, served_at=now, model_version="p",
        offer=Offered(
            placement="home", offer_id="" if n % 3 == 0 else f"offer {n % 3}", propensity=0.5, candidates={}, refused={},
            holdout=n % 3 == 0, rules_version="r", policy_version="p", reward="click", window_ms=HOUR_MS, about=(),
            groups=(), cost=OfferCost(impression=0.1, click=0.5), budget=OfferBudget(impressions=8, money=10.0)),
    ) for n in range(12)]  # fmt: skip


def reactions(now_ms: int) -> list[dict[str, Any]]:
    """Who saw an offer, and who clicked: 4 of "offer 1", all of whom click, and 4 of "offer 2"."""
    shown = [n for n in range(12) if n % 3]
    named = [(n, "Promotion Viewed") for n in shown] + [(n, "Promotion Clicked") for n in shown if n % 3 == 1]
    return [event(user=f"u{n}", id=f"{name} {n}", item=None, name=name, ts_ms=now_ms - 3 * HOUR_MS,
                  properties={"recommendation_id": f"offer-{n}"}) for n, name in named]  # fmt: skip


def opinions_of_clay(now: datetime) -> list[Opinion]:
    """Ten, of an item of the brand Clay, the last five of them bad."""
    return [Opinion(
        opinion_id=f"o{n}", tenant="t", user_id=f"u{n}", event_id=f"said {n}", source="review", lane="live",
        said_at=now - timedelta(days=10 - n), item_id="i1", brand="Clay", language="en",
        satisfaction=1.0 if n < 5 else 0.25, stars=5.0 if n < 5 else 2.0, stars_read=None, p_satisfied=None, aspects=(),
        telling="The handle broke." if n == 9 else "It is blue.", model_version="",
    ) for n in range(10)]  # fmt: skip


def clay_fell(now: datetime, opinions: Sequence[Opinion]) -> SatisfactionAlert:
    return SatisfactionAlert(
        alert_id="a1", tenant="t", about="brand", name="Clay", state="raised", number=1, changed_at=opinions[5].said_at,
        as_of_ts=now, before=1.0, after=0.25, opinions_before=5, opinions_after=5, opinions_per_false_alarm=1000,
        evidence=(Quote(opinion_id="o9", sentence="The handle broke.", satisfaction=0.25, said_at=now),))


def stay_away(now: datetime) -> list[ChurnAlert]:
    """Alerts of two days ago with every reason there is: u0 and u2 came back within the day that was meant, of u12 nobody
    has heard since, and u1 was given a fortnight that is not over."""
    alerts = (("u0", 1, UserState(days=[1, 3, 5], orders=2)), ("u1", 14, UserState(days=[1], orders=1)),
              ("u2", 1, UserState(days=[1, 2])), ("u12", 1, UserState(days=[1])))  # fmt: skip
    return [ChurnAlert(
        alert_id=f"c{n}", tenant="t", user_id=user, state="raised", probability=0.8, horizon_days=days,
        interval=(0.7, 0.9), reasons=reasons(state, 9.0), last_event_ts=now - timedelta(days=11),
        as_of_ts=now - timedelta(days=2), model_version=OLD_MODEL,
    ) for n, (user, days, state) in enumerate(alerts)]  # fmt: skip


def recommended_at(now: datetime) -> tuple[datetime, datetime]:
    """A day apart, and both more than a day before the newest event."""
    return now - timedelta(hours=70.5), now - timedelta(hours=46.5)


def recommended(now: datetime) -> list[Recommendation]:
    """By a model of old to four users, on a first day and on a second: an item each. It is the one they touch within a day,
    though not within the hour, for one of them at first and then for three, and what they touch they order; the others'
    nobody but its own user touches."""
    return [Recommendation(
        recommendation_id=output_id("recommendation", "t", f"{day} {n}", OLD_MODEL), tenant="t", user_id=f"u{n}",
        items=(RecommendedItem(item_id=f"i{n if n < hits else n + 4}", score=0.5, source="model"),),
        as_of_event_id=f"{day} {n}", as_of_ts=at, model_version=OLD_MODEL,
    ) for day, (at, hits) in enumerate(zip(recommended_at(now), (1, 3), strict=True)) for n in range(4)]  # fmt: skip


def looked(now: datetime) -> list[SegmentChange]:
    """Of users without events, so that nobody else moves them: u12 was in `lookers` from five days to four days ago, u13 has
    been in since half a day after u12 came."""
    moves: list[tuple[str, Literal["entered", "left"], int, int]] = [
        ("u12", "entered", 1, 120), ("u13", "entered", 1, 108), ("u12", "left", 2, 96)]  # fmt: skip
    return [SegmentChange(
        change_id=output_id("segment-change", "t", user, "lookers", str(number)), tenant="t", user_id=user,
        segment="lookers", change=change, number=number, values={"views_7d": 2.0, "orders": 0.0}, as_of_event_id="m",
        as_of_ts=now - timedelta(hours=hours), rules_version="r", model_version=OLD_MODEL,
    ) for user, change, number, hours in moves]  # fmt: skip
