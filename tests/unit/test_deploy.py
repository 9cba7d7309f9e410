"""The compose file: valid where a docker client is there, and no secret written into it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"


def test_compose_config_is_valid() -> None:
    if shutil.which("docker") is None or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        pytest.skip("no docker compose client on this machine")
    secrets = {"CLICKHOUSE_PASSWORD": "x", "CLICKWAKE_WRITE_KEYS": '{"shop": "k"}'}
    done = subprocess.run(["docker", "compose", "-f", str(COMPOSE), "config", "--quiet"], cwd=ROOT, capture_output=True,
                          text=True, env={**os.environ, **secrets})  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_every_long_running_service_restarts_and_runs_unprivileged() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    for name in ("collector", "catalog", "personalize", "sink", "training"):
        service = services[name]
        assert service["restart"] == "unless-stopped" and service["cap_drop"] == ["ALL"], name
    assert {"healthcheck"} <= services["kafka"].keys() & services["clickhouse"].keys() & services["collector"].keys()
    assert "USER clickwake" in (ROOT / "Dockerfile").read_text()


def test_lock_files_are_hashed_and_name_no_index() -> None:
    for lock in ROOT.glob("requirements*.lock"):
        text = lock.read_text()
        pins = [line for line in text.splitlines() if "==" in line]
        assert len(pins) > 30 and text.count("--hash=sha256:") >= len(pins)
        assert "://" not in text and "--index" not in text
