"""A user forgotten on the real broker and engine: by every store, while their events still come, and never brought back."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from clickwake import topics as topic_admin
from clickwake.cli import app
from schemas import topics
from schemas.erasure import Erasure, Receipt, decode, subject
from stream.adapters.database import clickhouse
from stream.adapters.models import signing
from stream.settings import Models, Settings
from tests.support.cluster import await_stored, produce_events, read_all, running, stored_states, until
from tests.support.fakes import event

GONE, DEVICE, STAYS = "user-to-be-forgotten", "device-of-that-user", "a-neighbour"
BEFORE = "what-that-user-was-before-they-signed-up"  # no row of theirs has it, the alias is in no table


def now_ms() -> int:
    return round(datetime.now(UTC).timestamp() * 1000)


def say(*arguments: str) -> tuple[int, Any]:
    done = CliRunner().invoke(app, ["erase", *arguments, "--tenant", "t", "--json"])
    return done.exit_code, json.loads(done.stdout or "null")


def rows(settings: Settings, table: str = "events") -> list[str]:
    """Users of a table's rows; the sink, which makes the tables, may be starting on a busy machine."""
    column = "user" if table.startswith("event") else "user_id"
    with closing(clickhouse.connect(settings.clickhouse, wait_s=60.0)) as client:
        sql = f"SELECT {column} FROM {table} FINAL WHERE tenant = 't' ORDER BY {column}"  # noqa: S608  # of this file
        found = client.query(sql)
        return [row[0] for row in found.result_rows]


