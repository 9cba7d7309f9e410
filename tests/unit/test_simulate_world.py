"""The simulated world: deterministic, valid, and behaving as its truth says."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import numpy as np
import pytest

from producers.simulate.stage import Shown
from producers.simulate.truth import ms_of
from producers.simulate.visit import P_CLICK_IN_TASTE
from producers.simulate.world import World
from schemas import events as names
from schemas.events import Event, encode

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def world() -> World:
    return World(11, 150, 90, START)


@pytest.fixture(scope="module")
def history(world: World) -> list[dict[str, Any]]:
    return list(world.history())


def parsed(events: list[dict[str, Any]]) -> Iterator[Event]:
    return (msgspec.convert(event, Event) for event in events)


def number_of(event: dict[str, Any]) -> int:
    """The shopper's number, which the simulator puts into its message ids."""
    return int(event["messageId"].split("-")[2])


def test_every_event_is_valid_in_order_and_unique(world: World, history: list[dict[str, Any]]) -> None:
    last, ids = 0, set()
    for raw, event in zip(history, parsed(history), strict=True):
        assert ms_of(world.start) <= event.ts_ms < ms_of(world.end) and event.ts_ms >= last
        assert event.user and event.context.session_id and event.lane == "import"
        assert raw["timestamp"].endswith("Z") and len(raw["timestamp"]) == 24
        last = event.ts_ms
        ids.add(event.message_id)
    assert len(ids) == len(history) > 20_000


def test_the_funnel_is_all_there(history: list[dict[str, Any]]) -> None:
    counts = Counter(event.get("event") or event["type"] for event in history)
    assert set(counts) == {
        "page", "identify", "alias", names.PRODUCTS_SEARCHED, names.PRODUCT_LIST_VIEWED, names.PRODUCT_VIEWED,
        names.PRODUCT_ADDED, names.PRODUCT_REMOVED, names.PRODUCT_WISHLISTED, names.CHECKOUT_STARTED, names.ORDER_COMPLETED,
        names.PRODUCT_REVIEWED, names.PROMOTION_VIEWED, names.PROMOTION_CLICKED, names.COUPON_APPLIED}
    assert counts[names.PRODUCT_VIEWED] > counts[names.PRODUCT_ADDED] > counts[names.CHECKOUT_STARTED]
    assert counts[names.CHECKOUT_STARTED] > counts[names.ORDER_COMPLETED]
    order = next(event for event in history if event.get("event") == names.ORDER_COMPLETED)
    assert order["properties"]["products"][0]["quantity"] >= 1 and order["properties"]["revenue"] > 0
    review = next(event for event in history if event.get("event") == names.PRODUCT_REVIEWED)
    assert "{" not in review["properties"]["review_body"]


def test_another_run_of_the_same_world_gives_the_same_bytes(history: list[dict[str, Any]]) -> None:
    again = World(11, 150, 90, START)
    assert [encode(event) for event in again.history()] == [encode(event) for event in history]
    other = World(12, 150, 90, START)
    assert [encode(event) for event, _ in zip(other.history(), range(50), strict=False)] != [encode(e) for e in history[:50]]


def test_history_then_live_is_the_same_world_in_two_parts(world: World, history: list[dict[str, Any]]) -> None:
    def bare(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**event, "lane": ""} for event in events]

    cut = START + timedelta(days=41, hours=19, minutes=3)
    before = list(world.history(cut))
    after = list(world.live(cut))
    assert bare(before + after) == bare(history)
    assert {event["lane"] for event in after} == {"live"}
    assert list(world.live(cut)) == after  # without a history before it: lived through quietly
    assert list(world.history(from_=cut)) == history[len(before):]


def test_time_stays_inside_the_world(world: World) -> None:
    with pytest.raises(ValueError, match="the world ends at 2026-04-01"):
        next(world.history(world.end + timedelta(days=1)))
    with pytest.raises(ValueError, match="no time zone"):
        World(1, 1, 1, datetime(2026, 1, 1))
    with pytest.raises(ValueError, match="at least 1 shopper"):
        World(1, 0, 1, START)


def test_pace_is_asked_before_each_event(world: World) -> None:
    asked: list[int] = []
    for event in world.live(START, START + timedelta(days=1), pace=asked.append):
        assert msgspec.convert(event, Event).ts_ms == asked[-1]
    assert asked == sorted(asked) and asked


