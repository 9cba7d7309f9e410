"""Histories become examples that never see the future, and training end to end yields a bundle workers take."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from producers.datasets.table import DatasetError
from schemas.catalog import Item
from stream.adapters.models import model_store
from stream.core.ranking.blend import Blend
from stream.core.user.featurize import ALERT_FEATURES
from stream.settings import Models, Settings, Training
from tests.support import bundles
from training import schedule, train
from training.evaluation.comparison import groups
from training.history import snapshot
from training.promotions.trials import Trials
from training.text.texts import Texts

Run = tuple[Settings, snapshot.History, Any, train.Trained]
START_MS = 1_767_225_600_000


def event(number: int, user: str, hours: float, item: str | None, **more: Any) -> dict[str, Any]:
    at = np.datetime64(START_MS + int(hours * 3_600_000), "ms")
    properties = {"product_id": item} if item else {}
    return {"messageId": f"m{number}", "type": "track", "event": "Product Viewed", "userId": user, "tenant": "t",
            "timestamp": f"{at}Z", "properties": properties} | more


def test_a_moment_sees_only_what_came_before() -> None:
    history = snapshot.from_events([event(3, "u", 2, "c"), event(1, "u", 0, "a"), event(2, "u", 1, "b")])
    found = [(one.history.item_ids, one.targets) for one in snapshot.replay(history).moments]
    assert found == [(["a"], ("b",)), (["a", "b"], ("c",))]


def test_lines_of_one_order_are_one_moment() -> None:
    lines = [event(n, "u", 1 + n / 60, f"i{n}", event="Order Completed",
                   properties={"order_id": "o", "products": [{"product_id": f"i{n}"}]}) for n in range(3)]
    history = snapshot.from_events([event(9, "u", 0, "a"), *lines])
    (moment,) = snapshot.replay(history).moments
    assert moment.targets == ("i0", "i1", "i2")
    assert moment.history.item_ids == ["a"]


def test_visits_end_in_a_return_or_are_censored() -> None:
    of_u = [event(1, "u", 0, "a"), event(2, "u", 1, "a"), event(3, "u", 73, "a")]
    history = snapshot.from_events([*of_u, event(4, "v", 97, "a")])
    found = [(one.user, round(one.days, 3), one.censored) for one in snapshot.replay(history).visits]
    assert found == [("u", 3.0, False), ("u", 1.0, True)]


def test_refused_personalization_is_left_out() -> None:
    refused = event(1, "u", 0, "a", context={"consent": {"personalization": False}})
    history = snapshot.from_events([refused, event(2, "v", 1, "b")])
    assert [one.user for one in history.events] == ["v"]


def test_who_refuses_a_profile_had_none_before_and_begins_anew_after_it() -> None:
    """In whatever order the events come; of a device that somebody else used, too, only the refusing user's own goes."""
    no = {"context": {"consent": {"personalization": False}}}
    guest = {"userId": None, "anonymousId": "phone"}
    rows = [event(1, "u", 0, "a"), event(2, "", 1, "b", **guest), event(3, "u", 2, "c", anonymousId="phone"),
            event(4, "u", 3, "d", **no), event(5, "u", 4, "e"), event(6, "v", 0, "f"), event(7, "", 5, "g", **guest)]

    def left(*more: dict[str, Any]) -> list[str]:
        return [one.message_id for one in snapshot.from_events([*more, *rows[::-1]]).events]

    assert left() == ["m6", "m5", "m7"]
    assert left(event(8, "v", 6, "h", anonymousId="phone")) == ["m6", "m2", "m5", "m7", "m8"]


def test_an_empty_history_says_what_to_do() -> None:
    with pytest.raises(snapshot.EmptyHistory, match="name another source"):
        snapshot.from_events([])


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(json.dumps(event(1, "u", 0, "a")) + '\n{"messageId": 1}\n')
    with pytest.raises(ValueError, match=r"events\.jsonl:2 is no Event"):
        snapshot.from_file(path)


def test_events_in_gzip_are_read_and_a_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(event(1, "u", 0, "a")).encode() + b"\n"))
    assert [one.user for one in snapshot.from_file(path).events] == ["u"]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DatasetError, match=r"events\.jsonl\.gz is cut off or damaged"):
        snapshot.from_file(path)


def test_moments_are_what_a_user_touched_at_one_time_in_the_order_of_time() -> None:
    of_u = [event(1, "u", 0, "a"), event(2, "u", 1, "b"), event(3, "u", 2, "c")]
    history = snapshot.from_events([*of_u, event(4, "w", 1, "d")])
    found = snapshot.moments_of(history.events[1:])
    assert found == [
        (START_MS + 3_600_000, "u", ("b",)), (START_MS + 3_600_000, "w", ("d",)), (START_MS + 7_200_000, "u", ("c",)),
    ]  # fmt: skip


