"""Keeps a handful of processes running: restarts what dies, ends all of them together.

One thread, the keeper, starts every child and waits for what happens next; a small thread a child waits for its end.
The keeper lives as long as the supervisor, which matters: the kernel kills the children when the thread that started
them ends (see `clickwake.local.process.spawn`), so they never outlive this process.
"""

from __future__ import annotations

import queue
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import structlog

from clickwake.local import process

BACKOFF_S_FIRST = 0.5
BACKOFF_S_MAX = 30.0
HEALTHY_S = 60.0  # after this long a process counts as recovered, and its next restart is quick again

State = Literal["starting", "running", "waiting to restart", "stopped"]
log = structlog.get_logger("supervisor")


@dataclass(frozen=True)
class Spec:
    """What to run. `command` must be able to run again after the process died."""

    name: str
    command: tuple[str, ...]
    log: Path
    env: Mapping[str, str] | None = None
    cwd: Path | None = None


@dataclass
class Child:
    spec: Spec
    state: State = "starting"
    pid: int | None = None
    started_at: float = 0.0  # seconds since 1970
    restarts: int = 0
    exit_code: int | None = None  # of the last end
    process: subprocess.Popen[bytes] | None = None
    due_at: float | None = None  # monotonic; when to start it again
    failures: int = 0  # in a row


@dataclass
class Supervisor:
    """`on_change` is called from the keeper after each start and each end; when it cannot write, the log says so."""

    on_change: Callable[[], None] | None = None
    _children: dict[str, Child] = field(default_factory=dict)
    _orders: queue.Queue[Callable[[], None]] = field(default_factory=queue.Queue)
    _keeper: threading.Thread | None = None
    _closing: bool = False

    def start(self, spec: Spec) -> None:
        """Start a child and keep it running. Returns once it was started, not once it is ready."""
        self._order(lambda: self._start(Child(spec)))

    def stop(self, name: str) -> None:
        """End a child and do not restart it; returns when it is gone."""
        self._order(lambda: self._stop(self._child(name)))

    def restart(self, name: str) -> None:
        """End a child and start it again."""
        def act() -> None:
            child = self._child(name)
            self._stop(child)
            child.restarts += 1
            self._start(child)

        self._order(act)

    def stop_all(self, last: tuple[str, ...] = ()) -> None:
        """End every child: all but those named `last` at the same time, then those; returns when none is left."""
        if self._keeper is None:
            return
        self._order(lambda: self._stop_all(last))
        self._closing = True
        self._orders.put(lambda: None)
        self._keeper.join()
        self._keeper = None

    def children(self) -> list[Child]:
        return list(self._children.values())

    def child(self, name: str) -> Child:
        """Raises `LookupError` with the names there are."""
        return self._child(name)

    def exit_code(self, name: str) -> int | None:
        """None while it runs."""
        child = self._child(name)
        return child.exit_code if child.state != "running" else None

    def _child(self, name: str) -> Child:
        if name not in self._children:
            raise LookupError(f"no process {name!r} here; there are {', '.join(self._children) or 'none'}")
        return self._children[name]

    # --- everything below runs in the keeper, except `_order` and `_await_end` ---

    def _order(self, act: Callable[[], None]) -> None:
        if self._keeper is None:
            self._closing = False
            self._keeper = threading.Thread(target=self._keep, name="supervisor", daemon=True)
            self._keeper.start()
        done: Future[None] = Future()

        def run() -> None:
            try:
                act()
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        self._orders.put(run)
        done.result()

    def _keep(self) -> None:
        while not self._closing:
            due = [child.due_at for child in self._children.values() if child.due_at is not None]
            try:
                order = self._orders.get(timeout=max(0.0, min(due) - time.monotonic()) if due else None)
            except queue.Empty:
                self._start_due()
            else:
                order()
        self._changed()

    def _start_due(self) -> None:
        now = time.monotonic()
        for child in list(self._children.values()):
            if child.due_at is not None and child.due_at <= now:
                child.restarts += 1
                try:
                    self._start(child)
                except OSError as error:  # no room for its log, no memory for a process
                    log.error("not started", process=child.spec.name, error=str(error), again_in_s=self._put_off(child))

    def _put_off(self, child: Child) -> float:
        """Seconds until it is started again: twice as long after each failure in a row."""
        child.failures += 1
        wait_s: float = min(BACKOFF_S_MAX, BACKOFF_S_FIRST * 2 ** (child.failures - 1))
        child.due_at = time.monotonic() + wait_s
        return wait_s

    def _start(self, child: Child) -> None:
        spec = child.spec
        child.due_at = None
        started = process.spawn(spec.command, spec.log, spec.env, spec.cwd)
        child.process, child.pid, child.state, child.started_at = started, started.pid, "running", time.time()
        self._children[spec.name] = child
        threading.Thread(target=self._await_end, args=(child, started), name=f"wait-{spec.name}", daemon=True).start()
        log.info("started", process=spec.name, pid=started.pid, restarts=child.restarts)
        self._changed()

    def _await_end(self, child: Child, started: subprocess.Popen[bytes]) -> None:
        started.wait()
        self._orders.put(lambda: self._ended(child, started))

    def _ended(self, child: Child, ended: subprocess.Popen[bytes]) -> None:
        """A child is gone. Those that were told to go are `stopped` by now; any other is to come back."""
        if child.process is not ended or child.state != "running":
            return
        child.exit_code, child.pid, child.state = ended.returncode, None, "waiting to restart"
        lived_s = time.time() - child.started_at
        if lived_s > HEALTHY_S:
            child.failures = 0
        log.warning("died", process=child.spec.name, exit_code=child.exit_code, lived_s=round(lived_s, 1),
                    again_in_s=self._put_off(child), log=str(child.spec.log))
        self._changed()

    def _stop(self, child: Child) -> None:
        child.state, child.due_at = "stopped", None
        if child.process is not None:
            process.stop(child.process)
            child.exit_code = child.process.returncode
            log.info("stopped", process=child.spec.name, exit_code=child.exit_code)
        child.pid = None
        self._changed()

    def _stop_all(self, last: tuple[str, ...]) -> None:
        self._stop_together([child for name, child in self._children.items() if name not in last])
        self._stop_together([child for name, child in self._children.items() if name in last])

    def _stop_together(self, children: list[Child]) -> None:
        for child in children:
            child.state, child.due_at = "stopped", None
        running = [child.process for child in children if child.process is not None]
        with ThreadPoolExecutor(max(1, len(running))) as threads:  # each may take its time
            list(threads.map(process.stop, running))
        for child in children:
            child.pid, child.exit_code = None, child.process.returncode if child.process else None
        self._changed()

    def _changed(self) -> None:
        if self.on_change is None:
            return
        try:
            self.on_change()
        except OSError as error:  # a full disk must not end the keeper, with nobody left to restart the children
            log.error("status not written", error=str(error), so="what is shown of these processes is out of date")
