"""The latest recommendations from Kafka, as simulated shoppers see them."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

import msgspec
from kafka import KafkaConsumer, TopicPartition

from producers.kafka import KafkaUnavailable, client_options, missing_topic
from producers.simulate.stage import Shown
from schemas import topics
from schemas.outputs import Recommendation
from stream.settings import Settings

POLL_INTERVAL_S = 0.05  # shoppers ask thousands of times a second when the world runs fast; the topic is asked less often
NOTHING = Shown(())


class Feed:
    """Call it with a user id to get what was last recommended to them: `World.live(…, recommendations=feed)`.

    Reads every partition from the beginning without a group, so it commits nothing and disturbs nobody. Not for use
    from several threads.
    """

    def __init__(self, settings: Settings, tenant: str) -> None:
        self._tenant, self._latest, self._asked = tenant, dict[str, Shown](), float("-inf")
        self._decoder = msgspec.json.Decoder(Recommendation)
        topic = topics.RECOMMENDATIONS.name(settings.kafka.topic_prefix)
        self._consumer: Any = KafkaConsumer(
            **client_options(settings.kafka), group_id=None, enable_auto_commit=False, auto_offset_reset="earliest")
        partitions = self._consumer.partitions_for_topic(topic)
        if not partitions:
            self._consumer.close()
            raise KafkaUnavailable(missing_topic(settings.kafka, topic))
        self._consumer.assign([TopicPartition(topic, number) for number in sorted(partitions)])

    def __call__(self, user: str) -> Shown:
        """Item ids and the recommendation's id; nothing for a user nobody has recommended anything to yet."""
        now = time.monotonic()
        if now - self._asked >= POLL_INTERVAL_S:
            self._asked = now
            self._read()
        return self._latest.get(user, NOTHING)

    def _read(self) -> None:
        while found := self._consumer.poll(timeout_ms=0, max_records=5_000):
            for record in (record for records in found.values() for record in records):
                recommendation = self._decoder.decode(record.value)
                if recommendation.tenant == self._tenant:
                    items = tuple(item.item_id for item in recommendation.items)
                    self._latest[recommendation.user_id] = Shown(items, recommendation.recommendation_id)

    def close(self) -> None:
        self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