def shop(users: int, seed: int) -> snapshot.History:
    """Each user walks round a ring of 20 items, one step a day: what comes next is certain."""
    rng = np.random.default_rng(seed)
    events = [
        event(user * 100 + step, f"u{user}", start * 24 + step * 24 + rng.random(), f"i{(first + step) % 20:02d}")
        for user, (start, first) in enumerate(zip(rng.integers(0, 20, users), rng.integers(0, 20, users), strict=True))
        for step in range(12)
    ]
    items = [Item(item_id=f"i{n:02d}", tenant="t", title=f"item {n}") for n in range(20)]
    return snapshot.from_events(events, items)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    registry = str(tmp_path_factory.mktemp("registry"))
    settings = Settings(models=Models(registry=registry), training=Training(budget_s=120.0))  # epochs end it, not time
    history = shop(150, 1)
    texts = Texts.named("test", history.items, np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32))
    return settings, history, texts, train.train(settings, history, texts, trials={"save them": persuadable()})


def persuadable() -> Trials:
    """800 users, of whom those with the first feature come back because of a message, and only they."""
    rng = np.random.default_rng(0)
    known, told = rng.normal(size=(800, len(ALERT_FEATURES))).astype(np.float32), rng.random(800) < 0.5
    chances = np.where(told & (known[:, 0] > 0), 0.6, 0.2)
    return Trials(known, told, (rng.random(800) < chances).astype(np.float64), np.full(800, 0.5), rng.random(800))


def test_end_to_end_finds_the_planted_order(trained: Run) -> None:
    found = trained[3].comparison
    assert found.models["clickwake"]["ndcg@10"].value > 0.8  # the next item is certain; chance is 0.23
    assert found.ahead["popularity, 30 days"]["ndcg@10"].low > 0


def test_bundle_carries_policies_metrics_and_report(trained: Run) -> None:
    settings, _, _, result = trained
    (manifest,) = model_store.versions(settings.registry)
    assert manifest == result.manifest
    assert (Blend.from_manifest(manifest.blend).shares != Blend.from_manifest({}).shares).any()
    assert manifest.metrics["clickwake_all_ndcg_at_10"] > 0.8
    wanted = {*model_store.BUNDLE_FILES, *model_store.BUNDLE_FILES_LATER, "uplift.onnx", "report/index.html"}
    assert wanted == manifest.files.keys()
    assert model_store.audience_of(settings.registry, manifest).users == 150
    page = (Path(settings.registry) / "bundles" / manifest.model_version / "report" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 2 + len(groups(result.comparison)) and "http" not in page
    assert "Whom messages persuade" in page and manifest.uplift["save them"]["qini_low"] > 0
    assert manifest.metrics["uplift_save_them_qini"] == manifest.uplift["save them"]["qini"]
    bundle = model_store.load(settings.registry, bundles.announcement(settings.registry, manifest))
    some = np.zeros((2, len(ALERT_FEATURES)), dtype=np.float32)
    some[:, 0] = (-1.5, 1.5)
    gains = np.subtract(*bundle.effects(some)["save them"].T)
    assert gains[0] < 0.15 < 0.3 < gains[1]


def test_intervals_are_read_or_refused() -> None:
    assert schedule.seconds("30m") == 1_800
    for wrong in ("6", "h", "-1h", "0h", "6 weeks"):
        with pytest.raises(ValueError, match="for example 6h"):
            schedule.seconds(wrong)


def test_a_too_short_history_is_refused(tmp_path: Path) -> None:
    settings = Settings(models=Models(registry=str(tmp_path)))
    history = snapshot.from_events([event(n, "u", n, "a") for n in range(5)])
    with pytest.raises(snapshot.EmptyHistory, match="at least 50 are needed"):
        train.train(settings, history, Texts.named("test", "a", np.zeros((1, 8), dtype=np.float32)))


def test_an_anonymous_history_belongs_to_whom_it_was_claimed_by_as_in_serving() -> None:
    anonymous = {"userId": None, "anonymousId": "a"}
    history = snapshot.from_events([
        event(1, "u", 0, "x", **anonymous), event(2, "u", 1, "y", anonymousId="a"), event(3, "u", 2, "z", **anonymous),
        event(4, "u", 3, "w", anonymousId="a"),
    ])  # fmt: skip
    found = {(one.user, one.targets): one.history.item_ids for one in snapshot.replay(history).moments}
    assert found["u", ("w",)] == ["x", "y"]  # z came after the claim, and the next one is half an hour and more away
    state = snapshot.replay(history).states["u"]
    assert [touch.item_id for touch in state.history()] == ["x", "y", "z", "w"]  # claimed again by the last event
