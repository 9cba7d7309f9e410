"""The first event of a shop, of a customer, of a history: what `clickwake up` runs, from HTTP to SQL."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import clickhouse_connect
import httpx
import msgspec
import pytest

from clickwake import topics as topic_admin
from clickwake.local import process
from clickwake.local.up import Local
from producers import catalog
from schemas import topics
from schemas.events import key as user_key
from schemas.outputs import ChurnAlert, Complements, Recommendation, SegmentChange
from stream.adapters.kafka.kafka_clients import partition_of
from stream.settings import ClickHouse, Settings
from tests.support import bundles
from tests.support.bundles import Exported
from tests.support.cluster import Tail, lag, outcomes, produce_events, read_all, running, stored_states, until
from tests.support.fakes import event
from training.release import release as releases

TENANT = "demo"
TRIES = 9  # a busy machine stalls now and then: the median of these tells what is usual
WITHIN_S, AT_MOST_S = 1.0, 5.0  # the median, and each
DAY_MS = 86_400_000
SERVED = """SELECT user_id, as_of_event_id, model_version, item_ids FROM recommendations
            WHERE recommendation_id = {r:String}"""
WITH_BASKET = """SELECT user_id, basket, item_ids, scores, sources, reasons, as_of_event_id, as_of_ts, model_version
                 FROM complements_served WHERE recommendation_id = {r:String}"""


class Shop:
    """A running installation with a small catalog and a released bundle."""

    def __init__(self, local: Local) -> None:
        self.settings = local.settings
        port = self.settings.collector.port
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", auth=("demo-write-key", ""), timeout=30,
                                 trust_env=False)  # fmt: skip
        house = self.settings.clickhouse
        self.sql = clickhouse_connect.get_client(host=house.host, port=house.port, database=house.database,
                                                 tz_mode="aware")  # fmt: skip

    def post(self, call: str, **body: Any) -> str:
        """Returns the message id of the event the collector has acknowledged."""
        answer = self.http.post(f"/v1/{call}", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["messageId"])

    def view(self, item: str, **body: Any) -> str:
        return self.post("track", event="Product Viewed", properties={"product_id": item}, **body)

    def row(self, sql: str, **parameters: str) -> tuple[Any, ...] | None:
        rows = self.sql.query(sql, parameters=parameters).result_rows
        return tuple(rows[0]) if rows else None

    def close(self) -> None:
        self.http.close()
        self.sql.close()


@pytest.fixture(scope="module")
def shop(kafka: str, clickhouse: ClickHouse, registry: Path, exported: Exported,
         tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:  # fmt: skip
    home = tmp_path_factory.mktemp("shop")
    (space,) = (path.name for path in (registry / "text").iterdir())
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "KAFKA__BOOTSTRAP_SERVERS": kafka, "KAFKA__TOPIC_PREFIX": "first-event", "MODELS__REGISTRY": str(registry),
            "CLICKHOUSE__HOST": clickhouse.host, "CLICKHOUSE__PORT": str(clickhouse.port),
            "CLICKHOUSE__DATABASE": "first_event",
            "COLLECTOR__PORT": str(process.free_port()),  # the usual one is for an installation of tests beside this one
        }.items():  # fmt: skip
            environment.setenv(f"CLICKWAKE_{name}", value)
        with Local(home, processes=("catalog", "personalize", "sink", "collector")) as local:
            items = home / "items.jsonl"
            items.write_bytes(b"\n".join(msgspec.json.encode(item) for item in bundles.ITEMS))
            assert catalog.publish(local.settings, items, TENANT).published == len(bundles.ITEMS)
            vectors = [(f"{space}/{TENANT}/{item.item_id}").encode() for item in bundles.ITEMS]
            until(lambda: {one.key for one in read_all(local.settings, topics.ITEM_VECTORS)} >= set(vectors), 60, "vectors")
            version = bundles.publish(str(registry), exported, space=space, links=bundles.BESIDE).model_version
            releases.release(local.settings, version)
            log = home / "logs" / "personalize.log"
            until(lambda: "release taken" in log.read_text(), 30, "the release taken")
            some = Shop(local)
            yield some
            some.close()


@pytest.mark.alone  # the second that the README promises, from HTTP through four processes to SQL
def test_one_post_is_a_recommendation_and_two_rows_within_a_second(shop: Shop) -> None:
    took_s: list[tuple[float, float, float]] = []
    with Tail(shop.settings, topics.RECOMMENDATIONS) as tail:

        def recommended(user: str) -> Recommendation | None:
            values = [msgspec.json.decode(record.value, type=Recommendation) for record in tail.poll()]
            return next((one for one in values if one.user_id == user), None)

        for number in range(TRIES + 1):  # the first one warms connections and caches up
            user = f"customer-{number}"
            sent = time.monotonic()
            message = shop.view(f"i{number}", userId=user)
            said = until(lambda user=user: recommended(user), 20, "a recommendation on the topic")
            on_topic = time.monotonic() - sent
            until(lambda message=message: shop.row("SELECT 1 FROM events WHERE message_id = {m:String}", m=message), 20,
                  "the event in ClickHouse")  # fmt: skip
            event_stored = time.monotonic() - sent
            stored = until(lambda said=said: shop.row(SERVED, r=said.recommendation_id), 20, "the recommendation as a row")
            took_s.append((on_topic, event_stored, time.monotonic() - sent))
            assert (said.as_of_event_id, said.degraded) == (message, None)
            assert {item.item_id for item in said.items} < {item.item_id for item in bundles.ITEMS}
            assert {reason.event_id for item in said.items for reason in item.reasons} == {message}
            shown = [item.item_id for item in said.items]
            assert stored == (user, message, said.model_version, shown)
    usual = [median(times) for times in zip(*took_s[1:], strict=True)]
    assert max(usual) < WITHIN_S and max(map(max, took_s[1:])) < AT_MOST_S, took_s


@pytest.mark.alone  # likewise
def test_one_post_moves_a_user_into_and_out_of_segments_within_a_second(shop: Shop) -> None:
    shop.settings.segments_file.write_text("lifecycle: false\nclusters: false\nsegments:\n"
                                           "  - {name: lookers, when: views_1d >= 2 and orders == 0}\n")  # fmt: skip
    took_s: list[tuple[float, float]] = []
    with Tail(shop.settings, topics.SEGMENT_CHANGES) as tail:

        def moved(message: str) -> SegmentChange | None:
            values = [msgspec.json.decode(record.value, type=SegmentChange) for record in tail.poll()]
            return next((one for one in values if one.as_of_event_id == message), None)

        for number in range(TRIES + 1):  # the first one warms up; the rules are taken over meanwhile
            user = f"looker-{number}"
            shop.view("i1", userId=user)
            each = []
            for change, event in (("entered", "Product Viewed"), ("left", "Order Completed")):
                message = shop.post("track", event=event, properties={"product_id": "i2"}, userId=user)
                acknowledged = time.monotonic()
                said = until(lambda message=message: moved(message), 20, f"{user} {change}")
                each.append(time.monotonic() - acknowledged)
                assert (said.user_id, said.segment, said.change) == (user, "lookers", change)
            took_s.append((each[0], each[1]))
    usual = [median(times) for times in zip(*took_s[1:], strict=True)]
    print(f"entered and left {usual[0]:.3f} and {usual[1]:.3f} s after the collector had acknowledged the event")
    assert max(usual) < WITHIN_S and max(map(max, took_s[1:])) < AT_MOST_S, took_s


def test_what_goes_with_a_basket_is_an_event_and_a_row_and_what_came_of_it_is_known(shop: Shop) -> None:
    """Of three who put i0 into it: two did so a day and an hour ago, of whom one bought what was said; one does so now."""
    bought = {"taker": "i1", "leaver": "i5", "newcomer": "i1"}
    now = datetime.now(UTC).replace(microsecond=0)
    put_at = {user: now if user == "newcomer" else now - timedelta(hours=25) for user in bought}
    with Tail(shop.settings, topics.COMPLEMENTS) as tail:

        def told() -> dict[str, Complements]:
            values = [msgspec.json.decode(record.value, type=Complements) for record in tail.poll()]
            return {one.user_id: one for one in values if one.user_id in bought}

        puts = {user: shop.post("track", event="Product Added", properties={"product_id": "i0"}, userId=user,
                                timestamp=at.isoformat()) for user, at in put_at.items()}  # fmt: skip
        until(lambda: len(told()) == len(bought), 20, "what goes with i0, on the topic, for each of them")
        said = told()
    for user, one in said.items():
        shown = [(item.item_id, round(item.score, 3), [(why.item_id, why.share) for why in item.reasons])
                 for item in one.items]  # fmt: skip
        assert shown == [("i1", 0.667, [("i0", 1.0)]), ("i2", 0.333, [("i0", 1.0)])], "as the bundle's links say"
        assert (one.basket, one.as_of_event_id, one.as_of_ts) == (("i0",), puts[user], put_at[user])
        stored = until(lambda one=one: shop.row(WITH_BASKET, r=one.recommendation_id), 20, "and as a row")
        assert stored == (
            user, ["i0"], ["i1", "i2"], [item.score for item in one.items], ["complements"] * 2,
            [msgspec.json.encode(item.reasons).decode() for item in one.items], puts[user], put_at[user], one.model_version)
    ordered_at = {user: at + timedelta(minutes=0 if user == "newcomer" else 30, seconds=1) for user, at in put_at.items()}
    for user, item in bought.items():
        order = shop.post("track", event="Order Completed", userId=user, timestamp=ordered_at[user].isoformat(),
                          properties={"order_id": f"of {user}", "products": [{"product_id": item, "price": 2.5}]})
        until(lambda order=order: shop.row("SELECT 1 FROM event_products WHERE message_id = {m:String}", m=order), 20,
              "the order in ClickHouse")  # fmt: skip
    outcome = "SELECT ordered_at, taken, outcome FROM complement_outcomes WHERE recommendation_id = {r:String}"
    found = {user: shop.row(outcome, r=one.recommendation_id) for user, one in said.items()}
    assert found == {"taker": (ordered_at["taker"], ["i1"], "taken"), "leaver": (None, [], "left"),
                     "newcomer": (ordered_at["newcomer"], ["i1"], "pending")}  # fmt: skip


def apart(user: str, partitions: int) -> str:
    """An anonymous id whose partition is another than the user's."""
    there = partition_of(user_key(TENANT, user), partitions)
    return next(one for one in (f"{user}-cookie-{n}" for n in range(99))
                if partition_of(user_key(TENANT, one), partitions) != there)  # fmt: skip


