"""What a benchmark sees of a running installation from outside: lags, processor time, rows."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
from kafka.structs import OffsetAndMetadata

from clickwake.local.up import Local
from stream.adapters.health.lag import Lag, Offsets

POLL_S = 0.05  # Kafka tells nobody when a group commits
WAIT_S_MAX = 240.0


class BenchFailed(RuntimeError):
    """A step did not come to its end, or a count is wrong; the text says which."""


class Places(Lag):
    """Lags, and where a group begins."""

    def place(self, group: str, offsets: Offsets) -> None:
        """Let a group that nobody is in begin at these offsets."""
        self.admin.alter_group_offsets(group, {tp: OffsetAndMetadata(offset, "", -1) for tp, offset in offsets.items()})


def until_zero(left: Callable[[], int], what: str, tell: Callable[[str], None]) -> float:
    """Wait until nothing is left; returns the monotonic time at which that was seen. Raises `BenchFailed`."""
    deadline = time.monotonic() + WAIT_S_MAX
    while (count := left()) > 0:
        if time.monotonic() > deadline:
            raise BenchFailed(f"{what}: {count} left after {WAIT_S_MAX:.0f} s")
        tell(f"{what}: {count:,} left")
        time.sleep(POLL_S)
    return time.monotonic()


@contextmanager
def stopped(local: Local, names: Iterable[str]) -> Iterator[None]:
    """Processes held with SIGSTOP: for less than the session timeout they stay members of their groups, and read nothing."""
    pids = [pid for name in names if (pid := local.pid(name)) is not None]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def cpu_seconds(local: Local) -> dict[str, float]:
    """Processor time so far, by process."""
    found = {}
    for name in local.names():
        pid = local.pid(name)
        if pid is not None:
            times = psutil.Process(pid).cpu_times()
            found[name] = times.user + times.system
    return found


def spent(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """
    >>> spent({"sink": 1.0}, {"sink": 3.25})
    {'sink': 2.25}
    """
    return {name: round(after[name] - before[name], 2) for name in after if name in before}


def number(client: Any, sql: str) -> int:
    """The one number a query answers."""
    return int(client.query(sql).result_rows[0][0])


def expect(what: str, found: int, wanted: int) -> None:
    """A wrong count is an error, not a figure."""
    if found != wanted:
        raise BenchFailed(f"{what}: ClickHouse has {found:,}, it should have {wanted:,}")
