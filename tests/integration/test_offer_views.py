"""The views about offers on a real ClickHouse engine: a hand-computed example, and the same again after a replay."""

from __future__ import annotations

import json
import random
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from math import log, sqrt
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from clickhouse_connect.driver.client import Client
from typer.testing import CliRunner

from clickwake.cli import app
from schemas import topics
from schemas.outputs import Decision, OfferBudget, OfferCost, Offered
from stream.adapters.database import clickhouse as adapter
from stream.settings import ClickHouse, Settings
from stream.sink.batch import freeze
from stream.sink.consumer import row_functions
from stream.sink.writer import Writer

T0 = datetime(2026, 3, 1, 10, tzinfo=UTC)
DAY = 24 * 60
RHO2 = 0.085**2


def decided(minute: int, ident: str, user: str, offer: str, *, out: bool = False) -> Any:
    made = Decision(
        recommendation_id=f"offer-{ident}", tenant="shop", user_id=user, scenario="offer", items=(), candidates=2,
        as_of_event_id="m", as_of_ts=T0, served_at=T0 + timedelta(minutes=minute), model_version="p", offer=Offered(
            placement="home", offer_id=offer, propensity=0.75, candidates={offer: 0.75}, refused={"late": "over"},
            holdout=out, rules_version="r", policy_version="p", reward="click", window_ms=3_600_000,
            about=("*", f"offer={offer}"), groups=("buyer",), cost=OfferCost(impression=0.1, click=0.5, order=2.0),
            budget=OfferBudget(impressions_per_day=100 + minute, money=50.0), text=words(offer, minute)))  # fmt: skip
    return _record(topics.DECISIONS, minute, msgspec.json.encode(made))


def words(offer: str, minute: int) -> str:
    """An offer's words are changed after an hour."""
    return f"{offer}, {'then' if minute > 60 else 'first'}" if offer else ""


def did(minute: int, ident: str, user: str, name: str, revenue: float | None = None, *, later: int = 0, **more: Any) -> Any:
    """`later`: minutes from what was done to the log."""
    properties: dict[str, Any] = {"recommendation_id": f"offer-{ident}"} if ident else {}
    if revenue is not None:
        properties |= {"revenue": revenue, "order_id": f"o{minute}"}
    value = {"messageId": f"{user}-{minute}", "type": "track", "event": name, "userId": user, "tenant": "shop",
             "timestamp": (T0 + timedelta(minutes=minute - later)).isoformat(), "properties": properties, **more}
    return _record(topics.EVENTS, minute, msgspec.json.encode(value))


def _record(topic: topics.Topic, minute: int, value: bytes) -> Any:
    return SimpleNamespace(topic=topic.name("clickwake"), partition=0, offset=minute, key=b"shop/k", value=value,
                           timestamp=round((T0 + timedelta(minutes=minute)).timestamp() * 1000), headers=())  # fmt: skip


SEEN, CLICKED, ORDERED = "Promotion Viewed", "Promotion Clicked", "Order Completed"
RECORDS = [
    decided(0, "d1", "u1", "summer"), decided(1, "d2", "u2", "summer"), decided(2, "d3", "u3", "plain", out=True),
    decided(3, "d4", "u4", "", out=True), decided(10, "d5", "u1", "plain"), decided(20, "d6", "u5", "summer"),
    decided(31, "d1", "u1", "plain"),  # by another replica: not what was served first
    did(3, "d3", "u3", SEEN), did(4, "d2", "u2", CLICKED),  # a click implies that it was seen
    did(5, "d1", "u1", SEEN), did(6, "d1", "u1", CLICKED), did(7, "d1", "u1", SEEN),
    did(8, "d1", "u1", ORDERED, 30.0), did(9, "d1", "u1", ORDERED, 99.0),  # the second order counts for the effect alone
    did(21, "d6", "u9", SEEN),  # somebody else
    did(30, "", "u4", ORDERED, 12.0), did(71, "d5", "u1", SEEN),  # when its hour was over
    did(22, "", "u5", ORDERED, 70.0, lane="import"), did(23, "", "u5", ORDERED, 80.0, later=4),  # made before it was offered
    did(32, "", "u4", "Order Refunded", 2.0),
    decided(DAY, "d7", "u2", "summer"), did(DAY + 1, "d7", "u2", SEEN),
]  # fmt: skip


