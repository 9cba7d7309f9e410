"""Offers as the file has them: what is wrong with it, and the laws of budgets, pacing, caps, hold-out and guardrails."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.offers import MICROS, OfferTotals
from schemas.outputs import OfferBudget, OfferCap, OfferCost
from stream.api.offers import load
from stream.core.offers.offers import (
    HOUR_MS,
    PACE_AHEAD,
    Guardrail,
    Offer,
    OffersError,
    OffersFile,
    Placement,
    Standing,
    budget_spent,
    compiled,
    guardrail,
    held_out,
    refusal,
)
from stream.core.segments.segment_fields import values_of
from stream.core.statistics.confidence import rate
from stream.core.user.state import DAY_MS, UserState

NOW_MS = 20_000 * DAY_MS + 6 * HOUR_MS  # a quarter of the day has passed
NOBODY = UserState()


def at(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, tz=UTC)


HOME, AND = "placements: [{name: home}]", "placements: [{name: home}]\noffers: [{id: a, placements: [home]"


@pytest.mark.parametrize(("text", "complaint"), [
    (f"{HOME}\noffers: [{{id: a, placements: [hom]}}]", "offers[0].placements[0]: no placement 'hom'"),
    (f"{AND}, when: prize > 3}}]", "offers[0].when: there is no field"),
    (f"{AND}, when: 'count(\"Product Viewed\") > 2'}}]", "offers[0].when: \"count('Product Viewed')\": the only functions "
     "are contains(text, part), number(text). count(…) is for rules of segments: word it there, and name the segment in "
     "`segments` of an"),
    (f"{AND}, when: 'revenue > buyers_quantile(revenue, 0.9)'}}]", "buyers_quantile(…) is for rules of segments"),
    (f"{AND}, when: 'trait(\"plan\") == \"pro\"'}}]", "offers[0].when: \"trait('plan')\": the only functions are "
     "contains(text, part), number(text). trait(…) is for rules of segments: word it there"),
    (f"{AND}, when: orders}}]", "offers[0].when: 'orders' gives a number"),
    ("placements: [{name: home, groups: {big: revenue}}]", "placements[0].groups.big: 'revenue' gives a number"),
    ("placements: [{name: home}, {name: home}]", "placements[1].name: there is one named 'home' before"),
    (f"{AND}}}, {{id: a, placements: [home]}}]", "offers[1].id: there is one named 'a' before"),
    ("placements: [{name: home, control: plain}]", "placements[0].control: no offer 'plain' at this placement"),
    (AND.replace("home}", "home, control: a, guardrail: {}}") + "}]", "placements[0].guardrail: it compares"),
    ("holdout: 0.1\n" + AND.replace("home}", "home, control: a, guardrail: {}}") + ", cap: {count: 2, hours: 1}}]",
     "placements[0].guardrail: it compares with the control, 'a', which may have no cap"),
    (f"{AND}, budget: {{money: 5}}}}]", "offers[0].cost: a budget of money"),
    (f"{AND}, from: 2026-02-01T00:00:00Z, until: 2026-01-01T00:00:00Z}}]", "offers[0].until: 2026-01-01 00:00 is not after"),
    (f"{AND}, cap: {{count: 0, hours: 1}}}}]", "$.offers[0].cap.count"),
    (f"{HOME}\noffers: [{{id: a, placement: home}}]", "unknown field `placement` - at `$.offers[0]`"),
    ("holdout: 2", "$.holdout"),
    ("offers: [", "did not find expected node content"),
])
def test_what_is_wrong_with_the_file_is_said_with_its_place(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "offers.yml"
    path.write_text(text)
    with pytest.raises(OffersError) as refused:
        load(path)
    assert complaint in str(refused.value) and str(path) in str(refused.value)


def test_a_placement_with_more_features_than_fit_is_refused() -> None:
    offers = tuple(Offer(id=f"o{n}", placements=("home",)) for n in range(150))
    with pytest.raises(OffersError, match=r"placements\[0\]: 755 features, .* at most 512"):
        compiled(OffersFile(placements=(Placement(name="home"),), offers=offers))
    offers = tuple(Offer(id=f"o{n}", placements=("home",), items=("i1",) if n == 9 else ()) for n in range(97))
    with pytest.raises(OffersError, match=r"placements\[0\]: 515 features, .* at most 512"):
        compiled(OffersFile(placements=(Placement(name="home"),), offers=offers))
    compiled(OffersFile(placements=(Placement(name="home"),), offers=offers[:9] + offers[10:]))


def test_the_documented_file_is_taken(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "offers.md").read_text()
    (tmp_path / "offers.yml").write_text(text.split("```yaml\n")[1].split("```")[0])
    rules = load(tmp_path / "offers.yml")
    assert rules.placements["home"].offers and rules.holdout > 0


budgets = st.integers(0, 10_000)


@given(limit=budgets, moments=st.lists(st.integers(0, DAY_MS - 1), max_size=300).map(sorted))
def test_a_days_budget_is_never_passed_and_spending_never_runs_ahead_of_the_line(limit: int, moments: list[int]) -> None:
    """Where an impression is counted before the next decision."""
    offer = Offer(id="a", placements=("home",), budget=OfferBudget(impressions_per_day=limit))
    spent = OfferTotals()
    for moment in moments:
        if budget_spent(offer, spent, 20_000 * DAY_MS + moment) is None:
            spent.days[20_000] = (spent.days.get(20_000, (0, 0))[0] + 1, 0)
        used = spent.days.get(20_000, (0, 0))[0]
        assert used <= limit and used < limit * (moment / DAY_MS + PACE_AHEAD) + 1
    assert budget_spent(offer, spent, 20_001 * DAY_MS) == (None if limit else "impressions of the day spent")


@given(limit=st.integers(1, 500), cost=st.sampled_from([0.01, 0.3, 1.0]), asked=st.integers(0, 600))
def test_a_budget_of_money_is_spent_whole_and_passed_by_less_than_an_impression(limit: int, cost: float, asked: int) -> None:
    offer = Offer(id="a", placements=("home",), budget=OfferBudget(money=float(limit)), cost=OfferCost(impression=cost))
    spent = OfferTotals()
    shown = 0
    for _ in range(asked):
        if budget_spent(offer, spent, NOW_MS) is None:
            spent.spent_micros += round(cost * MICROS)
            shown += 1
    assert spent.spent_micros < limit * MICROS + round(cost * MICROS)
    assert shown == min(asked, -(-limit * MICROS // round(cost * MICROS)))


def test_pacing_over_the_validity_of_an_offer_and_without_pacing() -> None:
    valid = {"since": at(NOW_MS - DAY_MS), "until": at(NOW_MS + 3 * DAY_MS)}
    even = Offer(id="a", placements=("home",), budget=OfferBudget(impressions=480), **valid)
    assert budget_spent(even, OfferTotals(impressions=129), NOW_MS) is None
    assert budget_spent(even, OfferTotals(impressions=130), NOW_MS) == "impressions paced"  # 480 · (1/4 + 1/48)
    fast = Offer(id="a", placements=("home",), budget=OfferBudget(impressions=480), pacing="none", **valid)
    assert budget_spent(fast, OfferTotals(impressions=479), NOW_MS) is None
    assert budget_spent(fast, OfferTotals(impressions=480), NOW_MS) == "impressions spent"


def why(offer: Offer, state: UserState = NOBODY, totals: Mapping[str, OfferTotals] | None = None,
        seen: Mapping[str, list[int]] | None = None, segments: tuple[str, ...] = ()) -> str | None:  # fmt: skip
    rules = compiled(OffersFile(placements=(Placement(name="home"),), offers=(offer,)))
    standing = Standing(NOW_MS, totals or {}, totals or {}, seen or {})
    return refusal(rules.placements["home"], offer, values_of(state, NOW_MS, 0.0), segments, standing)


def test_who_may_get_an_offer_and_when() -> None:
    home = ("home",)
    assert why(Offer(id="a", placements=home)) is None
    assert why(Offer(id="a", placements=home, since=at(NOW_MS + 60_000))) == "not before 1970-01-01 00:00 UTC".replace(
        "1970-01-01 00:00", f"{at(NOW_MS + 60_000):%Y-%m-%d %H:%M}")
    assert why(Offer(id="a", placements=home, until=at(NOW_MS))) == f"over since {at(NOW_MS):%Y-%m-%d %H:%M} UTC"
    assert why(Offer(id="a", placements=home, until=at(NOW_MS + 1))) is None
    assert why(Offer(id="a", placements=home, when="orders > 0")) == "not orders > 0"
    assert why(Offer(id="a", placements=home, when="orders > 0"), UserState(orders=1)) is None
    assert why(Offer(id="a", placements=home, segments=("vip", "new"))) == "in none of vip, new"
    assert why(Offer(id="a", placements=home, segments=("vip", "new")), segments=("new",)) is None


@given(count=st.integers(1, 5), hours=st.integers(1, 48), ages=st.lists(st.integers(0, 72 * HOUR_MS), max_size=12))
def test_a_cap_lets_through_so_many_within_its_window(count: int, hours: int, ages: list[int]) -> None:
    offer = Offer(id="a", placements=("home",), cap=OfferCap(count=count, hours=hours))
    within = sum(1 for age in ages if age < hours * HOUR_MS)
    found = why(offer, seen={"a": [NOW_MS - age for age in ages]})
    assert (found is None) == (within < count) and (found is None or found == f"seen {within} times within {hours} hours")


@given(small=st.floats(0, 0.9), large=st.floats(0, 0.9), user=st.text(min_size=1, max_size=20))
def test_who_is_held_out_stays_so_when_more_are(small: float, large: float, user: str) -> None:
    small, large = sorted((small, large))
    few, many = (compiled(OffersFile(holdout=share)) for share in (small, large))
    assert not held_out(few, "shop", user) or held_out(many, "shop", user)


def test_the_share_held_out_is_what_the_file_says_and_differs_by_tenant() -> None:
    rules = compiled(OffersFile(holdout=0.2))
    out = np.array([[held_out(rules, tenant, f"u{n}") for n in range(10_000)] for tenant in ("one", "two")])
    assert np.abs(out.mean(axis=1) - 0.2).max() < 0.02
    assert abs((out[0] & out[1]).mean() - 0.04) < 0.01, "independent"


def rail(own: tuple[int, int], control: tuple[int, int], metric: Literal["click", "order"] = "click") -> str | None:
    placement = Placement(name="home", control="plain", guardrail=Guardrail(metric=metric))
    name = f"{metric}s"
    found = OfferTotals(**{"over_impressions": own[1], f"over_{name}": own[0],  # type: ignore[arg-type]
                           "control_impressions": control[1], f"control_{name}": control[0]})  # fmt: skip
    assert guardrail(placement, "plain", {"plain": found}) is None, "the control is never stopped"
    return guardrail(placement, "a", {"a": found})


@pytest.mark.parametrize("metric", ["click", "order"])
def test_an_offer_credibly_worse_than_the_control_is_stopped_and_says_why(metric: Literal["click", "order"]) -> None:
    assert rail((10, 1_000), (100, 1_000), metric) == (
        f"stopped: {metric}s {rate(10, 1_000)} are below the control's {rate(100, 1_000)}")
    assert rail((80, 1_000), (100, 1_000), metric) is None, "not credibly"
    assert rail((0, 150), (100, 1_000), metric) is None, "too little is known of it"
    assert rail((10, 1_000), (150, 150), metric) is None, "or of the control"
    assert rail((200, 1_000), (100, 1_000), metric) is None


def test_an_offer_is_held_against_the_control_of_its_own_people_and_not_before_windows_are_over() -> None:
    """Everybody else clicks the control ten times as often; and of a new offer's first hour most clicks have yet to come."""
    placement = Placement(name="home", control="plain", guardrail=Guardrail())
    control = OfferTotals(impressions=40_000, clicks=4_000, held_impressions=20_000, held_clicks=2_000)
    lapsed = OfferTotals(impressions=2_000, clicks=60, over_impressions=2_000, over_clicks=60, control_impressions=1_000,
                         control_clicks=10)  # fmt: skip
    new = OfferTotals(impressions=2_000, clicks=2)
    for offer in (lapsed, new):
        assert guardrail(placement, "a", {"plain": control, "a": offer}) is None


def test_who_looks_after_every_impression_stops_an_offer_as_good_as_the_control_in_few_cases() -> None:
    rng, stopped = np.random.default_rng(1), 0
    for _ in range(200):
        own, control = (np.cumsum(rng.random(3_000) < 0.05) for _ in range(2))
        stopped += any(rail((int(own[n - 1]), n), (int(control[n - 1]), n)) for n in range(200, 3_001, 50))
    assert stopped / 200 <= 0.05


def test_a_confidence_sequence_covers_at_all_times_at_once() -> None:
    rng, missed = np.random.default_rng(2), 0
    for _ in range(300):
        seen = np.cumsum(rng.random(2_000) < 0.03)
        found = [rate(int(seen[n - 1]), n) for n in range(3, 2_000, 25)]
        missed += any(not one.low <= 0.03 <= one.high for one in found)
    assert missed / 300 <= 0.05
