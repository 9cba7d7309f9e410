"""From a history to a published bundle.

1 learn on what came before the validation window; 2 fit the blend on that window and judge on the newest, held-out one;
3 learn again on everything, for as many steps, with that blend; 4 look for clusters of users; 5 export, check, publish, load
as a worker would.
The metrics in the manifest are those of step 2: nobody can judge the final models before new events come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import structlog

from schemas.release import Manifest
from stream.adapters.models import model_store, signing
from stream.adapters.models.onnx import Bundle
from stream.core.ranking.blend import Blend
from stream.core.ranking.counts import CountsPolicy
from stream.core.survival.repurchase import Repurchase
from stream.core.user.state import DAY_MS
from stream.settings import Settings
from training import checkpoint, export
from training.churn import churn
from training.churn.churn import ChurnFit
from training.clusters import audience
from training.evaluation import report
from training.evaluation.comparison import Comparison
from training.history.snapshot import EmptyHistory, History, Moment, Replay, Snapshot, interactions, replay, visit_arrays
from training.promotions import persuasion
from training.promotions.persuasion import Persuasion
from training.promotions.trials import Trials
from training.recommend import blend, fit, held_out, links
from training.recommend.fit import Curve
from training.recommend.user_encoder import Config, Recommender
from training.repurchase import repurchase
from training.text.texts import Texts

log = structlog.get_logger()

WINDOW_SHARE = 0.1  # of the moments: the newest are the held-out window, those before them the validation window
WINDOW_DAYS_MAX = 28.0  # a longer window would judge models by how they age
MOMENTS_MIN = 50

Say = Callable[[str], None]


@dataclass(frozen=True)
class Learned:
    """Models of one history, exported, and how they came to be."""

    model: Recommender
    curve: Curve
    churn: ChurnFit
    files: dict[str, bytes]
    bundle: Bundle
    snapshot: Snapshot
    again: Repurchase | None = None  # when items are bought again; None: not learned


@dataclass(frozen=True)
class Trained:
    """A published bundle."""

    manifest: Manifest
    manifest_sha256: str
    comparison: Comparison


def learn(
    history: History, texts: Texts, settings: Settings, *, parent: str | None = None,
    steps_max: int | None = None, policy: CountsPolicy | None = None, budget_s: float | None = None,
    config: Config | None = None, persuades: Persuasion = persuasion.NOTHING,
) -> Learned:  # fmt: skip
    """Replay a history, train all models on it and export them; nothing is published. `persuades`: what was learned of
    deliveries goes along. Raises `EmptyHistory`."""
    replaying, (past, number) = Replay(history, policy), interactions(history)
    again = repurchase.learn(replaying, past, number, settings.training.seed)
    snapshot = replaying.finish()
    if not snapshot.visits:
        raise EmptyHistory(f"{history.name}: all {len(history.events)} events lie at one time; a longer history is needed")
    own, item_ids = settings.training, list(history.items)
    model, curve = fit.fit(
        snapshot.moments, item_ids, texts.of(item_ids), config or Config(text_dim=texts.dim), seed=own.seed,
        budget_s=budget_s or own.budget_s, pretrain=own.pretrain, steps_max=steps_max, threads=own.threads,
        checkpoints=settings.training_dir,
    )  # fmt: skip
    hazard = churn.fit(snapshot.visits, seed=own.seed, end_ms=history.to_ms, horizon_days=own.churn_horizon_days)
    linked = links.fit(past, item_ids, history.to_ms + 1)
    files = export.files(model, hazard.net, item_ids, linked) | persuades.files()
    manifest = export.draft(model, texts.space, parent, files, (history.from_ms, history.to_ms))
    manifest = msgspec.structs.replace(manifest, uplift=persuades.figures(), metrics=persuades.metrics())
    return Learned(model, curve, hazard, files, export.open_files(manifest, files), snapshot, again)


def fit_blend(
    learned: Learned, history: History, texts: Texts, split_ms: int, end_ms: int, settings: Settings, say: Say
) -> Blend:
    """The mixture by what users touched in [split_ms, end_ms), with an encoder that saw only what came before."""
    data = blend.examples(learned.bundle, history, texts, split_ms, end_ms, settings.training.seed, say)
    if data is None:
        log.warning("blend keeps its defaults", why=f"fewer than {blend.QUESTIONS_MIN} users came back in the window")
        return Blend.from_manifest({})
    say(f"fitting the blend to {len(data.user)} questions")
    return blend.fit(data, settings.training.seed, settings.training.threads)


def window_start(moments: list[Moment], end_ms: int) -> int:
    """Where the newest window begins that holds a tenth of the moments before `end_ms`, and is not too long."""
    times = [one.ts_ms for one in moments if one.ts_ms < end_ms]
    if len(times) < MOMENTS_MIN:
        raise EmptyHistory(f"only {len(times)} moments of returning users, at least {MOMENTS_MIN} are needed to learn from")
    return max(times[int(len(times) * (1 - WINDOW_SHARE))], int(end_ms - WINDOW_DAYS_MAX * DAY_MS))


def windows(history: History) -> tuple[int, int, int]:
    """(validation from, held out from, end) in ms."""
    moments = replay(history).moments
    end_ms = history.to_ms + 1
    test_ms = window_start(moments, end_ms)
    return window_start(moments, test_ms), test_ms, end_ms


def train(
    settings: Settings, history: History, texts: Texts, *, parent: str | None = None,
    trials: Mapping[str, Trials] | None = None, say: Say = lambda message: None,
) -> Trained:  # fmt: skip
    """End to end, see the module. `parent`: the bundle that runs; its clusters go on. `trials`: what was decided by lot."""
    policy, budget_s = CountsPolicy(), settings.training.budget_s / 2  # two runs share it
    validation_ms, test_ms, end_ms = windows(history)
    say(f"learning from {len(history.events)} events, judged on the newest {(end_ms - test_ms) / DAY_MS:.1f} days")
    first = learn(history.until(validation_ms), texts, settings, policy=policy, budget_s=budget_s)
    mixture = fit_blend(first, history.until(test_ms), texts, validation_ms, test_ms, settings, say)
    say("judging on the held-out days")
    comparison = held_out.compare(history, test_ms, end_ms, texts, first.bundle, mixture)
    say("learning again from everything")
    final = learn(history, texts, settings, parent=parent, policy=policy, budget_s=budget_s,
                  steps_max=max(1, len(first.curve.loss)),
                  persuades=persuasion.learn(trials or {}, settings.training.seed, say))
    say("looking for clusters of users")
    final = with_audience(final, history, texts, settings, opened(settings, parent))
    say("; ".join(f"{one.name}: {one.users}" for one in final.bundle.audience.clusters) or "no clusters")
    manifest = described(final, mixture, comparison)
    golden = export.golden(final.bundle, visit_arrays(final.snapshot.visits)[0])
    page = report.page(manifest, first.curve, comparison, final.churn)
    manifest, digest = export.publish(
        settings.registry, manifest, final.files | {"golden.npz": golden}, {"report/index.html": page.encode()}
    )
    checkpoint.clear(settings.training_dir)
    say(f"published {manifest.model_version}")
    return Trained(manifest, digest, comparison)


def with_audience(
    learned: Learned, history: History, texts: Texts, settings: Settings, previous: Bundle | None
) -> Learned:
    """The same bundle with clusters of users and quantiles; `previous`: whose clusters go on."""
    found = audience.discover(learned.bundle, learned.snapshot, history, texts, learned.churn.policy, previous,
                              settings.training.seed)  # fmt: skip
    files = audience.with_file(learned.files, found)
    return replace(learned, files=files, bundle=export.open_files(learned.bundle.manifest, files))


def opened(settings: Settings, version: str | None) -> Bundle | None:
    """A bundle of the registry as a worker would take it; None, and why in the log, where it cannot be."""
    if version is None:
        return None
    uri = model_store.bundle_uri(settings.registry, version)
    try:
        return model_store.admit(settings.registry, uri, model_store.read(f"{uri}/manifest.json"),
                                 settings.training.threads, signing.trusted(settings.models))  # fmt: skip
    except model_store.BundleRefused as error:
        log.warning("clusters begin anew", previous=version, why=str(error))
        return None


def described(learned: Learned, mixture: Blend, comparison: Comparison) -> Manifest:
    """The manifest with policies and metrics; its files are named when it is published."""
    metrics = held_out.as_metrics(comparison) | learned.churn.metrics | churn.calibration_metrics(learned.churn)
    metrics |= learned.bundle.manifest.metrics
    policy = learned.snapshot.counts.policy
    return msgspec.structs.replace(
        learned.bundle.manifest, blend=mixture.named(), counts=_floats(policy), churn=_floats(learned.churn.policy),
        metrics=metrics, repurchase=learned.again.named() if learned.again else {},
    )  # fmt: skip


def evaluated(
    settings: Settings, history: History, split_ms: int, texts: Texts, say: Say, config: Config | None = None
) -> tuple[Learned, Blend]:
    """Learned on what came before `split_ms` alone; the blend on a window before the split."""
    past = history.until(split_ms)
    validation_ms = window_start(replay(past).moments, split_ms)
    say(f"learning from {len(past.events)} events before the split")
    budget_s = settings.training.budget_s / 2
    first = learn(past.until(validation_ms), texts, settings, budget_s=budget_s, config=config)
    mixture = fit_blend(first, past, texts, validation_ms, split_ms, settings, say)
    steps = max(1, len(first.curve.loss))
    final = learn(past, texts, settings, steps_max=steps, budget_s=budget_s, config=config)
    return replace(final, curve=first.curve), mixture


def _floats(struct: Any) -> dict[str, float]:
    return {name: float(value) for name, value in msgspec.structs.asdict(struct).items()}
