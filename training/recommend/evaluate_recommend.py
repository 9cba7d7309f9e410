"""How well it recommends: time split, every item known by then ranked, beside a panel of strong methods.

Sub-tasks: each known user's next moment after the split; of it, items new to the user (`new`), items outside the most
touched fifth (`long-tail`), items with fewer than five touches ranked among themselves (`cold`); quality by how long users
have been here (`users-…`), how much of the long tail is shown and was wanted (`exposure`), exposure by brand, or by category
where there are none (`exposure-by-…`, `exposure-gap-by-…`), what it costs to choose items that differ (`differing`); and,
but for these, the same before every moment after the split (`successive`), with histories and live counts as they then
were, and models as of the split.
Ours is learned on what came before a validation window, blended on that window, and learned again up to the split; it is
asked through its ONNX files and stream.core.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from stream.core.ranking.blend import PARTS, USER_FEATURES, Blend
from stream.core.ranking.counts import PartitionCounts
from stream.core.user.state import DAY_MS
from stream.settings import Settings
from training import train
from training.evaluation.comparison import Measures, iso, merged
from training.evaluation.evaluations import Evaluated, Request
from training.evaluation.metrics import Interval, bootstrap
from training.history.snapshot import EmptyHistory, History, Replay, from_dataset, interactions
from training.panel import roster
from training.recommend import diversity, exposure, held_out
from training.recommend.asking import Columns, Question, next_of, walk
from training.recommend.exposure import Groups
from training.recommend.judging import Judge, Ours, Panelist, Ranker, Values, averaged
from training.recommend.user_encoder import Config
from training.text.texts import Texts, encode
from training.train import Say

SERVED = held_out.SERVED
MOMENTS_MAX = 3_000  # asked before each
FRESHNESS_DAYS = (0, 1, 3, 7, 14)
LEARNED_AGAIN = ("without text", "without ids", "without time", "pre-trained")  # of the ablations

Make = Callable[[PartitionCounts], Ranker]  # makes a ranker where the counts of a replay stand at the split


def at_split(history: History, split_ms: int) -> tuple[Replay, Columns, list[Question]]:
    """A history as it stands there, and whose next moment is asked. Raises `EmptyHistory` where nobody came back."""
    replay, columns = Replay(history), Columns(history)
    replay.advance(split_ms)
    asked = next_of(replay, columns, split_ms, history.to_ms + 1, held_out.USERS_MAX)
    if not asked:
        raise EmptyHistory(f"{history.name}: nobody known before {iso(split_ms)} came back after it; choose another split")
    return replay, columns, asked


@dataclass(frozen=True)
class Stage:
    """A history, where it is split, and what is asked of every ranker."""

    settings: Settings
    history: History
    split_ms: int
    texts: Texts
    say: Say

    def learned(
        self, seed: int = 0, *, pretrain: bool | None = None, until_ms: int | None = None, texts: Texts | None = None,
        config: Config | None = None,
    ) -> tuple[train.Learned, Blend]:  # fmt: skip
        """Ours by a seed, or an ablation of it."""
        own = self.settings.training
        update = {"seed": own.seed + seed, "pretrain": own.pretrain if pretrain is None else pretrain}
        changed = own.model_copy(update=update)
        settings = self.settings.model_copy(update={"training": changed})
        return train.evaluated(settings, self.history, until_ms or self.split_ms, texts or self.texts, self.say, config)

    def ours(self, learned: train.Learned, blend: Blend, *, texts: Texts | None = None, live: bool = True) -> Make:
        """Made where the counts of a replay stand at the split, or at the bundle's own end when it is not live."""

        def make(counts: PartitionCounts) -> Ranker:
            counted = counts if live else learned.snapshot.counts
            return Ours(learned.bundle, self.history, texts or self.texts, counted, blend, live=live)

        return make

    def judged(self, rankers: dict[str, Make]) -> dict[str, Values]:
        """Every ranker on the same questions: once at the split, then before every moment."""
        replay, columns, asked = at_split(self.history, self.split_ms)
        past, _ = interactions(self.history, self.split_ms)
        counts = replay.snapshot.counts
        made = {name: make(counts) for name, make in rankers.items()}
        counts.dirty.clear()
        judge = Judge(columns, np.bincount(past.items, minlength=past.n_items), counts, self.groups())
        self.say(f"asking {len(made)} methods about {len(asked)} users' next moments")
        first = judge.judge(made, asked, together=True)
        self.say(f"and before up to {MOMENTS_MAX} moments, one by one")
        moments = walk(replay, columns, self.split_ms, self.history.to_ms + 1, MOMENTS_MAX)
        later = judge.judge(made, moments, together=False, prefix="successive")
        known = int(columns.known(self.split_ms).sum())
        found = {}
        for name in made:
            found[name] = first[name].values() | later[name].values()
            if judge.groups is not None:
                found[name] |= exposure.measured(judge.groups, first[name].by_group)
            found[name][""]["coverage@10"] = np.array([len(first[name].shown) / known])  # one value: no interval
        return found

    def differing(self, learned: train.Learned, blend: Blend) -> tuple[dict[str, Measures], dict[str, Measures]]:
        """Ours at the split, choosing items that differ."""
        replay, columns, asked = at_split(self.history, self.split_ms)
        ours = Ours(learned.bundle, self.history, self.texts, replay.snapshot.counts, blend)
        return diversity.measured(ours, asked, columns, self.texts, list(self.history.items), SERVED)

    def groups(self) -> Groups | None:
        """Brands, or categories, by which exposure is measured."""
        past, _ = interactions(self.history, self.split_ms)
        return exposure.groups(self.history.items, np.bincount(past.items, minlength=past.n_items))

    def panel(self) -> dict[str, Make]:
        """The other methods, fitted with the same budget as ours."""
        past, _ = interactions(self.history, self.split_ms)
        found: dict[str, Make] = {}
        for method in roster.panel():
            self.say(f"fitting {method.name}")
            own = self.settings.training
            method.fit(past, seed=own.seed, budget_s=own.budget_s, threads=own.threads)
            panelist = Panelist(method, self.history, self.split_ms)
            found[method.name] = lambda counts, panelist=panelist: panelist  # type: ignore[misc]
        return found


