"""What a rule counts for itself: what may be said, what it gives, and that it agrees with the fixed counts."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from clickwake.cli import app
from schemas.catalog import Item
from schemas.events import Event
from stream.core.expressions.measures import measured, read
from stream.core.segments.segment_fields import values_of
from stream.core.segments.segment_rules import Rule, RulesError, RulesFile, compiled
from stream.core.user import identity
from stream.core.user.fold import Outcome, fold
from stream.core.user.state import DAY_MS, RING_TOUCHES_MAX, Kind, Touch, UserState
from tests.support.fakes import T0_MS, event

CATALOG = {one.item_id: one for one in (
    Item(item_id="spade", tenant="t", category="garden", brand="Acme", price=20.0),
    Item(item_id="mug", tenant="t", category="kitchen", price=5.0),
    Item(item_id="rake", tenant="t", category="garden", brand="Other"),
)}.get  # fmt: skip
NOW_MS = T0_MS + 100 * DAY_MS


def asked(text: str, *touches: tuple[float, str, Kind, float]) -> float:
    """The value of a call as of now; touches are (days ago, item, kind, value)."""
    measure = read(ast.parse(text, mode="eval").body)  # type: ignore[arg-type]  # each text is a call
    ring = [Touch(NOW_MS - round(days * DAY_MS), f"m{n}", item, kind, value)
            for n, (days, item, kind, value) in enumerate(touches)]  # fmt: skip
    (found,) = measured(UserState(ring=sorted(ring, key=Touch.order)), NOW_MS, [measure], CATALOG).values()
    return found


DONE = ((9.0, "spade", Kind.VIEW, 0.0), (3.0, "spade", Kind.VIEW, 0.0), (3.0, "rake", Kind.VIEW, 0.0),
        (2.0, "mug", Kind.VIEW, 0.0), (1.0, "spade", Kind.ORDER, 40.0), (1.0, "mug", Kind.ORDER, 5.0),
        (0.5, "unlisted", Kind.VIEW, 0.0))  # fmt: skip


@pytest.mark.parametrize(("text", "wanted"), [
    ("count('Product Viewed')", 5), ("count('Product Viewed', days=7)", 4), ("count('Product Viewed', days=0.25)", 0),
    ("count('Product Viewed', category == 'garden', days=7)", 2), ("distinct('Product Viewed', category == 'garden')", 2),
    ("count('Product Viewed', price < 10)", 1), ("count('Product Viewed', not price < 10)", 4),
    ("count('Product Viewed', category == 'garden' and contains(brand, 'acme'))", 2),
    ("count('Product Viewed', item_id in ['mug', 'unlisted'])", 2), ("count('Product Viewed', category == '')", 1),
    ("spent()", 45), ("spent(category == 'garden', days=30)", 40), ("spent(value > 10)", 40), ("spent(days=0.5)", 0),
    ("count('Order Completed', True)", 2), ("count('Product Reviewed', days=30)", 0),
])
def test_what_is_counted(text: str, wanted: float) -> None:
    assert asked(text, *DONE) == wanted


SAID = (  # days ago and what came of it, type and properties of an event
    (9.0, "track", "Products Searched", {"query": "Gift card"}), (3.0, "track", "Products Searched", {"query": "spade"}),
    (2.0, "page", None, {"path": "/returns", "title": "x"}), (1.5, "page", "page", {"url": "https://shop.example/returns"}),
    (1.0, "screen", None, {"name": "Returns"}), (1.0, "track", "Quote Requested", {"product_id": "spade", "path": 7}),
    (0.5, "track", "Products Searched", {"query": "gift for her"}), (0.5, "identify", None, {}),
    (0.25, "track", "Product Viewed", {"product_id": "spade", "name": "Spade"}),
    (0.0, "page", None, {"url": "https://shop.example/" + "x" * 200}),
)  # fmt: skip


@pytest.mark.parametrize(("text", "wanted"), [
    ("count('Products Searched')", 3), ("count('Products Searched', contains(text, 'gift'))", 2),
    ("count('Products Searched', contains(text, 'gift'), days=7)", 1), ("distinct('Products Searched', days=3)", 2),
    ("count('page')", 3), ("count('page', contains(text, '/returns'), days=2)", 2),
    ("count('screen', text == 'Returns')", 1),
    ("count('Quote Requested', text == '')", 1), ("count('identify')", 0), ("count('Never Sent')", 0),
    ("count('Product Viewed')", 1), ("count('page', text == 'https://shop.example/" + "x" * 107 + "')", 1),
])
def test_what_is_counted_of_other_events(text: str, wanted: float) -> None:
    """Of the stream's own fold, in whatever order they came; an event that names an item is one of its own too."""
    for rows in (SAID, SAID[::-1]):
        state = UserState()
        for days, kind, name, properties in rows:
            made = event(ts_ms=NOW_MS - round(days * DAY_MS), id=f"m{days}{kind}{name}", name=name, type=kind,  # type: ignore[arg-type]
                         properties=properties)  # fmt: skip
            assert fold(state, msgspec.convert(made, Event), NOW_MS, 10 * DAY_MS)[0] is Outcome.FOLDED
        measure = read(ast.parse(text, mode="eval").body)  # type: ignore[arg-type]  # each text is a call
        assert measured(state, NOW_MS, [measure], CATALOG)[measure.name] == wanted


