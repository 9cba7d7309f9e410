"""What a reason is worth: histories without it folded anew, and whether the first one named is worth the most."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.events import Event
from stream.adapters.models.onnx import Bundle
from stream.core.ranking.blend import Blend
from stream.core.user.state import UserState
from tests.support.bundles import ITEMS, TEXT_DIM, Exported
from tests.support.fakes import DAY_MS, T0_MS, event
from tests.support.histories import drawn_texts, ring_walk
from training import export
from training.evaluation import evaluations
from training.history import snapshot
from training.history.removing import lives, removed, without
from training.history.snapshot import History, Replay, interactions
from training.recommend import evaluate_explanations, links


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
def history() -> History:
    """Walks round a ring, with strays."""
    return ring_walk(60, stray=0.2)


@pytest.fixture(scope="module")
def bundle(exported: Exported, history: History) -> Bundle:
    """Links that were learned on the first three quarters, and an encoder that was not learned."""
    made = export.open_files(export.draft(exported.model, "tiny", None, exported.files, (0, 1)), exported.files)
    until_ms = split_of(history)
    made.links = links.fit(interactions(history, until_ms)[0], [item.item_id for item in ITEMS], until_ms)
    return made


def split_of(history: History) -> int:
    return history.events[len(history.events) * 3 // 4].ts_ms


class Evaluate(Protocol):
    """The command but for the training, which other tests do: its question, its answer as JSON, and its page."""

    def __call__(self, users: int, shares: dict[str, float]) -> dict[str, Any]:
        """`shares`: logits of the blend's parts that differ from the default."""
        ...


@pytest.fixture
def evaluate(
    bundle: Bundle, history: History, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Evaluate:
    monkeypatch.setenv("CLICKWAKE_PERSONALIZE__EXCLUDE", "none")
    monkeypatch.setenv("CLICKWAKE_PERSONALIZE__RECOMMEND_TOP_N", "5")
    monkeypatch.setattr(evaluate_explanations, "encode", lambda settings, items, say: drawn_texts(ITEMS, "tiny", TEXT_DIM))
    split = datetime.fromtimestamp(split_of(history) / 1000, UTC).replace(tzinfo=None)

    def evaluate(users: int, shares: dict[str, float]) -> dict[str, Any]:
        learned = SimpleNamespace(bundle=bundle), Blend.from_manifest(shares)
        monkeypatch.setattr(evaluate_explanations.train, "evaluated", lambda *given: learned)
        options = {"users": float(users)}
        evaluations.main("explanations", "walks", Path(), split, True, tmp_path, options, source=lambda _: history)
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return evaluate


@pytest.mark.parametrize(("source", "shares"), [("links", {"follows": 2.0, "together": 2.0}),
                                                ("popularity", {"popular_14": 2.5})])  # fmt: skip
def test_where_links_or_what_everybody_does_lead_the_first_reason_is_worth_more_too(
    evaluate: Evaluate, source: str, shares: dict[str, float]
) -> None:
    assert evaluate(15, shares)["models"]["clickwake"][f"{source}.hurts_more"]["value"] >= 0.8


def test_the_first_reason_is_worth_more_than_another_event(evaluate: Evaluate, history: History, tmp_path: Path) -> None:
    found = evaluate(40, {})
    assert (found["task"], found["served"], found["dataset"]) == ("explanations", "clickwake", history.name)
    assert found["n"] > 100 and found["settings"]["users"] > 20
    shares = found["models"]
    assert shares["clickwake"]["hurts_more"]["low"] >= 0.8, "the promise"
    assert all(shares["clickwake"][f"{source}.hurts_more"]["value"] >= 0.8 for source in ("model", "personal", "rules"))
    assert shares["an event by lot"]["hurts_more"]["value"] == 0.5
    assert found["ahead"]["the newest event"]["hurts_more"]["low"] > 0
    assert (tmp_path / "index.html").read_text().count("data:image/png;base64,") > 1
