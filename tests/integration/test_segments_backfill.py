"""Stream = batch on a real broker and engine: of two tenants with the same events one has its rules from the beginning, the
other gets them later and has its past filled in. At every moment they have the same members, also where a rule is about what
the release's models say."""

from __future__ import annotations

import json
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from kafka import KafkaProducer
from typer.testing import CliRunner

from clickwake import topics as topic_admin
from clickwake.cli import app
from schemas import topics
from schemas.erasure import Erasure, subject
from schemas.events import key
from stream.adapters.database import clickhouse
from stream.core.segments import segments
from stream.outbox import utc
from stream.settings import Settings
from tests.integration.test_clusters_released import audience_of
from tests.support import bundles
from tests.support.bundles import ITEMS, Exported
from tests.support.cluster import Sender, Tail, lag, read_all, running, stored_states, until
from tests.support.fakes import event
from training.release import release as releases

PLAIN = {"lookers": "views_7d >= 2 and orders == 0", "regulars": "days_since_first > 4 and active_days >= 3",
         "buyers": "days_since_order <= 2.5", "called": "alerted",
         "seekers": "count('Searched', days=2.5) >= 1", "pros": "trait('plan') == 'pro'",
         "tall": "count('Searched', number(property('size')) > 5, days=2.5) >= 1"}  # fmt: skip
BY_RELEASE = {"fading": "0.5 < churn < 0.99", "ringers": "cluster == 'rings'"}
RULES = PLAIN | BY_RELEASE
TENANTS = ("early", "late")
STEPS, LATER = 10, 6  # rounds of events, and after how many of them the second tenant's rules come
STEP_MS = 25 * 3_600_000  # so that no window ends where somebody looks
USERS = 8
NAMES = ("Product Viewed", "Product Viewed", "Searched", "Product Added", "Order Completed")


def rules(*tenants: str) -> str:
    lines = [f'  - {{name: {name}, tenant: {tenant}, when: "{when}"}}\n'
             for tenant in tenants for name, when in RULES.items()]  # fmt: skip
    return "lifecycle: false\nclusters: false\nsegments:\n" + "".join(lines)


def round_of(step: int, at_ms: int) -> list[dict[str, Any]]:
    """Some are silent now and then, so that alerts stand and the chance of churn is high."""
    return [event(user=f"u{user}", tenant=tenant, ts_ms=at_ms + user, item=None, id=f"{tenant}-{step}-{user}",
                  name=NAMES[(user * user + step * (user + 1)) % len(NAMES)],
                  context={"traits": {"plan": "pro" if (user + step) % 5 < 2 else "free"}},
                  properties={"product_id": f"i{(user + step // 3) % 3}", "size": user + step % 3})
            for tenant in TENANTS for user in range(USERS) if not silent(user, step)]  # fmt: skip


def silent(user: int, step: int) -> bool:
    """Not in two rounds that follow each other: see `looked`."""
    return step > 0 and user % 2 == 1 and (step + user) % 5 == 3


def looked(settings: Settings, step: int, *tenants: str) -> bool:
    """Whether everybody was looked at after a round: whoever did something is, and the others by a sweep, which finds that
    they are fading."""
    states = stored_states(settings)
    return all(("fading" in segments.members(states[key(tenant, f"u{user}")])) == silent(user, step)
               for tenant in tenants for user in range(USERS))  # fmt: skip


def released(settings: Settings, exported: Exported) -> str:
    """A release with clusters over the same items of both tenants; its version."""
    for tenant in TENANTS:
        bundles.put_vectors(settings, [msgspec.structs.replace(item, tenant=tenant) for item in ITEMS])
    audience = audience_of(settings, exported, 0, {"rings": "i0", "cups": "i1", "plates": "i2"}, 2.0)
    version = bundles.publish(settings.registry, exported, audience=audience).model_version
    releases.release(settings, version)
    return version