@pytest.mark.parametrize("how", ["identify", "alias"])
def test_an_anonymous_history_on_another_partition_becomes_the_users(shop: Shop, how: str) -> None:
    user = f"known-by-{how}"
    cookie = apart(user, shop.settings.kafka.partitions)
    seen = [shop.view("i1", anonymousId=cookie), shop.view("i2", anonymousId=cookie)]
    own = shop.view("i3", userId=user)
    between = datetime.now(UTC).isoformat()
    if how == "identify":
        shop.post("identify", userId=user, anonymousId=cookie, traits={"plan": "gold"})
    else:
        shop.post("alias", userId=user, previousId=cookie)

    def joined() -> list[str]:
        state = stored_states(shop.settings).get(user_key(TENANT, user))
        return [] if state is None else [touch.event_id for touch in state.history()]

    until(lambda: joined() == [*seen, own], 20, "the anonymous events in the user's history")
    straggler = shop.view("i4", anonymousId=cookie, timestamp=between)  # sent before the log-in, arrives after it
    until(lambda: joined() == [*seen, own, straggler], 20, "and a straggler")
    state = stored_states(shop.settings)[user_key(TENANT, user)]
    assert {name: [touch.item_id for touch in ring] for name, ring in state.linked.items()} == {cookie: ["i1", "i2", "i4"]}


