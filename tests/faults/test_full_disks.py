"""A disk that is full: the process ends and says so, nothing is lost, and with room it goes on where it was."""

from __future__ import annotations

import gc
import logging
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import httpx
import msgspec
import pytest
from kafka import KafkaProducer
from kafka.errors import KafkaError

from clickwake import topics as topic_admin
from clickwake.local import process
from clickwake.local.broker import Broker
from clickwake.local.clickhouse.launch import ClickHouseServer
from schemas import topics
from stream.settings import Settings
from tests.support.cluster import (
    answers,
    assert_states_are_true,
    lag,
    produce_events,
    read_all,
    running,
    sink_lag,
    start_worker,
    until,
)
from tests.support.database import stored_events
from tests.support.fakes import event
from tests.support.needs import without

DISK_MB = 48


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of DISK_MB, or of what the test's parameter says."""
    folder, size = tmp_path / "disk", getattr(request, "param", DISK_MB)
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        without("a file system of a test's own: nothing may be mounted here; root may")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def some(first: int, count: int) -> list[dict[str, object]]:
    now_ms = time.time_ns() // 1_000_000
    return [event(user=f"u{n % 500}", item=f"i{n}-{'x' * 200}", id=f"m{n}", ts_ms=now_ms + n)
            for n in range(first, first + count)]  # fmt: skip


