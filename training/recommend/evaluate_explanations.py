"""Whether the events that are named as reasons are the reasons: without the first one named, does the item fall further
than without another?

Every user who came back after the split is asked at the split, as workers ask: fold, encode (ONNX), score, rank, explain.
Then their history is folded anew without each thing in it that the encoder saw, and scored again: what each recommended item
loses by that is what the thing was worth. An explanation is faithful as far as the first reason is worth more than another
event, drawn from all others alike: the share is exact, nothing is drawn. Beside it: naming the newest event, and naming the
newest of the item's own category. Removing one thing at a time, "comprehensiveness" as of DeYoung et al., "ERASER" (ACL
2020), section 4, for a set of one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from stream.core.ranking.index import ItemIndex
from stream.core.ranking.recommend import Rules, excluded, rank
from stream.core.user.state import UserState
from stream.recommending import Scored, rules_of, score_users
from stream.serving import Serving
from training import train
from training.evaluation.clustered import by_user
from training.evaluation.comparison import Comparison, Measures, iso, merged
from training.evaluation.evaluations import Evaluated, Request
from training.history.removing import Named, lives, removed
from training.history.snapshot import EmptyHistory, History, Replay
from training.progress import progress
from training.recommend import offline
from training.recommend.asking import Columns, Question, next_of
from training.text.texts import encode

SERVED = "clickwake"
NEWEST, ALIKE, ANY = "the newest event", "the newest event of its category", "an event by lot"
USERS_MAX = 300
TIE = 1e-7  # of the score: float32 sums depend on how many there are
Floats = npt.NDArray[np.float64]
T = TypeVar("T")


class Case(NamedTuple):
    """One recommended item of one user, and what it loses without each of C things of their history."""

    user: int
    source: str
    share: float  # said of the first reason
    lost: Floats  # (C,) of its score, as a share of it
    fallen: Floats  # (C,) places
    chosen: dict[str, int]  # who names → which of the C


def run(request: Request) -> Evaluated:
    """`clickwake evaluate explanations`; the default split is the newest tenth of the moments. Options: users."""
    history = request.history()
    texts = encode(request.settings, history.items, request.say)
    split_ms = request.split_ms or train.windows(history)[1]
    learned, blend = train.evaluated(request.settings, history, split_ms, texts, request.say)
    serving = Serving(learned.bundle)
    serving.blend = blend
    replay = Replay(history, serving.counts_policy)
    replay.advance(split_ms)
    tenant = history.events[0].tenant
    serving.indexes[tenant] = offline.index_of(learned.bundle, history.items, texts, replay.snapshot.counts)
    users = int(request.options.get("users", USERS_MAX))
    asked = next_of(replay, Columns(history), split_ms, history.to_ms + 1, users)
    request.say(f"taking the histories of {len(asked)} users apart")
    found = cases(serving, tenant, history, asked, split_ms, rules_of(request.settings.personalize))
    return judged(found, history.name, split_ms)


def cases(
    serving: Serving, tenant: str, history: History, asked: list[Question], now_ms: int, rules: Rules
) -> list[Case]:  # fmt: skip
    """Everything recommended to the users with a reason, where there is more than one thing to choose from."""
    of = lives(history, {one.user: one.state for one in asked}, now_ms)
    found: list[Case] = []
    with progress() as bar:
        for number, one in enumerate(bar.track(asked, description="users")):
            found += _of_user(serving, tenant, one, number, of[one.user], now_ms, rules)
    return found


def _of_user(
    serving: Serving, tenant: str, one: Question, number: int, life: list[Any], now_ms: int, rules: Rules
) -> list[Case]:  # fmt: skip
    index = serving.index(tenant)
    (whole,) = _scored(serving, tenant, [one.state], now_ms)
    known = whole.known
    things = list(dict.fromkeys(zip(known.event_ids, known.item_ids, strict=True)))  # oldest first
    shown = rank(whole.scores.total, one.state, index, rules)
    told = whole.explained(shown, index)
    if len(things) < 2 or not any(item.reasons for item in told):
        return []
    less = dict(removed(life, one.user, things))
    assert less.keys() == set(things), "what the encoder saw was folded from what happened"
    without = _scored(serving, tenant, [less[thing] for thing in things], now_ms)
    allowed = _allowed(one.state, index, rules, len(whole.scores.total))
    before, after = _worth(whole, shown, allowed), [_worth(scored, shown, allowed) for scored in without]
    lost = np.stack([1 - score / np.maximum(before[0], 1e-12) for score, _ in after])  # (C, R)
    fallen = np.stack([place - before[1] for _, place in after])  # (C, R)
    return [
        Case(number, item.source, item.reasons[0].share, lost[:, at], fallen[:, at], _named(things, shown[at], item, index))
        for at, item in enumerate(told) if item.reasons
    ]  # fmt: skip


def _scored(serving: Serving, tenant: str, states: list[UserState], now_ms: int) -> list[Scored]:
    async def run(call: Callable[..., T], *args: object) -> T:
        return call(*args)

    return asyncio.run(score_users(serving, tenant, states, [now_ms] * len(states), run))


def _allowed(state: UserState, index: ItemIndex, rules: Rules, n: int) -> npt.NDArray[np.bool_]:
    allowed = index.recommendable[:n].copy()
    allowed[[row for row in excluded(state, index, rules) if row < n]] = False
    return allowed


def _worth(scored: Scored, rows: list[int], allowed: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """(R,) scores as they are told, and (R,) places among what may be shown."""
    total = scored.scores.total.astype(np.float64)
    place = (total[allowed][None, :] > total[rows][:, None]).sum(axis=1)
    return total[rows] / max(total.sum(), 1e-12), place.astype(np.float64)


def _named(things: list[Named], row: int, item: Any, index: ItemIndex) -> dict[str, int]:
    reason = item.reasons[0]
    found = {SERVED: things.index((reason.event_id, reason.item_id)), NEWEST: len(things) - 1}
    if index.category[row] >= 0:
        rows = index.rows([item_id for _, item_id in things])
        alike = [at for at, other in enumerate(rows) if other >= 0 and index.category[other] == index.category[row]]
        found[ALIKE] = alike[-1] if alike else len(things) - 1
    return found


def hurts(values: Floats, chosen: int, tie: float) -> float:
    """The chance that `chosen` takes away more than one of the others, drawn alike; as much counts half.

    >>> hurts(np.array([0.1, 0.5, 0.1, 0.3]), 3, 0.0), hurts(np.array([1.0, 1.0]), 0, 0.0)
    (0.6666666666666666, 0.5)
    """
    others = np.delete(values, chosen)
    return float((values[chosen] > others + tie).mean() + 0.5 * (np.abs(values[chosen] - others) <= tie).mean())


def judged(found: list[Case], dataset: str, split_ms: int) -> Evaluated:
    """Shares of cases with 95% intervals, users drawn with all their items; then by the source of the score."""
    if not found:
        raise EmptyHistory(f"{dataset}: nothing was recommended with a reason to choose from after {iso(split_ms)}")
    models: dict[str, Measures] = {}
    ahead: dict[str, Measures] = {}
    for source in ("", *sorted({one.source for one in found})):
        some = [one for one in found if source in ("", one.source)]
        for measure, values in _measures(some).items():
            part, difference = by_user(values, np.array([one.user for one in some]), SERVED,
                                       f"{source}.{measure}" if source else measure)
            models, ahead = merged(models, part), merged(ahead, difference)
    comparison = Comparison(
        task="explanations", dataset=dataset, split=iso(split_ms), n=len(found), models=models, ahead=ahead, served=SERVED,
        settings={"users": float(len({one.user for one in found})),
                  "things to choose from": float(np.mean([len(one.lost) for one in found]))},
    )  # fmt: skip
    return Evaluated(comparison, {"What was said of the first reason, and what the score lost without it":
                                  lambda figure: _said(figure, found)})  # fmt: skip


def _measures(some: list[Case]) -> dict[str, dict[str, Floats]]:
    """Measure → who names → value of each case (Q,)."""
    names = [name for name in (SERVED, NEWEST, ALIKE) if all(name in one.chosen for one in some)]
    found: dict[str, dict[str, Floats]] = {
        "hurts_more": {name: np.array([hurts(one.lost, one.chosen[name], TIE) for one in some]) for name in names},
        "falls_further": {name: np.array([hurts(one.fallen, one.chosen[name], 0.0) for one in some]) for name in names},
        "is_the_first": {name: np.array([float(one.lost[one.chosen[name]] >= one.lost.max() - TIE) for one in some])
                         for name in names},
        "score_lost": {name: np.array([one.lost[one.chosen[name]] for one in some]) for name in names},
    }  # fmt: skip
    found["hurts_more"][ANY] = found["falls_further"][ANY] = np.full(len(some), 0.5)
    found["is_the_first"][ANY] = np.array([(one.lost >= one.lost.max() - TIE).mean() for one in some])
    found["score_lost"][ANY] = np.array([one.lost.mean() for one in some])
    return found


def _said(figure: Any, found: list[Case]) -> None:
    axis = figure.subplots()
    said = np.array([one.share for one in found])
    lost = np.array([one.lost[one.chosen[SERVED]] for one in found])
    others = np.array([np.delete(one.lost, one.chosen[SERVED]).mean() for one in found])
    tenths = np.array_split(np.argsort(said, kind="stable"), min(10, len(said)))
    for values, label in ((lost, "without the first reason"), (others, "without another event")):
        axis.plot([said[part].mean() for part in tenths], [values[part].mean() for part in tenths], "o-", label=label)
    axis.axhline(0, lw=0.5, color="#999")
    axis.set_xlabel("share of the score said of the first reason")
    axis.set_ylabel("share of the score lost")
    axis.legend()