def test_a_rule_that_came_later_has_the_same_members_at_every_time(
    settings: Settings, exported: Exported, tmp_path: Path, monkeypatch: Any
) -> None:
    one_clock = settings.kafka.model_copy(update={"partitions": 1})
    settings = bundles.with_registry(settings, tmp_path / "models").model_copy(update={"kafka": one_clock})
    topic_admin.create(settings)
    version = released(settings, exported)
    settings.home.mkdir(parents=True, exist_ok=True)
    settings.segments_file.write_text(rules("early"))
    rounds = [round_of(step, 0) for step in range(STEPS)]
    began_ms = time.time_ns() // 1_000_000 - (STEPS + 1) * STEP_MS
    with (Sender(settings) as sender, Tail(settings, topics.SEGMENT_CHANGES) as tail, closing(Asked(settings)) as asked,
          running(settings, "workers.personalize", CLICKWAKE_SEGMENTS__SWEEP_S="1") as worker,
          running(settings, "workers.sink")):  # fmt: skip
        until(lambda: "release taken" in worker.log(), 30, "the release taken")
        for step in range(STEPS):
            if step == LATER:
                settings.segments_file.write_text(rules("early", "late"))
                until(lambda: b"late" in {one.key.split(b"/")[0] for one in tail.poll()}, 30, "the new rules taken over")
            sender.send(round_of(step, began_ms + step * STEP_MS))
            until(lambda: lag(settings, "personalize", topics.EVENTS) == 0, 60, "folded")
            ruled = TENANTS if step >= LATER else ("early",)
            until(lambda step=step, ruled=ruled: looked(settings, step, *ruled), 30, "everybody looked at")
        said = len(read_all(settings, topics.SEGMENT_CHANGES))
        alerts = len(read_all(settings, topics.CHURN_ALERTS))
        until(lambda: (asked.count("events"), asked.count("segment_changes"), asked.count("churn_alerts"))
              == (sum(map(len, rounds)), said, alerts), 60, "stored")  # fmt: skip
        environment(settings, monkeypatch)
        moments = [began_ms + step * STEP_MS + STEP_MS // 25 for step in range(STEPS)]
        live = [asked.members("early", at_ms) for at_ms in moments]
        before = [asked.members("late", at_ms) for at_ms in moments]
        assert not any(before[: LATER - 1]), "nothing is known of the time before the rules"
        assert sum(one["entered"] for one in backfill("--dry-run")["segments"]) > 0 and asked.rows() == []
        whole_run = backfill()
        found, rows = whole_run["segments"], asked.rows()
        assert (whole_run["left_out"], whole_run["release"], whole_run["by_release"]) == ({}, version, sorted(BY_RELEASE))
        assert asked.models() == {name: [version if name in BY_RELEASE else ""] for name in RULES}
        assert sum(one["entered"] + one["left"] for one in found if one["tenant"] == "late") == len(rows) > 0
        for at_ms, said_live in zip(moments, live, strict=True):
            assert asked.members("late", at_ms) == asked.members("early", at_ms) == said_live, utc(at_ms)
        assert all(live[2:]), "and not because nobody is in anything"
        whole, cut = asked.over_the_seam()
        assert whole > 0 and cut == 0, "no membership is cut in two where the stream took over"
        assert backfill()["segments"] == found and asked.rows() == rows, "again is the same"
        erase(settings, "late", "u3")
        backfill("--segment", "lookers", "--segment", "regulars")
        anew = {"lookers", "regulars"}
        assert asked.rows() == [row for row in rows if row[1] not in anew or row[0] != "u3"] != rows
        assert len(read_all(settings, topics.SEGMENT_CHANGES)) == said, "nobody who follows the topic is told of the past"


def test_what_was_said_before_a_rule_counts_live_once_it_is_filled_in(settings: Settings, monkeypatch: Any) -> None:
    def said(user: str, at_ms: int, **more: Any) -> dict[str, Any]:
        row: dict[str, Any] = event(user=user, ts_ms=now_ms + at_ms, item=None, id=f"{user}-{at_ms}", type="identify",
                                    name=None, traits={"plan": "pro"}, **more)  # fmt: skip
        return row

    now_ms, no = time.time_ns() // 1_000_000 - 60_000, {"consent": {"analytics": True, "personalization": False}}
    rows = [said("stays", 0), said("changes", 0), said("changes", 1) | {"traits": {"plan": "free"}}, said("withdraws", 0),
            said("withdraws", 1, context=no), said("withdraws", 2) | {"traits": {}}]  # fmt: skip
    topic_admin.create(settings)
    settings.home.mkdir(parents=True, exist_ok=True)
    file, pros = settings.segments_file, "  - {name: pros, when: \"trait('plan') == 'pro'\"}\n"
    file.write_text("lifecycle: false\nsegments:\n  - {name: all, when: events > 0}\n")

    def changes() -> set[tuple[str, str, str]]:
        found = [json.loads(record.value or b"") for record in read_all(settings, topics.SEGMENT_CHANGES)]
        return {(one["user_id"], one["segment"], one["change"]) for one in found}

    everybody = {(user, "all", "entered") for user in ("stays", "changes", "withdraws")}
    with (Sender(settings) as sender, closing(Asked(settings)) as asked,
          running(settings, "workers.personalize", CLICKWAKE_SEGMENTS__SWEEP_S="1"),
          running(settings, "workers.sink")):  # fmt: skip
        sender.send(rows)
        until(lambda: everybody <= changes() and asked.count("events") == len(rows), 60, "folded and stored")
        file.write_text(file.read_text() + pros)
        environment(settings, monkeypatch)
        assert backfill("--dry-run")["recalled"] == 0
        assert backfill()["recalled"] == 2, "of those who have a profile with a trait"
        until(lambda: ("stays", "pros", "entered") in changes(), 30, "what was said before counts")
        again = len(read_all(settings, topics.SEGMENT_CHANGES))
        assert backfill()["recalled"] == 2
        until(lambda: lag(settings, "personalize", topics.IDENTITY) == 0, 30, "told again")
        assert len(read_all(settings, topics.SEGMENT_CHANGES)) == again
    assert {user for user, segment, _ in changes() if segment == "pros"} == {"stays"}


class Asked:
    """What ClickHouse says."""

    def __init__(self, settings: Settings) -> None:
        clickhouse.migrate(settings.clickhouse, wait_s=10)
        self._client = clickhouse.connect(settings.clickhouse, wait_s=10)

    def close(self) -> None:
        self._client.close()

    def count(self, table: str) -> int:
        return int(self._client.query(f"SELECT count() FROM {table} FINAL").first_row[0])  # noqa: S608

    def members(self, tenant: str, at_ms: int) -> list[tuple[str, str]]:
        sql = ("SELECT segment, user_id FROM segment_intervals WHERE tenant = {tenant:String} "
               "AND entered_at <= {at:DateTime64(3, 'UTC')} AND (left_at IS NULL OR left_at > {at:DateTime64(3, 'UTC')}) "
               "ORDER BY segment, user_id")  # fmt: skip
        return list(map(tuple, self._client.query(sql, parameters={"tenant": tenant, "at": utc(at_ms)}).result_rows))

    def over_the_seam(self) -> tuple[int, int]:
        """Of the second tenant's memberships that were filled in, those that last; and users who are in a segment twice."""
        sql = ("SELECT countIf(backfilled AND left_at IS NULL), countIf(left_at IS NULL) - uniqExactIf((segment, user_id), "
               "left_at IS NULL) FROM segment_intervals WHERE tenant = 'late'")  # fmt: skip
        whole, cut = self._client.query(sql).first_row
        return int(whole), int(cut)

    def models(self) -> dict[str, list[str]]:
        """Of each segment that was filled in, the releases that were asked."""
        sql = ("SELECT segment, groupUniqArray(toString(model_version)) FROM segment_changes FINAL WHERE backfilled "
               "GROUP BY segment")  # fmt: skip
        return dict(self._client.query(sql).result_rows)

    def rows(self) -> list[tuple[Any, ...]]:
        """What was filled in for the second tenant."""
        sql = ("SELECT user_id, segment, number, change, as_of_ts, change_id, as_of_event_id, values "
               "FROM segment_changes FINAL WHERE backfilled AND tenant = 'late' "
               "ORDER BY segment, user_id, number")  # fmt: skip
        return list(map(tuple, self._client.query(sql).result_rows))


def environment(settings: Settings, monkeypatch: Any) -> None:
    for name, value in {
        "CLICKWAKE_HOME": settings.home, "CLICKWAKE_CLICKHOUSE__PORT": settings.clickhouse.port,
        "CLICKWAKE_CLICKHOUSE__DATABASE": settings.clickhouse.database, "CLICKWAKE_SEGMENTS__SWEEP_S": 1,
        "CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "CLICKWAKE_KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix, "CLICKWAKE_MODELS__REGISTRY": settings.registry,
        "CLICKWAKE_KAFKA__PARTITIONS": settings.kafka.partitions,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))


def backfill(*arguments: str) -> Any:
    done = CliRunner().invoke(app, ["segments", "backfill", *arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def erase(settings: Settings, tenant: str, user: str) -> None:
    """As the first step of an erasure does."""
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers, acks="all")
    value = Erasure(erasure_id="e", tenant=tenant, requested_at=datetime.now(UTC), suppress=True)
    producer.send(topics.ERASURES.name(settings.kafka.topic_prefix), key=subject(key(tenant, user)),
                  value=msgspec.json.encode(value)).get(10)  # fmt: skip
    producer.close()
