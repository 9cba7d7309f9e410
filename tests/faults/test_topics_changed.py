"""Topics that change under the workers: partitions added, a broker restored from an older copy."""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client
from kafka import KafkaAdminClient
from kafka.admin import NewPartitions
from typer.testing import CliRunner

from clickwake import topics as topic_admin
from clickwake.cli import app
from clickwake.local import process
from clickwake.local.broker import Broker
from producers.kafka import partition_of
from schemas import topics
from schemas.topics import Topic
from stream.adapters.database import clickhouse as adapter
from stream.settings import ClickHouse, Kafka, Settings
from tests.chaos.town import assert_aggregates_are_true
from tests.support.cluster import (
    Worker,
    await_stored,
    comparable,
    item_counts,
    lag,
    members,
    oracle,
    outcomes,
    produce_events,
    read_all,
    running,
    sink_lag,
    start_worker,
    stored_states,
    until,
)
from tests.support.database import stored_events
from tests.support.fakes import event
from tests.support.offering import api, published, recomputed

OFFER = """
holdout: 0.0
placements: [{name: home}]
offers: [{id: summer, placements: [home]}]
"""


def some(first: int, count: int) -> list[dict[str, object]]:
    now_ms = time.time_ns() // 1_000_000
    return [event(user=f"u{n % 40}", item=f"i{n % 12}", id=f"m{n}", ts_ms=now_ms + n) for n in range(first, first + count)]


@pytest.mark.parametrize("meanwhile", ["ended", "running"])
def test_events_in_added_partitions_reach_their_users_and_none_is_taken_for_a_duplicate(
    meanwhile: str, settings: Settings
) -> None:
    """Whether the workers run while partitions are added or are started afterwards."""
    topic_admin.create(settings)
    name, before = topics.EVENTS.name(settings.kafka.topic_prefix), settings.kafka.partitions
    with ExitStack() as stack:

        def start() -> tuple[Worker, Worker]:
            return (stack.enter_context(running(settings, "workers.personalize")),
                    stack.enter_context(running(settings, "workers.sink")))  # fmt: skip

        personalize, sink = start()
        produce_events(settings, some(0, 200))
        until(lambda: lag(settings, "personalize", topics.EVENTS) == 0, 60, "the first events folded")
        until(lambda: stored_events(settings.clickhouse) == (200, 200), 60, "and stored")
        if meanwhile == "ended":
            personalize.stop()
            sink.stop()
        admin = KafkaAdminClient(bootstrap_servers=settings.kafka.bootstrap_servers)
        admin.create_partitions({name: NewPartitions(2 * before)})
        admin.close()
        produce_events(settings, some(200, 300))
        moved = [one for one in read_all(settings, topics.EVENTS) if one.partition >= before]
        assert moved and all(partition_of(one.key, 2 * before) == one.partition for one in moved)
        if meanwhile == "ended":
            personalize, sink = start()
        until(lambda: sum(one.events for one in stored_states(settings).values()) == 500, 90, "every event folded")
        assert "partition without states" in personalize.log() and "docs/faults.md" in personalize.log()
        seen = outcomes(personalize)
        assert seen["dropped:misplaced"] == len(moved) and seen["duplicate"] == 0
        until(lambda: stored_events(settings.clickhouse) == (500, 500), 90, "every event stored once, passed on or not")
    truth, found = oracle_once(settings), stored_states(settings)
    assert {key: comparable(state) for key, state in found.items()} == truth
    assert_aggregates_are_true(settings)


