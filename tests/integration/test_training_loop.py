"""The periodic training as it runs beside the stream: what the sink stored teaches a bundle, workers serve it, and the next
one is judged against it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from clickwake import topics as topic_admin
from producers.simulate.run import Options, Simulation
from schemas import topics
from schemas.outputs import Recommendation
from schemas.release import Verdict
from stream.adapters.database import clickhouse
from stream.adapters.models import model_store
from stream.settings import Settings
from tests.support import bundles
from tests.support.cluster import Tail, produce_events, read_all, running, until
from tests.support.fakes import event
from training.release import verdicts

TENANT = "demo"
EVERY = {"CLICKWAKE_TRAINING__EVERY": "20s", "CLICKWAKE_TRAINING__BUDGET_S": "4"}  # one training after the other
TRAINED_S = 240.0


def judged(settings: Settings) -> list[Verdict]:
    """In the order in which they were made."""
    found = (verdicts.read(settings.registry, one.model_version) for one in model_store.versions(settings.registry))
    return sorted((one for one in found if one is not None), key=lambda one: one.judged_at)


def stored(settings: Settings) -> tuple[int, int]:
    """Events and items in ClickHouse."""
    with closing(clickhouse.open_client(settings.clickhouse)) as client:
        return client.query("SELECT (SELECT count() FROM events FINAL), (SELECT count() FROM items FINAL)").first_row


@pytest.fixture
def shop(settings: Settings, registry: Path) -> Iterator[Settings]:
    """A stream that is up, and two months of a small shop's history on their way through it."""
    settings = bundles.with_registry(settings, registry)
    topic_admin.create(settings)
    with (running(settings, "workers.catalog"), running(settings, "workers.personalize"), running(settings, "workers.sink")):
        yield settings


@pytest.mark.timeout(900)
def test_what_is_stored_teaches_what_is_served_again_and_again(shop: Settings) -> None:
    sent = Simulation(shop, Options(shoppers=40, days=60, items=100, tenant=TENANT)).run().events
    until(lambda: {"events", "items"} <= set(tables(shop)), 120, "the sink has made its tables")
    until(lambda: stored(shop) == (sent, 100), 120, "history and catalog stored")
    history = [msgspec.json.decode(record.value) for record in read_all(shop, topics.EVENTS)]
    user = next(one["userId"] for one in history if one.get("userId"))
    item = next(one["properties"]["product_id"] for one in history if "product_id" in one.get("properties", {}))
    with running(shop, "training.schedule", **EVERY) as training, Tail(shop, topics.RECOMMENDATIONS) as tail:
        first = until(lambda: judged(shop), TRAINED_S, "a bundle trained")[0]
        assert first.released and first.against is None

        def served() -> list[Recommendation]:
            produce_events(shop, [event(user=user, tenant=TENANT, item=item, ts_ms=time.time_ns() // 1_000_000)])
            said = [msgspec.json.decode(record.value, type=Recommendation) for record in tail.poll()]
            return [one for one in said if one.user_id == user and one.model_version == first.model_version]

        shown = until(served, 60, "the bundle served")[-1]
        assert shown.items and shown.degraded in (None, "explanations")
        second = until(lambda: judged(shop)[1:], TRAINED_S, "the next one judged")[0]
        assert "encoding 0 item texts, 100 are encoded already" in training.log()
    assert second.against == first.model_version and second.users > 0 and second.ahead
    manifests = {one.model_version: one for one in model_store.versions(shop.registry)}
    assert manifests[second.model_version].parent == first.model_version


def tables(settings: Settings) -> set[str]:
    with closing(clickhouse.open_client(settings.clickhouse, "default")) as client:
        found = client.query("SELECT name FROM system.tables WHERE database = {d:String}",
                             parameters={"d": settings.clickhouse.database}).result_rows  # fmt: skip
    return {name for (name,) in found}
