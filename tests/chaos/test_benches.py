"""The benchmarks run to their end, for seconds: what they print so is no figure, but that they still measure is shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.town import FULL

SHORT = {
    "rebuild --users 2000": {"seconds", "bare_seconds", "ratio"},
    "bot --rate 20 --seconds 5": {"before", "beside", "after", "ratios"},
}
LONG = {
    "outage --rate 20 --seconds 5 --away 20": {"before", "beside", "after", "held", "ratios", "to_held", "catching_up"},
    "pipeline --events 3000 --rate 20 --seconds 5": {"pipeline", "bare_agent", "ratio", "open_loop"},
    "api --seconds 3 --shoppers 50 --fresh 3": {"recommendations_per_s", "bare_per_s", "ratio", "fresh"},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all of them, so that its bundle is trained once."""
    return tmp_path_factory.mktemp("bench")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("asked", [*SHORT, *(LONG if FULL else ())])
def test_a_benchmark_measures_what_it_says(asked: str, home: Path) -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith("CLICKWAKE_")}
    done = subprocess.run([sys.executable, "-m", "clickwake", "bench", *asked.split(), "--json"], capture_output=True,
                          text=True, env=own | {"CLICKWAKE_HOME": str(home)})  # fmt: skip
    assert done.stdout, done.stderr  # within seconds its promises need not hold: then it ends with 1, and says which
    found = json.loads(done.stdout)
    assert (SHORT | LONG)[asked] <= found.keys()
    assert done.returncode == (1 if found.get("broken") else 0), done.stderr
