"""What silence brings about, in event time: one timer a user, for whatever is foreseen first.

A state says when its next thing is due (`UserState.next_due_ms`); the partition's heap is derived from that. When a user's
time has come, everything that foresees is asked, and the timer is set to what comes next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from stream.outbox import Outbox
from stream.partition import Cause, PartitionState
from stream.serving import Serving

DUE_USERS_MAX = 512  # users whose timers are handled in one model call
Silent = Callable[[PartitionState, bytes], bool]


def nobody(part: PartitionState, key: bytes) -> bool:
    """Of everybody something may be said."""
    return False


class Foresight(Protocol):
    """One kind of thing that silence brings about. Each keeps its due time in the user's state."""

    def has_come(self, part: PartitionState, key: bytes, clock_ms: int) -> bool:
        """Whether this is due for a user by then, as far as their state tells."""
        ...

    async def bring_about(
        self, part: PartitionState, serving: Serving, keys: list[bytes], clock_ms: int, outbox: Outbox
    ) -> None:
        """For users whose timers have come: say what is due, and set the due times behind `clock_ms` or to none."""
        ...

    async def foresee(
        self, part: PartitionState, serving: Serving, users: list[tuple[bytes, Cause]], outbox: Outbox
    ) -> None:
        """New due times for users of whom something new is known; what their events have settled is said."""
        ...

    def pass_over(self, part: PartitionState, key: bytes) -> None:
        """Live begins: what was due before it is not news."""
        ...


class DueDesk:
    """The timers of a partition's users, for everything in `foresights`, in their order. `silent(part, key)`: of whom
    nothing more is to be said."""

    def __init__(self, *foresights: Foresight, silent: Silent = nobody) -> None:
        self.foresights, self.silent = foresights, silent

    def advance(self, part: PartitionState, ts_ms: int) -> None:
        """A live event moves the clock; the first one begins live: users who lapsed before it are not news, as nobody knows
        whether they were silent in the gap. Who is ahead did something after it: it is read again."""
        if part.meta.live_since_ms == 0:
            part.meta.live_since_ms = part.meta.clock_ms = ts_ms
            ahead: list[bytes] = []
            while keys := part.pop_due(ts_ms, DUE_USERS_MAX):
                ahead += [key for key in keys if key in part.meta.ahead]
                for key in keys:
                    if key not in part.meta.ahead:
                        for one in self.foresights:
                            one.pass_over(part, key)
                        self._set_timer(part, key, ts_ms)
            for key in ahead:
                part.set_timer(key)
        part.advance_clock(ts_ms)

    def came_due(self, part: PartitionState, key: bytes) -> bool:
        """Whether something is due for a user who does something now."""
        clock_ms = part.meta.clock_ms
        perhaps = key in part.unscheduled or 0 < part.read(key).next_due_ms() <= clock_ms
        return perhaps and any(one.has_come(part, key, clock_ms) for one in self.foresights)

    async def before_event(self, part: PartitionState, serving: Serving, key: bytes, outbox: Outbox) -> None:
        """For a user who comes back just now, but whose time had come."""
        await self._bring_about(part, serving, [key], part.meta.clock_ms, outbox)

    async def pass_time(self, part: PartitionState, serving: Serving, clock_ms: int, outbox: Outbox) -> None:
        """Everything whose time has come."""
        if part.meta.live_since_ms == 0:
            return
        while keys := part.pop_due(clock_ms, DUE_USERS_MAX):
            await self._bring_about(part, serving, keys, clock_ms, outbox)

    async def reschedule(self, part: PartitionState, serving: Serving, outbox: Outbox, *, behind: bool = False) -> None:
        """New due times for users with new events.

        For those with a standing alert, and for the first DUE_USERS_MAX of the others; when `behind`, for none of these.
        Whoever is left stays unscheduled, so that no alert is raised for them; without a timer they get one that has come
        already, so that a worker which starts on this state asks the model.
        """
        if serving.models is None:
            return  # they stay unscheduled until there is a model
        users = self._first(part, 0 if behind else DUE_USERS_MAX)
        for start in range(0, len(users), DUE_USERS_MAX):
            some = users[start : start + DUE_USERS_MAX]
            if told := [(key, cause) for key, cause in some if not self.silent(part, key)]:
                for one in self.foresights:
                    await one.foresee(part, serving, told, outbox)
            for key, _ in some:
                del part.unscheduled[key]
                part.set_timer(key)

    @staticmethod
    def _first(part: PartitionState, most: int) -> list[tuple[bytes, Cause]]:
        """The unscheduled users who cannot wait, and `most` of the others; the rest get a timer if they have none."""
        first = []
        for key, cause in part.unscheduled.items():
            state = part.read(key)
            if state.alert.raised or most > 0:
                first.append((key, cause))
                most -= not state.alert.raised
            elif not state.due_ts_ms:
                part.change(key).due_ts_ms = state.last_ts_ms
                part.set_timer(key)
        return first

    async def _bring_about(
        self, part: PartitionState, serving: Serving, keys: list[bytes], clock_ms: int, outbox: Outbox
    ) -> None:
        told = [key for key in keys if not self.silent(part, key)]
        for one in self.foresights:
            await one.bring_about(part, serving, told, clock_ms, outbox)
        for key in keys:
            self._set_timer(part, key, clock_ms)

    @staticmethod
    def _set_timer(part: PartitionState, key: bytes, clock_ms: int) -> None:
        """What is left due by now waits for its user to be rescheduled."""
        if part.read(key).next_due_ms() > clock_ms:
            part.set_timer(key)
