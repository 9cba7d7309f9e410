"""Hostile payloads through the processes themselves, over HTTP and onto the topic: none of them ends, each payload is an
event, a dead letter or an answer that says why not, and the users in between are what they would be alone."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from clickwake import topics as topic_admin
from schemas import topics
from schemas.dead_letter import DeadLetter
from schemas.events import key as user_key
from stream.adapters.database import clickhouse as engine
from stream.core.decode import Drop, Ok, Reject, decode
from stream.core.user.fold import fold
from stream.core.user.state import UserState
from stream.settings import Settings
from tests.chaos.town import FULL, caught_up
from tests.support import bundles
from tests.support.bundles import Exported
from tests.support.cluster import (
    Sender,
    Worker,
    assert_each_record_has_one_end,
    comparable,
    read_all,
    running,
    sink_lag,
    stored_states,
    until,
)
from tests.support.fakes import event
from tests.support.hostile import payloads
from training.release import release as releases

OVER_HTTP, ON_TOPIC = (100_000, 1_000_000) if FULL else (3_000, 3_000)
AT_ONCE, NEIGHBOURS, EVENTS_EACH = 4, 10, 20
DONE_S = 60 + ON_TOPIC / 250
UNBOUNDED = {  # what is tried is what events say, not how many there are or how old they are
    "CLICKWAKE_COLLECTOR__USER_EVENTS_PER_S_MAX": "1000000", "CLICKWAKE_COLLECTOR__KEY_EVENTS_PER_S_MAX": "1000000",
    "CLICKWAKE_PERSONALIZE__LATENESS_MAX_MS": str(1 << 50), "CLICKWAKE_COLLECTOR__PORT": "0",
    "CLICKWAKE_COLLECTOR__WRITE_KEYS": json.dumps({"t": "key"}),
}  # fmt: skip


@pytest.mark.timeout(240 + 4 * OVER_HTTP / 100 + 2 * ON_TOPIC / 250)
def test_no_process_ends_of_it_and_each_payload_has_one_end(
    settings: Settings, exported: Exported, tmp_path: Path
) -> None:
    settings = bundles.with_registry(settings, tmp_path / "models")
    topic_admin.create(settings)
    bundles.put_vectors(settings)
    releases.release(settings, bundles.publish(settings.registry, exported).model_version)
    with (running(settings, "workers.personalize", tmp_path / "personalize", **UNBOUNDED),
          running(settings, "workers.sink", tmp_path / "sink", **UNBOUNDED),
          running(settings, "producers.collector", tmp_path / "collector", **UNBOUNDED) as collector):  # fmt: skip
        answers = posted(collector)  # each process is asked at the end of its block whether it has lived until then
        with Sender(settings) as sender:
            sent = sender.send((by_user(settings, raw), raw) for raw in between_neighbours("topic", 2, ON_TOPIC))
        until(lambda: caught_up(settings), DONE_S, "everything folded")
        until(lambda: sink_lag(settings) == 0, DONE_S, "everything stored")
    taken = [answer["messageId"] for answer in answers if "error" not in answer]
    errors = [answer["error"] for answer in answers if "error" in answer]
    refused = Counter(error["messages"][0]["keyword"] if error["messages"] else error["code"] for error in errors)
    assert min(len(taken), refused.total()) > OVER_HTTP // 10 and len(refused) > 5, refused
    on_topic = assert_each_record_is_an_event_or_a_dead_letter(settings)
    assert len(on_topic) == len(taken) + sent and set(taken) <= set(on_topic)
    assert_each_record_has_one_end(settings)
    assert_neighbours_are_alone(settings)
    print(f"{ON_TOPIC:,} payloads onto the topic, {OVER_HTTP:,} over HTTP: {len(taken):,} taken, refused {dict(refused)}")


def between_neighbours(way: str, seed: int, count: int) -> Iterator[bytes]:
    """So many hostile payloads, and events of users who do nothing wrong; these at the present."""
    every = count // (NEIGHBOURS * EVENTS_EACH)
    for number, raw in enumerate(payloads(seed, count)):
        yield raw
        if number % every == 0:
            yield msgspec.json.encode(event(user=f"neighbour{number // every % NEIGHBOURS}", id=f"{way}{number}",
                                            ts_ms=time.time_ns() // 1_000_000, item=f"i{number % 9}"))  # fmt: skip


def posted(collector: Worker) -> list[dict[str, Any]]:
    """The answers to all of them, each a success or a refusal that says why."""
    run_file = collector.home / "run" / "collector.json"
    until(run_file.exists, 60, "the collector listens")
    where = f"http://127.0.0.1:{json.loads(run_file.read_text())['port']}"
    with (httpx.Client(base_url=where, auth=("key", ""), timeout=60, trust_env=False) as http,
          ThreadPoolExecutor(AT_ONCE) as pool):  # fmt: skip
        until(lambda: http.get("/health/ready").status_code == 200, 60, "the collector takes events")

        def post(raw: bytes) -> dict[str, Any]:
            answer = http.post("/v1/track", content=raw, headers={"content-type": "application/json"})
            said: dict[str, Any] = answer.json()
            if answer.status_code == 200:
                assert said["success"], (raw[:300], said)
            else:
                error, whole = said["error"], answer.status_code == 413  # too large to be looked into
                assert whole or (answer.status_code == 400 and error["messages"]), (raw[:300], answer.status_code, said)
                assert error["message"] and all(one["keyword"] and one["message"] for one in error["messages"]), said
            return said

        return list(pool.map(post, between_neighbours("http", 1, OVER_HTTP)))


def by_user(settings: Settings, raw: bytes) -> bytes:
    """The key that the collector would give it."""
    decoded = decode(raw, time.time_ns() // 1_000_000, settings.personalize.skew_max_ms)
    found = decoded.event if isinstance(decoded, Ok | Drop) else None
    return b"t/nobody" if found is None else user_key(found.tenant, found.user)


def assert_each_record_is_an_event_or_a_dead_letter(settings: Settings) -> list[str]:
    """In ClickHouse or among the dead letters, and in one of the two only. Returns the ids of all records, empty where there
    is none."""
    ids, events, rejected = [], set(), set()
    for record in read_all(settings, topics.EVENTS):
        decoded = decode(record.value, record.timestamp, settings.personalize.skew_max_ms)
        found = decoded.event if isinstance(decoded, Ok | Drop) else None
        ids.append("" if found is None else found.message_id)
        if found is not None:
            events.add(found.message_id)
        elif isinstance(decoded, Reject):
            rejected.add((record.partition, record.offset))
    letters = [msgspec.json.decode(record.value, type=DeadLetter) for record in read_all(settings, topics.DEAD_LETTERS)]
    assert all(one.keyword and one.message for letter in letters for one in letter.failure.messages)
    name = topics.EVENTS.name(settings.kafka.topic_prefix)
    of_topic = {(letter.source.partition, letter.source.offset) for letter in letters if letter.source.topic == name}
    assert of_topic == rejected and {letter.kind for letter in letters} <= {"undecodable", "unprocessable", "too_large"}
    with closing(engine.open_client(settings.clickhouse)) as client:
        assert {row[0] for row in client.query("SELECT DISTINCT message_id FROM events").result_rows} == events
        stored = client.query("SELECT DISTINCT dead_letter_id FROM dead_letters").result_rows
        assert {row[0] for row in stored} == {letter.dead_letter_id for letter in letters}
    return ids


def assert_neighbours_are_alone(settings: Settings) -> None:
    """Their states are what their own events give."""
    alone: dict[bytes, UserState] = {}
    for record in read_all(settings, topics.EVENTS):
        if record.key.startswith(b"t/neighbour"):
            decoded = decode(record.value, record.timestamp, settings.personalize.skew_max_ms)
            assert isinstance(decoded, Ok)
            fold(alone.setdefault(record.key, UserState()), decoded.event, 0, 1 << 60)
    found = stored_states(settings)
    assert len(alone) == NEIGHBOURS and all(state.events == 2 * EVENTS_EACH for state in alone.values())
    assert {key: comparable(found[key]) for key in alone} == {key: comparable(state) for key, state in alone.items()}
