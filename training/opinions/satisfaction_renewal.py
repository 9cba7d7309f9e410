"""A satisfaction model of the shop's own reviews, by the schedule: published if it reads the newest ones better.

Reviews are split by time: what was said last is held out, of the rest some items are to choose by. The model that is judged
is the one that is published. It has to be better than the served one of its language, paired by review, with a 95% interval
that excludes 0; where none is served, better than the share of recommendations among the earlier reviews. The served one may
have learned from some of the held-out reviews, which favours keeping it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

from producers.datasets.table import DatasetError
from stream.adapters.models import satisfaction as serving
from stream.adapters.models import signing
from stream.adapters.models.model_store import BundleRefused, RegistryAway
from stream.settings import Settings
from training import checkpoint
from training.evaluation.metrics import FloatArray, Interval, bootstrap
from training.opinions import satisfaction
from training.opinions.reviews import OF_EACH_MIN, VALIDATION_SHARE, Reviews, by_place, rarest, stored, too_few

NEWEST_SHARE = 0.2  # of the reviews, held out
ID_TIME = "%Y%m%dT%H%M%SZ"  # as ids of models begin

Say = Callable[[str], None]


class Renewed(NamedTuple):
    """`published`: the id of the new model, None where the one before stays. `ahead`: how much less its Brier score is."""

    published: str | None
    ahead: Interval
    reason: str


def renew(settings: Settings, tenant: str, say: Say) -> Renewed:
    """Learn, judge, publish or keep. Raises `DatasetError` where reviews are too few, `ClickHouseMissing`, `ParityFailed`,
    `RegistryAway`, `BundleRefused`."""
    earlier, newest = by_time(stored(settings, tenant))
    train, validation = by_place(earlier, VALIDATION_SHARE)
    if min(rarest(part) for part in (train, validation, newest)) < OF_EACH_MIN:
        raise DatasetError(too_few(tenant, earlier.language, len(earlier) + len(newest), OF_EACH_MIN))
    learned = satisfaction.learn(train, validation, settings, seed=settings.training.seed, say=say)
    checkpoint.clear(settings.training_dir)
    known = served(settings, newest.language, say)
    if known is None:
        before, whom = np.full(len(newest), earlier.recommended.mean()), "the share of recommendations, as none is served"
    else:
        before, whom = known.read(newest.texts).p_recommended, known.manifest.id
    ahead = bootstrap(wrong(before, newest) - wrong(learned.model.read(newest.texts).p_recommended, newest))
    said = (f"Brier score {ahead.value:+.4f} ({ahead.low:+.4f} … {ahead.high:+.4f}) below that of {whom}, on "
            f"{len(newest)} newest reviews")  # fmt: skip
    if ahead.low <= 0:
        return Renewed(None, ahead, f"not clearly better: {said}")
    return Renewed(satisfaction.publish(settings, learned), ahead, f"better: {said}")


def by_time(reviews: Reviews) -> tuple[Reviews, Reviews]:
    """(earlier, newest) of reviews in the order of time."""
    at = np.arange(len(reviews))
    first = len(reviews) - round(NEWEST_SHARE * len(reviews))
    return reviews.where(at < first), reviews.where(at >= first)


def wrong(p: FloatArray, reviews: Reviews) -> FloatArray:
    """(U,): of each review the square by which P(recommended) is off."""
    return np.asarray((p - reviews.recommended) ** 2)


def served(settings: Settings, language: str, say: Say) -> serving.Satisfaction | None:
    """The one that workers use; None where there is none, or it cannot be loaded, which is said. Raises `RegistryAway`."""
    ident = serving.newest(settings.registry, language)
    if ident is None:
        return None
    try:
        return serving.load(settings.registry, ident, settings.training.threads, signing.trusted(settings.models))
    except RegistryAway:
        raise
    except BundleRefused as error:
        say(f"the served satisfaction model {ident} cannot be loaded: {error}")
        return None


class Schedule:
    """When it is due: `every_s` after the newest model of any language was made, and after it was last tried here."""

    def __init__(self, settings: Settings, tenant: str, every_s: float) -> None:
        self._settings, self._tenant, self._every_s = settings, tenant, every_s
        self._tried_s = 0.0  # since 1970

    def due(self) -> bool:
        """Raises `RegistryAway`."""
        made = [datetime.strptime(ident[:16], ID_TIME).replace(tzinfo=UTC).timestamp()
                for ident in serving.newest_of_each(self._settings.registry).values()]  # fmt: skip
        return time.time() - max(self._tried_s, *made, 0.0) >= self._every_s

    def when_due(self, say: Say) -> Renewed | None:
        """None when it is not. Raises as `renew`."""
        if not self.due():
            return None
        self._tried_s = time.time()
        return renew(self._settings, self._tenant, say)