def test_a_random_item_is_in_taste_one_time_in_ten(world: World) -> None:
    truth, rng = world.truth(), np.random.default_rng(0)
    hits = [truth.mask(shopper, 0)[int(rng.integers(len(truth.items)))] for shopper in truth.shoppers for _ in range(200)]
    assert 0.09 < np.mean(hits) < 0.11


def test_views_follow_taste_with_noise(world: World, history: list[dict[str, Any]]) -> None:
    truth = world.truth()
    by_shopper: dict[int, list[int]] = defaultdict(list)
    for event in parsed(history):
        if event.event == names.PRODUCT_VIEWED:
            shopper = truth.shoppers[number_of({"messageId": event.message_id})]
            assert event.properties.product_id is not None
            index = truth.item_index[event.properties.product_id]
            by_shopper[shopper.number].append(truth.mask(shopper, truth.period(shopper, event.timestamp))[index])
    share = np.mean([hit for hits in by_shopper.values() for hit in hits])
    assert 0.7 < share < 0.85
    assert min(np.mean(hits) for hits in by_shopper.values() if len(hits) > 100) > 0.5


def test_ten_views_are_enough_to_learn_a_taste(world: World, history: list[dict[str, Any]]) -> None:
    """Rank by how often department and style were seen in the first ten views: most of the top ten is in taste."""
    truth, views = world.truth(), defaultdict(list)
    for event in history:
        if event.get("event") == names.PRODUCT_VIEWED and len(views[number_of(event)]) < 10:
            views[number_of(event)].append(truth.items[truth.item_index[event["properties"]["product_id"]]])
    shares = []
    for number, seen in views.items():
        departments, styles = Counter(item.department for item in seen), Counter(item.style for item in seen)
        scores = [departments[item.department] * styles[item.style] for item in truth.items]
        best = np.argsort(-np.array(scores), kind="stable")[:10]
        shares.append(np.mean([truth.mask(truth.shoppers[number], 0)[i] for i in best]))
    assert np.mean(shares) > 0.7


def test_popularity_has_a_long_tail(history: list[dict[str, Any]]) -> None:
    views = Counter(e["properties"]["product_id"] for e in history if e.get("event") == names.PRODUCT_VIEWED)
    counts = sorted(views.values())
    assert 0.2 < sum(counts[-240:]) / sum(counts) < 0.5


def test_cohorts_do_what_they_are_named_for(world: World, history: list[dict[str, Any]]) -> None:
    truth = world.truth()
    times: dict[int, list[int]] = defaultdict(list)
    sessions: dict[int, set[str]] = defaultdict(set)
    for raw, event in zip(history, parsed(history), strict=True):
        times[number_of(raw)].append(event.ts_ms)
        sessions[number_of(raw)].add(event.context.session_id or "")
    assert set(truth.summary().cohorts) == {"regular", "abrupt", "gradual", "holiday", "one_time"}
    for shopper in truth.shoppers:
        seen = np.array(times[shopper.number])
        assert len(seen) and seen[0] == shopper.joined_at_ms
        assert (shopper.left_at_ms is None) == (shopper.cohort in ("regular", "holiday"))
        assert shopper.left_at_ms is None or seen[-1] < shopper.left_at_ms
        for holiday in shopper.holidays:
            assert not ((seen >= holiday.from_ms) & (seen < holiday.to_ms)).any()
        assert bool(shopper.holidays) == (shopper.cohort == "holiday")
        if shopper.cohort == "one_time":
            assert len(sessions[shopper.number]) == 1
    late, early = [], []  # events an hour while fading, and before
    for shopper in truth.shoppers:
        begin, left = shopper.fades_from_ms, shopper.left_at_ms
        if begin is not None and left is not None and begin - shopper.joined_at_ms > 10 * DAY_MS:
            seen = np.array(times[shopper.number])
            late.append((seen > begin).sum() / (left - begin))
            early.append((seen <= begin).sum() / (begin - shopper.joined_at_ms))
    assert len(late) >= 5 and np.mean(late) < 0.75 * np.mean(early)


def test_one_time_buyers_mostly_buy(world: World, history: list[dict[str, Any]]) -> None:
    bought = {number_of(event) for event in history if event.get("event") == names.ORDER_COMPLETED}
    one_time = {shopper.number for shopper in world.truth().shoppers if shopper.cohort == "one_time"}
    assert len(bought & one_time) / len(one_time) > 0.6