@pytest.fixture
def client(clickhouse: ClickHouse) -> Iterator[Client]:
    settings = clickhouse.model_copy(update={"database": f"offers_{uuid.uuid4().hex[:8]}"})
    adapter.migrate(settings, wait_s=10)
    writer = Writer(settings, threading.Event())
    with closing(writer), closing(adapter.connect(settings, wait_s=10)) as client:
        client.store = lambda records: writer.write(freeze(records, row_functions(Settings())))
        yield client
        client.command(f"DROP DATABASE {settings.database}")


def everything(client: Client) -> dict[str, list[tuple[Any, ...]]]:
    names = ("offer_outcomes", "offer_exposure", "offer_results", "offer_effect", "offer_spend")
    return {name: sorted((tuple(row) for row in client.query(f"SELECT * FROM {name}").result_rows), key=repr)  # noqa: S608
            for name in names}  # fmt: skip


def at(minute: int) -> datetime:
    return T0 + timedelta(minutes=minute)


def half(successes: int, n: int, alpha: float) -> float:
    """Half the width of an asymptotic confidence sequence."""
    p = (successes + 1) / (n + 2)
    return sqrt(p * (1 - p) * 2 * (n * RHO2 + 1) / (n * n * RHO2) * log(sqrt(n * RHO2 + 1) / alpha))


def ends(successes: int, n: int) -> tuple[float, float, float]:
    width = half(successes, n, 0.05)
    return successes / n, max(0.0, successes / n - width), min(1.0, successes / n + width)


def test_who_saw_what_how_often_with_what_effect_and_what_it_cost(client: Client) -> None:
    assert client.store(RECORDS) == []
    found = everything(client)
    outcomes = {row[1]: row[10:15] for row in found["offer_outcomes"]}
    said = {row[1]: row[15:] for row in found["offer_outcomes"]}
    assert said["offer-d1"] == ("summer, first", ["*", "offer=summer"]) and said["offer-d4"][0] == ""
    assert outcomes.keys() == {f"offer-d{n}" for n in range(1, 8)}
    assert outcomes["offer-d1"] == (at(5), at(6), at(8), 30.0, 2.6)
    assert outcomes["offer-d2"] == (at(4), at(4), None, 0.0, 0.6)
    assert outcomes["offer-d3"] == (at(3), None, None, 0.0, 0.1)
    assert all(outcomes[f"offer-d{n}"] == (None, None, None, 0.0, 0.0) for n in (4, 5, 6))
    assert found["offer_exposure"] == [
        ("shop", "u1", "home", "summer", 1, 1, 1, at(5), at(5), "summer, first"),
        ("shop", "u2", "home", "summer", 2, 1, 0, at(4), at(DAY + 1), "summer, then"),
        ("shop", "u3", "home", "plain", 1, 0, 0, at(3), at(3), "plain, first"),
    ]  # fmt: skip
    results = {row[2:4]: row[4:17] for row in found["offer_results"]}
    assert {row[2:4]: row[17] for row in found["offer_results"]} == {
        ("summer", False): "summer, then", ("plain", True): "plain, first", ("plain", False): "plain, first"}
    assert results["summer", False][:6] == (4, 2, 3, 2, 1, 30.0) and results["summer", False][6] == pytest.approx(3.3)
    assert results["summer", False][7:] == pytest.approx((*ends(2, 3), *ends(1, 3)))
    assert results["plain", True][:6] == (1, 1, 1, 0, 0, 0.0)
    assert results["plain", False] == (1, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0)
    (effect,) = found["offer_effect"]  # u1 of u1, u2, u5 ordered, and u4 of u3, u4
    width = half(1, 3, 0.025) + half(1, 2, 0.025)
    assert effect[:4] == ("shop", "home", 3, 2)
    low, high = max(-1.0, -1 / 6 - width), min(1.0, -1 / 6 + width)
    assert effect[4:] == pytest.approx((1 / 3, 1 / 2, 43.0, 5.0, -1 / 6, low, high))
    spend = {row[1:3]: row[3:] for row in found["offer_spend"]}
    assert spend["summer", date(2026, 3, 1)] == pytest.approx((2, 3.2, 2, 3.2, 100 + DAY, None, None, 50.0))
    assert spend["summer", date(2026, 3, 2)] == pytest.approx((1, 0.1, 3, 3.3, 100 + DAY, None, None, 50.0))
    assert spend["plain", date(2026, 3, 1)] == pytest.approx((1, 0.1, 1, 0.1, 110, None, None, 50.0)) and len(spend) == 3


