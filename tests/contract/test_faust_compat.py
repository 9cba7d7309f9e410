"""The batch transport against a real broker, with workers as processes: nothing lost, nothing committed too early."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import KafkaError

from clickwake.local.broker import Broker
from clickwake.local.process import free_port
from stream.adapters.health.listening import EXIT_STALLED
from stream.adapters.kafka import producing
from stream.adapters.kafka.global_reader import GlobalReader
from stream.settings import Kafka, Settings

PARTITIONS = 4
WORKER = Path(__file__).with_name("batch_worker.py")
# a slow worker has work for minutes, however late the next one joins it; a quick one does the rest in seconds
SLOW: Mapping[str, Any] = {"hold_ms": 400, "work_ms": 20, "batch_records_max": 100}
QUICK: Mapping[str, Any] = {"hold_ms": 400}
ALL_OF_A_SLOW_WORKER = 150_000  # records a partition: 6,000 batches of 20 ms
Entry = dict[str, Any]


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.05)


class Bench:
    """A topic, the workers on it, and what they logged."""

    def __init__(self, servers: str, prefix: str, folder: Path) -> None:
        self.servers, self.prefix, self.folder = servers, prefix, folder
        self.settings = Settings(kafka=Kafka(bootstrap_servers=servers, topic_prefix=prefix))
        self.admin = KafkaAdminClient(bootstrap_servers=servers)
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.sent = dict.fromkeys(range(PARTITIONS), 0)

    def topic(self, name: str = "events") -> str:
        return f"{self.prefix}.{name}"

    def create(self, name: str = "events", partitions: int = PARTITIONS) -> None:
        self.admin.create_topics([NewTopic(self.topic(name), partitions, 1)])

    async def fill(self, records: int, name: str = "events") -> None:
        producer = producing.create_producer(self.settings)
        await producer.start()
        try:
            await self.send(producer, records, name)
        finally:
            await producer.stop()

    async def send(self, producer: AIOKafkaProducer, records: int, name: str = "events") -> None:
        rows = [(b"k%d" % index, b"v%d" % index, ()) for index in range(records)]
        await producing.send_batches(producer, self.topic(name), dict.fromkeys(range(PARTITIONS), rows))
        for partition in self.sent:
            self.sent[partition] += records

    def start(self, name: str, **options: Any) -> subprocess.Popen[bytes]:
        options = {"topics": [self.topic()], **options, "log": str(self.folder / f"{name}.jsonl"), "servers": self.servers,
                   "home": str(self.folder / name), "prefix": self.prefix}
        with (self.folder / f"{name}.out").open("ab") as output:
            process = subprocess.Popen([sys.executable, str(WORKER), json.dumps(options)], stdout=output,
                                       stderr=subprocess.STDOUT)
        self.workers[name] = process
        return process

    def stop(self, name: str) -> int:
        self.workers[name].send_signal(signal.SIGTERM)
        return self.workers[name].wait(20)

    def kill(self) -> None:
        for process in self.workers.values():
            process.kill()
            process.wait()
        self.admin.close()

    def log(self, name: str, what: str = "") -> list[Entry]:
        path = self.folder / f"{name}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        entries: list[Entry] = [json.loads(line) for line in lines if line.endswith("}")]
        return [entry for entry in entries if not what or entry["what"] == what]

    def committed(self) -> dict[int, int]:
        try:
            offsets = self.admin.list_group_offsets(f"{self.prefix}-worker")[f"{self.prefix}-worker"]
        except KafkaError as error:  # a broker that has just started looks for its group coordinators first
            assert error.retriable, error
            return {}
        return {tp.partition: value.offset for tp, value in offsets.items() if value.offset >= 0}

    def group_size(self) -> int:
        group = f"{self.prefix}-worker"
        return len(self.admin.describe_groups([group])[group]["members"])

    def done(self) -> dict[int, set[int]]:
        covered: dict[int, set[int]] = {partition: set() for partition in range(PARTITIONS)}
        for name in self.workers:
            for entry in self.log(name, "done"):
                covered[entry["partition"]].update(range(entry["first"], entry["next"]))
        return covered

    def assert_commits_are_covered(self) -> None:
        """Committed first, log second: what is committed must have been done before."""
        committed, done = self.committed(), self.done()
        for partition, offset in committed.items():
            assert set(range(offset)) <= done[partition], f"partition {partition} committed {offset} before it was done"

    def all_done(self) -> bool:
        return self.committed() == self.sent

    def assert_deliveries_have_no_gap(self, name: str) -> None:
        """Within an epoch a worker sees each partition's offsets in order and without a gap."""
        expected: dict[tuple[int, int], int] = {}
        for entry in self.log(name, "delivered"):
            assert entry["ordered"]
            lane = (entry["epoch"], entry["partition"])
            assert expected.get(lane, entry["first"]) == entry["first"], f"a gap at {entry}"
            expected[lane] = entry["next"]


