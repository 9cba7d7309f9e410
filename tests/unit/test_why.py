"""Why an item is shown to a user, or is not: each reason, and that it never contradicts what the same request recommends."""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.outputs import Applied
from stream.api.requests import Ask
from stream.core.ranking.counts import ItemCount
from stream.core.ranking.scenarios import Scenario
from tests.support.fakes import T0_MS, event
from tests.support.read_api import ITEMS, Shop, folded

EXPERIMENTS = """
experiments:
  - name: caps
    scenario: for_you
    arms: [{name: cheap, filter: price < 6}, {name: new, explore: 0.4, category_cap: 1, exclude: none}]
  - name: unlike
    scenario: trending
    arms: [{name: unlike, diversity: 0.6}, {name: mixed, diversity: 0.6}]
  - name: rising
    scenario: popular
    arms: [{name: dear, filter: price > 1, boost: price}]
"""


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "home")


async def why(shop: Shop, user: str, item: str, **params: Any) -> dict[str, Any]:
    answer = await shop.get(f"/v1/why/{user}/{item}", params=params)
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    assert said["shown"] == (said["position"] is not None) == (not said["removed_by"])
    return said


async def test_again_is_of_what_was_bought_whatever_is_left_out_else(shop: Shop) -> None:
    for params in ({}, {"exclude": "bought"}):
        answer = await shop.get("/v1/recommendations/u2", params={"scenario": "again", **params})
        assert [one["item_id"] for one in answer.json()["items"]] == ["i3"]
        assert (await why(shop, "u2", "i3", scenario="again", **params))["shown"]


@pytest.mark.parametrize(("user", "item", "params", "reason"), [
    ("u2", "i3", {}, "the user bought it"),
    ("u1", "i1", {"exclude": "seen"}, "the user dealt with it"),
    ("u1", "i10", {}, "out of stock"),
    ("u1", "i11", {}, "blocked in the catalog"),
    ("u1", "i4", {"filter": "price < 3"}, "the request's filter leaves it out"),
    ("u1", "i4", {"scenario": "again"}, "the user never bought it"),
    ("u1", "i4", {"scenario": "similar", "items": "i4,i5"}, "it is what was asked about"),
    ("u1", "i4", {"scenario": "complements", "items": "i2"}, "nothing given speaks for it"),
    ("u1", "i9", {"scenario": "trending"}, "it does not rise"),
    ("u1", "i9", {"scenario": "due"}, "it is not due"),
    ("u1", "i9", {"scenario": "due_categories"}, "it is of no category that is due"),
    ("u1", "i9", {"scenario": "popular", "n": "2"}, "its place is 10, 2 are shown"),
    ("u1", "i4", {"scenario": "popular", "category_cap": "1"}, "its category has 1 before it, more are not shown at once"),
])
async def test_what_is_not_shown_has_its_reason(
    shop: Shop, user: str, item: str, params: dict[str, str], reason: str
) -> None:
    said = await why(shop, user, item, **params)
    assert said["removed_by"] == [reason] and not said["shown"]
    assert (said["place"] is None) == (not reason.startswith(("its place", "its category")))


async def test_an_id_with_a_comma_can_be_asked_about(shop: Shop) -> None:
    shop.also_known_as("1,5")
    for items in (["1,5", ""], ["1,5", "i4"]):
        said = await why(shop, "u1", "1,5", scenario="similar", items=items)
        assert said["removed_by"] == ["it is what was asked about"]


async def test_several_reasons_are_all_said(shop: Shop) -> None:
    said = await why(shop, "u1", "i10", scenario="again", filter="price < 3")
    assert said["removed_by"] == ["out of stock", "the request's filter leaves it out", "the user never bought it"]


async def test_the_catalog_says_what_it_no_longer_has_and_who_nobody_knows(shop: Shop) -> None:
    shop.index.remove("i5")
    shop.index.set_counts("only in events", 0, ItemCount(popularity=1.0, ts_ms=T0_MS))
    assert (await why(shop, "u1", "i5"))["removed_by"] == ["removed from the catalog"]
    assert (await why(shop, "u1", "only in events"))["removed_by"] == ["the catalog does not have it"]
    refused = await shop.get("/v1/why/u1/zzz")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_item")
    bad = await shop.get("/v1/why/u1/i1", params={"n": 1_000})
    assert (bad.status_code, bad.json()["error"]["messages"][0]["path"]) == (400, "n")


