"""The checks against the truth, on examples small enough to count by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest

from producers.simulate.planted import Cohort, Cycle, Interval, ItemTruth, Shop, ShopperTruth, TastePeriod
from producers.simulate.truth import Truth, UnknownId, ms_of
from schemas.outputs import ChurnAlert, Recommendation, RecommendedItem

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(day: float) -> datetime:
    return START + timedelta(days=day)


def shopper(number: int, cohort: Cohort = "regular", *, left: float | None = None,
            holiday: tuple[float, float] | None = None, anonymous: tuple[str, ...] = (), cycles: tuple[Cycle, ...] = (),
            tastes: tuple[tuple[float, str], ...] = ((0, "red"),)) -> ShopperTruth:
    return ShopperTruth(
        number=number, cohort=cohort, identity="known", user_id=f"u{number}", anonymous_ids=anonymous or (f"a{number}",),
        shared_with=None, identify_at_ms=None, joined_at_ms=ms_of(at(0)),
        left_at_ms=None if left is None else ms_of(at(left)), fades_from_ms=None,
        holidays=() if holiday is None else (Interval(from_ms=ms_of(at(holiday[0])), to_ms=ms_of(at(holiday[1]))),),
        sessions_per_day=0.5, price_sensitivity=0.0, noise_share=0.2, recommendation_attention=0.2,
        promotion_attention=0.2, cycles=cycles,
        tastes=tuple(TastePeriod(from_ms=ms_of(at(day)), departments={name: 1.0}, styles={}, brands={})
                     for day, name in tastes))


def shop(*shoppers: ShopperTruth) -> Truth:
    """20 items: i0 and i1 are red, i2 and i3 blue, the others grey; i19 is the most popular, then i0."""
    colours = ["red"] * 2 + ["blue"] * 2 + ["grey"] * 16
    popularity = [9.0, *([1.0] * 18), 10.0]
    items = [ItemTruth(item_id=f"i{n}", department=colour, style="s", brand="b", popularity=popularity[n])
             for n, colour in enumerate(colours)]
    arguments = Shop(seed=1, shoppers=len(shoppers), days=100, items=20, tenant="t", from_ms=ms_of(at(0)),
                     to_ms=ms_of(at(100)))
    return Truth(arguments, shoppers, items)


def recommended(user: str, *items: str, day: float = 1) -> Recommendation:
    return Recommendation(recommendation_id=f"r-{user}-{day}", tenant="t", user_id=user, as_of_event_id="e",
                          as_of_ts=at(day), model_version="v",
                          items=tuple(RecommendedItem(item_id=item, score=1.0, source="model") for item in items))


def alert(user: str, day: float, state: Literal["raised", "cleared"] = "raised", horizon: int = 14) -> ChurnAlert:
    return ChurnAlert(alert_id=f"{user}-{day}-{state}", tenant="t", user_id=user, state=state, probability=0.9,
                      horizon_days=horizon, interval=(0.8, 0.95), reasons=(), last_event_ts=at(day - 1), as_of_ts=at(day),
                      model_version="v")


def test_taste_is_the_top_tenth_and_follows_its_changes() -> None:
    truth = shop(shopper(0, tastes=((0, "red"), (50, "blue"))))
    assert [n for n in range(20) if truth.in_taste("u0", f"i{n}", at(10))] == [0, 1]
    assert [n for n in range(20) if truth.in_taste("u0", f"i{n}", ms_of(at(50)))] == [2, 3]
    assert truth.in_taste("a0", "i0", at(49.99)) and not truth.in_taste("a0", "i0", at(50))


def test_what_is_bought_again_is_in_taste() -> None:
    truth = shop(shopper(0, cycles=(Cycle(item_id="i7", period_days=20),)))
    assert truth.in_taste("u0", "i7", at(1)) and not truth.in_taste("u0", "i8", at(1))


def test_strangers_and_shared_devices_are_named() -> None:
    truth = shop(shopper(0, anonymous=("tablet",)), shopper(1, anonymous=("tablet",)))
    with pytest.raises(UnknownId, match="'nobody' is not an id of this shop"):
        truth.in_taste("nobody", "i0", at(1))
    with pytest.raises(UnknownId, match="'i99' is not an item"):
        truth.in_taste("u0", "i99", at(1))
    with pytest.raises(UnknownId, match="'tablet' is a shared device"):
        truth.in_taste("tablet", "i0", at(1))


def test_taste_share_counts_items() -> None:
    truth = shop(shopper(0), shopper(1, tastes=((0, "blue"),)), shopper(2, anonymous=("x",)), shopper(3, anonymous=("x",)))
    found = truth.taste_share([
        recommended("u0", "i0", "i1"), recommended("u1", "i2", "i9"), recommended("stranger", "i0"), recommended("x", "i0"),
        recommended("u0", "gone", day=2)])
    assert (found.share, found.items, found.recommendations, found.shoppers) == (0.75, 4, 2, 2)
    assert (found.unknown_users, found.shared_devices, found.unknown_items) == (1, 1, 1)
    assert found.random == pytest.approx(0.1)
    assert found.popularity == 0.25  # i19 and i0 for both: one hit, i0 for u0
    assert found.interval == (0.5, 1.0)  # of two shoppers, one has all and one has half


def test_taste_share_of_nothing_says_why() -> None:
    with pytest.raises(ValueError, match="1 for unknown users"):
        shop(shopper(0)).taste_share([recommended("stranger", "i0")])


def test_alert_quality_by_hand() -> None:
    truth = shop(
        shopper(0, "abrupt", left=30), shopper(1, "gradual", left=40), shopper(2, "abrupt", left=60), shopper(3),
        shopper(4, "holiday", holiday=(20, 45)), shopper(5, "one_time", left=58))
    found = truth.alert_quality([
        alert("u0", 36), alert("u0", 36),                      # right, said twice; 6 days after
        alert("u1", 35),                                       # right, 5 days before
        alert("u2", 10), alert("u2", 12, "cleared"),           # false: 50 days before leaving
        alert("u3", 20),                                       # false
        alert("u4", 33), alert("u4", 46, "cleared"),           # false, on holiday
        alert("u5", 70),                                       # after as_of: not seen
        alert("stranger", 5),
    ], at(62))
    assert (found.raised, found.right, found.precision) == (5, 2, 0.4)
    assert (found.left, found.caught, found.recall) == (4, 2, 0.5)
    assert (found.left_settled, found.caught_settled, found.recall_settled) == (2, 2, 1.0)
    assert found.lead_days is not None and found.lead_days[0] == pytest.approx((5 - 6) / 2)
    assert found.lead_over_rule_days == pytest.approx(29.5)
    assert found.raised_before_leaving == 1
    assert (found.holidays, found.holidays_alerted) == (1, 1)
    assert found.unknown_users == 1
    gradual, abrupt = found.by_cohort["gradual"], found.by_cohort["abrupt"]
    assert (gradual.shoppers, gradual.left, gradual.caught, gradual.raised, gradual.right) == (1, 1, 1, 1, 1)
    assert (abrupt.shoppers, abrupt.left, abrupt.caught, abrupt.raised, abrupt.right) == (2, 2, 1, 2, 1)


def test_an_alert_that_was_cleared_catches_nobody() -> None:
    truth = shop(shopper(0, "abrupt", left=30))
    found = truth.alert_quality([alert("u0", 25), alert("u0", 27, "cleared")], at(60))
    assert (found.right, found.caught) == (1, 0)
    assert truth.alert_quality([alert("u0", 25), alert("u0", 27, "cleared"), alert("a0", 33)], at(60)).caught == 1


def test_alerts_on_ids_their_owner_outgrew_are_false_and_counted() -> None:
    truth = shop(shopper(0), shopper(1, "abrupt", left=30))
    found = truth.alert_quality([alert("a0", 20), alert("u0", 21), alert("a1", 31)], at(60))
    assert (found.raised, found.right, found.false_on_anonymous) == (3, 1, 1)


def test_a_raise_counts_from_the_horizon_on() -> None:
    truth = shop(shopper(0, "abrupt", left=30))
    assert [truth.alert_quality([alert("u0", day, horizon=7)], at(60)).right for day in (22.9, 23.0, 30.0)] == [0, 1, 1]


def test_no_alerts_no_shares() -> None:
    found = shop(shopper(0)).alert_quality([], at(10))
    assert (found.precision, found.recall, found.lead_days, found.left) == (None, None, None, 0)


def test_saved_and_loaded_it_answers_the_same(tmp_path: Path) -> None:
    truth = shop(shopper(0, tastes=((0, "red"), (50, "blue"))), shopper(1, "abrupt", left=30))
    truth.save(tmp_path / "a")
    truth.save(tmp_path / "b")
    for name in ("truth.json", "truth.jsonl.gz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    loaded = Truth.load(tmp_path / "a")
    assert loaded.summary() == truth.summary()
    assert (loaded.shoppers, loaded.items) == (truth.shoppers, truth.items)
    assert loaded.mask_of("u0", at(60)) == truth.mask_of("u0", at(60))


def test_who_left_before_alerts_began_is_not_to_be_caught() -> None:
    truth = shop(shopper(0, "abrupt", left=10), shopper(1, "abrupt", left=40), shopper(2, "abrupt", left=50))
    quality = truth.alert_quality([alert("u0", 35), alert("u1", 45)], at(60), since=at(30))
    assert (quality.raised, quality.right) == (2, 2)
    assert (quality.left, quality.caught) == (2, 1)
