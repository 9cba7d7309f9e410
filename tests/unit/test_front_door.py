"""What the command says when it is asked for little, and when nothing is there."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clickwake.cli import app
from clickwake.local.process import free_port
from clickwake.local.up import MALLOC


def test_version() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output.strip()) == (0, version("clickwake"))


def test_setup_without_a_broker_names_the_address_and_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port(0)}"
    monkeypatch.setenv("CLICKWAKE_HOME", str(tmp_path))
    monkeypatch.setenv("CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS", address)
    done = CliRunner().invoke(app, ["setup", "--wait", "0"])
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    assert f"no Kafka broker answers at {address}" in done.output and "clickwake up" in done.output


def test_images_give_memory_back_as_the_supervisor_lets_them() -> None:
    dockerfile = (Path(__file__).parents[2] / "Dockerfile").read_text()
    assert dict(re.findall(r"(MALLOC_\w+)=(\d+)", dockerfile)) == MALLOC
