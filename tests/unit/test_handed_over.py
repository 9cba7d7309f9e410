"""What was handed over to a producer before its process slept: the network gets it only where it is no older than what
others may have said."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import IllegalGenerationError, NodeNotReadyError
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.produce import ProduceRequest

from schemas import topics
from stream.adapters.faust.faust_compat import App
from stream.adapters.kafka import producing
from stream.outbox import OutRecord
from stream.personalize import Superseded
from stream.topology import KafkaOutputs
from stream.tracing.port import UNTRACED

SESSION_S = 6.0
RECORDS = ProduceRequest(transactional_id=None, required_acks=-1, timeout=1_000, topics=[])


def member() -> Any:
    """Of generation 4, heard by the group a second ago; with what of an app has a say here."""
    app: Any = SimpleNamespace(failure=None, consumer=SimpleNamespace(generation=4, heartbeat_age_ms=1_000.0),
                               conf=SimpleNamespace(broker_session_timeout=SESSION_S), _speaking=[])  # fmt: skip
    app.speaking, app.ask = lambda: App.speaking(app), lambda: App._may_still_write(app)
    return app


async def test_records_are_asked_about_each_time_they_are_tried_and_nothing_else_is() -> None:
    written: list[object] = []
    answers = iter([NodeNotReadyError("not now"), None])

    async def send(node_id: int, request: object, group: int = 0) -> str:
        written.append((node_id, request, group))
        return "answer"

    async def ready(node_id: int, group: int = 0) -> None:
        connected.append((node_id, group))

    def ask() -> None:
        if (error := next(answers)) is not None:
            raise error

    connected: list[object] = []
    producer: Any = SimpleNamespace(client=SimpleNamespace(send=send, ready=ready))
    producing.ask_before_writing(producer, ask)
    others = MetadataRequest([])
    assert await producer.client.send(1, others, group=2) == "answer"
    with pytest.raises(NodeNotReadyError):
        await producer.client.send(1, RECORDS)
    assert await producer.client.send(1, RECORDS) == "answer" and written == [(1, others, 2), (1, RECORDS, 0)]
    assert connected == [(1, 0), (1, 0)], "before it is asked each time, as connecting takes time"


def test_who_may_be_no_member_any_more_waits_and_who_is_another_one_says_nothing_of_before() -> None:
    app = member()
    app.consumer.heartbeat_age_ms = 1_000 * SESSION_S
    app.ask()  # nobody speaks: what others send here asks nothing
    with app.speaking():
        with pytest.raises(NodeNotReadyError):
            app.ask()
        app.consumer.heartbeat_age_ms = 0.0
        app.ask()
        app.consumer.generation = 5
        with app.speaking(), pytest.raises(IllegalGenerationError):
            app.ask()
    with app.speaking():
        app.ask()
    app.consumer.generation = -1  # heard before the block begins: waiting is no use, the group waits for us
    with app.speaking(), pytest.raises(IllegalGenerationError):
        app.ask()
    assert not app._speaking
    app.consumer.generation = 5
    app.ask()
    app.failure = RuntimeError("half folded")
    with pytest.raises(IllegalGenerationError, match="about to end"):
        app.ask()


async def test_what_was_handed_over_stays_known_where_nobody_waits_for_it_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    acknowledged = asyncio.Event()

    async def send_batches(*_: object) -> dict[int, int]:
        await acknowledged.wait()
        return {0: 7}

    monkeypatch.setattr("stream.adapters.faust.faust_compat.send_batches", send_batches)
    app = member()
    sending = asyncio.create_task(KafkaOutputs(app, "p", UNTRACED).send(topics.STATE, {0: [OutRecord(b"t/u", b"{}", [])]}))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    sending.cancel()
    await asyncio.wait((sending,))
    assert sending.cancelled() and app._speaking == [4]
    app.consumer.generation = 5
    with pytest.raises(IllegalGenerationError):
        app.ask()
    acknowledged.set()
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
    assert not app._speaking


async def test_a_worker_whose_words_are_out_of_date_is_superseded(monkeypatch: pytest.MonkeyPatch) -> None:
    why: Exception = IllegalGenerationError("the group has moved on")

    async def send_batches(*_: object) -> dict[int, int]:
        raise producing.SendFailed("refused") from why

    monkeypatch.setattr("stream.adapters.faust.faust_compat.send_batches", send_batches)
    outputs, topic = KafkaOutputs(member(), "p", UNTRACED), topics.RECOMMENDATIONS
    with pytest.raises(Superseded, match="went to another worker while this one slept"):
        await outputs.send(topic, {0: [OutRecord(b"t/u", b"{}", [])]})
    why = NodeNotReadyError("the broker is away")
    with pytest.raises(producing.SendFailed):
        await outputs.send(topic, {0: [OutRecord(b"t/u", b"{}", [])]})
