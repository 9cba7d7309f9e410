"""Reminders of purchases: when they are due, what came of them, and that no crash, batch or import shows in what is said."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from math import log1p
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.core.ranking.counts import CountsPolicy, PartitionCounts
from stream.core.survival.reminders import Policy, Rhythms, expected, next_due_ms, say
from stream.core.survival.repurchase import FEATURES, Repurchase
from stream.core.user import identity
from stream.core.user.state import ItemStat, Reminded, Reminders, UserState, count_item
from stream.core.user.state import Touch as Touched
from stream.partition import PartitionState, pack, unpack
from tests.support.fakes import DAY_MS, T0_MS, FakeModels, FakeStore, event
from tests.unit.test_personalize import IDENTITY, Bench

ORDER = "Order Completed"
SURE = Repurchase(weights=(0.0,) * len(FEATURES), constant=0.0, shape=1.0, usual_days=30.0)  # within 14 days: 14 / 15
RHYTHMS = Rhythms(SURE, lambda item: -1.5, lambda item: 30.0, lambda item: "", lambda item: True)


def models(model: Repurchase | None = SURE) -> FakeModels:
    made = FakeModels()  # nobody lapses
    made.manifest = msgspec.structs.replace(made.manifest, repurchase=model.named() if model else {})
    return made


def order(day: float, item: str = "i1", user: str = "u", number: int = 0, **more: Any) -> dict[str, Any]:
    ident = f"{user}-{day}-{item}-{number}"
    return event(user=user, ts_ms=T0_MS + round(day * DAY_MS), name=ORDER, item=item, id=ident, **more)


def view(day: float, user: str = "clock") -> dict[str, Any]:
    """What moves the partition's clock."""
    return event(user=user, ts_ms=T0_MS + round(day * DAY_MS), id=f"{user}-{day}")


def said(bench: Bench) -> list[tuple[str, str, str]]:
    return [(one["user_id"], one["item_id"] or one["category"], one["state"]) for one in bench.outputs.values("reminders")]


def days(one: dict[str, Any], name: str) -> float:
    """Since the beginning."""
    return round((datetime.fromisoformat(one[name]).timestamp() * 1000 - T0_MS) / DAY_MS, 3)


async def fed(bench: Bench, *events: dict[str, Any]) -> None:
    """Each event in an interval of its own."""
    for one in events:
        await bench.feed(one)
        await bench.close()


async def test_a_reminder_is_said_when_its_window_begins_and_closed_by_the_purchase_or_the_windows_end() -> None:
    bench = Bench(models())
    await fed(bench, order(0), order(20), view(37.9))  # by one own interval of 20 days and the average of 30: due after 25
    assert said(bench) == []
    await fed(bench, view(38.1))
    (due,) = bench.outputs.values("reminders")
    assert due["interval_days"] == 25.0 and due["probability"] == pytest.approx(14 / 15, abs=1e-5)
    assert [days(due, one) for one in ("last_bought_ts", "window_from", "window_to", "as_of_ts")] == [20, 38, 52, 38]
    assert due["reasons"][0] == "bought 18.0 days before, usually again after 25.0"
    await fed(bench, order(45))
    bought = bench.outputs.values("reminders")[1]
    assert (bought["state"], bought["reminder_id"], days(bought, "as_of_ts")) == ("bought", due["reminder_id"], 45)
    await fed(bench, view(120), view(121))
    assert [state for _, _, state in said(bench)] == ["due", "bought", "due", "lapsed"]
    last = bench.outputs.values("reminders")[-1]
    assert last["as_of_ts"] == last["window_to"] and last["reminder_id"] != due["reminder_id"]
    assert unpack(bench.store.values[b"t/u"]).next_due_ms() == 0, "of one purchase nobody is reminded twice"


async def test_lines_of_an_invoice_are_one_purchase_and_no_interval() -> None:
    """The same item twice on each of two invoices, a line an event: one interval of 20 days, as if each were one event."""
    one, other = Bench(models()), Bench(models())
    for bench, lines in ((one, (0, 1)), (other, (0,))):
        bought = [order(day + number / 1000, number=number, properties={"product_id": "i1", "order_id": f"o{day}"})
                  for day in (0, 20) for number in lines]  # fmt: skip
        await fed(bench, *bought, view(37.9), view(38.1))
    (due,) = one.outputs.values("reminders")
    assert due["interval_days"] == 25.0 and due["reasons"][1] == "by 1 of their own intervals and the item's average"
    assert due == other.outputs.values("reminders")[0]


