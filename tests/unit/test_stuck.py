"""What is said of tasks that never come back."""

from __future__ import annotations

import asyncio
import threading

from stream.adapters.health import stuck


async def test_each_task_says_where_it_waits_innermost_first() -> None:
    never = asyncio.Event()

    async def inner() -> None:
        await never.wait()

    async def outer() -> None:
        await inner()

    task = asyncio.create_task(outer(), name="stuck")
    begun = asyncio.create_task(asyncio.sleep(0))
    await begun
    unbegun = asyncio.create_task(inner(), name="unbegun")
    found: list[str] = []
    thread = threading.Thread(target=lambda loop: found.extend(stuck.waits(loop)), args=(asyncio.get_running_loop(),))
    thread.start()
    await asyncio.to_thread(thread.join)
    mine = next(line for line in found if line.startswith("stuck: "))
    at = [mine.index(name) for name in ("Event.wait:", "inner:", "outer:")]
    assert at == sorted(at)
    assert any(line.startswith("unbegun: ") for line in found)
    for one in (task, unbegun):
        one.cancel()
