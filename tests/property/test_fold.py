"""Laws of the fold: replay changes nothing, order within the remembered ids changes nothing, encoding loses nothing."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from schemas.events import Event
from stream.core.decode import Drop, Ok, Reject, decode
from stream.core.user.fold import Outcome, fold, id_hash
from stream.core.user.state import (
    ACTIVITIES_MAX,
    ORDERED_TOUCHES_MAX,
    RING_TOUCHES_MAX,
    SEEN_IDS_MAX,
    UserState,
    encode,
)
from stream.core.user.state import decode as decode_state
from tests.support.fakes import DAY_MS, T0_MS, event

NAMES = ["Product Viewed", "Product Added", "Order Completed", "Something Else"]


@st.composite
def histories(draw: st.DrawFn, most: int = SEEN_IDS_MAX) -> list[Event]:
    size = draw(st.integers(0, most))
    rows = draw(st.lists(st.tuples(st.integers(0, 10_000_000), st.sampled_from("abcdef"), st.sampled_from(NAMES)),
                         min_size=size, max_size=size))  # fmt: skip
    return [
        msgspec.convert(event(ts_ms=T0_MS + ms, item=item, name=name, id=f"m{n}", lane="import"), Event)
        for n, (ms, item, name) in enumerate(rows)
    ]


def folded(events: list[Event], state: UserState | None = None) -> UserState:
    state = state or UserState()
    for one in events:
        fold(state, one, 0, 1)
    return state


@given(histories(), st.randoms(use_true_random=False))
def test_order_does_not_matter_within_the_remembered_ids(events: list[Event], random: object) -> None:
    shuffled = list(events)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = folded(events), folded(shuffled)
    assert first.ring == second.ring and first.seen == second.seen and first.activities == second.activities
    assert (first.ordered, first.ordered_ts_ms) == (second.ordered, second.ordered_ts_ms)
    assert {item: stat.touches for item, stat in first.items.items()} == {i: s.touches for i, s in second.items.items()}
    if len(events) <= RING_TOUCHES_MAX:  # whether a line is of a known order of one instant is asked of the ring
        assert first.items == second.items
    assert (first.events, first.days, first.last_event_id) == (second.events, second.days, second.last_event_id)


@given(histories())
def test_the_last_events_of_other_names_are_kept(events: list[Event]) -> None:
    others = sorted((one.ts_ms, id_hash(one.message_id)) for one in events if one.event == "Something Else")
    assert [one.order() for one in folded(events).activities] == others[-ACTIVITIES_MAX:]


@given(histories())
def test_ordered_lines_outlast_other_touches(events: list[Event]) -> None:
    ordered = {one.message_id for one in events if one.event == "Order Completed"}
    times = sorted((one.ts_ms, one.message_id) for one in events)
    older, ring = times[:-RING_TOUCHES_MAX], times[-RING_TOUCHES_MAX:]
    kept = [one for one in older if one[1] in ordered] + ring
    assert [(touch.ts_ms, touch.event_id) for touch in folded(events).remembered()] == kept


def test_of_ordered_lines_too_only_the_last_are_kept() -> None:
    rows = [event(ts_ms=T0_MS + n, id=f"m{n}", lane="import", name="Order Completed") for n in range(300)]
    state = folded([msgspec.convert(row, Event) for row in rows])
    kept = RING_TOUCHES_MAX + ORDERED_TOUCHES_MAX
    assert [touch.event_id for touch in state.remembered()] == [f"m{n}" for n in range(300 - kept, 300)]


def paid(ms: int, ident: str, name: str, **properties: object) -> Event:
    return msgspec.convert(event(ts_ms=T0_MS + ms, id=ident, name=name, lane="import", properties=properties), Event)


@given(st.lists(st.tuples(st.integers(0, 1_000), st.booleans(), st.integers(1, 50)), max_size=30),
       st.randoms(use_true_random=False))  # fmt: skip
def test_what_is_given_back_is_no_revenue_whenever_it_comes(rows: list[tuple[int, bool, int]], random: object) -> None:
    events = [paid(ms, f"m{n}", "Order Refunded" if back else "Order Completed", revenue=float(money))
              for n, (ms, back, money) in enumerate(rows)]  # fmt: skip
    random.shuffle(events)  # type: ignore[attr-defined]
    assert folded([*events, *events]).revenue == sum(-money if back else money for _, back, money in rows)


def test_what_is_given_back_is_said_by_revenue_total_or_lines() -> None:
    order = paid(0, "o", "Order Completed", order_id="o", revenue=100.0)
    lines = [{"product_id": "a", "price": 10.0, "quantity": 2}]
    for said, left in (({"revenue": 30}, 70), ({"total": "30"}, 70), ({"products": lines, "total": 25}, 75),
                       ({"products": lines}, 80), ({}, 100), ({"revenue": 0, "products": lines}, 100)):  # fmt: skip
        assert folded([order, paid(5, "r", "Order Refunded", order_id="o", **said)]).revenue == left, said


def test_what_costs_nothing_is_no_revenue() -> None:
    """A coupon pays for all of it, or a line of it is none."""
    for said, money in (({"revenue": 0, "products": [{"product_id": "a", "price": 40.0}]}, 0.0),
                        ({"products": [{"product_id": "a", "price": 40.0, "quantity": 0}]}, 0.0),
                        ({"products": [{"product_id": "a", "price": 40.0}]}, 40.0)):  # fmt: skip
        assert folded([paid(0, "o", "Order Completed", **said)]).revenue == money, said


@given(histories())
def test_folding_again_changes_nothing(events: list[Event]) -> None:
    state = folded(events)
    before = encode(state)
    assert all(fold(state, one, 0, 1)[0] is not Outcome.FOLDED for one in events)
    assert encode(state) == before


def test_replaying_a_long_sorted_history_changes_nothing() -> None:
    rows = [event(ts_ms=T0_MS + (n // 7) * 60_000, item=f"i{n % 50}", id=f"m{n}", lane="import") for n in range(2_000)]
    events = [msgspec.convert(row, Event) for row in rows]
    state = folded(events)
    assert state.events == 2_000 and len(state.ring) == RING_TOUCHES_MAX and len(state.seen) <= SEEN_IDS_MAX
    before = encode(state)
    outcomes = {fold(state, one, 0, 1)[0] for one in events}
    assert outcomes == {Outcome.DUPLICATE, Outcome.LATE} and encode(state) == before


def test_a_basket_of_one_timestamp_longer_than_the_remembered_ids_is_exact() -> None:
    rows = [event(ts_ms=T0_MS, item=f"i{n}", id=f"m{n}", lane="import") for n in range(SEEN_IDS_MAX * 4)]
    events = [msgspec.convert(row, Event) for row in rows]
    state = folded(events)
    assert state.events == SEEN_IDS_MAX * 4
    assert {fold(state, one, 0, 1)[0] for one in events} == {Outcome.DUPLICATE}


@given(histories(40))
def test_what_is_stored_comes_back_equal(events: list[Event]) -> None:
    state = folded(events)
    assert decode_state(encode(state)) == state


HOUR_MS = 3_600_000
orders = st.lists(  # the n-th order begins n days after the first: its lines, each an item and how much later it is sent
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5 * HOUR_MS)), min_size=1, max_size=4), max_size=6)


def lines(orders: list[list[tuple[str, int]]], *, named: bool, apart: bool) -> list[Event]:
    """One event a line of each order; `named`: with its id, `apart`: each line at a time of its own."""
    found = []
    for order, some in enumerate(orders):
        for line, (item, later_ms) in enumerate(some):
            one = event(ts_ms=T0_MS + order * DAY_MS + apart * later_ms, item=item, name="Order Completed",
                        id=f"m{order}-{line}", lane="import")  # fmt: skip
            if named:
                one["properties"]["order_id"] = f"o{order}"
            found.append(msgspec.convert(one, Event))
    return found


@given(orders, st.sampled_from([(True, True), (True, False), (False, False)]), st.randoms(use_true_random=False))
def test_lines_of_an_order_are_one_order_of_each_item_in_whatever_order_they_come(
    orders: list[list[tuple[str, int]]], form: tuple[bool, bool], random: object
) -> None:
    named, apart = form
    events = lines(orders, named=named, apart=apart)
    random.shuffle(events)  # type: ignore[attr-defined]
    for item, stat in folded(events).items.items():
        days = [day for day, some in enumerate(orders) if any(item == one for one, _ in some)]
        assert stat.orders == len(days) and stat.touches == sum(one == item for some in orders for one, _ in some)
        span_days = (stat.order_span_ms - 5 * HOUR_MS) / DAY_MS, (stat.order_span_ms + 5 * HOUR_MS) / DAY_MS
        assert span_days[0] <= days[-1] - days[0] <= span_days[1]
        assert apart or stat.order_span_ms == (days[-1] - days[0]) * DAY_MS


@given(orders)
def test_an_order_sent_whole_counts_as_one_sent_line_by_line(orders: list[list[tuple[str, int]]]) -> None:
    whole = []
    for order, some in enumerate(orders):
        one = event(ts_ms=T0_MS + order * DAY_MS, name="Order Completed", id=f"m{order}", lane="import")
        one["properties"] = {"order_id": f"o{order}", "products": [{"product_id": item} for item, _ in some]}
        whole.append(msgspec.convert(one, Event))
    assert folded(whole).items == folded(lines(orders, named=True, apart=False)).items


def test_an_order_said_again_is_no_other_order_but_an_id_used_again_days_later_is() -> None:
    def order(hours: float, ident: str, order_id: str = "o") -> Event:
        one = event(ts_ms=T0_MS + round(hours * HOUR_MS), item="a", name="Order Completed", id=ident, lane="import")
        one["properties"]["order_id"] = order_id
        return msgspec.convert(one, Event)

    reloaded = folded([order(0, "m1"), order(3, "m2")]).items["a"]
    assert (reloaded.orders, reloaded.order_span_ms, reloaded.last_order_ts_ms) == (1, 0, T0_MS)
    again = folded([order(0, "m1"), order(72, "m2"), order(73, "m3")]).items["a"]
    assert (again.orders, again.order_span_ms) == (2, 72 * HOUR_MS)
    assert folded([order(0, "m1"), order(3, "m2", "p")]).items["a"].orders == 2


@given(st.binary(max_size=400))
def test_decode_is_total(raw: bytes) -> None:
    assert isinstance(decode(raw, T0_MS, 0), Ok | Reject | Drop)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["messageId", "type", "timestamp", "userId", "properties", "context", "lane", "tenant"]


@given(st.dictionaries(st.sampled_from(FIELDS), json_values))
def test_decode_is_total_on_wrong_types(changes: dict[str, object]) -> None:
    decoded = decode(msgspec.json.encode(event() | changes), T0_MS, 0)
    assert isinstance(decoded, Ok | Reject | Drop)
    if isinstance(decoded, Reject):
        assert decoded.messages and decoded.messages[0].message
