"""Segments on a real broker and engine: a new rule looks back, membership as of any time. `test_first_event` asserts the
second within which somebody enters and leaves."""

from __future__ import annotations

import json
import time
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any

import msgspec
from typer.testing import CliRunner

from clickwake import topics as topic_admin
from clickwake.cli import app
from schemas import topics
from schemas.outputs import SegmentChange
from stream.adapters.database import clickhouse
from stream.core.segments import segments
from stream.core.segments.segment_fields import values_of
from stream.segments import load
from stream.settings import Settings
from tests.support.cluster import Sender, Tail, await_stored, lag, oracle, read_all, running, stored_states, until
from tests.support.fakes import event

RULES = """
lifecycle: false
segments:
  - {name: lookers, when: views_7d >= 2 and orders == 0}
  - {name: buyers, when: orders >= 1, description: bought something}
"""
SWEEP = {"CLICKWAKE_SEGMENTS__SWEEP_S": "1"}


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def test_users_enter_a_new_rule_looks_back_and_all_is_known_as_of_any_time(settings: Settings, monkeypatch: Any) -> None:
    topic_admin.create(settings)
    settings.home.mkdir(parents=True)
    settings.segments_file.write_text(RULES)
    with (Sender(settings) as sender, Tail(settings, topics.SEGMENT_CHANGES) as tail,
          running(settings, "workers.personalize", **SWEEP), running(settings, "workers.sink")):  # fmt: skip
        sender.send([event(user=f"u{n % 20}", item=f"i{n % 7}", id=f"m{n}", ts_ms=now_ms() - 5_000 + n) for n in range(20)])
        until(lambda: lag(settings, "personalize", topics.EVENTS) == 0, 60, "folded")
        assert tail.poll() == []
        sender.send([event(user="u3", item="i1", id="second", ts_ms=now_ms())])
        first = until(tail.poll, 10, "u3 entered")[0]
        entered = msgspec.json.decode(first.value, type=SegmentChange)
        assert (entered.user_id, entered.segment, entered.change) == ("u3", "lookers", "entered")
        sender.send([event(user="u3", item="i1", id="third", ts_ms=now_ms() + 1, name="Order Completed")])
        until(lambda: len(tail.poll()) == 3, 10, "u3 moved")
        settings.segments_file.write_text(RULES + "  - {name: known by one event, when: events == 1}\n")
        until(lambda: len(tail.poll()) == 3 + 19, 30, "a new rule looks at everybody, whatever they do")
        await_stored(settings)
        until(lambda: _intervals(settings) == 3 + 19 - 1, 60, "all changes stored")
    truth, rules = oracle(settings).states, load(settings.segments_file)
    for key, state in stored_states(settings).items():
        values = values_of(truth[key], now_ms(), 0.0)
        assert segments.members(state) == sorted(rules.inside("t", values)), "the stream says what a batch says"
    changes = [msgspec.json.decode(record.value, type=SegmentChange)
               for record in read_all(settings, topics.SEGMENT_CHANGES)]  # fmt: skip
    assert len({one.change_id for one in changes}) == len(changes)
    moves = {(one.segment, one.change): one.as_of_ts for one in changes if one.user_id == "u3"}
    _asked_on_the_command_line(settings, moves, monkeypatch)


def _intervals(settings: Settings) -> int:
    with closing(clickhouse.open_client(settings.clickhouse)) as client:
        return int(client.query("SELECT count() FROM segment_intervals").first_row[0])


def _asked_on_the_command_line(settings: Settings, moves: dict[tuple[str, str], datetime], monkeypatch: Any) -> None:
    """`moves`: when u3 entered and left what."""
    monkeypatch.setenv("CLICKWAKE_HOME", str(settings.home))
    monkeypatch.setenv("CLICKWAKE_CLICKHOUSE__PORT", str(settings.clickhouse.port))
    monkeypatch.setenv("CLICKWAKE_CLICKHOUSE__DATABASE", settings.clickhouse.database)

    def ask(*arguments: str) -> Any:
        done = CliRunner().invoke(app, ["segments", *arguments, "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    assert {one["segment"]: one["members"] for one in ask("list")} == {
        "lookers": 0, "buyers": 1, "known by one event": 19}  # fmt: skip

    def members(segment: str, at: datetime) -> list[str]:
        return [one["user_id"] for one in ask("members", segment, "--at", f"{at:%Y-%m-%dT%H:%M:%S.%f}")]

    came, went, bought = moves["lookers", "entered"], moves["lookers", "left"], moves["buyers", "entered"]
    just = timedelta(milliseconds=1)
    assert [members("lookers", at) for at in (came - just, came, went - just, went)] == [[], ["u3"], ["u3"], []]
    assert [members("buyers", at) for at in (bought - just, bought)] == [[], ["u3"]]
    assert [one["user_id"] for one in ask("members", "buyers")] == ["u3"]
    assert ask("members", "buyers", "--at", "2020-01-01T00:00:00") == ask("members", "lookers") == []
    assert [rule["name"] for rule in ask("check")["segments"]] == ["lookers", "buyers", "known by one event"]
    done = CliRunner().invoke(app, ["segments", "check", str(settings.home / "nothing.yml")])
    assert done.exit_code == 1 and "nothing.yml" in done.stderr
