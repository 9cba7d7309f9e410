"""Laws of the fold: replay changes nothing, order within the remembered ids changes nothing, encoding loses nothing."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from schemas.events import Event
from stream.core.decode import Drop, Ok, Reject, decode
from stream.core.fold import Outcome, fold
from stream.core.state import RING_TOUCHES_MAX, SEEN_IDS_MAX, UserState, encode
from stream.core.state import decode as decode_state
from tests.support.fakes import T0_MS, event

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
    assert first.ring == second.ring and first.items == second.items and first.seen == second.seen
    assert (first.events, first.days, first.last_event_id) == (second.events, second.days, second.last_event_id)


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