def test_a_broker_whose_events_are_an_older_copy_loses_what_it_lost_and_no_event_after_that(
    clickhouse: ClickHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """The state is ahead of the log, as after a power cut: what is sent then comes under offsets that were folded before."""
    with Broker(tmp_path, port=process.free_port()) as broker:
        settings = Settings(home=tmp_path / "home", kafka=Kafka(bootstrap_servers=broker.bootstrap_servers),
                            clickhouse=clickhouse.model_copy(update={"database": "older_copy"}))  # fmt: skip
        topic_admin.create(settings)
        produce_events(settings, some(0, 100))
        broker.stop()
        logs = [path.parent for path in tmp_path.rglob("partition.metadata")
                if path.parent.name.startswith(topics.EVENTS.name(settings.kafka.topic_prefix))]  # fmt: skip
        assert len(logs) == settings.kafka.partitions
        for path in logs:
            shutil.copytree(path, tmp_path / "copy" / path.name)
        broker.start()
        produce_events(settings, some(100, 100))
        with running(settings, "workers.personalize") as first, running(settings, "workers.sink") as sink:
            until(lambda: sum(one.events for one in stored_states(settings).values()) == 200, 60, "everything folded")
            until(lambda: sink_lag(settings) == 0, 60, "everything stored")
            first.stop()
            sink.stop()
        broker.stop()
        for path in logs:
            shutil.rmtree(path)
            shutil.copytree(tmp_path / "copy" / path.name, path)
        broker.start()
        assert len(read_all(settings, topics.EVENTS)) == 100
        counted = item_counts(settings)
        produce_events(settings, some(150, 150))  # 50 of them were folded before, and the offsets are used again
        for name in ("personalize", "sink"):
            blind = start_worker(settings, f"workers.{name}", tmp_path / name)
            assert blind.wait(60) != 0
            said = "".join(path.read_text() for path in (tmp_path / name).glob("*.log"))
            assert "clickwake rewind" in said and "the broker lost records" in said, said[-3_000:]
        until(lambda: members(settings, "personalize") == 0, 60, "the group is empty")
        monkeypatch.setenv("CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS", broker.bootstrap_servers)
        done = CliRunner().invoke(app, ["rewind"])
        assert done.exit_code == 0, done.output
        with running(settings, "workers.personalize") as second, running(settings, "workers.sink"):
            until(lambda: sum(one.events for one in stored_states(settings).values()) == 300, 60, "the new ones folded")
            assert outcomes(second)["duplicate"] == 150
            until(lambda: sink_lag(settings) == 0, 60, "the new ones stored")
            with closing(adapter.open_client(settings.clickhouse)) as client:
                assert client.query("SELECT uniqExact(message_id), count() FROM events FINAL").first_row == (300, 300)
            until(lambda: sum(item_counts(settings).values()) > sum(counted.values()) + 90, 30, "the new ones counted")
            second.stop()


def test_a_broker_that_is_an_older_copy_as_a_whole_under_running_workers(
    clickhouse: ClickHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Events, changelog and the groups' places go back together; what workers hold in memory and on disk does not. Nothing
    new is passed over: either a worker works on all of it, or it ends and does after `clickwake rewind`."""
    def folded() -> Counter[bytes]:
        return Counter({key: state.events for key, state in stored_states(settings).items()})

    def stored() -> tuple[int, ...]:
        with closing(adapter.open_client(settings.clickhouse)) as client:
            return tuple(client.query("SELECT uniqExact(message_id), count() FROM events FINAL").first_row)

    with Broker(tmp_path, port=process.free_port()) as broker:
        data, copy = broker.folder / "data", tmp_path / "copy"
        settings = Settings(home=tmp_path / "home", kafka=Kafka(bootstrap_servers=broker.bootstrap_servers),
                            clickhouse=clickhouse.model_copy(update={"database": "whole_copy"}))  # fmt: skip
        topic_admin.create(settings)
        with running(settings, "workers.personalize") as personalize, running(settings, "workers.sink") as sink:
            for first in (0, 100):
                produce_events(settings, some(first, 100))
                until(lambda: folded().total() == first + 100, 60, "everything folded")  # noqa: B023  # at once
                await_stored(settings)
                until(lambda: stored() == (first + 100,) * 2, 60, "everything stored")  # noqa: B023
                broker.stop()
                if first == 0:
                    shutil.copytree(data, copy)
                else:
                    shutil.rmtree(data)
                    shutil.copytree(copy, data)
                broker.start()
            assert len(read_all(settings, topics.EVENTS)) == 100
            produce_events(settings, some(150, 150))  # 50 of them were folded before, and the offsets are used again
            kept, there = users(range(100), range(150, 300)), users(range(300))
            until(lambda: personalize.process.poll() is not None or folded() >= kept, 120, "all is folded, or refused")
            until(lambda: sink.process.poll() is not None or stored() == (300, 300), 120, "all is stored, or refused")
            for worker in (personalize, sink):
                if worker.process.poll() is None:
                    worker.stop()
                else:  # what it read is not there any more, or the broker knows nothing of what it said before
                    assert re.search("the broker lost records|OutOfOrderSequenceNumber", worker.log()), worker.log()[-3_000:]
                    worker.stopped = True
        until(lambda: members(settings, "personalize") == 0, 60, "the group is empty")
        monkeypatch.setenv("CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS", broker.bootstrap_servers)
        done = CliRunner().invoke(app, ["rewind"])
        assert done.exit_code == 0, done.output
        with running(settings, "workers.personalize"), running(settings, "workers.sink"):
            until(lambda: kept <= folded() <= there, 60, "each event of the log folded once")
            until(lambda: stored() == (300, 300), 60, "each stored once")


def users(*numbers: range) -> Counter[bytes]:
    """How many of `some` events each user has."""
    return Counter(b"t/u%d" % (n % 40) for one in numbers for n in one)


def test_a_topic_made_again_under_a_running_worker_loses_no_event(settings: Settings) -> None:
    """The broker gives the offsets away a second time: what comes under those that were folded is no second reading. A
    worker that is told of the new topic opens its partitions anew; one that reads it before ends, and is started again."""
    def folded() -> int:
        return sum(one.events for one in stored_states(settings).values())

    topic_admin.create(settings)
    with running(settings, "workers.personalize") as first:
        produce_events(settings, some(0, 400))
        until(lambda: folded() == 400, 60, "the first events folded")
        make_again(settings, topics.EVENTS)
        produce_events(settings, some(400, 200))
        until(lambda: first.process.poll() is not None or folded() == 600, 150, "it is noticed")
        assert "the topic was made again" in first.log(), first.log()[-3_000:]
        first.stopped = first.process.poll() is not None
    if folded() < 600:
        with running(settings, "workers.personalize") as second:
            until(lambda: folded() == 600, 60, "the new ones folded")
            second.stop()
    assert folded() == 600


@pytest.mark.parametrize("meanwhile", ["a worker runs", "no worker runs"])
def test_a_changelog_made_again_is_never_taken_for_the_states_of_nobody(
    settings: Settings, meanwhile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """The group has passed events that nothing stands for any more. The worker refuses to go on behind them; after a rewind
    all that the events topic has is folded."""
    topic_admin.create(settings)
    with running(settings, "workers.personalize") as first:
        produce_events(settings, some(0, 400))
        until(lambda: lag(settings, "personalize", topics.EVENTS) == 0, 60, "the first events folded")
        if meanwhile == "no worker runs":
            first.stop()
        make_again(settings, topics.STATE)
        produce_events(settings, some(400, 40))
        if meanwhile == "a worker runs":
            until(lambda: first.process.poll() is not None, 60, "what it writes comes before what its store stands for")
            first.stopped = True
    blind = start_worker(settings, "workers.personalize", tmp_path / "blind")
    assert blind.wait(60) != 0
    said = "".join(path.read_text() for path in (tmp_path / "blind").glob("*.log"))
    assert "the changelog was made again" in said and "clickwake rewind" in said, said[-3_000:]
    until(lambda: members(settings, "personalize") == 0, 60, "the group is empty")
    monkeypatch.setenv("CLICKWAKE_KAFKA__BOOTSTRAP_SERVERS", settings.kafka.bootstrap_servers)
    monkeypatch.setenv("CLICKWAKE_KAFKA__TOPIC_PREFIX", settings.kafka.topic_prefix)
    done = CliRunner().invoke(app, ["rewind"])
    assert done.exit_code == 0, done.output
    with running(settings, "workers.personalize") as second:
        until(lambda: lag(settings, "personalize", topics.EVENTS) == 0, 60, "every event folded")
        second.stop()
    assert {key: comparable(state) for key, state in stored_states(settings).items()} == oracle_once(settings)


def test_a_sink_stores_every_event_of_a_topic_that_was_made_again_and_outgrew_its_place_while_it_slept(
    settings: Settings,
) -> None:
    """Nothing tells its consumer, which goes on at its place in the new topic, behind events it has not read."""
    def stored(client: Client) -> tuple[int, ...]:
        return tuple(client.query("SELECT uniqExact(message_id), count() FROM events FINAL").first_row)

    topic_admin.create(settings)
    produce_events(settings, some(0, 400))
    with running(settings, "workers.sink") as sink:
        until(lambda: sink_lag(settings) == 0, 60, "the first events stored")
        sink.process.send_signal(signal.SIGSTOP)
        make_again(settings, topics.EVENTS)
        produce_events(settings, some(400, 1_200))
        sink.process.send_signal(signal.SIGCONT)
        with closing(adapter.open_client(settings.clickhouse)) as client:
            until(lambda: stored(client) == (1_600, 1_600), 90, "every event stored")
        assert "the topic was made again" in sink.log(), sink.log()[-3_000:]
        until(lambda: sink_lag(settings) == 0, 30, "its place is that of the new topic")


def test_an_offers_worker_reads_all_of_topics_that_were_made_again(settings: Settings) -> None:
    """As the sink: behind its place in a topic of events that was made again there is what it has not read. Where its own
    topic was made again, it learns from the log what it knew."""
    def moment(ident: str) -> dict[str, Any]:
        return event(user="u1", id=f"seen {ident}", name="Promotion Viewed", properties={"recommendation_id": ident})

    topic_admin.create(settings)
    with running(settings, "workers.offers") as worker, api(settings, OFFER) as client:
        first, second = (str(client.post("/v1/offers", json={"user_id": "u1", "placement": "home", "id": one})
                             .raise_for_status().json()["recommendation_id"]) for one in ("1", "2"))  # fmt: skip
        produce_events(settings, [*some(0, 400), moment(first)])
        until(lambda: published(settings).outcomes == 1, 30, "the first is counted")
        worker.process.send_signal(signal.SIGSTOP)
        make_again(settings, topics.EVENTS)
        produce_events(settings, [moment(second), *some(400, 1_200)])
        worker.process.send_signal(signal.SIGCONT)
        until(lambda: published(settings).outcomes == 2, 60, "the second, which came before the place that was read up to")
        make_again(settings, topics.OFFERS)
        until(lambda: published(settings).outcomes == 1, 60, "what the log still has is learned anew")
        assert published(settings) == recomputed(settings)
        worker.stop()


def make_again(settings: Settings, topic: Topic) -> None:
    admin = KafkaAdminClient(bootstrap_servers=settings.kafka.bootstrap_servers)
    name = topic.name(settings.kafka.topic_prefix)
    admin.delete_topics([name])
    until(lambda: name not in admin.list_topics(), 60, "the topic is gone")
    admin.close()
    topic_admin.create(settings)


def oracle_once(settings: Settings) -> dict[bytes, bytes]:
    """The oracle folds by id, so an event that was passed on counts once there too."""
    return {key: comparable(state) for key, state in oracle(settings).states.items()}
