"""Forgetting a user: nothing of them is left in state, changelog and outputs to come, and late events change nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from schemas import topics
from schemas.dead_letter import DeadLetter, Failure, Source
from schemas.erasure import Erased, Erasure, decode, subject
from schemas.outputs import output_id
from stream.adapters.kafka.kafka_clients import partition_of
from stream.adapters.state.state_store import Identity, PartitionStore
from stream.core.user import identity
from stream.core.user.state import Kind, Touch, UserState
from stream.outbox import utc
from stream.partition import DUE_PREFIX, NOBODY, unpack
from stream.personalize import Input
from stream.sink.batch import freeze
from stream.sink.message_ids import MessageIds
from stream.sink.rows import churn_alert_rows, dead_letter_rows, event_rows, segment_change_rows
from stream.sink.tables import EVENTS
from tests.support.database import SETTINGS
from tests.support.fakes import DAY_MS, T0_MS, FakeModels, event
from tests.unit.test_personalize import Bench


class Stored(NamedTuple):
    """A record of partition 0, appended a moment after T0_MS."""

    topic: str
    offset: int
    key: bytes
    value: bytes
    partition: int = 0
    timestamp: int = T0_MS + 5_000
    headers: tuple[()] = ()


IDENTITY = Input("identity", "i1", topics.IDENTITY)


def erasure(at_ms: int, **more: Any) -> Erasure:
    return Erasure(erasure_id="e1", tenant="t", requested_at=datetime.fromtimestamp(at_ms / 1000, UTC), **more)


async def told(bench: Bench, after: int = 0) -> list[identity.Message]:
    """Hand the identity messages that were sent back in, but for the first ones, until there are no more; returns them."""
    seen: list[identity.Message] = []
    while True:
        sent = [record.value for topic, _, record in bench.outputs.sent if topic == "identity"][after:]
        if len(sent) == len(seen):
            return seen
        new = [value for value in sent[len(seen) :] if value is not None]
        seen += [identity.decode(value) for value in new]
        await bench.feed(*new, source=IDENTITY)


def put_on_the_list(bench: Bench) -> list[tuple[bytes, Erasure]]:
    """What the owner of a device has said, where everybody else reads and writes it."""
    sent = [(at, record) for topic, at, record in bench.outputs.sent if topic == "erasures"]
    assert all(at == partition_of(record.key, topics.ERASURES.partitions) for at, record in sent)
    return [(record.key, decode(record.value or b"")) for _, record in sent]


def shopper(bench: Bench, key: bytes) -> UserState | None:
    raw = bench.store.values.get(key)
    return unpack(raw) if raw else None


async def erase(bench: Bench, user: str, at_ms: int, **more: Any) -> None:
    bench.erasures.note(subject(f"t/{user}".encode()), erasure(at_ms, user_id=user, **more))
    await bench.feed(identity.encode(identity.Erase("t", user)), source=IDENTITY)
    await told(bench)
    await bench.close()


async def test_nothing_of_an_erased_user_is_left_and_neighbours_are_not_touched() -> None:
    bench = Bench(FakeModels())
    bench.items()
    await bench.feed(event(user="u"), event(user="v"))
    await bench.close()
    neighbour = bench.store.values[b"t/v"]
    assert bench.store.values[DUE_PREFIX + b"t/u"]
    await erase(bench, "u", T0_MS + DAY_MS)
    assert {b"t/u", DUE_PREFIX + b"t/u"}.isdisjoint(bench.store.values) and bench.store.values[b"t/v"] == neighbour
    state = [record for topic, _, record in bench.outputs.sent if topic == "personalize-state" and record.key == b"t/u"]
    assert state[-1].value is None and bench.store.purged == [b"t/u"]
    before = len(bench.outputs.values("recommendations"))
    await bench.personalizer.tick(bench.part, caught_up=True)
    assert len(bench.outputs.values("recommendations")) == before


@pytest.mark.parametrize("suppress", [False, True])
async def test_late_events_do_not_bring_the_user_back_and_later_ones_do_unless_suppressed(suppress: bool) -> None:
    bench = Bench()
    await bench.feed(event(user="u"))
    await erase(bench, "u", T0_MS + 1_000, suppress=suppress)
    await bench.feed(event(user="u", ts_ms=T0_MS + 500, id="late"))
    await bench.close()
    assert b"t/u" not in bench.store.values and bench.part.outcomes["dropped:erased"] == 1
    await bench.feed(event(user="u", ts_ms=T0_MS + 2_000, id="later"))
    await bench.close()
    found = shopper(bench, b"t/u")
    assert (found is None) == suppress and (found is None or (found.events, found.first_ts_ms) == (1, T0_MS + 2_000))


async def test_a_user_who_comes_back_within_the_same_interval_begins_anew() -> None:
    bench = Bench(FakeModels())
    await bench.feed(event(user="u", item="i1"), event(user="u", item="i2", ts_ms=T0_MS + 1))
    await bench.close()
    bench.erasures.note(subject(b"t/u"), erasure(T0_MS + 10))
    await bench.feed(identity.encode(identity.Erase("t", "u")), source=IDENTITY)
    await bench.feed(event(user="u", item="i3", ts_ms=T0_MS + 20))
    await bench.close()
    found = shopper(bench, b"t/u")
    assert found is not None and list(found.items) == ["i3"] and bench.store.values[DUE_PREFIX + b"t/u"]
    states = [record for topic, _, record in bench.outputs.sent if topic == "personalize-state" and record.key == b"t/u"]
    assert states[-2].value is None and states[-1].value is not None  # whoever waits for the tombstone sees it


@pytest.mark.parametrize("came_back_ms", [1, 0])
async def test_an_erasure_that_is_read_again_leaves_who_came_back_since(came_back_ms: int) -> None:
    """After `clickwake rewind`, or after a crash before the commit; a device is met again, too."""
    bench = Bench(FakeModels())
    await bench.feed(event(user="u", item="i1", anonymousId="d", id="u1"),
                     event(user="", userId=None, anonymousId="d", id="d1"))  # fmt: skip
    await told(bench)
    erased_at_ms = bench.appended_ms
    await erase(bench, "u", T0_MS + 10)
    gone = [identity.Erase("t", "u"), identity.Forget("t", holder="d", other="u")]
    bench.appended_ms += came_back_ms
    back_ms = erased_at_ms + 2 * came_back_ms
    await bench.feed(event(user="u", item="i3", anonymousId="d", ts_ms=back_ms, id="u2"))
    await told(bench)
    await bench.close()
    bench.appended_ms = erased_at_ms
    await bench.feed(*map(identity.encode, gone), source=IDENTITY)
    await bench.close()
    found, device = shopper(bench, b"t/u"), shopper(bench, b"t/d")
    if came_back_ms:
        assert found is not None and (list(found.items), found.claimed) == (["i3"], {"d": back_ms})
        assert device is not None and [user for _, user in device.claims] == ["u"]
    else:
        assert found is None and device is None, "it is the first reading that finds them"


async def test_of_who_came_back_before_the_erasure_was_read_nothing_older_stays() -> None:
    bench = Bench(FakeModels())
    requested_ms, ads = bench.appended_ms, {"consent": {"personalization": False, "ads": False}}
    await bench.feed(event(user="u", item="i1", id="u1"), event(user="u", ts_ms=T0_MS + 1, id="u2", context=ads))
    bench.appended_ms += 5
    await bench.feed(event(user="u", item="i3", ts_ms=T0_MS + 20, id="u3"))
    await bench.close()
    found = shopper(bench, b"t/u")
    assert found is not None and found.ads.refused and found.since_ms == requested_ms + 5
    bench.appended_ms = requested_ms + 4
    await erase(bench, "u", T0_MS + 10)
    found = shopper(bench, b"t/u")
    assert found is not None and list(found.items) == ["i3"] and not found.ads.refused
    written = [record for topic, _, record in bench.outputs.sent if topic == "personalize-state" and record.key == b"t/u"]
    assert unpack(written[-1].value or b"").since_ms > requested_ms  # whoever waits for them to be forgotten sees it


async def test_a_clock_that_is_ahead_saves_nothing_from_an_erasure() -> None:
    bench = Bench(FakeModels())
    requested_ms = bench.appended_ms + 60_000
    bench.erasures.note(subject(b"t/u"), erasure(requested_ms))
    ahead = event(user="u", ts_ms=bench.appended_ms + 120_000, id="ahead")
    await bench.feed(ahead)
    assert bench.part.outcomes["dropped:erased"] == 1 and not bench.part.read(b"t/u").events
    bench.appended_ms = requested_ms + 1
    await bench.feed(ahead)
    assert bench.part.read(b"t/u").events == 1


MINUTE_MS = 60_000


@pytest.mark.parametrize(("how", "again"), [("erased", False), ("erased", True), ("withdrawn", False)])
async def test_a_clock_that_is_ahead_keeps_no_device_from_being_forgotten(how: str, again: bool) -> None:
    """`again`: all that was told is read again, as after `clickwake rewind`, when user and device have met anew."""
    bench = Bench(FakeModels())
    begun_ms = bench.appended_ms
    ahead_ms = begun_ms + 2 * MINUTE_MS
    await bench.feed(event(user="", userId=None, anonymousId="d", item="i1", ts_ms=begun_ms, id="d1"))
    await bench.feed(event(user="u", type="alias", event=None, item=None, previousId="d", ts_ms=ahead_ms, id="u1"))
    await told(bench)
    await bench.close()
    bench.appended_ms += MINUTE_MS
    asked_ms = bench.appended_ms
    if how == "erased":
        await erase(bench, "u", asked_ms)
    else:
        await bench.feed(event(user="u", ts_ms=asked_ms, id="u2", context=NO))
        await told(bench)
        await bench.close()
    assert {b"t/u", b"t/d"}.isdisjoint(bench.store.values)
    assert [key for key, _ in put_on_the_list(bench)] == ([subject(b"t/d")] if how == "erased" else [])
    if not again:
        return
    for key, entry in put_on_the_list(bench):
        bench.erasures.note(key, entry)
    bench.erasures.note(subject(b"t/u"), erasure(asked_ms, receipt="{}"))
    spoken = [record.value for topic, _, record in bench.outputs.sent if topic == "identity" and record.value is not None]
    bench.appended_ms += 2 * MINUTE_MS  # within the time by which a clock may be ahead
    back_ms = bench.appended_ms
    await bench.feed(event(user="", userId=None, anonymousId="d", item="i2", ts_ms=back_ms, id="d2"),
                     event(user="u", anonymousId="d", item="i3", ts_ms=back_ms, id="u3"))  # fmt: skip
    await told(bench, len(spoken))
    bench.appended_ms = asked_ms
    await bench.feed(*spoken, source=IDENTITY)
    await bench.close()
    device, user = shopper(bench, b"t/d"), shopper(bench, b"t/u")
    assert device is not None and device.claims == [(back_ms, "u")] and list(device.items) == ["i2"]
    assert user is not None and user.claimed == {"d": back_ms} and list(user.items) == ["i3"]


async def test_a_clock_that_is_ahead_brings_no_erased_id_back_beside_another() -> None:
    bench = Bench()
    asked_ms, ahead_ms = bench.appended_ms + 1, bench.appended_ms + 2 * MINUTE_MS
    for one in ("u", "device"):
        bench.erasures.note(subject(f"t/{one}".encode()), erasure(asked_ms))
    await bench.feed(event(user="v", anonymousId="device", ts_ms=ahead_ms, id="v1"))
    assert await told(bench) == [] and not bench.part.read(b"t/v").claimed
    ring = (Touch(ahead_ms, "m", "i1", Kind.VIEW, 0.0),)
    bench.part.change(b"t/u").events = 1
    await bench.feed(identity.encode(identity.Claim("t", "a", "u", ahead_ms)),
                     identity.encode(identity.Answer("t", "a", "u", ring)), source=IDENTITY)  # fmt: skip
    assert not bench.part.read(b"t/a").claims and not bench.part.read(b"t/u").linked
    bench.appended_ms = asked_ms + 1
    await bench.feed(identity.encode(identity.Answer("t", "a", "u", ring)), source=IDENTITY)
    assert list(bench.part.read(b"t/u").linked) == ["a"], "what comes of what was done since"


async def test_a_device_whose_clock_is_ahead_goes_with_its_user_when_their_claim_is_not_taken() -> None:
    bench = Bench()
    ahead_ms = bench.appended_ms + 2 * MINUTE_MS
    await bench.feed(event(user="", userId=None, anonymousId="d", ts_ms=ahead_ms, id="d1"))
    await bench.feed(event(user="u", type="alias", event=None, item=None, previousId="d", ts_ms=ahead_ms + 1, id="u1"))
    await erase(bench, "u", bench.appended_ms + MINUTE_MS)
    assert {b"t/u", b"t/d"}.isdisjoint(bench.store.values)
    assert [key for key, _ in put_on_the_list(bench)] == [subject(b"t/d")]


async def test_a_withdrawal_that_comes_to_another_partition_is_passed_on() -> None:
    bench = Bench(FakeModels())
    bench.personalizer.partition_of = lambda key: 1
    no = event(user="u", id="no", context={"consent": {"personalization": False}})
    await bench.feed(no)
    (record,) = [record for topic, _, record in bench.outputs.sent if topic == topics.EVENTS.entity]
    assert (record.key, record.value) == (b"t/u", msgspec.json.encode(no))
    assert bench.part.outcomes["dropped:misplaced"] == 1 and not bench.part.outcomes["dropped:no_consent"]


async def test_the_device_of_one_user_is_forgotten_with_them_and_a_shared_one_keeps_the_other() -> None:
    bench = Bench()
    await bench.feed(event(user="", userId=None, anonymousId="own", item="i1", id="a1"),
                     event(user="", userId=None, anonymousId="shared", item="i2", id="s1"))  # fmt: skip
    await bench.feed(event(user="u", anonymousId="own", item=None, ts_ms=T0_MS + 1, id="u1"),
                     event(user="u", anonymousId="shared", item=None, ts_ms=T0_MS + 2, id="u2"))  # fmt: skip
    await told(bench)
    await bench.feed(event(user="", userId=None, anonymousId="shared", item="i3", ts_ms=T0_MS + 3, id="s2"))
    await bench.feed(event(user="v", anonymousId="shared", item=None, ts_ms=T0_MS + 4, id="v1"))
    await told(bench)
    await bench.close()
    await erase(bench, "u", T0_MS + DAY_MS)
    assert {b"t/u", b"t/own"}.isdisjoint(bench.store.values)
    shared, other = shopper(bench, b"t/shared"), shopper(bench, b"t/v")
    assert shared is not None and [touch.item_id for touch in shared.ring] == ["i3"] and list(shared.items) == ["i3"]
    assert other is not None and [touch.item_id for touch in other.linked["shared"]] == ["i3"]
    assert not any(value == b"u" for value in bench.store.values) and [user for _, user in shared.claims] == ["v"]
    assert [key for key, _ in put_on_the_list(bench)] == [subject(b"t/own")]


async def joined_by_an_alias(bench: Bench, **more: Any) -> None:
    """A guest's device `d`, of which no event of `u` says that it was theirs but the alias."""
    await bench.feed(event(user="", userId=None, anonymousId="d", id="d1"))
    await bench.feed(event(user="u", type="alias", event=None, item=None, previousId="d", ts_ms=T0_MS + 1, id="u1", **more))


