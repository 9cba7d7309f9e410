"""A worker that joins its group and never consumes: the watchdog ends it, and the supervisor starts it again."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

from clickwake import topics as topic_admin
from clickwake.local.supervisor import Spec, Supervisor
from schemas import topics
from stream.adapters.health.listening import EXIT_STALLED
from stream.settings import Settings
from tests.support.cluster import (
    ROOT,
    assert_states_are_true,
    lag,
    members,
    of_short_sessions,
    produce_events,
    until,
    worker_environment,
)
from tests.support.fakes import event


def test_it_is_ended_and_started_again_and_nothing_is_lost(settings: Settings, tmp_path: Path) -> None:
    settings = of_short_sessions(settings)
    topic_admin.create(settings)
    mark, log = tmp_path / "stall", tmp_path / "worker.log"
    mark.touch()
    supervisor = Supervisor()
    supervisor.start(Spec("personalize", (sys.executable, "-m", "tests.faults.stalling", str(mark)), log,
                          worker_environment(settings, tmp_path / "home"), ROOT))  # fmt: skip
    try:
        until(lambda: members(settings, "personalize") == 1, 60, "it has joined")
        now_ms = time.time_ns() // 1_000_000
        sent = produce_events(settings, [event(user=f"u{n % 20}", item=f"i{n % 7}", id=f"m{n}", ts_ms=now_ms + n)
                                         for n in range(200)])  # fmt: skip
        until(lambda: supervisor.child("personalize").restarts == 1, 90, "it was ended and started again")
        assert not mark.exists() and supervisor.child("personalize").exit_code == EXIT_STALLED
        said = re.search(r"watchdog: \S+\[\d\] has \d+ records waiting and stayed at offset 0 for 1\d s", log.read_text())
        assert said, log.read_text()[-3_000:]
        until(lambda: lag(settings, "personalize", topics.EVENTS) == 0, 60, f"all {sent} events folded")
        assert supervisor.child("personalize").restarts == 1
    finally:
        supervisor.stop_all()
    assert supervisor.exit_code("personalize") == 0
    assert_states_are_true(settings)