def run(request: Request) -> Evaluated:
    """`clickwake evaluate recommend`; the default split is the newest tenth of the moments.

    Options: seeds (how often ours is trained), panel (0: without the other methods), ablations, freshness (1: with them).
    """
    options = request.options
    history = from_dataset(request.dataset, request.path)
    split_ms = request.split_ms or train.windows(history)[1]
    at_split(history, split_ms)  # nobody to ask is said before, not after, minutes of encoding and learning
    texts = encode(request.settings, history.items, request.say)
    stage = Stage(request.settings, history, split_ms, texts, request.say)
    seeds = [f"{SERVED}, seed {at}" for at in range(int(options.get("seeds", 1)))]
    learned = {name: stage.learned(at) for at, name in enumerate(seeds)}
    rankers = {name: stage.ours(*one) for name, one in learned.items()}
    first, blend = learned[seeds[0]]
    rankers[f"{SERVED}, encoder alone"] = stage.ours(first, blend.only("encoder"))
    if options.get("ablations"):
        rankers |= _ablations(stage, first, blend)
    if options.get("panel", 1.0):
        rankers |= stage.panel()
    found = stage.judged(rankers)
    several = [found.pop(name) for name in seeds]
    comparison = held_out.comparison(request.dataset, split_ms, {SERVED: averaged(several)} | found, SERVED)
    settings: dict[str, float | str] = {"seeds": len(seeds), "budget_s": request.settings.training.budget_s, **blend.named()}
    settings |= exposure.said(stage.groups(), comparison.models[SERVED])
    request.say("choosing items that differ")
    models, ahead = stage.differing(first, blend)
    comparison = msgspec.structs.replace(
        comparison, settings=settings, models=merged(comparison.models, models), ahead=merged(comparison.ahead, ahead)
    )
    figures = {"Shares of the blend's parts": lambda figure: _shares(figure, blend)}
    if options.get("freshness"):
        aged = freshness(stage)
        figures["Quality against the model's age, before every moment"] = lambda figure: _ages(figure, aged)
        comparison = msgspec.structs.replace(comparison, models=comparison.models | _aged_models(aged))
    return Evaluated(comparison, figures)