@pytest.mark.parametrize("suppress", [False, True])
async def test_a_device_that_an_alias_joined_is_put_on_the_list_by_its_owner_before_its_state_goes(suppress: bool) -> None:
    bench, at_ms = Bench(), T0_MS + DAY_MS
    await joined_by_an_alias(bench)
    await told(bench)
    await bench.close()
    bench.erasures.note(subject(b"t/u"), erasure(at_ms, user_id="u", suppress=suppress))
    await bench.feed(identity.encode(identity.Erase("t", "u")), source=IDENTITY)
    await told(bench)
    ((whose, entry),) = put_on_the_list(bench)
    assert bench.store.values[b"t/d"], "the state is there as long as nothing is written"
    assert (whose, entry) == (subject(b"t/d"), erasure(at_ms, devices=("d",), device=True)), "the eraser says the rest"
    bench.part = bench.opened(bench.part.counts)  # a crash: all of it is read again
    await bench.feed(identity.encode(identity.Erase("t", "u")), source=IDENTITY)
    await bench.feed(identity.encode(identity.Forget("t", holder="d", other="u")), source=IDENTITY)
    assert put_on_the_list(bench) == [(whose, entry)] * 2
    await bench.close()
    assert {b"t/u", b"t/d"}.isdisjoint(bench.store.values) and b"t/d" in bench.store.purged
    bench.erasures.note(whose, entry)
    await bench.feed(event(user="", userId=None, anonymousId="d", ts_ms=T0_MS + 9, id="late"))
    assert bench.part.outcomes["dropped:erased"] == 1 and bench.part.read(b"t/d") == NOBODY
    bench.erasures.note(subject(b"t/u"), erasure(at_ms, receipt="{}", suppress=suppress))
    await bench.feed(identity.encode(identity.Forget("t", holder="d", other="u")), source=IDENTITY)
    assert len(put_on_the_list(bench)) == 2, "once it is done nobody is named again"


