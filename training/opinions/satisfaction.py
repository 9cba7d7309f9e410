"""Satisfaction from review text: learned, exported, calibrated on reviews held out, and written to the registry.

Parts: a fine-tuned copy of the text encoder, where the language has one, and a linear model on hashed character n-grams.
Their logits are blended by a logistic regression on the validation reviews, which is Platt's calibration with two inputs
(Platt, "Probabilistic Outputs for Support Vector Machines", 1999); the stars get a temperature (Guo et al., "On Calibration
of Modern Neural Networks", 2017, section 4.2). Both only if held-out likelihood is better for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from schemas.release import FileEntry
from stream.adapters.models import model_store, signing
from stream.adapters.models.onnx import TokenModel, session, sha256
from stream.adapters.models.satisfaction import (
    ENCODER,
    FORMAT_VERSION,
    NGRAMS,
    TOKENIZER,
    Satisfaction,
    SatisfactionManifest,
    load,
    uri_of,
)
from stream.core.user.featurize import Float32
from stream.settings import Settings
from training.churn import baselines
from training.evaluation.metrics import FloatArray, auc, brier, ece
from training.opinions import ngrams
from training.opinions.reviews import Reviews
from training.opinions.satisfaction_net import TOKENS_MAX, Recipe, SatisfactionNet, Tuning, fine_tune
from training.parity import agree
from training.text import text_encoder
from training.text.text_encoder import PARITY_BATCHES, SAMPLES, to_onnx
from training.text.tokens import Tokens

FOLDS = 5
RECIPE = Recipe()
RIDGE = 1e-2  # of the blend: two or three weights on hundreds of reviews
GOLDEN = [*SAMPLES, "Love it! Fits true to size and looks great.", "很失望，质量太差，不推荐。"]  # nobody's review
TEMPERATURES = np.geomspace(0.25, 4.0, 49)
Doubles = npt.NDArray[np.float64]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Learned:
    """A model not yet written anywhere: open, with what its manifest and folder will hold."""

    model: Satisfaction
    files: dict[str, bytes]
    tuning: Tuning | None  # None: without an encoder


def encoder_folder(settings: Settings, language: str) -> Path | None:
    """The BERT to fine-tune for a language: of the settings, for English else the text encoder's; None: n-grams alone."""
    chosen = settings.training.satisfaction_encoders.get(language)
    return chosen or (text_encoder.source_folder(settings) if language == "en" else None)


def learn(train: Reviews, validation: Reviews, settings: Settings, *, seed: int, say: Say) -> Learned:
    """Train both parts on `train`; choose, blend and calibrate on `validation`. Raises `ParityFailed`."""
    own, folder = settings.training, encoder_folder(settings, train.language)
    say(f"n-grams of {len(train)} reviews")
    linear = ngrams.fit(train, validation)
    files = {NGRAMS: ngrams.to_onnx(linear)}
    ngrams.check_parity(linear, files[NGRAMS], validation.texts)
    tuning = None
    if folder is not None:
        say(f"fine-tuning {folder.name} on {len(train)} reviews, for {own.satisfaction_budget_s:g} s at most")
        net, tuning = fine_tune(
            folder, train, validation, seed=seed, budget_s=own.satisfaction_budget_s, threads=own.threads, recipe=RECIPE,
            checkpoints=settings.training_dir,
        )
        files[TOKENIZER] = (folder / "tokenizer.json").read_bytes()
        files[ENCODER] = to_onnx(net, ["recommended", "stars"])
        check_parity(net, files[ENCODER], folder)
    draft = SatisfactionManifest(
        format_version=FORMAT_VERSION, id="draft", language=train.language, tokens_max=TOKENS_MAX, ngrams=linear.policy,
        encoder_weight=0.0, ngrams_weight=1.0, constant=0.0, stars_temperature=None, recommended_from=0.5, golden={},
        metrics={}, files={},
    )  # fmt: skip
    say(f"calibrating on {len(validation)} reviews")
    manifest, files = calibrated(draft, files, validation, threads=own.threads)
    return Learned(Satisfaction(manifest, files, own.threads), files, tuning)


def check_parity(net: SatisfactionNet, graph: bytes, folder: Path) -> float:
    """The largest difference of any logit between torch and ONNX over batches and lengths, and as texts are read."""
    opened, reader, worst = session(graph, 1), TokenModel(graph, (folder / TOKENIZER).read_bytes(), 1, TOKENS_MAX), 0.0
    words = " ".join(SAMPLES).split()
    for size in PARITY_BATCHES:
        rng = np.random.default_rng(size)
        texts = [" ".join(rng.choice(words, int(rng.integers(1, 2 * TOKENS_MAX)))) for _ in range(size)]
        inputs = Tokens.of(texts, folder, TOKENS_MAX).padded(np.arange(size))
        with torch.no_grad():
            expected = [one.numpy() for one in net(*inputs)]
        names = ("input_ids", "attention_mask", "token_type_ids")
        fed = {name: one.numpy() for name, one in zip(names, inputs, strict=True)}
        found = opened.run(["recommended", "stars"], fed)
        read = reader.run(texts)
        for name, one, other, said in zip(("recommended", "stars"), found, expected, read.values(), strict=True):
            where = f"satisfaction at batch {size}, {name}"
            worst = max(worst, agree(where, one, other), agree(f"{where}, as texts are read", said, other))
    return worst