async def test_pinned_items_push_out_what_has_the_better_place(tmp_path: Path) -> None:
    pinned = [msgspec.structs.replace(one, pinned=one.item_id == "i9") for one in ITEMS]
    shop = Shop(tmp_path / "home", items=pinned)
    first = await why(shop, "nobody", "i9", scenario="popular", n=2)
    assert (first["position"], first["place"], first["source"]) == (1, 10, "pinned")
    second = await why(shop, "nobody", "i1", scenario="popular", n=2)
    assert second["removed_by"] == ["its place is 2, but pinned items come first and 2 are shown"]


async def test_what_is_like_what_is_shown_has_its_reason(tmp_path: Path) -> None:
    """i1 is i0 again under another name; i2 is pinned."""
    pinned = [msgspec.structs.replace(one, pinned=one.item_id == "i2") for one in ITEMS]
    for items, others in ((ITEMS, "and they are"), (pinned, "pinned items first, the others")):
        shop = Shop(tmp_path / "home", items=items)
        shop.index.put(items[1], shop.index.matrix[0])
        params = {"scenario": "popular", "exclude": "none", "n": 3, "category_cap": 12}
        assert (await why(shop, "nobody", "i1", **params))["shown"], "by score it is the second"
        said = await why(shop, "nobody", "i1", diversity=0.9, **params)
        assert said["removed_by"] == [f"its place is 2, 3 are shown, {others} chosen to differ (diversity 0.9): it is most "
                                      "like 'i0'"]  # fmt: skip
        shown = (await shop.get("/v1/recommendations/nobody", params=params | {"diversity": 0.9})).json()["items"]
        assert "i0" in {one["item_id"] for one in shown} and (shown[0]["source"] == "pinned") == (items is pinned)
    assert shop.logged()[-1].applied == Applied(n=3, exclude="none", category_cap=12, diversity=0.9)


async def test_it_speaks_of_the_arm_that_the_user_is_in(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "home", EXPERIMENTS)
    arm_of = {f"v{n}": (await shop.get(f"/v1/recommendations/v{n}")).json()["arm"] for n in range(20)}
    one = next(user for user, arm in arm_of.items() if arm == "cheap")
    cheap = await why(shop, one, "i8")
    assert (cheap["experiment"], cheap["arm"], cheap["scenario"]) == ("caps", "cheap", "for_you")
    assert cheap["removed_by"] == ["the filter of the experiment's arm 'cheap' leaves it out"]
    own = await why(shop, one, "i8", filter="price > 2")
    assert not any("filter" in words for words in own["removed_by"]), "what a request says itself comes first"
    explored = 0
    for user in (user for user, arm in arm_of.items() if arm == "new"):
        found = [await why(shop, user, item.item_id, n=6, category_cap=6) for item in ITEMS]
        replaced = [one["item_id"] for one in found if any("to learn about it" in words for words in one["removed_by"])]
        put_in = [one["item_id"] for one in found if one["source"] == "explore"]
        assert len(replaced) == len(put_in), "who is put in takes another's place"
        explored += len(put_in)
    assert explored > 0


