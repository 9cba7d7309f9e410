"""Starting and ending other processes so that none is left behind."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

LOOPBACK = "127.0.0.1"
STOP_TIMEOUT_S = 20.0  # a worker flushes its state and leaves its group within this; Kafka closes its log segments
LOG_BYTES_MAX = 32 << 20  # a longer log becomes `.log.1` at the next start, in place of the one before
CHILDREN_TIMEOUT_S = 1.0  # for what a process started itself, once it is gone
POLL_S = 0.02
# Below those that systems give to outgoing connections (from 32768 on Linux, 49152 on others): a client that connects could
# take such a port before its server, a broker that needs ten seconds or is started again, has bound it.
PORTS = range(20_000, 32_768)
PORTS_TRIED = 100
_LINUX_PR_SET_PDEATHSIG = 1


class StartError(RuntimeError):
    """Something could not be started. The text says what, why, and what to do."""


def spawn(command: Sequence[str], log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None,
          ) -> subprocess.Popen[bytes]:
    """Start `command` in a process group of its own, its output appended to `log`.

    On Linux the kernel kills it when the calling *thread* ends, so call this from a thread that lives as long as the
    process should: then nothing survives even a `kill -9` of the caller. SIGKILL and not SIGTERM, because a worker
    that waits for a broker which is gone too would wait for ever; every part of Clickwake is safe to kill.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        log.replace(log.with_name(log.name + ".1"))
    guard = [sys.executable, "-m", "clickwake.local.process", str(os.getpid())] if sys.platform == "linux" else []
    with log.open("ab") as out:
        return subprocess.Popen([*guard, *command], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                                start_new_session=True, env=dict(env) if env is not None else None, cwd=cwd)


def stop(process: subprocess.Popen[bytes], timeout_s: float = STOP_TIMEOUT_S) -> None:
    """SIGTERM to the process group, SIGKILL to whatever of it is left after `timeout_s`; returns once it is gone.

    The group outlives its leader, so children that the leader started in its last moment are found too.
    """
    members = _family(process.pid)
    _signal_group(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        members += _family(process.pid)
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()
    _await_gone(members, CHILDREN_TIMEOUT_S)
    _signal_group(process.pid, signal.SIGKILL)
    _await_gone(members, CHILDREN_TIMEOUT_S)


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # nobody left in it
        os.killpg(group, number)


def _family(pid: int) -> list[psutil.Process]:
    """The process's descendants; none when it is gone already."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _await_gone(members: list[psutil.Process], timeout_s: float) -> None:
    """They are not our children, so the kernel tells us nothing. A zombie waits for its own parent only: it is gone."""
    deadline = time.monotonic() + timeout_s
    while any(alive(member.pid, member.create_time()) for member in members) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def alive(pid: int, started: float) -> bool:
    """Is `pid` still the process that was started at `started` (seconds since 1970), and not a zombie?"""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def started_at(pid: int) -> float:
    """Seconds since 1970, as the kernel knows it; tells a process from a later one with the same id."""
    return psutil.Process(pid).create_time()


def port_is_free(port: int, host: str = LOOPBACK) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def free_port(preferred: int = 0) -> int:
    """`preferred` when nothing listens there, else any of `PORTS`. Raises `StartError` when none of many is free."""
    if preferred and port_is_free(preferred):
        return preferred
    for _ in range(PORTS_TRIED):
        if port_is_free(port := PORTS.start + secrets.randbelow(len(PORTS))):
            return port
    raise StartError(f"none of {PORTS_TRIED} ports from {PORTS.start} to {PORTS.stop - 1} is free; end what holds them")


def port_answers(port: int, host: str = LOOPBACK, timeout_s: float = 1.0) -> bool:
    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except OSError:
        return False
    return True


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, for error messages."""
    try:
        text = log.read_text(errors="replace")
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:]) or "(empty log)"


def _guarded_exec(parent: int, command: list[str]) -> None:
    """Become `command`, to be killed by the kernel when `parent` dies."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_LINUX_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the signal was armed
        sys.exit(f"parent {parent} is gone, not starting {command[0]}")
    try:
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        sys.exit(f"cannot run {command[0]}: {error.strerror}")


if __name__ == "__main__":
    _guarded_exec(int(sys.argv[1]), sys.argv[2:])
