"""What the user buys again about now: as reminders have it, but whenever it is asked, and by the rules of a request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stream.core.repurchase import FEATURES, Repurchase
from tests.support.fakes import DAY_MS, T0_MS, event
from tests.support.read_api import Shop, folded

EVERY_10_DAYS = [
    event(user="v", item=item, id=f"{item}-{n}", ts_ms=T0_MS + (n * 10 + late) * DAY_MS, name="Order Completed")
    for n in range(4) for item, late in (("i1", 0), ("i10", 0), ("i5", 6))
]  # fmt: skip
LAST_MS = T0_MS + 30 * DAY_MS  # of i1 and i10; i5 comes 6 days later


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    shop = Shop(tmp_path / "home")
    shop.api.ranking.serving.current.repurchase = Repurchase(
        weights=(0.0,) * len(FEATURES), constant=-2.0, shape=1.0, usual_days=10.0)
    states: Any = shop.api.replica
    states.states["t/v"] = folded(sorted(EVERY_10_DAYS, key=lambda one: one["timestamp"]))
    return shop


async def asked(shop: Shop, days: float, monkeypatch: pytest.MonkeyPatch, **params: Any) -> dict[str, Any]:
    """So many days after i1 was bought last."""
    monkeypatch.setattr(shop.api.replica, "clock_ms", lambda user_key: LAST_MS + round(days * DAY_MS))
    found: dict[str, Any] = (await shop.get("/v1/recommendations/v", params={"scenario": "due"} | params)).json()
    return found


async def test_what_is_due_stays_due_until_it_is_bought(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    # 10 days are expected: from day 5 on, as short intervals are not due before their half
    for days, due in ((6.0, ["i1"]), (10.9, ["i1"]), (12.0, ["i1", "i5"]), (60.0, ["i1", "i5"])):
        said = await asked(shop, days, monkeypatch)
        assert [one["item_id"] for one in said["items"]] == due, days
        assert said["degraded"] is None and all(one["source"] == "due" for one in said["items"])
    _, second = (await asked(shop, 12.0, monkeypatch))["items"]
    assert second["reasons"] == [{"event_id": "i5-3", "item_id": "i5", "share": 1.0}]
    # the odds are exp(-2) a day, by this model whenever it is asked; a window has 14 days
    assert second["score"] == pytest.approx(14 / (14 + 2.718281828**2), abs=1e-4)
    again = event(user="v", item="i1", id="i1-4", ts_ms=LAST_MS + 12 * DAY_MS, name="Order Completed")
    states: Any = shop.api.replica
    states.states["t/v"] = folded(sorted([*EVERY_10_DAYS, again], key=lambda one: one["timestamp"]))
    assert [one["item_id"] for one in (await asked(shop, 13.0, monkeypatch))["items"]] == ["i5"]


async def test_the_rules_of_a_request_apply_and_why_says_so(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    said = await asked(shop, 12.0, monkeypatch, filter="item_id != 'i5'")
    assert [one["item_id"] for one in said["items"]] == ["i1"]
    assert (await asked(shop, 12.0, monkeypatch, exclude="bought"))["items"] == []
    why = (await shop.get("/v1/why/v/i10", params={"scenario": "due"})).json()
    assert why["removed_by"] == ["out of stock"] and why["score"] > 0, "it is due all the same"


async def test_without_a_model_of_it_or_orders_it_says_so(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = (await shop.get("/v1/recommendations/u1", params={"scenario": "due"})).json()
    assert (nobody["items"], nobody["degraded"]) == ([], "no_history")
    shop.api.ranking.serving.current.repurchase = None
    said = await asked(shop, 12.0, monkeypatch)
    assert (said["items"], said["degraded"]) == ([], "counts_only")
