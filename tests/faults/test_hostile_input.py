"""What a broken client or an attacker sends, over HTTP and onto the topics: said clearly, kept, harmless to others."""

from __future__ import annotations

import base64
import gzip
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import clickhouse_connect
import httpx
import msgspec
import numpy as np
import pytest
from kafka.errors import MessageSizeTooLargeError

from clickwake import topics as topic_admin
from schemas import topics
from schemas.catalog import Item
from schemas.dead_letter import DeadLetter
from schemas.events import key as user_key
from schemas.outputs import Recommendation, RecommendedItem
from stream.settings import Kafka, Settings
from tests.support import bundles
from tests.support.bundles import Exported
from tests.support.cluster import (
    Sender,
    Worker,
    await_stored,
    comparable,
    lag,
    outcomes,
    produce_events,
    read_all,
    running,
    stored_states,
    until,
)
from tests.support.fakes import event
from training.release import release as releases

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
TENANT = "t"
NEIGHBOURS = 60
# What a neighbour is recommended may depend on what others did (popularity, sequence rules), which is the point of these
# parts; without them it must not depend on anybody else at all.
OWN_HISTORY_ONLY = {"rules": -60.0, "popular_14": -60.0}
CATALOG = [*bundles.ITEMS, Item(item_id="bare", tenant=TENANT)]  # one without text


class Seen(NamedTuple):
    """What a run left behind."""

    outcomes: Counter[str]
    states: dict[bytes, bytes]
    recommendations: dict[bytes, list[Recommendation]]
    letters: list[DeadLetter]
    stored: dict[str, list[tuple[Any, ...]]]