async def test_all_events_that_speak_for_an_item_are_listed_and_what_is_left_is_named(shop: Shop) -> None:
    states: Any = shop.api.replica
    states.states["t/v"] = folded([event(user="v", item=f"i{n % 6}", id=f"v{n}", ts_ms=T0_MS + n) for n in range(60)])
    few, all_of_them = await why(shop, "v", "i2"), await why(shop, "v", "i2", reasons=100)
    assert len(few["reasons"]) == 3 < len(all_of_them["reasons"]) and all_of_them["reasons"][:3] == few["reasons"]
    shares = [one["share"] for one in all_of_them["reasons"]]
    assert shares == sorted(shares, reverse=True) and min(shares) >= 0.001
    assert few["rest"]["others"] == pytest.approx(sum(shares[3:]) + all_of_them["rest"].get("others", 0), abs=0.001)
    assert few["rest"]["popularity"] == pytest.approx(few["shares"]["popularity"], abs=0.001)
    nobody = await why(shop, "nobody", "i2")
    assert (nobody["reasons"], nobody["rest"]) == ([], {"popularity": 1.0})
    popular, rises_not = await why(shop, "v", "i0", scenario="popular"), await why(shop, "v", "i9", scenario="trending")
    assert (popular["reasons"], popular["rest"], rises_not["rest"]) == ([], {"popularity": 1.0}, {})
    alike = {most: await why(shop, "v", "i9", scenario="similar", items="i1,i2,i3,i4,i5", reasons=most) for most in (1, 5)}
    shares = [one["share"] for one in alike[5]["reasons"]]
    assert len(shares) > 1 and sum(shares) == pytest.approx(1, abs=0.001)
    assert alike[1]["rest"]["others"] == pytest.approx(1 - shares[0], abs=0.001)
    refused = await shop.get("/v1/why/v/i2", params={"reasons": 0})
    assert (refused.status_code, refused.json()["error"]["messages"][0]["path"]) == (400, "reasons")
    assert (await shop.get("/v1/recommendations/v", params={"reasons": 5})).status_code == 400, "there they are in the log"


async def test_what_is_asked_of_the_catalog_comes_along(shop: Shop) -> None:
    assert (await why(shop, "u1", "i4", fields="title,price"))["item"] == {"title": "thing 4", "price": 4.0}
    assert (await why(shop, "u1", "i4"))["item"] is None


@cache
def experimenting() -> Shop:
    return Shop(Path(mkdtemp()) / "home", EXPERIMENTS)


ASKED = st.builds(
    Ask, scenario=st.sampled_from(get_args(Scenario)),
    n=st.integers(1, 12), items=st.lists(st.sampled_from([one.item_id for one in ITEMS]), min_size=1, max_size=3).map(tuple),
    filter=st.sampled_from([None, "price < 7", "category in ['c1', 'c2']", "False"]),
    boost=st.sampled_from([None, "price", "1 if item_id == 'i7' else 0", "-1"]),
    exclude=st.sampled_from([None, "none", "bought", "seen"]), category_cap=st.sampled_from([None, 1, 2, 12]),
    diversity=st.sampled_from([None, 0.0, 0.2, 0.9, 1.0]),
)  # fmt: skip


@given(ask=ASKED, user=st.sampled_from(["u1", "u2", *(f"v{n}" for n in range(8))]))
def test_it_never_contradicts_what_the_same_request_recommends(ask: Ask, user: str) -> None:
    service = experimenting().api.service

    async def compare() -> None:
        shown = await service.recommend("t", user, ask)
        for item in ITEMS:
            said = await service.why("t", user, item.item_id, ask)
            listed = await service.why("t", user, item.item_id, ask, reasons=100)
            assert listed.reasons[:3] == said.reasons
            for one in (said, listed):
                whole = sum(reason.share for reason in one.reasons) + sum(one.rest.values())
                assert whole == pytest.approx(1 if said.shares else 0, abs=0.001) or said.score < 1e-5
                assert min(one.rest.values(), default=1) > 0
            at = [one.item_id for one in shown.items].index(item.item_id) + 1 if said.shown else None
            assert said.position == at and said.shown == any(one.item_id == item.item_id for one in shown.items)
            assert bool(said.removed_by) != said.shown
            assert sum(one.share for one in said.reasons) < 1.001, "whatever the boost"
            assert sum(said.shares.values()) == pytest.approx(1 if said.score > 0 else 0, abs=0.001) or said.score < 1e-5
            assert (said.experiment, said.arm, said.as_of_event_id) == (shown.experiment, shown.arm, shown.as_of_event_id)
            if at is not None:
                one = shown.items[at - 1]
                assert (said.score, said.source) == (one.score, one.source)
                assert [(r.event_id, r.item_id) for r in said.reasons] == [(r.event_id, r.item_id) for r in one.reasons]
                assert said.place is not None and said.place <= said.of_items
        experimenting().logged()

    asyncio.run(compare())