def test_history_then_live_raises_no_alert_and_nothing_is_late(
    settings: Settings, exported: Exported, tmp_path: Path
) -> None:
    """What every new customer does. Canaries, who lapse once live has begun, show that alerts are raised at all."""
    settings = bundles.with_registry(settings, tmp_path / "models")
    topic_admin.create(settings)
    bundles.put_vectors(settings)
    releases.release(settings, bundles.publish(settings.registry, exported).model_version)
    now_ms, partitions = time.time_ns() // 1_000_000, settings.kafka.partitions

    def of(partition: int, kind: str) -> str:
        names = (f"{kind}{n}" for n in range(999))
        return next(name for name in names if partition_of(user_key("t", name), partitions) == partition)

    past = [event(user=f"old{n}", ts_ms=now_ms - (5 + n % 50 + 90 * step) * DAY_MS, item=f"i{n % 12}", lane="import")
            for step in range(3) for n in range(40)]  # fmt: skip  # the newest first: a year's files in any order
    canaries = {of(partition, "canary") for partition in range(partitions)}
    early = [event(user=name, ts_ms=now_ms - 3 * DAY_MS // 2, item="i1") for name in sorted(canaries)]
    today = [event(user=of(partition, "today"), ts_ms=now_ms, item="i2") for partition in range(partitions)]
    back = [event(user=f"old{n}", ts_ms=now_ms, item="i3") for n in range(5)]
    forgotten = [event(user=f"file{n}", ts_ms=now_ms - 20 * DAY_MS, item="i4", lane="import") for n in range(20)]
    with running(settings, "workers.personalize") as worker:
        sent = 0
        for some in (past, early, today + back, forgotten):
            sent += produce_events(settings, some)
            until(lambda: lag(settings, "personalize", topics.EVENTS) == 0, 40, "folded, and every timer set")
        until(lambda: len(read_all(settings, topics.CHURN_ALERTS)) >= len(canaries), 20, "an alert for each canary")
        until(lambda: outcomes(worker)["folded"] == sent, 20, "everything folded")
        assert not {"late", "duplicate", "rejected"} & outcomes(worker).keys()
    said = [msgspec.json.decode(record.value, type=ChurnAlert) for record in read_all(settings, topics.CHURN_ALERTS)]
    assert sorted((one.user_id, one.state) for one in said) == sorted((name, "raised") for name in canaries)
