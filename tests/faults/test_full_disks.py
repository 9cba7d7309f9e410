"""A disk that is full: the process ends and says so, nothing is lost, and with room it goes on where it was."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clickwake import topics as topic_admin
from schemas import topics
from stream.settings import Settings
from tests.support.cluster import comparable, lag, oracle, produce_events, running, start_worker, stored_states, until
from tests.support.fakes import event

DISK_MB = 48


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of DISK_MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system may be mounted here")
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


@pytest.mark.timeout(240)
def test_a_full_disk_under_the_state_store(settings: Settings, small_disk: Path, tmp_path: Path) -> None:
    topic_admin.create(settings)
    state = small_disk / "state"
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    state.mkdir()
    (home / "state").symlink_to(state)
    with running(settings, "workers.personalize", home) as first:
        produce_events(settings, some(0, 500))
        until(lambda: lag(settings, "personalize", topics.EVENTS) == 0, 60, "the first events folded")
        first.stop()
    ballast = fill(small_disk)
    doomed = start_worker(settings, "workers.personalize", home)
    produce_events(settings, some(500, 100))
    until(lambda: doomed.poll() is not None, 90, "it ends")
    log = "".join(path.read_text() for path in home.glob("*.log"))
    assert "No space left on device" in log and ("make room" in log or "cannot be opened" in log), log[-3_000:]
    ballast.unlink()
    with running(settings, "workers.personalize", home) as third:
        produce_events(settings, some(600, 50))
        until(lambda: lag(settings, "personalize", topics.EVENTS) == 0, 60, "everything folded")
        third.stop()
    truth, found = oracle(settings), stored_states(settings)
    assert {key: comparable(one) for key, one in found.items()} == {key: comparable(one) for key, one in truth.items()}