async def test_silence_of_everybody_says_it_by_the_wall_clock_and_a_worker_that_starts_anew_too() -> None:
    bench = Bench(models())
    await fed(bench, order(0))
    bench.part = bench.opened(bench.part.counts)
    stored = {key: value for key, value in bench.store.values.items() if key.startswith(b"#due/")}
    bench.part.load_timers([(key[5:], int.from_bytes(value, "big")) for key, value in stored.items()])
    await bench.personalizer.tick(bench.part, caught_up=True)
    bench.clock.at_ms += 23 * DAY_MS - 1
    await bench.personalizer.tick(bench.part, caught_up=True)
    assert said(bench) == []
    bench.clock.at_ms += 1
    await bench.personalizer.tick(bench.part, caught_up=True)
    assert said(bench) == [("u", "i1", "due")]


async def test_imports_and_repairs_say_nothing_by_themselves() -> None:
    bench = Bench(models())
    await fed(bench, *(order(day, user=user, lane="import") for day in (0, 10) for user in ("a", "b")))
    await fed(bench, view(60), view(60.1), view(60.2))
    assert said(bench) == [], "what was due before live began is no news"
    await fed(bench, order(35, item="i9", lane="repair"), event(user="u", ts_ms=T0_MS + 60 * DAY_MS + 999), view(61))
    assert said(bench) == [], "nor is what a repaired event makes due in the past"
    await fed(bench, order(61, user="a"), order(62, user="c", lane="import"), view(120))
    told = {(user, state) for user, _, state in said(bench)}
    assert told == {("a", "due"), ("c", "due"), ("a", "lapsed"), ("c", "lapsed")}


async def test_nobody_is_told_more_than_the_setting_says_the_likeliest_first() -> None:
    lately = msgspec.structs.replace(SURE, constant=100 * log1p(22.8),
                                     weights=tuple(-100.0 * (name == "log_item_silence") for name in FEATURES))  # fmt: skip
    bench = Bench(models(lately), reminders_week_max=2)
    baskets = [order(at / 10, item) for at, item in enumerate("abcd")]
    await fed(bench, *baskets, view(30), view(45))
    due = [item for _, item, state in said(bench) if state == "due"]
    assert due == ["d", "c"]
    none = Bench(models(lately), reminders_week_max=0)
    await fed(none, *baskets, view(30))
    assert said(none) == []
    sure = Bench(models(), reminders_probability_min=0.94)
    await fed(sure, *baskets, view(30))
    assert said(sure) == []


async def test_a_category_of_which_several_items_were_bought_once_has_a_rhythm() -> None:
    bench = Bench(models(msgspec.structs.replace(SURE, constant=-3.0)), reminders_probability_min=0.5)  # one item: .41
    bench.items()
    await fed(bench, order(0, "i0"), order(20, "i2"), view(37), view(39))
    assert said(bench) == [("u", "c0", "due")]
    assert bench.outputs.values("reminders")[0]["reasons"][-1] == "2 items of the category, each bought once"
    await fed(bench, order(40, "i4"))
    assert said(bench)[-1] == ("u", "c0", "bought"), "anything of the category counts"


async def test_what_cannot_be_bought_is_not_reminded_of() -> None:
    bench = Bench(models(), reminders_week_max=9)
    bench.items(i0={"in_stock": False}, i1={"blocked": True})
    await fed(bench, order(0, "i0"), order(0, "i1"), order(0, "i3"), order(0, "no longer in the catalog"), view(30))
    assert said(bench) == [("u", "i3", "due")]


async def test_who_withdraws_consent_or_is_erased_or_known_by_another_id_is_not_told() -> None:
    bench = Bench(models())
    await fed(bench, order(0, user="w"), order(0, user="e"), order(0, user="a", userId=None, anonymousId="a"),
              order(0, user="stays"))  # fmt: skip
    await fed(bench, event(user="w", ts_ms=T0_MS + DAY_MS, context={"consent": {"personalization": False}}))
    await bench.feed(identity.encode(identity.Erase("t", "e")), source=IDENTITY)
    await bench.feed(event(anonymousId="a", item=None, type="identify", event=None, ts_ms=T0_MS + 2 * DAY_MS))
    claims = [record.value for entity, _, record in bench.outputs.sent if entity == "identity" and record.value]
    await bench.feed(*claims, source=IDENTITY)
    await bench.close()
    await fed(bench, view(24))
    assert said(bench) == [("stays", "i1", "due")]


