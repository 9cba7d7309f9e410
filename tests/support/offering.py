"""Offers as they are served: the read API as a process, and what the offers worker has published, or should have."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import httpx
import msgspec

from schemas import topics
from schemas.events import Event
from schemas.offers import PlacementTotals
from schemas.outputs import Decision
from stream.adapters.kafka.kafka_clients import partition_of
from stream.adapters.kafka.offers import OffersReader
from stream.core.offers.offer_ledger import BITS, Ledger, revenue_micros
from stream.settings import Settings
from tests.support.cluster import read_all, running, until


@contextmanager
def api(settings: Settings, offers: str) -> Iterator[httpx.Client]:
    """A client of tenant `t` of a read API with this file of offers, ready."""
    home = settings.home.parent / "api"
    home.mkdir()
    (home / "offers.yml").write_text(offers)
    env = {"CLICKWAKE_API__PORT": "0", "CLICKWAKE_API__READ_KEYS": '{"t": "demo-read-key"}'}
    with running(settings, "workers.api", home, **env):
        run_file = home / "run" / "api.json"
        until(run_file.exists, 60, "the API listens")
        url = f"http://127.0.0.1:{json.loads(run_file.read_text())['port']}"
        with httpx.Client(base_url=url, auth=("demo-read-key", ""), timeout=10, trust_env=False) as client:
            until(lambda: client.get("/health/ready").status_code == 200, 60, "the API is ready")
            yield client


def published(settings: Settings, placement: str = "home") -> PlacementTotals:
    """What the topic says now."""
    async def read() -> PlacementTotals:
        reader = OffersReader(settings)
        reader.start()
        await reader.ready()
        await reader.stop()
        return reader.totals("t", placement)

    return asyncio.run(read())


def recomputed(settings: Settings, placement: str = "home") -> PlacementTotals:
    """The same from the logs, at once: all decisions, then all events about them."""
    ledger = Ledger(partial(partition_of, partitions=settings.kafka.partitions))
    for record in read_all(settings, topics.DECISIONS):
        decision = msgspec.json.decode(record.value, type=Decision)
        assert decision.offer is not None
        ledger.decide(record.key, decision.recommendation_id, decision.offer, record.timestamp)
    for record in read_all(settings, topics.EVENTS):
        done = msgspec.json.decode(record.value, type=Event)
        if (ident := done.properties.recommendation_id) and (bit := BITS.get(done.event or "")):
            ledger.react(record.key, ident, bit, record.timestamp, revenue_micros(done.properties))
    return ledger.placements["t", placement].totals()


def all_learned(settings: Settings, impressions: int, placement: str = "home") -> PlacementTotals | None:
    """What is published, once it is the log recomputed, to the bit: the last view may be counted before its click."""
    totals = published(settings, placement)
    return totals if totals.outcomes == impressions and totals == recomputed(settings, placement) else None