def fill(folder: Path) -> Path:
    """Take all room that is left."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(b"\0" * 65_536)
            except OSError:
                return ballast


@pytest.fixture
def home(small_disk: Path, tmp_path: Path) -> Path:
    """Of a worker whose states are on the small disk."""
    made, state = tmp_path / "home", small_disk / "state"
    made.mkdir(exist_ok=True)
    state.mkdir()
    (made / "state").symlink_to(state)
    return made


def said(home: Path) -> str:
    return "".join(path.read_text() for path in home.glob("*.log"))


def goes_on_with_room(settings: Settings, home: Path, ballast: Path, first: int) -> None:
    ballast.unlink()
    with running(settings, "workers.personalize", home) as worker:
        produce_events(settings, some(first, 50))
        until(lambda: lag(settings, "personalize", topics.EVENTS) == 0, 60, "everything folded")
        worker.stop()
    assert_states_are_true(settings)


@pytest.mark.timeout(240)
def test_a_full_disk_under_the_state_store(settings: Settings, small_disk: Path, home: Path) -> None:
    topic_admin.create(settings)
    with running(settings, "workers.personalize", home) as first:
        produce_events(settings, some(0, 500))
        until(lambda: lag(settings, "personalize", topics.EVENTS) == 0, 60, "the first events folded")
        first.stop()
    ballast = fill(small_disk)
    doomed = start_worker(settings, "workers.personalize", home)
    produce_events(settings, some(500, 100))
    until(lambda: doomed.poll() is not None, 90, "it ends")
    log = said(home)
    assert "No space left on device" in log and ("make room" in log or "cannot be opened" in log), log[-3_000:]
    goes_on_with_room(settings, home, ballast, 600)


@pytest.mark.timeout(240)
def test_a_disk_that_fills_up_under_a_running_worker(settings: Settings, small_disk: Path, home: Path) -> None:
    topic_admin.create(settings)
    doomed, firsts = start_worker(settings, "workers.personalize", home), count(step=500)
    produce_events(settings, some(next(firsts), 500))
    until(lambda: lag(settings, "personalize", topics.EVENTS) == 0, 60, "the first events folded")
    ballast = fill(small_disk)
    until(lambda: produce_events(settings, some(next(firsts), 500)) and doomed.poll() is not None, 90, "it ends")
    log = said(home)
    assert doomed.returncode == 1 and str(home) in log, log[-3_000:]
    assert re.search(r"cannot be written \(.*No space left on device.*\): make room on its disk", log), log[-3_000:]
    goes_on_with_room(settings, home, ballast, next(firsts))


class Acknowledged:
    """Sends single records until told to stop, over HTTP and to the topic in turn, and keeps the ids of those that were
    acknowledged and how many were not."""

    def __init__(self, settings: Settings, collector: str) -> None:
        self._producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers, acks="all", retries=0,
                                       request_timeout_ms=2_000, delivery_timeout_ms=3_000, max_block_ms=2_000)  # fmt: skip
        self._http = httpx.Client(base_url=collector, auth=("key", ""), timeout=60, trust_env=False)
        self._topic = topics.EVENTS.name(settings.kafka.topic_prefix)
        self.ids: set[str] = set()
        self.refused: Counter[str] = Counter()

    def send(self, one: dict[str, object], two: dict[str, object]) -> None:
        try:
            self._producer.send(self._topic, key=f"t/{one['userId']}".encode(), value=msgspec.json.encode(one)).get(5)
        except KafkaError:
            self.refused["kafka"] += 1
        else:
            self.ids.add(str(one["messageId"]))
        self.post(two)

    def post(self, one: dict[str, object]) -> bool:
        answer = self._http.post("/v1/track", json={name: value for name, value in one.items() if name != "tenant"})
        if answer.status_code == 200:
            self.ids.add(str(one["messageId"]))
        else:
            self.refused[str(answer.status_code)] += 1
        return answer.status_code == 200

    def close(self) -> None:
        self._http.close()
        self._producer.close(timeout=5)
        del self._producer
        gc.collect()


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("small_disk", [256], indirect=True)
def test_a_full_disk_at_the_broker(
    settings: Settings, small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    """It ends; what it has acknowledged is there when it comes back with room. The collector answers 503 and takes events
    again, the sink waits and stores all of it.

    A worker whose output it refuses ends and says so; its supervisor, here the test, starts it again.
    """
    # kafka-python leaves refused sockets to the garbage collector, and a captured record of the refusal would keep them,
    # through its exception's frames, into the next test, whose fault they are not
    caplog.set_level(logging.CRITICAL, logger="kafka")
    data, home = small_disk / "data", tmp_path / "broker"
    data.mkdir()
    (home / "kafka").mkdir(parents=True)
    (home / "kafka" / "data").symlink_to(data)
    broker, port = Broker(home, port=process.free_port()), process.free_port()
    with broker:
        own = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"bootstrap_servers": broker.address})})
        topic_admin.create(own)
        doomed = start_worker(own, "workers.personalize")
        with (running(own, "workers.sink", tmp_path / "sink"),  # asked at the end of its block whether it has lived
              running(own, "producers.collector", tmp_path / "collector", CLICKWAKE_COLLECTOR__PORT=str(port),
                      CLICKWAKE_COLLECTOR__WRITE_KEYS='{"t": "key"}')):  # fmt: skip
            produce_events(own, some(0, 300))
            until(lambda: lag(own, "personalize", topics.EVENTS) == 0, 60, "the first events folded")
            until(lambda: stored_events(own.clickhouse) == (300, 300), 60, "and stored")
            collector = f"http://127.0.0.1:{port}"
            until(lambda: answers(f"{collector}/health/ready"), 60, "the collector takes events")
            ballast, sending = fill(small_disk), Acknowledged(own, collector)
            numbers = iter(range(1_000, 40_000, 2))
            until(lambda: sending.send(*some(next(numbers), 2)) or broker.exit_code() is not None, 90, "the broker ends")
            assert not sending.post(some(next(numbers), 1)[0])
            assert "No space left on device" in broker.log.read_text() and "disk is full" in broker.advice()
            broker.stop()
            ballast.unlink()
            broker.start()
            if doomed.poll() is None:  # it had nothing to send in that moment, and waits
                doomed.terminate()
            log = "".join(one.read_text() for one in own.home.glob("*.log"))
            assert doomed.wait(60) == 0 or "the broker refuses" in log
            until(lambda: sending.post(some(next(numbers), 1)[0]), 60, "the collector takes events again")
            sending.close()
            produce_events(own, some(50_000, 50))
            with running(own, "workers.personalize") as worker:
                until(lambda: lag(own, "personalize", topics.EVENTS) == 0, 90, "everything folded")
                worker.stop()
            on_topic = {msgspec.json.decode(record.value)["messageId"] for record in read_all(own, topics.EVENTS)}
            until(lambda: stored_events(own.clickhouse) == (len(on_topic),) * 2, 60, "everything stored once")
        assert_states_are_true(own)
    assert sending.refused["503"] and sending.refused.keys() <= {"kafka", "503"}, "whichever ends first"
    assert sending.ids | {f"m{n}" for n in (*range(300), *range(50_000, 50_050))} <= on_topic


@pytest.mark.timeout(240)
@pytest.mark.parametrize("small_disk", [128], indirect=True)
def test_a_full_disk_at_clickhouse(settings: Settings, small_disk: Path, tmp_path: Path) -> None:
    """The engine refuses by itself; the sink says so, keeps what it has and goes on with it once there is room."""
    data, home = small_disk / "data", tmp_path / "house"
    data.mkdir()
    home.mkdir()
    (home / "clickhouse").symlink_to(data)
    topic_admin.create(settings)
    with ClickHouseServer(home, port=process.free_port()) as house:
        own = settings.model_copy(update={"clickhouse": settings.clickhouse.model_copy(update={"port": house.port})})
        with running(own, "workers.sink") as sink:
            sent = produce_events(own, some(0, 300))
            until(lambda: stored_events(own.clickhouse) == (sent, sent), 60, "the first events stored")
            ballast = fill(small_disk)
            sent += produce_events(own, some(300, 300))
            until(lambda: "sink.retry" in sink.log(), 60, "an insert is refused")
            assert "NOT_ENOUGH_SPACE" in sink.log() or "No space left on device" in sink.log(), sink.log()[-3_000:]
            assert stored_events(own.clickhouse) == (300, 300) and sink_lag(own) == 300
            assert house.exit_code() is None and sink.process.poll() is None
            ballast.unlink()
            until(lambda: stored_events(own.clickhouse) == (sent, sent), 60, "everything stored once there is room")
            until(lambda: sink_lag(own) == 0, 20, "and committed")
    assert read_all(settings, topics.DEAD_LETTERS) == []
