"""Opinions and the strategies they came of, on a real engine: hand-computed, the same after a replay, the same as the plain
join of a simulated shop, and what the commands say of it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from clickwake import strategies as command
from producers.simulate.strategies import decision
from producers.simulate.world import World
from schemas import topics
from schemas.erasure import Erased
from schemas.outputs import Decision, DeliveryRecord, Offered, SegmentChange
from stream.adapters.database.strategies import read
from stream.adapters.models.opinion_reader import Read
from stream.core.opinions.strategies import NONE, learn
from stream.insights import Listener, opinion
from stream.settings import Settings
from tests.integration.test_sink_tables import event
from tests.support.database import Database, on
from tests.unit.test_insights import NOW_MS, Part
from training.evaluation.evaluations import Request
from training.opinions.evaluate_strategies import run, simulated

ORDER, CLICK = "Order Completed", "Product Clicked"


def at(day: int, hour: int = 12) -> datetime:
    return datetime(2026, 1, day, hour, tzinfo=UTC)


def said(ident: str, day: int, user: str, item: str = "mug", satisfaction: float | None = 1.0,
         **more: Any) -> dict[str, Any]:  # fmt: skip
    return {"opinion_id": ident, "tenant": "shop", "user_id": user, "event_id": f"m-{ident}", "source": "review",
            "lane": "live", "said_at": at(day), "item_id": item, "brand": "", "language": "en",
            "satisfaction": satisfaction, "stars": None, "stars_read": None, "p_satisfied": None, "aspects": [],
            "telling": "", "model_version": "", **more}  # fmt: skip


def offered(ident: str, user: str, offer: str, day: int, propensity: float) -> dict[str, Any]:
    return msgspec.to_builtins(Decision(
        recommendation_id=f"offer-{ident}", tenant="shop", user_id=user, scenario="offer", items=(), candidates=2,
        as_of_event_id="m", as_of_ts=None, served_at=at(day, 9), model_version="p", offer=Offered(
            placement="home", offer_id=offer, propensity=propensity, candidates={}, refused={}, holdout=False,
            rules_version="r", policy_version="p", reward="click", window_ms=3_600_000)))  # fmt: skip


def sent(user: str, status: str, day: int) -> dict[str, Any]:
    return msgspec.to_builtins(DeliveryRecord(
        delivery_id=f"d-{user}", tenant="shop", user_id=user, delivery="save them", channel="crm", about_kind="churn-alert",
        about_id="x", status=status, at=at(day, 9), decided_at=at(day, 8), propensity=0.75))  # type: ignore[arg-type]  # fmt: skip


def moved(user: str, segment: str, number: int, day: int) -> dict[str, Any]:
    return msgspec.to_builtins(SegmentChange(
        change_id=f"{user}-{segment}-{number}", tenant="shop", user_id=user, segment=segment,
        change="entered" if number % 2 else "left", number=number, values={}, as_of_event_id="m", as_of_ts=at(day),
        rules_version="r", model_version=""))  # fmt: skip


def did(ident: str, day: int, user: str, name: str, item: str = "mug", offer: str = "") -> dict[str, Any]:
    sent_back = {"recommendation_id": f"offer-{offer}"} if offer else {}
    products = {"order_id": f"o-{ident}", "products": [{"product_id": item}]} if name == ORDER else {"product_id": item}
    return event(ident, f"{day:02}T10:00", user, name, properties={**products, **sent_back})


OPINIONS = [
    said("a", 8, "u1"), said("b", 6, "u2", "cup", 0.25), said("c", 9, "u3"), said("d", 9, "u4"), said("e", 10, "u5"),
    said("f", 6, "u6"), said("g", 6, "u7"), said("h", 6, "u1", source="ticket"), said("i", 6, "u1", satisfaction=None),
    said("j", 6, "u1", ""),
]  # fmt: skip
EVENTS = [
    did("1", 5, "u1", ORDER, offer="d1"), did("2", 7, "u1", CLICK, offer="d2"),  # an order counts before a later click
    did("3", 5, "u2", CLICK, "cup", "d3"), did("4", 9, "u2", ORDER, "cup", "d4"),  # the order came after the opinion
    did("5", 6, "u3", ORDER), did("6", 6, "u4", ORDER),  # within a week of the message, and of the lot against one
    did("7", 9, "u5", ORDER),  # later than that
    did("8", 5, "u7", ORDER, offer="d1"),  # with somebody else's id
]  # fmt: skip
DECISIONS = [offered("d1", "u1", "summer", 5, 0.75), offered("d2", "u1", "plain", 7, 0.5),
             offered("d3", "u2", "plain", 5, 0.25), offered("d4", "u2", "summer", 9, 0.5)]  # fmt: skip
DELIVERIES = [sent("u3", "sent", 5), sent("u4", "held_out", 5), sent("u5", "sent", 1)]
SEGMENTS = [moved("u1", "new", 1, 1), moved("u1", "new", 2, 6), moved("u1", "buyers", 1, 7), moved("u3", "buyers", 1, 2)]
ITEMS = [{"item_id": "mug", "tenant": "shop", "title": "Mug", "category": "Kitchen > Tableware"}]


def records(offset: int) -> list[Any]:
    every = ((topics.OPINIONS, OPINIONS), (topics.EVENTS, EVENTS), (topics.DECISIONS, DECISIONS),
             (topics.DELIVERIES, DELIVERIES), (topics.SEGMENT_CHANGES, SEGMENTS), (topics.ITEMS, ITEMS))  # fmt: skip
    return [record for topic, values in every for record in on(topic, values, offset)]


def test_each_opinion_has_the_strategy_by_which_its_user_came(database: Database) -> None:
    for again in range(2):  # the second time as a replay would: the same ids at other offsets
        database.store(records(100 * again))
        found = database.rows("SELECT opinion_id, strategy, context, propensity, decided_at, groups, category "
                              "FROM strategy_opinions ORDER BY opinion_id")  # fmt: skip
        assert found == [
            ("a", "offer/home/summer", "placement/home", 0.75, at(5, 9), ["new"], "Kitchen"),
            ("b", "offer/home/plain", "placement/home", 0.25, at(5, 9), [], ""),
            ("c", "delivery/save them", "delivery/save them", 0.75, at(5, 8), ["buyers"], "Kitchen"),
            ("d", "held out/save them", "delivery/save them", 0.25, at(5, 8), [], "Kitchen"),
            ("e", "none", "", None, at(9, 10), [], "Kitchen"),
            ("f", "none", "", None, at(6), [], "Kitchen"),
            ("g", "none", "", None, at(5, 10), [], "Kitchen"),
        ]  # fmt: skip


def test_of_one_user_who_is_asked_about_only_their_groups_are_read(database: Database) -> None:
    refused = event("r", "10T10:00", "u3", "page", context={"consent": {"personalization": False}})
    database.store([*records(0), *on(topics.EVENTS, [refused], 900)])
    everybody = read(database.settings, "shop")
    assert everybody.users == {"u1": ("buyers",), "u3": ("buyers",)} and everybody.refusing == {"u3"}
    assert read(database.settings, "shop", "u1") == everybody._replace(users={"u1": ("buyers",)}, refusing=frozenset())
    assert read(database.settings, "shop", "u3") == everybody._replace(users={"u3": ("buyers",)})


def test_a_simulated_shop_is_joined_as_in_the_evaluation_and_the_commands_answer(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(5, 120, 90, items=100, strategies=True)
    events = list(world.history())
    made = [one for one in (decision(world.truth().strategies, event) for event in events) if one is not None]
    kept = [one for one in events if one.get("event") in ("Product Reviewed", ORDER)]
    listener = Listener(300_000, Erased(), lambda tenant, item: "")
    heard = listener.hear([Part(b"k", msgspec.json.encode(one), at, NOW_MS) for at, one in enumerate(kept)])
    opinions = [opinion(one, Read("en", ((one.said.stars or 1.0) - 1) / 4, None, None, (), "", ""))[1] for one in heard]
    database.store([*on(topics.OPINIONS, [msgspec.to_builtins(one) for one in opinions]), *on(topics.EVENTS, kept),
                    *on(topics.DECISIONS, [msgspec.to_builtins(one) for one in made]),
                    *on(topics.ITEMS, [msgspec.to_builtins(one) for one in world.items()])])  # fmt: skip
    known = read(database.settings, world.shop.tenant)
    assert sorted(known.rows) == sorted(one.row._replace(groups=()) for one in simulated(world)) and len(known.rows) > 100
    assert known.items["p00000"] == (world.items()[0].category or "").split(" >")[0] and not known.users

    for name in ("host", "port", "database"):
        monkeypatch.setenv(f"CLICKWAKE_CLICKHOUSE__{name.upper()}", str(getattr(database.settings, name)))
    assert command.run_compare("demo", None, [], None, 0.05, None, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert {one["strategy"] for one in found["arms"]} == {row.strategy for row in known.rows}
    assert sum(one["opinions"] for one in found["arms"]) == found["opinions"] == len(known.rows)
    assert {one["strategy"] for one in found["arms"] if not one["by_lot"]} >= {NONE}
    assert found["seed"]["opinions_each"] > 0 and "placements:" in found["yaml"]
    user, item = known.rows[0].user, known.rows[0].item
    assert command.run_predict("demo", user, item, as_json=True) == 0
    one = json.loads(capsys.readouterr().out)
    assert one["user_leaning"] == pytest.approx(learn(known.rows).leanings.user(user))
    assert all(0 <= arm["satisfaction"]["low"] <= arm["satisfaction"]["value"] <= arm["satisfaction"]["high"] <= 1
               for arm in one["arms"])  # fmt: skip
    assert_stored_as_predicted(database, user, item, one["arms"], capsys)
    assert_who_refuses_a_profile_is_left_out(database, item, capsys)
    request = Request(Settings(clickhouse=database.settings), "clickhouse", Path("demo"), None, lambda text: None)
    judged = run(request).comparison
    assert 20 < judged.n < len(known.rows) and judged.models["clickwake"]["rmse"].value < 0.5
    assert not any(measure.startswith("effects") for measure in judged.models["clickwake"])

    assert command.run_compare("demo", "nobody", [], None, 0.05, None, as_json=False) == 1
    assert "nobody is in the segment" in capsys.readouterr().err
    assert command.run_compare("empty", None, [], None, 0.05, None, as_json=True) == 1
    assert "no opinions about items yet" in json.loads(capsys.readouterr().out)["error"]


def assert_stored_as_predicted(
    database: Database, user: str, item: str, arms: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """All who spoke, with two items: what `predict` says of one of them, with the model; and the newest in the view."""
    known = read(database.settings, "demo")
    other = next(row.item for row in known.rows if row.item != item)
    stored = []
    for _ in range(2):
        assert command.run_store("demo", None, [item, other], None, as_json=True) == 0
        stored.append(json.loads(capsys.readouterr().out))
    first, second = stored
    assert first == second and first["rows"] == len({row.user for row in known.rows}) * 2 * len(arms)
    assert database.rows("SELECT count() FROM satisfaction_predictions FINAL") == [(2 * first["rows"],)], "append only"
    assert database.rows("SELECT count(), uniqExact(model_version), any(model_version), any(learned_until) "
                         "FROM satisfaction_predicted") == [
        (first["rows"], 1, first["model_version"], datetime.fromtimestamp(known.rows[-1].said_ms / 1000, UTC))]  # fmt: skip
    rows = database.client.query(
        "SELECT strategy, satisfaction, low, high, opinions, by_lot, as_of_ts FROM satisfaction_predicted "
        "WHERE user_id = {user:String} AND item_id = {item:String}", parameters={"user": user, "item": item},
    ).result_rows  # fmt: skip
    spoke = max(row.said_ms for row in known.rows if row.user == user)
    assert [row[6].timestamp() * 1000 for row in rows] == pytest.approx([spoke] * len(rows))
    found = {row[0]: row[1:6] for row in rows}
    for arm in arms:
        mean = arm["satisfaction"]
        assert found[arm["strategy"]][:3] == pytest.approx((mean["value"], mean["low"], mean["high"]))
        assert found[arm["strategy"]][3:] == (arm["opinions"], arm["by_lot"])
    assert len(found) == len(arms)


def assert_who_refuses_a_profile_is_left_out(database: Database, item: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By their newest event: of two who have refused, one came back without a word. What they said counts as before."""
    before = read(database.settings, "demo")
    everybody = sorted({row.user for row in before.rows})
    refuses, returned = everybody[:2]
    no: dict[str, Any] = {"consent": {"personalization": False}}
    days: tuple[tuple[str, int, dict[str, Any]], ...] = (
        (refuses, 1, {}), (refuses, 2, no), (returned, 1, no), (returned, 2, {}))  # fmt: skip
    said = [event(f"{day}-{user}", "", user, "page", tenant="demo", timestamp=f"2026-06-0{day}T10:00:00Z", context=context)
            for user, day, context in days]  # fmt: skip
    database.store(on(topics.EVENTS, said, 100_000))
    known = read(database.settings, "demo")
    assert known == before._replace(refusing=frozenset({refuses}))
    stored = ("SELECT DISTINCT user_id FROM satisfaction_predictions WHERE predicted_at > {since:DateTime64(3)} "
              "ORDER BY user_id")  # fmt: skip
    ((since,),) = database.rows("SELECT max(predicted_at) FROM satisfaction_predictions")
    assert command.run_store("demo", None, [item], None, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["users"] == len(everybody) - 1
    found = database.client.query(stored, parameters={"since": since}).result_rows
    assert [user for (user,) in found] == [one for one in everybody if one != refuses]
    assert command.run_predict("demo", refuses, item, as_json=True) == 1
    assert "refuses a profile" in json.loads(capsys.readouterr().out)["error"]
