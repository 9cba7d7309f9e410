"""Users asked as a worker would ask them, in the past: what will they touch next, and was it among what came out?

A question is a user at a time, with everything known before that time and nothing after. `next_of` asks each user once, at
the split; `walk` asks before every moment, with the history and the live counts as they then were.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stream.core.user.state import UserState
from training.history.snapshot import History, Replay, moments_of


class Question(NamedTuple):
    """One user at one time; items are columns in the history's order."""

    user: str
    state: UserState  # as of now_ms; the replay goes on changing it, so it is to be asked at once
    now_ms: int
    wanted: npt.NDArray[np.int64]  # (W,) what came next, of the items known by then
    touched: npt.NDArray[np.int64]  # (S,) everything the user ever touched before


class Columns:
    """The items of a history: their columns, and when each was touched first."""

    def __init__(self, history: History) -> None:
        self.of = {item: at for at, item in enumerate(history.items)}
        self.first_ms = np.full(len(self.of), np.iinfo(np.int64).max)
        for ts_ms, _, items in reversed(moments_of(history.events)):
            self.first_ms[[self.of[item] for item in items]] = ts_ms

    def known(self, now_ms: int) -> npt.NDArray[np.bool_]:
        """(N,): touched before `now_ms`. What nobody touched yet is not known to exist."""
        return self.first_ms < now_ms


def _question(
    replay: Replay, columns: Columns, user: str, now_ms: int, items: tuple[str, ...], known_ms: int
) -> Question | None:
    state = replay.snapshot.states.get(user)
    if state is None or not state.history():
        return None
    wanted = np.array([at for item in items if columns.first_ms[at := columns.of[item]] < known_ms], dtype=np.int64)
    touched = np.array(sorted(columns.of[item] for item in replay.snapshot.touched.get(user, ())), dtype=np.int64)
    return Question(user, state, now_ms, wanted, touched) if len(wanted) else None


def next_of(replay: Replay, columns: Columns, split_ms: int, end_ms: int, users_max: int, seed: int = 0) -> list[Question]:
    """The first moment in [split_ms, end_ms) of each user known before, at most `users_max` users drawn by the seed.

    `replay` must have come to `split_ms`.
    """
    later = [event for event in replay.history.events if split_ms <= event.ts_ms < end_ms]
    first: dict[str, tuple[str, ...]] = {}
    for _, user, items in moments_of(later):
        first.setdefault(user, items)
    found = [_question(replay, columns, user, split_ms, first[user], split_ms) for user in sorted(first)]
    asked = [one for one in found if one is not None]
    if len(asked) > users_max:
        chosen = np.sort(np.random.default_rng(seed).choice(len(asked), users_max, replace=False))
        asked = [asked[at] for at in chosen]
    return asked


def walk(
    replay: Replay, columns: Columns, from_ms: int, end_ms: int, questions_max: int, seed: int = 0
) -> Iterator[Question]:
    """Every moment in [from_ms, end_ms) of users known by then, or `questions_max` of them drawn by the seed, asked just
    before it. Between two questions the replay folds what lies between."""
    later = [event for event in replay.history.events if from_ms <= event.ts_ms < end_ms]
    moments = moments_of(later)
    if len(moments) > questions_max:
        chosen = np.sort(np.random.default_rng(seed).choice(len(moments), questions_max, replace=False))
        moments = [moments[at] for at in chosen]
    for ts_ms, user, items in moments:
        replay.advance(ts_ms)
        question = _question(replay, columns, user, ts_ms, items, ts_ms)
        if question is not None:
            yield question
