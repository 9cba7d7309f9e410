"""What a setting that cannot be used says before anything runs: its variable and what to do, and no secret."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from clickwake.cli import app
from clickwake.dashboard import __main__ as dashboard
from clickwake.storefront import __main__ as shop
from producers.collector import serve as collector
from stream.settings import Settings, load
from workers import api, delivery, erasure, insights, offers, sink

SECRET = "hunter2"  # noqa: S105 - what must not be seen
WRONG: dict[str, tuple[dict[str, str], list[str]]] = {
    "a name that is misspelt": (
        {"KAFKA__SASL_PASSWORT": SECRET},
        ["CLICKWAKE_KAFKA__SASL_PASSWORT: there is no such setting; did you mean CLICKWAKE_KAFKA__SASL_PASSWORD?"]),
    "a short pseudonym key": (
        {"PRIVACY__PSEUDONYM_KEYS": f'["{SECRET}"]'},
        ["CLICKWAKE_PRIVACY__PSEUDONYM_KEYS: a pseudonym key, or message key, has at least"]),
    "no JSON array": ({"PRIVACY__PSEUDONYM_KEYS": SECRET}, ["CLICKWAKE_PRIVACY__PSEUDONYM_KEYS: should be a JSON array"]),
    "SASL without a user": (
        {"KAFKA__SECURITY_PROTOCOL": "SASL_SSL", "KAFKA__SASL_PASSWORD": SECRET},
        ["CLICKWAKE_KAFKA: SECURITY_PROTOCOL SASL_* needs CLICKWAKE_KAFKA__SASL_USERNAME"]),
    "SASL without TLS to another machine": (
        {"KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT", "KAFKA__SASL_USERNAME": "u", "KAFKA__SASL_PASSWORD": SECRET,
         "KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:9092,kafka:9092"},
        ["CLICKWAKE_KAFKA: SASL_PLAINTEXT shows the password to whoever listens"]),
    "a password over plain HTTP to another machine": (
        {"CLICKHOUSE__HOST": "clickhouse", "CLICKHOUSE__PASSWORD": SECRET},
        ["CLICKWAKE_CLICKHOUSE: the password would go over plain HTTP"]),
    "metrics for whoever reaches them": (
        {"METRICS__HOST": "0.0.0.0"},  # noqa: S104 - what is refused
        ["CLICKWAKE_METRICS: beyond loopback who reaches it could read its metrics: set CLICKWAKE_METRICS__KEY"]),
    "a key of metrics over plain HTTP": (
        {"METRICS__HOST": "0.0.0.0", "METRICS__KEY": "sha256:" + 64 * "0"},  # noqa: S104
        ["CLICKWAKE_METRICS: workers have no TLS, so beyond loopback CLICKWAKE_METRICS__KEY could be read on its way"]),
    "a key that is no JSON": (
        {"COLLECTOR__WRITE_KEYS": f'{{"shop": {SECRET}}}'}, ["CLICKWAKE_COLLECTOR__WRITE_KEYS: should be a JSON object"]),
    "a key in a tenant's place": (
        {"COLLECTOR__WRITE_KEYS": f'{{"{SECRET}": 5}}'}, ["CLICKWAKE_COLLECTOR__WRITE_KEYS: something in it: should be"]),
    "a tenant that no worker takes": (
        {"COLLECTOR__WRITE_KEYS": f'{{"a/b": "{SECRET}"}}'},
        ["CLICKWAKE_COLLECTOR__WRITE_KEYS: something in it: a tenant has a name without /"]),
    "a topic without a retention": (
        {"KAFKA__RETENTION_DAYS": '{"personalize-state": 9}'},
        ["CLICKWAKE_KAFKA__RETENTION_DAYS: 'personalize-state' is no topic that is kept for a time; these are events,"]),
    "a retention that loses what is read from the topic": (
        {"KAFKA__RETENTION_DAYS": '{"deliveries": 7}'},
        ["CLICKWAKE_KAFKA__RETENTION_DAYS: deliveries has to be kept for 30 days at least"]),
    "a section that is none": ({"CLICKHOUSE": SECRET}, ["CLICKWAKE_CLICKHOUSE: is a section: set its fields"]),
    "a password as an object": ({"CLICKHOUSE__PASSWORD__X": SECRET}, ["CLICKWAKE_CLICKHOUSE__PASSWORD: should be a valid"]),
    "two at once": (
        {"TRACING__HEADERS": SECRET, "API__PORT": SECRET},
        ["CLICKWAKE_API__PORT: should be a valid integer", "CLICKWAKE_TRACING__HEADERS: should be a JSON object"]),
}  # fmt: skip

# what the settings themselves do not look at
UNREAD: dict[str, tuple[dict[str, str], list[str]]] = {
    "a section that is misspelt": (
        {"KAFAK__SASL_PASSWORD": SECRET},
        ["CLICKWAKE_KAFAK__SASL_PASSWORD: there is no such setting; did you mean CLICKWAKE_KAFKA__SASL_PASSWORD?"]),
    "an underscore that is missing, and a value that is wrong": (
        {"KAFKA_SASL_PASSWORD": SECRET, "API__PORT": SECRET},
        ["CLICKWAKE_KAFKA_SASL_PASSWORD: there is no such setting; did you mean CLICKWAKE_KAFKA__SASL_PASSWORD?",
         "CLICKWAKE_API__PORT: should be a valid integer"]),
    "a section like none": ({"XYZ__ABC": SECRET}, ["CLICKWAKE_XYZ__ABC: there is no such setting"]),
}  # fmt: skip


@pytest.fixture(params=WRONG | UNREAD)
def told(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """How each line begins that is to be said of what is wrong now."""
    monkeypatch.setenv("CLICKWAKE_HOME", str(tmp_path))
    variables, lines = (WRONG | UNREAD)[request.param]
    for name, value in variables.items():
        monkeypatch.setenv(f"CLICKWAKE_{name}", value)
    return [f"wrong setting: {line}" for line in lines]


def assert_told(said: str, told: list[str]) -> None:
    lines = said.splitlines()
    assert len(lines) == len(told) and all(line.startswith(wanted) for line, wanted in zip(lines, told, strict=True)), said
    assert SECRET not in said


def test_each_variable_has_a_line_and_no_value_is_said(told: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load()
    assert ended.value.code == 2 and ended.value.__cause__ is None and ended.value.__context__ is None
    assert_told(capsys.readouterr().err, told)


def test_variables_of_others_that_begin_alike_are_let_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    others = {"HOME": str(tmp_path), "WRITE_KEYS": "{}", "API_PORT": "tcp://10.0.0.1:80", "API_SERVICE_HOST": "10.0.0.1"}
    for name, value in others.items():
        monkeypatch.setenv(f"CLICKWAKE_{name}", value)
    assert load().home == tmp_path


def test_what_the_settings_raise_themselves_holds_no_value_either(monkeypatch: pytest.MonkeyPatch) -> None:
    for variables, _ in WRONG.values():
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(f"CLICKWAKE_{name}", value)
            with pytest.raises(ValidationError) as raised:
                Settings()
            assert f"input_value='{SECRET}" not in str(raised.value) and "input_value" not in str(raised.value)


@pytest.mark.parametrize("main", [
    collector.main, api.main, shop.main, dashboard.main, sink.main, erasure.main, delivery.main, insights.main, offers.main,
])  # fmt: skip
def test_every_process_ends_with_it(
    main: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLICKWAKE_HOME", str(tmp_path))
    monkeypatch.setenv("CLICKWAKE_KAFKA__SASL_PASSWORT", SECRET)
    assert callable(main)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert_told(capsys.readouterr().err, ["wrong setting: CLICKWAKE_KAFKA__SASL_PASSWORT"])


@pytest.mark.parametrize("command", [["status"], ["up"], ["doctor"], ["topics"], ["sql", "SELECT 1"], ["offers"]])
def test_every_command_ends_with_it(command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLICKWAKE_HOME", str(tmp_path))
    monkeypatch.setenv("CLICKWAKE_KAFKA__SASL_PASSWORT", SECRET)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2 and SECRET not in done.output
    assert_told(done.output, ["wrong setting: CLICKWAKE_KAFKA__SASL_PASSWORT"])


@pytest.mark.parametrize("module", ["workers.personalize", "clickwake"])
def test_a_process_of_its_own_says_one_line_and_no_traceback(module: str, tmp_path: Path) -> None:
    environment = os.environ | {"CLICKWAKE_HOME": str(tmp_path), "CLICKWAKE_KAFKA__SASL_PASSWORT": SECRET}
    command = [sys.executable, "-m", module, *(["status"] if module == "clickwake" else [])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=60)
    assert done.returncode == 2 and not done.stdout
    assert_told(done.stderr, ["wrong setting: CLICKWAKE_KAFKA__SASL_PASSWORT"])


def test_the_file_that_up_leaves_is_told_of_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "local.env").write_text(f"CLICKWAKE_COLLECTOR__WRITE_KEYS={SECRET}\n")
    monkeypatch.setenv("CLICKWAKE_HOME", str(tmp_path))
    with pytest.raises(SystemExit):
        load()
    assert_told(capsys.readouterr().err, ["wrong setting: CLICKWAKE_COLLECTOR__WRITE_KEYS: should be a JSON object"])


def test_where_opentelemetrys_names_may_have_said_it_both_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLICKWAKE_HOME", str(tmp_path))
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "often")
    with pytest.raises(SystemExit):
        load()
    wanted = "wrong setting: CLICKWAKE_TRACING__RATIO or OTEL_TRACES_SAMPLER_ARG: should be a valid number"
    assert_told(capsys.readouterr().err, [wanted])


@pytest.mark.parametrize("allowed", [
    {"KAFKA__PLAINTEXT_PASSWORD": "true", "CLICKHOUSE__PLAINTEXT_PASSWORD": "true"},
    {"KAFKA__SECURITY_PROTOCOL": "SASL_SSL", "CLICKHOUSE__SECURE": "true"},
    {"KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:9092,localhost:9093,[::1]:9094", "CLICKHOUSE__HOST": "127.0.0.1"},
], ids=["said by name", "TLS", "loopback"])  # fmt: skip
def test_a_password_may_go_in_the_clear_on_loopback_and_where_that_is_said_by_name(
    allowed: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    signing_in = {"KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT", "KAFKA__SASL_USERNAME": "u", "KAFKA__SASL_PASSWORD": SECRET,
                  "KAFKA__BOOTSTRAP_SERVERS": "kafka:9092", "CLICKHOUSE__HOST": "clickhouse",
                  "CLICKHOUSE__PASSWORD": SECRET, "HOME": str(tmp_path)}  # fmt: skip
    for name, value in (signing_in | allowed).items():
        monkeypatch.setenv(f"CLICKWAKE_{name}", value)
    assert load().clickhouse.password.get_secret_value() == SECRET
