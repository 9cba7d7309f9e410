"""A tenant's users as they were at every moment of their past: stored events through the stream's own fold, in their order.

Who watches is asked before time passes over a state, and told when all of a moment is in it; so whatever several look at,
they look at the same states at the same moments.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import merge
from typing import NamedTuple, Protocol

from schemas.events import Event
from stream.core.user import identity
from stream.core.user.fold import Outcome, ads_stated, fold
from stream.core.user.state import NOTHING_STATED, Alert, Stated, UserState
from stream.core.user.traits import NOTHING_SAID, Described


class Told(NamedTuple):
    """A churn alert about a user was raised, or taken back."""

    user: str
    at_ms: int
    raised: bool


def in_order(said: Iterable[Told]) -> list[Told]:
    """Alerts in the order of their times, from that in which they were said: one about a time before what was said last of
    its user counts from there on, so that what was said last stands.

    >>> in_order([Told("u", 5, True), Told("u", 3, False), Told("v", 4, True)])[1:]
    [Told(user='u', at_ms=5, raised=True), Told(user='u', at_ms=5, raised=False)]
    """
    last_ms: dict[str, int] = {}
    found = []
    for one in said:
        last_ms[one.user] = max(one.at_ms, last_ms.get(one.user, 0))
        found.append(one._replace(at_ms=last_ms[one.user]))
    return sorted(found, key=lambda one: one.at_ms)


class Recorded(NamedTuple):
    """An event, and what of it rules ask for."""

    event: Event
    said: Described = NOTHING_SAID

    @property
    def at_ms(self) -> int:
        return self.event.ts_ms


class Watching(Protocol):
    """Of users of whom something is known; `Replay.states` has it."""

    def passes(self, user: str, to_ms: int) -> None:
        """Up to then nothing but time has touched the user since they were looked at."""
        ...

    def looks(self, user: str, at_ms: int) -> None:
        """All that was done by then is in the user's state, as when the stream closes an interval."""
        ...

    def forgets(self, user: str) -> None:
        """The user has no profile any more, and had none before."""
        ...


class Replay:
    """Follows one tenant's users through `take` and `tell`, or `follow`, in event-time order, and then `finish`. Holds the
    states of all it was given."""

    def __init__(self, watching: Watching) -> None:
        self.states: dict[str, UserState] = {}
        self.watching = watching
        self._clock_ms = 0
        self._touched: dict[str, None] = {}  # at `_clock_ms`: looked at once all of that time is folded

    def follow(self, events: Iterable[Recorded], alerts: Iterable[Told] = ()) -> None:
        """Both in their order."""
        both: tuple[Iterable[Recorded | Told], ...] = (events, alerts)
        for one in merge(*both, key=lambda one: one.at_ms):
            if isinstance(one, Told):
                self.tell(one)
            else:
                self.take(*one)

    def take(self, event: Event, said: Described = NOTHING_SAID) -> None:
        """An event, none earlier than the one before. Who refuses a profile has none from then on, and had none before."""
        at_ms, user = event.ts_ms, event.user
        self._come_to(at_ms)
        if event.context.consent is not None and event.context.consent.personalization is False:
            self._forget(user, ads_stated(event))
            return
        near = self._near(event)
        for one in near:
            self._passes(one, at_ms - 1)
        outcome, _ = fold(self.states.setdefault(user, UserState()), event, at_ms, 0, said)  # in this order nothing is late
        if outcome is Outcome.FOLDED:
            identity.join(self.states, event)
            self._touched |= near

    def tell(self, told: Told) -> None:
        """An alert as it was said; of somebody who has no profile then it says nothing."""
        self._come_to(told.at_ms)
        state = self.states.get(told.user)
        if state is None or not state.events:
            return
        self._passes(told.user, told.at_ms - 1)
        state.alert = Alert(raised=told.raised)
        self._touched[told.user] = None

    def finish(self, end_ms: int) -> None:
        """Until then time passes over everybody."""
        self._come_to(end_ms + 1)
        for user in self.states:
            self.watching.passes(user, end_ms)

    def _come_to(self, at_ms: int) -> None:
        if at_ms != self._clock_ms:
            for user in self._touched:
                if user in self.states:
                    self.watching.looks(user, self._clock_ms)
            self._touched.clear()
            self._clock_ms = at_ms

    def _passes(self, user: str, to_ms: int) -> None:
        """Not for who was touched: they are looked at as of now, which is not before `to_ms`."""
        if user in self.states and user not in self._touched:
            self.watching.passes(user, to_ms)

    def _near(self, event: Event) -> dict[str, None]:
        """Users whose state this event may change: its own, its devices', and who claimed these."""
        devices = [one for one in (event.anonymous_id, event.previous_id) if one is not None]
        own = dict.fromkeys([event.user, *devices])
        known = (self.states[one] for one in own if one in self.states)
        return own | dict.fromkeys(user for state in known for _, user in state.claims)

    def _forget(self, user: str, ads: Stated = NOTHING_STATED) -> None:
        """As when consent is withdrawn: no profile any more, but what was said of advertising stays."""
        state = self.states.pop(user, None) or UserState()
        self._touched.pop(user, None)
        self.watching.forgets(user)
        for other in identity.others(state):
            holder = self.states.get(other)
            if holder is None:
                continue
            self._passes(other, self._clock_ms - 1)
            if identity.forget(holder, user, ads_stay=True):
                if holder.claims or holder.known:
                    self._touched[other] = None
                else:
                    self._forget(other)
        if (stays := max(state.ads, ads)) != NOTHING_STATED:
            self.states[user] = UserState(ads=stays)
