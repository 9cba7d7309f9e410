"""What the tasks of an event loop wait for: for the log of a process that must end because one of them never comes back."""

from __future__ import annotations

import asyncio
from typing import Any


def waits(loop: asyncio.AbstractEventLoop) -> list[str]:
    """A line a task: where it is, innermost first. May be called from another thread; what runs meanwhile may be missed."""
    return sorted(f"{task.get_name()}: {' < '.join(_places(task.get_coro()))}" for task in asyncio.all_tasks(loop))


def _places(awaited: Any) -> list[str]:
    """Function and line of each coroutine or generator in a chain of awaits, innermost first."""
    found: list[str] = []
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            found.insert(0, f"{frame.f_code.co_qualname}:{frame.f_lineno}")
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return found
