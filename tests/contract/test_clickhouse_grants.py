"""deploy/clickhouse/users.xml in the engine itself: what each user can do to the tables that the migrations make.

The embedded engine reads a server's configuration, but nobody signs in to it. A view that runs with its definer's rights
does what that user could (`DEFINER … SQL SECURITY DEFINER`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from stream.adapters.database.strategies import PREDICTIONS
from stream.erasure.rows import ABOUT
from stream.sink.tables import TABLES

ROOT = Path(__file__).parents[2]


def test_each_user_can_do_what_its_process_does_and_nothing_else(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "tests.contract.granted", str(tmp_path / "engine")], cwd=ROOT,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    can = json.loads(done.stdout)
    everything = set(can["clickwake_analyst"]["all"])
    assert len(everything) > 30
    reads = {user: set(one["reads"]) for user, one in can.items()}
    assert reads == {"clickwake_sink": set(), "clickwake_erasure": set(ABOUT), "clickwake_training": everything,
                     "clickwake_strategies": everything, "clickwake_analyst": everything}  # fmt: skip
    writes = {user: set(one["writes"]) for user, one in can.items() if one["writes"]}
    assert writes == {"clickwake_sink": {table.name for table in TABLES}, "clickwake_strategies": {PREDICTIONS}}
    deletes = {grant.split(" ON clickwake.")[1].split(" TO ")[0] for grant in can["clickwake_erasure"]["grants"]
               if "ALTER DELETE" in grant}  # fmt: skip
    assert deletes == set(ABOUT)
