"""Dead letters on the real broker and engine: listed by cause, mended on trial, sent again, and each there once."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

import pytest
from typer.testing import CliRunner

from clickwake import topics as topic_admin
from clickwake.cli import app
from schemas import topics
from stream.adapters.database import clickhouse
from stream.settings import Settings
from tests.support.cluster import await_stored, lag, produce_events, read_all, running, stored_states, until
from tests.support.fakes import event


def say(*arguments: str) -> tuple[int, Any]:
    done = CliRunner().invoke(app, ["dead-letters", *arguments, "--json"])
    return done.exit_code, json.loads(done.stdout)


def test_listed_mended_and_sent_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "HOME": str(settings.home), "KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix, "CLICKHOUSE__PORT": str(settings.clickhouse.port),
        "CLICKHOUSE__DATABASE": settings.clickhouse.database,
    }.items():  # fmt: skip
        monkeypatch.setenv(f"CLICKWAKE_{name}", value)
    topic_admin.create(settings)
    wrong = [event(user="u1", id=f"m{n}") | {"properties": {"product_id": "i1", "price": "9.5"}} for n in range(3)]
    raw = [(b"t/u1", json.dumps(one).encode()) for one in wrong]
    with running(settings, "workers.personalize"), running(settings, "workers.sink"):
        produce_events(settings, [event(user="u1", id="good"), *raw, (b"t/u1", b"{\x1b[31m")])
        until(lambda: len(read_all(settings, topics.DEAD_LETTERS)) == 4, 60, "four dead letters")
        await_stored(settings)

        code, found = say("list")
        assert code == 0
        price, broken = found["causes"]
        assert (price["letters"], price["path"], price["fix"]) == (3, "properties.price", "--set properties.price=9.5")
        assert (broken["letters"], broken["keyword"], broken["fix"]) == (1, "json", "")

        code, trial = say("repair", "--cause", price["cause"])
        assert (code, trial["fit"], trial["sent"]) == (0, 3, 0)
        assert '+  "price": 9.5,' in trial["details"][0]["diff"]
        code, trial = say("repair", broken["example"])
        assert (code, trial["fit"]) == (1, 0)
        shown = CliRunner().invoke(app, ["dead-letters", "show", broken["example"]])
        assert shown.exit_code == 0 and "\x1b[31m" not in shown.stdout, "a terminal is told nothing by a client"
        assert len(read_all(settings, topics.EVENTS)) == 5, "a dry run sends nothing"

        for _ in range(2):
            code, sent = say("replay", "--cause", price["cause"])
            assert (code, sent["sent"]) == (0, 3)

        def stored() -> list[Any]:
            with closing(clickhouse.connect(settings.clickhouse, wait_s=10.0)) as client:
                query = "SELECT message_id, lane, count() FROM events FINAL GROUP BY ALL ORDER BY message_id"
                return list(client.query(query).result_rows)

        until(lambda: len(stored()) == 4, 60, "the mended events in ClickHouse")
        until(lambda: say("list")[1]["sent_again"] == 3, 30, "they count as sent again")
        until(lambda: lag(settings, "personalize", topics.EVENTS) == 0, 30, "both replays folded")
    assert stored_states(settings)[b"t/u1"].events == 4, "sent twice, folded once"
    assert stored() == [("good", "live", 1), ("m0", "repair", 1), ("m1", "repair", 1), ("m2", "repair", 1)]
    assert [cause["cause"] for cause in say("list")[1]["causes"]] == [broken["cause"]], "called as before"
    assert say("repair", "--cause", broken["cause"])[1]["letters"] == 1
    assert sum(cause["letters"] for cause in say("list", "--all")[1]["causes"]) == 4