@pytest.fixture
def signed(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """The settings, with a signing key, as the environment of commands says them."""
    signing.keygen(tmp_path / "key")
    for name, value in {
        "HOME": str(settings.home), "KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix, "CLICKHOUSE__PORT": str(settings.clickhouse.port),
        "CLICKHOUSE__DATABASE": settings.clickhouse.database, "MODELS__SIGNING_KEY": str(tmp_path / "key"),
    }.items():  # fmt: skip
        monkeypatch.setenv(f"CLICKWAKE_{name}", value)
    return settings.model_copy(update={"models": Models.model_validate({"signing_key": str(tmp_path / "key")})})


def test_a_user_is_forgotten_everywhere_while_events_go_on(signed: Settings) -> None:
    settings, start = signed, now_ms()
    topic_admin.create(settings)
    before = [
        event(user="", userId=None, anonymousId=DEVICE, ts_ms=start - 5_000, id="a1"),
        event(user=GONE, anonymousId=DEVICE, ts_ms=start - 4_000, id="u1"),
        event(user=GONE, ts_ms=start - 3_000, id="u2", name="Order Completed"),
        event(user="", userId=None, anonymousId=BEFORE, ts_ms=start - 5_000, id="b1"),
        event(user=GONE, type="alias", event=None, item=None, previousId=BEFORE, ts_ms=start - 2_500, id="u3"),
        event(user=STAYS, ts_ms=start - 2_000, id="v1"),
    ]
    broken = (f"t/{GONE}".encode(), json.dumps(event(user=GONE, id="bad") | {"properties": {"price": "x"}}).encode())
    late = [event(user=GONE, ts_ms=start - 60_000, id="late"),
            event(user="", userId=None, anonymousId=BEFORE, ts_ms=start - 60_000, id="late-too"),
            event(user=STAYS, ts_ms=start, id="v2")]  # fmt: skip
    with (running(settings, "workers.personalize"), running(settings, "workers.sink"),
          running(settings, "workers.erasure") as eraser):  # fmt: skip
        produce_events(settings, [*before, broken])
        await_stored(settings)
        until(lambda: len(rows(settings)) == 6 and rows(settings, "recommendations"), 60, "rows stored")
        until(lambda: len(stored_states(settings)) == 4, 30, "four states")
        until(lambda: {*stored_states(settings)[f"t/{GONE}".encode()].linked} == {DEVICE, BEFORE}, 30, "histories joined")
        assert say(GONE, "--verify")[0] == 1

        code, (done,) = say(GONE)
        assert code == 0
        counted = [f"clickwake_erasures_{what}" for what in ("done_total", "open", "oldest_timestamp_seconds")]
        until(lambda: [eraser.metrics()[name] for name in counted] == [1, 0, 0], 20, "it is counted")
        receipt = json.loads(done["receipt"])
        hashes = [subject(f"t/{one}".encode()).decode().removeprefix("t/") for one in (GONE, DEVICE, BEFORE)]
        assert receipt["subjects"] == hashes
        assert receipt["signed"] is True
        deleted = {one["place"]: one["records"] for one in receipt["done"]}
        assert deleted["ClickHouse events"] == 5 and deleted["ClickHouse dead_letters"] == 1
        assert signing.check(done["receipt"].encode(), done["signature"].encode(), signing.trusted(settings.models),
                             signing.RECEIPT)  # fmt: skip

        for one in (GONE, DEVICE, BEFORE):
            code, found = say(one, "--verify")
            assert code == 0 and all(place["until"] for place in found["found"]), found
            assert any(str(settings.home) in one["place"] for one in found["not_searched"])

        produce_events(settings, late)
        until(lambda: "v2" in _ids(settings), 60, "the neighbour's next event stored")
        assert rows(settings) == [STAYS, STAYS] and set(rows(settings, "recommendations")) == {STAYS}
        until(lambda: stored_states(settings)[f"t/{STAYS}".encode()].events == 2, 30, "the neighbour's next event folded")
        assert set(stored_states(settings)) == {f"t/{STAYS}".encode()}
        code, found = say(GONE, "--verify")
        left = [one for one in found["found"] if not one["until"]]
        assert code == 1 and [one["place"].partition(", ")[2] for one in left] == ["newer than any receipt"], left
        assert say(DEVICE, "--verify")[0] == 0, "the late one is nowhere but where an import has put it"
        produce_events(settings, [event(user=GONE, ts_ms=now_ms(), id="again")])
        until(lambda: GONE in rows(settings), 60, "who comes back afterwards is a new customer")
    assert _erasures(settings)[subject(f"t/{GONE}".encode())].user_id is None


def test_a_request_waits_for_what_is_away_and_a_suppressed_user_stays_away_until_it_is_lifted(signed: Settings) -> None:
    settings, start = signed, now_ms()
    topic_admin.create(settings)
    produce_events(settings, [event(user=GONE, ts_ms=start - 1_000, id="u1")])
    code, nothing = say(GONE, "--suppress", "--timeout", "1")  # no worker runs at all
    assert (code, nothing) == (1, [])
    with running(settings, "workers.sink"), running(settings, "workers.erasure"):
        until(lambda: _skipped(settings) and rows(settings) == [], 60, "the sink leaves the event out")
        assert not _receipts(settings)
        with running(settings, "workers.personalize"):
            until(lambda: _receipts(settings), 60, "the receipt, once there is somebody to delete the state")
            produce_events(settings, [event(user=GONE, ts_ms=now_ms(), id="u2"), event(user=STAYS, ts_ms=start, id="v")])
            until(lambda: rows(settings) == [STAYS], 60, "only the neighbour's event is stored")
            code, _ = say(GONE, "--lift")
            assert code == 0
            produce_events(settings, [event(user=GONE, ts_ms=now_ms() + 1, id="u3")])
            until(lambda: rows(settings) == [STAYS, GONE], 60, "what came after the lift is stored")


def _skipped(settings: Settings) -> bool:
    """The sink has committed the event it left out."""
    from stream.adapters.health.lag import Lag

    with Lag(settings) as lag:
        return lag.of(f"{settings.kafka.topic_prefix}.sink", lag.ends(topics.EVENTS)) == 0


def _ids(settings: Settings) -> list[str]:
    with closing(clickhouse.connect(settings.clickhouse, wait_s=10.0)) as client:
        return [row[0] for row in client.query("SELECT message_id FROM events FINAL").result_rows]


def _erasures(settings: Settings) -> dict[bytes, Erasure]:
    return {record.key: decode(record.value) for record in read_all(settings, topics.ERASURES)}


def _receipts(settings: Settings) -> list[Receipt]:
    return [msgspec.json.decode(one.receipt, type=Receipt) for one in _erasures(settings).values() if one.receipt]
