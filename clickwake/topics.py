"""Creates what `schemas/topics.py` lists, kept as long as settings say, and says where an existing topic differs from it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from producers.kafka import client_options
from schemas.topics import DAY_MS, FOREVER_MS, KEPT_FOR_A_TIME, MODELS, TOPICS, Topic
from stream.settings import Settings

REQUEST_TIMEOUT_MS = 30_000
BOOTSTRAP_TIMEOUT_MS = 10_000
VISIBLE_TIMEOUT_S = 30.0
POLL_S = 0.05


class TopicsError(RuntimeError):
    """The topics could not be created, or one that exists cannot be used. The text says which and what to do."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one topic."""

    topic: str
    result: Literal["created", "exists", "changed", "differs"]
    partitions: int
    why: str
    differences: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Existing:
    partitions: int
    config: dict[str, str]


def partitions_of(topic: Topic, settings: Settings) -> int:
    """User topics share one partition count, so that they are co-partitioned."""
    return settings.kafka.partitions if topic.by_user else topic.partitions


def create(settings: Settings) -> list[Outcome]:
    """Create every topic that is missing and return once each has a leader; those that exist are left as they are, but for
    the retention that settings name.

    A topic with another partition count is reported with result `differs`: Kafka cannot take partitions away, and
    adding some would move users to other partitions than their state. Raises `TopicsError` when the broker does not
    answer or refuses.
    """
    with _admin(settings) as admin:
        existing = _existing(admin, settings)
        missing = [topic for topic in TOPICS if topic.name(settings.kafka.topic_prefix) not in existing]
        if missing:
            _create(admin, settings, missing)
        changed = _retain(admin, settings, existing)
        return [changed.get(topic) or _outcome(topic, settings, existing.get(topic.name(settings.kafka.topic_prefix)))
                for topic in TOPICS]  # fmt: skip


def describe(settings: Settings) -> list[Outcome]:
    """The same without creating anything; topics that are missing are left out."""
    with _admin(settings) as admin:
        existing = _existing(admin, settings)
    named = [(topic, existing.get(topic.name(settings.kafka.topic_prefix))) for topic in TOPICS]
    return [_outcome(topic, settings, found) for topic, found in named if found]


@contextlib.contextmanager
def _admin(settings: Settings) -> Iterator[Any]:
    """An admin client; what Kafka says against us becomes a `TopicsError`."""
    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError

    try:
        admin = KafkaAdminClient(**client_options(settings.kafka), client_id="clickwake-topics",
                                 bootstrap_timeout_ms=BOOTSTRAP_TIMEOUT_MS,
                                 request_timeout_ms=REQUEST_TIMEOUT_MS)
        try:
            yield admin
        finally:
            admin.close()
    except (KafkaError, OSError) as error:
        raise TopicsError(f"Kafka at {settings.kafka.bootstrap_servers} did not create or list the topics: {error}\n"
                          "Is it running (`clickwake doctor`)? Does the user have the right to create topics?") from error


def _existing(admin: Any, settings: Settings) -> dict[str, _Existing]:
    from kafka.admin import ConfigResource, ConfigResourceType

    names = {topic.name(settings.kafka.topic_prefix) for topic in TOPICS} & set(admin.list_topics())
    if not names:
        return {}
    counts = {found["name"]: len(found["partitions"]) for found in admin.describe_topics(sorted(names))}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in sorted(names)]
    configs = admin.describe_configs(resources, config_filter="all")["topic"]
    values = {name: {key: str(value["value"]) for key, value in configs[name].items()} for name in names}
    return {name: _Existing(counts[name], values[name]) for name in names}


def _create(admin: Any, settings: Settings, topics: list[Topic]) -> None:
    from kafka.errors import KafkaError, TopicAlreadyExistsError

    replicas = {"min.insync.replicas": str(settings.kafka.min_insync_replicas)}
    for topic in topics:
        name = topic.name(settings.kafka.topic_prefix)
        options = {"num_partitions": partitions_of(topic, settings), "replication_factor": settings.kafka.replication_factor,
                   "configs": _config(topic, settings) | replicas}
        try:
            admin.create_topics({name: options})
        except TopicAlreadyExistsError:
            continue  # another process was faster; it has the same table
        except KafkaError as error:
            raise TopicsError(f"Kafka at {settings.kafka.bootstrap_servers} refused to create {name} "
                              f"with {options}: {error}\n"
                              "Check CLICKWAKE_KAFKA__REPLICATION_FACTOR against the number of brokers") from error
    _await_leaders(admin, {topic.name(settings.kafka.topic_prefix): partitions_of(topic, settings) for topic in topics})


