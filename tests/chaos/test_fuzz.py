"""Hostile payloads by the hundred thousand: each becomes an event, a dead letter or a counted drop, neighbours see nothing,
and what is taken is taken by everything behind it too."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from producers.collector.admission import Admitted, Arrival, admit
from producers.privacy import Privacy
from schemas.events import EVENT_BYTES_MAX, key
from stream.adapters.database import clickhouse as engine
from stream.core.decode import Drop, Ok, Reject, decode
from stream.core.user import state as states
from stream.core.user.featurize import churn_features, sequence
from stream.core.user.fold import fold
from stream.core.user.state import DAY_MS, UserState
from stream.settings import ClickHouse, Personalize
from stream.settings import Privacy as Section
from stream.sink.batch import freeze
from stream.sink.message_ids import MessageIds
from stream.sink.rows import Complaint, Rows, Skip, event_rows
from stream.sink.tables import EVENTS
from stream.sink.writer import Writer
from tests.chaos.town import FULL
from tests.support.database import SETTINGS
from tests.support.fakes import T0_MS, event
from tests.support.hostile import payloads

COUNT = 1_000_000 if FULL else 20_000
APPENDED_MS = T0_MS + 11 * DAY_MS  # payloads are of 11.6 days: of clocks up to half a day ahead, too
SKEW_MAX_MS = Personalize().skew_max_ms  # as shipped
NEIGHBOUR = key("t", "neighbour")


@pytest.mark.timeout(3_600)
def test_whatever_is_on_the_topic_every_input_has_one_outcome_and_neighbours_see_nothing() -> None:
    neighbours = [event(user="neighbour", ts_ms=T0_MS + n, item=f"i{n % 9}", id=f"n{n}") for n in range(100)]
    alone, clock_ms, every = UserState(), T0_MS, max(1, COUNT // len(neighbours))
    found: dict[bytes, UserState] = {}
    outcomes: Counter[str] = Counter()
    started = time.monotonic()
    for number, raw in enumerate(payloads(1, COUNT)):
        for value in (raw, msgspec.json.encode(neighbours[number // every]) if number % every == 0 else None):
            if value is None:
                continue
            decoded = decode(value, APPENDED_MS, SKEW_MAX_MS)
            if isinstance(decoded, Ok):
                user = key(decoded.event.tenant, decoded.event.user)
                outcome, _ = fold(found.setdefault(user, UserState()), decoded.event, clock_ms, 1 << 60)
                outcomes[outcome.value] += 1
            elif isinstance(decoded, Reject):
                assert decoded.messages and all(one.keyword and one.message for one in decoded.messages), value[:200]
                outcomes["rejected"] += 1
            else:
                assert isinstance(decoded, Drop)
                outcomes[f"dropped:{decoded.reason}"] += 1
    assert sum(outcomes.values()) == COUNT + len(neighbours), "every input has one outcome"
    assert min(outcomes["folded"] + outcomes["late"], outcomes["rejected"]) > COUNT // 10, outcomes
    for one in neighbours:
        decoded = decode(msgspec.json.encode(one), APPENDED_MS, SKEW_MAX_MS)
        assert isinstance(decoded, Ok)
        fold(alone, decoded.event, clock_ms, 1 << 60)
    assert states.encode(found[NEIGHBOUR]) == states.encode(alone)
    for state in found.values():  # what was folded can be read back, ranked with and asked about
        again = states.decode(states.encode(state))
        sequence(again, again.last_ts_ms, 50)
        assert churn_features(again).shape
    print(f"{COUNT:,} payloads in {time.monotonic() - started:.0f} s: {dict(outcomes)}")


@pytest.mark.timeout(3_600)
def test_whatever_clients_send_is_taken_or_refused_with_a_reason_and_what_is_taken_is_stored(
    clickhouse: ClickHouse,
) -> None:
    privacy = Privacy(Section.model_validate({"pseudonym_keys": ("k" * 32,), "pseudonym_fields": ("traits.email",)}))
    arrival = Arrival(tenant="t", received_at=datetime.fromtimestamp(APPENDED_MS / 1000, UTC), privacy=privacy,
                      event_bytes_max=EVENT_BYTES_MAX, type="track")  # fmt: skip
    to_rows, outcomes = event_rows(SKEW_MAX_MS, MessageIds(SETTINGS)), Counter[str]()
    records: list[Any] = []
    for number, raw in enumerate(payloads(2, COUNT)):
        result = admit(raw, arrival)
        if not isinstance(result, Admitted):
            assert result.messages and all(one.keyword and one.message for one in result.messages), raw[:200]
            outcomes[result.messages[0].keyword] += 1
            continue
        outcomes["admitted"] += 1
        taken = decode(result.value, APPENDED_MS, SKEW_MAX_MS)
        assert not isinstance(taken, Reject), f"admitted, then refused by the workers: {taken} {raw[:300]!r}"
        record = SimpleNamespace(topic="events", partition=0, offset=number, timestamp=APPENDED_MS, key=result.key,
                                 value=result.value, headers=())  # fmt: skip
        rows = to_rows(record)
        assert not isinstance(rows, Complaint)
        assert isinstance(rows, Rows | Skip)
        if len(records) < 20_000:
            records.append(record)
    assert outcomes["admitted"] > COUNT // 10 and len(outcomes) > 5, outcomes
    _stored(clickhouse, records, to_rows)
    print(f"{COUNT:,} payloads: {dict(outcomes)}")


def _stored(settings: ClickHouse, records: list[Any], to_rows: Any) -> None:
    """The engine takes every one of them, and gives every id back as it was."""
    own = settings.model_copy(update={"database": "fuzz"})
    engine.migrate(own, wait_s=10)
    writer = Writer(own, threading.Event())
    batch = freeze(records, {"events": to_rows})
    assert writer.write(batch) == []
    writer.close()
    with closing(engine.open_client(own)) as client:
        wanted = {row[1] for insert in batch.inserts if insert.table is EVENTS for row in insert.rows}
        assert {row[0] for row in client.query("SELECT DISTINCT message_id FROM events").result_rows} == wanted
        client.command("DROP DATABASE fuzz")
