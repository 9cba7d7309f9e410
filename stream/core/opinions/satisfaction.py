"""What is kept of one item or brand: its satisfaction since it last changed, and whether it is changing; and its tickets by
day. Folding is pure and idempotent within the remembered ids; nothing of a person is in it, texts and users stay in the
opinions.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.opinions import Reason
from schemas.topics import DAY_MS
from stream.core.opinions import complaints
from stream.core.statistics.changes import LEVELS, REFERENCE_MIN, Policy, Run, level, step

VERSION = 1
SEEN_MAX = 1_024  # ids by which a second reading is told: more than two batches of the worker
PLACES_MAX = 64  # opinions that may be quoted
TICKETS_QUOTABLE_MAX = 12  # the last ones
LAG_OPINIONS = 30  # the last ones are not yet part of what is usual
PRIOR_OPINIONS = 10.0  # an item is taken for average until it has about as many of its own


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where an opinion is on its topic. A ticket's satisfaction counts nowhere: 0."""

    partition: int
    offset: int
    opinion_id: str
    satisfaction: float


class Level(msgspec.Struct, array_like=True):
    """The beginning of a `Subject`: all that ranking reads of it. `n` opinions of the present regime, summing to `total`."""

    version: int = VERSION
    opinions: int = 0  # of all times
    n: int = 0
    total: float = 0.0


class Subject(msgspec.Struct, array_like=True):
    """State of an item or brand. A regime ends with each change; what came after the change is the next one's beginning."""

    version: int = VERSION
    opinions: int = 0
    n: int = 0
    total: float = 0.0
    levels: list[int] = msgspec.field(default_factory=lambda: [0] * LEVELS)
    fall: Run = msgspec.field(default_factory=Run)
    rise: Run = msgspec.field(default_factory=Run)
    raised: bool = False
    changes: int = 0
    seen: list[int] = []
    places: list[Place] = []  # of the last opinions, in the order of the topic
    tickets: complaints.Tickets = msgspec.field(default_factory=complaints.Tickets)  # from here on since 0.7.0
    tickets_last: list[Place] = []


class Change(NamedTuple):
    """What was found. `before` and `after`: mean satisfaction, 0 to 1, of so many opinions; or tickets a day, and how many
    there were. `places`: of opinions after the change, those that say most first; or of the last tickets, newest first."""

    reason: Reason
    worse: bool
    number: int
    since_ms: int
    before: float
    after: float
    n_before: int
    n_after: int
    places: tuple[Place, ...]


def fold(subject: Subject, place: Place, ts_ms: int, policy: Policy, *, live: bool = True) -> Change | None:
    """Fold one opinion into the subject in place; the change, if this opinion shows one that is to be said. History begins
    new regimes too, but says nothing; neither does a rise after no fall that was said.

    >>> one = Subject()
    >>> for at in range(30): assert fold(one, Place(0, at, f"o{at}", 1.0), at, Policy()) is None
    >>> found = [fold(one, Place(0, at, f"o{at}", 0.0), at, Policy()) for at in range(30, 40)]
    >>> fold(one, Place(0, 30, "o30", 0.0), 30, Policy()) is None and one.opinions
    40
    >>> [(change.worse, change.since_ms, change.before, change.after) for change in found if change]
    [(True, 30, 1.0, 0.0)]
    """
    if _seen(subject, place):
        return None
    subject.opinions += 1
    fell = step(subject.fall, _before(subject, subject.fall), place.satisfaction, ts_ms, policy)
    rose = step(subject.rise, _before(subject, subject.rise), place.satisfaction, ts_ms, policy, rise=True)
    subject.places = [*subject.places, place][-PLACES_MAX:]
    subject.n += 1
    subject.total += place.satisfaction
    subject.levels[level(place.satisfaction)] += 1
    if not fell and not rose:
        return None
    said = live and (fell or subject.raised)
    subject.raised = live and fell
    found = _changed(subject, fell)
    return found if said else None