@pytest.fixture
def bench(kafka: str, topic_prefix: str, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(kafka, topic_prefix, tmp_path)
    bench.create()
    yield bench
    bench.kill()


async def test_each_record_once_in_order_and_all_committed_at_sigterm(bench: Bench) -> None:
    await bench.fill(5_000)
    bench.start("a", hold_ms=300)
    wait_until(lambda: sum(map(len, bench.done().values())) == 4 * 5_000, "everything is done")
    assert bench.stop("a") == 0
    assert bench.committed() == bench.sent
    bench.assert_deliveries_have_no_gap("a")
    delivered = sum(entry["next"] - entry["first"] for entry in bench.log("a", "delivered"))
    assert delivered == 4 * 5_000
    assert max(entry["next"] - entry["first"] for entry in bench.log("a", "delivered")) <= 500
    assert bench.log("a")[-1]["what"] == "revoked"


async def test_open_batches_survive_joining_leaving_and_a_kill(bench: Bench) -> None:
    await bench.fill(ALL_OF_A_SLOW_WORKER)
    first = bench.start("a", **SLOW)
    wait_until(lambda: len(bench.log("a", "done")) > 5, "a works")
    bench.start("b", **SLOW)
    wait_until(lambda: len(bench.log("b", "done")) > 5, "b works too")
    bench.assert_commits_are_covered()
    assert bench.log("a", "revoked"), "a handed over with batches open"
    bench.start("c", **QUICK)
    wait_until(lambda: len(bench.log("a", "assigned")) == 3, "c joined; four partitions leave it in reserve")
    first.send_signal(signal.SIGKILL)
    bench.assert_commits_are_covered()
    assert bench.stop("b") == 0
    bench.assert_commits_are_covered()
    await bench.fill(1_000)
    wait_until(bench.all_done, "c does the rest", 90)
    assert bench.log("c", "done")
    bench.assert_commits_are_covered()
    assert bench.stop("c") == 0
    for name in "abc":
        bench.assert_deliveries_have_no_gap(name)
    assert {partition: len(offsets) for partition, offsets in bench.done().items()} == bench.sent


async def test_a_commit_never_passes_an_open_batch(bench: Bench) -> None:
    await bench.fill(3_000)
    bench.start("a", never_ack=[0, 0])
    rest = {partition: count for partition, count in bench.sent.items() if partition != 0}
    wait_until(lambda: bench.committed() == rest, "all other partitions are committed")
    assert bench.done()[0], "batches behind the open one were acknowledged"
    assert bench.stop("a") == 0
    assert bench.committed() == rest


async def test_the_watchdog_ends_a_worker_that_stands_still_and_no_other(bench: Bench) -> None:
    await bench.fill(1_000)
    working = bench.start("a", stall_s=2)
    wait_until(bench.all_done, "a works")
    await bench.fill(1_000)
    wait_until(bench.all_done, "a works on")
    assert bench.stop("a") == 0, working.args
    await bench.fill(1_000)
    stuck = bench.start("b", stall_s=2, never_ack=[0, 2_000])
    assert stuck.wait(90) == EXIT_STALLED  # its start included
    assert "events[0] has 1000 records waiting" in (bench.folder / "b.out").read_text()


@pytest.mark.parametrize("where", ["body", "assigned"])
async def test_an_exception_ends_the_process_and_acknowledges_nothing(bench: Bench, where: str) -> None:
    await bench.fill(1_000)
    process = bench.start("a", fail=where)
    assert process.wait(90) == 1
    assert bench.committed() == {}
    assert "on purpose" in (bench.folder / "a.out").read_text()
    bench.start("b")
    wait_until(bench.all_done, "the next worker reads everything")


async def test_a_recovery_longer_than_the_session_keeps_the_partitions(bench: Bench) -> None:
    await bench.fill(100)
    bench.start("a", recovery_s=9)
    wait_until(bench.all_done, "a works after its recovery", 90)
    assert [entry["generation"] for entry in bench.log("a", "assigned")] == [1]
    assert bench.log("a")[1]["what"] == "recovered", "nothing is delivered before that"


async def test_a_coordinator_that_says_late_where_the_group_goes_on_leaves_no_member_that_consumes_nothing(
    bench: Bench,
) -> None:
    """Faust waits as long as for a request, and then gives its recovery up without a word."""
    await bench.fill(1_000)
    bench.start("a", hold_ms=100, committed_takes_s=9, settings={"broker_request_timeout": 7.0})
    wait_until(bench.all_done, "a works when it knows")
    assert [entry["generation"] for entry in bench.log("a", "assigned")] == [1]


async def test_a_member_without_partitions_stays_one(bench: Bench) -> None:
    """aiokafka leaves the group where nothing is fetched for long, and Faust fetches nothing where nothing is assigned."""
    bench.create("narrow", partitions=1)
    for name in "ab":
        bench.start(name, topics=[bench.topic("narrow")], settings={"broker_max_poll_interval": 4.0})
    wait_until(lambda: all(bench.log(name, "recovered") for name in "ab"), "both are members")

    def idle() -> list[str]:
        return [name for name in "ab" if not bench.log(name, "assigned")[-1]["partitions"]]

    wait_until(lambda: len(idle()) == 1, "one has the partition, the other none")
    assigned = {name: len(bench.log(name, "assigned")) for name in "ab"}
    await asyncio.sleep(10)  # longer than it may do nothing: that is what is tested
    assert {name: len(bench.log(name, "assigned")) for name in "ab"} == assigned
    assert bench.group_size() == 2


async def test_a_worker_that_slept_through_its_session_is_fenced(bench: Bench) -> None:
    await bench.fill(ALL_OF_A_SLOW_WORKER)
    sleeper = bench.start("a", **SLOW)
    wait_until(lambda: len(bench.log("a", "done")) > 3, "a works")
    bench.start("b", **QUICK)
    wait_until(lambda: len(bench.log("b", "done")) > 3, "b works")
    wait_until(lambda: bench.log("a")[-1]["what"] == "delivered", "a holds a batch open")
    os.kill(sleeper.pid, signal.SIGSTOP)
    before = len(bench.log("a"))
    wait_until(lambda: bench.all_done(), "b does the rest", 60)
    os.kill(sleeper.pid, signal.SIGCONT)
    wait_until(lambda: len(bench.log("a", "assigned")) > 2, "a is a member again", 60)
    late = bench.log("a")[before:]
    taken_over = late[: next(index for index, entry in enumerate(late) if entry["what"] == "assigned")]
    assert not [entry for entry in taken_over if entry["what"] == "done"], "it wrote what was not its own any more"
    assert [entry for entry in taken_over if entry["what"] == "fenced"], "it had batches open"
    assert bench.stop("a") == 0


async def test_a_worker_whose_coordination_fails_joins_again(bench: Bench) -> None:
    """aiokafka waits until its user asks what failed, and Faust never does."""
    worker = bench.start("a", hold_ms=100, heartbeat_fails=True)
    wait_until(lambda: len(bench.log("a", "recovered")) >= 2, "it has joined a second time")
    await bench.fill(500)
    wait_until(bench.all_done, "everything is done")
    assert worker.poll() is None
    assert "joining it again: KafkaError('a heartbeat fails on purpose')" in (bench.folder / "a.out").read_text()
    bench.assert_deliveries_have_no_gap("a")


async def test_a_worker_that_ends_while_the_group_rebalances_leaves_it(bench: Bench) -> None:
    """Faust closes the consumer's connections from another thread than theirs; then the group waits for a session."""
    await bench.fill(1_000)
    bench.start("a", hold_ms=100, rebalance_at_end=True, session_s=40.0)
    wait_until(bench.all_done, "a works")
    assert bench.stop("a") == 0
    assert bench.group_size() == 0, "the group would wait for it"
    bench.start("b")
    await bench.fill(1_000)
    wait_until(bench.all_done, "the next worker reads on", 30)


async def test_a_worker_has_the_same_partition_numbers_of_all_topics(bench: Bench) -> None:
    bench.create("identity")
    topics = [bench.topic(), bench.topic("identity")]
    for name in "abc":
        bench.start(name, topics=topics)

    def settled() -> bool:
        held = [{tuple(tp) for tp in bench.log(name, "assigned")[-1]["partitions"]} for name in "abc"
                if bench.log(name, "assigned")]
        return len(held) == 3 and sum(map(len, held)) == 8 == len(set().union(*held))

    wait_until(settled, "three workers share eight partitions")
    for name in "abc":
        held = bench.log(name, "assigned")[-1]["partitions"]
        assert {number for topic, number in held if topic == topics[0]} == {n for topic, n in held if topic == topics[1]}


async def test_a_broker_restart_loses_nothing_and_ends_no_worker(tmp_path: Path) -> None:
    with Broker(tmp_path / "broker", port=free_port()) as broker:
        bench = Bench(broker.bootstrap_servers, "restart", tmp_path)
        producer = producing.create_producer(bench.settings)
        got: list[Any] = []
        reader = GlobalReader(bench.settings, bench.topic(), got.extend)
        try:
            bench.create()
            await producer.start()
            await bench.send(producer, 2_000)
            worker = bench.start("a", hold_ms=300)
            wait_until(bench.all_done, "the worker works")
            reader.start()
            await reader.ready()
            bench.admin.close()
            broker.stop()
            sending = asyncio.create_task(bench.send(producer, 1_000))
            await asyncio.sleep(8)  # longer than the session of the test: the outage itself is what is tested
            assert worker.poll() is None, "an outage is no reason to end"
            broker.start()
            await asyncio.to_thread(broker.wait)
            await sending
            bench.admin = KafkaAdminClient(bootstrap_servers=bench.servers)
            await asyncio.to_thread(wait_until, bench.all_done, "it goes on by itself", 60)
            assert worker.poll() is None
            async with asyncio.timeout(30):
                while len(got) < PARTITIONS * 3_000:  # noqa: ASYNC110  # the callback is the condition
                    await asyncio.sleep(0.05)
            assert sorted({(record.partition, record.offset) for record in got}) == [
                (partition, offset) for partition in range(PARTITIONS) for offset in range(3_000)]
            assert bench.stop("a") == 0
            bench.assert_deliveries_have_no_gap("a")
            assert {partition: len(offsets) for partition, offsets in bench.done().items()} == bench.sent
        finally:
            await reader.stop()
            await producer.stop()
            bench.kill()
