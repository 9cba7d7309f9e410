"""The collector as a process against a real broker: acknowledged means stored; absent Kafka is 503, then recovery."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import NewTopic

from schemas import topics
from schemas.dead_letter import DeadLetter
from schemas.events import Event
from tests.support.forwarder import Forwarder

KEY = ("demo-write-key", "")
START_S = 30.0


class Running:
    """A collector process and where it listens."""

    def __init__(self, home: Path, bootstrap: str, prefix: str) -> None:
        self._home = home
        environment = os.environ | {
            "CLICKWAKE_HOME": str(home), "CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS": bootstrap,
            "CLICKWAKE_KAFKA__TOPIC_PREFIX": prefix, "CLICKWAKE_COLLECTOR__PORT": "0",
            "CLICKWAKE_COLLECTOR__ACK_TIMEOUT_MS": "5000",
        }
        self.process = subprocess.Popen([sys.executable, "-m", "producers.collector"], env=environment)
        self.run_file = home / "run" / "collector.json"
        until(self.run_file.exists)
        run = msgspec.json.decode(self.run_file.read_bytes())
        assert run["pid"] == self.process.pid
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{run['port']}", auth=KEY, timeout=20)

    def ready(self) -> bool:
        return self.client.get("/health/ready").status_code == 200

    def stop(self) -> int:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)  # a process outside this one has nothing to await but its effects


@pytest.fixture
def created(kafka: str, topic_prefix: str) -> Iterator[str]:
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    names = [topic.name(topic_prefix) for topic in (topics.EVENTS, topics.DEAD_LETTERS, topics.ERASURES)]
    admin.create_topics([NewTopic(name, 2, 1) for name in names])
    yield topic_prefix
    admin.delete_topics(names)
    admin.close()


@pytest.fixture
def running(kafka: str, created: str, tmp_path: Path) -> Iterator[Running]:
    collector = Running(tmp_path, kafka, created)
    until(collector.ready)
    yield collector
    if collector.process.poll() is None:
        collector.stop()


def stored(kafka: str, prefix: str, topic: topics.Topic) -> list[Any]:
    consumer = KafkaConsumer(bootstrap_servers=kafka, auto_offset_reset="earliest")
    partitions = [TopicPartition(topic.name(prefix), number) for number in range(2)]
    consumer.assign(partitions)
    ends = consumer.end_offsets(partitions)
    records: list[Any] = []
    while any(consumer.position(partition) < ends[partition] for partition in partitions):
        for found in consumer.poll(timeout_ms=500).values():
            records += found
    consumer.close()
    return records


def track(message_id: str, **more: Any) -> dict[str, Any]:
    return {"type": "track", "event": "Product Viewed", "userId": f"u{message_id}", "messageId": message_id} | more


def test_what_is_answered_200_is_stored(running: Running, kafka: str, created: str) -> None:
    assert running.client.post("/v1/track", json=track("1")).json() == {"success": True, "messageId": "1"}
    batch = [track(str(number)) for number in range(2, 300)] + [track("bad", userId=5)]
    answer = running.client.post("/v1/batch", json={"batch": batch}).json()
    assert (answer["accepted"], [bad["messageId"] for bad in answer["rejected"]]) == (298, ["bad"])
    events = [msgspec.json.decode(record.value, type=Event) for record in stored(kafka, created, topics.EVENTS)]
    assert {event.message_id for event in events} == {str(number) for number in range(1, 300)}
    (record,) = stored(kafka, created, topics.DEAD_LETTERS)
    letter = msgspec.json.decode(record.value, type=DeadLetter)
    assert letter.failure.messages[0].path == "userId"


def test_sigterm_answers_what_is_in_flight_and_leaves_nothing_behind(running: Running, kafka: str, created: str) -> None:
    def send(number: int) -> int:
        try:
            return running.client.post("/v1/track", json=track(str(number))).status_code
        except httpx.TransportError:  # refused after the drain began: the client knows that it was not taken
            return 0

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(send, number) for number in range(200)]
        until(lambda: sum(answer.done() for answer in answers) > 40)
        running.process.send_signal(signal.SIGTERM)
        accepted = {str(number) for number, answer in enumerate(answers) if answer.result() == 200}
    assert running.process.wait(timeout=30) == 0
    assert not running.run_file.exists()
    ids = {msgspec.json.decode(record.value, type=Event).message_id for record in stored(kafka, created, topics.EVENTS)}
    assert accepted <= ids and len(accepted) > 40


def test_absent_kafka_is_503_and_the_collector_recovers_by_itself(kafka: str, created: str, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    collector = Running(tmp_path, f"127.0.0.1:{port}", created)
    forwarder = Forwarder(port, kafka)
    try:
        answer = collector.client.post("/v1/track", json=track("1"))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        until(lambda: f"127.0.0.1:{port} does not answer" in collector.client.get("/health/ready").text)
        assert collector.client.get("/health/live").status_code == 200
        forwarder.start()
        until(collector.ready)
        assert collector.client.post("/v1/track", json=track("1")).status_code == 200
        assert collector.stop() == 0
    finally:
        if collector.process.poll() is None:
            collector.stop()
        if forwarder.is_alive():
            forwarder.stop()
    assert len(stored(kafka, created, topics.EVENTS)) == 1


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        environment = os.environ | {"CLICKWAKE_HOME": str(tmp_path), "CLICKWAKE_COLLECTOR__PORT": port}
        command = [sys.executable, "-m", "producers.collector"]
        ended = subprocess.run(command, env=environment, capture_output=True, timeout=30)
    assert ended.returncode == 1
    assert port in ended.stderr.decode() and "CLICKWAKE_COLLECTOR__PORT" in ended.stderr.decode()