def fold_ticket(subject: Subject, place: Place, ts_ms: int, policy: Policy, *, live: bool = True) -> Change | None:
    """Fold one ticket into the subject in place, as `fold` does an opinion: it is in no mean, how many there are is what
    tells.

    >>> one = Subject()
    >>> for day in range(30): assert fold_ticket(one, Place(0, day, f"o{day}", 0.0), day * DAY_MS, Policy()) is None
    >>> found = [fold_ticket(one, Place(0, at, f"o{at}", 0.0), 30 * DAY_MS, Policy()) for at in range(30, 50)]
    >>> [(change.worse, change.since_ms // DAY_MS, change.before, change.after) for change in found if change]
    [(True, 30, 1.0, 9.0)]
    """
    if _seen(subject, place):
        return None
    subject.tickets_last = [*subject.tickets_last, place][-TICKETS_QUOTABLE_MAX:]
    complaints.add(subject.tickets, ts_ms // DAY_MS)
    turn = complaints.turned(subject.tickets, policy, live=live)
    if turn is None:
        return None
    subject.changes += 1
    places = tuple(reversed(subject.tickets_last)) if turn.rose else ()  # nothing speaks for there being fewer
    found = Change("tickets", turn.rose, subject.changes, turn.day * DAY_MS, turn.before, turn.after, turn.n_before,
                   turn.n_after, places)  # fmt: skip
    return found if live else None


def _seen(subject: Subject, place: Place) -> bool:
    """Whether it was folded before; it is from now on."""
    hashed = int.from_bytes(hashlib.blake2b(place.opinion_id.encode(), digest_size=8).digest(), "big") >> 1
    if hashed in subject.seen:
        return True
    subject.seen = [*subject.seen, hashed][-SEEN_MAX:]
    return False


def _before(subject: Subject, run: Run) -> list[int]:
    """Levels of the regime without the run and without the last opinions: a run that ended by chance after a change must
    not make the new state part of what was usual."""
    left_out = max(run.n, min(LAG_OPINIONS, subject.n - REFERENCE_MIN))
    levels = list(subject.levels)
    if left_out > PLACES_MAX:
        return [every - some for every, some in zip(levels, run.levels, strict=True)]
    for place in subject.places[len(subject.places) - left_out :] if left_out > 0 else ():
        levels[level(place.satisfaction)] -= 1
    return levels


def _changed(subject: Subject, fell: bool) -> Change:
    """Begin a new regime with the run's opinions."""
    run = subject.fall if fell else subject.rise
    n_before, before = subject.n - run.n, subject.total - run.total
    places = sorted(subject.places[-run.n :], key=lambda one: one.satisfaction if fell else -one.satisfaction)
    subject.changes += 1
    subject.n, subject.total, subject.levels = run.n, run.total, list(run.levels)
    subject.fall, subject.rise = Run(), Run()
    return Change("opinions", fell, subject.changes, run.since_ms, before / n_before, run.total / run.n, n_before, run.n,
                  tuple(places))  # fmt: skip


def demotion(n: npt.NDArray[np.float64], total: npt.NDArray[np.float64], weight: float) -> npt.NDArray[np.float32]:
    """(I,) factors of scores, at most 1, from opinions (I,) and their sums (I,): (own mean / mean of all) ** weight, where
    own means are shrunk to the mean of all by `PRIOR_OPINIONS`. Items above it, and those nobody spoke of, keep their
    scores.

    >>> demotion(np.array([40.0, 40.0, 0.0]), np.array([36.0, 12.0, 0.0]), 1.0).tolist() == [1.0, np.float32(0.6), 1.0]
    True
    >>> demotion(np.array([40.0]), np.array([0.0]), 0.0).tolist()
    [1.0]
    """
    everybody = float(n.sum())
    if not everybody or not weight:
        return np.ones(len(n), dtype=np.float32)
    mean = max(float(total.sum()) / everybody, 1e-9)
    own = (total + PRIOR_OPINIONS * mean) / (n + PRIOR_OPINIONS)
    return np.asarray(np.minimum(1.0, own / mean) ** weight, dtype=np.float32)
