"""What the offers worker takes of its two logs, and how far it says it has read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec

from schemas.outputs import Decision, Offered
from stream.outbox import utc
from stream.settings import Settings
from tests.support.fakes import T0_MS, event
from workers.offers import Worker

SEEN = "Promotion Viewed"


def record(value: bytes, offset: int) -> Any:
    return SimpleNamespace(value=value, offset=offset, timestamp=T0_MS + offset, partition=1, key=b"t/u")


def decision(ident: str, *, about_offer: bool = True) -> bytes:
    offered = Offered(placement="home", offer_id="red", propensity=1.0, candidates={"red": 1.0}, refused={}, holdout=False,
                      rules_version="r", policy_version="p", reward="click", window_ms=1_000, about=("*", "offer=red"))
    return msgspec.json.encode(Decision(
        recommendation_id=ident, tenant="t", user_id="u", scenario="offer", items=(), candidates=1, as_of_event_id="",
        as_of_ts=None, served_at=utc(T0_MS), model_version="p", offer=offered if about_offer else None,
    ))  # fmt: skip


def said(ident: str, name: str = SEEN, **more: Any) -> bytes:
    made = event(user="u", id=f"{name}{ident}", name=name, properties={"recommendation_id": ident}, **more)
    return msgspec.json.encode(made)


def test_it_counts_what_is_about_offers_and_passes_over_the_rest() -> None:
    worker = Worker(Settings())
    for offset, value in enumerate((decision("offer-1"), b"{", decision("r2", about_offer=False), decision("offer-3"))):
        worker._one_decision(record(value, offset))
    refused = {"consent": {"personalization": False}}
    worker._react(1, [record(value, 10 + at) for at, value in enumerate((
        said("offer-1"), said("offer-1", "Promotion Clicked"), said("r2"), said("offer-1", "Product Viewed"), b'{"offer-',
        said("offer-3", context=refused), said("offer-1"),
    ))])  # fmt: skip
    (learned,) = worker.ledger.placements.values()
    assert (learned.outcomes, learned.rewards) == (1, 1) and learned.offers["red"].clicks == 1
    assert worker.positions.offsets == {"events": {1: 17}} and worker.positions.clocks_ms == {1: T0_MS + 16}
    worker._react(1, [record(said("offer-none"), 2_000)])
    assert worker.ledger.take_changed().keys() == {b"#placement/t/home", b"t/u"}
    assert worker.positions.clocks_ms == {1: T0_MS + 2_000}
