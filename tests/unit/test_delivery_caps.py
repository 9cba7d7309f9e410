"""Caps over all deliveries: nobody gets more, whatever comes and whenever the worker starts anew; and the lot of one
delivery changes nothing about another, so that what is compared stays comparable."""

from __future__ import annotations

import asyncio
from datetime import time, timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from clickwake.cli import app
from schemas.outputs import DeliveryRecord
from stream.delivery.channels import Refused, TryAgain
from stream.delivery.decide import lot, would_be_sent
from stream.delivery.deliverer import AWAY_FOR
from stream.delivery.rules import Cap, Delivery, Gain
from stream.delivery.said import Said
from tests.unit.test_deliveries import Bench, alert, change, due, fell

NEWS = Delivery(name="news", channel="crm", about="segment", segment="readers", cap_days=0)
CART = Delivery(name="cart", channel="crm", about="segment", segment="full cart", cap_days=0)
SAVE = Delivery(name="save", channel="files", about="churn", cap_days=0, priority="high")
PARCEL = Delivery(name="parcel", channel="crm", about="segment", segment="parcel", cap_days=0, purpose="service")
FALLS = Delivery(name="quality", channel="crm", about="satisfaction", cap_days=0)
ALL = (NEWS, CART, SAVE, PARCEL, FALLS)
WEEK = Cap(messages=3, days=7, kept=1)
DAY = Cap(messages=1, days=1, channels=("crm",))


def said(delivery: Delivery, user: str, number: int) -> Said:
    if delivery is SAVE:
        return alert(user, f"{user}-{number}")
    return fell(ident=f"s{number}") if delivery is FALLS else change(user, delivery.segment or "", number=number)


async def test_a_person_gets_so_many_of_all_deliveries_together_and_why_not_is_logged() -> None:
    bench = Bench(*ALL, caps=(Cap(messages=2, days=7),))
    await bench.made.take([change(segment="readers"), change(), alert(), change(segment="parcel"), fell(), change("u2")])
    told = {(one.delivery, one.user_id): (one.status, one.reason) for one in bench.logged}
    assert told == {
        ("save", "u1"): ("sent", ""), ("news", "u1"): ("sent", ""), ("parcel", "u1"): ("sent", ""),
        ("quality", ""): ("sent", ""), ("cart", "u2"): ("sent", ""),
        ("cart", "u1"): ("capped", "cap over all: at most 2 messages to a person in 7 days")}
    assert bench.logged[0].delivery == "save", "what has priority goes first, and so is not the one that is left out"
    bench.now += timedelta(days=7)
    await bench.made.take([change(number=2)])
    assert bench.statuses()[-1] == "sent", "the week is over"


async def test_what_is_kept_for_high_priority_is_theirs_alone_and_a_channel_may_have_a_cap_of_its_own() -> None:
    bench = Bench(*ALL, caps=(WEEK,))
    await bench.made.take([change(number=number) for number in range(4)])
    await bench.made.take([alert(), alert(ident="a2")])
    assert bench.statuses() == ["sent", "sent", "capped", "capped", "sent", "capped"]
    assert bench.logged[2].reason.endswith("in 7 days, 1 of them kept for high priority")
    assert bench.logged[5].reason.endswith("in 7 days")
    other = Bench(*ALL, caps=(DAY,))
    await other.made.take([change(), change(segment="readers"), alert(), alert(ident="a2")])
    assert [(one.delivery, one.status) for one in other.logged] == [
        ("save", "sent"), ("save", "sent"), ("cart", "sent"), ("news", "capped")]


async def test_what_waits_has_its_place_and_what_failed_gives_it_back() -> None:
    night = msgspec.structs.replace(NEWS, quiet=(time(11), time(13)))
    bench = Bench(night, SAVE, CART, caps=(Cap(messages=1, days=7),))
    await bench.made.take([change(segment="readers"), change()])
    assert bench.statuses() == ["deferred", "capped"], "or it would be taken back what was drawn for sending"
    again = Bench(night, SAVE, CART, caps=(Cap(messages=1, days=7),), before=bench.logged)
    again.now += timedelta(hours=1)
    again.failures = [TryAgain("away")] * 3
    await again.made.take_due()
    await again.made.take([change(number=2)])
    assert again.statuses()[2:] == ["deferred", "capped"], "also while its channel is away"
    again.now += AWAY_FOR
    again.failures = [Refused("410")]
    await again.made.take_due()
    await again.made.take([change(number=3), change(number=4)])
    assert again.statuses()[4:] == ["failed", "sent", "capped"]


