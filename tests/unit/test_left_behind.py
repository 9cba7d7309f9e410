"""Stores of partitions that went to another owner hold nobody who is erased after that, and are kept while nobody is."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rocksdict import Rdict

from schemas.erasure import Erased, subject
from stream.adapters.state import left_behind
from stream.adapters.state.left_behind import CLOCKS_MS, LeftBehind
from stream.adapters.state.state_store import Identity, PartitionStore, directory
from stream.settings import Kafka, Settings
from tests.support.fakes import T0_MS
from tests.unit.test_forgetting import erasure

GONE = b"a-user-who-is-erased-elsewhere"


class Listed(Erased):
    """The list of erasures, read up to its end."""

    async def ready(self) -> None: ...


def at(ms: int) -> Any:
    return SimpleNamespace(timestamp=ms)


def opened(settings: Settings, partition: int, name: str = "personalize") -> PartitionStore:
    store = PartitionStore.open(directory(settings, name, partition), Identity("t1", 1 << 60, T0_MS))
    store.write({b"t/" + GONE: GONE}, 1, T0_MS)
    return store


def written(settings: Settings, partition: int, at_ms: int) -> None:
    """A store that was closed then."""
    opened(settings, partition).close()
    for path in (directory(settings, "personalize", partition) / "db").iterdir():
        os.utime(path, (at_ms / 1000, at_ms / 1000))


def holding(settings: Settings) -> set[str]:
    """Stores in whose files the user stands."""
    found = settings.state_dir.rglob("*")
    return {path.parts[-3] for path in found if path.is_file() and GONE in path.read_bytes()}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


@pytest.fixture
def mine(settings: Settings) -> Iterator[PartitionStore]:
    store = opened(settings, 0)
    yield store
    store.close()


def test_all_but_what_is_owned_or_open_goes_once_the_list_says_more(settings: Settings, mine: PartitionStore) -> None:
    others = settings.model_copy(update={"kafka": Kafka(topic_prefix="other")})
    for partition in (1, 2):
        written(settings, partition, T0_MS)
    (settings.state_dir / "clickwake" / "personalize-of-somebody" / "db").mkdir(parents=True)
    for one in (opened(settings, 3, "api"), opened(others, 4)):
        one.close()
    elsewhere = opened(settings, 5)
    left = LeftBehind(settings)
    left.note(at(T0_MS), erasure(T0_MS, user_id="u"))
    assert left.delete({0}, under_way=False) == [1, 2]
    assert holding(settings) == {"personalize-00000", "api-00003", "personalize-00004", "personalize-00005"}
    assert mine.get_many([b"t/" + GONE]) == elsewhere.get_many([b"t/" + GONE]) == [GONE]
    elsewhere.close()
    assert left.delete({0}, under_way=False) == [], "it says nothing more"
    assert left.delete({0}, under_way=True) == [5] and left.delete({0}, under_way=True) == []
    again = PartitionStore.open(directory(settings, "personalize", 1), Identity("t1", 1 << 60, T0_MS))
    assert again.changelog_offset == -1 and again.get_many([b"t/" + GONE]) == [None], "it is read anew"
    again.close()


async def test_at_a_start_what_was_written_since_the_list_said_anything_stays(settings: Settings) -> None:
    for partition, at_ms in ((1, T0_MS), (2, T0_MS + CLOCKS_MS), (3, T0_MS + CLOCKS_MS + 1_000)):
        written(settings, partition, at_ms)
    left, listed = LeftBehind(settings), Listed()
    left.note(at(T0_MS), erasure(T0_MS, receipt="{}"))
    left.note(at(T0_MS - 1), erasure(T0_MS, receipt="{}"))
    watching = asyncio.create_task(left.watch(listed, {0}))
    await turns()
    assert len(holding(settings)) == 3, "nobody knows yet what is owned"
    left.handed_out(left.turn)
    await turns()
    assert holding(settings) == {"personalize-00003"}
    listed.note(subject(b"t/u"), erasure(T0_MS, user_id="u"))
    left.note(at(T0_MS + 1), erasure(T0_MS, user_id="u"))
    await turns()
    assert holding(settings) == set()
    watching.cancel()


async def test_while_partitions_are_handed_out_nothing_is_deleted_and_then_what_did_not_come_back(
    settings: Settings,
) -> None:
    now_ms = round(time.time() * 1000)
    left, listed, owned = LeftBehind(settings), Listed(), {0, 1}
    watching = asyncio.create_task(left.watch(listed, owned))
    left.handed_out(left.turn)
    await turns()
    for partition in (0, 1):
        written(settings, partition, now_ms)
    before = left.turn
    left.handing_out()
    owned.clear()
    listed.note(subject(b"t/u"), erasure(T0_MS, user_id="u"))
    left.note(at(T0_MS), erasure(T0_MS, user_id="u"))
    left.handed_out(before)  # of what was taken away before it was open
    await turns()
    assert len(holding(settings)) == 2
    owned.add(1)
    left.handed_out(left.turn)
    await turns()
    assert holding(settings) == {"personalize-00001"}
    left.handing_out()  # the request is under way yet, and may not have reached the partition that goes now
    owned.clear()
    left.handed_out(left.turn)
    await turns()
    assert holding(settings) == set()
    watching.cancel()


def test_a_store_whose_files_go_meanwhile_is_open_elsewhere(settings: Settings) -> None:
    written(settings, 1, T0_MS)
    (directory(settings, "personalize", 1) / "db" / "gone").symlink_to("nowhere")  # as a file between two looks at it
    left = LeftBehind(settings)
    left.note(at(T0_MS), erasure(T0_MS))
    left._says_more = False
    assert left.delete(set(), under_way=False) == [] and holding(settings)


def test_what_cannot_be_deleted_is_said_and_does_not_keep_the_others(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    for partition in (1, 2):
        written(settings, partition, T0_MS)

    def refused(path: str) -> None:
        if "00001" in path:
            raise Exception("IO error: Permission denied")
        Rdict.destroy(path)

    monkeypatch.setattr(left_behind, "Rdict", SimpleNamespace(destroy=refused))
    monkeypatch.setattr(left_behind.log, "error", lambda *_, **more: said.append(more["path"]))
    assert LeftBehind(settings).delete(set(), under_way=True) == [2] and "personalize-00001" in said[0]


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)
