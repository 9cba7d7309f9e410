"""What the demos do to a home that was used before."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from clickwake.demo.stage import begin_afresh


def test_earlier_data_is_set_aside_and_programs_stay(tmp_path: Path) -> None:
    moved = ("kafka/data/t-0", "clickhouse/store", "state/clickwake", "models/bundles/v1")
    for name in (*moved, "kafka/jars", "models/text/s"):
        (tmp_path / name).mkdir(parents=True)
    said = io.StringIO()
    begin_afresh(tmp_path, Console(file=said, width=1_000))
    (aside,) = tmp_path.glob("before-*")
    assert str(aside) in said.getvalue()
    assert [name for name in moved if not (aside / name).exists() or (tmp_path / name).exists()] == []
    assert (tmp_path / "kafka/jars").exists() and (tmp_path / "models/text/s").exists()
    begin_afresh(tmp_path, Console(file=io.StringIO()))
    assert list(tmp_path.glob("before-*")) == [aside]