async def test_without_a_learned_rhythm_nothing_is_due_until_a_release_brings_one() -> None:
    bench = Bench(models(None))
    await fed(bench, order(0))
    assert unpack(bench.store.values[b"t/u"]).reminders.due_ts_ms == 0
    bench.serving.current = bench.serving.prepare(models())
    bench.part.refresh([b"t/u"])
    await fed(bench, event(ts_ms=T0_MS + DAY_MS), view(24))
    assert said(bench) == [("u", "i1", "due")]


async def test_what_was_due_when_a_worker_ended_is_said_by_the_next_though_that_looks_at_everybody_anew() -> None:
    bench = Bench(models())
    await bench.feed(order(0), view(24))  # the clock is past the due time before anybody looked at the order
    await bench.close()
    assert said(bench) == [] and bench.store.values[b"t/u"]
    again = Bench(models(), store=bench.store)
    again.part.load_timers([(b"t/u", unpack(bench.store.values[b"t/u"]).next_due_ms())])
    again.part.refresh([b"t/u"])
    await again.close()
    await again.personalizer.tick(again.part, caught_up=True)
    assert said(again) == [("u", "i1", "due")]


async def test_a_partition_of_a_version_without_reminders_says_nothing_of_the_time_before() -> None:
    bench = Bench(models(None))
    await fed(bench, order(0), order(25, "i5", user="v"), view(30))
    bench.part.meta.reminding_since_ms = 0  # as such a version wrote it
    for key in (b"t/u", b"t/v"):
        bench.part.change(key).reminders = Reminders()
    await bench.close()
    again = Bench(models(), store=bench.store)
    assert again.part.meta.reminding_since_ms == T0_MS + 30 * DAY_MS
    again.offset = bench.offset
    await fed(again, view(31, "u"), view(32, "v"), view(50))
    assert said(again) == [("v", "i5", "due")], "of u it was due on the 23rd day"


HISTORY = [order(day, item, user) for day, item, user in (
    (0, "a", "u1"), (1, "a", "u2"), (8, "b", "u1"), (22, "a", "u1"), (23.5, "c", "u3"), (30, "a", "u2"), (31, "b", "u1"),
    (55, "a", "u1"), (60, "c", "u3"), (61, "b", "u4"), (90, "b", "u1"), (130, "c", "u5"),
)]  # fmt: skip


def record_ids(bench: Bench) -> set[tuple[str, str, str]]:
    return {(one["reminder_id"], one["state"], one["as_of_ts"]) for one in bench.outputs.values("reminders")}


async def undisturbed() -> Bench:
    bench = Bench(models())
    await fed(bench, *HISTORY)
    return bench


@pytest.mark.parametrize("fail_at", range(1, 40, 3))
async def test_a_crash_at_any_send_then_a_replay_says_the_same_and_ends_in_the_same_states(fail_at: int) -> None:
    whole = await undisturbed()
    assert Counter(state for _, _, state in said(whole))["due"] > 5
    crashed = Bench(models())
    crashed.outputs.fail_at = fail_at
    with pytest.raises(ConnectionError):
        await fed(crashed, *HISTORY)
    again = Bench(models(), store=crashed.store)
    stored = {key: value for key, value in crashed.store.values.items() if key.startswith(b"#due/")}
    again.part.load_timers([(key[5:], int.from_bytes(value, "big")) for key, value in stored.items()])
    await fed(again, *HISTORY)
    assert record_ids(crashed) | record_ids(again) == record_ids(whole)
    for key in (f"t/u{n}".encode() for n in range(1, 6)):
        assert unpack(again.store.values[key]) == unpack(whole.store.values[key])


@st.composite
def purchases(draw: st.DrawFn) -> list[dict[str, Any]]:
    at, found = 0.0, []
    for _ in range(draw(st.integers(1, 10))):  # nothing is taken from beyond 400 days
        at += draw(st.sampled_from((0.25, 1.0, 3.0, 10.0, 30.0)))
        found.append(order(at, draw(st.sampled_from("ab")), draw(st.sampled_from(("u1", "u2")))))
    return [*found, view(at + 20), view(at + 90)]


