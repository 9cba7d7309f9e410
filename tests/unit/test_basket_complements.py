"""What goes with a basket, said as an event once something was put into it: when, what, and the same by a replay."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.outputs import output_id
from stream.core.ranking.counts import ItemCount
from tests.support.fakes import T0_MS, FakeModels, FakeOutputs, event
from tests.unit.test_personalize import Bench

ADDED, REMOVED, ORDERED, VIEWED = "Product Added", "Product Removed", "Order Completed", "Product Viewed"


def shop(marks: dict[str, Any] | None = None, **more: Any) -> Bench:
    """Six items, i0 i2 i4 of one category and i1 i3 i5 of another; each but i5 is followed by the others of lower number
    the more the nearer, and i0 by i5."""
    bench = Bench(FakeModels(), **({"recommend_interval_ms": 5_000} | more))
    bench.items(**(marks or {}))
    index = bench.serving.current.index("t")
    for n in range(5):
        successors = {f"i{other}": float(1 + other) for other in range(n)} or {"i5": 1.0}
        index.set_counts(f"i{n}", 0, ItemCount(successors=successors, ts_ms=T0_MS, rules_ts_ms=T0_MS))
    return bench


def said(bench: Bench) -> list[dict[str, Any]]:
    return bench.outputs.values("complements")


def listed(one: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in one["items"]]


async def test_what_goes_with_the_basket_is_said_with_the_answer_to_what_was_put_into_it() -> None:
    bench = shop()
    await bench.feed(event(item="i4", name=ADDED, id="put"))
    (one,) = said(bench)
    assert one["basket"] == ["i4"] and listed(one) == ["i3", "i2", "i1", "i0"]
    assert one["recommendation_id"] == output_id("complements", "t", "put", "fake-1") and one["as_of_event_id"] == "put"
    assert one["items"][0]["reasons"] == [{"event_id": "put", "item_id": "i4", "share": 1.0}]
    (_, _, record) = next(sent for sent in bench.outputs.sent if sent[0] == "complements")
    assert record.key == b"t/u" and dict(record.headers)["ce_type"] == b"clickwake.complements.v1"
    await bench.feed(event(item="i4", ts_ms=T0_MS + 6_000))
    assert len(bench.outputs.values("recommendations")) == 2 and len(said(bench)) == 1, "nothing was put into it since"


async def test_several_puts_of_an_interval_are_answered_by_one() -> None:
    bench = shop()
    await bench.feed(event(item="i0"))
    await bench.feed(event(item="i2", ts_ms=T0_MS + 1_000, name=ADDED, id="a"))
    await bench.feed(event(item="i4", ts_ms=T0_MS + 2_000, name=ADDED, id="b"))
    assert said(bench) == []
    await bench.feed(event(user="other", item="i0", ts_ms=T0_MS + 5_000))
    (one,) = said(bench)
    assert one["basket"] == ["i2", "i4"] and one["as_of_event_id"] == "b" and not {"i2", "i4"} & set(listed(one))


async def test_while_behind_those_not_answered_wait_for_their_turn() -> None:
    bench = shop(recommend_behind_users_max=1)
    bench.waiting = 1_000
    await bench.feed(*(event(user=user, item="i4", name=ADDED, ts_ms=T0_MS + at) for at, user in enumerate("abc")))
    assert [one["user_id"] for one in said(bench)] == ["c"]
    await bench.personalizer.tick(bench.part, caught_up=True)
    assert sorted(one["user_id"] for one in said(bench)) == ["a", "b", "c"]


async def test_the_rules_of_recommendations_hold() -> None:
    bench = shop({"i3": {"in_stock": False}, "i1": {"blocked": True}}, category_cap=1)
    await bench.feed(event(item="i4", name=ADDED))
    assert listed(said(bench)[0]) == ["i2"], "i3 and i1 are not sold, i0 is of the category of i2"
    bench = shop()
    await bench.feed(event(item="i3", name=ORDERED))
    await bench.feed(event(item="i4", name=ADDED, ts_ms=T0_MS + 6_000))
    assert listed(said(bench)[0]) == ["i2", "i1", "i0"], "i3 was bought before"


async def test_nothing_is_said_of_an_empty_basket_nor_where_nothing_goes_with_it() -> None:
    bench = shop()
    await bench.feed(event(item="i5", name=ADDED), event(user="v", item="unheard of", name=ADDED))
    for user, name in (("w", REMOVED), ("x", ORDERED)):
        out = event(user=user, item="i4", name=name, ts_ms=T0_MS + 1, id=name)
        await bench.feed(event(user=user, item="i4", name=ADDED), out)
    assert len(bench.outputs.values("recommendations")) == 4 and said(bench) == []
    await bench.feed(event(user="w", item="i1", ts_ms=T0_MS + 6_000))
    assert said(bench) == []


async def test_history_says_nothing_and_no_consent_is_no_basket() -> None:
    bench = shop()
    await bench.feed(event(item="i4", name=ADDED, lane="import"), event(item="i4", name=ADDED, lane="repair", id="mended"))
    await bench.feed(event(user="v", item="i4", name=ADDED, context={"consent": {"personalization": False}}))
    assert said(bench) == []
    await bench.feed(event(item="i1", ts_ms=T0_MS + 10))
    assert len(bench.outputs.values("recommendations")) == 1 and said(bench) == []


async def test_consent_withdrawn_before_the_answer_is_due() -> None:
    bench = shop()
    await bench.feed(event(item="i0"))
    await bench.feed(event(item="i4", name=ADDED, ts_ms=T0_MS + 1))
    await bench.feed(event(item="i4", ts_ms=T0_MS + 2, id="no", context={"consent": {"personalization": False}}))
    await bench.feed(event(user="other", item="i0", ts_ms=T0_MS + 9_000))
    assert said(bench) == []


async def test_a_put_that_was_not_answered_before_a_crash_is_answered_after_it() -> None:
    before = shop()
    await before.feed(event(item="i0"))
    await before.feed(event(item="i4", name=ADDED, ts_ms=T0_MS + 1, id="put"))
    await before.close()
    after = shop()
    after.store = before.store
    after.part = after.opened(before.part.counts)
    after.offset = before.offset
    await after.feed(event(user="other", item="i0", ts_ms=T0_MS + 9_000))
    assert said(before) == [] and [one["as_of_event_id"] for one in said(after)] == ["put"]


acts = st.lists(st.tuples(st.sampled_from("uv"), st.sampled_from((ADDED, ADDED, REMOVED, ORDERED, VIEWED)),
                          st.integers(0, 5), st.integers(0, 4_000)), min_size=1, max_size=14)  # fmt: skip


def events_of(acts: Sequence[tuple[str, str, int, int]]) -> list[dict[str, Any]]:
    found, ts_ms = [], T0_MS
    for number, (user, name, item, later_ms) in enumerate(acts):
        ts_ms += later_ms
        found.append(event(user=user, name=name, item=f"i{item}", ts_ms=ts_ms, id=f"m{number}"))
    return found


async def told(events: list[dict[str, Any]], size: int, crash_at: int | None = None) -> list[dict[str, Any]]:
    """What is said of events in batches of a size; all of it, when the worker is lost at a send and begins again."""
    bench = shop()
    batches = [events[at : at + size] for at in range(0, len(events), size)]
    emitted: list[dict[str, Any]] = []
    bench.outputs = bench.personalizer.outputs = FakeOutputs(crash_at)  # type: ignore[assignment]
    try:
        for batch in batches:
            await bench.feed(*batch)
        await bench.personalizer.tick(bench.part, caught_up=False)
    except ConnectionError:
        emitted = said(bench)
        return emitted + await told(events, size)
    return said(bench)


@settings(max_examples=60, deadline=None)
@given(acts, st.integers(1, 5), st.integers(1, 12))
def test_laws(acts: list[tuple[str, str, int, int]], size: int, crash_at: int) -> None:
    events = events_of(acts)
    whole = asyncio.run(told(events, size))
    puts = {one["messageId"]: one["userId"] for one in events if one["event"] == ADDED}
    for one in whole:
        assert puts[one["as_of_event_id"]] == one["user_id"], "said of what was put by this user"
        assert one["basket"] and not set(one["basket"]) & set(listed(one)), "nothing in the basket is said"
    ids = [one["recommendation_id"] for one in whole]
    assert len(set(ids)) == len(ids), "each put is answered once"
    again = asyncio.run(told(events, size, crash_at))
    unique = {one["recommendation_id"]: one for one in again}
    assert unique == {one["recommendation_id"]: one for one in whole}, "a replay says the same"
    assert [one for one in again if one != unique[one["recommendation_id"]]] == []