async def test_a_device_that_the_request_names_already_is_not_put_on_the_list_again() -> None:
    bench = Bench()
    await joined_by_an_alias(bench)
    await told(bench)
    await erase(bench, "u", T0_MS + DAY_MS, devices=("d",))
    assert b"t/d" not in bench.store.values and put_on_the_list(bench) == []


async def test_a_device_of_who_withdraws_consent_is_on_no_list() -> None:
    bench = Bench()
    await joined_by_an_alias(bench)
    await told(bench)
    await bench.feed(event(user="u", ts_ms=T0_MS + 2, id="u2", context=NO))
    await told(bench)
    await bench.close()
    assert b"t/d" not in bench.store.values and put_on_the_list(bench) == []


@pytest.mark.parametrize("used_later", [False, True])
async def test_a_device_whose_claim_comes_when_its_user_is_on_the_list_goes_with_them(used_later: bool) -> None:
    """The claim is not taken any more, so the device does not know whose it was, and is nobody else's. What was done there
    after the request is a stranger's, who may be anybody."""
    bench = Bench()
    await joined_by_an_alias(bench)
    if used_later:
        await bench.feed(event(user="", userId=None, anonymousId="d", ts_ms=T0_MS + 11, id="d2"))
    await erase(bench, "u", T0_MS + 10)
    assert (b"t/d" in bench.store.values) == used_later and b"t/u" not in bench.store.values
    assert [key for key, _ in put_on_the_list(bench)] == ([] if used_later else [subject(b"t/d")])