def test_consumables_are_bought_again(world: World, history: list[dict[str, Any]]) -> None:
    added: dict[tuple[int, str], list[int]] = defaultdict(list)
    for raw, event in zip(history, parsed(history), strict=True):
        if event.event == names.PRODUCT_ADDED and event.properties.product_id:
            added[number_of(raw), event.properties.product_id].append(event.ts_ms)
    again = [times for s in world.truth().shoppers if s.cohort == "regular" and s.joined_at_ms < ms_of(START) + 10 * DAY_MS
             for c in s.cycles if c.period_days < 30 for times in [added[s.number, c.item_id]]]
    assert len(again) >= 10 and np.mean([len(times) >= 2 for times in again]) > 0.8


def test_identities_are_as_planted(world: World, history: list[dict[str, Any]]) -> None:
    truth = world.truth()
    ids: dict[int, list[tuple[int, str | None, str]]] = defaultdict(list)
    identified, devices = defaultdict(set), defaultdict(set)
    for raw, event in zip(history, parsed(history), strict=True):
        assert event.anonymous_id is not None
        ids[number_of(raw)].append((event.ts_ms, event.user_id, event.anonymous_id))
        devices[event.anonymous_id].add(number_of(raw))
        if event.type == "identify":
            identified[number_of(raw)].add(event.anonymous_id)
            assert event.user_id and raw["traits"]["email"]
        if event.type == "alias":
            assert event.user_id and event.previous_id == event.anonymous_id
    for shopper in truth.shoppers:
        mine = ids[shopper.number]
        assert {user for _, user, _ in mine} <= {None, shopper.user_id}
        assert {anonymous for *_, anonymous in mine} <= set(shopper.anonymous_ids)
        if shopper.identity == "known":
            assert all(user for _, user, _ in mine)
        if shopper.identity == "never":
            assert not any(user for _, user, _ in mine) and len(shopper.anonymous_ids) == 1
        if shopper.identity == "later":
            assert shopper.identify_at_ms is not None and identified[shopper.number]
            assert not any(user for ts_ms, user, _ in mine if ts_ms < shopper.identify_at_ms)
        if shopper.identity == "shared":
            assert shopper.shared_with is not None
            assert truth.shoppers[shopper.shared_with].anonymous_ids == shopper.anonymous_ids
    assert any(len(numbers) == 2 for numbers in devices.values())
    assert set(truth.summary().identities) == {"known", "later", "never", "shared"}


def test_good_recommendations_are_clicked_more_than_random_ones(world: World) -> None:
    truth, cut = world.truth(), START + timedelta(days=60)
    rng = np.random.default_rng(5)
    now = [ms_of(cut)]

    def oracle(user: str) -> Shown:
        owner = truth.owners(user)[0]
        liked = np.flatnonzero(np.frombuffer(truth.mask(owner, truth.period(owner, now[0])), dtype=np.uint8))
        return Shown([truth.items[int(i)].item_id for i in rng.choice(liked, 10, replace=False)], "r-1")

    def blind(user: str) -> list[str]:
        return [truth.items[int(i)].item_id for i in rng.choice(len(truth.items), 10, replace=False)]

    def clicks(recommend: Any) -> list[dict[str, Any]]:
        found = world.live(cut, cut + timedelta(days=14), recommend, pace=lambda ts_ms: now.__setitem__(0, ts_ms))
        return [event for event in found if event.get("event") == names.PRODUCT_CLICKED]

    good, random, none = clicks(oracle), clicks(blind), clicks(None)
    assert len(good) > 2 * len(random) > 0 and not none
    assert all(click["properties"]["recommendation_id"] == "r-1" for click in good)
    assert all("recommendation_id" not in click["properties"] for click in random)
    first = np.mean([click["properties"]["position"] == 1 for click in good])
    assert first > P_CLICK_IN_TASTE  # attention falls with the position


def test_the_same_callback_gives_the_same_events(world: World) -> None:
    cut, until = START + timedelta(days=60), START + timedelta(days=63)
    runs = [[encode(event) for event in world.live(cut, until, lambda user: [f"p{len(user):05d}", "p00042", "unknown"])]
            for _ in range(2)]
    assert runs[0] == runs[1] and runs[0]
