"""A worker gone, as by kill -9, at every numbered step of its protocol: nothing lost, nothing twice.

In `make test` at some of the points, with CLICKWAKE_CHAOS=full (`make chaos`) at all of them, each at its first and at its
third time.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from clickwake import topics as topic_admin
from schemas import topics
from schemas.dead_letter import DeadLetter
from stream.settings import Settings
from tests.chaos import crashing
from tests.chaos.town import (
    CONSUMING_AGAIN_S,
    FULL,
    REPURCHASE,
    TEA,
    Stream,
    assert_aggregates_are_true,
    assert_each_is_alerted_once,
    assert_each_is_reminded_once,
    assert_every_user_is_answered,
    assert_little_was_sent_again,
    assert_town_is_true,
    await_alerts,
    caught_up,
    emissions,
    ended_by_kill,
    orders_due_again,
    soon_silent,
    start_crashing,
)
from tests.support import bundles
from tests.support.bundles import Exported
from tests.support.cluster import Sender, of_short_sessions, read_all, running, sink_lag, until
from training.release import release as releases

PERSONALIZE = [(point, times) for times in (1, 3) for point in crashing.PERSONALIZE] if FULL else [
    ("3", 200), ("5", 2), ("6 changelog", 1), ("6 store", 2)]  # fmt: skip
SINK = [(point, times) for times in (1, 3) for point in crashing.SINK] if FULL else [("3 first insert", 2), ("5-", 1)]
CHUNK = 400  # events before each crash
CRASH_S = 60.0  # to start, join the group and come to the point


@pytest.fixture
def settings(settings: Settings, rules: None) -> Settings:
    """Short sessions, so that the short form is short; the full one has what workers have."""
    return settings if FULL else of_short_sessions(settings)


@pytest.mark.timeout(120 + 40 * len(PERSONALIZE))
def test_personalize(settings: Settings, exported: Exported, registry: Path) -> None:
    settings = bundles.with_registry(settings, registry)
    topic_admin.create(settings)
    bundles.put_vectors(settings, [*bundles.ITEMS, TEA])
    bundle = bundles.publish(settings.registry, exported, repurchase=REPURCHASE.named())
    releases.release(settings, bundle.model_version)
    stream = Stream(seed=1)
    with Sender(settings) as sender:
        sender.send([*orders_due_again(), *soon_silent(10.0 * len(PERSONALIZE))])
        deaths_ms = []
        for point, times in PERSONALIZE:
            sender.send(stream.take(CHUNK))
            doomed = start_crashing(settings, "personalize", point, times, settings.home)
            deaths_ms.append(ended_by_kill(doomed, CRASH_S, f"{point}, {times}"))
        started = time.monotonic()
        with running(settings, "workers.personalize"):
            until(lambda: caught_up(settings), CONSUMING_AGAIN_S + 15, "all events folded after the last crash")
            again_s = time.monotonic() - started
            sender.send(stream.take(CHUNK))
            until(lambda: caught_up(settings), 30, "and what came after it")
            await_alerts(settings, 10.0 * len(PERSONALIZE) + 30)
            assert_every_user_is_answered(settings)
    assert again_s < CONSUMING_AGAIN_S
    assert_town_is_true(settings)
    assert_each_is_reminded_once(settings)
    assert_each_is_alerted_once(settings)
    assert len(emissions(settings)) > CHUNK / 10
    assert_little_was_sent_again(settings, deaths_ms)


@pytest.mark.timeout(120 + 40 * len(SINK))
def test_sink(settings: Settings) -> None:
    topic_admin.create(settings)
    stream = Stream(seed=2)
    poison = 0
    with Sender(settings) as sender, Sender(settings, topics.CHURN_ALERTS) as alerts:
        for point, times in SINK:
            poison += alerts.send([(b"t/u1", b"{")] * 3)
            sender.send(stream.take(CHUNK))
            process = start_crashing(settings, "sink", point, times, settings.home)
            until(lambda process=process: process.poll() is not None or not sender.send(stream.take(5)), CRASH_S,
                  f"the sink comes to {point}, {times}")  # fmt: skip
            ended_by_kill(process, 1.0, f"{point}, {times}")
        sender.send(stream.take(CHUNK))
        with running(settings, "workers.sink"):
            until(lambda: sink_lag(settings) == 0, CONSUMING_AGAIN_S, "everything stored after the last crash")
    assert_aggregates_are_true(settings)
    letters = [msgspec.json.decode(record.value, type=DeadLetter) for record in read_all(settings, topics.DEAD_LETTERS)]
    found = [one for one in letters if one.source.topic == topics.CHURN_ALERTS.name(settings.kafka.topic_prefix)]
    places = {(one.source.partition, one.source.offset) for one in found}
    assert len({one.dead_letter_id for one in found}) == len(places) == poison, "sent again under the same id"