async def test_answers_and_claims_that_were_on_their_way_bring_nothing_back() -> None:
    bench = Bench()
    bench.erasures.note(subject(b"t/u"), erasure(T0_MS + 10))
    ring = UserState()
    await bench.feed(event(user="", userId=None, anonymousId="a", id="a1"))
    ring = bench.part.read(b"t/a")
    await bench.feed(identity.encode(identity.Answer("t", "a", "u", tuple(ring.ring))),
                     identity.encode(identity.Answer("t", "a", "u", ())),
                     identity.encode(identity.Claim("t", "a", "u", T0_MS + 5)), source=IDENTITY)  # fmt: skip
    await bench.close()
    found = shopper(bench, b"t/a")
    assert b"t/u" not in bench.store.values and found is not None and not found.claims


async def test_an_answer_that_was_on_its_way_gives_no_profile_to_who_withdrew_consent() -> None:
    bench = Bench()
    await bench.feed(event(user="", userId=None, anonymousId="a", id="a1", context={"consent": {"ads": False}}))
    await bench.feed(event(user="u", anonymousId="a", item=None, ts_ms=T0_MS + 1, id="u1"))
    await bench.feed(event(user="u", ts_ms=T0_MS + 2, id="u2", context={"consent": {"personalization": False}}))
    told_of = bench.part.read(b"t/a")
    late = identity.Answer("t", "a", "u", tuple(told_of.ring), told_of.ads)
    assert late.ring and late.ads.refused
    await bench.feed(identity.encode(late), source=IDENTITY)
    await bench.close()
    assert shopper(bench, b"t/u") == UserState(ads=late.ads)


