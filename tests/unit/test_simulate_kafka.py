"""The simulator on a real broker: catalog and events go out, recommendations come in."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from clickwake import topics as topic_admin
from producers.kafka import KafkaUnavailable
from producers.simulate.feed import Feed
from producers.simulate.run import Options, Simulation
from producers.simulate.world import World
from schemas import topics
from schemas.events import PRODUCT_CLICKED, key, user_of
from schemas.outputs import Recommendation, RecommendedItem
from stream.settings import Kafka, Settings

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def broker(kafka: str, topic_prefix: str, tmp_path: Path) -> Settings:
    """Settings with the topics of this test made."""
    made = Settings(home=tmp_path / "home", kafka=Kafka(bootstrap_servers=kafka, topic_prefix=topic_prefix))
    topic_admin.create(made)
    return made


def records_of(settings: Settings, topic: topics.Topic) -> list[Any]:
    consumer = KafkaConsumer(bootstrap_servers=settings.kafka.bootstrap_servers, group_id=None, enable_auto_commit=False)
    name = topic.name(settings.kafka.topic_prefix)
    partitions = [TopicPartition(name, number) for number in sorted(consumer.partitions_for_topic(name))]
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    ends, found = consumer.end_offsets(partitions), []
    while any(consumer.position(partition) < ends[partition] for partition in partitions):
        for records in consumer.poll(timeout_ms=500).values():
            found.extend(records)
    consumer.close()
    return found


def test_catalog_and_events_reach_their_topics(broker: Settings) -> None:
    report = Simulation(broker, Options(shoppers=20, days=10, items=150, start=START)).run()
    events = records_of(broker, topics.EVENTS)
    assert len(events) == report.records == report.events > 500
    sent = {record.key: [] for record in events}
    for record in events:
        sent[record.key].append(msgspec.json.decode(record.value))
    expected: dict[bytes, list[Any]] = {}
    for event in World(7, 20, 10, START, items=150).history():
        expected.setdefault(key("demo", user_of(event)), []).append(event)
    assert sent == expected  # each user's events in order
    items = records_of(broker, topics.ITEMS)
    assert len(items) == 150 and items[0].key == key("demo", msgspec.json.decode(items[0].value)["item_id"])


def test_shoppers_follow_the_latest_recommendation(broker: Settings) -> None:
    options = Options(shoppers=30, days=20, items=150, start=START, lane="live", recommendations=True)
    world = World(7, 30, 20, START, items=150)
    topic = topics.RECOMMENDATIONS.name(broker.kafka.topic_prefix)
    producer = KafkaProducer(bootstrap_servers=broker.kafka.bootstrap_servers, acks="all")
    for version in ("old", "new"):
        for shopper in world.truth().shoppers:
            user, mask = shopper.user_id or shopper.anonymous_ids[0], world.truth().mask(shopper, 0)
            liked = [item.item_id for item, hit in zip(world.truth().items, mask, strict=True) if hit][:10]
            said = Recommendation(
                recommendation_id=f"{version}-{user}", tenant="demo", user_id=user, as_of_event_id="e", as_of_ts=START,
                items=tuple(RecommendedItem(item_id=item, score=1.0, source="model") for item in liked), model_version="v")
            producer.send(topic, key=key("demo", user), value=msgspec.json.encode(said))
        producer.flush(30)
    producer.close()
    with Feed(broker, "demo") as feed:
        known = next(shopper.user_id for shopper in world.truth().shoppers if shopper.user_id)
        assert feed(known).recommendation_id == f"new-{known}" and len(feed(known).items) == 10
        assert not feed("stranger").items
    report = Simulation(broker, options).run()
    clicks = [event for record in records_of(broker, topics.EVENTS)
              if (event := msgspec.json.decode(record.value)).get("event") == PRODUCT_CLICKED]
    assert len(clicks) == report.by_name[PRODUCT_CLICKED] > 10
    for click in clicks:
        assert click["lane"] == "live"
        assert click["properties"]["recommendation_id"].removeprefix("new-") in (click.get("userId"), click["anonymousId"])


def test_a_missing_topic_is_named(kafka: str, topic_prefix: str, tmp_path: Path) -> None:
    bare = Settings(home=tmp_path, kafka=Kafka(bootstrap_servers=kafka, topic_prefix=topic_prefix))
    with pytest.raises(KafkaUnavailable, match=rf"{topic_prefix}\.recommendations\.v1 does not exist"):
        Feed(bare, "demo")
