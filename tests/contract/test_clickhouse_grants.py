"""deploy/clickhouse/users.xml in the engine itself: what each user can do to the tables that the migrations make."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from stream.adapters.database.strategies import PREDICTIONS
from stream.erasure.rows import ABOUT
from stream.sink.tables import TABLES
from tests.contract.granted import USERS

ROOT = Path(__file__).parents[2]


class Owned(NamedTuple):
    folder: Path
    tables: dict[str, list[str]]


def granted(folder: Path, who: str, told: object = None) -> Any:
    done = subprocess.run([sys.executable, "-m", "tests.contract.granted", str(folder), who], cwd=ROOT,
                          input=json.dumps(told), capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def owned(tmp_path_factory: pytest.TempPathFactory) -> Owned:
    folder = tmp_path_factory.mktemp("granted") / "engine"
    return Owned(folder, granted(folder, "owner"))


@pytest.mark.parametrize("user", USERS)
def test_each_user_can_do_what_its_process_does_and_nothing_else(owned: Owned, user: str) -> None:
    everything, nothing = set(owned.tables), set[str]()
    assert len(everything) > 30
    reads = {"clickwake_sink": nothing, "clickwake_erasure": set(ABOUT)}
    writes = {"clickwake_sink": {table.name for table in TABLES}, "clickwake_strategies": {PREDICTIONS},
              "clickwake_segments": {"segment_changes"}}  # fmt: skip
    deletes = {"clickwake_erasure": set(ABOUT), "clickwake_segments": {"segment_changes"}}
    updates = {"clickwake_erasure": {"events.anonymous_id"}}
    expected = {"reads": reads.get(user, everything), "writes": writes.get(user, nothing),
                "deletes": deletes.get(user, nothing), "updates": updates.get(user, nothing), "others": nothing}
    can = granted(owned.folder, user, owned.tables)
    assert {does: set(found) for does, found in can.items()} == expected
