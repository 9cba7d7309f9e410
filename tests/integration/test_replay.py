"""Replay against a real broker: exact sums, resumption after a crash, the same ids on a restart, Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import NewTopic

from clickwake import erase
from producers import replay as replay_module
from producers.kafka import KafkaUnavailable, NotAcknowledged, Producer, partition_of
from producers.replay import Replay, Summary
from schemas import topics
from schemas.catalog import Item
from schemas.dead_letter import DeadLetter
from schemas.events import Event
from stream.settings import Kafka, Settings

PARTITIONS = 3
HEADER = "user_id,item_id,category_id,behavior,ts_s"


@pytest.fixture
def here(kafka: str, topic_prefix: str, tmp_path: Path) -> Iterator[Settings]:
    """Settings with the three topics that a replay writes, and the list that it reads."""
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    used = (topics.EVENTS, topics.ITEMS, topics.DEAD_LETTERS, topics.ERASURES)
    names = [topic.name(topic_prefix) for topic in used]
    admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in names])
    yield Settings(home=tmp_path / "home", kafka=Kafka(bootstrap_servers=kafka, topic_prefix=topic_prefix))
    admin.delete_topics(names)
    admin.close()


def read_all(settings: Settings, topic: topics.Topic) -> list[Any]:
    """Every record of a topic, read to its end."""
    name = topic.name(settings.kafka.topic_prefix)
    consumer = KafkaConsumer(bootstrap_servers=settings.kafka.bootstrap_servers, auto_offset_reset="earliest")
    partitions = [TopicPartition(name, number) for number in range(PARTITIONS)]
    consumer.assign(partitions)
    ends = consumer.end_offsets(partitions)
    records: list[Any] = []
    while any(consumer.position(partition) < ends[partition] for partition in partitions):
        for found in consumer.poll(timeout_ms=500).values():
            records += found
    consumer.close()
    return records


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """1,000 rows: 10 out of the window, 5 broken."""
    lines = [HEADER]
    for number in range(1_000):
        ts_s = 1_500_000_000 if number % 100 == 7 else 1_511_539_200 + (number * 7919) % 100_000
        lines.append(f"u{number % 37},i{number % 50},c{number % 5},{'wave' if number % 200 == 3 else 'pv'},{ts_s}")
    path = tmp_path / "behavior.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def check_sums(summary: Summary) -> None:
    assert (summary.rows, summary.accepted, summary.dropped, summary.dead_letters) == (1_000, 985, {"out_of_window": 10}, 5)
    assert summary.finished


def test_every_row_arrives_once_keyed_by_user(here: Settings, data: Path) -> None:
    check_sums(Replay(here, "taobao", data, tenant="shop").run())
    records = read_all(here, topics.EVENTS)
    events = [msgspec.json.decode(record.value, type=Event) for record in records]
    assert len({event.message_id for event in events}) == len(events) == 985
    assert {(event.tenant, event.lane) for event in events} == {("shop", "import")}
    for record, event in zip(records, events, strict=True):
        assert record.key == f"shop/{event.user}".encode()
        assert record.partition == partition_of(record.key, PARTITIONS)
    for user in {event.user for event in events}:
        times = [event.timestamp for event in events if event.user == user]
        assert times == sorted(times)
    letters = [msgspec.json.decode(record.value, type=DeadLetter) for record in read_all(here, topics.DEAD_LETTERS)]
    assert Counter((letter.kind, letter.failure.messages[0].keyword) for letter in letters) == {
        ("dropped", "out_of_window"): 10, ("undecodable", "enum"): 5,
    }
    lines = data.read_bytes().splitlines()
    assert all(letter.payload == lines[letter.source.offset] for letter in letters)
    items = {msgspec.json.decode(record.value, type=Item).item_id for record in read_all(here, topics.ITEMS)}
    assert len(items) == 50


def test_a_finished_replay_sends_nothing_and_a_restart_the_same_ids(here: Settings, data: Path) -> None:
    check_sums(Replay(here, "taobao", data).run())
    again = Replay(here, "taobao", data).run()
    check_sums(again)
    assert again.rows_this_run == 0
    check_sums(Replay(here, "taobao", data, restart=True).run())
    counts = Counter(msgspec.json.decode(record.value, type=Event).message_id for record in read_all(here, topics.EVENTS))
    assert len(counts) == 985 and set(counts.values()) == {2}
    letters = [record.value for record in read_all(here, topics.DEAD_LETTERS)]
    decoded = [msgspec.json.decode(letter, type=DeadLetter) for letter in letters]
    assert len({(letter.dead_letter_id, letter.first_seen) for letter in decoded}) == 15


def test_a_shops_own_events_arrive_once_but_those_of_a_suppressed_user(here: Settings, tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"type": "track", "event": "Product Viewed", "userId": f"u{number % 10}", "properties": {"product_id": "p"},
         "timestamp": f"2024-05-{1 + number * 7 % 28:02}T10:{number // 60:02}:{number % 60:02}Z"} for number in range(200)
    ]  # fmt: skip
    lines[5] = lines[5] | {"properties": 7}
    path = tmp_path / "clicks.jsonl"
    path.write_bytes(b"\n".join(msgspec.json.encode(one) for one in lines))
    erase.request(here, "shop", ["u3"], suppress=True, lift=False)
    summary = Replay(here, "events", path, tenant="shop").run()
    assert (summary.rows, summary.accepted, summary.dropped, summary.dead_letters) == (200, 179, {"suppressed": 20}, 1)
    assert summary.finished and Replay(here, "events", path, tenant="shop").run().rows_this_run == 0
    records = read_all(here, topics.EVENTS)
    found = [msgspec.json.decode(record.value, type=Event) for record in records]
    assert len({event.message_id for event in found}) == len(found) == 179
    assert {(event.tenant, event.lane, event.received_at) for event in found} == {("shop", "import", None)}
    assert {event.user for event in found} == {f"u{number}" for number in range(10)} - {"u3"}
    for user in {event.user for event in found}:
        times = [event.timestamp for event in found if event.user == user]
        assert times == sorted(times)
    (record,) = read_all(here, topics.DEAD_LETTERS)
    letter = msgspec.json.decode(record.value, type=DeadLetter)
    assert (letter.source.topic, letter.source.offset, letter.failure.messages[0].path) == ("events", 6, "properties")
    assert not read_all(here, topics.ITEMS)


def test_a_limit_is_carried_on_from(here: Settings, data: Path) -> None:
    first = Replay(here, "taobao", data, limit=300).run()
    assert (first.rows, first.finished) == (300, False)
    second = Replay(here, "taobao", data).run()
    check_sums(second)
    assert second.rows_this_run == 700
    assert len(read_all(here, topics.EVENTS)) == 985


def test_a_crash_loses_nothing_and_repeats_only_ids(
    here: Settings, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_module, "CHECKPOINT_ROWS", 100)
    sends = 0
    real = Producer.send

    def crash_at_450(self: Producer, *args: Any, **more: Any) -> None:
        nonlocal sends
        sends += 1
        if sends == 450:
            raise NotAcknowledged("crash")
        real(self, *args, **more)

    monkeypatch.setattr(Producer, "send", crash_at_450)
    with pytest.raises(NotAcknowledged):
        Replay(here, "taobao", data).run()
    monkeypatch.setattr(Producer, "send", real)
    second = Replay(here, "taobao", data)
    assert second.state.position in (300, 400)  # 50 items were sent first
    check_sums(second.run())
    ids = {msgspec.json.decode(record.value, type=Event).message_id for record in read_all(here, topics.EVENTS)}
    assert len(ids) == 985


def test_ctrl_c_ends_at_an_acknowledged_position(here: Settings, data: Path) -> None:
    environment = os.environ | {
        "CLICKWAKE_HOME": str(here.home), "CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS": here.kafka.bootstrap_servers,
        "CLICKWAKE_KAFKA__TOPIC_PREFIX": here.kafka.topic_prefix,
    }
    command = [sys.executable, "-c", "from clickwake.cli import main; main()"]
    arguments = ["replay", "taobao", str(data), "--speed", "100x", "--json"]
    process = subprocess.Popen([*command, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    topic = topics.EVENTS.name(here.kafka.topic_prefix)
    consumer = KafkaConsumer(topic, bootstrap_servers=here.kafka.bootstrap_servers, auto_offset_reset="earliest")
    while not consumer.poll(timeout_ms=500):
        assert process.poll() is None, process.communicate()[1].decode()
    consumer.close()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err.decode()
    summary = msgspec.json.decode(out, type=Summary)
    assert summary.stopped and 0 < summary.rows < 1_000
    arrived = len(read_all(here, topics.EVENTS)) + len(read_all(here, topics.DEAD_LETTERS))
    assert arrived == summary.rows
    check_sums(Replay(here, "taobao", data).run())


def test_a_missing_topic_or_broker_is_named(kafka: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("producers.kafka.METADATA_TIMEOUT_MS", 500)
    with pytest.raises(KafkaUnavailable, match=f"{topic_prefix}.events.v1 does not exist"):
        Producer(Kafka(bootstrap_servers=kafka), [f"{topic_prefix}.events.v1"])
    waited: list[str] = []
    monkeypatch.setattr("producers.kafka.BOOTSTRAP_TIMEOUT_MS", 200)
    with pytest.raises(KafkaUnavailable, match=r"127\.0\.0\.1:1 does not answer"):
        Producer(Kafka(bootstrap_servers="127.0.0.1:1"), wait_s=1.5, on_wait=waited.append)
    assert waited and "Trying again" in waited[0]
