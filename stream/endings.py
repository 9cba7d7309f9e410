"""How work ends: when it is asked to, and never without a word.

asyncio takes a cancelled task for one that was asked to end, so a cancellation that leaks out of a library would be silence
where there should be a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import structlog

log = structlog.get_logger()
PATIENCE_S = 7.0  # twice that is less than the 20 s after which `clickwake up` and container runtimes kill
P = ParamSpec("P")
T = TypeVar("T")


class Stray(RuntimeError):
    """Something was cancelled within a task that nobody had cancelled."""


def only_when_asked(work: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """`work`, which is the whole of a task, raising `Stray` where it is cancelled although nobody cancelled the task."""
    @functools.wraps(work)
    async def watched(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await work(*args, **kwargs)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise Stray(f"{task.get_name()}: a part of it was cancelled, and nobody had asked it to end") from error

    return watched


def on_signal(stop: asyncio.Event) -> None:
    """SIGTERM and SIGINT set it, from now on."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def pause(stop: asyncio.Event, seconds: float) -> bool:
    """Wait so long, or until `stop` is set; True when it is."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
    return stop.is_set()


async def until(stop: asyncio.Event, work: Callable[[], Awaitable[None]], ready: asyncio.Event | None = None,
                patience_s: float = PATIENCE_S) -> None:  # fmt: skip
    """Run `work`, which ends by itself soon after `stop` is set. What has not after `patience_s`, because it waits for a
    server that is away, is cut short, and so at once is what is not `ready` yet; what cannot even be cut short ends with the
    process. Only for work that a crash does no harm. Raises what `work` raises."""
    working, stopping = asyncio.create_task(only_when_asked(work)()), asyncio.create_task(stop.wait())
    await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if ready is None or ready.is_set():
        await asyncio.wait((working,), timeout=patience_s)
    if working.cancel():
        log.warning("cut short", why="it waited for something when it was asked to end: is Kafka up?",
                    next="what was under way is read again at the next start")  # fmt: skip
        await asyncio.wait((working,), timeout=patience_s)
        if not working.done():
            log.error("ending as if crashed", why="a client does not let go", next="what was under way is read again")
            os._exit(1)
        if working.cancelled():
            return
    working.result()
