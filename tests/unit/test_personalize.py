"""The protocol of a partition on fakes: what is said, what is written, and what a crash leaves behind."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from schemas import topics
from schemas.catalog import Item, ItemVector
from stream.core import terms
from stream.core.ranking.counts import CountsPolicy, ItemCount, PartitionCounts
from stream.core.survival.churn import EDGES_DAYS
from stream.core.terms import CLAIM_KEY, term_of
from stream.core.user.featurize import ALERT_FEATURES, alert_features
from stream.partition import META_KEY, PartitionState, unpack
from stream.personalize import Input, Personalizer, Superseded
from stream.segments import SegmentDesk
from stream.serving import ServingState
from stream.settings import Personalize
from tests.support.fakes import (
    DAY_MS,
    T0_MS,
    FakeClock,
    FakeErasures,
    FakeFence,
    FakeModels,
    FakeOutputs,
    FakeRecord,
    FakeStore,
    event,
    run_inline,
)

EVENTS = Input("clickwake.events.v1", "topic-1", topics.EVENTS)
IDENTITY = Input("clickwake.identity.v1", "topic-2", topics.IDENTITY)


EDGES = np.arange(len(EDGES_DAYS))


class Bench:
    """One partition that owns every key, with its fakes."""

    def __init__(self, models: FakeModels | None = None, store: FakeStore | None = None, rules: Path | None = None,
                 **settings: Any) -> None:  # fmt: skip
        self.store = store or FakeStore()
        self.outputs = FakeOutputs()
        self.clock = FakeClock()
        self.serving = ServingState()
        if models:
            self.serving.current = self.serving.prepare(models)
        self.fence, self.erasures = FakeFence(), FakeErasures()
        self.personalizer = Personalizer(
            Personalize(**settings), self.serving, self.outputs, run_inline, self.clock, lambda key: 0, self.fence,
            self.erasures, SegmentDesk(run_inline, rules or Path("no such file"), 300),
        )
        self.part = self.opened(PartitionCounts(CountsPolicy()))
        self.offset = -1
        self.waiting = 0  # records in the log behind each batch
        self.appended_ms = T0_MS + 400 * DAY_MS

    def opened(self, counts: PartitionCounts) -> PartitionState:
        return PartitionState(0, self.store, counts, 100, self.personalizer.settings.recommend_interval_ms)

    def items(self, count: int = 6, **marks: Any) -> None:
        for n in range(count):
            vector = np.zeros(4, dtype="<f4")
            vector[n % 4] = 1.0
            item = Item(item_id=f"i{n}", tenant="t", title=f"item {n}", category=f"c{n % 2}", **marks.get(f"i{n}", {}))
            value = ItemVector(space="s", content_hash=str(n), vector=vector.tobytes(), item=item)
            told = self.serving.on_vector(f"s/t/i{n}".encode(), msgspec.msgpack.encode(value))
            assert told is not None
            self.serving.current.put_items([told])

    async def feed(self, *events: dict[str, Any] | bytes, source: Input = EVENTS) -> None:
        records = []
        for one in events:
            self.offset += 1
            value = one if isinstance(one, bytes) else msgspec.json.encode(one)
            records.append(FakeRecord(b"t/u", value, self.offset, self.appended_ms))
        await self.personalizer.process(self.part, source, records, self.waiting)

    async def close(self) -> None:
        await self.personalizer.close_interval(self.part)


async def test_a_live_event_gives_a_recommendation_with_its_reason() -> None:
    bench = Bench(FakeModels())
    bench.items()
    await bench.feed(event(item="i1"))
    (said,) = bench.outputs.values("recommendations")
    assert said["as_of_event_id"] == "u-1750000000000-i1" and said["model_version"] == "fake-1"
    assert said["items"][0]["item_id"] in {"i1", "i5"}  # the same vector
    assert said["items"][0]["reasons"][0]["event_id"] == "u-1750000000000-i1"


async def test_recommendations_keep_the_interval_and_the_catalog_rules() -> None:
    bench = Bench(FakeModels(), recommend_interval_ms=5_000, category_cap=2)
    bench.items(i0={"in_stock": False}, i2={"blocked": True}, i4={"pinned": True})
    await bench.feed(event(item="i1"))
    await bench.feed(event(item="i1", ts_ms=T0_MS + 4_999))
    await bench.feed(event(item="i3", ts_ms=T0_MS + 5_000, name="Order Completed"))
    first, second = bench.outputs.values("recommendations")
    listed = [item["item_id"] for item in second["items"]]
    assert listed[0] == "i4" and not {"i0", "i2", "i3"} & set(listed)
    assert len([i for i in [item["item_id"] for item in first["items"]] if i in {"i1", "i3", "i5"}]) == 2


async def test_the_last_event_of_an_interval_is_answered_at_its_end_even_in_silence_and_after_a_restart() -> None:
    bench = Bench(FakeModels(), recommend_interval_ms=5_000)
    bench.items()
    await bench.feed(event(item="i1"), event(item="i1", ts_ms=T0_MS + 1_000))
    await bench.feed(event(item="i2", ts_ms=T0_MS + 2_000))
    await bench.feed(event(item="i3", ts_ms=T0_MS + 3_000))
    await bench.close()
    bench.part = bench.opened(bench.part.counts)
    await bench.personalizer.tick(bench.part, caught_up=True)
    bench.clock.at_ms += 2_999
    await bench.personalizer.tick(bench.part, caught_up=True)
    assert [said["as_of_event_id"][-2:] for said in bench.outputs.values("recommendations")] == ["i1"]
    bench.clock.at_ms += 1
    await bench.personalizer.tick(bench.part, caught_up=True)
    bench.clock.at_ms += 60_000
    await bench.personalizer.tick(bench.part, caught_up=True)
    assert [said["as_of_event_id"][-2:] for said in bench.outputs.values("recommendations")] == ["i1", "i3"]


async def test_under_load_those_seen_last_come_first_and_nobody_is_forgotten() -> None:
    bench = Bench(FakeModels(), recommend_users_max=2)
    bench.items()
    await bench.feed(*(event(user=f"u{n}", ts_ms=T0_MS + n) for n in range(5)))
    assert [said["user_id"] for said in bench.outputs.values("recommendations")] == ["u4", "u3"]
    await bench.personalizer.tick(bench.part, caught_up=True)
    await bench.personalizer.tick(bench.part, caught_up=True)
    await bench.personalizer.tick(bench.part, caught_up=True)
    assert [said["user_id"] for said in bench.outputs.values("recommendations")] == ["u4", "u3", "u2", "u1", "u0"]


async def test_while_many_records_wait_folding_goes_first_and_a_few_are_answered_without_explanations() -> None:
    bench = Bench(FakeModels(), behind_records_min=100, recommend_behind_users_max=1)
    bench.items()
    bench.waiting = 100
    await bench.feed(*(event(user=f"u{n}", ts_ms=T0_MS + n) for n in range(3)))
    (said,) = bench.outputs.values("recommendations")
    assert (said["user_id"], said["degraded"], said["items"][0]["reasons"]) == ("u2", "explanations", [])
    await bench.personalizer.tick(bench.part, caught_up=True)
    assert [(said["user_id"], said["degraded"]) for said in bench.outputs.values("recommendations")] == [
        ("u2", "explanations"), ("u1", None), ("u0", None),
    ]  # fmt: skip


async def test_a_shop_without_a_catalog_is_recommended_what_its_events_name() -> None:
    bench = Bench()
    await bench.feed(event(item="seen"), event(user="mute", item=None))
    first, second = bench.outputs.values("recommendations")
    assert {first["user_id"]: first["items"][0]["item_id"], second["user_id"]: second["items"][0]["item_id"]} == {
        "u": "seen", "mute": "seen",
    }  # fmt: skip
    empty = Bench()
    await empty.feed(event(item=None))
    (said,) = empty.outputs.values("recommendations")
    assert said["items"] == [] and said["degraded"] == "no_items"


async def test_without_a_model_counts_answer_and_say_so() -> None:
    bench = Bench()
    bench.items()
    await bench.feed(event(item="i1"))
    assert bench.outputs.values("recommendations")[0]["degraded"] == "counts_only"


async def test_bad_records_become_dead_letters_and_neighbours_are_not_harmed() -> None:
    bench = Bench(FakeModels())
    bench.items()
    await bench.feed(b"{", event(item="i1"), event(ts_ms=1), event(userId=None), event(properties={"product_id": 5}))
    letters = bench.outputs.values("dead-letters")
    assert [letter["failure"]["messages"][0]["path"] for letter in letters] == [
        "",
        "timestamp",
        "userId",
        "properties.product_id",
    ]
    assert bench.part.outcomes["rejected"] == 4 and bench.part.outcomes["folded"] == 1


@pytest.mark.parametrize("more", [{"ts_ms": 1}, {"properties": {"product_id": 5}}, {"traits": "\ud800"}])
async def test_of_who_refuses_analytics_a_dead_letter_says_the_reason_alone(more: dict[str, Any]) -> None:
    bench = Bench()
    said = {"anonymousId": "raw-device", "context": {"consent": {"analytics": False}}} | more
    raw = json.dumps(event(user="raw-user", **said), ensure_ascii=False).encode("utf-8", "surrogatepass")
    await bench.feed(raw, event(ts_ms=1))
    withheld, kept = bench.outputs.values("dead-letters")
    assert (withheld["payload"], withheld["payload_bytes"], withheld["tenant"]) == ("", 0, "t") and kept["payload"]
    assert b"raw" not in msgspec.json.encode(withheld) and withheld["failure"]["messages"]
    assert [one.key for topic, _, one in bench.outputs.sent if topic == "dead-letters"] == [b"t/", b"t/u"]


async def test_every_input_is_accounted_for() -> None:
    bench = Bench(FakeModels())
    twice = event(item="i1")
    refused = event(user="w", item="i2", id="x", context={"consent": {"personalization": False}})
    late = event(item="i3", ts_ms=T0_MS - 30 * DAY_MS)
    await bench.feed(twice, twice, refused, late, b"null")
    assert dict(bench.part.outcomes) == {
        "folded": 1, "duplicate": 1, "dropped:no_consent": 1, "late": 1, "rejected": 1, "recommended": 1,
    }  # fmt: skip


async def test_a_crash_before_the_interval_closes_changes_nothing_and_replay_gives_the_same_ids() -> None:
    bench = Bench(FakeModels())
    bench.items()
    inputs = [event(item=f"i{n % 5}", ts_ms=T0_MS + n * 10_000) for n in range(10)]
    await bench.feed(*inputs)
    before = {value["recommendation_id"] for value in bench.outputs.values("recommendations")}
    assert bench.store.values == {}
    again = Bench(FakeModels(), store=bench.store)
    again.items()
    await again.feed(*inputs)
    await again.close()
    assert {value["recommendation_id"] for value in again.outputs.values("recommendations")} == before
    assert unpack(again.store.values[b"t/u"]).events == 10


@pytest.mark.parametrize("fail_at", [1, 2, 3])
async def test_a_crash_at_every_send_then_replay_equals_an_undisturbed_run(fail_at: int) -> None:
    inputs = [event(user=f"u{n % 3}", item=f"i{n % 5}", ts_ms=T0_MS + n * 10_000) for n in range(30)]
    undisturbed = Bench(FakeModels())
    undisturbed.items()
    await undisturbed.feed(*inputs)
    await undisturbed.close()
    crashed = Bench(FakeModels())
    crashed.items()
    crashed.outputs.fail_at = fail_at
    with pytest.raises(ConnectionError):
        await crashed.feed(*inputs)
        await crashed.close()
    again = Bench(FakeModels(), store=crashed.store)
    for entity, _, record in crashed.outputs.sent:
        if entity == "item-counts":
            again.serving.on_count(record.key, record.value)
    again.part = again.opened(PartitionCounts(CountsPolicy(), again.serving.counts_of(0)))
    again.items()
    await again.feed(*inputs)
    await again.close()
    assert again.store.values == undisturbed.store.values
    assert again.part.counts.counts == undisturbed.part.counts.counts


async def test_ids_that_a_client_makes_up_are_counted_up_to_a_bound_and_the_catalogs_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stream.core.ranking.counts.UNLISTED_MAX", 3)
    bench = Bench(FakeModels())
    bench.items(4)
    listed = {f"t/i{n}" for n in range(4)}
    bench.part = bench.opened(PartitionCounts(CountsPolicy(), None, bench.serving.lists))
    with capture_logs() as logs:
        await bench.feed(*(event(user=f"u{n}", item=f"made up {n}") for n in range(20)))
        await bench.feed(*(event(user="u", item=f"i{n}", ts_ms=T0_MS + n) for n in range(4)))
    counted = listed | {f"t/made up {n}" for n in range(3)}
    assert bench.part.counts.counts.keys() == counted and bench.part.outcomes["uncounted"] == 17
    (warning,) = [one for one in logs if one["event"] == "items are left out of the counts"]
    assert (warning["tenant"], warning["item"]) == ("t", "made up 3")
    await bench.close()
    for entity, _, record in bench.outputs.sent:
        if entity == "item-counts":
            bench.serving.on_count(record.key, record.value)
    bench.part = bench.opened(PartitionCounts(CountsPolicy(), bench.serving.counts_of(0), bench.serving.lists))
    await bench.feed(event(user="v", item="made up 30"), event(user="v", item="made up 1", ts_ms=T0_MS + 1))
    assert bench.part.counts.counts.keys() == counted, "whoever takes over goes by the same bound"
    assert bench.part.counts.counts["t/made up 1"].popularity > 1.9


async def test_who_pushes_items_by_many_events_gets_only_the_catalogs_into_lists_and_a_blocked_one_out_at_once() -> None:
    bench = Bench()
    bench.items()

    async def shown(ts_ms: int) -> list[str]:
        await bench.close()
        for entity, _, record in bench.outputs.sent:
            if entity == "item-counts":
                bench.serving.on_count(record.key, record.value)
        bench.serving.take_counts()
        await bench.feed(event(user="visitor", item=None, ts_ms=ts_ms))
        return [one["item_id"] for one in bench.outputs.values("recommendations")[-1]["items"]]

    pushed = [event(user="bot", item=("made up", "i5")[n % 2], ts_ms=T0_MS + n) for n in range(200)]
    await bench.feed(*pushed, event(user="buyer", item="i2", ts_ms=T0_MS + 300))
    listed = await shown(T0_MS + 10_000)
    assert listed[0] == "i5" and "made up" not in listed and bench.part.counts.counts["t/made up"].popularity > 50
    bench.items(i5={"blocked": True})
    assert "i5" not in await shown(T0_MS + 20_000)


async def test_what_due_times_are_by_is_kept_only_once_everybody_has_theirs() -> None:
    bench = Bench(FakeModels())
    await bench.feed(event())
    bench.part.swept = "v"
    await bench.close()
    assert bench.opened(PartitionCounts(CountsPolicy())).swept == "v"
    await bench.feed(event(ts_ms=T0_MS + 1))
    bench.part.unscheduled[b"t/left over"] = "live"
    bench.serving.current = ServingState().current
    await bench.close()
    assert bench.opened(PartitionCounts(CountsPolicy())).swept == ""


async def test_an_offset_already_folded_is_skipped_and_a_recreated_topic_is_not() -> None:
    bench = Bench(FakeModels())
    await bench.feed(event(item="i1"))
    await bench.close()
    bench.offset = -1
    await bench.feed(event(item="i2"))
    assert bench.part.outcomes["replayed"] == 1
    bench.offset = -1
    await bench.feed(event(item="i2"), source=Input(EVENTS.topic, "another-id", topics.EVENTS))
    assert bench.part.outcomes["folded"] == 2


async def test_what_stands_in_a_changelog_that_was_made_again_counts_nothing_as_folded() -> None:
    bench = Bench(FakeModels())
    for changelog in ("of a version that did not say", "a changelog", "a changelog"):
        bench.part.kept_in("" if " of" in changelog else changelog)
    await bench.feed(event(item="i1"))
    await bench.close()
    bench.part = bench.opened(bench.part.counts)
    bench.part.kept_in("a changelog")
    assert bench.part.folded(EVENTS.topic) == 0
    bench.part.kept_in("another")
    assert bench.part.folded(EVENTS.topic) == -1 and bench.part.meta.accounts.first == -1
    bench.offset = -1
    await bench.feed(event(item="i1"), event(item="i2"))
    assert bench.part.outcomes["duplicate"] == 1 and bench.part.outcomes["folded"] == 1
    assert bench.part.unaccounted(EVENTS.topic) == 0


async def test_records_left_out_that_came_later_than_what_was_folded_are_told_from_a_second_reading() -> None:
    bench = Bench(FakeModels())
    await bench.feed(event(item="i1"), event(item="i2", ts_ms=T0_MS + 1))
    at_ms = T0_MS + 400 * DAY_MS
    first, later = FakeRecord(b"t/u", b"", 0, at_ms), FakeRecord(b"t/u", b"", 1, at_ms + 1)
    assert not bench.part.given_again(EVENTS.topic, [first, later._replace(timestamp=at_ms), later._replace(offset=2)])
    assert bench.part.given_again(EVENTS.topic, [first, later])
    assert not bench.part.given_again("another", [first, later])


async def test_silence_raises_an_alert_in_event_time_and_a_return_clears_it() -> None:
    bench = Bench(FakeModels(hazard_per_day=0.02))  # P(no return in 14 days) = 0.756: never due …
    await bench.feed(event())
    await bench.close()
    assert unpack(bench.store.values[b"t/u"]).due_ts_ms == 0
    bench = Bench(FakeModels(hazard_per_day=0.01))  # … and 0.869: due at once
    await bench.feed(event())
    await bench.close()
    await bench.feed(event(user="other", ts_ms=T0_MS + 60_000))
    (raised,) = bench.outputs.values("churn-alerts")
    assert raised["state"] == "raised" and raised["user_id"] == "u" and raised["interval"][0] < 0.869 < raised["interval"][1]
    bench.serving.current.models = FakeModels(hazard_per_day=1.0)
    await bench.feed(event(ts_ms=T0_MS + 120_000))
    await bench.close()
    assert [alert["state"] for alert in bench.outputs.values("churn-alerts")] == ["raised", "cleared"]


def back_within_a_day(features: Any) -> Any:
    """Survival (B, E) of users who come back within a day, or not for long."""
    return np.tile(np.minimum(EDGES, 1).astype(np.float32) * -2.0 - 1e-4 * EDGES.astype(np.float32), (len(features), 1))


@pytest.mark.parametrize("since", ["a look at everybody anew", "an event of the past"])
async def test_an_alert_that_was_said_of_imported_history_is_taken_back_however_often_it_is_looked_at(since: str) -> None:
    models = FakeModels()
    models.survival = back_within_a_day  # type: ignore[method-assign]
    bench = Bench(models)
    await bench.feed(event(ts_ms=T0_MS - DAY_MS // 2, lane="import"))
    await bench.close()
    await bench.feed(event(user="other"))
    await bench.feed(event(user="other", ts_ms=T0_MS + 3 * DAY_MS))
    (raised,) = [alert for alert in bench.outputs.values("churn-alerts") if alert["user_id"] == "u"]
    await bench.close()
    if since == "an event of the past":
        await bench.feed(event(ts_ms=T0_MS - DAY_MS, lane="import"))
    else:
        bench.part.refresh([b"t/u"])  # at every start, and with every release
    await bench.close()
    await bench.feed(event(ts_ms=T0_MS + 4 * DAY_MS))
    await bench.close()
    said = [alert["state"] for alert in bench.outputs.values("churn-alerts") if alert["user_id"] == "u"]
    assert raised["state"] == "raised" and said == ["raised", "cleared"]


async def test_an_alert_is_taken_back_under_one_id_wherever_the_interval_ends_that_is_read_again() -> None:
    models = FakeModels()
    models.survival = back_within_a_day  # type: ignore[method-assign]
    first = Bench(models)
    await first.feed(event())
    await first.close()
    await first.feed(event(user="other", ts_ms=T0_MS + 3 * DAY_MS))
    await first.close()
    returns = [event(ts_ms=T0_MS + 3 * DAY_MS + n) for n in (1, 2)]
    await first.feed(returns[0])
    first.outputs.fail_at = first.outputs.sends + 2  # the alert is taken back, and nothing of the interval written
    with pytest.raises(ConnectionError):
        await first.close()
    again = Bench(models, store=first.store)
    again.offset = first.offset - 1
    await again.feed(*returns)
    await again.close()
    said = [alert for bench in (first, again) for alert in bench.outputs.values("churn-alerts") if alert["user_id"] == "u"]
    assert [alert["state"] for alert in said] == ["raised", "cleared", "cleared"]
    assert len({alert["alert_id"] for alert in said}) == 2


async def test_a_raised_alert_carries_what_a_message_is_decided_by_and_learned_from() -> None:
    models = FakeModels(hazard_per_day=0.1)
    models.manifest = msgspec.structs.replace(models.manifest, uplift={"save them": {}})
    asked: list[Any] = []
    effects = models.effects
    models.effects = lambda features: asked.append(features) or effects(features)  # type: ignore[method-assign]
    models.survival = back_within_a_day  # type: ignore[method-assign]
    bench = Bench(models)
    await bench.feed(event())
    await bench.close()
    state = unpack(bench.store.values[b"t/u"])
    await bench.feed(event(user="other", ts_ms=T0_MS + 20 * DAY_MS))
    (raised,) = bench.outputs.values("churn-alerts")
    known = alert_features(state, state.due_ts_ms)
    assert raised["features"] == known.tolist() == asked[0][0].tolist() and raised["effects"] == {"save them": [0.5, 0.25]}
    assert known[ALERT_FEATURES.index("log_silence_days")] == pytest.approx(np.log1p((state.due_ts_ms - T0_MS) / DAY_MS))
    await bench.feed(event(ts_ms=T0_MS + 20 * DAY_MS + 1_000))
    await bench.close()
    cleared = bench.outputs.values("churn-alerts")[-1]
    assert cleared["state"] == "cleared" and cleared["features"] == [] and cleared["effects"] == {}


async def test_after_a_rush_due_times_are_set_in_steps_and_nobody_is_alerted_before_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stream.due.DUE_USERS_MAX", 2)
    bench = Bench(FakeModels(hazard_per_day=0.01))  # due at once
    await bench.feed(*(event(user=f"u{n}", ts_ms=T0_MS + n) for n in range(5)))
    raised: list[int] = []
    for _ in range(4):
        await bench.close()
        await bench.personalizer.tick(bench.part, caught_up=True)
        raised.append(len(bench.outputs.values("churn-alerts")))
    assert raised == [2, 4, 5, 5] and not bench.part.unscheduled
    assert len({alert["user_id"] for alert in bench.outputs.values("churn-alerts")}) == 5


async def test_counts_are_decoded_when_they_are_taken_the_newest_of_each_item_only() -> None:
    bench = Bench(FakeModels())
    bench.items()
    for weight in (1.0, 7.0):
        count = ItemCount(popularity=weight, ts_ms=T0_MS, successors={"i2": weight}, rules_ts_ms=T0_MS, offset=int(weight))
        bench.serving.on_count(b"3/t/i1", msgspec.msgpack.encode(count))
    index = bench.serving.current.index("t")
    assert index.popularity(T0_MS).max() == 0.0
    bench.serving.take_counts()
    assert index.popularity(T0_MS)[:, 1].argmax() == index.row_of["i1"]
    assert index.successors(index.row_of["i1"])[0].tolist() == [index.row_of["i2"]]
    assert bench.serving.counts_of(3)["t/i1"].offset == 7


async def test_a_timer_older_than_the_last_event_raises_nothing_and_is_set_anew() -> None:
    bench = Bench(FakeModels(hazard_per_day=0.1))
    bench.serving.current.models.survival = lambda features: np.tile(  # back within a day, or not for long
        np.minimum(EDGES, 1).astype(np.float32) * -2.0 - 1e-4 * EDGES.astype(np.float32), (len(features), 1))
    await bench.feed(event())
    await bench.close()
    due_ms = unpack(bench.store.values[b"t/u"]).due_ts_ms
    assert T0_MS < due_ms <= T0_MS + DAY_MS
    await bench.feed(event(ts_ms=due_ms - 1_000), event(user="new", ts_ms=due_ms - 1_000))
    await bench.personalizer.close_interval(bench.part, waiting=bench.personalizer.settings.behind_records_min)
    assert unpack(bench.store.values[b"t/u"]).due_ts_ms == due_ms  # many records wait: not set anew …
    bench.part = bench.opened(bench.part.counts)
    stored = {key: unpack(bench.store.values[key]).due_ts_ms for key in (b"t/u", b"t/new")}
    bench.part.load_timers(list(stored.items()))
    await bench.feed(event(user="other", ts_ms=due_ms + 1_000))  # … and then the worker was started again
    assert bench.outputs.values("churn-alerts") == []
    assert {bench.part.read(key).due_ts_ms for key in stored} == {due_ms - 1_000 + (due_ms - T0_MS)}


async def test_silence_of_the_whole_partition_raises_by_the_wall_clock_only_when_caught_up() -> None:
    bench = Bench(FakeModels(hazard_per_day=0.01))
    await bench.feed(event())
    await bench.close()
    await bench.personalizer.tick(bench.part, caught_up=False)
    bench.clock.at_ms += 1_000
    assert bench.outputs.values("churn-alerts") == []
    await bench.personalizer.tick(bench.part, caught_up=True)
    assert [alert["state"] for alert in bench.outputs.values("churn-alerts")] == ["raised"]


async def test_importing_history_then_going_live_raises_nothing_and_calls_nothing_late() -> None:
    bench = Bench(FakeModels(hazard_per_day=0.01))
    history = [event(user=f"u{n}", ts_ms=T0_MS - (300 - n) * DAY_MS, lane="import") for n in range(200)]
    await bench.feed(*history)
    await bench.close()
    await bench.feed(event(user="now", ts_ms=T0_MS))
    await bench.close()
    assert bench.outputs.values("churn-alerts") == []
    assert bench.part.outcomes["late"] == 0 and bench.part.outcomes["folded"] == 201


async def test_identify_joins_an_anonymous_history_once_and_for_stragglers() -> None:
    bench = Bench(FakeModels())
    await bench.feed(event(user="a", userId=None, anonymousId="a", item="i1"))
    await bench.feed(event(anonymousId="a", item=None, type="identify", event=None, ts_ms=T0_MS + 1_000))
    for _ in range(2):  # the second time nothing changes
        sent = [record.value for entity, _, record in bench.outputs.sent if entity == "identity" and record.value]
        await bench.feed(*sent, source=IDENTITY)
    assert [touch.item_id for touch in bench.part.read(b"t/u").history()] == ["i1"]
    bench.outputs.sent.clear()
    await bench.feed(event(user="a", userId=None, anonymousId="a", item="i2", ts_ms=T0_MS + 500))
    sent = [record.value for entity, _, record in bench.outputs.sent if entity == "identity" and record.value]
    await bench.feed(*sent, source=IDENTITY)
    assert [touch.item_id for touch in bench.part.read(b"t/u").history()] == ["i1", "i2"]


async def test_the_partition_record_is_the_last_of_the_changelog() -> None:
    bench = Bench(FakeModels())
    await bench.feed(event(user="u1"), event(user="u2"))
    await bench.close()
    log = [record.key for entity, _, record in bench.outputs.sent if entity == "personalize-state"]
    assert log[-1] == META_KEY and set(log[:-1]) == {b"t/u1", b"t/u2"}


async def test_what_an_interval_wrote_before_its_process_was_gone_is_folded_once_and_answered() -> None:
    """One of its two states is in the changelog, the partition's own record is not: both events are read again."""
    bench = Bench(FakeModels(), recommend_interval_ms=5_000)
    bench.items()
    await bench.feed(event(user="a", id="m1"))
    await bench.close()
    interval = [event(user="a", id="m2", ts_ms=T0_MS + 1_000), event(user="b", id="m3", ts_ms=T0_MS + 2_000)]
    await bench.feed(*interval)
    (key, state, carried), *_ = bench.part.frozen()[0]
    assert key == b"t/a"
    again = Bench(FakeModels(), store=bench.store, recommend_interval_ms=5_000)
    again.items()
    again.store.write({key: state}, 2, 0)
    again.store.begun = terms.count([FakeRecord(key, state, 2, 0, carried)]).begun
    again.part, again.offset = again.opened(PartitionCounts(CountsPolicy())), 0
    await again.feed(*interval)
    await again.feed(event(user="c", id="m4", ts_ms=T0_MS + 9_000))
    assert again.part.meta.accounts.ends == {"folded": 4} and not again.part.meta.ahead
    assert {said["as_of_event_id"] for said in again.outputs.values("recommendations")} == {"m2", "m3", "m4"}
    assert again.part.read(b"t/a").events == 2


