"""How far the consumer groups of an installation are behind."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from kafka import TopicPartition
from kafka.admin import KafkaAdminClient, OffsetSpec
from kafka.errors import CoordinatorLoadInProgressError, CoordinatorNotAvailableError, NoError, NotCoordinatorError

from schemas import topics
from schemas.topics import Topic
from stream.adapters.kafka.kafka_clients import admin_arguments
from stream.settings import Settings

Offsets = dict[TopicPartition, int]
STORED = (topics.EVENTS, topics.ITEMS, *topics.OUTPUTS)


class GroupInUse(RuntimeError):
    """Only a group without members can be moved."""


class Lag:
    """Lags of the groups of one installation. For use as a context manager, from one thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.admin: Any = KafkaAdminClient(**admin_arguments(settings))

    def ends(self, *wanted: Topic) -> Offsets:
        """Offset after the last record, by partition."""
        kafka = self.settings.kafka
        partitions = [TopicPartition(topic.name(kafka.topic_prefix), number) for topic in wanted
                      for number in range(kafka.partitions if topic.by_user else topic.partitions)]
        found = self.admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST))
        return {tp: one.offset for tp, one in found.items()}

    def of(self, group: str, ends: Offsets) -> int:
        """Records before `ends` that the group has not committed; `group` as the broker knows it. All of them while the
        broker has no coordinator for it: on a new broker until the first group commits, on any for a moment."""
        try:
            committed = self.admin.list_group_offsets(group)[group]
        except (CoordinatorNotAvailableError, CoordinatorLoadInProgressError, NotCoordinatorError):
            committed = {}
        return sum(max(0, end - (committed[tp].offset if tp in committed else 0)) for tp, end in ends.items())

    def notes(self, group: str) -> dict[TopicPartition, tuple[int, str]]:
        """Where a group goes on, and what it noted with its last commit; by partition, those with a note."""
        found = self.admin.list_group_offsets(group)[group]
        return {tp: (int(one.offset), one.metadata) for tp, one in found.items() if one.metadata}

    def answers(self, group: str, partitions: Iterable[tuple[str, int]]) -> bool:
        """Whether the broker says now where these partitions end and where the group is. Raises `KafkaError`."""
        self.admin.list_partition_offsets({TopicPartition(*tp): OffsetSpec.LATEST for tp in partitions})
        self.admin.list_group_offsets(group)
        return True

    def rewind(self, group: str, *wanted: Topic) -> int:
        """Let a group that nobody is in begin again at the beginning of these topics; returns of how many partitions. Raises
        `GroupInUse`."""
        ends = self.ends(*wanted)
        results = self.admin.reset_group_offsets(group, dict.fromkeys(ends, OffsetSpec.EARLIEST))
        if failed := [one["error"] for one in results.values() if one["error"] is not NoError]:
            raise GroupInUse(f"{group} cannot be moved ({failed[0].__name__}): end all workers first")
        return len(results)

    def folding(self) -> int:
        """Events that no personalize worker has folded and committed."""
        return self.of(f"{self.settings.kafka.topic_prefix}-personalize", self.ends(topics.EVENTS))

    def storing(self) -> int:
        """Records of any kind that are not in ClickHouse yet."""
        return self.of(f"{self.settings.kafka.topic_prefix}.sink", self.ends(*STORED))

    def encoding(self, space: str) -> int:
        """Items that have no vector in a text encoder's space yet."""
        return self.of(f"{self.settings.kafka.topic_prefix}-catalog-{space}", self.ends(topics.ITEMS))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.admin.close()