async def test_an_erased_id_does_not_come_back_beside_another_users() -> None:
    bench = Bench()
    for one in ("u", "device"):
        bench.erasures.note(subject(f"t/{one}".encode()), erasure(T0_MS + 10))
    late = event(user="v", anonymousId="device", id="v1"), event(user="v", type="alias", event=None, previousId="u", id="v2")
    await bench.feed(*late)
    assert await told(bench) == [] and bench.part.read(b"t/v").events == 2 and not bench.part.read(b"t/v").claimed
    await bench.feed(event(user="v", anonymousId="device", ts_ms=T0_MS + 11, id="v3"))
    assert list(bench.part.read(b"t/v").claimed) == ["device"], "what a device is used for afterwards is its user's"


async def test_whose_partition_learns_of_an_erased_device_last_is_told_by_the_devices_owner() -> None:
    bench = Bench()
    await bench.feed(event(user="v", anonymousId="device", id="v1"))
    assert list(bench.part.read(b"t/v").claimed) == ["device"]
    bench.erasures.note(subject(b"t/device"), erasure(T0_MS + 10))
    claim, forget = await told(bench)
    assert isinstance(claim, identity.Claim) and claim.ts_ms == T0_MS
    assert forget == identity.Forget("t", holder="v", other="device", met_ms=T0_MS)
    await bench.close()
    found = shopper(bench, b"t/v")
    assert found is not None and found.events == 1 and not found.claimed
    assert not any(b"device" in value for value in bench.store.values.values())


async def test_consent_withdrawn_clears_the_profile_in_the_order_of_events() -> None:
    bench = Bench(FakeModels())
    no = {"consent": {"personalization": False}}
    await bench.feed(event(user="u", id="1"), event(user="u", id="2", context=no))
    await bench.close()
    assert b"t/u" not in bench.store.values and bench.part.outcomes["dropped:no_consent"] == 1
    writes = len([1 for topic, _, _ in bench.outputs.sent if topic == "personalize-state"])
    await bench.feed(event(user="u", id="3", context=no))  # nothing to clear, nothing written but how far it read
    await bench.close()
    state = [record.key for topic, _, record in bench.outputs.sent if topic == "personalize-state"][writes:]
    assert state == [b"#meta"]
    await bench.feed(event(user="u", id="4"))
    await bench.close()
    found = shopper(bench, b"t/u")
    assert found is not None and found.events == 1


