"""Laws of the simulator that hold for any arguments."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.simulate.mess import KINDS, Mess
from producers.simulate.truth import ms_of
from producers.simulate.verdict import wilson
from producers.simulate.world import World
from schemas.events import Event

START = datetime(2026, 3, 1, tzinfo=UTC)
EVENTS = list(World(3, 20, 20, START, items=200).history())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), shoppers=st.integers(1, 8), days=st.integers(1, 40), items=st.integers(100, 300),
       cut=st.floats(0, 1))
def test_any_world_is_valid_and_can_be_cut_anywhere(seed: int, shoppers: int, days: int, items: int, cut: float) -> None:
    world = World(seed, shoppers, days, START, items=items)
    whole = list(world.history(lane="live"))
    at = START + timedelta(milliseconds=round(cut * days * 86_400_000))
    assert list(world.history(at, lane="live")) + list(world.live(at)) == whole
    for event in (msgspec.convert(event, Event) for event in whole):
        assert ms_of(world.start) <= event.ts_ms < ms_of(world.end)
        assert world.truth().owners(event.user)
    assert len({event["messageId"] for event in whole}) == len(whole)


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_mess_is_accounted_for(share: float, seed: int) -> None:
    mess = Mess(share, seed)
    records = list(mess.apply(EVENTS))
    extra = Counter(record.what for record in mess.records)
    assert len(records) == len(EVENTS) + sum(extra[what] for what in ("duplicate", "malformed", "future", "epoch"))
    for planted in mess.records:
        assert records[planted.position].what == planted.what
    assert sum(record.what is not None for record in records) == len(mess.records)
    arrived: Counter[str] = Counter()
    for record in records:
        if record.what == "malformed":
            with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
                msgspec.json.decode(record.value, type=Event)
            continue
        event = msgspec.json.decode(record.value, type=Event)
        if record.what == "future":
            assert event.timestamp.year == 2099
        elif record.what == "epoch":
            assert event.ts_ms == 0
        else:
            arrived[event.message_id] += 1
    duplicated = Counter(record.message_id for record in mess.records if record.what == "duplicate")
    assert arrived == Counter({event["messageId"]: 1 + duplicated[event["messageId"]] for event in EVENTS})


def test_mess_is_deterministic_and_uses_every_kind() -> None:
    def spoil() -> tuple[list[Any], list[Any]]:
        mess = Mess(0.3, 4)
        return list(mess.apply(EVENTS)), mess.records

    first, second = spoil(), spoil()
    assert first == second
    assert {record.what for record in first[1]} == set(KINDS)
    with pytest.raises(ValueError, match="between 0 and 1"):
        Mess(1.5, 1)


@given(of=st.integers(1, 5_000), data=st.data())
def test_wilson_holds_the_share_inside_zero_and_one(of: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, of))
    interval = wilson(hits, of)
    assert interval is not None
    assert -1e-12 <= interval[0] <= hits / of + 1e-12 and hits / of - 1e-12 <= interval[1] <= 1
