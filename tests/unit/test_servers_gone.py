"""What a command says where the server it asks is not there: which one, where, and what to do; no traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from clickhouse_connect.driver.exceptions import OperationalError
from typer.testing import CliRunner

from clickwake import doctor
from clickwake.cli import app
from clickwake.local import process
from clickwake.local.process import StartError
from clickwake.local.up import Local
from stream.adapters.database import clickhouse
from stream.settings import Models, Settings
from training import schedule
from training.history import snapshot
from training.opinions import reviews

ASKING = (["segments", "list"], ["segments", "members", "pros"], ["experiments"], ["offers"], ["deliveries"], ["campaigns"])


@pytest.fixture
def nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """A port at which nobody listens."""
    port = process.free_port()
    for name, value in {"HOME": tmp_path, "CLICKHOUSE__PORT": port, "KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{port}"}.items():
        monkeypatch.setenv(f"CLICKWAKE_{name}", str(value))
    return port


@pytest.mark.parametrize("command", ASKING)
def test_without_clickhouse_a_command_says_so(command: list[str], nothing_there: int) -> None:
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.exception
    assert f"ClickHouse at http://127.0.0.1:{nothing_there} does not answer" in done.output and "clickwake up" in done.output
    told = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert told["ok"] is False and str(nothing_there) in told["error"]


ASKED = {"events": (snapshot.from_clickhouse, 0), "catalog": (snapshot.from_clickhouse, 1), "reviews": (reviews.stored, 0)}


@pytest.mark.parametrize(("ask", "answered"), ASKED.values(), ids=ASKED)
def test_a_clickhouse_that_fails_in_a_question_of_training_is_said_and_asked_again_later(
    ask: Callable[[Settings, str], Any], answered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = ("m", "live", "track", "Product Viewed", datetime(2026, 1, 1, tzinfo=UTC), "u", "", '{"product_id": "i"}', "{}")
    answers = [SimpleNamespace(result_rows=[row])] * answered

    class Client:
        def query(self, *_: Any, **__: Any) -> Any:
            if not answers:
                raise OperationalError("Code: 241. DB::Exception: memory limit exceeded")
            return answers.pop()

        def close(self) -> None: ...

    for module in (clickhouse, reviews):
        monkeypatch.setattr(module, "connect", lambda settings, wait_s: Client())
    with pytest.raises(schedule.NOT_NOW, match=r"ClickHouse at http://.*memory limit exceeded"):
        ask(Settings(), "t")


def test_without_kafka_nothing_is_rewound(nothing_there: int) -> None:
    done = CliRunner().invoke(app, ["rewind"])
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.exception
    assert f"no Kafka broker answers at 127.0.0.1:{nothing_there}" in done.output


def test_a_process_that_there_is_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="no such process: personlize"):
        Local(tmp_path, processes=["personlize"])


def test_a_registry_that_cannot_be_reached_is_a_problem_and_no_end() -> None:
    found = doctor._models(Settings(models=Models(registry="nowhere://user:secret@shop/models")))
    assert found.level == "problem" and "nowhere://" in found.found and "secret" not in found.found