def neighbours(now_ms: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(history, live events) of users who do nothing wrong; one live event each, so that batches make no difference."""
    items = [item.item_id for item in CATALOG]
    past = [event(user=f"n{n}", ts_ms=now_ms - (step + 1) * HOUR_MS, item=items[(n * 5 + step) % len(items)], lane="import",
                  name="Order Completed" if step == 3 else "Product Viewed")
            for step in reversed(range(6)) for n in range(NEIGHBOURS)]  # fmt: skip
    live = [event(user=f"n{n}", ts_ms=now_ms - NEIGHBOURS + n, item=items[n % len(items)]) for n in range(NEIGHBOURS)]
    return past, live


def raw(value: Any, user: str = "h1", tenant: str = TENANT) -> tuple[bytes, bytes]:
    return user_key(tenant, user), value if isinstance(value, bytes) else msgspec.json.encode(value)


def at(iso: str) -> int:
    return round(datetime.fromisoformat(iso).replace(tzinfo=UTC).timestamp() * 1000)


def refused_by_the_worker(now_ms: int) -> dict[tuple[str, str], tuple[bytes, bytes]]:
    """What goes straight onto the topic, by (path, keyword) of the complaint in its dead letter."""
    good = event(user="h1", ts_ms=now_ms)
    ahead = now_ms + 365 * DAY_MS
    return {
        ("", "json"): raw(b"{"),
        ("", "type"): raw(b"[1, 2]"),
        ("messageId", "type"): raw({**good, "messageId": 5}),
        ("properties.price", "type"): raw({**good, "properties": {"product_id": "i1", "price": "cheap"}}),
        ("properties.products[0].product_id", "required"): raw({**good, "properties": {"products": [{}]}}),
        ("timestamp", "required"): raw({name: value for name, value in good.items() if name != "timestamp"}),
        ("type", "type"): raw({**good, "type": "buy"}),
        ("", "maxBytes"): raw({**good, "properties": {"product_id": "i1", "review": "x" * 900_000}}),
        ("timestamp", "minimum"): raw(event(user="h1", ts_ms=at("1970-01-01T00:00:00"))),
        ("timestamp", "maximum"): raw(event(user="h1", ts_ms=ahead)),
        ("userId", "required"): raw({name: value for name, value in good.items() if name != "userId"}),
        # keys of these tenants would be taken for the partition's own records and for a neighbour's timer
        ("tenant", "pattern"): raw({**good, "tenant": "#due", "userId": f"{TENANT}/n1"}, f"{TENANT}/n1", "#due"),
        ("event", "type"): raw({**good, "event": "x" * 257}),
    }


def unreadable(now_ms: int) -> list[tuple[bytes | None, bytes | None]]:
    """More of the same complaints: bytes that are no text, and JSON that no reader should follow."""
    good = msgspec.json.encode(event(user="h1", ts_ms=now_ms))
    return [
        (b"t/h1", b"\xff\xfe\x00"), (b"t/h1", good.replace(b'"u', b'"\xc3\x28')[:-1]), (b"t/h1", good[: len(good) // 2]),
        (b"t/h1", b'{"messageId":"' + b"\\ud800" + good[14:]), (b"t/h1", b"[" * 5_000), (None, b"no key"),
        (b"\xff/\xfe", b"a key that is no text"), (b"t/h1", b"1e999"),
    ]  # fmt: skip


def odd_but_valid(now_ms: int) -> list[tuple[bytes, bytes]]:
    """Folded, each into its own sender's state, whatever it says."""
    some = [
        event(user="h1", ts_ms=now_ms, item="nobody-sells-this"), event(user="h1", ts_ms=now_ms + 1, item="bare"),
        event(user="h/2", ts_ms=now_ms, item="a/b/c"), event(user="h2", ts_ms=now_ms, item="\x00\x1f"),
        event(user="茶" * 80, ts_ms=now_ms, item="i3"), event(user="h2", ts_ms=now_ms + 3, name="#" * 256, item="i2"),
        *(event(user="h3", ts_ms=now_ms - n * HOUR_MS, item=f"i{n}") for n in (1, 30, 2, 20, 3)),  # out of order
        *(event(user="h3", ts_ms=now_ms, item="i1", id="again") for _ in range(5)),  # duplicates
        event(user="h4", ts_ms=now_ms + 200_000, item="i4"),  # ahead, within the allowed skew
        event(user="h5", ts_ms=now_ms, item="i5", originalTimestamp="0001-01-01T00:00:00Z", sentAt="9999-12-31T23:59:59Z"),
        event(user="h6", ts_ms=now_ms, name="Order Completed",
              properties={"products": [{"product_id": "i6", "price": 1e308, "quantity": 1e308}]}),
        event(user="h7", ts_ms=now_ms, name="Order Completed", properties={"product_id": "i6", "revenue": -1e308}),
        event(user="h8", ts_ms=now_ms, name="Order Completed",
              properties={"products": [{"product_id": f"x{n}"} for n in range(1_000)]}),
        event(user="n1", ts_ms=now_ms, item="i1", tenant="another-shop"),
    ]  # fmt: skip
    misplaced = (b"t/some-other-key", msgspec.json.encode(event(user="h9", ts_ms=now_ms, item="i1")))
    return [raw(one, one["userId"], one["tenant"]) for one in some] + [misplaced]


def late(now_ms: int) -> tuple[bytes, bytes]:
    return raw(event(user="h3", ts_ms=now_ms - 3 * DAY_MS, item="i1"), "h3")


class Refused(NamedTuple):
    """An answer of the collector: what was posted, and the status, path and keyword that come back."""

    body: bytes
    status: int
    path: str = ""
    keyword: str = ""
    call: str = "track"


def refused_by_the_collector() -> list[Refused]:
    good = {"userId": "h1", "event": "Product Viewed", "properties": {"product_id": "i1"}}
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"userId": 5}, "userId", "type"), ({"userId": "x" * 257}, "userId", "length"),
        ({"userId": ""}, "userId", "required"),
        ({"event": None}, "event", "required"), ({"properties": "x"}, "properties", "type"),
        ({"properties": {"price": "cheap"}}, "properties.price", "type"),
        ({"timestamp": "yesterday"}, "timestamp", "format"),
        ({"timestamp": "1970-01-01T00:00:00Z"}, "timestamp", "range"),
        ({"timestamp": f"{datetime.now(UTC).year + 1}-12-31T00:00:00Z"}, "timestamp", "range"),
    ]  # fmt: skip
    return [
        *(Refused(json.dumps(good | change).encode(), 400, path, keyword) for change, path, keyword in cases),
        Refused(b"{", 400, "", "json"), Refused(b'"text"', 400, "", "type"), Refused(b"\xff", 400, "", "json"),
        Refused(b"[" * 5_000, 400, "", ""),
        Refused(json.dumps(good | {"properties": {"x": "y" * 10_000_000}}).encode(), 413),
        Refused(b'{"batch": []}', 400, "batch", "required", "batch"),
        Refused(b'{"batch": [5, {"type": "track"}]}', 400, "batch[0]", "type", "batch"),
    ]  # fmt: skip


def in_others_words() -> list[tuple[str, str, bytes, int]]:
    """Bombs, rubbish and endless addresses where other systems' clients write."""
    bomb = gzip.compress(b" " * 50_000_000)
    return [
        ("POST", "/e/?compression=gzip-js", bomb, 413), ("POST", "/e/", b"data=" + base64.b64encode(bomb), 413),
        ("POST", "/e/?compression=gzip-js", bomb[:-9], 413), ("POST", "/batch", b"data=%ff", 400),
        ("GET", f"/e/?data={'A' * 40_000}", b"", 413), ("GET", "/e/?data=%ff", b"", 400),
        ("GET", "/i?e=ue&ue_px=%%%", b"", 400), ("GET", "/i?" + "a=1&" * 5_000, b"", 400), ("HEAD", "/i?e=pv", b"", 405),
    ]  # fmt: skip


