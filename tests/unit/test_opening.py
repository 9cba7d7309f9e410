"""Opening a partition that does not come to its end leaves a store that can be opened again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from schemas import topics
from stream.adapters.kafka import kafka_clients
from stream.adapters.kafka.producing import SendFailed
from stream.adapters.state.state_store import Identity, PartitionStore, directory
from stream.settings import Settings
from stream.topology import Personalize
from tests.support.fakes import FakeClock


class Outputs:
    """Whoever claims a partition waits for the broker, or is refused."""

    def __init__(self, *, refuses: bool) -> None:
        self.refuses, self.asked = refuses, asyncio.Event()

    async def send(self, *_: object) -> dict[int, int]:
        self.asked.set()
        if self.refuses:
            raise SendFailed("the broker refuses")
        await asyncio.Event().wait()
        raise AssertionError


def worker(settings: Settings, outputs: Outputs, member: asyncio.Event) -> Personalize:
    """One that has read everything, without Faust."""
    async def done() -> None: ...

    made = object.__new__(Personalize)
    known: Any = SimpleNamespace(
        ready=done, caught_up=done, releases=SimpleNamespace(settled=done),
        readers=dict.fromkeys((topics.ITEM_COUNTS, topics.MODELS), SimpleNamespace(caught_up=done)),
    )  # fmt: skip

    async def regained(partition: int) -> bool:
        return await member.wait()

    fleet: Any = SimpleNamespace(personalizer=SimpleNamespace(clock=FakeClock(), outputs=outputs), regained=regained)
    made.settings, made.ranking, made.erasures, made.fleet, made.following = settings, known, known, fleet, asyncio.Event()
    made.following.set()
    return made


@pytest.mark.parametrize("refuses", [True, False], ids=["the claim fails", "taken away meanwhile"])
async def test_the_store_is_let_go(refuses: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def topic_id(*_: object) -> str:
        return "t-1"

    monkeypatch.setattr(kafka_clients, "topic_id", topic_id)
    settings, outputs, member = Settings(home=tmp_path), Outputs(refuses=refuses), asyncio.Event()
    folder = directory(settings, "personalize", 0)
    opening = asyncio.create_task(worker(settings, outputs, member).open_partition(0))
    for _ in range(20):
        await asyncio.sleep(0)
    assert folder.exists() and not outputs.asked.is_set(), "who is no member claims nothing"
    member.set()
    await outputs.asked.wait()
    opening.cancel()
    await asyncio.wait((opening,))
    assert opening.cancelled() or isinstance(opening.exception(), SendFailed)
    PartitionStore.open(folder, Identity("t-1", 1, 1)).close()
