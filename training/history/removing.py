"""A user's history with one thing taken out, folded anew: what the state would be had it never happened.

What is taken out is what a reason names: one item of one event. An order loses that line, an event about nothing else is
gone. Live counts over all users stay as they are: they are not the user's history, and one event hardly moves them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import msgspec

from schemas.events import Event
from stream.core.user import state as states
from stream.core.user.fold import fold, touches
from stream.core.user.state import UserState
from training.history.snapshot import History, Snapshot, join

Named = tuple[str, str]  # an event's id, and an item it is about


def lives(history: History, users: dict[str, UserState], until_ms: int) -> dict[str, list[Event]]:
    """User → what was folded into their state before `until_ms`, the anonymous histories joined to it included, in time
    order."""
    owners: dict[str, list[str]] = {}
    for user, state in users.items():
        for ident in {user, *state.linked}:
            owners.setdefault(ident, []).append(user)
    found: dict[str, list[Event]] = {user: [] for user in users}
    for event in history.events:
        if event.ts_ms >= until_ms:
            break
        for user in owners.get(event.user, ()):
            found[user].append(event)
    return found


def without(event: Event, item_id: str) -> Event | None:
    """The event less what it says of an item; None when nothing is left."""
    kept = [line for line in event.properties.products or () if line.product_id != item_id]
    if not kept:
        return None
    return msgspec.structs.replace(event, properties=msgspec.structs.replace(event.properties, products=kept))


def removed(life: list[Event], user: str, named: Collection[Named]) -> Iterator[tuple[Named, UserState]]:
    """For each of `named` the user's state had it not happened; what comes before the first of them is folded once."""
    wanted = set(named)
    common = Snapshot()
    for at, event in enumerate(life):
        about = {touch.item_id for touch in touches(event, event.ts_ms)}
        for item_id in sorted(item for item in about if (event.message_id, item) in wanted):
            other = Snapshot({ident: _copied(one) for ident, one in common.states.items()})
            _fold(other, [left for left in (without(event, item_id),) if left is not None])
            _fold(other, life[at + 1 :])
            yield (event.message_id, item_id), other.states.get(user, UserState())
        _fold(common, [event])


def _fold(snapshot: Snapshot, events: list[Event]) -> None:
    for event in events:
        state = snapshot.states.setdefault(event.user, UserState())
        fold(state, event, event.ts_ms, lateness_max_ms=0)
        join(snapshot, event)


def _copied(state: UserState) -> UserState:
    return states.decode(states.encode(state))
