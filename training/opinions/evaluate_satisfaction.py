"""How well it reads satisfaction from review text: recommended or not, and stars, of items or categories never learned from.

Women's clothing, and a shop's own reviews: items are split by a hash of their id; ours beside TF-IDF and the frozen text
encoder, each with logistic regression. Chinese reviews: one category left out in turn; ours beside character TF-IDF with
logistic regression. Penalties and thresholds of every model are chosen on the same validation reviews. The served model
answers through its ONNX files.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from stream.adapters.models import model_store
from stream.adapters.models.satisfaction import Satisfaction, median_stars
from training.evaluation import report
from training.evaluation.comparison import Comparison, Measures, Statistic, merged, statistics, under
from training.evaluation.evaluations import Evaluated, Request
from training.evaluation.metrics import FloatArray, auc, brier, ece
from training.evaluation.report import Draw
from training.opinions import satisfaction
from training.opinions.reviews import Reviews, by_item, left_out, read
from training.opinions.satisfaction import Learned, best_threshold, f1_minority, minority_of
from training.opinions.satisfaction_net import Tuning
from training.text import text_encoder

SERVED = "clickwake"
TFIDF_WORDS, TFIDF_CHARACTERS = "TF-IDF of words + logistic regression", "TF-IDF of characters + logistic regression"
FROZEN = "frozen encoder + logistic regression"
STRENGTHS = (1.0, 3.0, 10.0, 30.0)  # inverse ridge penalties of the baselines
P, SAID, STARS = 0, 1, 2  # columns of an answer (U, 3): P(recommended), counted as recommended, number of stars
Answers = npt.NDArray[np.float64]


def measures(minority: bool, stars: bool) -> dict[str, Statistic]:
    """Of answers (U, 3) against the truth (U, 2): recommended or not, and stars."""
    found: dict[str, Statistic] = {
        "auc": lambda found, truth: auc(found[:, P], truth[:, 0]),
        "f1_minority": lambda found, truth: f1_minority(found[:, SAID] > 0, truth[:, 0], minority),
        "accuracy": lambda found, truth: float(np.mean((found[:, P] >= 0.5) == (truth[:, 0] > 0))),
        "brier": lambda found, truth: brier(found[:, P], truth[:, 0]),
        "ece": lambda found, truth: ece(found[:, P], truth[:, 0]),
    }
    if stars:
        found["stars_mae"] = lambda found, truth: float(np.mean(np.abs(found[:, STARS] - truth[:, 1])))
    return found


def truth_of(reviews: Reviews) -> FloatArray:
    """(U, 2): recommended or not, and stars."""
    return np.column_stack([reviews.recommended, reviews.stars])


def served(model: Satisfaction, reviews: Reviews) -> Answers:
    """What a worker would say (U, 3); no stars are 0."""
    said = model.read(reviews.texts)
    stars = np.zeros(len(reviews)) if said.stars is None else median_stars(said.stars)
    return np.column_stack([said.p_recommended, said.recommended, stars])


def linear(x: tuple[Any, Any, Any], train: Reviews, validation: Reviews) -> Answers:
    """A baseline's answers (U, 3): logistic regressions on features of (train, validation, test)."""
    from sklearn.linear_model import LogisticRegression

    y = validation.recommended

    def learned(strength: float) -> Any:
        return LogisticRegression(C=strength, solver="liblinear", random_state=0).fit(x[0], train.recommended)

    def loss(model: Any) -> float:
        return float(np.logaddexp(0.0, -np.where(y > 0, 1.0, -1.0) * model.decision_function(x[1])).mean())

    model = min((learned(strength) for strength in STRENGTHS), key=loss)
    p, cut = model.predict_proba(x[2])[:, 1], best_threshold(model.predict_proba(x[1])[:, 1], y)
    stars = np.zeros(len(p))
    if train.stars.any():
        by_star = LogisticRegression(C=model.C, max_iter=1_000).fit(x[0], train.stars)
        shares = np.zeros((len(p), 5))
        shares[:, by_star.classes_ - 1] = by_star.predict_proba(x[2])
        stars = median_stars(shares)
    return np.column_stack([p, p >= cut, stars])


