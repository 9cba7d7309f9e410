"""The local runtime: jars, broker, supervisor, topics, and `clickwake up` over them."""

from __future__ import annotations

import collections
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from clickwake import topics
from clickwake.local import broker, kafka_jars, process
from clickwake.local.broker import Broker
from clickwake.local.kafka_jars import Jar
from clickwake.local.process import StartError
from clickwake.local.supervisor import Spec, Supervisor
from clickwake.local.up import Local, read_status
from schemas.topics import EVENTS, TOPICS
from stream.settings import ClickHouse, Kafka, Settings

Usage = collections.namedtuple("Usage", "total used free")


def eventually(holds: Callable[[], Any], timeout_s: float = 15.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := holds()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)
    return value


# --- jars and broker --------------------------------------------------------------------------------------------------

def test_lock_pins_every_jar_and_no_address() -> None:
    jars = kafka_jars.read_lock()
    names = [jar.coordinate for jar in jars]
    assert len(names) == len(set(names)) > 40
    assert f"org.apache.kafka:kafka_2.13:{kafka_jars.KAFKA_VERSION}" in names
    assert all(len(jar.sha256) == 64 for jar in jars)
    assert "//" not in kafka_jars.LOCK.read_text()


@pytest.fixture
def one_jar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], Jar]]:
    """A lock of one jar that `fetch_jars` gets from a stand-in for the Maven repository."""
    good = tmp_path / "good"
    good.write_bytes(b"the jar")
    jar = Jar(kafka_jars.sha256(good), "org.example:thing:1.0")
    monkeypatch.setattr(kafka_jars, "read_lock", lambda: (jar,))
    monkeypatch.setattr(kafka_jars, "user_cache", lambda: tmp_path / "cache")

    def serve(content: bytes) -> Jar:
        class Repository:
            def __init__(self, **_: object) -> None:
                self.path = tmp_path / "downloaded"
                self.path.write_bytes(content)

            def project(self, *_: str) -> Any:
                return self

            at_version = artifact = project

            def resolve(self) -> Path:
                return self.path

        monkeypatch.setattr("jgo.maven.MavenContext", Repository)
        return jar

    yield serve


def test_jar_is_fetched_once_and_a_damaged_one_again(one_jar: Callable[[bytes], Jar], tmp_path: Path) -> None:
    jar = one_jar(b"the jar")
    seen: list[tuple[str, int, int]] = []
    [path] = kafka_jars.fetch_jars(tmp_path, lambda *step: seen.append(step))
    assert seen == [("thing-1.0.jar", 1, 1)]
    one_jar(b"must not be asked for")
    assert kafka_jars.fetch_jars(tmp_path) == [path]
    path.write_bytes(b"flipped")
    one_jar(b"the jar")
    assert kafka_jars.missing(tmp_path) == [jar]
    assert kafka_jars.fetch_jars(tmp_path)[0].read_bytes() == b"the jar"


def test_jar_with_another_hash_starts_nothing(one_jar: Callable[[bytes], Jar], tmp_path: Path) -> None:
    one_jar(b"something else")
    with pytest.raises(StartError, match=r"thing:1\.0 was downloaded with sha256 .* kafka\.lock says"):
        kafka_jars.fetch_jars(tmp_path)
    assert not list((tmp_path / "cache").glob("*.jar"))


