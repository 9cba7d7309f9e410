"""What insights and offers worker have spans of, without a broker; with one: tests/integration/test_traces.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from aiokafka import TopicPartition

from schemas import traceparent
from schemas.erasure import Erased
from stream.adapters.kafka import producing
from stream.adapters.models.opinion_reader import Read
from stream.insights import Listener
from stream.settings import Settings
from tests.support.fakes import T0_MS, event
from tests.unit.test_offers_worker import decision, said
from tests.unit.test_tracing import TRACE, Traced
from workers import insights, offers

OTHER = TRACE.replace("4bf9", "aaaa")


@pytest.fixture
def traced() -> Iterator[Traced]:
    made = Traced(ratio=0.0)
    yield made
    made.close()


def record(topic: str, value: bytes, offset: int, trace: str, user: str = "u") -> Any:
    headers = [("traceparent", f"00-{trace}-00f067aa0ba902b7-01".encode())]
    return SimpleNamespace(topic=topic, partition=0, offset=offset, timestamp=T0_MS, key=f"t/{user}".encode(), value=value,
                           headers=headers)  # fmt: skip


class Fed:
    """A consumer of one partition with these records."""

    def __init__(self, topic: str, records: Sequence[Any]) -> None:
        self.tp, self.records, self.at = TopicPartition(topic, 0), records, 0

    def assignment(self) -> set[TopicPartition]:
        return {self.tp}

    async def end_offsets(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, len(self.records))

    async def position(self, tp: TopicPartition) -> int:
        return self.at

    async def getmany(self, *tps: TopicPartition, **_: object) -> dict[TopicPartition, Sequence[Any]]:
        self.at = len(self.records)
        return {self.tp: self.records}


async def test_the_offers_worker_has_spans_of_what_it_learns_from_until_that_is_published(
    traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = offers.Worker(Settings())
    worker.tracing = traced.tracing
    published: list[tuple[int, Mapping[bytes, bytes | None]]] = []

    async def publish(producer: object, changed: Mapping[bytes, bytes | None]) -> None:
        published.append((len(traced.spans()), changed))

    monkeypatch.setattr(worker, "_publish", publish)
    viewed = msgspec.json.encode(event(user="u", name="Product Viewed", item="i1"))
    decisions = [record("decisions", decision("offer-1"), 0, TRACE),
                 record("decisions", decision("r", about_offer=False), 1, OTHER)]  # fmt: skip
    events = [record("events", viewed, 0, OTHER), record("events", said("offer-1"), 1, TRACE)]
    made: Any = (Fed("events", events), Fed("decisions", decisions))
    await worker._turn(*made, producer=None)  # type: ignore[arg-type]  # nothing is sent here
    ((ended, changed),) = published
    assert ended == 0 and b"#placement/t/home" in changed, "they end once it is published"
    own = [one for one in traced.spans() if one.context and one.context.trace_id == int(TRACE, 16)]
    assert sorted(one.name for one in own) == ["process decisions", "process events"]
    assert not [one for one in traced.spans() if one.context and one.context.trace_id == int(OTHER, 16)]


async def test_opinions_of_one_brand_go_on_in_the_trace_of_whoever_said_each(
    traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []

    async def send_batches(target: object, topic: str, messages: Mapping[int, Sequence[Any]], **_: object) -> dict[int, int]:
        sent.extend(one for rows in messages.values() for one in rows)
        return {}

    async def partitions_for(topic: str) -> set[int]:
        return {0, 1}

    monkeypatch.setattr(producing, "send_batches", send_batches)
    monkeypatch.setattr(producing, "create_producer", lambda _: SimpleNamespace(partitions_for=partitions_for))
    worker = insights.Worker(Settings(), lambda: None)
    worker.tracing = traced.tracing
    monkeypatch.setattr(worker.reader, "read", lambda said: [Read("en", 0.5, None, None, (), "", "")] * len(said))
    before = insights.DELAY_SECONDS._sum.get()
    reviews = [record("events", msgspec.json.encode(event(user=user, name="Product Reviewed", properties={
        "product_id": "mug", "brand": "Clay", "rating": 3})), offset, trace, user)
        for offset, (user, trace) in enumerate((("u1", TRACE), ("u2", OTHER)))]  # fmt: skip
    heard = Listener(300_000, Erased(), lambda tenant, item: "").hear(reviews)
    with traced.tracing.batch("g", [one.record for one in heard]):
        await worker._read(heard)
    whose = {msgspec.json.decode(value)["user_id"]: traceparent.trace_id(headers) for _, value, headers in sent}
    assert whose == {"u1": TRACE, "u2": OTHER} and {key for key, _, _ in sent} == {b"t/Clay"}
    assert insights.DELAY_SECONDS._sum.get() > before, "when they were said is long ago"