@pytest.mark.parametrize("guest", [False, True])
def test_views_do_not_push_orders_out(guest: bool) -> None:
    """Of the user's own, and of what a device answers with."""
    who: dict[str, Any] = {"userId": None, "anonymousId": "a"} if guest else {}
    rows = [event(ts_ms=NOW_MS - DAY_MS, id="o", item="spade", name="Order Completed", **who)]
    rows[0]["properties"] |= {"price": 40.0}
    rows += [event(ts_ms=NOW_MS - DAY_MS // 2 + n, id=f"m{n}", item="mug", **who) for n in range(2 * RING_TOUCHES_MAX)]
    rows.append(event(ts_ms=NOW_MS - 1, id="login", type="identify", event=None, item=None, anonymousId="a"))
    states: dict[str, UserState] = {}
    for one in (msgspec.convert(row, Event) for row in rows):
        fold(states.setdefault(one.user, UserState()), one, NOW_MS, 10 * DAY_MS)
        identity.join(states, one)
    rules = compiled(RulesFile(lifecycle=False, segments=(
        Rule(name="window shoppers", when="orders_30d == 0"),
        Rule(name="no gardeners", when="spent(category == 'garden') == 0 or count('Order Completed', days=2) == 0"))))
    values = values_of(states["u"], NOW_MS, 0.0, rules.measures, CATALOG)
    assert rules.inside("t", values) == [] and values["orders_30d"] == 1.0 and values["views_30d"] >= RING_TOUCHES_MAX - 1
    assert values["spent(category == 'garden')"] == 40.0
    assert len(states["u"].history()) == RING_TOUCHES_MAX, "models read what they read before"


NEVER = ("views_30d >= 100", "carts_1d > 64", "orders_7d > 128", "touches_30d >= 129", "count('Product Viewed') >= 65",
         "distinct('page', days=9) > 32", "count('Order Completed') > 128", "active_days >= 65", "order_days > 64",
         "items >= 161", "cart_items > 64", "churn > 1", "days_since_order > 40000", "orders > 3 and items * 2 > 400",
         "views_1d + carts_1d >= 200", "orders < 0", "1 > 2")  # fmt: skip
PERHAPS = ("views_30d >= 64", "orders_7d >= 128", "count('Product Viewed') >= 64", "count('Order Completed') > 64",
           "active_days >= 64", "items == 160", "churn > 0.99", "events > 100000", "revenue < 0", "spent() > 1000000",
           "cluster == 'x' and alerted", "days_since_order == 36500", "revenue / orders > 5", "views_7d > 2 or items > 200",
           "revenue > quantile(revenue, 0.9)")  # fmt: skip


def test_rules_that_nobody_can_meet_are_named() -> None:
    rules = compiled(RulesFile(rfm=True, fifths=True, segments=tuple(
        Rule(name=f"{kind} {at}", when=when) for kind, some in (("never", NEVER), ("perhaps", PERHAPS))
        for at, when in enumerate(some))))  # fmt: skip
    assert rules.never() == [f"never {at}" for at in range(len(NEVER))]


def test_the_check_of_a_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "segments.yml"
    path.write_text("segments: [{name: regulars, when: active_days > 64}, {name: buyers, when: orders > 0}]")
    done = CliRunner().invoke(app, ["segments", "check", str(path)])
    assert done.exit_code == 0 and "Nobody can ever be in regulars: it asks for more than is kept" in done.stdout
    told = msgspec.json.decode(CliRunner().invoke(app, ["segments", "check", str(path), "--json"]).stdout)
    assert told["never"] == ["regulars"]


def test_what_was_searched_is_not_kept_of_whoever_refused_analytics() -> None:
    state = UserState()
    refused = event(name="Products Searched", properties={"query": "gift"}, context={"consent": {"analytics": False}})
    fold(state, msgspec.convert(refused, Event), T0_MS, DAY_MS)
    assert [(one.event, one.text) for one in state.activities] == [("Products Searched", "")]


def test_a_device_s_searches_are_the_user_s_and_go_with_them() -> None:
    def told(at_ms: int, query: str, **who: Any) -> Event:
        return msgspec.convert(event(ts_ms=NOW_MS + at_ms, id=query, name="Products Searched", properties={"query": query},
                                     **who), Event)  # fmt: skip

    states: dict[str, UserState] = {}
    for one in (told(1, "before", userId=None, anonymousId="a"), told(2, "after", userId="u", anonymousId="a"),
                told(0, "straggler", userId=None, anonymousId="a"), told(3, "another's", userId=None, anonymousId="a")):
        fold(states.setdefault(one.user, UserState()), one, NOW_MS, DAY_MS)
        changed = identity.join(states, one)
        assert bool(changed) == (one.properties.query in {"after", "straggler"})
    assert [one.text for one in states["u"].activity()] == ["straggler", "before", "after"]
    assert identity.forget(states["a"], "u") and [one.text for one in states["a"].activities] == ["another's"]
    assert identity.forget(states["u"], "a") and [one.text for one in states["u"].activity()] == ["after"]


@pytest.mark.parametrize(("when", "complaint"), [
    ("count('Product Vieved') > 1", "did you mean 'Product Viewed'?"),
    ("count('products searched') > 1", "did you mean 'Products Searched'?"), ("count('Page') > 1", "did you mean 'page'?"),
    ("count() > 1", "the first is the name of an event, for example 'Product Viewed'"),
    ("count('') > 1", "the first is the name of an event"), ("count(7) > 1", "the first is the name of an event"),
    ("count('page', category == 'garden') > 1", "of one event's text: there is no field 'category'; there are text"),
    ("count('Product Viewed', text == 'a') > 1", "of one event's item: there is no field 'text'"),
    ("count('Product Viewed', 7) > 1", "of one event's item: '7' gives a number, wanted is a flag"),
    ("count('Product Viewed', colour == 'red') > 1", "there is no field 'colour'; there are brand, category"),
    ("count('Product Viewed', orders > 1) > 1", "there is no field 'orders'"),
    ("count('Product Viewed', days=0) > 1", "days is a number above 0"),
    ("count('Product Viewed', days=orders) > 1", "days is a number above 0"),
    ("count('Product Viewed', weeks=1) > 1", "write count(\"Product Viewed\", condition, days=7)"),
    ("spent('Order Completed') > 1", "gives a text, wanted is a flag"),
    ("spent(True, True) > 1", "write spent(condition, days=7)"),
    ("count('Product Viewed')", "gives a number, wanted is a flag"),
    ("sum('Product Viewed') > 1",
     "contains(text, part), number(text), quantile(field, share), buyers_quantile(field, share), count("),
])
def test_what_is_wrong_is_said(when: str, complaint: str) -> None:
    with pytest.raises(RulesError) as refused:
        compiled(RulesFile(segments=(Rule(name="x", when=when),)))
    assert complaint in str(refused.value) and "segment 'x'" in str(refused.value)


def test_a_rule_is_explained_by_what_it_counted() -> None:
    rules = compiled(RulesFile(lifecycle=False, segments=(
        Rule(name="gardeners", when='count("Product Viewed", category == "garden", days=7) >= 2 and orders == 0'),
        Rule(name="others", when="events > 0"))))  # fmt: skip
    state = UserState(ring=[Touch(NOW_MS - n, f"m{n}", "spade", Kind.VIEW, 0.0) for n in (9, 5)])
    values = values_of(state, NOW_MS, 0.0, rules.measures, CATALOG)
    name = "count('Product Viewed', category == 'garden', days=7)"
    assert rules.inside("t", values) == ["gardeners"]
    assert rules.read_by("gardeners") == [name, "orders"] and values[name] == 2.0
    assert rules.only([1]).measures == () and [one.name for one in rules.only([0]).measures] == [name]


KINDS = (Kind.VIEW, Kind.CLICK, Kind.CART, Kind.ORDER)
done = st.tuples(st.integers(-1, 40 * DAY_MS), st.sampled_from(KINDS), st.sampled_from(["spade", "mug", "x"]))


@given(st.lists(done), st.sampled_from([1, 7, 30]))
def test_they_agree_with_the_fixed_counts(rows: list[tuple[int, Kind, str]], days: int) -> None:
    """And what is split by a condition adds up to the whole."""
    touches = [Touch(NOW_MS - ago_ms, f"m{n:03}", item, kind, 1.0) for n, (ago_ms, kind, item) in enumerate(rows)]
    state = UserState(ring=sorted(touches, key=Touch.order)[-RING_TOUCHES_MAX:])

    def value(text: str) -> float:
        return measured(state, NOW_MS, [read(ast.parse(text, mode="eval").body)], CATALOG)[text]  # type: ignore[arg-type]

    fixed = values_of(state, NOW_MS, 0.0)
    views, clicks = (value(f"count('Product {name}', days={days})") for name in ("Viewed", "Clicked"))
    assert views + clicks == fixed[f"views_{days}d"]
    assert value(f"count('Product Added', days={days})") == fixed[f"carts_{days}d"]
    orders = value(f"count('Order Completed', days={days})")
    assert orders == value(f"spent(days={days})") == fixed[f"orders_{days}d"]
    garden = f"count('Order Completed', category == 'garden', days={days})"
    assert value(garden) + value(garden.replace("category", "not category")) == orders
    assert value(f"distinct('Order Completed', days={days})") <= orders <= value("count('Order Completed')")
