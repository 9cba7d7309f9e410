"""Where another training puts the same users, as of the same time: alone, and as the successor that production makes of it.

Two changes: another seed on the same history, and a month more of it. `clickwake` is told the clusters before and goes on
from them (training.clusters.division); `clickwake, alone` is the same training that is told nothing, its clusters named
afterwards by the overlap. Agreement is the adjusted Rand index with the places before, and the share of users whose cluster
has the name it had. The price is in the silhouette of the places in the new space, and in the agreement with what was
planted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import adjusted_rand_score, silhouette_samples

from stream.adapters.models.onnx import Bundle
from stream.core.user.featurize import Float32
from stream.core.user.state import DAY_MS, UserState
from stream.settings import Settings
from training import train
from training.clusters import audience, division
from training.clusters.division import Ints
from training.evaluation.comparison import Measures, means, merged, statistics, under
from training.evaluation.evaluations import Request
from training.evaluation.metrics import FloatArray
from training.history.snapshot import EmptyHistory, History, Snapshot
from training.recommend.offline import index_of
from training.text.texts import Texts

TOLD, ALONE = "clickwake", "clickwake, alone"
MONTH_MS = 30 * DAY_MS

Planted = Mapping[str, tuple[Ints, Ints]]  # what → rows of the users of whom it is known, and its number for each


@dataclass(frozen=True)
class Asked:
    """Users, as of the end of a history."""

    history: History
    texts: Texts
    snapshot: Snapshot
    states: Sequence[UserState]
    planted: Planted


def compare(
    first: train.Learned, history: History, texts: Texts, states: Sequence[UserState], planted: Planted, request: Request
) -> tuple[dict[str, Measures], dict[str, Measures], dict[str, float]]:
    """(models, ahead, what the successors measured of themselves); `first`: learned from all of `history`, with clusters.
    Trains twice more. Raises EmptyHistory where nothing is older than a month."""
    own = request.settings
    month_less = history.until(history.to_ms - MONTH_MS)
    if not month_less.events:
        raise EmptyHistory(f"{history.name}: no event is older than a month; name a longer history, or leave --retrain out")
    other_seed = own.model_copy(update={"training": own.training.model_copy(update={"seed": own.training.seed + 1})})

    def learned(past: History, settings: Settings) -> train.Learned:
        found = train.learn(past, texts, settings, budget_s=own.training.budget_s / 2)
        return train.with_audience(found, past, texts, settings, None)

    request.say("training anew: another seed")
    other = learned(history, other_seed)
    request.say("training anew: a month less")
    less = learned(month_less, own)
    shop = Asked(history, texts, first.snapshot, states, planted)
    found: list[list[dict[str, Measures]]] = []
    measured: dict[str, float] = {}
    for task, before, after, settings in (("after another seed", first, other, other_seed),
                                          ("after a month more", less, first, own)):  # fmt: skip
        if not (before.bundle.audience.clusters and after.bundle.audience.clusters):
            request.say(f"{task}: one of the two found no clusters, so there is nothing to compare")
            continue
        told = train.with_audience(after, history, texts, settings, before.bundle).bundle
        found.append([under(task, part) for part in succeeded(shop, before.bundle, told, after.bundle)])
        measured |= {f"{task}: {name}": value for name, value in told.audience.measured.items()}
    models, ahead = (merged(*parts) for parts in zip(*found, strict=True)) if found else ({}, {})
    return models, ahead, measured


def succeeded(asked: Asked, before: Bundle, told: Bundle, alone: Bundle) -> tuple[dict[str, Measures], dict[str, Measures]]:
    """(models, ahead) of one training's clusters, `told` those `before` and `alone`."""
    index = index_of(alone, asked.history.items, asked.texts, asked.snapshot.counts)  # one space: the clusters differ alone
    vectors = audience.vectors_at(alone, index, asked.states, [state.last_ts_ms for state in asked.states])
    there = {TOLD: audience.assigned(told, index, asked.states), ALONE: audience.assigned(alone, index, asked.states)}
    here = audience.assigned(
        before, index_of(before, asked.history.items, asked.texts, asked.snapshot.counts), asked.states)  # fmt: skip
    parts = [
        agreement(here, there, "ari"),
        means(same_names(here, there, before, told), TOLD),
        means(silhouettes(vectors, there), TOLD),
        *(agreement(truth, {name: one[rows] for name, one in there.items()}, f"{what}, ari")
          for what, (rows, truth) in asked.planted.items()),
    ]  # fmt: skip
    return merged(*(models for models, _ in parts)), merged(*(ahead for _, ahead in parts))


def agreement(with_: Ints, there: Mapping[str, Ints], measure: str) -> tuple[dict[str, Measures], dict[str, Measures]]:
    """(models, ahead) of the adjusted Rand index with other labels (U,), users drawn with replacement."""
    return statistics({name: one.astype(np.float64) for name, one in there.items()}, with_.astype(np.float64),
                      {measure: _ari}, TOLD)  # fmt: skip


def same_names(
    here: Ints, there: Mapping[str, Ints], before: Bundle, told: Bundle
) -> dict[str, dict[str, FloatArray]]:
    """Of each user, whether their cluster has the name it had: of a training alone as overlap would hand names on."""
    old, known = before.audience.clusters, {one.id: at for at, one in enumerate(before.audience.clusters)}
    is_now = {TOLD: np.array([known.get(one.id, -2) for one in told.audience.clusters] + [-2])[there[TOLD]]}
    somewhere = there[ALONE] >= 0
    handed = audience.matched(there[ALONE][somewhere], here[somewhere], old)
    number = {at: known[one.id] for at, one in handed.items()}
    is_now[ALONE] = np.array([number.get(at, -2) for at in there[ALONE].tolist()])
    return {name: {"same name": (one == here).astype(np.float64)} for name, one in is_now.items()}


def silhouettes(vectors: Float32, there: Mapping[str, Ints]) -> dict[str, dict[str, FloatArray]]:
    """Of each of at most SILHOUETTE_MAX users, by cosine in the new space; those who are in no cluster left out;
    0 where all are in one."""
    rng = np.random.default_rng(0)
    placed = np.flatnonzero(np.all([one >= 0 for one in there.values()], axis=0))
    sample = np.sort(rng.choice(placed, min(len(placed), division.SILHOUETTE_MAX), replace=False))
    return {name: {"silhouette": silhouette_samples(vectors[sample], one[sample], metric="cosine")
                   if len(np.unique(one[sample])) > 1 else np.zeros(len(sample))}
            for name, one in there.items()}  # fmt: skip


def _ari(found: FloatArray, truth: FloatArray) -> float:
    return float(adjusted_rand_score(truth, found))
