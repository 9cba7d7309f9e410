"""What a reason is worth: histories without it folded anew, and whether the first one named is worth the most."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.events import Event
from stream.adapters.onnx import Bundle
from stream.core.recommend import Rules
from stream.core.state import UserState
from stream.serving import Serving
from tests.support.bundles import ITEMS, TEXT_DIM, Exported
from tests.support.fakes import DAY_MS, T0_MS, event
from tests.support.histories import drawn_texts, ring_walk
from training import evaluate_explanations, export, links, offline, snapshot
from training.asking import Columns, next_of
from training.comparison import rounded
from training.evaluate_explanations import Case
from training.removing import lives, removed, without
from training.snapshot import History, Replay, interactions


def order(user: str, ident: str, ts_ms: int, *items: str) -> dict[str, object]:
    lines = [{"product_id": item, "price": 1.0, "quantity": 1} for item in items]
    return event(user=user, ts_ms=ts_ms, id=ident, name="Order Completed", properties={"products": lines})


def state_of(events: list[Event]) -> UserState:
    replay = Replay(History("some", events, {}))
    replay.advance(float("inf"))
    return replay.snapshot.states.get("u", UserState())


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=12), st.data())
def test_a_state_without_a_thing_is_the_state_of_a_history_in_which_it_never_happened(
    happened: list[tuple[int, bool]], data: st.DataObject
) -> None:
    raw = [order("u", f"m{at}", T0_MS + at * DAY_MS, f"i{item}", "i9") if ordered else
           event(user="u", ts_ms=T0_MS + at * DAY_MS, item=f"i{item}", id=f"m{at}")
           for at, (item, ordered) in enumerate(happened)]  # fmt: skip
    life = snapshot.from_events(raw).events
    at = data.draw(st.integers(0, len(life) - 1))
    item = f"i{happened[at][0]}"
    found = dict(removed(life, "u", {(f"m{at}", item), ("m0", "i9")}))
    left = without(life[at], item)
    rest = [*life[:at], *([left] if left is not None else []), *life[at + 1 :]]
    assert found[f"m{at}", item] == state_of(rest)
    assert (left is not None) == happened[at][1], "of an order the other line is left"


def test_an_anonymous_history_that_was_joined_is_taken_apart_too() -> None:
    raw = [event(user=None, ts_ms=T0_MS + at, item=f"i{at}", id=f"m{at}", anonymousId="a") for at in range(3)]
    raw.append(event(user="u", ts_ms=T0_MS + DAY_MS, item="i5", id="m9", anonymousId="a"))
    history = snapshot.from_events(raw)
    replay = Replay(history)
    replay.advance(float("inf"))
    state = replay.snapshot.states["u"]
    assert [touch.item_id for touch in state.history()] == ["i0", "i1", "i2", "i5"]
    life = lives(history, {"u": state}, history.to_ms + 1)["u"]
    (found,) = removed(life, "u", {("m1", "i1")})
    assert [touch.item_id for touch in found[1].history()] == ["i0", "i2", "i5"]


@pytest.fixture(scope="module")
def walked(exported: Exported) -> list[Case]:
    """A bundle with links that were learned and an encoder that was not, on walks round a ring with strays."""
    history = ring_walk(60, stray=0.2)
    split_ms = history.events[len(history.events) * 3 // 4].ts_ms
    texts = drawn_texts(ITEMS, "tiny", TEXT_DIM)
    linked = links.fit(interactions(history, split_ms)[0], [item.item_id for item in ITEMS], split_ms)
    bundle: Bundle = export.open_files(export.draft(exported.model, "tiny", None, exported.files, (0, 1)), exported.files)
    replay = Replay(history)
    replay.advance(split_ms)
    serving = Serving(bundle)
    tenant = history.events[0].tenant
    serving.indexes[tenant] = offline.index_of(bundle, history.items, texts, replay.snapshot.counts, linked)
    asked = next_of(replay, Columns(history), split_ms, history.to_ms + 1, 40)
    return evaluate_explanations.cases(serving, tenant, history, asked, split_ms, Rules(top_n=5, exclude="none"))


def test_the_first_reason_is_worth_more_than_another_event(walked: list[Case]) -> None:
    assert len(walked) > 100 and {one.source for one in walked} >= {"model", "personal", "rules"}
    judged = evaluate_explanations.judged(walked, "walks", T0_MS)
    shares = rounded(judged.comparison)["models"]
    assert shares["clickwake"]["hurts_more"]["low"] >= 0.8, "the promise"
    assert shares["an event by lot"]["hurts_more"]["value"] == 0.5
    assert judged.comparison.ahead["the newest event"]["hurts_more"].low > 0