async def test_what_a_delivery_sent_that_the_file_has_no_more_was_received_all_the_same() -> None:
    before = Bench(NEWS, caps=(WEEK,))
    await before.made.take([change(segment="readers", number=number) for number in range(2)])
    after = Bench(CART, caps=(Cap(messages=2, days=7),), before=before.logged)
    await after.made.take([change()])
    assert after.statuses()[-1] == "capped"


class Step(NamedTuple):
    delivery: Delivery
    user: str
    hours: float
    anew: bool


STEPS = st.lists(st.builds(
    Step, st.sampled_from(ALL), st.sampled_from(("u1", "u1", "u2")), st.sampled_from((0.0, 0.0, 5.0, 30.0)), st.booleans(),
), min_size=5, max_size=25)  # fmt: skip
CAPS = st.lists(st.builds(
    lambda messages, kept, **more: Cap(messages=messages, kept=min(kept, messages - 1), **more),
    messages=st.integers(1, 3), kept=st.integers(0, 1), days=st.sampled_from((0.5, 1.0, 7.0)),
    channels=st.sampled_from(((), ("crm",), ("files", "crm"))),
), min_size=1, max_size=3).map(tuple)  # fmt: skip


async def play(steps: list[Step], caps: tuple[Cap, ...], restarts: bool, *deliveries: Delivery) -> list[DeliveryRecord]:
    bench = Bench(*deliveries, caps=caps)
    for number, step in enumerate(steps):
        if step.anew and restarts:  # from what is on the topic, and some of it is said again
            log = [msgspec.json.decode(msgspec.json.encode(one), type=DeliveryRecord) for one in bench.logged]
            bench = Bench(*deliveries, caps=caps, before=log, now=bench.now)
            await bench.made.take([said(one.delivery, one.user, at) for at, one in enumerate(steps[:number])])
        bench.now += timedelta(hours=step.hours)
        await bench.made.take_due()
        await bench.made.take([said(step.delivery, step.user, number)])
    return bench.logged


@given(steps=STEPS, caps=CAPS)
def test_nobody_gets_more_in_any_window_and_a_restart_changes_nothing(steps: list[Step], caps: tuple[Cap, ...]) -> None:
    deliveries = (msgspec.structs.replace(NEWS, quiet=(time(20), time(8))), *ALL[1:])
    log = asyncio.run(play(steps, caps, False, *deliveries))
    assert asyncio.run(play(steps, caps, True, *deliveries)) == log
    by_name = {one.name: one for one in deliveries}
    for cap in caps:
        for user in ("u1", "u2"):
            got = [(one.at, by_name[one.delivery].priority) for one in log
                   if one.status == "sent" and one.user_id == user and cap.holds(by_name[one.delivery])]  # fmt: skip
            for end, _ in got:
                inside = [what for at, what in got if end - timedelta(days=cap.days) < at <= end]
                assert len(inside) <= cap.messages and inside.count("normal") <= cap.messages - cap.kept
    assert all(one.status == "sent" for one in log if one.delivery in ("parcel", "quality"))


@given(steps=STEPS, caps=CAPS, holdout=st.sampled_from((0.3, 0.7, 1.0)))
def test_the_lot_of_one_delivery_changes_nothing_about_another(
    steps: list[Step], caps: tuple[Cap, ...], holdout: float
) -> None:
    """Whether somebody was sent the news or held out of it, everything else goes to them the same."""
    night = msgspec.structs.replace(NEWS, quiet=(time(20), time(8)))
    held = msgspec.structs.replace(night, holdout=holdout)
    plain, drawn = (asyncio.run(play(steps, caps, True, news, CART, SAVE, PARCEL)) for news in (night, held))
    same = {one.delivery_id: one.status for one in plain}
    for one in {one.delivery_id: one for one in drawn}.values():
        told = same[one.delivery_id]
        assert one.status == told or (one.delivery, told, one.status) == ("news", "sent", "held_out")


