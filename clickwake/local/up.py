"""Everything on one machine: broker, ClickHouse, topics, tables and processes, under one supervisor.

    with Local(Path(".clickwake")) as local:
        ...                          # local.settings reaches what runs
        local.restart("personalize")

What is started is written to `<home>/local.env`, which `stream.settings.load()` reads, and to `<home>/run/up.json`.
A broker or ClickHouse that the environment names is used and not started.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Self

import httpx
import msgspec

from clickwake.local import process
from clickwake.local.broker import Broker
from clickwake.local.clickhouse.launch import ClickHouseServer
from clickwake.local.process import StartError
from clickwake.local.supervisor import Spec, Supervisor
from schemas.unreadable import UNREADABLE
from stream.settings import Settings

MODULES = {
    "catalog": "workers.catalog", "personalize": "workers.personalize", "sink": "workers.sink", "erasure": "workers.erasure",
    "delivery": "workers.delivery", "offers": "workers.offers", "insights": "workers.insights", "api": "workers.api",
    "collector": "producers.collector", "training": "training.schedule", "shop": "clickwake.storefront",
    "dashboard": "clickwake.dashboard",
}  # fmt: skip
PROCESSES = ("catalog", "personalize", "insights", "sink", "erasure", "delivery", "offers", "api", "collector")
SERVE_HTTP = ("api", "collector", "shop", "dashboard")  # they listen at a port of their settings
SAY_READY = ("sink", "offers")  # in a file of theirs
SERVERS = ("kafka", "clickhouse")  # stopped after the processes that use them
READY_PATH = {"api": "/health/ready", "collector": "/health/ready", "dashboard": "/health/live"}
READY_TIMEOUT_S = 120.0
SETTLED_S = 3.0  # a process that says nothing of itself counts as ready once it has lived this long
POLL_S = 0.1
# Of glibc; by themselves the two thresholds rise to 32 MB once a large block was freed. Then the buffers of a backlog come
# from the heap and leave holes in it, and memory that was needed once stays with the process. Fixed, they go back. The
# Dockerfile sets the same.
MALLOC = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}

Say = Callable[[str], None]


class ProcessStatus(msgspec.Struct, frozen=True, kw_only=True):
    state: str
    pid: int | None
    started_at: float
    restarts: int
    exit_code: int | None
    log: str


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """`<home>/run/up.json`: what runs where. `started_at` is seconds since 1970, as for every process."""

    pid: int
    started_at: float
    ready: bool
    kafka: str
    clickhouse: str
    collector: str
    api: str
    processes: dict[str, ProcessStatus]


def read_status(home: Path) -> Status | None:
    """What `up` runs in this home; None when nothing does (a file left by a killed supervisor does not count)."""
    path = home / "run" / "up.json"
    try:
        status = msgspec.json.decode(path.read_bytes(), type=Status)
    except (FileNotFoundError, *UNREADABLE):
        return None
    return status if process.alive(status.pid, status.started_at) else None


class Local:
    """A running installation. `processes` names which of `PROCESSES` to run (all); `workers` is how many personalize
    processes share the partitions; `train_every` (such as `6h`) runs the training schedule too."""

    def __init__(self, home: Path, *, processes: Sequence[str] | None = None, workers: int = 1,
                 train_every: str | None = None, say: Say | None = None) -> None:
        self.home = home.absolute()
        self._names = tuple(PROCESSES if processes is None else processes)
        if unknown := set(self._names) - set(MODULES):
            raise StartError(f"no such process: {', '.join(sorted(unknown))}; there are {', '.join(MODULES)}")
        self._workers, self._train_every = workers, train_every
        self._say: Say = say or (lambda _: None)
        self._supervisor = Supervisor(on_change=self._write_status)
        self._lock: IO[bytes] | None = None
        self._ready = False
        self._started_at = process.started_at(os.getpid())
        self.settings = Settings(home=self.home)

    def start(self) -> Self:
        """Start everything and return once it is ready. On failure nothing is left running; raises `StartError`."""
        self._take_home()
        try:
            self._start_servers()
            self._prepare()
            self._start_processes()
        except BaseException:
            self.stop()
            raise
        self._ready = True
        self._write_status()
        return self

    def stop(self) -> None:
        """End the processes, then the servers; a second call does nothing."""
        self._ready = False
        self._supervisor.stop_all(last=SERVERS)
        if self._lock:
            for name in ("local.env", "run/up.json"):
                (self.home / name).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def add(self, name: str) -> None:
        """Start one more process of `MODULES`; returns once it is ready. Raises `StartError`."""
        self._run(name, [sys.executable, "-m", _module(name)], self.home / "logs" / f"{name}.log")
        self._await_ready(name)

    def restart(self, name: str) -> None:
        """End one process or server and start it again; returns once it is ready."""
        self._supervisor.restart(name)
        self._await_ready(name)

    def end(self, name: str) -> None:
        """End one process and leave it so, until `restart`."""
        self._supervisor.stop(name)

    def pid(self, name: str) -> int | None:
        """The process id now; None while it is down. Raises `LookupError` for a name that is not run here."""
        return self._supervisor.child(name).pid

    def names(self) -> list[str]:
        return [child.spec.name for child in self._supervisor.children()]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _take_home(self) -> None:
        """One supervisor a home. The lock goes with this process, however it ends."""
        run = self.home / "run"
        try:
            run.mkdir(parents=True, exist_ok=True)
            lock = (run / "up.lock").open("ab")
        except OSError as error:
            raise StartError(f"cannot write to {run}: {error.strerror}. Set CLICKWAKE_HOME to a folder you own") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise StartError(f"Clickwake runs in {self.home} already: see `clickwake status`, "
                             "end it with `clickwake down`") from error
        self._lock = lock
        for stale in (self.home / "local.env", *run.glob("*.json")):  # of a supervisor that was killed
            stale.unlink(missing_ok=True)

    def _start_servers(self) -> None:
        kafka, clickhouse = self.settings.kafka, self.settings.clickhouse
        lines = []
        if "bootstrap_servers" not in kafka.model_fields_set:
            _require("jgo", "local", "a broker on this machine", "set CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS to one that runs")
            self._say("Kafka: checking the jars")
            self._broker = Broker(self.home, progress=lambda jar, n, total: self._say(f"Kafka: {jar} ({n} of {total})"))
            self._run("kafka", self._broker.prepare(), self._broker.log)
            lines.append(f"CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS={self._broker.bootstrap_servers}")
        if "host" not in clickhouse.model_fields_set:
            _require("chdb", "local", "ClickHouse on this machine", "set CLICKWAKE_CLICKHOUSE__HOST to one that runs")
            self._server = ClickHouseServer(self.home, clickhouse.port if "port" in clickhouse.model_fields_set else None)
            self._run("clickhouse", self._server.prepare(), self._server.log)
            lines.append(f"CLICKWAKE_CLICKHOUSE__PORT={self._server.port}")
        for name in SERVE_HTTP:
            wanted = getattr(self.settings, name)
            if "port" not in wanted.model_fields_set:
                lines.append(f"CLICKWAKE_{name.upper()}__PORT={process.free_port(wanted.port)}")
        text = "\n".join(["# Written by `clickwake up`, removed when it ends.", *lines, ""])
        (self.home / "local.env").write_text(text)
        self.settings = Settings(home=self.home, _env_file=self.home / "local.env")
        for name in self.names():
            self._say(f"{name}: starting")
            self._await_ready(name)

    def _prepare(self) -> None:
        from clickwake.topics import create
        from stream.adapters.database.clickhouse import migrate

        self._say("topics")
        for outcome in create(self.settings):
            for difference in outcome.differences:
                self._say(f"{outcome.topic}: {difference}")
        self._say("tables")
        migrate(self.settings.clickhouse)

    def _start_processes(self) -> None:
        names = [*self._names, *(f"personalize-{n}" for n in range(2, self._workers + 1) if "personalize" in self._names)]
        if self._train_every and "training" not in names:
            names.append("training")
        for name in names:
            self._run(name, [sys.executable, "-m", _module(name)], self.home / "logs" / f"{name}.log")
        for name in names:
            self._say(f"{name}: starting")
            self._await_ready(name)

    def _run(self, name: str, command: Sequence[str], log: Path) -> None:
        env = MALLOC | os.environ | {"CLICKWAKE_HOME": str(self.home), "PYTHONUNBUFFERED": "1"}
        if name.startswith("personalize"):  # its products are small: BLAS threads would only spin on cores others need
            env.setdefault("OPENBLAS_NUM_THREADS", "1")
        if self._train_every:
            env["CLICKWAKE_TRAINING__EVERY"] = self._train_every
        self._supervisor.start(Spec(name, tuple(command), log, env))

    def _await_ready(self, name: str) -> None:
        """Raises `StartError` with the end of the log when it dies first."""
        def exit_code() -> int | None:
            return self._supervisor.exit_code(name)

        if name == "kafka":
            self._broker.wait(exit_code=exit_code)
        elif name == "clickhouse":
            self._server.wait(exit_code=exit_code)
        else:
            self._await_process(name, exit_code)

    def _await_process(self, name: str, exit_code: Callable[[], int | None]) -> None:
        child = self._supervisor.child(name)
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self._is_ready(name):
            code, late = exit_code(), time.monotonic() > deadline
            if late and code is None and name not in SERVE_HTTP:
                self._say(f"{name}: still starting (a large state takes its time), see {child.spec.log}")
                return
            if late or code is not None:
                what = f"was not ready after {READY_TIMEOUT_S:.0f} s" if code is None else f"ended with code {code}"
                raise StartError(f"{name} {what}.\nEnd of {child.spec.log}:\n{process.tail(child.spec.log)}")
            time.sleep(POLL_S)  # processes say they are ready by answering or by a file; there is nothing to wait on

    def _is_ready(self, name: str) -> bool:
        child = self._supervisor.child(name)
        if name in SERVE_HTTP:
            url = f"http://{process.LOOPBACK}:{getattr(self.settings, name).port}{READY_PATH.get(name, '/')}"
            try:
                answer = httpx.get(url, timeout=5, trust_env=False)
            except httpx.HTTPError:
                return False
            return answer.status_code == 200
        if name == "insights" or name.startswith("personalize"):  # it says so once its partitions are open
            return (self.home / "run" / f"{name.split('-', maxsplit=1)[0]}-{child.pid}.json").exists()
        if name in SAY_READY:
            return self._said_ready(name, child.pid)
        return time.time() - child.started_at > SETTLED_S

    def _said_ready(self, name: str, pid: int | None) -> bool:
        try:
            found = msgspec.json.decode((self.home / "run" / f"{name}.json").read_bytes())
        except FileNotFoundError:
            return False
        return bool(found["pid"] == pid and found["ready"])

    def _write_status(self) -> None:
        if not self._lock:
            return
        processes = {
            child.spec.name: ProcessStatus(state=child.state, pid=child.pid, started_at=child.started_at,
                                           restarts=child.restarts, exit_code=child.exit_code, log=str(child.spec.log))
            for child in self._supervisor.children()}
        settings = self.settings
        status = Status(
            pid=os.getpid(), started_at=self._started_at, ready=self._ready, kafka=settings.kafka.bootstrap_servers,
            clickhouse=f"http://{settings.clickhouse.host}:{settings.clickhouse.port}",
            collector=f"http://{settings.collector.host}:{settings.collector.port}",
            api=f"http://{settings.api.host}:{settings.api.port}", processes=processes)
        draft = self.home / "run" / f"up.{threading.get_ident()}.tmp"
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(status)))
        draft.replace(self.home / "run" / "up.json")


def _require(module: str, extra: str, what: str, otherwise: str) -> None:
    """Raises `StartError` when an optional dependency is not installed."""
    if importlib.util.find_spec(module) is None:
        raise StartError(f"{what} needs the `{extra}` extra: `pip install '.[{extra}]'` in the repository, or {otherwise}")


def _module(name: str) -> str:
    """The module of a process. Raises `StartError` when what it needs is not installed."""
    base = name.rpartition("-")[0] if name.rpartition("-")[2].isdigit() else name
    module = MODULES[base]
    if base == "training":
        _require("torch", "train", "training", "leave --train-every out")
    if importlib.util.find_spec(module) is None:
        raise StartError(f"{name} cannot start: there is no module {module} in this installation")
    return module


def run(home: Path, *, on_ready: Callable[[Local], None], say: Say, **options: Any) -> None:
    """Start, then wait for SIGINT or SIGTERM, then stop. What `clickwake up` does in the foreground."""
    over = threading.Event()
    starting = True

    def end(*_: object) -> None:
        first = not over.is_set()
        over.set()
        if starting and first:
            raise Interrupted

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    local = Local(home, say=say, **options)
    try:
        local.start()
        starting = False
        on_ready(local)
        over.wait()
        say("stopping")
    except Interrupted:
        say("interrupted while starting")
    finally:
        local.stop()
        for number, handler in before.items():
            signal.signal(number, handler)


class Interrupted(Exception):
    """A signal came while things were being started."""


def down(home: Path, timeout_s: float = 90.0) -> bool:
    """End what `up` runs in this home, from any process; False when nothing did. Returns when all of it is gone."""
    import psutil

    status = read_status(home)
    if status is None:
        return False
    members = []
    for pid in (status.pid, *(child.pid for child in status.processes.values() if child.pid)):
        with contextlib.suppress(psutil.NoSuchProcess):
            members.append(psutil.Process(pid))
    if not members or members[0].pid != status.pid:
        return False
    members[0].terminate()
    psutil.wait_procs(members[:1], timeout=timeout_s)
    _, alive = psutil.wait_procs(members[1:], timeout=5)  # the kernel ends them with the supervisor
    for member in (*members[:1], *alive):
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(members, timeout=5)
    return True