def calibrated(
    draft: SatisfactionManifest, files: dict[str, bytes], validation: Reviews, threads: int
) -> tuple[SatisfactionManifest, dict[str, bytes]]:
    """The manifest with blend, temperature, threshold and golden texts, and the files that earn their place."""
    y, stars = validation.recommended, validation.stars
    logits, star_logits = Satisfaction(draft, files, threads).logits(validation.texts)
    parts = [np.array([1])] if ENCODER not in files else [np.array([0]), np.array([0, 1])]  # columns of the logits
    held_out = [_log_losses(_cross_fitted(logits[:, part], y, validation.groups), y) for part in parts]  # each (V,)
    part = parts[0] if len(parts) == 1 or not _clearly_less(held_out[1], held_out[0]) else parts[1]
    beta = baselines.logistic(logits[:, part], y, RIDGE)
    weights = np.zeros(2)
    weights[part] = beta[:-1]
    p = baselines.predict(beta, logits[:, part])
    if 1 not in part:
        files = {name: data for name, data in files.items() if name != NGRAMS}
    known = stars > 0
    temperature = _temperature(star_logits[known], stars[known]) if star_logits is not None and known.any() else None
    metrics = {"auc": auc(p, y), "brier": brier(p, y), "ece": ece(p, y)}
    metrics |= {f"log_loss_of_{len(one)}": float(loss.mean()) for one, loss in zip(parts, held_out, strict=True)}
    final = msgspec.structs.replace(
        draft, ngrams=draft.ngrams if 1 in part else None, encoder_weight=float(weights[0]), ngrams_weight=float(weights[1]),
        constant=float(beta[-1]), stars_temperature=temperature, recommended_from=best_threshold(p, y), metrics=metrics,
    )  # fmt: skip
    said = Satisfaction(final, files, threads).read(GOLDEN).p_recommended
    return msgspec.structs.replace(final, golden=dict(zip(GOLDEN, said.tolist(), strict=True))), files


def _cross_fitted(logits: Float32, y: FloatArray, groups: list[str]) -> Doubles:
    """(V,): each review's probability from a blend that saw no review of its fold."""
    fold = np.array([int(hashlib.sha256(one.encode()).hexdigest(), 16) % FOLDS for one in groups])
    if len(set(groups)) < FOLDS:  # a single category is held out
        fold = np.arange(len(groups)) % FOLDS
    p = np.zeros(len(y))
    for one in np.unique(fold):
        beta = baselines.logistic(logits[fold != one], y[fold != one], RIDGE)
        p[fold == one] = baselines.predict(beta, logits[fold == one])
    return p


def _log_losses(p: Doubles, y: FloatArray) -> Doubles:
    return np.asarray(-np.log(np.where(y > 0, p, 1 - p).clip(1e-12)))


def _clearly_less(losses: Doubles, others: Doubles) -> bool:
    """Whether the mean is less by more than a standard error of the paired difference; else fewer files win. The
    one-standard-error rule: Breiman et al., "Classification and Regression Trees" (1984), section 3.4.3."""
    gain = others - losses
    return bool(gain.mean() > gain.std() / len(gain) ** 0.5)


def _temperature(logits: Float32, stars: npt.NDArray[np.int64]) -> float:
    """By which star logits (V, 5) are divided for the best likelihood of stars (V,)."""

    def loss(temperature: float) -> float:
        scaled = logits / temperature
        of_given = scaled[np.arange(len(stars)), stars - 1]
        return float(np.mean(np.logaddexp.reduce(scaled, axis=1) - of_given))

    return float(min(TEMPERATURES, key=loss))


def f1_minority(said: npt.NDArray[np.bool_], y: FloatArray, minority: bool) -> float:
    """F1 of the rarer answer: 2·hits / (said + there)."""
    hits = float(((said == minority) & ((y > 0) == minority)).sum())
    return 2 * hits / max(1.0, float((said == minority).sum() + ((y > 0) == minority).sum()))


def minority_of(y: FloatArray) -> bool:
    """The rarer answer: True when fewer recommend than not."""
    return bool(np.mean(y) < 0.5)


def best_threshold(p: FloatArray, y: FloatArray) -> float:
    """P(recommended) from which "recommended" is said, for the best F1 of the rarer answer; halfway between two reviews.

    >>> round(best_threshold(np.array([0.2, 0.6, 0.7, 0.9]), np.array([0.0, 0.0, 1.0, 1.0])), 6)
    0.65
    """
    values = np.unique(p)
    cuts = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values
    minority = minority_of(y)
    return float(max(cuts, key=lambda cut: f1_minority(p >= cut, y, minority)))


def publish(settings: Settings, learned: Learned) -> str:
    """Write the model to the registry, signed where this machine holds a key, and load it as a worker would; returns its id.

    Raises `BundleRefused` when what was written is not accepted."""
    content = hashlib.sha256(b"".join(learned.files[name] for name in sorted(learned.files))).hexdigest()[:8]
    own = learned.model.manifest
    manifest = msgspec.structs.replace(
        own, id=f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{own.language}-{content}",
        files={name: FileEntry(sha256=sha256(data), bytes=len(data)) for name, data in sorted(learned.files.items())},
    )  # fmt: skip
    raw = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    files, signer = learned.files | {"manifest.json": raw}, signing.signer(settings.models)
    if signer is not None:
        files[signing.SIGNATURE] = signer.sign(raw)
    model_store.write_files(uri_of(settings.registry, manifest.id), files)
    load(settings.registry, manifest.id, keys=signing.trusted(settings.models) if signer is not None else ())
    return manifest.id