@pytest.mark.parametrize("chance", [0.0, 0.09, 0.5, 0.9])
def test_as_many_of_the_held_out_as_of_the_others_would_be_sent_it(chance: float) -> None:
    delivery = Delivery(name="save", channel="crm", about="churn", holdout=0.1, gain=Gain(value=1.0))
    users = [f"shop/u{number}" for number in range(40_000)]
    held = [one for one in users if lot(delivery, one) < 0.1]
    others = [one for one in users if lot(delivery, one) >= 0.1]
    would = sum(would_be_sent(delivery, one, chance) for one in held) / len(held)
    sent = sum(lot(delivery, one) >= 1 - chance for one in others) / len(others)
    assert would == pytest.approx(sent, abs=0.03) and sent == pytest.approx(chance / 0.9, abs=0.02)


async def test_who_is_left_out_since_it_would_not_pay_has_room_for_another_and_so_have_the_held_out() -> None:
    paying = msgspec.structs.replace(SAVE, holdout=0.2, gain=Gain(value=10.0, cost=1.0, explore=0.0))
    bench = Bench(paying, CART, caps=(Cap(messages=1, days=7),))
    users = [f"u{number}" for number in range(60)]
    for worth in (0.05, 0.5):  # uplift: the first is not worth its cost
        mark = f"{worth:g}"
        await bench.made.take([alert(f"{mark}{one}", f"{mark}{one}", effects={"save": (worth, 0.0)}) for one in users])
        await bench.made.take([change(f"{mark}{one}") for one in users])
    became = {(one.delivery, one.user_id): one.status for one in bench.logged}
    assert {became["save", f"0.05{one}"] for one in users} == {"left_out", "held_out"}
    assert {became["cart", f"0.05{one}"] for one in users} == {"sent"}
    assert {became["save", f"0.5{one}"] for one in users} == {"sent", "held_out"}
    assert {became["cart", f"0.5{one}"] for one in users} == {"capped"}, "whichever lot they drew"


async def test_who_will_be_left_out_at_the_end_of_quiet_hours_has_room_for_another_while_they_wait() -> None:
    gain = Gain(value=10.0, cost=1.0, explore=0.0)
    paying = msgspec.structs.replace(SAVE, holdout=0.2, gain=gain, quiet=(time(11), time(13)))
    bench = Bench(paying, CART, caps=(Cap(messages=1, days=7),))
    for user, worth in (("poor", 0.05), ("rich", 0.5)):
        await bench.made.take([alert(user, user, effects={"save": (worth, 0.0)}), change(user)])
    assert [one.status for one in bench.logged] == ["deferred", "sent", "deferred", "capped"]
    bench.now += timedelta(hours=1)
    await bench.made.take_due()
    assert [(one.user_id, one.status) for one in bench.logged[4:]] == [("rich", "sent"), ("poor", "capped")]


async def test_reminders_count_too_and_tenants_are_told_apart() -> None:
    tea = Delivery(name="again", channel="crm", about="reminder")
    bench = Bench(tea, CART, caps=(Cap(messages=1, days=7),))
    await bench.made.take([due(), change(), due(ident="n2", tenant="other")])
    assert bench.statuses() == ["sent", "capped", "sent"]


def test_the_check_of_the_file_says_what_its_caps_are_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLICKWAKE_HOME", str(tmp_path))
    (tmp_path / "deliveries.yml").write_text("""
channels: {crm: {type: csv, folder: x}, files: {type: csv, folder: x}}
caps: [{messages: 3, days: 7, kept: 1}, {messages: 1, days: 0.5, channels: [files]}]
deliveries:
  - {name: save, channel: crm, about: churn, priority: high}
  - {name: again, channel: files, about: reminder}
  - {name: bills, channel: files, about: churn, purpose: service}
  - {name: quality, channel: files, about: satisfaction}
""")
    said = CliRunner().invoke(app, ["deliveries", "--check"])
    assert said.exit_code == 0 and said.stdout.splitlines()[4:] == [
        "at most 3 messages to a person in 7 days, 1 of them kept for save: save, again",
        "at most 1 message to a person in 0.5 days by files: again"]
    found = msgspec.json.decode(CliRunner().invoke(app, ["deliveries", "--check", "--json"]).stdout)
    assert found["capped"] == ["save", "again"] and found["caps"][0] == {"messages": 3, "days": 7, "channels": [], "kept": 1}
    (tmp_path / "deliveries.yml").write_text("caps: [{messages: 1, days: 7, channels: [fax]}]")
    refused = CliRunner().invoke(app, ["deliveries", "--check"])
    assert refused.exit_code == 1 and "names channel 'fax'; there are none" in " ".join(refused.output.split())
