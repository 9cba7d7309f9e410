"""The recount of a log that is short enough to be counted by the reader."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import pytest

from stream.settings import Personalize
from tests.support.fakes import DAY_MS, T0_MS, event
from tests.support.recount import REMEMBERED_MAX, NotCounted, Recount, recount

HOUR_MS = 3_600_000
MIDNIGHT_MS = T0_MS - T0_MS % DAY_MS  # of 2025-06-15
ORDER, ADDED = "Order Completed", "Product Added"
REFUSED = {"consent": {"personalization": False}}


class Record(NamedTuple):
    partition: int
    offset: int
    timestamp: int
    value: bytes | None


def log(*events: dict[str, Any] | bytes | None, partition: int = 0) -> list[Record]:
    return [Record(partition, offset, MIDNIGHT_MS + DAY_MS, one if one is None or isinstance(one, bytes) else
                   msgspec.json.encode(one)) for offset, one in enumerate(events)]  # fmt: skip


def at(hour: float, user: str, id: str, **more: Any) -> dict[str, Any]:
    return event(user=user, ts_ms=MIDNIGHT_MS + round(hour * HOUR_MS), id=id, **more)


def count(*events: dict[str, Any] | bytes | None) -> Recount:
    return recount(log(*events), Personalize())


def test_each_record_comes_to_the_end_that_was_written_down_by_hand() -> None:
    first = at(1, "ann", "a1")
    found = count(
        first,                                              # folded
        at(1.5, "bob", "b1", item="i2", name=ORDER),        # folded
        first,                                              # duplicate
        at(1.25, "ann", "a2", item="i2", name=ADDED),       # folded
        at(1.4 - 48, "ann", "a3"),                          # late: 48 h 6 min behind bob
        at(1.6 - 48, "bob", "b2"),                          # folded: 47 h 54 min behind
        at(-900, "ann", "a4", lane="import"),               # folded: what is imported is never late
        at(24.1, "ann", "a5"),                              # rejected: 6 min ahead of the broker
        b"{",                                               # rejected
        None,                                               # dropped: a tombstone
        at(2, "cat", "c1"),                                 # folded
        at(2.1, "cat", "c2", item="i9", context=REFUSED),   # dropped: no consent to a profile
    )  # fmt: skip
    assert found.ends == {0: {"folded": 6, "duplicate": 1, "late": 1, "rejected": 2, "dropped:tombstone": 1,
                              "dropped:no_consent": 1}}  # fmt: skip
    assert found.rejected == {(0, 7), (0, 8)}
    assert found.users.keys() == {"t/ann", "t/bob"}
    ann, bob = found.users["t/ann"], found.users["t/bob"]
    assert (ann.events, ann.orders, ann.touches) == (3, 0, {"i1": 2, "i2": 1})
    assert (ann.first_ms, ann.last_ms, ann.newest) == (MIDNIGHT_MS - 900 * HOUR_MS, MIDNIGHT_MS + 5 * HOUR_MS // 4, "a2")
    assert (bob.events, bob.orders, bob.touches, bob.newest) == (2, 1, {"i1": 1, "i2": 1}, "b1")
    assert len(found.stored) == 8  # a1 a2 a3 a4 b1 b2 c1 c2
    viewed, added, ordered = "Product Viewed", ADDED, ORDER
    assert found.hours == {
        ("t", "2025-06-15 01", "i1", viewed): 1, ("t", "2025-06-15 01", "i2", added): 1,
        ("t", "2025-06-15 01", "i2", ordered): 1, ("t", "2025-06-15 02", "i1", viewed): 1,
        ("t", "2025-06-15 02", "i9", viewed): 1, ("t", "2025-06-13 01", "i1", viewed): 2,
        ("t", "2025-05-08 12", "i1", viewed): 1,
    }  # fmt: skip
    assert found.days["t", "2025-06-15", viewed] == {"t/ann", "t/cat"}
    assert found.days["t", "2025-06-13", viewed] == {"t/ann", "t/bob"}
    assert found.done["t/ann", viewed] == 3 and found.done["t/cat", viewed] == 2 and found.done["t/bob", ordered] == 1


def test_partitions_have_clocks_of_their_own() -> None:
    found = recount([*log(at(20, "ann", "a1")), *log(at(-30, "bob", "b1"), partition=1)], Personalize())
    assert found.ends == {0: {"folded": 1}, 1: {"folded": 1}}


def test_what_is_as_old_as_an_id_that_was_forgotten_is_late() -> None:
    many = [at(1 + number / 1_000, "ann", f"a{number}") for number in range(REMEMBERED_MAX + 1)]
    between = at(1 + 0.5 / 1_000, "ann", "between")  # newer than the one that was forgotten, so it is known to be new
    # the first is forgotten, the second is not; `between` is one too many again, and is the oldest then
    found = count(*many, many[0], many[1], between, many[1], between)
    assert found.ends == {0: {"folded": REMEMBERED_MAX + 2, "late": 2, "duplicate": 2}}


def test_the_last_recommendation_is_owed_as_of_the_newest_event_when_the_last_live_one_was_folded_or_later() -> None:
    def owed(*events: dict[str, Any]) -> set[str]:
        user = count(*events).users.get("t/ann")
        return set() if user is None else user.answers

    imported = at(3, "ann", "a3", lane="import")
    assert owed(at(1, "ann", "a1"), at(2, "ann", "a2")) == {"a2"}
    assert owed(at(2, "ann", "a2"), at(1, "ann", "a1")) == {"a2"}  # the late one is answered, too: as of the newest
    assert owed(imported) == set()
    assert owed(imported, at(1, "ann", "a1")) == {"a3"}
    assert owed(at(1, "ann", "a1"), imported) == {"a1", "a3"}  # before or after the import came
    assert owed(at(1, "ann", "a1"), at(2, "ann", "a2", context=REFUSED)) == set()
    assert owed(at(2, "ann", "a2", context=REFUSED), at(1, "ann", "a1")) == {"a1"}


@pytest.mark.parametrize("more", [{"properties": {"products": [{"product_id": "i1"}]}}, {"properties": {"order_id": "o"}},
                                  {"context": {"consent": {"analytics": False}}}])  # fmt: skip
def test_what_the_rules_say_nothing_about_is_not_counted_in_silence(more: dict[str, Any]) -> None:
    with pytest.raises(NotCounted, match="partition 0, offset 0"):
        count(at(1, "ann", "a1", **more))
