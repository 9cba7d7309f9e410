"""Rankers judged on the same questions: what each ranked, and how good that was, question by question, so that any two can
be compared in pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stream.adapters.models.onnx import Bundle
from stream.core.ranking.blend import Blend
from stream.core.ranking.counts import ItemCount, PartitionCounts
from stream.core.ranking.index import ItemIndex
from stream.core.ranking.links import Links
from stream.core.user.featurize import Float32
from training.evaluation.metrics import FloatArray, as_arrays, measures, top
from training.history.snapshot import History, interactions
from training.panel.method import Asked, Method
from training.recommend import exposure
from training.recommend.asking import Columns, Question
from training.recommend.exposure import Groups
from training.recommend.offline import ask, follow, index_of
from training.text.texts import Texts

COLD_TOUCHES_MAX = 4  # an item with fewer than five is cold
EXPOSURE = "exposure"
OCCASIONAL_DAYS_MAX = 5
HEAD_SHARE = 0.2  # of the items by touches; the others are the long tail
BATCH = 64

Values = dict[str, dict[str, FloatArray]]  # sub-task ("" for the task itself) → measure → (Q,)


class Ranker(Protocol):
    """Anything that can be asked."""

    def catch_up(self, changed: Mapping[str, ItemCount], now_ms: int) -> None:
        """What happened before `now_ms` since the last question; the live counts it changed."""
        ...

    def scores(self, questions: list[Question]) -> Float32:
        """(B, N) higher is better; columns are the history's items."""
        ...


class Ours:
    """A bundle as a worker asks it. Its index follows the live counts, or stays as it is when it is not `live`."""

    def __init__(
        self, bundle: Bundle, history: History, texts: Texts, counts: PartitionCounts, blend: Blend, *,
        links: Links | None = None, live: bool = True,
    ) -> None:  # fmt: skip
        self.bundle, self.blend, self.size, self.live = bundle, blend, len(history.items), live
        self.index: ItemIndex = index_of(bundle, history.items, texts, counts, links)

    def catch_up(self, changed: Mapping[str, ItemCount], now_ms: int) -> None:
        if self.live:
            follow(self.index, changed)

    def scores(self, questions: list[Question]) -> Float32:
        found = ask(self.bundle, self.index, [one.state for one in questions], [one.now_ms for one in questions], self.blend)
        return np.stack([one.total[: self.size] for one in found])


class Panelist:
    """A method of the panel, told of the events that come between two questions."""

    def __init__(self, method: Method, history: History, split_ms: int) -> None:
        self.method = method
        past, self.number = interactions(history)
        self._past, self._at = past, int(np.searchsorted(past.ts_ms, split_ms))
        self._rows_of: dict[int, npt.NDArray[np.int64]] = {}

    def catch_up(self, changed: Mapping[str, ItemCount], now_ms: int) -> None:
        past = self._past
        while self._at < len(past.users) and past.ts_ms[self._at] < now_ms:
            at = self._at
            self.method.observe(int(past.users[at]), int(past.items[at]), int(past.ts_ms[at]), int(past.kinds[at]))
            self._at += 1

    def scores(self, questions: list[Question]) -> Float32:
        return self.method.score([self._asked(one) for one in questions])

    def _asked(self, question: Question) -> Asked:
        user = self.number.get(question.user, -1)
        rows = self._rows_of.get(user)
        if rows is None:
            rows = self._rows_of[user] = np.flatnonzero(self._past.users == user)
        rows = rows[self._past.ts_ms[rows] < question.now_ms]
        return Asked(user, self._past.items[rows], self._past.ts_ms[rows], question.now_ms)


@dataclass
class Verdict:
    """What one ranker did: rows of measures by sub-task, and the items it showed."""

    rows: dict[str, list[tuple[float, float, float, float]]] = field(default_factory=dict)
    shown: set[int] = field(default_factory=set)
    exposed: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    by_group: list[FloatArray] = field(default_factory=list)  # (2, G) of each question

    def add(self, task: str, ranked: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]) -> None:
        self.rows.setdefault(task, []).append(measures(ranked, wanted))

    def values(self) -> Values:
        """With what was shown of the long tail beside what was wanted of it: exposure follows demand, or it does not."""
        found = {task: as_arrays(rows) for task, rows in self.rows.items()}
        for task, shares in self.exposed.items():
            table = np.array(shares)  # (Q, 2)
            found[task] = {"tail_shown@10": table[:, 0], "tail_wanted": table[:, 1]}
        return found


