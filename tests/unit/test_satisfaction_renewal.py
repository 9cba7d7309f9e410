"""The satisfaction model by the schedule: published where it reads the newest reviews better than the one that is served."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from pathlib import Path

import numpy as np
import pytest

from producers.datasets.table import DatasetError
from stream.adapters.models import satisfaction as serving
from stream.settings import Settings
from tests.support.reviews import planted
from training import schedule
from training.opinions import satisfaction, satisfaction_renewal
from training.opinions.reviews import VALIDATION_SHARE, Reviews, by_place
from training.opinions.satisfaction_renewal import Schedule, by_time, renew

TEXTS = ["很好 满意 推荐", "失望 太差 退货"]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


def said(monkeypatch: pytest.MonkeyPatch, reviews: Reviews) -> None:
    """What customers wrote, in Chinese: no encoder is fine-tuned for it."""
    monkeypatch.setattr(satisfaction_renewal, "stored", lambda settings, tenant: reviews)


def reversed_of(reviews: Reviews) -> Reviews:
    return Reviews(reviews.language, reviews.texts, 1 - reviews.recommended, reviews.stars, reviews.groups)


class LastYear(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> LastYear:
        return cls(2025, 11, 25, tzinfo=UTC)


def silent(_: str) -> None:
    return


def test_a_first_model_has_to_beat_the_share_and_the_same_again_is_kept(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    said(monkeypatch, planted(2_500, seed=1, language="zh"))
    first = renew(settings, "shop", silent)
    assert first.published is not None and first.published == serving.newest(settings.registry, "zh")
    assert 0 < first.ahead.low < first.ahead.value and "none is served" in first.reason and "500 newest" in first.reason
    assert serving.load(settings.registry, first.published).read(TEXTS).recommended.tolist() == [True, False]
    again = renew(settings, "shop", silent)
    assert again.published is None and again.ahead.low <= 0 and again.reason.startswith("not clearly better")
    assert first.published in again.reason and serving.newest(settings.registry, "zh") == first.published


def test_a_served_model_that_reads_wrongly_is_replaced_and_words_without_sense_are_not_published(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    reviews = planted(2_500, seed=2, language="zh")
    mixed = Reviews("zh", reviews.texts, np.random.default_rng(0).permutation(reviews.recommended), reviews.stars,
                    reviews.groups)  # fmt: skip
    said(monkeypatch, mixed)
    assert renew(settings, "shop", silent).published is None and serving.newest(settings.registry, "zh") is None
    train, validation = by_place(reversed_of(by_time(reviews)[0]), VALIDATION_SHARE)
    with monkeypatch.context() as patched:
        patched.setattr(satisfaction, "datetime", LastYear)
        wrong = satisfaction.publish(settings, satisfaction.learn(train, validation, settings, seed=1, say=silent))
    said(monkeypatch, reviews)
    found = renew(settings, "shop", silent)
    assert found.published is not None and found.published > wrong and wrong in found.reason
    assert serving.newest(settings.registry, "zh") == found.published


def test_the_newest_fifth_is_held_out_and_no_item_is_both_learned_from_and_chosen_by() -> None:
    reviews = planted(1_000, seed=3, language="zh")
    earlier, newest = by_time(reviews)
    assert earlier.texts + newest.texts == reviews.texts and len(newest) == 200
    train, validation = by_place(earlier, VALIDATION_SHARE)
    assert len(validation) and not {*train.groups} & {*validation.groups} and len(train) + len(validation) == 800


def test_it_is_due_by_the_newest_model_and_by_the_last_try_and_too_few_reviews_are_said(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said(monkeypatch, planted(200, seed=4, language="zh"))
    with pytest.raises(DatasetError, match=r"too few reviews with words and stars \(200 in zh\): needed are 20 of each"):
        renew(settings, "shop", silent)
    weekly = Schedule(settings, "shop", 7 * 86_400.0)
    assert weekly.due()
    warned: list[str] = []
    monkeypatch.setattr(schedule.log, "warning", lambda event, **more: warned.append(f"{event}: {more['why']}"))
    schedule.renew_satisfaction(weekly)
    assert len(warned) == 1 and "too few reviews" in warned[0] and not weekly.due() and weekly.when_due(silent) is None
    said(monkeypatch, planted(2_500, seed=1, language="zh"))
    published = renew(settings, "shop", silent).published
    assert published is not None and not Schedule(settings, "shop", 86_400.0).due(), "it was made just now"
    assert Schedule(settings, "shop", 1e-6).due()
