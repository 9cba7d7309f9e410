"""Segments that a user is in: kept in the state, moved to what the rules say of it.

Who is in is a function of the state and the time alone (`segment_fields`, `segment_rules`), so that a stream and a batch
agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from stream.core.segments.segment_rules import CLUSTER_GROUP, Rules
from stream.core.user.state import UserState


class Change(NamedTuple):
    """A user has come into a segment or gone out of it; `number` counts the changes of this user and segment from 1, so odd
    ones are entries. A replay that decides at another moment gives the same number."""

    segment: str
    number: int

    @property
    def entered(self) -> bool:
        return self.number % 2 == 1


def move(state: UserState, inside: Sequence[str], now_ms: int) -> list[Change]:
    """Bring the state's memberships to `inside`; returns what changed. Names that no rule has any more are left."""
    changes = []
    for name in inside:
        number, _ = state.segments.get(name, (0, 0))
        if number % 2 == 0:
            changes.append(Change(name, number + 1))
    wanted = set(inside)
    changes += [Change(name, number + 1) for name, (number, _) in state.segments.items()
                if number % 2 == 1 and name not in wanted]  # fmt: skip
    for change in changes:
        state.segments[change.segment] = (change.number, now_ms)
    return changes


def kept(state: UserState, inside: Sequence[str], rules: Rules) -> list[str]:
    """`inside`, and the memberships that only a release can judge, as they are: for a user whom none has judged yet."""
    held = (name for name in members(state) if name in rules.relative or name.startswith(CLUSTER_GROUP))
    return [*inside, *(name for name in held if name not in inside)]


def members(state: UserState) -> list[str]:
    """Segments the user is in.

    >>> members(UserState(segments={"new": (1, 5), "loyal": (2, 9)}))
    ['new']
    """
    return sorted(name for name, (number, _) in state.segments.items() if number % 2 == 1)