NO = {"consent": {"personalization": False}}
RULES = """
lifecycle: false
segments: [{name: buyers, when: orders > 0}, {name: call them, when: alerted}, {name: lookers, when: "views_30d >= 2"}]
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "segments.yml"
    path.write_text(RULES)
    return path


async def gone_silent(rules: Path, ahead_ms: int | None = None) -> Bench:
    """Somebody who ordered, was alerted about, and is in two segments; by a clock that is so far ahead, or long since."""
    bench = Bench(FakeModels(hazard_per_day=0.01), rules=rules)
    bench.items()
    if ahead_ms is not None:
        bench.appended_ms = T0_MS - ahead_ms
    await bench.feed(event(name="Order Completed", id="1"))
    await bench.close()
    await bench.personalizer.tick(bench.part, caught_up=True)
    await bench.close()
    assert changed(bench) == [("buyers", "entered", 1), ("call them", "entered", 1)] and alerted(bench) == ["raised"]
    return bench


SAID = ("recommendations", "complements", "segment-changes", "churn-alerts", "reminders")


def changed(bench: Bench) -> list[tuple[str, str, int]]:
    return [(one["segment"], one["change"], one["number"]) for one in bench.outputs.values("segment-changes")]


def alerted(bench: Bench) -> list[str]:
    return [one["state"] for one in bench.outputs.values("churn-alerts")]


async def test_who_withdraws_consent_leaves_their_segments_and_is_alerted_about_no_more(rules: Path) -> None:
    """What is said is said before the state goes: a crash in between says the same again, under the same ids."""
    bench = await gone_silent(rules)
    at_ms = T0_MS + 3 * DAY_MS
    for _ in range(2):
        await bench.feed(event(id="2", ts_ms=at_ms, context=NO), event(id="3", ts_ms=at_ms + 1, context=NO))
        assert bench.store.values[b"t/u"], "the state is there as long as nothing is written"
        bench.part, bench.offset = bench.opened(bench.part.counts), bench.offset - 2
    bench.offset += 2
    left, again = (bench.outputs.values("segment-changes")[at : at + 2] for at in (2, 4))
    assert [(one["segment"], one["change"], one["number"]) for one in left] == [
        ("buyers", "left", 2), ("call them", "left", 2)]  # fmt: skip
    assert {one["as_of_ts"] for one in left} == {utc(at_ms).isoformat().replace("+00:00", "Z")} and left == again
    assert all(one["forgotten"] and one["values"] == {} and one["as_of_event_id"] == "1" for one in left)
    raised, cleared, cleared_again = bench.outputs.values("churn-alerts")
    assert (raised["state"], cleared["state"], cleared["reasons"]) == ("raised", "cleared", ["no profile any more"])
    assert cleared == cleared_again and cleared["as_of_ts"] == left[0]["as_of_ts"] and cleared["model_version"] == "none"
    assert (cleared["probability"], cleared["interval"]) == (0.0, [0.0, 1.0]), "nothing is foreseen"
    await bench.feed(event(id="2", ts_ms=at_ms, context=NO))
    await bench.close()
    said = len(changed(bench)), len(alerted(bench))
    await bench.feed(event(id="4", ts_ms=at_ms + 2, context=NO))
    await bench.close()
    assert b"t/u" not in bench.store.values and (len(changed(bench)), len(alerted(bench))) == said, "nothing is left to end"


async def test_who_comes_back_after_a_withdrawal_enters_under_other_ids(rules: Path) -> None:
    bench = await gone_silent(rules)
    for ident, context in (("2", NO), ("3", None), ("4", NO)):
        bench.appended_ms += 1_000
        await bench.feed(event(name="Order Completed", id=ident, ts_ms=T0_MS + int(ident) * 1_000, context=context))
        await bench.close()
    mine = [one for one in bench.outputs.values("segment-changes") if one["segment"] == "buyers"]
    assert [(one["change"], one["number"]) for one in mine] == [("entered", 1), ("left", 2), ("entered", 1), ("left", 2)]
    assert len({one["change_id"] for one in mine}) == 4
    assert mine[0]["profile_since"] == mine[1]["profile_since"] < mine[2]["profile_since"] == mine[3]["profile_since"]


async def test_changes_of_a_profile_from_before_have_the_ids_that_they_had(rules: Path) -> None:
    bench = await gone_silent(rules)
    bench.part.change(b"t/u").since_ms = 0  # as an earlier version wrote it
    await bench.feed(event(id="2", context=NO))
    left = bench.outputs.values("segment-changes")[2]
    assert left["change_id"] == output_id("segment-change", "t", "u", "buyers", "2") and "profile_since" in left
    assert left["profile_since"] is None


async def test_the_erased_leave_as_of_what_is_erased(rules: Path) -> None:
    """So that the sink and the list of erasures treat both alike: where one row goes, the other does."""
    bench = await gone_silent(rules)
    await bench.feed(event(user="other", ts_ms=T0_MS + 5 * DAY_MS))
    await erase(bench, "u", T0_MS + DAY_MS)
    entered = {one["segment"]: one["as_of_ts"] for one in bench.outputs.values("segment-changes") if one["number"] == 1}
    left = {one["segment"]: one["as_of_ts"] for one in bench.outputs.values("segment-changes") if one["number"] == 2}
    assert left == entered and len(left) == 2
    raised, cleared = bench.outputs.values("churn-alerts")
    assert cleared["state"] == "cleared" and cleared["as_of_ts"] == raised["as_of_ts"]
    await erase(bench, "u", T0_MS + DAY_MS)
    assert len(bench.outputs.values("segment-changes")) == 4, "there is nothing to leave a second time"


async def test_of_who_is_ahead_nothing_that_an_erasure_says_outlasts_it(rules: Path) -> None:
    """What they were in began after the request, as their clock has it: what ends it is stored no more."""
    bench = await gone_silent(rules, ahead_ms=2 * MINUTE_MS)
    bench.appended_ms += MINUTE_MS
    asked_ms, said = bench.appended_ms, len(bench.outputs.sent)
    bench.appended_ms += 1
    await erase(bench, "u", asked_ms)
    assert changed(bench)[2:] == [("buyers", "left", 2), ("call them", "left", 2)] and alerted(bench)[1:] == ["cleared"]
    ended = [Stored(topic, offset, record.key, record.value or b"", timestamp=bench.appended_ms)
             for offset, (topic, _, record) in enumerate(bench.outputs.sent[said:])
             if topic in ("segment-changes", "churn-alerts")]  # fmt: skip
    functions = {"segment-changes": segment_change_rows, "churn-alerts": churn_alert_rows}
    assert len(ended) == 3 and freeze(ended, functions, bench.erasures.covers).inserts == []


async def test_of_a_past_that_is_being_erased_nothing_more_is_said(rules: Path) -> None:
    """From when the list has the request until it is carried out; what it says of a past that is ahead would stay."""
    bench = Bench(FakeModels(hazard_per_day=0.01), rules=rules)
    bench.items()
    bench.appended_ms = T0_MS - 2 * MINUTE_MS
    await bench.feed(*(event(user=user, name="Order Completed", id=f"{user}1") for user in ("u", "v")))
    await bench.feed(*(event(user=user, name="Product Added", ts_ms=T0_MS + 1, id=f"{user}2") for user in ("u", "v")))
    before = {topic: len(bench.outputs.values(topic)) for topic in SAID}
    bench.erasures.note(subject(b"t/u"), erasure(bench.appended_ms, user_id="u"))
    bench.appended_ms += 1
    bench.clock.at_ms += DAY_MS
    await bench.feed(*(event(user=user, ts_ms=T0_MS + 20_000, id=f"{user}3") for user in ("u", "v")))
    await bench.close()
    bench.appended_ms += 40 * DAY_MS
    await bench.feed(event(user="w", ts_ms=bench.appended_ms, id="w"))
    await bench.close()
    new = [one for topic in SAID for one in bench.outputs.values(topic)[before[topic] :]]
    assert {"t/u", "t/v"} & {f"{one['tenant']}/{one['user_id']}" for one in new} == {"t/v"}
    assert ("buyers", "entered", 1) in changed(bench) and "raised" in alerted(bench)
    await bench.feed(identity.encode(identity.Erase("t", "u")), source=IDENTITY)
    bench.appended_ms += 1
    await bench.feed(event(user="u", ts_ms=bench.appended_ms, id="u4"))
    assert bench.outputs.values("recommendations")[-1]["as_of_event_id"] == "u4", "who comes back has a new profile"


async def test_a_lift_of_who_was_never_erased_silences_nobody() -> None:
    bench = Bench(FakeModels())
    bench.items()
    await bench.feed(event(user="u", id="1"))
    bench.erasures.note(subject(b"t/u"), erasure(bench.appended_ms))
    bench.appended_ms += 1
    await bench.feed(event(user="u", ts_ms=bench.appended_ms, id="2"))
    assert [one["as_of_event_id"] for one in bench.outputs.values("recommendations")] == ["1", "2"]


async def test_the_device_of_who_withdraws_leaves_its_segments_too(rules: Path) -> None:
    bench = Bench(FakeModels(), rules=rules)
    bench.items()
    await bench.feed(event(user="", userId=None, anonymousId="d", name="Order Completed", id="1"))
    await bench.close()
    await bench.feed(event(anonymousId="d", item=None, ts_ms=T0_MS + 1, id="2"))
    await told(bench)
    await bench.feed(event(ts_ms=T0_MS + 2, id="3", context=NO))
    (forget,) = [record.value for topic, _, record in bench.outputs.sent
                  if topic == "identity" and record.value is not None][2:]  # fmt: skip
    assert forget == identity.encode(identity.Forget("t", holder="d", other="u", ads_stay=True, met_ms=T0_MS + 1))
    await bench.feed(forget, source=IDENTITY)
    await bench.close()
    assert [(one["user_id"], one["change"]) for one in bench.outputs.values("segment-changes")] == [
        ("d", "entered"), ("d", "left")]  # fmt: skip
    assert {b"t/u", b"t/d"}.isdisjoint(bench.store.values)


async def test_a_new_model_gives_an_erased_user_no_timer() -> None:
    bench = Bench(FakeModels())
    await bench.feed(event(user="u"))
    await bench.close()
    await erase(bench, "u", T0_MS + DAY_MS)
    bench.part.refresh([b"t/u"])
    await bench.close()
    assert b"t/u" not in bench.store.values and bench.part.read(b"t/u") == NOBODY


async def test_a_key_that_a_former_owner_wrote_late_is_deleted_again() -> None:
    bench = Bench()
    await bench.feed(event(user="u"))
    await bench.close()
    await erase(bench, "u", T0_MS + DAY_MS)
    bench.part.write_again({b"t/u"})
    await bench.close()
    state = [record for topic, _, record in bench.outputs.sent if topic == "personalize-state" and record.key == b"t/u"]
    assert [record.value is None for record in state] == [False, True, True]


@pytest.mark.parametrize("neighbours", [0, 1_000])  # alone in a table, a key is one of those that the manifest names
def test_purged_bytes_are_nowhere_in_the_store_s_files(tmp_path: Path, neighbours: int) -> None:
    needle = b"a-user-who-wants-to-be-forgotten"
    store = PartitionStore.open(tmp_path / "p", Identity("t1", DAY_MS, T0_MS))
    others = {b"t/%d" % n: b"x" * 100 for n in range(neighbours)}
    store.write(others | {b"t/" + needle: needle}, 1, T0_MS)

    def found() -> list[str]:
        return [path.name for path in (tmp_path / "p").rglob("*") if path.is_file() and needle in path.read_bytes()]

    assert found()
    store.write({b"t/" + needle: None}, 2, T0_MS)
    assert found()  # deleted, and still on disk: RocksDB's log has it
    store.purge([b"t/" + needle])
    assert not found() and store.get_many([b"t/" + needle, *others]) == [None, *others.values()]
    store.close()
    again = PartitionStore.open(tmp_path / "p", Identity("t1", DAY_MS, T0_MS))
    assert (again.changelog_offset, again.wiped, dict(again.iterate())) == (2, None, others)
    again.close()


def test_the_list_tells_by_tenant_and_time() -> None:
    erased = Erased()
    erased.note(subject(b"t/u"), erasure(T0_MS, suppress=True))
    assert erased.covers(b"t/u", 2**60) and not erased.covers(b"other/u", 0) and not erased.covers(b"t/v", 0)
    erased.note(subject(b"t/u"), erasure(T0_MS + timedelta(days=1) // timedelta(milliseconds=1)))
    assert erased.covers(b"t/u", T0_MS + DAY_MS) and not erased.covers(b"t/u", T0_MS + DAY_MS + 1)
    assert erased.until_ms(b"t/u") == T0_MS and erased.until_ms(b"t/v") == -1, "a lift erases nothing"
    assert erased.takes(b"t/u", T0_MS) and not erased.takes(b"t/u", T0_MS + 1) and not erased.takes(b"t/v", 0)
    erased.note(subject(b"t/u"), None)
    assert not erased.covers(b"t/u", 0) and not erased.takes(b"t/u", 0)


def test_the_list_knows_what_is_not_done_and_what_goes_with_it() -> None:
    erased, own = Erased(), erasure(T0_MS, devices=("d",), device=True)
    request = erasure(T0_MS, user_id="u")
    assert erased.request(b"t/u") is None and erased.devices("e1") == []
    for whose, one in ((b"t/u", request), (b"t/d", own), (b"t/u", erasure(T0_MS))):  # the last one lifts
        erased.note(subject(whose), one)
    assert erased.request(b"t/u") == request and erased.request(b"t/d") is None
    assert erased.devices("e1") == ["d"] and erased.devices("e2") == []
    erased.note(subject(b"t/d"), msgspec.structs.replace(own, devices=()))
    assert erased.devices("e1") == [] and erased.covers(b"t/d", T0_MS)
    erased.note(subject(b"t/u"), msgspec.structs.replace(request, erasure_id="e0", user_id=None, receipt="{}"))
    assert erased.request(b"t/u") == request, "the receipt of another request"
    erased.note(subject(b"t/u"), msgspec.structs.replace(request, user_id=None, receipt="{}"))
    assert erased.request(b"t/u") is None and erased.covers(b"t/u", T0_MS) and not erased.under_way
    again = Erasure(erasure_id="e2", tenant="t", requested_at=utc(T0_MS + 1), user_id="u")
    for one in (again, request):  # the older is written again, as where devices are found
        erased.note(subject(b"t/u"), one)
    assert erased.request(b"t/u") == request
    erased.note(subject(b"t/u"), msgspec.structs.replace(request, user_id=None, receipt="{}"))
    assert erased.request(b"t/u") == again and erased.under_way
    erased.note(subject(b"t/u"), None)
    assert not erased.under_way


def test_the_sink_stores_nothing_more_about_an_erased_user() -> None:
    erased = Erased()
    erased.note(subject(b"t/u"), erasure(T0_MS + 1_000))
    functions = {"events": event_rows(DAY_MS, MessageIds(SETTINGS)), "dead-letters": dead_letter_rows}
    letter = DeadLetter(
        dead_letter_id="d", tenant="t", kind="unprocessable", failure=Failure(timestamp=utc(T0_MS), messages=()),
        payload=b"{}", payload_bytes=2, source=Source(topic="x", partition=0, offset=0), first_seen=utc(T0_MS),
    )  # fmt: skip
    records = [
        Stored("events", n, b"", msgspec.json.encode(event(user=user, ts_ms=ts_ms, id=str(n))))
        for n, (user, ts_ms) in enumerate([("u", T0_MS), ("v", T0_MS), ("u", T0_MS + 2_000)])
    ] + [Stored("dead-letters", n, key, msgspec.json.encode(letter)) for n, key in enumerate([b"t/u", b"t/v"])]
    batch = freeze(records, functions, erased.covers)
    assert {insert.table.name: [r.offset for r in insert.records] for insert in batch.inserts} == {
        "events": [1, 2], "event_products": [1, 2], "dead_letters": [1],
    }  # fmt: skip
    assert batch.outcomes["events", "skipped_erased"] == batch.outcomes["dead-letters", "skipped_erased"] == 1


def test_the_sink_stores_no_erased_device_beside_another_user() -> None:
    erased = Erased()
    erased.note(subject(b"t/device"), erasure(T0_MS + 1_000))
    records = [Stored("events", n, b"", msgspec.json.encode(event(user=user, anonymousId="device", ts_ms=ts_ms, id=str(n))))
               for n, (user, ts_ms) in enumerate([("v", T0_MS), ("v", T0_MS + 2_000)])]  # fmt: skip
    batch = freeze(records, {"events": event_rows(DAY_MS, MessageIds(SETTINGS))}, erased.covers)
    (stored,) = (insert for insert in batch.inserts if insert.table is EVENTS)
    rows = [dict(zip(EVENTS.columns, row, strict=True)) for row in stored.rows]
    assert [(row["user"], row["anonymous_id"]) for row in rows] == [("v", ""), ("v", "device")]