def test_a_replay_changes_nothing(client: Client) -> None:
    client.store(RECORDS)
    before = everything(client)
    for start in range(0, len(RECORDS), 5):
        client.store(RECORDS[start : start + 5])
    assert everything(client) == before


RATES = {"red": 0.5, "blue": 0.2}
CHANCES = {"red": 0.6, "blue": 0.4}
PEOPLE = 400  # a tenth of them held out, who see red


def drawn(minute: int, draw: random.Random) -> list[Any]:
    """A person's decision, their seeing it, and their click if it is to come."""
    user, out = f"p{minute}", minute % 10 == 0
    chances = {"red": 1.0} if out else CHANCES
    offer = draw.choices(list(chances), list(chances.values()))[0]
    made = msgspec.json.decode(decided(minute, f"w{minute}", user, offer, out=out).value, type=Decision)
    assert made.offer is not None
    shown = msgspec.structs.replace(made.offer, propensity=chances[offer], candidates=chances, groups=())
    found = [_record(topics.DECISIONS, minute, msgspec.json.encode(msgspec.structs.replace(made, offer=shown))),
             did(minute, f"w{minute}", user, SEEN)]
    if draw.random() < RATES[offer]:
        clicked = did(minute, f"w{minute}", user, CLICKED)
        clicked.value = clicked.value.replace(f"{user}-{minute}".encode(), f"{user}-{minute}-click".encode())
        clicked.offset += 1_000_000
        found.append(clicked)
    return found


def test_the_shops_own_log_judges_policies_as_the_planted_truth_says(
    client: Client, clickhouse: ClickHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the people within the period asked about; who has not seen it, or whose window is open, does not count."""
    draw = random.Random(4)
    records = [one for number in range(PEOPLE) for one in drawn(number, draw)]
    last = round((datetime.now(UTC) - T0).total_seconds() / 60)  # this minute: its window is open
    records += [decided(1, "unseen", "q1", "red"), decided(last, "open", "q2", "red"), did(last, "open", "q2", SEEN)]
    assert client.store(records) == []
    monkeypatch.setenv("CLICKWAKE_CLICKHOUSE__PORT", str(clickhouse.port))
    monkeypatch.setenv("CLICKWAKE_CLICKHOUSE__DATABASE", str(client.database))

    def asked(*more: str) -> dict[str, Any]:
        done = CliRunner().invoke(app, ["evaluate", "promotions", "shop", "--tenant", "shop", "--json", *more])
        assert done.exit_code == 0, done.output
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    found = asked()
    assert found["n"] == 360 and found["settings"]["home: impressions held out"] == 40
    truth = {"always red": 0.5, "always blue": 0.2, "all alike": 0.35, "as served": 0.6 * 0.5 + 0.4 * 0.2}
    for name, value in truth.items():
        for estimator in ("IPS", "SNIPS", "DR"):
            one = found["models"][name][f"home.{estimator}"]
            assert one["low"] <= value <= one["high"], (name, estimator, one)
    held = found["models"]["held out"]["home.rate"]
    assert held["low"] <= 0.5 <= held["high"]
    assert found["settings"]["home: always blue"] == "worse" and found["settings"]["home: always red"] == "better"
    half = asked("--placement", "home", "--until", at(PEOPLE // 2).strftime("%Y-%m-%dT%H:%M:%S"))
    assert half["n"] == 180
    done = CliRunner().invoke(app, ["evaluate", "promotions", "shop", "--tenant", "nobody"])
    assert done.exit_code == 1 and "tenant nobody has no decision" in " ".join(done.output.split()), done.output
