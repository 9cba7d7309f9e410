"""`python -m tests.faults.stalling FILE`: a personalize worker that, while FILE is there, joins its group and never
consumes: no fetch of its group's consumer is answered. It takes FILE away, so that the next one consumes. The watchdog looks
more often than it does by itself and waits less long; all else is as it is."""

from __future__ import annotations

import asyncio
import functools
import runpy
import sys
from pathlib import Path
from typing import Any

from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.subscription_state import ManualSubscription

from stream.adapters.health import watchdog

STALL_S, LOOK_S = 15.0, 1.0


def stall() -> None:
    fetch = Fetcher._proc_fetch_request

    async def fetching(self: Fetcher, *arguments: Any) -> Any:
        if not isinstance(self._subscriptions.subscription, ManualSubscription):  # that of the group
            await asyncio.Event().wait()
        return await fetch(self, *arguments)

    Fetcher._proc_fetch_request = fetching


if __name__ == "__main__":
    watchdog.watch = functools.partial(watchdog.watch, stall_s=STALL_S, interval_s=LOOK_S)
    mark = Path(sys.argv[1])
    if mark.exists():
        mark.unlink()
        stall()
    sys.argv = ["workers.personalize"]
    runpy.run_module("workers.personalize", run_name="__main__")
