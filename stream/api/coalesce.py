"""Requests that wait together are scored together: one call of the encoder, and the parts of a score that are the same for
everybody computed once. Nobody waits for others to come: while one call runs, the next one collects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from stream.core.user.state import UserState
from stream.ports import Runner
from stream.recommending import Scored, score_users
from stream.serving import Serving

USERS_MAX = 64  # in one call; with more, the first of them waits longer than it gains


class Coalescer:
    """`serving` gives what to rank with now."""

    def __init__(self, serving: Callable[[], Serving], run: Runner) -> None:
        self._serving, self._run = serving, run
        self._waiting: dict[str, list[tuple[UserState, int, asyncio.Future[tuple[Serving, Scored]]]]] = {}
        self._task: asyncio.Task[None] | None = None

    async def score(self, tenant: str, state: UserState, now_ms: int) -> tuple[Serving, Scored]:
        """One user's scores, and what they were made with."""
        future: asyncio.Future[tuple[Serving, Scored]] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, []).append((state, now_ms, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            tenant = next(iter(self._waiting))
            waiting = self._waiting.pop(tenant)
            now, later = waiting[:USERS_MAX], waiting[USERS_MAX:]
            if later:
                self._waiting[tenant] = later  # behind the other tenants
            serving = self._serving()
            try:
                scored = await score_users(serving, tenant, [one[0] for one in now], [one[1] for one in now], self._run)
            except Exception as error:  # told to those who asked; the next call is another one
                for _, _, future in now:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, _, future), one in zip(now, scored, strict=True):
                if not future.done():  # its client may have gone
                    future.set_result((serving, one))