def by_tfidf(train: Reviews, validation: Reviews, test: Reviews, *, analyzer: str, high: int) -> Answers:
    """Words or characters up to `high` in a row."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer=analyzer, ngram_range=(1, high), sublinear_tf=True, min_df=2)
    x = vectorizer.fit_transform(train.texts), vectorizer.transform(validation.texts), vectorizer.transform(test.texts)
    return linear(x, train, validation)


def by_frozen_encoder(request: Request, train: Reviews, validation: Reviews, test: Reviews) -> Answers:
    """The text encoder of the registry as it is, through its ONNX file."""
    settings = request.settings
    space = text_encoder.export(settings)
    found = model_store.load_text_encoder(settings.registry, space, threads=settings.training.threads)
    assert found is not None, "export has just written it"
    request.say(f"encoding {len(train) + len(validation) + len(test)} reviews with the frozen encoder")
    encode = found[1].encode
    return linear((encode(train.texts), encode(validation.texts), encode(test.texts)), train, validation)


def run(request: Request) -> Evaluated:
    """`clickwake evaluate satisfaction`."""
    if request.split is not None:
        raise ValueError("reviews are split by item or category, never by time: leave the date out")
    reviews: Reviews = request.source(request.settings) if request.source else read(request.dataset, request.path)
    return (_by_category if request.dataset == "chinese-reviews" else _by_item)(request, reviews)


def _by_item(request: Request, reviews: Reviews) -> Evaluated:
    train, validation, test = by_item(reviews)
    own = request.settings.training
    request.say(f"{len(train)} reviews to learn from, {len(validation)} to choose by, {len(test)} to judge by")
    learned = satisfaction.learn(train, validation, request.settings, seed=own.seed, say=request.say)
    request.say("asking the exported model")
    answers = {SERVED: served(learned.model, test)}
    answers[TFIDF_WORDS] = by_tfidf(train, validation, test, analyzer="word", high=2)
    answers[FROZEN] = by_frozen_encoder(request, train, validation, test)
    models, ahead = statistics(answers, truth_of(test), measures(minority_of(train.recommended), stars=True), SERVED)
    items = [len(set(part.groups)) for part in (train, validation, test)]
    found = Comparison(
        task="satisfaction", dataset=request.dataset, n=len(test), models=models, ahead=ahead, served=SERVED,
        split=f"by a hash of the item: {items[0]} items to learn from, {items[1]} to choose by, {items[2]} to judge by",
        settings=_settings(request, learned),
    )  # fmt: skip
    if request.options.get("publish"):
        request.say(f"published {satisfaction.publish(request.settings, learned)}")
    return Evaluated(found, _figures(answers[SERVED][:, P], test.recommended, learned.tuning))


def _by_category(request: Request, reviews: Reviews) -> Evaluated:
    own = request.settings.training
    parts: dict[str, tuple[dict[str, Answers], FloatArray]] = {}
    for category in sorted(set(reviews.groups)):
        train, validation, test = left_out(reviews, category)
        request.say(f"without {category}: {len(train)} reviews to learn from, {len(test)} to judge by")
        learned = satisfaction.learn(train, validation, request.settings, seed=own.seed, say=_silent)
        answers = {SERVED: served(learned.model, test)}
        answers[TFIDF_CHARACTERS] = by_tfidf(train, validation, test, analyzer="char", high=3)
        parts[category] = answers, truth_of(test)
    names = (SERVED, TFIDF_CHARACTERS)
    pooled = {name: np.concatenate([answers[name] for answers, _ in parts.values()]) for name in names}
    truth = np.concatenate([each for _, each in parts.values()])
    wanted = measures(minority_of(truth[:, 0]), stars=False)
    request.say("intervals")
    every: list[tuple[dict[str, Measures], dict[str, Measures]]] = [statistics(pooled, truth, wanted, SERVED)]
    for category, (answers, each) in parts.items():
        some = statistics(answers, each, {name: wanted[name] for name in ("accuracy", "auc")}, SERVED)
        every.append((under(category, some[0]), under(category, some[1])))
    found = Comparison(
        task="satisfaction", dataset=request.dataset, split="one category left out in turn", n=len(truth), served=SERVED,
        models=merged(*(one for one, _ in every)), ahead=merged(*(one for _, one in every)),
        settings={"seed": float(own.seed), "encoder": _encoder(request, reviews.language)},
    )  # fmt: skip
    if request.options.get("publish"):
        train, validation, _ = left_out(reviews, None)
        learned = satisfaction.learn(train, validation, request.settings, seed=own.seed, say=request.say)
        request.say(f"published {satisfaction.publish(request.settings, learned)}")
    return Evaluated(found, _figures(pooled[SERVED][:, P], truth[:, 0], None))


def _silent(_: str) -> None:
    """Eight trainings would say the same eight times."""


def _encoder(request: Request, language: str) -> str:
    folder = satisfaction.encoder_folder(request.settings, language)
    return "none: character n-grams alone" if folder is None else folder.name


def _settings(request: Request, learned: Learned) -> dict[str, float | str]:
    own, manifest = request.settings.training, learned.model.manifest
    tuning = learned.tuning or Tuning()
    found: dict[str, float | str] = {
        "seed": float(own.seed), "encoder": _encoder(request, manifest.language),
        "encoder_weight": manifest.encoder_weight, "ngrams_weight": manifest.ngrams_weight, "constant": manifest.constant,
        "recommended_from": manifest.recommended_from, "epochs_kept": float(tuning.best_epoch),
        "fine_tuning_seconds": tuning.seconds, "fine_tuning_stopped": tuning.stopped,
    }  # fmt: skip
    return found | {f"validation_{name}": value for name, value in manifest.metrics.items()}


def _figures(p: FloatArray, y: FloatArray, tuning: Tuning | None) -> dict[str, Draw]:
    figures: dict[str, Draw] = {"Calibration": lambda figure: report.calibration(figure, p, y, of="a recommendation")}
    if tuning is not None:
        figures["Fine-tuning"] = lambda figure: _loss(figure, tuning)
    return figures


def _loss(figure: Any, tuning: Tuning) -> None:
    axis = figure.subplots()
    axis.plot(tuning.loss, lw=0.5, color="#bbb", label="batch, recommended and stars")
    ends = np.arange(1, len(tuning.validation_loss) + 1) * len(tuning.loss) / max(1, len(tuning.validation_loss))
    axis.plot(ends, tuning.validation_loss, "o-", color="#4a7ebb", label="validation, recommended")
    axis.set_xlabel("step")
    axis.set_ylabel("loss")
    axis.legend()