def _ablations(stage: Stage, learned: train.Learned, blend: Blend) -> dict[str, Make]:
    """Ours with something left out: parts of the blend at once, inputs of the encoder by learning again."""
    popular = tuple(part for part in PARTS if part.startswith("popular"))
    again = tuple(part for part in PARTS if part.startswith("again"))
    found = {
        "without encoder": stage.ours(learned, blend.without("encoder")),
        "without links": stage.ours(learned, blend.without("follows", "together")),
        "without live rules and popularity": stage.ours(learned, blend.without("rules", *popular)),
        "without what the user dealt with": stage.ours(learned, blend.without(*again)),
        "live counts as of the split": stage.ours(learned, blend, live=False),
    }
    plain = Config(text_dim=stage.texts.dim)
    variants: dict[str, dict[str, Any]] = {
        "without text": {"texts": stage.texts.blank()},
        "without ids": {"config": dataclasses.replace(plain, ids=False)},
        "without time": {"config": dataclasses.replace(plain, time=False)},
        "pre-trained": {"pretrain": True},
    }
    for name in LEARNED_AGAIN:
        change = variants[name]
        stage.say(f"learning {name}")
        found[name] = stage.ours(*stage.learned(**change), texts=change.get("texts"))
    return {f"{SERVED}, {name}": make for name, make in found.items()}


Aged = dict[tuple[str, int], dict[str, Interval]]  # (live counts or not, age in days) → measure → value


def freshness(stage: Stage) -> Aged:
    """Successive quality after the split of models learned up to some days before it, with live counts and without.

    The history of a user is live in both: what is compared is the case for counting in the stream.
    """
    rankers: dict[str, Make] = {}
    for age in FRESHNESS_DAYS:
        stage.say(f"learning a model that is {age} days old at the split")
        learned, blend = stage.learned(until_ms=int(stage.split_ms - age * DAY_MS))
        rankers[f"live {age}"] = stage.ours(learned, blend)
        rankers[f"still {age}"] = stage.ours(learned, blend, live=False)
    found = stage.judged(rankers)
    return {
        (name.split()[0], int(name.split()[1])): {measure: bootstrap(each) for measure, each in one["successive"].items()}
        for name, one in found.items()
    }  # fmt: skip


def _aged_models(aged: Aged) -> dict[str, dict[str, Interval]]:
    words = {"live": "live counts", "still": "counts as old as the model"}
    return {
        f"{SERVED}, {age} days old, {words[kind]}": {f"successive.{name}": value for name, value in measures.items()}
        for (kind, age), measures in aged.items()
    }  # fmt: skip


def _ages(figure: Any, aged: Aged) -> None:
    for axis, measure in zip(figure.subplots(1, 2), ("ndcg@10", "hr@10"), strict=True):
        for kind, label in (("live", "live counts"), ("still", "counts as old as the model")):
            values = [aged[kind, age][measure] for age in FRESHNESS_DAYS]
            sides = np.array([[one.value - one.low, one.high - one.value] for one in values]).T
            axis.errorbar(FRESHNESS_DAYS, [one.value for one in values], yerr=sides, marker="o", capsize=3, label=label)
        axis.set_xlabel("age of the model, days")
        axis.set_title(measure)
        axis.set_ylim(bottom=0)
        axis.legend()


def _shares(figure: Any, blend: Blend) -> None:
    """Shares for users who were active on few and on many days, right after an event and after three weeks."""
    axis = figure.subplots()
    kinds = [(days, silence) for days in (1, 3, 10, 40) for silence in (0, 21)]
    features = {
        (days, silence): np.array([np.log1p(days), np.log1p(8 * days), np.log1p(silence), 0.25], dtype=np.float32)
        for days, silence in kinds
    }
    assert len(USER_FEATURES) == 4, "the figure names the features it assumes"
    left = np.zeros(len(kinds))
    labels = [f"{days} days active, silent {silence} d" for days, silence in kinds]
    table = np.array([blend.shares_of(features[kind]) for kind in kinds])  # (kinds, K)
    for at, part in enumerate(PARTS):
        axis.barh(labels, table[:, at], left=left, label=part)
        left += table[:, at]
    axis.invert_yaxis()
    axis.legend(fontsize=7, ncols=2, loc="center left", bbox_to_anchor=(1.0, 0.5))
