"""The released bundle watched on what the sink stored: rolled back when its hit rate or its inputs leave their band, and a
candidate asked again what was asked live."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from schemas import topics
from schemas.topics import Topic
from stream.adapters.database import clickhouse as adapter
from stream.adapters.models import model_store
from stream.adapters.models.onnx import Bundle
from stream.core.ranking.blend import PARTS
from stream.settings import ClickHouse, Models, Settings
from stream.sink.batch import freeze
from stream.sink.consumer import row_functions
from stream.sink.writer import Writer
from tests.support import bundles
from tests.support.bundles import SPACE, TEXT_DIM, Announced, Exported
from tests.support.fakes import DAY_MS, T0_MS, event
from tests.support.histories import drawn_texts, ring_walk
from training.history import live
from training.history.live import Live
from training.release import release, shadow, verdicts, watch
from training.release.compare_bundles import load

HOUR_MS = DAY_MS // 24
USERS = 60
LEARNED = datetime.fromtimestamp((T0_MS - 1) / 1000, UTC)  # until then both bundles have learned
SILENT = dict.fromkeys(PARTS, -60.0)


class Shop:
    """A tenant's tables, two released bundles, and a topic that remembers the release."""

    def __init__(self, settings: Settings, exported: Exported, topic: Announced) -> None:
        self.settings, self.topic = settings, topic
        publish = {"data_to": LEARNED, "data_from": LEARNED}
        self.parent = bundles.publish(settings.registry, exported, **publish).model_version
        self.current = bundles.publish(settings.registry, exported, seed=1, parent=self.parent, **publish).model_version
        for one in (self.parent, self.current):
            release.release(settings, one)
        self._offsets = itertools.count()

    def store(self, topic: Topic, values: list[dict[str, Any]]) -> None:
        records = [
            SimpleNamespace(topic=topic.name("clickwake"), partition=0, offset=next(self._offsets), key=b"t/k",
                            timestamp=T0_MS + 400 * DAY_MS, value=msgspec.json.encode(one), headers=())
            for one in values
        ]  # fmt: skip
        writer = Writer(self.settings.clickhouse, threading.Event())
        assert writer.write(freeze(records, row_functions(self.settings))) == []
        writer.close()

    def recommend(self, version: str, rate: float, each: int = 5, *, day: int = 1, hour: int = 9) -> None:
        """Each user is recommended i1 once a day, and looks at it within the hour on that share of days, else at i2, from
        that day on at that hour."""
        rng = np.random.default_rng(len(version) + round(100 * rate))
        said, done = [], []
        for user, turn in itertools.product(range(USERS), range(each)):
            ts_ms = T0_MS - T0_MS % DAY_MS + (day + turn) * DAY_MS + hour * HOUR_MS + int(rng.integers(HOUR_MS))
            ident = f"{version}-{user}-{turn}"
            said.append(recommendation(ident, f"u{user}", ts_ms, version, "i1"))
            item = "i1" if rng.random() < rate else "i2"
            done.append(event(user=f"u{user}", ts_ms=ts_ms + HOUR_MS // 2, item=item, id=f"e-{ident}", lane="live"))
        self.store(topics.RECOMMENDATIONS, said)
        self.store(topics.EVENTS, done)

    def later(self, days: float = 12.0) -> None:
        """Time goes on, so that every horizon has passed."""
        self.store(topics.EVENTS, [event(user="last", ts_ms=T0_MS + int(days * DAY_MS), id="last", lane="live")])

    def events(self, name: str, from_day: float, count: int = 800) -> None:
        rng = np.random.default_rng(1)
        times = T0_MS + ((from_day + rng.random(count) * 3) * DAY_MS).astype(int)
        self.store(topics.EVENTS, [
            event(user=f"d{n % 40}", ts_ms=int(at), name=name, id=f"{name}-{from_day}-{n}", lane="live")
            for n, at in enumerate(times)])  # fmt: skip


def recommendation(ident: str, user: str, ts_ms: int, version: str, *items: str) -> dict[str, Any]:
    return {"recommendation_id": ident, "tenant": "t", "user_id": user, "as_of_event_id": "m", "model_version": version,
            "as_of_ts": datetime.fromtimestamp(ts_ms / 1000, UTC).isoformat(),
            "items": [{"item_id": item, "score": 1.0, "source": "rules", "reasons": []} for item in items]}


@pytest.fixture
def shop(
    clickhouse: ClickHouse, tmp_path: Any, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Shop]:
    database = clickhouse.model_copy(update={"database": f"watch_{uuid.uuid4().hex[:8]}"})
    settings = Settings(home=tmp_path, models=Models(registry=str(tmp_path / "models")), clickhouse=database)
    adapter.migrate(database, wait_s=10)
    yield Shop(settings, exported, Announced(monkeypatch, settings.registry))
    client = adapter.connect(database, wait_s=10)
    client.command(f"DROP DATABASE {database.database}")
    client.close()


def test_a_hit_rate_below_the_parents_rolls_back_and_the_reason_is_kept(shop: Shop) -> None:
    shop.recommend(shop.parent, 0.5)
    shop.recommend(shop.current, 0.15, day=6)
    shop.later()
    looked = watch.watch(shop.settings, "t", "1h", act=False)
    assert looked.rolled_back_to is None and shop.topic.current is not None
    assert shop.topic.current.model_version == shop.current
    found = watch.watch(shop.settings, "t", "1h")
    assert found.served == {shop.current: 300, shop.parent: 300}
    (why,) = found.left_band
    assert "hit rate within 1h 0." in why and found.difference is not None and found.difference[2] < 0
    assert found.rolled_back_to == shop.parent == shop.topic.current.model_version
    assert "rolled back from" in shop.topic.current.reason
    assert "rolled back: hit rate" in (verdicts.kept(shop.settings.registry, shop.current) or "")


def test_a_hit_rate_within_its_band_stays(shop: Shop) -> None:
    shop.recommend(shop.parent, 0.3)
    shop.recommend(shop.current, 0.31, day=6)
    shop.later()
    found = watch.watch(shop.settings, "t", "1h")
    assert found.left_band == [] and found.rolled_back_to is None
    assert found.hit_rate[shop.current][1] < found.hit_rate[shop.current][0] < found.hit_rate[shop.current][2]


def test_little_is_no_reason(shop: Shop) -> None:
    shop.recommend(shop.parent, 0.5)
    shop.recommend(shop.current, 0.0, each=2, day=6)
    shop.later()
    found = watch.watch(shop.settings, "t", "1h")
    few = f"hit rate: fewer than 200 recommendations of {shop.current} at the hours of the day at which both ran"
    assert found.left_band == [] and few in found.not_judged


def test_bundles_are_compared_at_the_same_hours_with_all_that_ran_before(shop: Shop, exported: Exported) -> None:
    shop.recommend(shop.parent, 0.5)
    shop.recommend(shop.current, 0.15, day=6, hour=15)
    shop.later()
    found = watch.watch(shop.settings, "t", "1h")
    assert found.left_band == [] and found.served == {shop.current: 0, shop.parent: 0}
    learned = {"data_to": LEARNED, "data_from": LEARNED}
    newest = bundles.publish(shop.settings.registry, exported, seed=6, parent=shop.current, **learned).model_version
    release.release(shop.settings, newest)
    shop.recommend(newest, 0.3, day=6)  # at the hour of its grandparent
    found = watch.watch(shop.settings, "t", "1h")
    assert found.before == [shop.current, shop.parent] and found.served == {newest: 300, shop.current: 300}
    assert found.rolled_back_to == shop.current and f"{shop.current} and before reach 0.5" in found.left_band[0]


def test_what_the_registry_has_no_more_of_the_past_is_left_out(shop: Shop, exported: Exported) -> None:
    older = {"data_to": LEARNED, "data_from": LEARNED, "parent": "gone"}
    first = bundles.publish(shop.settings.registry, exported, seed=7, **older).model_version
    newest = bundles.publish(shop.settings.registry, exported, seed=8, **older | {"parent": first}).model_version
    for one in (first, newest):
        release.release(shop.settings, one)
    shop.topic.versions.add("gone")
    shop.later()
    assert watch.watch(shop.settings, "t", "1h").before == [first, "gone"]


@pytest.mark.parametrize("nearer", [True, False])
def test_other_inputs_roll_back_only_to_a_parent_whose_inputs_were_nearer(
    shop: Shop, exported: Exported, nearer: bool
) -> None:
    """The current bundle learned from views; now people search. The parent learned when they searched too, or did not."""
    registry = shop.settings.registry
    parent = bundles.publish(registry, exported, seed=2, data_to=moment(4), data_from=moment(0)).model_version
    newer = bundles.publish(registry, exported, seed=3, parent=parent, data_to=moment(8), data_from=moment(4))
    current = newer.model_version
    for one in (parent, current):
        release.release(shop.settings, one)
    shop.events("Products Searched" if nearer else "Product Viewed", from_day=1)
    shop.events("Product Viewed", from_day=5)
    shop.events("Products Searched", from_day=9)
    found = watch.watch(shop.settings, "t")
    assert found.drift[current]["event"] > 0.25
    if nearer:
        assert found.rolled_back_to == parent and "PSI event" in found.left_band[0]
    else:
        assert found.rolled_back_to is None and any("train again" in line for line in found.not_judged)


def test_of_a_busy_shop_whole_users_are_drawn_over_the_whole_window(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.events("Product Viewed", from_day=1)  # 800 of forty users, in three days
    from_ms, until_ms = T0_MS, T0_MS + 5 * DAY_MS
    with Live(shop.settings, "t") as asked:
        every = asked.inputs(from_ms, until_ms)
        monkeypatch.setattr(live, "EVENTS_MAX", 200)
        some = asked.inputs(from_ms, until_ms)
    assert len(every.names) == 800 and 0 < len(some.names) <= 400
    assert some.ts_ms.max() - some.ts_ms.min() > 2.5 * DAY_MS
    assert Counter(some.users) == {user: count for user, count in Counter(every.users).items() if user in set(some.users)}


def moment(day: int) -> datetime:
    return datetime.fromtimestamp(T0_MS / 1000 + day * 86_400, UTC)


def test_nothing_released_is_said(shop: Shop) -> None:
    shop.topic.current = None
    with pytest.raises(release.NothingReleased, match="nothing to watch"):
        watch.watch(shop.settings, "t")


def test_a_candidate_is_asked_again_what_was_asked_live(shop: Shop, exported: Exported) -> None:
    """Users walk round a ring. The candidate lists what follows, the current bundle what is popular: three items each."""
    history = ring_walk(60)
    narrow = shop.settings.model_copy(update={"personalize": shop.settings.personalize.model_copy(update={
        "recommend_top_n": 2})})  # fmt: skip
    learned = {"data_to": LEARNED, "data_from": LEARNED}
    follows = bundles.publish(narrow.registry, exported, seed=4, blend=SILENT | {"rules": 0.0}, **learned).model_version
    popular = bundles.publish(narrow.registry, exported, seed=5, blend=SILENT | {"popular_60": 0.0}, **learned).model_version
    shop.store(topics.RECOMMENDATIONS, [
        recommendation(f"s{one.message_id}", one.user, one.ts_ms, popular, "i1") for one in history.events])
    known = drawn_texts(history.items.values(), SPACE, TEXT_DIM)
    current, candidate = load(narrow, popular), load(narrow, follows)
    found = shadow.compare(narrow, "t", history, known, current, candidate, "1d")
    assert found.served == follows and 100 < found.n <= shadow.ASKED_MAX
    assert found.ahead[popular]["hr@2"].low > 0.2
    assert shadow.compare(narrow, "t", history, known, current, current, "1d").models[popular]["hr@2"].value < 0.5


def test_what_a_bundle_has_learned_from_is_not_asked(shop: Shop, exported: Exported) -> None:
    history = ring_walk(10)
    bundle: Bundle = load(shop.settings, shop.current)
    known = drawn_texts(history.items.values(), SPACE, TEXT_DIM)
    with pytest.raises(ValueError, match="ask again later"):
        shadow.compare(shop.settings, "t", history, known, bundle, bundle)
    assert model_store.versions(shop.settings.registry)
