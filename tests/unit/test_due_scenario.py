"""What the user buys again about now: as reminders have it, but whenever it is asked, and by the rules of a request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stream.core.survival.repurchase import FEATURES, Repurchase
from stream.outbox import utc
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
    assert second["reasons"] == [{"event_id": f"i5-{n}", "item_id": "i5", "share": 0.25} for n in (3, 2, 1)]
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


async def test_each_order_of_an_item_has_the_same_share_of_its_chance(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    async def why(item: str, reasons: int) -> tuple[int, dict[str, float]]:
        await asked(shop, 12.0, monkeypatch)
        found = (await shop.get(f"/v1/why/v/{item}", params={"scenario": "due", "reasons": reasons})).json()
        assert {one["share"] for one in found["reasons"]} <= {0.25}
        return len(found["reasons"]), found["rest"]

    assert await why("i1", 3) == (3, {"others": 0.25}) and await why("i1", 100) == (4, {})
    assert await why("i3", 3) == (0, {}), "what was never bought is not due"
    states: Any = shop.api.replica
    states.states["t/v"].ring = [touch for touch in states.states["t/v"].ring if touch.event_id == "i1-3"]
    assert await why("i1", 3) == (1, {"forgotten": 0.75}) and await why("i5", 3) == (0, {"forgotten": 1.0})


async def test_without_a_model_of_it_or_orders_it_says_so(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = (await shop.get("/v1/recommendations/u1", params={"scenario": "due"})).json()
    assert (nobody["items"], nobody["degraded"]) == ([], "no_history")
    shop.api.ranking.serving.current.repurchase = None
    said = await asked(shop, 12.0, monkeypatch)
    assert (said["items"], said["degraded"]) == ([], "counts_only")


OF_TWO_CATEGORIES = [
    event(user="w", item=item, id=f"w-{item}", ts_ms=T0_MS + day * DAY_MS, name="Order Completed")
    for day, item in ((0, "i0"), (0, "i1"), (5, "i5"), (20, "i4"))
]  # fmt: skip


@pytest.fixture
def of_two(shop: Shop) -> Shop:
    """Of c1 an interval of 7.5 days is expected after the 5th, of c0 one of 15 days after the 20th."""
    states: Any = shop.api.replica
    states.states["t/w"] = folded(OF_TWO_CATEGORIES)
    return shop


async def asked_of_w(shop: Shop, day: float, monkeypatch: pytest.MonkeyPatch, **params: Any) -> dict[str, Any]:
    monkeypatch.setattr(shop.api.replica, "clock_ms", lambda user_key: T0_MS + round(day * DAY_MS))
    answer = await shop.get("/v1/recommendations/w", params={"scenario": "due_categories"} | params)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_category_is_due_from_its_window_on_and_answered_with_the_best_of_it(
    of_two: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    early = await asked_of_w(of_two, 20, monkeypatch)
    assert [one["category"] for one in early["categories"]] == ["c1"]
    assert {one["item_id"] for one in early["items"]} == {"i1", "i5", "i9"}, "all of it, whatever the cap is else"
    both = await asked_of_w(of_two, 30, monkeypatch)
    assert (both["degraded"], both["scenario"]) == (None, "due_categories")
    chance = 14 / (14 + 2.718281828**2)  # of each item that was bought; of a category, that of either
    assert [(one["category"], one["interval_days"], one["last_bought_ts"], one["window_from"], one["probability"])
            for one in both["categories"]] == [
        ("c0", 15.0, day(20), day(28), pytest.approx(1 - (1 - chance) ** 2, abs=1e-5)),
        ("c1", 7.5, day(5), day(8.75), pytest.approx(1 - (1 - chance) ** 2, abs=1e-5))]  # fmt: skip
    (of_c0, of_c1) = (sum(one["score"] for one in both["items"] if one["item_id"] in items)
                      for items in (("i0", "i4", "i8"), ("i1", "i5", "i9")))  # fmt: skip
    assert of_c0 == pytest.approx(of_c1, abs=1e-5), "categories as likely share alike, however popular their items are"
    alone = {one["item_id"]: one for one in (await of_two.get("/v1/recommendations/w", params={
        "exclude": "none", "filter": "category == 'c1'"})).json()["items"]}  # fmt: skip
    ranked = [one for one in both["items"] if one["item_id"] in alone]
    assert [one["item_id"] for one in ranked] == [*alone], "within a category as in the user's own"
    assert [one["reasons"] for one in ranked] == [one["reasons"] for one in alone.values()] and ranked[0]["reasons"]
    # by the model alone the likelier is what was bought last
    of_two.api.ranking.serving.current.repurchase = Repurchase(
        weights=tuple(-1.0 * (name == "log_item_silence") for name in FEATURES), constant=0.0, shape=1.0, usual_days=10.0)
    later = await asked_of_w(of_two, 30, monkeypatch)
    chances = [one["probability"] for one in later["categories"]]
    assert chances == sorted(chances, reverse=True) and chances[0] > chances[1]
    assert [one["category"] for one in later["categories"]] == ["c0", "c1"]


def day(number: float) -> str:
    return utc(T0_MS + round(number * DAY_MS)).isoformat().replace("+00:00", "Z")


async def test_a_request_chooses_from_what_is_due_of_a_category_and_why_says_so(
    of_two: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    new = await asked_of_w(of_two, 30, monkeypatch, exclude="bought")
    assert {one["item_id"] for one in new["items"]} == {"i8", "i9"}
    chance = new["categories"][0]["probability"]
    assert len({one["score"] for one in new["items"]}) == 1, "each is all that may be chosen of a category as likely"
    assert chance == new["categories"][1]["probability"]
    assert [one["item_id"] for one in (await asked_of_w(of_two, 30, monkeypatch, boost="2 if item_id == 'i9' else 1",
                                                        exclude="bought"))["items"]] == ["i9", "i8"]  # fmt: skip
    assert len((await asked_of_w(of_two, 30, monkeypatch, category_cap=1))["items"]) == 2
    of_c1 = (await asked_of_w(of_two, 30, monkeypatch, filter="category == 'c1'"))["items"]
    assert sum(one["score"] for one in of_c1) == pytest.approx(0.5, abs=0.001), "the other half is of c0"
    none = await asked_of_w(of_two, 30, monkeypatch, filter="False")
    assert (none["items"], len(none["categories"])) == ([], 2)
    why = (await of_two.get("/v1/why/w/i2", params={"scenario": "due_categories"})).json()
    assert (why["removed_by"], why["score"]) == (["it is of no category that is due"], 0.0)
    (logged,) = {one.scenario for one in of_two.logged()}
    assert logged == "due_categories"


async def test_of_due_categories_nobody_and_no_model_are_told_apart(of_two: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    for user, degraded in (("nobody", "no_history"), ("u1", "no_history"), ("v", None)):
        said = (await of_two.get(f"/v1/recommendations/{user}", params={"scenario": "due_categories"})).json()
        assert (said["items"], said["categories"], said["degraded"]) == ([], [], degraded), user
    of_two.api.ranking.serving.current.repurchase = None
    said = await asked_of_w(of_two, 30, monkeypatch)
    assert (said["items"], said["categories"], said["degraded"]) == ([], [], "counts_only")
    assert (await of_two.get("/v1/recommendations/w")).json()["categories"] == []
