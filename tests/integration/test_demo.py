"""How `make demo KEEP=1` ends: everything stays up, with shop and dashboard, until Ctrl-C ends all of it."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from clickwake.local.up import read_status
from tests.support.demo import ENDED_S, STARTED_S, staying


@pytest.mark.timeout(2 * STARTED_S + ENDED_S)
def test_the_demo_stays_up_with_shop_and_dashboard_until_it_is_ended(tmp_path: Path) -> None:
    with staying(tmp_path) as demo:
        status = read_status(tmp_path)
        assert status is not None and (status.api + "/docs", status.collector + "/docs") == (demo.api, demo.collector)
        processes = psutil.Process(demo.process.pid).children(recursive=True)
        assert len(processes) > 10
        demo.end()
    assert [one for one in processes if one.is_running()] == [] and "Traceback" not in "".join(demo.said)
    assert read_status(tmp_path) is None
