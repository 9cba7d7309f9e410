"""What waits, for the end of quiet hours or for its channel: until its cause is over, for a day after it was first due, and
decided about by the file as it is when its time has come."""

from __future__ import annotations

from datetime import datetime, time, timedelta
from typing import Any

import msgspec
import pytest

from schemas.erasure import Erasure, subject
from schemas.outputs import DeliveryRecord
from stream.delivery.channels import TryAgain
from stream.delivery.decide import lot
from stream.delivery.deliverer import AWAY_FOR, GIVEN_UP_AFTER
from stream.delivery.rules import Cap, Delivery
from stream.delivery.said import KINDS, Said, outlived, waiting
from tests.support.fakes import FakeErasures
from tests.unit.test_deliveries import AT, CART, FALLS, SAVE, TEA, Bench, alert, change, due, fell, gauge

NOON = (time(11), time(13))  # quiet hours around AT
ENDS = [
    (SAVE, alert(), alert(ident="a2", state="cleared", as_of_ts=AT - timedelta(hours=1)), "cleared"),
    (TEA, due(), due(state="bought"), "bought"), (TEA, due(), due(state="lapsed"), "lapsed"),
    (CART, change(), change(what="left", number=2), "left"),
    (CART, change(), change(what="left", number=2, forgotten=True), "left"),
    (msgspec.structs.replace(CART, change="left"), change(what="left"), change(number=2), "entered"),
    (FALLS, fell(), fell(ident="s2", number=2, state="cleared"), "cleared"),
]


@pytest.mark.parametrize(("delivery", "said", "end", "how"), ENDS)
@pytest.mark.parametrize("anew", [False, True])
async def test_what_waits_ends_with_its_cause(delivery: Delivery, said: Any, end: Any, how: str, anew: bool) -> None:
    bench = Bench(msgspec.structs.replace(delivery, quiet=NOON))
    other = msgspec.structs.replace(said, tenant="other", **{KINDS[type(said)].ident: "other"})
    await bench.made.take([said, other])
    if anew:
        bench = Bench(*bench.made.file.deliveries, before=bench.logged)
    await bench.made.take([end])
    assert bench.statuses() == ["deferred", "deferred", "expired"]
    ended = bench.logged[-1]
    assert (ended.subject, ended.reason, ended.error) == (bench.logged[0].subject, f"its cause is over: {how}", "")
    assert ended.until is None and waiting(ended) is None and ended.decided_at == AT
    if anew:
        bench = Bench(*bench.made.file.deliveries, before=bench.logged)
    bench.now += timedelta(hours=1)
    await bench.made.take([said, end])  # as after a crash of who said it
    await bench.made.take_due()
    assert [one.tenant for one in bench.sent] == ["other"] and bench.statuses()[3:] == ["sent"]


async def test_what_waits_for_its_channel_ends_with_its_cause_and_gives_its_place_back() -> None:
    bench = Bench(SAVE, TEA, caps=(Cap(messages=1, days=7),))
    bench.failures = [TryAgain("away")] * 3
    await bench.made.take([alert()])
    await bench.made.take([alert(ident="a2", state="cleared")])
    await bench.made.take([due()])
    bench.now += AWAY_FOR
    await bench.made.take_due()
    assert bench.statuses() == ["deferred", "expired", "sent"] and bench.sent[0].kind == "reminder"


@pytest.mark.parametrize(("delivery", "said", "end", "how"), ENDS)
async def test_what_is_over_in_the_same_batch_does_not_go_out(delivery: Delivery, said: Any, end: Any, how: str) -> None:
    bench = Bench(delivery)
    await bench.made.take([said, said, end])
    assert not bench.sent and [(one.status, one.reason) for one in bench.logged] == [
        ("expired", f"its cause is over: {how}")]  # fmt: skip


async def test_an_end_that_is_read_again_does_not_end_what_began_after_it() -> None:
    bench = Bench(msgspec.structs.replace(CART, quiet=NOON), msgspec.structs.replace(SAVE, quiet=NOON))
    before = AT - timedelta(days=9)
    ends: list[Said] = [change(what="left", number=2), alert(ident="a2", state="cleared", last_event_ts=before)]
    await bench.made.take([change(number=3), alert(ident="a3")])
    await bench.made.take(ends)
    await bench.made.take([change(segment="other", what="left", number=9), alert("u2", "a9", state="cleared")])
    assert bench.statuses() == ["deferred"] * 2
    assert [over for _, over in outlived([*ends, change(number=3), *ends])] == [
        "its cause is over: entered", "", "", "", ""]  # fmt: skip