@settings(max_examples=60, deadline=None)
@given(purchases(), st.integers(2, 9))
async def test_no_batch_shows_in_what_is_said(events: list[dict[str, Any]], batch: int) -> None:
    """Whether an interval closes after each event or many come at once: the same reminders, at the same times."""
    one, many = Bench(models()), Bench(models())
    await fed(one, *events)
    for start in range(0, len(events), batch):
        await many.feed(*events[start : start + batch])
        await many.close()
    for bench in (one, many):
        await fed(bench, view(395), view(396))
    assert record_ids(one) == record_ids(many)
    for_each: Counter[tuple[str, str]] = Counter((ident, state) for ident, state, _ in record_ids(one))
    assert set(for_each.values()) <= {1}, "each once"
    closed = {ident for ident, state, _ in record_ids(one) if state != "due"}
    over = {said["reminder_id"] for said in one.outputs.values("reminders") if days(said, "window_to") < 395}
    assert over == closed, "something came of each whose window is over"


orders_at = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 200)), min_size=1, max_size=20, unique=True)


@given(orders_at, st.randoms(use_true_random=False))
def test_intervals_do_not_depend_on_the_order_of_events(at: list[tuple[str, int]], draw: Any) -> None:
    def stats(some: list[tuple[str, int]]) -> dict[str, ItemStat]:
        found: dict[str, ItemStat] = {}
        for item, day in some:
            count_item(found, Touched(day * DAY_MS, f"m{day}", item, 6, 0.0))
        return found

    mixed = draw.sample(at, len(at))
    assert stats(at) == stats(mixed)
    for item, stat in stats(at).items():
        times = [day for one, day in at if one == item]
        assert stat.order_span_ms == (max(times) - min(times)) * DAY_MS and stat.orders == len(times)


def test_an_order_from_before_intervals_were_kept_leaves_them_unknown() -> None:
    """A state of 0.3.0 knows how many orders there were, and when the last was; not when the first."""
    old = {"a": msgspec.msgpack.decode(msgspec.msgpack.encode([3, 3, 5, 5]), type=ItemStat)}
    count_item(old, Touched(40 * DAY_MS, "m", "a", 6, 0.0))
    assert (old["a"].orders, old["a"].order_span_ms) == (4, -1)
    (one,) = expected(UserState(items=old, orders=4), RHYTHMS, Policy())
    assert (one.repeats, one.interval_days) == (0, 30.0)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 300)), min_size=1, max_size=12), st.integers(0, 320))
def test_the_next_due_time_is_the_first_window_that_is_not_past(stats: list[tuple[str, int]], past: int) -> None:
    items = {item: ItemStat(1, 1, day * DAY_MS, day * DAY_MS, 0) for item, day in stats}
    state = UserState(items=items, orders=len(items), reminders=Reminders(past_ts_ms=past * DAY_MS))
    starts = [one.from_ms for one in expected(state, RHYTHMS, Policy()) if one.from_ms > past * DAY_MS]
    assert next_due_ms(state, RHYTHMS, Policy()) == min(starts, default=0)


def test_a_full_week_lets_what_is_due_pass() -> None:
    earlier = [Reminded("x", "", 1, 20 * DAY_MS + at, 30 * DAY_MS, 9.0, 0.5, "v", "lapsed") for at in (1, 2)]
    state = UserState(items={"a": ItemStat(1, 1, 0, 0, 0)}, orders=1, order_days=[0], reminders=Reminders(said=earlier))
    due_ms = next_due_ms(msgspec.structs.replace(state, reminders=Reminders()), RHYTHMS, Policy())
    assert due_ms == 23 * DAY_MS
    assert say(state, due_ms, RHYTHMS, Policy(), "v") == [] and state.reminders.past_ts_ms == due_ms + DAY_MS
    assert next_due_ms(state, RHYTHMS, Policy()) == 0
    ((reminded, _),) = say(msgspec.structs.replace(state, reminders=Reminders()), due_ms, RHYTHMS, Policy(), "v")
    assert reminded.probability == pytest.approx(14 / 15, abs=1e-6)


async def test_the_partitions_own_store_survives_without_timers() -> None:
    """A store whose states have due times and which nobody wrote for reminders reads as before."""
    store = FakeStore()
    old = UserState(events=1, due_ts_ms=5)
    store.values[b"t/u"] = pack(old)
    part = PartitionState(0, store, PartitionCounts(CountsPolicy()), 10, 0)
    part.load_timers([(b"t/u", 5)])
    assert part.pop_due(5, 10) == [b"t/u"]