def accounted(worker: Worker) -> Counter[int]:
    """Partition → inputs that have exactly one of these ends."""
    ends = ("folded", "duplicate", "late", "rejected", "dropped:")
    found: Counter[int] = Counter()
    for name, value in worker.metrics().items():
        if labels := re.match(r'clickwake_outcomes_total\{outcome="(.*?)",partition="(\d+)"\}', name):
            found[int(labels[2])] += round(value) if labels[1].startswith(ends) else 0
    return found


Hostile = Callable[[Settings, Worker], None]


def run(settings: Settings, version: str, home: Path, now_ms: int, hostile: Hostile) -> Seen:
    """History, then the neighbours' live events with `hostile` in their midst, then everything that came of it."""
    topic_admin.create(settings)
    bundles.put_vectors(settings, CATALOG)
    releases.release(settings, version)
    past, live = neighbours(now_ms)
    produce_events(settings, past)
    with ExitStack() as stack:
        worker = stack.enter_context(running(settings, "workers.personalize", home / "personalize"))
        stack.enter_context(running(settings, "workers.sink", home / "sink"))
        collector = stack.enter_context(
            running(settings, "producers.collector", home / "collector", CLICKWAKE_COLLECTOR__PORT="0",
                    CLICKWAKE_COLLECTOR__WRITE_KEYS=json.dumps({TENANT: "key"})))  # fmt: skip
        until(lambda: lag(settings, "personalize", topics.EVENTS) == 0, 60, "history folded")
        sender = stack.enter_context(Sender(settings))
        sender.send(live[:20])
        hostile(settings, collector)
        sender.send(live[20:40])
        hostile(settings, collector)
        sender.send(live[40:])
        until(lambda: lag(settings, "personalize", topics.EVENTS) == 0, 60, "everything folded")
        until(lambda: lag(settings, "personalize", topics.IDENTITY) == 0, 60, "identities too")
        log = [*read_all(settings, topics.EVENTS), *read_all(settings, topics.IDENTITY)]
        records = Counter(record.partition for record in log)
        until(lambda: accounted(worker) == records, 20, f"{records} records accounted for, {outcomes(worker)}")
        ends = outcomes(worker)
        until(lambda: len(recommended(settings)) >= NEIGHBOURS, 30, "a recommendation for every neighbour")
        found = [msgspec.json.decode(one.value, type=DeadLetter) for one in read_all(settings, topics.DEAD_LETTERS)]
        letters = {letter.dead_letter_id: letter for letter in found}  # the same refused twice is the same letter
        await_stored(settings)
        client = clickhouse_connect.get_client(host=settings.clickhouse.host, port=settings.clickhouse.port,
                                               database=settings.clickhouse.database)  # fmt: skip
        until(lambda: stored_rows(client, "dead_letters") == len(letters), 30, f"{len(letters)} dead letters stored")
        until(lambda: stored_rows(client, "events") >= 7 * NEIGHBOURS, 30, "the neighbours' events stored")
        stored = {
            "dead_letters": client.query("SELECT kind, paths, keywords, messages, payload_bytes FROM dead_letters FINAL"),
            "events": client.query("SELECT user, message_id FROM events FINAL WHERE tenant = 't'"),
        }
        client.close()
    states = {key: comparable(state) for key, state in stored_states(settings).items()}
    return Seen(ends, states, recommended(settings), list(letters.values()),
                {name: [tuple(row) for row in rows.result_rows] for name, rows in stored.items()})  # fmt: skip


def stored_rows(client: Any, table: str) -> int:
    return int(client.query(f"SELECT count() FROM {table} FINAL").first_row[0])  # noqa: S608


def recommended(settings: Settings) -> dict[bytes, list[Recommendation]]:
    """Neighbour → recommendations, in order."""
    found: dict[bytes, list[Recommendation]] = {}
    for record in read_all(settings, topics.RECOMMENDATIONS):
        if record.key.startswith(b"t/n"):
            found.setdefault(record.key, []).append(msgspec.json.decode(record.value, type=Recommendation))
    return found


def exact(recommendations: dict[bytes, list[Recommendation]]) -> dict[bytes, list[bytes]]:
    """All but the numbers, as bytes. A matrix product's last bits depend on the shapes of its factors, so on how many users
    are in a batch and how many items there are; the numbers are compared by `numbers`."""
    plain = {
        key: [msgspec.structs.replace(one, items=tuple(_without_numbers(item) for item in one.items)) for one in some]
        for key, some in recommendations.items()
    }
    return {key: [msgspec.json.encode(one) for one in some] for key, some in plain.items()}


def _without_numbers(item: RecommendedItem) -> RecommendedItem:
    reasons = tuple(msgspec.structs.replace(reason, share=0.0) for reason in item.reasons)
    return msgspec.structs.replace(item, score=0.0, reasons=reasons)


