"""Work ends when it is asked to, soon, and never because something in it was cancelled by somebody else."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import pytest

from stream.adapters.faust import faust_compat
from stream.endings import Stray, only_when_asked, until


async def leaks() -> None:
    """What aiokafka does: it cancels a task of its own, and awaits it."""
    own = asyncio.create_task(asyncio.Event().wait())
    await asyncio.sleep(0)
    own.cancel()
    await own


async def waits() -> None:
    await asyncio.Event().wait()


async def test_a_cancellation_nobody_asked_for_is_a_failure() -> None:
    with pytest.raises(Stray, match="reader: "):
        await asyncio.create_task(only_when_asked(leaks)(), name="reader")


async def test_one_that_was_asked_for_is_none() -> None:
    for begun in (False, True):
        task = asyncio.create_task(only_when_asked(waits)())
        if begun:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,))
        assert task.cancelled()


async def test_in_a_group_it_is_heard_of_and_what_the_group_cancels_is_not() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            group.create_task(only_when_asked(waits)())
            group.create_task(only_when_asked(leaks)())
    assert [type(one) for one in caught.value.exceptions] == [Stray]


async def test_until_it_is_asked_to_end_it_works_and_what_it_raises_is_raised() -> None:
    async def fails() -> None:
        raise ValueError("cannot go on")

    for work, error in ((fails, ValueError), (leaks, Stray)):
        with pytest.raises(error):
            await until(asyncio.Event(), work)


async def test_it_may_finish_what_it_has_begun() -> None:
    stop, finished = asyncio.Event(), []

    async def work() -> None:
        await stop.wait()
        await asyncio.sleep(0)
        finished.append(True)

    running = asyncio.create_task(until(stop, work))
    await asyncio.sleep(0)
    stop.set()
    await running
    assert finished == [True]


@pytest.mark.parametrize("ready", [None, asyncio.Event()], ids=["past its patience", "before it is ready"])
async def test_what_waits_for_a_server_that_is_away_is_cut_short(ready: asyncio.Event | None) -> None:
    stop = asyncio.Event()
    stop.set()
    async with asyncio.timeout(5):
        await until(stop, waits, ready, patience_s=3_600 if ready is not None else 0.01)


async def test_what_cannot_be_cut_short_ends_with_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    over = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await over.wait()

    class Exited(Exception):
        pass

    def ended(code: int) -> None:
        codes.append(code)
        raise Exited

    monkeypatch.setattr("os._exit", ended)
    stop = asyncio.Event()
    stop.set()
    with pytest.raises(Exited):
        await until(stop, stubborn, patience_s=0.01)
    over.set()
    assert codes == [1]


@pytest.mark.parametrize(("failure", "code"), [(None, 0), (OSError("its disk is full"), faust_compat.EXIT_CRASH_DEADLINE)])
async def test_a_worker_that_cannot_close_its_intervals_ends_all_the_same(
    failure: OSError | None, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its broker is away. What failed meanwhile is not passed over."""
    class Worker(faust_compat.App):
        in_worker, _consumer = True, True
        consumer: Any = SimpleNamespace(hand_over=waits)

    loop, ended, codes = asyncio.get_running_loop(), asyncio.Event(), []

    def end(code: int) -> None:
        codes.append(code)
        loop.call_soon_threadsafe(ended.set)

    monkeypatch.setattr(faust_compat, "ORDERLY_END_S", 0.01)
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(faust_compat.logging, "shutdown", lambda: None)  # other tests log on
    worker = object.__new__(Worker)
    stopping = asyncio.create_task(worker.on_stop())
    await asyncio.sleep(0)
    worker.failure = failure
    async with asyncio.timeout(10):
        await ended.wait()
    assert codes == [code]
    stopping.cancel()
