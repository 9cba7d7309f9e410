"""`clickwake simulate`: the command line, files, pace, and the truth beside them."""

from __future__ import annotations

import gzip
import json
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from clickwake.cli import app
from producers.simulate.run import Options, Simulation, default_start
from producers.simulate.targets import catalog_path
from producers.simulate.truth import Truth
from schemas.catalog import Item
from schemas.events import Event
from stream.settings import Settings

START = datetime(2026, 1, 1, tzinfo=UTC)


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["simulate", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_a_file_with_catalog_and_truth_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "out" / "events.jsonl.gz"
    code, stdout, _ = run("--shoppers", "20", "--days", "15", "--start", "2026-01-01", "--to", str(file), "--mess", "0.05",
                          "--items", "300", "--json")
    assert code == 0
    report = json.loads(stdout)
    lines = gzip.decompress(file.read_bytes()).split(b"\n")[:-1]
    assert len(lines) == report["records"] == report["events"] + sum(
        count for what, count in report["mess"].items() if what != "out_of_order")
    items = [msgspec.json.decode(line, type=Item) for line in gzip.decompress(catalog_path(file).read_bytes()).splitlines()]
    truth = Truth.load(file.parent)
    assert [item.item_id for item in items] == [item.item_id for item in truth.items] and len(items) == 300
    assert truth.summary().mess == report["mess"] and report["truth"] == str(file.parent)
    duplicate = next(record for record in truth.mess if record.what == "duplicate")
    assert msgspec.json.decode(lines[duplicate.position], type=Event).message_id == duplicate.message_id


def test_the_same_seed_and_start_give_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        code, *_ = run("--shoppers", "10", "--days", "10", "--start", "2026-01-01", "--items", "200",
                       "--to", str(tmp_path / name / "e.jsonl.gz"), "--mess", "0.1")
        assert code == 0
    for file in ("e.jsonl.gz", "e.items.jsonl.gz", "truth.json", "truth.jsonl.gz"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_window_in_the_live_lane_continues_the_world(tmp_path: Path) -> None:
    common = ("--shoppers", "15", "--days", "20", "--start", "2026-01-01", "--items", "200")
    parts: dict[str, tuple[str, ...]] = {
        "all": (), "first": ("--until", "2026-01-11"),
        "second": ("--from", "2026-01-11", "--lane", "live", "--no-catalog")}
    ids = {}
    for name, window in parts.items():
        assert run(*common, *window, "--to", str(tmp_path / f"{name}.jsonl"))[0] == 0
        ids[name] = [json.loads(line)["messageId"] for line in (tmp_path / f"{name}.jsonl").read_bytes().splitlines()]
    assert ids["first"] + ids["second"] == ids["all"] and ids["first"] and ids["second"]
    assert catalog_path(tmp_path / "first.jsonl").exists() and not catalog_path(tmp_path / "second.jsonl").exists()


@pytest.mark.parametrize(("arguments", "complaint"), [
    (("--lane", "sideways"), "neither import nor live"),
    (("--speed", "warp"), "'warp' is neither"),
    (("--start", "yesterday"), "--start 'yesterday'"),
    (("--start", "2026-01-01", "--from", "2020-01-01"), "outside the world"),
    (("--follow",), "live lane only"),
])
def test_wrong_use_says_what_is_wrong(tmp_path: Path, arguments: tuple[str, ...], complaint: str) -> None:
    code, _, stderr = run("--to", str(tmp_path / "e.jsonl"), "--shoppers", "1", "--items", "100", *arguments)
    assert code == 2 and complaint in " ".join(stderr.split())
    assert not (tmp_path / "e.jsonl").exists()


def options(tmp_path: Path, **changes: object) -> Options:
    return msgspec.structs.replace(
        Options(shoppers=30, days=2, items=200, to=str(tmp_path / "e.jsonl"), start=START, lane="live"), **changes)


def test_pace_takes_its_time(tmp_path: Path) -> None:
    began = time.monotonic()
    report = Simulation(Settings(), options(tmp_path, speed="172800x")).run()
    assert 0.5 < time.monotonic() - began < 10
    assert report.events > 50 and not report.stopped


def test_stopped_it_keeps_what_was_sent(tmp_path: Path) -> None:
    simulation = Simulation(Settings(), options(tmp_path, speed="86400x"))

    def stop(run: Simulation) -> None:
        if run.events >= 5:
            run.stop.set()

    report = simulation.run(stop)
    assert report.stopped and report.events == 5
    assert len((tmp_path / "e.jsonl").read_bytes().splitlines()) == 5
    assert Truth.load(tmp_path).shop.shoppers == 30


def test_by_default_nothing_is_in_the_future() -> None:
    now = datetime(2026, 5, 5, 13, 30, tzinfo=UTC)
    assert default_start(Options(shoppers=1, days=4), now) == datetime(2026, 5, 1, tzinfo=UTC)
    assert default_start(Options(shoppers=1, days=4, speed="1x"), now) == now
