"""A candidate on live traffic, without being served: what it would have recommended, and whether the user then went there.

Each recommendation that was served is asked again of both bundles, as of its time, with the states and live counts of then,
by the rules of the workers. What users did next counts for both; they had seen what the current bundle recommended, which
favours it. Only recommendations after both bundles' data are asked.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from stream.adapters.models.onnx import Bundle
from stream.core.ranking.recommend import Rules, rank
from stream.core.user.fold import touches
from stream.core.user.state import Kind
from stream.recommending import rules_of
from stream.serving import Serving
from stream.settings import Settings
from training.evaluation.comparison import Comparison, iso, means
from training.evaluation.metrics import FloatArray
from training.history.live import HORIZON_MS, Horizon, Live, Served
from training.history.snapshot import EmptyHistory, History, Replay
from training.recommend import offline
from training.text.texts import Texts

ASKED_MAX = 1_000
HIT_KINDS = (Kind.VIEW, Kind.CLICK, Kind.ORDER)  # as the view recommendation_hits counts

Later = Mapping[str, tuple[list[int], list[str]]]  # user → times and items of what they did, ascending


def compare(
    settings: Settings, tenant: str, history: History, texts: Texts, current: Bundle, candidate: Bundle,
    horizon: Horizon = "1d", say: Callable[[str], None] = lambda message: None,
) -> Comparison:  # fmt: skip
    """Hit rates of both on what the current bundle was asked live, paired by user; the candidate stands as the served one.

    Raises `EmptyHistory` when nothing was served since the candidate learned whose horizon has passed.
    """
    since_ms = max(int(one.manifest.data_to.timestamp() * 1000) + 1 for one in (current, candidate))
    until_ms = history.to_ms - HORIZON_MS[horizon]
    version = current.manifest.model_version
    with Live(settings, tenant) as live:
        served = live.served(version, since_ms, until_ms, ASKED_MAX)
    if not served:
        raise EmptyHistory(f"nothing that {version} recommended after {iso(since_ms)} is {horizon} old yet; ask again later")
    later = doings(history)
    rules = rules_of(settings.personalize)
    values = {}
    for bundle in (candidate, current):
        say(f"asking {bundle.manifest.model_version} again what was asked live {len(served)} times")
        hit = hits(history, texts, bundle, served, later, rules, HORIZON_MS[horizon])
        values[bundle.manifest.model_version] = {f"hr@{rules.top_n}": by_user(served, hit)}
    models, ahead = means(values, candidate.manifest.model_version)
    return Comparison(task="recommend", dataset=f"live, tenant {tenant}", split=iso(since_ms), n=len(served), models=models,
                      served=candidate.manifest.model_version, ahead=ahead, settings={"horizon": horizon})  # fmt: skip


def hits(
    history: History, texts: Texts, bundle: Bundle, served: Sequence[Served], later: Later, rules: Rules, horizon_ms: int
) -> list[bool]:
    """Whether the bundle's list at each recommendation's time holds something its user then went to; `served` by time."""
    serving = Serving(bundle)
    replay = Replay(history, serving.counts_policy)
    counts = replay.snapshot.counts
    index = offline.index_of(bundle, history.items, texts, counts)
    found = []
    for one in served:
        replay.advance(one.as_of_ms + 1)
        offline.follow(index, {key: counts.counts[key] for key in counts.dirty})
        counts.dirty.clear()
        state = replay.snapshot.states.get(one.user)
        if state is None:  # its events are gone, or were refused: nobody's list
            found.append(False)
            continue
        (scores,) = offline.ask(bundle, index, [state], [one.as_of_ms], serving.blend)
        listed = {index.ids[row] for row in rank(scores.total, state, index, rules)}
        times, items = later.get(one.user, ([], []))
        first, end = bisect_right(times, one.as_of_ms), bisect_right(times, one.as_of_ms + horizon_ms)
        found.append(not listed.isdisjoint(items[first:end]))
    return found


def doings(history: History) -> Later:
    """What each user viewed, clicked or ordered."""
    found: dict[str, tuple[list[int], list[str]]] = {}
    for event in history.events:
        for touch in touches(event, event.ts_ms):
            if touch.kind in HIT_KINDS:
                times, items = found.setdefault(event.user, ([], []))
                times.append(touch.ts_ms)
                items.append(touch.item_id)
    return found


def by_user(served: Sequence[Served], hit: Sequence[bool]) -> FloatArray:
    """(U,) each user's share of hits, users in the order of their first recommendation."""
    of: dict[str, list[bool]] = {}
    for one, was in zip(served, hit, strict=True):
        of.setdefault(one.user, []).append(was)
    return np.array([np.mean(some) for some in of.values()])
