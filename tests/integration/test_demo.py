"""How `make demo KEEP=1` ends: everything stays up, with shop and dashboard, until Ctrl-C ends all of it. What comes before
takes minutes; the tests of the simulator, of training and of the workers have its parts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from clickwake.up import read_status
from tests.support.cluster import answers, until

DEMO_ENDS = """
import sys
from pathlib import Path
from rich.console import Console
from clickwake.demo.stage import Stage
from clickwake.up import Local

with Local(Path(sys.argv[1])) as local:
    Stage(local, Console(width=400)).stay(True)
"""
STARTED_S, ENDED_S = 180.0, 60.0  # a broker, an engine and twelve processes, beside other tests


@pytest.mark.timeout(2 * STARTED_S + ENDED_S)
def test_the_demo_stays_up_with_shop_and_dashboard_until_it_is_ended(tmp_path: Path) -> None:
    said: list[str] = []
    env = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}  # it changes NiceGUI
    with subprocess.Popen([sys.executable, "-c", DEMO_ENDS, str(tmp_path)], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, env=env | {"CLICKWAKE_HOME": str(tmp_path)}) as demo:  # fmt: skip
        assert demo.stdout
        reading = threading.Thread(target=said.extend, args=(demo.stdout,))
        reading.start()
        try:
            until(lambda: demo.poll() is not None or "stays up" in "".join(said), STARTED_S, "it stays up")
            told = "".join(said)
            assert demo.poll() is None, told
            pages = re.findall(r"http://[\d.:]+\d(?:/docs)?", told[told.index("The shop is open"):])
            assert len(pages) == 4, f"shop, dashboard, read API and collector: {told}"
            for page in pages:
                until(lambda page=page: answers(page), STARTED_S, f"{page} answers")
            status = read_status(tmp_path)
            assert status is not None and {status.api + "/docs", status.collector + "/docs"} < set(pages)
            processes = psutil.Process(demo.pid).children(recursive=True)
            assert len(processes) > 10
            demo.send_signal(signal.SIGINT)
            assert demo.wait(ENDED_S) == 0, "".join(said)
        finally:
            demo.kill()
            reading.join(ENDED_S)
    assert [one for one in processes if one.is_running()] == [] and "Traceback" not in "".join(said)
    assert read_status(tmp_path) is None