async def test_an_anonymous_id_whose_owner_is_known_raises_nothing_and_takes_back_what_it_raised() -> None:
    bench = Bench(FakeModels(hazard_per_day=0.01))  # due at once
    await bench.feed(event(user="a", userId=None, anonymousId="a"))
    await bench.close()
    await bench.feed(event(user="other", ts_ms=T0_MS + 1_000))
    assert [(said["user_id"], said["state"]) for said in bench.outputs.values("churn-alerts")] == [("a", "raised")]
    await bench.feed(event(anonymousId="a", item=None, type="identify", event=None, ts_ms=T0_MS + 2_000))
    claims = [record.value for entity, _, record in bench.outputs.sent if entity == "identity" and record.value]
    await bench.feed(*claims, source=IDENTITY)
    await bench.close()
    said = bench.outputs.values("churn-alerts")[-1]
    assert (said["user_id"], said["state"], said["reasons"]) == ("a", "cleared", ["known by another id"])
    assert unpack(bench.store.values[b"t/a"]).due_ts_ms == 0


async def test_what_a_former_owner_wrote_late_is_written_over() -> None:
    """A process that slept in the middle of its write goes on with it when it wakes, though it owns nothing any more."""
    bench = Bench()
    await bench.feed(event(user="a", id="m1"), event(user="b", id="m2"))
    await bench.close()
    state = topics.STATE.entity
    bench.outputs.offsets[state, 0] += 2  # the late records: one of user b, and the partition's own
    bench.fence.foreign = {b"t/b", b"#meta"}
    await bench.feed(event(user="a", id="m3"))
    before = len(bench.outputs.sent)
    await bench.close()
    written = [record.key for topic, _, record in bench.outputs.sent[before:] if topic == state]
    assert written == [b"t/a", b"#meta", b"t/b", b"#meta"]  # the interval, then what must be the last word
    assert bench.fence.asked == [(0, 3, 6)] and bench.store.changelog_offset == bench.outputs.offsets[state, 0]
    await bench.close()
    assert bench.fence.asked == [(0, 3, 6)]


