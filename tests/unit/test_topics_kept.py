"""What a broker answers that does not let a topic be kept as settings say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from clickwake import topics
from schemas.topics import DAY_MS, TOPICS
from stream.settings import Kafka, Settings


class Admin:
    """Has all topics as the table says, and lets nobody alter them."""

    def list_topics(self) -> list[str]:
        return [topic.name("clickwake") for topic in TOPICS]

    def describe_topics(self, names: list[str]) -> list[dict[str, Any]]:
        return [{"name": name, "partitions": [{"leader_id": 1}] * 4, "error_code": 0} for name in names]

    def describe_configs(self, *_: object, **__: object) -> Any:
        return {"topic": {topic.name("clickwake"): {key: {"value": value} for key, value in topic.config().items()}
                          for topic in TOPICS}}  # fmt: skip

    def alter_configs(self, resources: list[Any]) -> Any:
        return {"topic": {one.name: "[Error 29] TopicAuthorizationFailedError" for one in resources}}


def test_what_the_broker_refuses_to_keep_otherwise_is_not_said_to_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def admin(_: Settings) -> Iterator[Any]:
        yield Admin()

    monkeypatch.setattr(topics, "_admin", admin)
    with pytest.raises(topics.TopicsError, match=r"does not let \S*events.v1 be kept for 10 days: .*Authoriz") as said:
        topics.create(Settings(kafka=Kafka(retention_days={"events": 10})))
    assert f"It is kept for {30 * DAY_MS // DAY_MS} days still" in str(said.value)
