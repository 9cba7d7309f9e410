"""What `clickwake doctor` says of privacy, and of what nobody guards in a set-up; a warning where others can reach it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from clickwake import doctor
from stream.settings import Api, ClickHouse, Collector, Dashboard, Kafka, Metrics, Models, Privacy, Settings

PASSWORD, HASH = SecretStr("a password"), SecretStr("sha256:" + "0" * 64)


def unprotected(settings: Settings) -> dict[str, tuple[str, str]]:
    """name → (level, what is said)"""
    return {one.name: (one.level, one.found) for one in doctor._unprotected(settings)}


def test_of_privacy_it_says_what_is_off_and_what_is_on() -> None:
    off, on = doctor._privacy(Settings()), doctor._privacy(Settings(privacy=Privacy.model_validate(
        {"pseudonym_keys": ("k" * 32,), "ip": "drop", "consent": {"shop": {"ads": False}}})))  # fmt: skip
    assert "no pseudonyms" in off.found and "addresses are cut short" in off.found and "agreed to everything" in off.found
    assert "CLICKWAKE_PRIVACY__PSEUDONYM_KEYS" in off.do and "CLICKWAKE_PRIVACY__CONSENT" in off.do
    assert on.found.startswith("ids are pseudonyms; addresses are dropped") and on.do == ""
    kept = doctor._privacy(Settings(privacy=Privacy(ip="keep")))
    assert "addresses are stored whole" in kept.found and "CLICKWAKE_PRIVACY__IP=truncate" in kept.do


def test_what_is_open_on_this_machine_alone_is_said_and_no_warning(tmp_path: Path) -> None:
    found = unprotected(Settings(home=tmp_path))
    assert found.keys() == {"open kafka", "open clickhouse", "open models", "open dashboard", "open keys"}
    assert {level for level, _ in found.values()} == {"ok"}


@pytest.mark.parametrize(("kafka", "why"), [
    (Kafka(bootstrap_servers="kafka:9092"), "nobody signs in"),
    (Kafka(bootstrap_servers="kafka:9092", security_protocol="SASL_PLAINTEXT", sasl_username="u", sasl_password=PASSWORD,
           plaintext_password=True), "no TLS: who listens on the way"),
])  # fmt: skip
def test_what_others_can_reach_is_warned_of(kafka: Kafka, why: str, tmp_path: Path) -> None:
    open_to_all = Settings(home=tmp_path, kafka=kafka, metrics=Metrics(without_key=True),
                           clickhouse=ClickHouse(host="ch", password=PASSWORD, plaintext_password=True))  # fmt: skip
    found = unprotected(open_to_all)
    warned = {name for name, (level, _) in found.items() if level == "warning"}
    assert warned == {"open kafka", "open clickhouse", "open models", "open metrics"}
    assert why in found["open kafka"][1] and "no TLS" in found["open clickhouse"][1]


def test_of_what_is_guarded_nothing_is_said(tmp_path: Path) -> None:
    kafka = Kafka(bootstrap_servers="kafka:9092", security_protocol="SASL_SSL", sasl_username="u", sasl_password=PASSWORD)
    guarded = Settings(
        home=tmp_path, kafka=kafka, clickhouse=ClickHouse(host="ch", password=PASSWORD, secure=True),
        models=Models(verify_keys=("a key",)), dashboard=Dashboard(accounts=tmp_path / "accounts.json"),
        collector=Collector(write_keys={"shop": HASH}), api=Api(read_keys={"shop": HASH}),
    )  # fmt: skip
    (tmp_path / "accounts.json").touch()
    assert unprotected(guarded) == {}
