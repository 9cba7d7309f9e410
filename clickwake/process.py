"""Starting and ending other processes so that none is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

LOOPBACK = "127.0.0.1"
STOP_TIMEOUT_S = 20.0  # a worker flushes its state and leaves its group within this; Kafka closes its log segments
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
    guarded = [sys.executable, "-m", "clickwake.process", str(os.getpid()), *command] if sys.platform == "linux" else command
    with log.open("ab") as out:
        return subprocess.Popen(guarded, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                                start_new_session=True, env=dict(env) if env is not None else None, cwd=cwd)


def stop(process: subprocess.Popen[bytes], timeout_s: float = STOP_TIMEOUT_S) -> None:
    """SIGTERM to the process group, SIGKILL to whatever of it is left after `timeout_s`; returns once it is gone."""
    group = _group(process.pid)
    for member in group:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.terminate()
    _, alive = psutil.wait_procs([m for m in group if m.pid != process.pid], timeout=0)
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(alive, timeout=1)
    for member in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(alive, timeout=5)


def _group(pid: int) -> list[psutil.Process]:
    """The process and its descendants; empty when it is gone already."""
    try:
        leader = psutil.Process(pid)
        return [leader, *leader.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


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
    """`preferred` when nothing listens there, else a port the kernel picks."""
    if preferred and port_is_free(preferred):
        return preferred
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


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
