"""What the demos do to a home that was used before."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from clickwake.demo import shop
from clickwake.demo.stage import DemoFailed, begin_afresh, example_rules

RULES = ("segments.yml", "deliveries.yml", "offers.yml", "experiments.yml")


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


def test_rules_about_real_shoppers_are_set_aside(tmp_path: Path) -> None:
    for name in RULES:
        (tmp_path / name).write_text(f"# the shop's own {name}")
    begin_afresh(tmp_path, Console(file=io.StringIO()))
    example_rules(tmp_path)
    (aside,) = tmp_path.glob("before-*")
    assert [(aside / name).read_text() for name in RULES] == [f"# the shop's own {name}" for name in RULES]
    assert {path.name for path in tmp_path.iterdir()} == {aside.name, "segments.yml"}
    assert "window shoppers" in (tmp_path / "segments.yml").read_text()


def test_a_file_of_deliveries_elsewhere_is_not_for_simulated_shoppers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLICKWAKE_DELIVERIES__RULES", str(tmp_path / "rules.yml"))
    monkeypatch.delattr(shop, "begin_afresh")  # it does not get there
    with pytest.raises(DemoFailed, match="CLICKWAKE_DELIVERIES__RULES is set"):
        shop.run(tmp_path, console=Console(file=io.StringIO()))
