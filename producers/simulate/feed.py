"""The latest recommendations from Kafka, as simulated shoppers see them."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

import msgspec
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from producers.kafka import KafkaUnavailable, client_options, missing_topic, unreachable
from producers.simulate.stage import Shown
from schemas import topics
from schemas.outputs import Recommendation
from stream.settings import Settings

POLL_INTERVAL_S = 0.05  # shoppers ask thousands of times a second when the world runs fast; the topic is asked less often
RECORDS_MAX = 5_000  # in one poll
CATCH_UP_IDLE_S = 30.0  # without a single record while there are some to read
NOTHING = Shown(())


class Feed:
    """Call it with a user id to get what was last recommended to them: `World.live(…, recommendations=feed)`.

    Reads every partition from the beginning without a group, so it commits nothing and disturbs nobody; what is there
    already is read before the constructor returns. Raises KafkaUnavailable. Not for use from several threads.
    """

    def __init__(self, settings: Settings, tenant: str) -> None:
        self._tenant, self._latest, self._asked = tenant, dict[str, Shown](), float("-inf")
        self._decoder = msgspec.json.Decoder(Recommendation)
        topic = topics.RECOMMENDATIONS.name(settings.kafka.topic_prefix)
        try:
            self._consumer: Any = KafkaConsumer(
                **client_options(settings.kafka), group_id=None, enable_auto_commit=False, auto_offset_reset="earliest")
        except KafkaError as error:
            raise KafkaUnavailable(unreachable(settings.kafka, error)) from error
        try:
            self._catch_up(settings, topic)
        except BaseException:
            self._consumer.close()
            raise

    def _catch_up(self, settings: Settings, topic: str) -> None:
        """Reads what is there already, so that the first shopper sees it."""
        numbers = self._consumer.partitions_for_topic(topic)
        if not numbers:
            raise KafkaUnavailable(missing_topic(settings.kafka, topic))
        partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
        self._consumer.assign(partitions)
        ends = self._consumer.end_offsets(partitions)
        deadline = time.monotonic() + CATCH_UP_IDLE_S
        while any(self._consumer.position(partition) < ends[partition] for partition in partitions):
            if self._read(timeout_ms=200):
                deadline = time.monotonic() + CATCH_UP_IDLE_S
            elif time.monotonic() > deadline:
                raise KafkaUnavailable(unreachable(settings.kafka, f"nothing of {topic} came for {CATCH_UP_IDLE_S:.0f} s"))

    def __call__(self, user: str) -> Shown:
        """Item ids and the recommendation's id; nothing for a user nobody has recommended anything to yet."""
        now = time.monotonic()
        if now - self._asked >= POLL_INTERVAL_S:
            self._asked = now
            while self._read(timeout_ms=0):
                pass
        return self._latest.get(user, NOTHING)

    def _read(self, timeout_ms: int) -> int:
        """Takes in one poll; returns how many records it brought."""
        records = [record for found in self._consumer.poll(timeout_ms=timeout_ms, max_records=RECORDS_MAX).values()
                   for record in found]
        for record in records:
            recommendation = self._decoder.decode(record.value)
            if recommendation.tenant == self._tenant:
                items = tuple(item.item_id for item in recommendation.items)
                self._latest[recommendation.user_id] = Shown(items, recommendation.recommendation_id)
        return len(records)

    def close(self) -> None:
        self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
