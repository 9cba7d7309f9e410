"""What `make demo KEEP=1` starts, on a small shop: the whole demo, then shop and dashboard until it is told to end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from clickwake.up import read_status
from stream.settings import Settings
from tests.support.cluster import until
from tests.support.reviews import tiny_bert

# the front door, before a shop of which a training takes seconds
DEMO = """
from functools import partial
from clickwake.cli import main
from clickwake.demo import shop
shop.SHOPPERS, shop.HISTORY_DAYS, shop.LIVE_DAYS, shop.LIVE_SECONDS = 40, 60, 5, 2.0
shop.World = partial(shop.World, items=200)
main()
"""
DEMO_S, ENDS_S = 480.0, 60.0
OPEN = re.compile(r"The shop is open: (http://\S+), .* The dashboard: (http://\S+)\. ")


@pytest.mark.timeout(900)
def test_shop_and_dashboard_are_open_until_the_demo_is_ended(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    env = {
        "CLICKWAKE_HOME": str(settings.home), "CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "CLICKWAKE_KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix, "CLICKWAKE_CLICKHOUSE__HOST": settings.clickhouse.host,
        "CLICKWAKE_CLICKHOUSE__PORT": str(settings.clickhouse.port),
        "CLICKWAKE_CLICKHOUSE__DATABASE": settings.clickhouse.database, "CLICKWAKE_TRAINING__BUDGET_S": "3",
        "CLICKWAKE_TRAINING__TEXT_MODEL": str(tiny_bert(tmp_path / "bert")), "COLUMNS": "400",
    }  # fmt: skip
    said = tmp_path / "said"
    with said.open("wb") as out, subprocess.Popen([sys.executable, "-c", DEMO, "demo", "--keep"], env=os.environ | env,
                                                  stdout=out, stderr=subprocess.STDOUT) as demo:  # fmt: skip
        try:
            until(lambda: demo.poll() is not None or "Ctrl-C ends it" in said.read_text(), DEMO_S, "the demo stays up")
            found = OPEN.search(said.read_text())
            assert found is not None and demo.poll() is None, said.read_text()[-3_000:]
            shop, dashboard = (httpx.get(url, trust_env=False, timeout=30) for url in found.groups())
            assert (shop.status_code, dashboard.status_code) == (200, 200)
            assert "demo-write-key" in shop.text and "Clickwake" in dashboard.text
            status = read_status(settings.home)
            assert status is not None and {"shop", "dashboard"} < set(status.processes)
            pids = [child.pid for child in status.processes.values() if child.pid is not None]
            demo.send_signal(signal.SIGTERM)
            assert demo.wait(ENDS_S) == 0, said.read_text()[-3_000:]
        finally:
            demo.kill()
    assert said.read_text().endswith("stopping\n") and read_status(settings.home) is None
    assert [pid for pid in pids if psutil.pid_exists(pid)] == [] and len(pids) == len(status.processes)
