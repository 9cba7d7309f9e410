"""A real read API beside the workers, where ids are pseudonyms: it is asked by the ids people know, and once one of them is
erased nothing of theirs is in its answers, nor in its files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from clickwake import topics as topic_admin
from clickwake.cli import app
from schemas import topics
from stream.pseudonyms import Pseudonyms
from stream.settings import Privacy, Settings
from tests.integration.test_read_api import api_of
from tests.support.cluster import lag, produce_events, read_all, running, until
from tests.support.fakes import event

KEYS = ("n" * 32, "o" * 32)
SECTION = Privacy.model_validate({"pseudonym_keys": KEYS})
GONE, STAYS = "gone@mail.example", "stays@mail.example"
SAID = "an-event-of-whom-is-forgotten"  # which their state remembers


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def test_a_replica_knows_users_by_the_ids_people_have_and_forgets_them(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic_admin.create(settings)
    newest, older = Pseudonyms(SECTION).ids_of("t", GONE)
    (stays, _) = Pseudonyms(SECTION).ids_of("t", STAYS)
    produce_events(settings, [event(user=older, item="i1", id=SAID, ts_ms=now_ms() - 2_000),
                              event(user=stays, item="i2", id="m2", ts_ms=now_ms() - 1_000)])  # fmt: skip
    keys = json.dumps(KEYS)
    for name, value in {
        "HOME": str(settings.home), "KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix, "PRIVACY__PSEUDONYM_KEYS": keys,
    }.items():  # fmt: skip
        monkeypatch.setenv(f"CLICKWAKE_{name}", value)
    home = tmp_path / "api"
    with (running(settings, "workers.personalize"), running(settings, "workers.sink"),
          running(settings, "workers.erasure")):  # fmt: skip
        until(lambda: lag(settings, "personalize", topics.EVENTS) == 0, 60, "the events folded")
        with api_of(settings, home, CLICKWAKE_PRIVACY__PSEUDONYM_KEYS=keys) as (client, _):
            for user in (GONE, STAYS):
                known = client.get(f"/v1/users/{user}").json()
                assert (known["user_id"], known["events"]) == (user, 1)
                assert client.get(f"/v1/recommendations/{user}").json()["user_id"] == user
            assert held(home, SAID) and held(home, older)
            decided = until(lambda: read_all(settings, topics.DECISIONS), 20, "decisions are logged")
            assert {json.loads(one.value)["user_id"] for one in decided} <= {newest, stays}, "no id of people"
            produce_events(settings, [event(user=newest, item="i3", id="m3", ts_ms=now_ms())])
            until(lambda: client.get(f"/v1/users/{GONE}").json()["as_of_event_id"] == "m3", 20, "the newest key comes first")

            done = CliRunner().invoke(app, ["erase", GONE, "--tenant", "t", "--json"])
            assert done.exit_code == 0, done.output
            until(lambda: client.get(f"/v1/users/{GONE}").status_code == 404, 20, "the replica has read of it")
            until(lambda: not any(held(home, one) for one in (SAID, older, newest, GONE)), 20, "and nothing is in its files")
            assert client.get(f"/v1/recommendations/{GONE}").json()["as_of_event_id"] == ""
            assert client.get(f"/v1/users/{STAYS}").json()["events"] == 1
            receipts = [json.loads(one["receipt"]) for one in json.loads(done.stdout)]
            assert len(receipts) == 2 and all(_says_what_was_not_seen(one) for one in receipts)


def held(home: Path, text: str) -> list[Path]:
    """Files of the replica in which a text stands; those it has just deleted are none."""
    found = []
    for path in (home / "state").rglob("*"):
        try:
            if path.is_file() and text.encode() in path.read_bytes():
                found.append(path)
        except FileNotFoundError:
            continue
    return found


def _says_what_was_not_seen(receipt: dict[str, Any]) -> bool:
    return any(one["place"].startswith("read API") and not one["seen"] for one in receipt["done"])