async def test_the_end_of_a_profile_that_is_read_again_does_not_end_what_the_next_one_began() -> None:
    bench = Bench(msgspec.structs.replace(CART, quiet=NOON))
    old = change(what="left", number=6, forgotten=True, profile_since=AT - timedelta(days=9))
    await bench.made.take([change(profile_since=AT)])
    await bench.made.take([old])
    assert bench.statuses() == ["deferred"]
    await bench.made.take([change(what="left", number=2, profile_since=AT)])
    assert bench.statuses() == ["deferred", "expired"]


async def test_nothing_is_logged_of_who_was_erased_while_they_waited() -> None:
    erasures = FakeErasures()
    bench = Bench(msgspec.structs.replace(SAVE, quiet=NOON), erasures=erasures)
    await bench.made.take([alert()])
    erasures.note(subject(b"shop/u1"), Erasure(erasure_id="e", tenant="shop", requested_at=AT, suppress=True))
    await bench.made.take([alert(ident="a2", state="cleared")])
    gone = Bench(before=bench.logged, erasures=erasures, now=AT + timedelta(hours=1))
    await gone.made.take_due()
    assert bench.statuses() == ["deferred"] and gone.sent == []


async def test_told_and_held_out_wait_alike_so_that_who_is_back_meanwhile_is_in_neither() -> None:
    half = msgspec.structs.replace(SAVE, quiet=NOON, holdout=0.5)
    bench = Bench(half)
    users = [f"u{number}" for number in range(200)]
    await bench.made.take([alert(user, user) for user in users])
    bench = Bench(half, before=bench.logged)
    await bench.made.take([alert(user, f"{user} back", state="cleared") for user in users[::2]])
    bench.now += timedelta(hours=1)
    await bench.made.take_due()
    became = {one.user_id: one for one in bench.logged}
    assert {became[user].status for user in users[::2]} == {"expired"}
    for user in users[1::2]:
        assert became[user].status == ("held_out" if lot(half, f"shop/{user}") < 0.5 else "sent")
        assert (became[user].decided_at, became[user].propensity) == (AT, 0.5)
    assert {became[user].status for user in users[1::2]} == {"held_out", "sent"}


async def test_a_channel_has_a_day_from_when_a_message_was_first_due_whatever_waited_before() -> None:
    night = msgspec.structs.replace(SAVE, quiet=(time(20), time(8)))
    bench = Bench(night, now=AT + timedelta(hours=9))
    await bench.made.take([alert()])
    due_at = AT + timedelta(hours=20)  # eight o'clock

    async def look(now: datetime) -> DeliveryRecord:
        nonlocal bench
        bench = Bench(night, before=bench.logged, now=now)
        bench.failures = [TryAgain("away")] * 3
        await bench.made.take_due()
        return bench.logged[-1]

    for hours in (0, 11.5):
        late = await look(due_at + timedelta(hours=hours))
        assert (late.status, late.error) == ("deferred", "away")
    assert (await look(due_at + timedelta(hours=13))).error == "quiet hours", "the second night"
    assert (await look(due_at + GIVEN_UP_AFTER)).status == "deferred", "a day and a night after the decision"
    given_up = await look(due_at + GIVEN_UP_AFTER + AWAY_FOR)
    assert (given_up.status, given_up.attempts, given_up.decided_at) == ("failed", 12, AT + timedelta(hours=9))


async def test_what_waits_is_decided_about_by_the_file_as_it_is_then() -> None:
    quiet = msgspec.structs.replace(SAVE, quiet=NOON)
    bench = Bench(quiet, CART)
    bench.failures = [TryAgain("away")] * 9
    await bench.made.take([alert(), alert("u2", "a2"), change(), change("u3")])
    before, bench = bench.logged, Bench(msgspec.structs.replace(CART, channel="files"))
    assert gauge("clickwake_delivery_channel_up", channel="crm") is None, "of a channel that is gone nothing is scraped"
    after = Bench(quiet, before=before, suppress=("shop/u2",), now=AT + timedelta(hours=1))
    await after.made.take_due()
    assert {one.subject + " " + one.delivery: (one.status, one.reason or one.error) for one in after.logged[4:]} == {
        "shop/u1 save": ("sent", ""), "shop/u2 save": ("suppressed", "in the file's `suppress`"),
        "shop/u1 cart": ("failed", "there is no such delivery any more"),
        "shop/u3 cart": ("failed", "there is no such delivery any more")}