async def test_what_is_written_after_another_worker_claimed_the_partition_is_not_acknowledged() -> None:
    bench = Bench()
    await bench.feed(event(id="m1"))
    bench.outputs.offsets[topics.STATE.entity, 0] = 0  # the claim
    bench.fence.foreign = {CLAIM_KEY}
    with pytest.raises(Superseded, match="partition 0"):
        await bench.personalizer.close_interval(bench.part)
    assert bench.store.values == {} and bench.store.changelog_offset == -1


@pytest.mark.parametrize("comes_back", [False, True])
async def test_who_slept_before_it_said_what_it_decided_says_it_only_if_the_partition_is_still_its_own(
    comes_back: bool,
) -> None:
    bench = Bench(FakeModels())
    bench.items()
    bench.fence.held, bench.fence.comes_back = False, comes_back
    with nullcontext() if comes_back else pytest.raises(Superseded, match="partition 0 went to another worker"):
        await bench.feed(event(id="m1"))
    assert len(bench.outputs.values("recommendations")) == comes_back
    assert bool(bench.part.meta.offsets) == comes_back


async def test_everything_written_carries_the_term_of_the_opening() -> None:
    bench = Bench(store=FakeStore(term=7))
    await bench.feed(event(id="m1"))
    await bench.close()
    written = [record for topic, _, record in bench.outputs.sent if topic in ("personalize-state", "item-counts")]
    assert len(written) == 3 and {term_of(record.headers) for record in written} == {7}


async def test_counts_that_a_former_owner_wrote_late_do_not_count_and_are_published_anew() -> None:
    bench = Bench(store=FakeStore(term=7))
    await bench.feed(event(id="m1"))
    await bench.close()
    serving = bench.personalizer.serving
    true = next(record for topic, _, record in bench.outputs.sent if topic == "item-counts")
    late = msgspec.msgpack.encode(ItemCount(popularity=9.0, offset=0))
    serving.on_count(true.key, true.value, 0, 7)
    serving.on_count(true.key, late, 0, 3)
    assert serving.counts_of(0)["t/i1"].popularity == 1.0
    before = len(bench.outputs.sent)
    await bench.close()
    assert [(record[1], record[2].key, record[2].value) for record in bench.outputs.sent[before:]
            if record[0] == "item-counts"] == [(0, true.key, true.value)]  # fmt: skip


async def test_a_partition_lost_while_it_is_written_leaves_the_store_as_it_was() -> None:
    bench = Bench()
    await bench.feed(event(id="m1"))
    bench.fence.held = False
    assert not await bench.personalizer.close_interval(bench.part)
    assert bench.store.values == {} and bench.store.changelog_offset == -1