def test_broker_says_what_is_missing(tmp_path: Path, kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = int(kafka.rpartition(":")[2])
    with pytest.raises(StartError, match=f"port {taken} .* is taken"):
        Broker(tmp_path, port=taken).start()
    with monkeypatch.context() as patch, pytest.raises(StartError, match="needs Java 17 or newer; found none"):
        patch.setattr(broker, "_java_candidates", list)
        Broker(tmp_path).prepare()
    with monkeypatch.context() as patch, pytest.raises(StartError, match="only 1 MiB are free"):
        patch.setattr("shutil.disk_usage", lambda _: Usage(1, 1, 1 << 20))
        Broker(tmp_path).prepare()


def test_shared_broker_answers_and_another_port_does_not(kafka: str) -> None:
    assert broker.answers(kafka)
    assert not broker.answers(f"{process.LOOPBACK}:{process.free_port()}")


# --- topics -----------------------------------------------------------------------------------------------------------

def with_partitions(kafka: str, prefix: str, partitions: int) -> Settings:
    values = {"bootstrap_servers": kafka, "topic_prefix": prefix, "partitions": partitions}
    return Settings(kafka=Kafka.model_validate(values))


def test_neither_server_listens_beyond_loopback(kafka: str, clickhouse: ClickHouse) -> None:
    sockets = [one for child in psutil.Process().children(recursive=True) for one in child.net_connections("tcp")]
    listening = {(one.laddr.ip.removeprefix("::ffff:"), one.laddr.port) for one in sockets
                 if one.status == psutil.CONN_LISTEN}  # fmt: skip
    assert {int(kafka.rpartition(":")[2]), clickhouse.port} <= {port for _, port in listening}
    assert {ip for ip, _ in listening} <= {"127.0.0.1", "::1"}


def test_topics_are_created_once_and_differences_are_told(kafka: str, topic_prefix: str) -> None:
    settings = with_partitions(kafka, topic_prefix, 3)
    assert topics.describe(settings) == []
    created = topics.create(settings)
    assert [(o.topic, o.result, o.partitions) for o in created] == [
        (t.name(topic_prefix), "created", 3 if t.by_user else t.partitions) for t in TOPICS]
    assert {o.result for o in topics.create(settings)} == {"exists"}
    other = {o.topic: o for o in topics.create(with_partitions(kafka, topic_prefix, 5))}
    events = other[EVENTS.name(topic_prefix)]
    assert (events.result, events.partitions) == ("differs", 3)
    assert events.differences == ("partitions are 3, not 5: set CLICKWAKE_KAFKA__PARTITIONS=3",)


def test_topics_are_kept_as_long_as_settings_say_and_what_operators_gave_others_is_told(
    kafka: str, topic_prefix: str
) -> None:
    def kept(**days: int) -> Settings:
        values = {"bootstrap_servers": kafka, "topic_prefix": topic_prefix, "retention_days": days}
        return Settings(kafka=Kafka.model_validate(values))

    def outcomes(settings: Settings, *, dry: bool = False) -> dict[str, topics.Outcome]:
        return {one.topic: one for one in (topics.describe if dry else topics.create)(settings)}

    events = EVENTS.name(topic_prefix)
    assert {one.result for one in topics.create(kept(events=90))} == {"created"}
    assert {one.result for one in topics.create(kept(events=90))} == {"exists"}, "it was created so"
    (said,) = outcomes(kept())[events].differences
    assert said.startswith("it is kept for 90 days, not 30 days") and "CLICKWAKE_KAFKA__RETENTION_DAYS" in said
    assert outcomes(kept(events=10), dry=True)[events].result == "differs"
    changed = outcomes(kept(events=10))[events]
    assert (changed.result, changed.why) == ("changed", "kept for 10 days, before for 90 days")
    assert {one.result for one in topics.create(kept(events=10))} == {"exists"}


# --- processes --------------------------------------------------------------------------------------------------------

def test_children_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    script = ("import os, signal, sys; from pathlib import Path; from clickwake.local.process import spawn\n"
              "child = spawn(['sleep', '600'], Path(sys.argv[1]))\n"
              "print(child.pid, flush=True); sys.stdin.readline(); os.kill(os.getpid(), signal.SIGKILL)")
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "log")], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        eventually(lambda: child.name() == "sleep")
        parent.communicate("\n")
    eventually(lambda: not child.is_running())


