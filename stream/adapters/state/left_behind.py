"""Stores of partitions that a process has owned: they lie in its home as they were when it let go of them. Who is erased
since then is deleted by the owner, elsewhere, and would be left here for as long as nobody reads the changelog into them.

So they are deleted when the list of erasures says anything new, and while a request on it is not done; at a start, where it
has said something since they were written. A store may be thrown away at any time (`state_store`): it is read anew if the
partition comes back. Not while partitions are handed out: the group takes all of them and gives most of them back.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Container
from pathlib import Path
from typing import Any, NoReturn, Protocol

import structlog
from rocksdict import Rdict

from schemas.erasure import Erasure
from stream.adapters.state.state_store import LOCKED_WORDS, directory
from stream.settings import Settings

log = structlog.get_logger()
NAME = "personalize"
CLOCKS_MS = 10 * 60_000  # between the broker's, by which the list is written, and the one that files are: deletes too much


class Listed(Protocol):
    """What is asked of the list of erasures."""

    @property
    def under_way(self) -> bool: ...

    async def ready(self) -> None: ...


class LeftBehind:
    """Of one process. `note` is told of every record of the list, `handing_out` and `handed_out` of rebalances."""

    def __init__(self, settings: Settings) -> None:
        self._folder = directory(settings, NAME, 0).parent
        self._newest_ms = 0  # of the list
        self._says_more = False  # than it did when it was looked at last
        self._look, self._settled = asyncio.Event(), asyncio.Event()
        self.turn = 0  # of handing out

    def note(self, record: Any, erasure: Erasure) -> None:
        """One record of the list; at a start all that are there."""
        self._newest_ms = max(self._newest_ms, record.timestamp)
        self._says_more = True
        self._look.set()

    def handing_out(self) -> None:
        """From now on nobody knows what is owned."""
        self.turn += 1
        self._settled.clear()

    def handed_out(self, turn: int) -> None:
        """What was assigned in this turn is open, if there was no other meanwhile."""
        if turn == self.turn:
            self._settled.set()
            self._look.set()

    async def watch(self, listed: Listed, owned: Container[int]) -> NoReturn:
        """Until cancelled."""
        await listed.ready()
        self._says_more = False  # what it says at a start is told by times
        while True:
            await self._look.wait()
            await self._settled.wait()
            self._look.clear()
            self.delete(owned, under_way=listed.under_way)

    def delete(self, owned: Container[int], *, under_way: bool) -> list[int]:
        """Returns the partitions whose stores are gone. On the event loop, so that none of them is opened meanwhile; what
        another process of this home has open is its own."""
        all_of_them, self._says_more = under_way or self._says_more, False
        gone = []
        for path in sorted(self._folder.glob(f"{NAME}-[0-9][0-9][0-9][0-9][0-9]/db")):
            partition = int(path.parent.name.removeprefix(f"{NAME}-"))
            if partition in owned or not (all_of_them or _written_ms(path) <= self._newest_ms + CLOCKS_MS):
                continue
            try:
                Rdict.destroy(str(path))
            except Exception as error:  # rocksdict raises plain Exception with RocksDB's text
                if not any(word in str(error) for word in LOCKED_WORDS):
                    log.error("a state store of users who were erased cannot be deleted", path=str(path), why=str(error),
                              next="delete it")  # fmt: skip
                continue
            log.info("state store deleted", partition=partition, next="read anew if the partition comes back",
                     why="users were erased, and this process does not own it")  # fmt: skip
            gone.append(partition)
        return gone


def _written_ms(path: Path) -> float:
    """When anything in it was written last, by the clock of its files; infinity where files go meanwhile: it is open."""
    try:
        return max((one.stat().st_mtime * 1000 for one in path.iterdir()), default=0.0)
    except FileNotFoundError:
        return math.inf
