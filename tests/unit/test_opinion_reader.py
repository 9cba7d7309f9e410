"""Reading opinions: with a model of the language, without one, and with one that is damaged; and how ranking uses them."""

from __future__ import annotations

from pathlib import Path

import fsspec
import msgspec
import numpy as np
import pytest

from clickwake import doctor
from stream.adapters.models.opinion_reader import OpinionReader
from stream.core.opinions.opinions import Said
from stream.core.opinions.satisfaction import Subject
from stream.core.ranking.blend import Blend
from stream.core.ranking.choice import choose
from stream.core.ranking.counts import CountsPolicy, ItemCount
from stream.core.ranking.index import ItemIndex
from stream.core.ranking.recommend import Rules, explain, rank, score, shares_by_source
from stream.core.ranking.why import why
from stream.core.user.featurize import sequence
from stream.core.user.state import UserState
from stream.serving import ServingState
from stream.settings import Models, Settings
from tests.support.reviews import planted
from training.opinions import satisfaction

NOW_MS = 1_800_000_000_000
GOOD, BAD = "质量很好，满意，推荐", "物流太差，失望，退货"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A registry with a small Chinese model."""
    found = Settings(models=Models(registry=str(tmp_path_factory.mktemp("registry"))))
    train, validation = (planted(400, seed=seed, language="zh") for seed in range(2))
    satisfaction.publish(found, satisfaction.learn(train, validation, found, seed=0, say=lambda _: None))
    return found


def said(text: str, stars: float | None = None) -> Said:
    return Said("review", text, stars, "mug", "Clay")


def test_texts_are_read_by_the_model_of_their_language_and_stars_count_more(settings: Settings) -> None:
    reader = OpinionReader(settings)
    reader.refresh()
    good, bad, starred, english, silent = reader.read(
        [said(GOOD), said(BAD), said(BAD, 5.0), said("The fabric is soft and warm"), said("", 2.0)])
    assert good.language == bad.language == "zh" and [good.model_version] == reader.versions
    assert good.satisfaction is not None and bad.satisfaction is not None
    assert good.satisfaction > 0.7 > 0.4 > bad.satisfaction
    assert (starred.satisfaction, starred.p_satisfied) == (1.0, bad.p_satisfied)
    assert [(one.aspect, one.words, one.sentence) for one in bad.aspects] == [
        ("delivery", ("物流",), "物流太差"), ("service", ("退货",), "退货")]
    assert all(one.p_satisfied is not None and one.p_satisfied < 0.5 for one in bad.aspects)
    assert (english.language, english.satisfaction, english.model_version) == ("en", None, "")
    assert {one.aspect for one in english.aspects} == {"quality", "comfort"} and english.aspects[0].p_satisfied is None
    assert (silent.satisfaction, silent.telling, silent.aspects) == (0.25, "", ())
    alone = [reader.read([one])[0] for one in (said(GOOD), said(BAD))]
    assert [one.telling for one in alone] == [good.telling, bad.telling]


def test_a_damaged_model_is_refused_once_and_the_one_before_stays(settings: Settings, tmp_path: Path) -> None:
    reader = OpinionReader(settings)
    reader.refresh()
    before = reader.versions
    newer = Path(settings.registry) / "satisfaction" / "29990101T000000Z-zh-00000000"
    newer.mkdir()
    (newer / "manifest.json").write_bytes(b"{}")
    reader.refresh()
    reader.refresh()
    assert reader.versions == before
    (newer / "manifest.json").unlink()
    newer.rmdir()
    empty = OpinionReader(Settings(models=Models(registry=str(tmp_path))))
    empty.refresh()
    assert empty.versions == [] and empty.read([said(GOOD, 4.0)])[0].satisfaction == 0.75


def test_a_registry_that_is_away_refuses_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in use stays; the model that could not be fetched is taken once the registry is back."""
    def away(*_: object, **__: object) -> None:
        raise ConnectionError("no route to store")

    used, reader = OpinionReader(settings), OpinionReader(settings)
    used.refresh()
    for operation in ("exists", "glob", "cat_file"):
        with monkeypatch.context() as patched:
            patched.setattr(type(fsspec.filesystem("file")), operation, away)
            for one in (used, reader):
                one.refresh()
        assert (len(used.versions), reader.versions) == (1, [])
    reader.refresh()
    assert reader.versions == used.versions


def test_the_doctor_says_which_languages_are_read_and_how_others_come_to_be(settings: Settings, tmp_path: Path) -> None:
    read, none = (doctor._opinions(one) for one in (settings, Settings(models=Models(registry=str(tmp_path)))))
    assert (read.level, none.level) == ("ok", "ok") and "read in zh" in read.found and not read.do
    assert "stars and survey scores alone" in none.found and "--publish` for English" in none.do


# ---- ranking


def shop(weight: float) -> ServingState:
    """Two items alike, of which `bad` is touched a little more, and what people think of them."""
    state = ServingState(weight)
    index = state.current.index("t")
    for item, touches in (("bad", 11.0), ("good", 10.0)):
        index.set_counts(item, 0, ItemCount(touches, NOW_MS, {}, NOW_MS, 1, touches, touches))
    for item, total in (("bad", 8.0), ("good", 36.0)):
        state.on_satisfaction(f"t/item/{item}".encode(), msgspec.msgpack.encode(Subject(n=40, total=total, opinions=40)))
    state.on_satisfaction(b"t/brand/Clay", msgspec.msgpack.encode(Subject(n=80, total=44.0, opinions=80)))
    return state


def order(index: ItemIndex) -> list[str]:
    nobody = UserState()
    scores = score(None, [nobody], [sequence(nobody, NOW_MS, 50)], index, Blend.from_manifest({}), [NOW_MS])[0]
    return [index.ids[row] for row in rank(scores.total, nobody, index, Rules())]


def test_what_people_dislike_goes_down_by_a_setting_and_why_says_so() -> None:
    assert order(shop(0.0).current.index("t")) == ["bad", "good"]
    index = shop(1.0).current.index("t")
    assert order(index) == ["good", "bad"]
    nobody = UserState()
    known = sequence(nobody, NOW_MS, 50)
    scores = score(None, [nobody], [known], index, Blend.from_manifest({}), [NOW_MS])[0]
    choice = choose(scores.total, nobody, index, Rules(), {})
    bad, good = (
        why(row, choice, nobody, index, explain([row], scores, known, None, index)[0], shares_by_source(row, scores), {})
        for row in (index.row_of["bad"], index.row_of["good"])
    )
    assert good.disliked is None and bad.disliked is not None and (bad.place, bad.disliked.place_without) == (2, 1)
    assert (bad.disliked.satisfaction, bad.disliked.opinions) == (0.2, 40)
    # the mean of all is 44/80 = 0.55; shrunk by ten opinions (8 + 5.5) / 50 = 0.27; factor 0.27 / 0.55
    assert bad.disliked.factor == pytest.approx(0.4909, abs=1e-4)
    assert sum(bad.shares.values()) == pytest.approx(1.0, abs=1e-3), "shares still add up"
    np.testing.assert_allclose(scores.by_part([0, 1]).sum(axis=0), scores.total, rtol=1e-5)


def test_an_item_made_after_others_were_rated_keeps_its_score() -> None:
    index = ItemIndex(1, CountsPolicy(), satisfaction_weight=2.0)
    index.set_satisfaction("a", 40, 8.0)
    index.set_satisfaction("b", 40, 36.0)
    assert index.demotion is not None and len(index.demotion) == 2
    index.row("c")
    assert index.demotion is not None and index.demotion.tolist()[1:] == [1.0, 1.0] and index.demotion[0] < 0.5