def test_stop_kills_what_ignores_sigterm_with_its_children(tmp_path: Path) -> None:
    script = "trap : TERM; while :; do sleep 600 & echo $!; wait; done"
    started = process.spawn(["sh", "-c", script], tmp_path / "log")
    eventually(lambda: (tmp_path / "log").read_text())
    process.stop(started, timeout_s=2.0)
    assert started.returncode == -signal.SIGKILL
    children = [int(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert len(children) >= 2  # another after the first got its SIGTERM
    eventually(lambda: not any(psutil.pid_exists(pid) for pid in children))


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    kept = Supervisor()
    yield kept
    kept.stop_all()


def test_supervisor_restarts_what_dies_and_ends_all(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(Spec("steady", ("sleep", "600"), tmp_path / "steady.log"))
    supervisor.start(Spec("dying", ("sh", "-c", "echo run; exit 7"), tmp_path / "dying.log"))
    steady = supervisor.child("steady").pid
    assert steady
    eventually(lambda: supervisor.child("dying").restarts >= 2)
    assert supervisor.child("dying").exit_code == 7
    assert (tmp_path / "dying.log").read_text().count("run") >= 2
    os.kill(steady, signal.SIGKILL)
    second = eventually(lambda: supervisor.child("steady").pid not in (None, steady) and supervisor.child("steady").pid)
    supervisor.restart("steady")
    third = supervisor.child("steady").pid
    assert third != second
    with pytest.raises(LookupError, match="no process 'nothing' here; there are steady, dying"):
        supervisor.restart("nothing")
    supervisor.stop_all()
    assert not any(psutil.pid_exists(pid) for pid in (second, third) if pid)
    assert {child.state for child in supervisor.children()} == {"stopped"}


def test_backoff_grows(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(Spec("dying", ("false",), tmp_path / "log"))
    started = time.monotonic()
    eventually(lambda: supervisor.child("dying").restarts >= 2)
    assert time.monotonic() - started > 1.4  # 0.5 s and 1 s
    assert supervisor.child("dying").failures >= 2


def test_a_full_disk_does_not_end_the_keeper(tmp_path: Path) -> None:
    full = True

    def note() -> None:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    kept = Supervisor(on_change=note)
    logs = tmp_path / "logs"
    kept.start(Spec("dying", ("false",), logs / "dying.log"))
    shutil.rmtree(logs)
    logs.write_bytes(b"")  # no folder: its log cannot be opened, so the next start fails
    eventually(lambda: kept.child("dying").failures >= 2)
    logs.unlink()
    full = False
    restarts = kept.child("dying").restarts
    eventually(lambda: kept.child("dying").restarts > restarts and (logs / "dying.log").exists())
    kept.stop_all()


# --- clickwake up -----------------------------------------------------------------------------------------------------

@pytest.fixture
def external(kafka: str, clickhouse: ClickHouse, topic_prefix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Settings by environment, as for servers that run elsewhere; returns the home."""
    for name, value in {"CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS": kafka, "CLICKWAKE_KAFKA__TOPIC_PREFIX": topic_prefix,
                        "CLICKWAKE_CLICKHOUSE__HOST": clickhouse.host, "CLICKWAKE_CLICKHOUSE__PORT": str(clickhouse.port),
                        "CLICKWAKE_CLICKHOUSE__DATABASE": topic_prefix, "CLICKWAKE_HOME": str(tmp_path / "home"),
                        # the usual one is for an installation of tests beside this one
                        "CLICKWAKE_COLLECTOR__PORT": str(process.free_port())}.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "home"


def test_external_servers_are_used_and_not_started(external: Path, kafka: str) -> None:
    with Local(external, processes=("collector",)) as local:
        assert local.names() == ["collector"]
        assert local.settings.kafka.bootstrap_servers == kafka
        status = read_status(external)
        assert status and status.ready and status.processes["collector"].pid == local.pid("collector")
        assert "KAFKA" not in (external / "local.env").read_text()
        with pytest.raises(StartError, match="already: see `clickwake status`"):
            Local(external, processes=()).start()
        first = local.pid("collector")
        assert first
        os.kill(first, signal.SIGKILL)
        eventually(lambda: local.pid("collector") not in (None, first))
        local.restart("collector")
        last = local.pid("collector")
    assert last and not psutil.pid_exists(last)
    assert read_status(external) is None
    assert not (external / "local.env").exists()


def test_a_process_that_cannot_start_leaves_nothing(external: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLICKWAKE_COLLECTOR__PORT", os.environ["CLICKWAKE_CLICKHOUSE__PORT"])
    with pytest.raises(StartError, match=r"collector ended with code \d+.\nEnd of .*collector\.log") as caught:
        Local(external, processes=("collector",)).start()
    assert os.environ["CLICKWAKE_CLICKHOUSE__PORT"] in str(caught.value)
    assert read_status(external) is None
    with pytest.raises(StartError, match="no such process: nothing"):
        Local(external, processes=("nothing",))


def clickwake(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "clickwake", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_detached_up_status_and_down(external: Path) -> None:
    assert clickwake("status").returncode == 3
    up = clickwake("up", "--detach", "--only", "collector")
    assert up.returncode == 0, up.stderr
    try:
        status = json.loads(clickwake("status", "--json").stdout)
        assert status["ready"]
        pids = [status["pid"], status["processes"]["collector"]["pid"]]
    finally:
        down = clickwake("down")
    assert "stopped in" in down.stderr
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert "nothing runs" in clickwake("down").stderr


def test_up_starts_its_own_servers_and_a_kill_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLICKWAKE_HOME", str(tmp_path))
    up = clickwake("up", "--detach", "--only", "collector")
    assert up.returncode == 0, up.stderr
    status = read_status(tmp_path)
    assert status and set(status.processes) == {"kafka", "clickhouse", "collector"}
    try:
        env = (tmp_path / "local.env").read_text()
        assert f"CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS={status.kafka}\n" in env
        migrated = clickwake("sql", "--json", "SELECT count() > 0 AS migrated FROM schema_migrations")
        assert migrated.stdout == '{"migrated":1}\n'
        assert {o["result"] for o in json.loads(clickwake("topics", "--json", "--dry-run").stdout)} == {"exists"}
        checks = {check["name"]: check["level"] for check in json.loads(clickwake("doctor", "--json").stdout)}
        assert {checks[name] for name in ("python", "java", "jars", "engine", "disk", "kafka", "clickhouse")} == {"ok"}
    finally:
        os.kill(status.pid, signal.SIGKILL)
    pids = [status.pid, *(child.pid for child in status.processes.values() if child.pid)]
    eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    assert read_status(tmp_path) is None


def test_sql_prints_tables_formats_and_errors(external: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLICKWAKE_CLICKHOUSE__DATABASE", "default")
    table = clickwake("sql", "SELECT 'it[s]' AS name, 42 AS answer, NULL AS nothing")
    assert all(text in table.stdout for text in ("name", "it[s]", "42", "∅", "1 rows"))
    assert clickwake("sql", "--format", "CSVWithNames", "SELECT 1 AS a").stdout == '"a"\n1\n'
    failed = clickwake("sql", "SELECT * FROM no_such_table")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "UNKNOWN_TABLE" in failed.stderr
    port = process.free_port()
    monkeypatch.setenv("CLICKWAKE_CLICKHOUSE__PORT", str(port))
    assert f"no ClickHouse answers at 127.0.0.1:{port}" in clickwake("sql", "SELECT 1").stderr
