"""Kafka or ClickHouse not there yet, or gone for a while: processes say so, wait, and go on without a hand."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import clickhouse_connect
import httpx
import msgspec
import psutil
import pytest
from clickhouse_connect.driver.exceptions import ClickHouseError
from kafka import KafkaProducer

from clickwake import topics as topic_admin
from clickwake.local import process
from clickwake.local.broker import Broker
from clickwake.local.clickhouse.launch import ClickHouseServer
from clickwake.local.up import PROCESSES as ALL
from clickwake.local.up import Local, read_status
from schemas import topics
from schemas.catalog import ItemVector
from schemas.outputs import Recommendation
from stream.settings import Kafka, Settings
from tests.chaos.town import (
    CONSUMING_AGAIN_S,
    FULL,
    Committed,
    assert_aggregates_are_true,
    assert_every_user_is_answered,
    assert_the_recount_agrees,
)
from tests.support import bundles
from tests.support.bundles import Exported
from tests.support.cluster import (
    Worker,
    assert_counts_are_true,
    assert_states_are_true,
    lag,
    produce_events,
    read_all,
    running,
    sink_lag,
    until,
)
from tests.support.fakes import event
from training.release import release as releases

OUTAGE_S = float(os.environ.get("CLICKWAKE_TEST_OUTAGE_S", "20"))
RECOVERY_S = 90.0  # for clients that back off, a group that forms again, and what has piled up
KILLED_AFTER_S = 20.0  # by `clickwake up` and container runtimes
PROCESSES = ALL if FULL else ("catalog", "personalize", "sink", "offers", "collector")  # tests beside this one need room
DELIVERIES = "channels: {files: {type: csv, folder: out}}\ndeliveries: [{name: save them, channel: files, about: churn}]\n"
AGAIN_EVERY = 10  # of so many events one comes twice


def count(settings: Settings, sql: str) -> int:
    """What a query counts; -1 while the tables are not there yet."""
    try:
        client = clickhouse_connect.get_client(host=settings.clickhouse.host, port=settings.clickhouse.port,
                                               database=settings.clickhouse.database)  # fmt: skip
    except ClickHouseError:
        return -1
    try:
        return int(client.query(sql).first_row[0])
    except ClickHouseError as error:
        if "UNKNOWN_TABLE" in str(error):
            return -1
        raise
    finally:
        client.close()


def item_vectors(settings: Settings) -> set[str]:
    values = [msgspec.msgpack.decode(one.value, type=ItemVector) for one in read_all(settings, topics.ITEM_VECTORS)]
    return {one.item.item_id for one in values if one.vector}


def ends_in_time(worker: Worker) -> None:
    """Told to end while Kafka is away it does, before whoever told it would kill it."""
    told_at = time.monotonic()
    worker.stop()
    assert time.monotonic() - told_at < KILLED_AFTER_S, worker.log()[-3_000:]


@pytest.mark.timeout(300)
def test_processes_started_before_kafka_and_clickhouse_wait_for_them(registry: Path, tmp_path: Path) -> None:
    broker, house = Broker(tmp_path, port=process.free_port()), ClickHouseServer(tmp_path, port=process.free_port())
    assert broker._asked_port and house._asked_port
    kafka_at, house_at = f"127.0.0.1:{broker._asked_port}", f"127.0.0.1:{house._asked_port}"
    settings = bundles.with_registry(Settings(home=tmp_path / "home", kafka=Kafka(bootstrap_servers=kafka_at)), registry)
    settings = settings.model_copy(
        update={"clickhouse": settings.clickhouse.model_copy(update={"port": house._asked_port})}
    )
    with ExitStack() as stack:
        stack.callback(house.stop)
        stack.callback(broker.stop)
        personalize, catalog, sink = (stack.enter_context(running(settings, f"workers.{name}", tmp_path / name))
                                      for name in ("personalize", "catalog", "sink"))  # fmt: skip

        def says(worker: Any, address: str, variable: str) -> bool:
            return any(address in line and "clickwake up" in line and variable in line for line in worker.log().splitlines())

        for worker in (personalize, catalog):
            until(lambda worker=worker: says(worker, kafka_at, "CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS"), 40, worker.module)
        until(lambda: says(sink, house_at, "CLICKWAKE_CLICKHOUSE__HOST"), 40, "the sink names ClickHouse")
        house.start()
        until(lambda: says(sink, kafka_at, "CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS"), 40, "the sink names Kafka")
        with running(settings, "workers.offers", tmp_path / "offers-early") as early:
            until(lambda: says(early, kafka_at, "CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS"), 40, "the offers worker names Kafka")
            ends_in_time(early)
        assert all(worker.process.poll() is None for worker in (personalize, catalog, sink))
        broker.start()
        topic_admin.create(settings)
        producer = KafkaProducer(bootstrap_servers=kafka_at, acks="all")
        for item in bundles.ITEMS:
            name = topics.ITEMS.name(settings.kafka.topic_prefix)
            producer.send(name, key=f"t/{item.item_id}".encode(), value=msgspec.json.encode(item))
        producer.close()
        until(lambda: item_vectors(settings) == {item.item_id for item in bundles.ITEMS}, RECOVERY_S, "every item encoded")
        now_ms = time.time_ns() // 1_000_000
        events = [event(user=f"u{n % 40}", ts_ms=now_ms - 400 + n, item=f"i{n % 12}", id=f"m{n}") for n in range(400)]
        produce_events(settings, [*events, *events[::AGAIN_EVERY]])
        until(lambda: lag(settings, "personalize", topics.EVENTS) == 0, RECOVERY_S, "every event folded")
        assert_every_user_is_answered(settings)
        until(lambda: count(settings, "SELECT count() FROM events FINAL") == len(events), RECOVERY_S, "every event stored")
        made = len(read_all(settings, topics.RECOMMENDATIONS))
        until(lambda: count(settings, "SELECT count() FROM recommendations") >= made >= 40, 30, "recommendations stored")
        assert count(settings, "SELECT count() FROM items FINAL") == len(bundles.ITEMS)
        assert_states_are_true(settings)
        assert_the_recount_agrees(settings)
        until(lambda: sink_lag(settings) == 0, 30, "everything committed")
        assert_aggregates_are_true(settings)
        (tmp_path / "delivery").mkdir()
        (tmp_path / "delivery" / "deliveries.yml").write_text(DELIVERIES)
        others = [stack.enter_context(running(settings, f"workers.{name}", tmp_path / name))
                  for name in ("offers", "insights", "delivery")]  # fmt: skip
        for worker in others:
            until(lambda worker=worker: f"{worker.module[8:]} worker ready" in worker.log(), 40, worker.module)
        produce_events(settings, [event(user=f"u{n % 40}", ts_ms=now_ms + n, item="i1", id=f"end{n}") for n in range(3_000)])
        assert broker.pid
        os.kill(broker.pid, signal.SIGKILL)  # while personalize has something to say and to write
        broker.stop()
        with ThreadPoolExecutor(6) as at_once:
            list(at_once.map(ends_in_time, (sink, personalize, catalog, *others)))
        broker.start()


class Town:
    """All processes under their supervisor, on a broker and a ClickHouse that a test may take away, and a client that
    sends events over HTTP and, as clients should, sends again what was not acknowledged; some of what was as well, as do
    those whom the answer did not reach."""

    def __init__(self, local: Local, broker: Broker, house: ClickHouseServer) -> None:
        self.local, self.broker, self.house = local, broker, house
        self.settings = local.settings
        self.acknowledged: list[str] = []
        self.statuses: list[int] = []
        self._over = threading.Event()
        self._client = threading.Thread(target=self._send, name="client")
        self.failure: Exception | None = None

    def _send(self) -> None:
        try:
            where = f"http://127.0.0.1:{self.settings.collector.port}"
            with httpx.Client(base_url=where, auth=("demo-write-key", ""), timeout=30, trust_env=False) as http:
                while not self._over.is_set():
                    body = self._event(len(self.acknowledged))
                    if self._send_one(http, body):
                        self.acknowledged.append(body["messageId"])
                        if len(self.acknowledged) % AGAIN_EVERY == 0:
                            self._send_one(http, body)
        except Exception as error:  # the test's own thread says it
            self.failure = error

    def _event(self, number: int) -> dict[str, Any]:
        return {"messageId": f"m{number}", "userId": f"u{number % 50}", "event": "Product Viewed",
                "timestamp": datetime.now(UTC).isoformat(), "properties": {"product_id": f"i{number % 12}"}}  # fmt: skip

    def _send_one(self, http: httpx.Client, body: dict[str, Any]) -> bool:
        """Whether it was acknowledged before all was over."""
        while not self._over.is_set():
            status = http.post("/v1/track", json=body).status_code
            self.statuses.append(status)
            if status == 200:
                self._over.wait(0.02)  # the client's pace
                return True
            assert status == 503, status
            self._over.wait(0.5)
        return False

    def start(self) -> None:
        self._client.start()

    def stop(self) -> None:
        self._over.set()
        self._client.join()

    def flows(self) -> None:
        """Events are acknowledged again, and what they lead to arrives in ClickHouse."""
        self.flows_to_kafka()
        stored = count(self.settings, "SELECT count() FROM recommendations")
        until(lambda: count(self.settings, "SELECT count() FROM recommendations") > stored >= 0, RECOVERY_S,
              "recommendations of new events stored")  # fmt: skip

    def flows_to_kafka(self) -> None:
        before = len(self.acknowledged)
        until(lambda: len(self.acknowledged) > before + 20 or self.failure, RECOVERY_S, "events are acknowledged")
        assert self.failure is None, self.failure

    def pids(self) -> dict[str, int | None]:
        return {name: self.local.pid(name) for name in PROCESSES}

    def restarts(self) -> dict[str, int]:
        status = read_status(self.local.home)
        assert status is not None
        return {name: one.restarts for name, one in status.processes.items()}


@pytest.fixture
def town(exported: Exported, registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Town]:
    with (Broker(tmp_path, port=process.free_port()) as broker,
          ClickHouseServer(tmp_path, port=process.free_port()) as house):  # fmt: skip
        for name, value in {
            "CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers, "CLICKWAKE_CLICKHOUSE__HOST": "127.0.0.1",
            "CLICKWAKE_CLICKHOUSE__PORT": str(house.port), "CLICKWAKE_MODELS__REGISTRY": str(registry),
            "CLICKWAKE_COLLECTOR__PORT": str(process.free_port()),  # the usual ones are for tests beside this one
            "CLICKWAKE_API__PORT": str(process.free_port()),
            "CLICKWAKE_COLLECTOR__ACK_TIMEOUT_MS": "2000", "CLICKWAKE_PERSONALIZE__RECOMMEND_INTERVAL_MS": "500",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        with Local(tmp_path / "home", processes=PROCESSES) as local:
            bundles.put_vectors(local.settings, [msgspec.structs.replace(one, tenant="demo") for one in bundles.ITEMS])
            releases.release(local.settings, bundles.publish(local.settings.registry, exported).model_version)
            some = Town(local, broker, house)
            some.start()
            try:
                yield some
            finally:
                some.stop()


def outage() -> None:
    time.sleep(OUTAGE_S)  # its length is what is tested; nothing is waited for


@pytest.mark.timeout(120 + 3 * RECOVERY_S + 2 * OUTAGE_S)
def test_kafka_and_then_clickhouse_gone_while_events_flow(town: Town) -> None:
    settings, prefix = town.settings, town.settings.kafka.topic_prefix
    groups = (f"{prefix}-personalize", f"{prefix}.sink")
    town.flows()
    pids = town.pids()

    before = {}
    for group in groups:
        with Committed(settings, group) as committed:
            before[group] = committed()
    assert town.broker.pid
    os.kill(town.broker.pid, signal.SIGKILL)
    town.broker.stop()
    until(lambda: town.statuses[-1] == 503, 30, "the collector says to send again")
    outage()
    with httpx.Client(base_url=f"http://127.0.0.1:{settings.collector.port}", timeout=30, trust_env=False) as http:
        assert [http.get(f"/health/{what}").status_code for what in ("live", "ready")] == [200, 503]
    assert town.pids() == pids, "nobody died of it"
    town.broker.start()
    answers_at = time.monotonic()
    for group in groups:
        with Committed(settings, group) as committed:
            until(lambda group=group: committed() >= before[group], CONSUMING_AGAIN_S,
                  f"the broker knows how far {group} had come")  # fmt: skip
            known = committed()
            until(lambda known=known: committed() > known, RECOVERY_S, f"{group} goes on")
        again_s = time.monotonic() - answers_at
        print(f"{group} consumes again {again_s:.1f} s after the broker answered")
        assert again_s < CONSUMING_AGAIN_S
    town.flows()

    assert town.house.pid
    os.kill(town.house.pid, signal.SIGKILL)
    town.house.stop()
    outage()
    town.flows_to_kafka()  # nobody but the sink notices
    town.house.start()
    town.flows()

    town.stop()
    assert town.failure is None, town.failure
    assert 503 in town.statuses and set(town.statuses) == {200, 503}
    sent = set(town.acknowledged)
    until(lambda: lag(settings, "personalize", topics.EVENTS) == 0, RECOVERY_S, "every event folded")
    until(lambda: count(settings, "SELECT count() FROM events FINAL") >= len(sent), RECOVERY_S, "every event stored")
    assert_every_user_is_answered(settings)
    records = [msgspec.json.decode(record.value)["messageId"] for record in read_all(settings, topics.EVENTS)]
    on_topic = set(records)
    assert len(records) - len(on_topic) >= len(sent) // AGAIN_EVERY - 1
    # an event whose acknowledgement was lost is there too: the client was sending it when it was stopped
    assert sent <= on_topic and len(on_topic - sent) <= 1
    until(lambda: count(settings, "SELECT count() FROM events FINAL") == len(on_topic), 30, "each event once")
    assert count(settings, "SELECT uniqExact(message_id) FROM events") == len(on_topic)
    made = {msgspec.json.decode(one.value, type=Recommendation).recommendation_id
            for one in read_all(settings, topics.RECOMMENDATIONS)}  # fmt: skip
    until(lambda: count(settings, "SELECT uniqExact(recommendation_id) FROM recommendations") == len(made), 30,
          "each recommendation once")  # fmt: skip
    until(lambda: sink_lag(settings) == 0, 30, "everything committed")
    assert count(settings, "SELECT count() FROM dead_letters") == 0
    assert town.pids() == pids and set(town.restarts().values()) == {0}, "no process was restarted"
    assert all(psutil.pid_exists(pid) for pid in pids.values() if pid)
    town.local.stop()  # states are written by now; broker and ClickHouse are still there
    assert_states_are_true(settings)
    assert_counts_are_true(settings)
    assert_the_recount_agrees(settings)
    assert_aggregates_are_true(settings)
