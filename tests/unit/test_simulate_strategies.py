"""Offers in the simulated shop: they change what is said and nothing else, and what they do is found."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from producers.simulate.run import Options, Simulation
from producers.simulate.strategies import PLANTED, buyer, decision, drawn
from producers.simulate.targets import decisions_path
from producers.simulate.truth import Truth
from producers.simulate.world import World
from schemas.events import ORDER_COMPLETED, PRODUCT_REVIEWED
from schemas.outputs import Decision
from stream.core.opinions.strategies import NONE
from stream.settings import Settings
from training.evaluation import evaluations
from training.opinions.evaluate_strategies import judge, simulated

START = datetime(2026, 1, 1, tzinfo=UTC)


def without(event: dict[str, Any]) -> dict[str, Any]:
    """What strategies must not change."""
    hidden = {PRODUCT_REVIEWED: {"rating", "review_body"}, ORDER_COMPLETED: {"recommendation_id"}}
    some, properties = hidden.get(event.get("event", ""), ()), event.get("properties", {})
    return {**event, "properties": {name: value for name, value in properties.items() if name not in some}}


def test_orders_say_their_offer_reviews_say_its_effect_and_all_else_is_the_same() -> None:
    plain, world = World(11, 60, 60, START), World(11, 60, 60, START, strategies=True)
    before, after = list(plain.history()), list(world.history())
    assert [without(event) for event in after] == [without(event) for event in before]
    assert after != before and plain.truth().strategies == () and world.truth().strategies == PLANTED
    assert not any("recommendation_id" in event.get("properties", {}) for event in before)
    made = [(event, decision(PLANTED, event)) for event in after]
    for event, one in made:
        assert (one is not None) == (event.get("event") == ORDER_COMPLETED)
        if one is not None and one.offer is not None:
            assert one.recommendation_id == event["properties"]["recommendation_id"]
            assert one.offer.propensity == one.offer.candidates[one.offer.offer_id]
            assert one.user_id == event.get("userId", event["anonymousId"])
    ids = [one.recommendation_id for _, one in made if one is not None]
    assert len(set(ids)) == len(ids) > 100


def test_offers_are_drawn_with_the_chances_that_are_logged() -> None:
    for orders in (0, 9):
        counts = Counter(drawn(PLANTED, buyer(orders), f"o1-{n}-{orders}").offer_id for n in range(4_000))
        for one in PLANTED:
            assert counts[one.offer_id] / 4_000 == pytest.approx(one.chance[buyer(orders)], abs=0.03)
    assert all(sum(one.chance[who] for one in PLANTED) == pytest.approx(1) for who in ("newer", "regular"))


def test_decisions_and_truth_are_written_beside_the_events(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl.gz"
    options = Options(shoppers=20, days=20, items=150, to=str(file), start=START, strategies=True)
    report = Simulation(Settings(home=tmp_path), options).run()
    lines = gzip.decompress(decisions_path(file).read_bytes()).splitlines()
    said = [msgspec.json.decode(line, type=Decision) for line in lines]
    assert len(said) == report.by_name[ORDER_COMPLETED] > 10
    assert Truth.load(tmp_path).strategies == PLANTED
    assert Truth.load(tmp_path).with_mess([]).with_falls([]).strategies == PLANTED
    plain = msgspec.structs.replace(options, to=str(tmp_path / "plain.jsonl"), strategies=False)
    Simulation(Settings(home=tmp_path), plain).run()
    assert not decisions_path(tmp_path / "plain.jsonl").exists()


def test_what_pleases_newer_and_displeases_regular_buyers_is_found() -> None:
    world = World(seed=7, shoppers=450, days=120, items=100, strategies=True)
    said = simulated(world)
    under = Counter(one.row.strategy for one in said)
    assert set(under) == {NONE, *(f"offer/checkout/{one.offer_id}" for one in PLANTED)}
    assert all(one.row.decided_ms <= one.row.said_ms for one in said)
    found = judge(said, world.start + timedelta(days=84), world.truth(), 7)
    ours, planted = found.effects["clickwake"], found.planted
    assert planted.shape == (6,) and (planted[0] > 0 > planted[3]) and planted[1] < 0 < planted[4]
    assert ours[1, 2] < 0 and ours[3, 2] < 0, ours  # the large ones: express for newer, vouchers for regular buyers
    assert ours[0, 0] > ours[3, 2], "the same voucher pleases some more than others"
    assert ((ours[:, 1] <= planted) & (planted <= ours[:, 2])).sum() >= 5


def test_the_evaluation_prints_one_object(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = {"worlds": 1.0, "shoppers": 80.0, "days": 60.0, "seed": 3.0}
    evaluations.main("strategies", "simulated", Path("demo"), None, True, tmp_path, options)
    found = json.loads(capsys.readouterr().out)
    assert found["served"] == "clickwake" and found["n"] > 10
    wanted = {"rmse", "rmse_expected", "coverage", "effects.mae", "effects.found", "effects.wrong"}
    assert wanted <= found["models"]["clickwake"].keys()
    assert {"user + item, shrunk", "gradient boosting, same features", "means by buyer"} <= found["models"].keys()
    assert "Opinions whose strategy was decided after the split" in (tmp_path / "index.html").read_text()