def numbers(recommendations: dict[bytes, list[Recommendation]]) -> list[float]:
    """Scores and shares, by neighbour."""
    items = [item for key in sorted(recommendations) for one in recommendations[key] for item in one.items]
    return [value for item in items for value in (item.score, *(reason.share for reason in item.reasons))]


def nothing(settings: Settings, collector: Worker) -> None:
    """The run without hostile events."""


@pytest.mark.timeout(240)
def test_hostile_input_is_answered_kept_and_changes_nothing_for_the_neighbours(
    settings: Settings, exported: Exported, tmp_path: Path
) -> None:
    now_ms = time.time_ns() // 1_000_000
    settings = bundles.with_registry(settings, tmp_path / "models")
    version = bundles.publish(settings.registry, exported, blend=OWN_HISTORY_ONLY).model_version
    prefix = settings.kafka.topic_prefix
    quiet = settings.model_copy(update={
        "kafka": Kafka.model_validate({"bootstrap_servers": settings.kafka.bootstrap_servers, "topic_prefix": f"{prefix}q"}),
        "clickhouse": settings.clickhouse.model_copy(update={"database": f"{prefix}q"})})  # fmt: skip
    _, live = neighbours(now_ms)
    onto_topic = refused_by_the_worker(now_ms)
    misunderstood: list[tuple[bytes, int, str]] = []

    def hostile(here: Settings, collector: Worker) -> None:
        with Sender(here) as events, Sender(here, topics.IDENTITY) as identity:
            events.send([*onto_topic.values(), *odd_but_valid(now_ms), *unreadable(now_ms), late(now_ms), (b"t/h1", None)])
            events.send(live[:10])  # a neighbour's client that sends twice what was acknowledged
            identity.send([(b"t/h1", b"\xff"), (b"t/h1", b"{}"), (b"t/h1", None)])
            with pytest.raises(MessageSizeTooLargeError):  # the client's own limit is the topic's
                events.send([raw({"review": "x" * 10_000_000})])
        where = collector.home / "run" / "collector.json"
        until(where.exists, 60, "the collector says where it is")
        run_file = json.loads(where.read_text())
        with httpx.Client(base_url=f"http://127.0.0.1:{run_file['port']}", auth=("key", ""), timeout=30) as http:
            for case in refused_by_the_collector():
                answer = http.post(f"/v1/{case.call}", content=case.body, headers={"content-type": "application/json"})
                error = answer.json()["error"]
                named = [(one["path"], one["keyword"]) for one in error["messages"]]
                as_it_should = answer.status_code == case.status and error["message"]
                if not as_it_should or (case.keyword and (case.path, case.keyword) not in named):
                    misunderstood.append((case.body[:80], answer.status_code, answer.text[:300]))
            for method, path, content, status in in_others_words():
                answer = http.request(method, path, content=content, headers={"content-type": "text/plain"})
                if answer.status_code != status:
                    misunderstood.append((path[:80].encode(), answer.status_code, answer.text[:300]))

    with_hostile = run(settings, version, tmp_path / "hostile", now_ms, hostile)
    without = run(quiet, version, tmp_path / "quiet", now_ms, nothing)

    assert misunderstood == []
    assert len(without.recommendations) == NEIGHBOURS and not without.letters
    assert exact(with_hostile.recommendations) == exact(without.recommendations)
    np.testing.assert_allclose(numbers(with_hostile.recommendations), numbers(without.recommendations), atol=2e-4)
    assert {key: with_hostile.states[key] for key in without.states} == without.states

    complaints = [(one.path, one.keyword) for letter in with_hostile.letters for one in letter.failure.messages]
    for complaint in onto_topic:
        assert complaints.count(complaint) >= 2, (complaint, sorted(set(complaints)))
    assert len(with_hostile.letters) == len(with_hostile.stored["dead_letters"])
    rows = with_hostile.stored["dead_letters"]
    kept = [tuple(sorted(zip(paths, keywords, strict=True))) for _, paths, keywords, _, _ in rows]
    assert sorted(kept) == sorted(tuple(sorted((m.path, m.keyword) for m in letter.failure.messages))
                                  for letter in with_hostile.letters)  # fmt: skip
    assert all(all(messages) for _, _, _, messages, _ in rows)
    too_late = json.loads(late(now_ms)[1])["messageId"]
    assert with_hostile.outcomes["late"] >= 1 and without.outcomes["late"] == 0
    assert ("h3", too_late) in with_hostile.stored["events"], "counted as late, and kept"
    neighbours_stored = [row for row in with_hostile.stored["events"] if row[0].startswith("n")]
    assert sorted(neighbours_stored) == sorted(without.stored["events"])