class Judge:
    """Asks rankers the same questions. `touched` (N,) are touches of each item before the split; `counts` are those of the
    replay the questions come from; with `groups`, exposure by them is measured at the split."""

    def __init__(
        self, columns: Columns, touched: npt.NDArray[np.int64], counts: PartitionCounts, groups: Groups | None = None
    ) -> None:
        self.columns, self.counts, self.groups = columns, counts, groups
        self.cold = touched <= COLD_TOUCHES_MAX
        head = np.argsort(-touched, kind="stable")[: int(HEAD_SHARE * (touched > 0).sum())]
        self.tail = np.ones(len(touched), dtype=bool)
        self.tail[head] = False

    def judge(
        self, rankers: Mapping[str, Ranker], questions: Iterable[Question], *, together: bool, prefix: str = ""
    ) -> dict[str, Verdict]:
        """Verdicts by name. `together`: the questions are all of one time and may be asked in batches."""
        verdicts = {name: Verdict() for name in rankers}
        for some in batched(questions, BATCH if together else 1):
            changed = {key: self.counts.counts[key] for key in self.counts.dirty}
            self.counts.dirty.clear()
            for name, ranker in rankers.items():
                ranker.catch_up(changed, some[0].now_ms)
                for question, scores in zip(some, ranker.scores(some), strict=True):
                    self._add(verdicts[name], question, scores, prefix)
        return verdicts

    def _add(self, verdict: Verdict, question: Question, scores: Float32, prefix: str) -> None:
        known = self.columns.known(question.now_ms)
        ranked = top(scores, known, question.wanted)
        verdict.shown.update(ranked[:10].tolist())
        verdict.add(prefix, ranked, question.wanted)
        verdict.add(_named(prefix, user_group(len(question.state.days))), ranked, question.wanted)
        shares = (float(self.tail[ranked[:10]].mean()) if len(ranked) else 0.0, float(self.tail[question.wanted].mean()))
        verdict.exposed.setdefault(_named(prefix, EXPOSURE), []).append(shares)
        if self.groups is not None and not prefix:
            verdict.by_group.append(exposure.of_question(self.groups, ranked, question.wanted))
        tail = question.wanted[self.tail[question.wanted]]
        if len(tail):
            verdict.add(_named(prefix, "long-tail"), ranked, tail)
        new = np.setdiff1d(question.wanted, question.touched)
        if len(new):
            untouched = known.copy()
            untouched[question.touched] = False
            verdict.add(_named(prefix, "new"), top(scores, untouched, new), new)
        cold = question.wanted[self.cold[question.wanted]]
        if len(cold):
            verdict.add(_named(prefix, "cold"), top(scores, known & self.cold, cold), cold)


def user_group(active_days: int) -> str:
    """Whether quality is the same for all: users here on one day so far, on a few, on many.

    >>> [user_group(days) for days in (1, 5, 6)]
    ['users-new', 'users-occasional', 'users-regular']
    """
    return "users-new" if active_days <= 1 else "users-occasional" if active_days <= OCCASIONAL_DAYS_MAX else "users-regular"


def _named(prefix: str, task: str) -> str:
    return f"{prefix}-{task}" if prefix else task


def batched(questions: Iterable[Question], size: int) -> Iterator[list[Question]]:
    """The same in lists of at most `size`."""
    some: list[Question] = []
    for question in questions:
        some.append(question)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some


def averaged(several: list[Values]) -> Values:
    """The mean of each question's values over several seeds.

    >>> averaged([{"new": {"hit": np.array([0.0, 1.0])}}, {"new": {"hit": np.array([1.0, 1.0])}}])["new"]["hit"].tolist()
    [0.5, 1.0]
    """
    return {
        task: {name: np.mean([one[task][name] for one in several], axis=0) for name in of}
        for task, of in several[0].items()
    }  # fmt: skip