def _config(topic: Topic, settings: Settings) -> dict[str, str]:
    kept = {"retention.ms": str(settings.kafka.retention_ms(topic))} if topic.cleanup == "delete" else {}
    return topic.config() | kept


def _retain(admin: Any, settings: Settings, existing: dict[str, _Existing]) -> dict[Topic, Outcome]:
    """Give topics the retention that settings name; those they do not name keep what operators gave them. What is older than
    a shorter one goes within minutes."""
    from kafka.admin import ConfigResource, ConfigResourceType

    changed: dict[Topic, Outcome] = {}
    for entity in settings.kafka.retention_days:
        topic = KEPT_FOR_A_TIME[entity]
        name, wanted = topic.name(settings.kafka.topic_prefix), str(settings.kafka.retention_ms(topic))
        found = existing.get(name)
        if found is None or found.config.get("retention.ms") == wanted:
            continue
        answers = admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, {"retention.ms": wanted})])
        if (answer := answers["topic"][name]) != "OK":
            before = _days(found.config.get("retention.ms"))
            raise TopicsError(f"the broker does not let {name} be kept for {_days(wanted)}: {answer}\nIt is kept for "
                              f"{before} still. Alter retention.ms as who may, or take {entity} out of "
                              "CLICKWAKE_KAFKA__RETENTION_DAYS: receipts of erasure say by it when records go")
        now = _outcome(topic, settings, _Existing(found.partitions, found.config | {"retention.ms": wanted}))
        why = f"kept for {_days(wanted)}, before for {_days(found.config.get('retention.ms'))}"
        changed[topic] = now if now.differences else msgspec.structs.replace(now, result="changed", why=why)
    return changed


def _days(retention_ms: str | None) -> str:
    """
    >>> _days("604800000"), _days("-1")
    ('7 days', 'ever')
    """
    return "ever" if retention_ms in (None, "-1") else f"{int(retention_ms or 0) / DAY_MS:g} days"


def _await_leaders(admin: Any, expected: dict[str, int]) -> None:
    deadline = time.monotonic() + VISIBLE_TIMEOUT_S
    while True:
        led = {found["name"]: sum(part["leader_id"] >= 0 for part in found["partitions"])
               for found in admin.describe_topics(sorted(expected)) if not found["error_code"]}
        late = sorted(name for name in expected if not led.get(name))
        if not late:
            return
        if time.monotonic() > deadline:
            raise TopicsError(f"{', '.join(late)} got no leader within {VISIBLE_TIMEOUT_S:.0f} s: look at the broker's log")
        time.sleep(POLL_S)  # the admin API has no call that waits for a leader


def _outcome(topic: Topic, settings: Settings, found: _Existing | None) -> Outcome:
    name, wanted = topic.name(settings.kafka.topic_prefix), partitions_of(topic, settings)
    if found is None:
        return Outcome(topic=name, result="created", partitions=wanted, why=topic.why)
    differences = []
    if found.partitions != wanted:
        hint = f"set CLICKWAKE_KAFKA__PARTITIONS={found.partitions}" if topic.by_user else "make a new version of the topic"
        differences.append(f"partitions are {found.partitions}, not {wanted}: {hint}")
    # segment.ms, delete.retention.ms and the like may be tuned by operators; these decide what is kept
    for key in ("cleanup.policy", "message.timestamp.type"):
        if found.config.get(key) != topic.config()[key]:
            differences.append(f"{key} is {found.config.get(key)}, not {topic.config()[key]}: alter it with kafka-configs")
    if topic is MODELS and int(found.config["min.compaction.lag.ms"]) < FOREVER_MS:
        differences.append("older announcements may go, which rollbacks need, and one said again be all there is: alter "
                           f"max.compaction.lag.ms, then min.compaction.lag.ms, to {FOREVER_MS} with kafka-configs")
    kept, wanted_ms = found.config.get("retention.ms"), _config(topic, settings).get("retention.ms")
    if wanted_ms not in (None, kept):
        differences.append(f"it is kept for {_days(kept)}, not {_days(wanted_ms)} as receipts of erasure say: name "
                           f"{topic.entity} in CLICKWAKE_KAFKA__RETENTION_DAYS, then clickwake topics")
    return Outcome(topic=name, result="differs" if differences else "exists", partitions=found.partitions, why=topic.why,
                   differences=tuple(differences))
