"""Alerts to people's tools: who gets them, when, and once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY
from typer.testing import CliRunner

from clickwake.cli import app
from schemas.erasure import Erasure, subject
from schemas.opinions import Quote, SatisfactionAlert
from schemas.outputs import ChurnAlert, DeliveryRecord, Reminder, SegmentChange
from stream.delivery import deliverer
from stream.delivery.channels import Message, Refused, TryAgain
from stream.delivery.decide import concerns, lot, quiet_until
from stream.delivery.deliverer import AWAY_FOR, GIVEN_UP_AFTER, Deliverer
from stream.delivery.rules import Cap, Delivery, DeliveryError, DeliveryFile, Webhook, load
from tests.support.fakes import FakeErasures, FakeRefusals

AT = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
VARIABLE = "HOOK_SECRET"
HOOK = Webhook(url="http://crm.example/hook", secret_env=VARIABLE)


def alert(user: str = "u1", ident: str = "a1", **changed: Any) -> ChurnAlert:
    made = ChurnAlert(alert_id=ident, tenant="shop", user_id=user, state="raised", probability=0.8, horizon_days=14,
                      interval=(0.7, 0.9), reasons=("silent for 9 days",), last_event_ts=AT, as_of_ts=AT, model_version="v")
    return msgspec.structs.replace(made, **changed)


def change(user: str = "u1", segment: str = "full cart", what: str = "entered", number: int = 1,
           **more: Any) -> SegmentChange:  # fmt: skip
    return SegmentChange(change_id=f"{user}-{segment}-{number}", tenant="shop", user_id=user, segment=segment, change=what,  # type: ignore[arg-type]
                         number=number, values={}, as_of_event_id="m", as_of_ts=AT, rules_version="r", model_version="v",
                         **more)  # fmt: skip


def due(user: str = "u1", ident: str = "n1", **changed: Any) -> Reminder:
    made = Reminder(reminder_id=ident, tenant="shop", user_id=user, state="due", item_id="tea", category="drinks",
                    last_bought_ts=AT - timedelta(days=23), interval_days=30.0, window_from=AT,
                    window_to=AT + timedelta(days=14), probability=0.5, reasons=("bought 23 days before",), as_of_ts=AT,
                    model_version="v")  # fmt: skip
    return msgspec.structs.replace(made, **changed)


def fell(name: str = "Clay", ident: str = "s1", **changed: Any) -> SatisfactionAlert:
    made = SatisfactionAlert(
        alert_id=ident, tenant="shop", about="brand", name=name, state="raised", number=1, changed_at=AT, as_of_ts=AT,
        before=0.8, after=0.3, opinions_before=40, opinions_after=9, opinions_per_false_alarm=1000,
        evidence=(Quote(opinion_id="o1", sentence="The handle broke.", satisfaction=0.0, said_at=AT),))  # fmt: skip
    return msgspec.structs.replace(made, **changed)


class Bench:
    """A deliverer with a clock of its own and a channel that keeps what it gets."""

    def __init__(self, *deliveries: Delivery, suppress: tuple[str, ...] = (), before: list[DeliveryRecord] | None = None,
                 erasures: FakeErasures | None = None, refusals: FakeRefusals | None = None, caps: tuple[Cap, ...] = (),
                 now: datetime = AT) -> None:  # fmt: skip
        self.now = now
        self.sent: list[Message] = []
        self.logged: list[DeliveryRecord] = before or []
        self.failures: list[Exception] = []
        file = DeliveryFile(channels={one.channel: HOOK for one in deliveries}, deliveries=deliveries, suppress=suppress,
                            caps=caps)  # fmt: skip
        erasures = FakeErasures() if erasures is None else erasures  # one that knows of nobody yet is false
        self.made = Deliverer(file, erasures, refusals or FakeRefusals(), self.write, lambda: self.now,
                              self.send)  # fmt: skip
        for record in self.logged:
            self.made.note(record)

    async def send(self, channel: object, message: Message) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.sent.append(message)

    async def write(self, records: list[DeliveryRecord]) -> None:
        self.logged += records

    def statuses(self) -> list[str]:
        return [one.status for one in self.logged]


SAVE = Delivery(name="save", channel="crm", about="churn", probability_min=0.6)
TEA = Delivery(name="again", channel="crm", about="reminder", probability_min=0.3)
FALLS = Delivery(name="quality", channel="crm", about="satisfaction", of="brand", fall_min=0.2, cap_days=3.0)
CART = Delivery(name="cart", channel="crm", about="segment", segment="full cart", cap_days=1.0)


def gauge(metric: str, **labels: str) -> float | None:
    """What is scraped."""
    return REGISTRY.get_sample_value(metric, labels)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliverer, "BACKOFF_FIRST_S", 0.0)


async def test_what_a_delivery_is_about_goes_out_once() -> None:
    bench = Bench(SAVE, CART)
    said = [alert(), alert(), alert("u2", "a2", probability=0.5), alert("u3", "a3", state="cleared"), change(),
            change("u4", what="left", number=2), change(segment="other")]
    await bench.made.take(said)
    assert [(one.delivery, one.user_id) for one in bench.sent] == [("save", "u1"), ("cart", "u1")]
    assert list(bench.sent[0].details["reasons"]) == ["silent for 9 days"]
    again = Bench(SAVE, CART, before=bench.logged)
    await again.made.take(said)
    assert again.sent == [], "a worker that starts anew knows from the log what went out"


async def test_nobody_is_written_to_because_they_want_no_profile() -> None:
    bench = Bench(msgspec.structs.replace(CART, change="left"))
    await bench.made.take([change(what="left", number=2, forgotten=True), change("u2", what="left", number=2)])
    assert [one.user_id for one in bench.sent] == ["u2"] and bench.statuses() == ["sent"]


async def test_caps_suppression_and_holdout() -> None:
    bench = Bench(CART, suppress=("shop/u9",))
    await bench.made.take([change(number=1), change(number=3), change("u9")])
    assert bench.statuses() == ["sent", "capped", "suppressed"]
    bench.now += timedelta(days=1, seconds=1)
    await bench.made.take([change(number=5)])
    assert bench.statuses()[-1] == "sent" and len(bench.sent) == 2
    half = msgspec.structs.replace(SAVE, holdout=0.5)
    held = Bench(half)
    await held.made.take([alert(f"u{n}", f"a{n}") for n in range(200)])
    assert 70 < held.statuses().count("held_out") < 130 and len(held.sent) == held.statuses().count("sent")
    assert all((lot(half, f"shop/{one.user_id}") < 0.5) == (one.status == "held_out") for one in held.logged)


async def test_reminders_go_out_once_capped_held_out_and_not_after_their_window() -> None:
    bench = Bench(TEA)
    await bench.made.take([due(), due(), due("u2", "n2", probability=0.2), due("u3", "n3", state="bought"), due(ident="n4"),
                           due("u5", "n5", window_to=AT)])  # fmt: skip
    assert [(one.kind, one.user_id, one.details["item_id"]) for one in bench.sent] == [("reminder", "u1", "tea")]
    assert [(one.user_id, one.about_id, one.status) for one in bench.logged] == [
        ("u1", "n1", "sent"), ("u1", "n4", "capped"), ("u5", "n5", "expired")]
    nobody = Bench(msgspec.structs.replace(TEA, holdout=1.0))
    await nobody.made.take([due()])
    assert nobody.statuses() == ["held_out"] and nobody.sent == []


async def test_a_reminder_that_waited_past_its_window_does_not_go_out() -> None:
    bench = Bench(TEA)
    bench.failures = [TryAgain("away")] * 3
    await bench.made.take([due(window_to=AT + timedelta(minutes=2))])
    assert bench.statuses() == ["deferred"] and bench.logged[0].reminder is not None
    again = Bench(TEA, before=bench.logged)
    again.now += AWAY_FOR
    await again.made.take_due()
    assert again.statuses() == ["deferred", "expired"] and again.sent == []


async def test_quiet_hours_wait_and_survive_a_restart() -> None:
    night = msgspec.json.decode(b'{"name": "save", "channel": "crm", "about": "churn", "quiet": ["22:00:00", "08:00:00"], '
                                b'"timezone": "Europe/Berlin"}', type=Delivery)  # fmt: skip
    bench = Bench(night)
    bench.now = datetime(2026, 11, 25, 22, 30, tzinfo=UTC)  # half past eleven in Berlin
    await bench.made.take([alert()])
    assert bench.statuses() == ["deferred"] and bench.logged[0].until == datetime(2026, 11, 26, 7, 0, tzinfo=UTC)
    later = Bench(night, before=bench.logged)
    later.now = datetime(2026, 11, 26, 6, 59, tzinfo=UTC)
    await later.made.take_due()
    assert later.sent == [] and later.made.wait_s() == 60.0
    later.now = datetime(2026, 11, 26, 7, 0, tzinfo=UTC)
    await later.made.take_due()
    assert later.statuses() == ["deferred", "sent"] and len(later.sent) == 1
    assert quiet_until(night, datetime(2026, 11, 25, 12, 0, tzinfo=UTC)) is None


async def test_a_channel_that_is_away_is_tried_again_and_given_up_after_a_day() -> None:
    bench = Bench(SAVE)
    bench.failures = [TryAgain("away")] * 3
    await bench.made.take([alert(), alert("u2", "a2")])
    assert bench.statuses() == ["deferred", "sent"], "others go on"
    bench.now += AWAY_FOR
    await bench.made.take_due()
    assert bench.statuses()[-1] == "sent" and bench.logged[-1].attempts == 4
    bench.failures = [TryAgain("away")] * 3
    await bench.made.take([alert("u3", "a3")])
    bench.now += GIVEN_UP_AFTER + timedelta(seconds=1)
    bench.failures = [TryAgain("away")] * 3
    await bench.made.take_due()
    assert bench.statuses()[-1] == "failed" and bench.logged[-1].error == "away"
    bench.failures = [Refused("404")]
    await bench.made.take([alert("u4", "a4")])
    assert bench.statuses()[-1] == "failed"


async def test_a_channel_that_refuses_one_has_answered_and_is_asked_on() -> None:
    bench = Bench(SAVE)
    away = [TryAgain("away")] * 3
    bench.failures = [*away, *away, Refused("410"), *away, *away]
    await bench.made.take([alert(f"u{n}", f"a{n}") for n in range(6)])
    assert bench.statuses() == ["deferred", "deferred", "failed", "deferred", "deferred", "sent"], "not three in a row"
    assert gauge("clickwake_delivery_channel_up", channel="crm") == 1
    bench.failures = away * 3
    await bench.made.take([alert(f"v{n}", f"b{n}") for n in range(4)])
    assert bench.statuses()[6:] == ["deferred"] * 4 and bench.logged[-1].attempts == 0
    assert gauge("clickwake_delivery_channel_up", channel="crm") == 0
    bench.now += AWAY_FOR
    bench.failures = [Refused("410")]
    await bench.made.take([alert("w", "c")])
    assert bench.statuses()[-1] == "failed" and gauge("clickwake_delivery_channel_up", channel="crm") == 1


async def test_what_the_worker_counts() -> None:
    quiet = msgspec.structs.replace(SAVE, name="counted", quiet=(time(11), time(13)))
    cart = msgspec.structs.replace(CART, name="counted cart")
    bench = Bench(quiet, cart, suppress=("shop/u9",))
    bench.failures = [TryAgain("away"), TryAgain("away")]
    await bench.made.take([alert(), alert("u2", "a2"), change(), change(number=2), change("u9")])
    assert gauge("clickwake_deliveries_waiting", delivery="counted", waits_for="quiet hours") == 2
    assert gauge("clickwake_delivery_retries_total", delivery="counted cart", channel="crm") == 2
    found = {(status, reason): gauge("clickwake_deliveries_total", delivery="counted cart", status=status, reason=reason)
             for status, reason in (("sent", ""), ("failed", ""), ("capped", "this delivery's own cap, once in 1 day"),
                                    ("suppressed", "in the file's `suppress`"))}  # fmt: skip
    assert list(found.values()) == [1, 0, 1, 1]
    again = Bench(quiet, cart, before=bench.logged)
    assert gauge("clickwake_deliveries_waiting", delivery="counted", waits_for="quiet hours") == 2, "known from the log"
    again.now += timedelta(hours=1)
    again.failures = [TryAgain("away")] * 3
    await again.made.take_due()
    assert gauge("clickwake_deliveries_waiting", delivery="counted", waits_for="quiet hours") == 0
    assert gauge("clickwake_deliveries_waiting", delivery="counted", waits_for="channel") == 1
    hour = {"delivery": "counted", "waited_for": "quiet hours"}
    assert [gauge(f"clickwake_delivery_seconds_{what}", **hour) for what in ("sum", "count")] == [3_600, 1]


async def test_a_channel_that_takes_nothing_is_left_alone_for_some_minutes_and_others_go_on() -> None:
    bench = Bench(SAVE)
    bench.failures = [TryAgain("away")] * 9
    await bench.made.take([alert(f"u{n}", f"a{n}") for n in range(200)])
    assert bench.statuses() == ["deferred"] * 200 and not bench.failures, "three were tried"
    assert [one.attempts for one in bench.logged][:4] == [3, 3, 3, 0]
    bench.now += AWAY_FOR
    await bench.made.take_due()
    assert bench.statuses()[200:] == ["sent"] * 200
    assert [one.attempts for one in bench.logged[200:]] == [1] * 197 + [4] * 3, "those that were never tried come first"


async def test_what_comes_due_meanwhile_has_its_turn_after_what_is_new() -> None:
    bench = Bench(SAVE)
    bench.failures = [TryAgain("away")] * 9
    await bench.made.take([alert(f"u{n}", f"a{n}") for n in range(5)])
    bench.now += AWAY_FOR

    async def slow(channel: object, message: Message) -> None:
        bench.now += AWAY_FOR  # each message takes so long that the first is due again
        raise TryAgain("away")

    bench.made.send = slow
    await bench.made.take_due()
    assert len(bench.logged) == 10, "each of the five once"


async def test_stopping_begins_nothing_new_and_says_that_not_all_was_handled() -> None:
    bench = Bench(SAVE)

    async def last(channel: object, message: Message) -> None:
        bench.made.stopping.set()
        raise TryAgain("away")

    bench.made.send = last
    assert not await bench.made.take([alert(f"u{n}", f"a{n}") for n in range(5)])
    assert bench.statuses() == ["deferred"] and bench.logged[0].attempts == 1
    again = Bench(SAVE, before=bench.logged)
    again.now += timedelta(seconds=1)
    await again.made.take_due()
    assert await again.made.take([alert(f"u{n}", f"a{n}") for n in range(5)])
    assert [one.user_id for one in again.sent] == ["u0", "u1", "u2", "u3", "u4"]


async def test_a_message_that_cannot_be_made_fails_alone() -> None:
    bench = Bench(SAVE)
    bench.failures = [ValueError("a header has one line")]
    await bench.made.take([alert("u1", "a1"), alert("u2", "a2")])
    assert bench.statuses() == ["failed", "sent"] and "one line" in bench.logged[0].error


async def test_what_is_older_than_the_log_is_forgotten() -> None:
    bench = Bench(SAVE)
    for day in range(100):
        bench.now = AT + timedelta(days=day)
        await bench.made.take([alert(f"u{day}", f"a{day}")])
    assert len(bench.made.known._done) == len(bench.made.known._order) == len(bench.made.known.last) == 31


async def test_the_shops_own_people_are_told_of_what_fell_once_and_of_nothing_twice_in_the_cap() -> None:
    bench = Bench(FALLS, SAVE, suppress=("shop/", "shop/brand/Clay"), refusals=FakeRefusals(b"shop/", b"shop/brand/Clay"))
    said = [fell(), fell(), fell("mug", "s2", about="item"), fell("Oak", "s3", after=0.7),
            fell("Ash", "s4", state="cleared"), fell(ident="s5", number=3), fell("Oak", "s6"),
            fell("Clay", "s7", tenant="other")]  # fmt: skip
    await bench.made.take(said)
    assert [(one.thing, one.user_id, one.status) for one in bench.logged] == [
        ("brand/Clay", "", "sent"), ("brand/Clay", "", "capped"), ("brand/Oak", "", "sent"), ("brand/Clay", "", "sent")]
    first = bench.sent[0]
    assert (first.kind, first.thing, first.user_id) == ("satisfaction-alert", "brand/Clay", "")
    assert first.details["evidence"][0]["sentence"] == "The handle broke."
    assert bench.logged[0].propensity == 1.0 and bench.logged[0].satisfaction_alert is None
    again = Bench(FALLS, before=bench.logged)
    await again.made.take([*said, fell(ident="s8")])
    assert [one.status for one in again.logged[4:]] == ["capped"] and not again.sent, "known from the log"
    again.now += timedelta(days=3, seconds=1)
    await again.made.take([fell(ident="s9")])
    assert again.statuses()[-1] == "sent"


def test_many_tickets_are_told_unless_one_asks_for_opinions_alone() -> None:
    many = fell(reason="tickets", before=0.5, after=6.0)
    assert concerns(FALLS, many) and not concerns(FALLS, msgspec.structs.replace(many, state="cleared"))
    opinions, tickets = (msgspec.structs.replace(FALLS, reason=one) for one in ("opinions", "tickets"))
    assert [concerns(one, said) for one in (opinions, tickets) for said in (many, fell())] == [False, True, True, False]


async def test_alerts_about_things_wait_like_others_and_survive_a_restart() -> None:
    quiet = msgspec.structs.replace(FALLS, quiet=(time(11), time(13)))
    bench = Bench(quiet)
    await bench.made.take([fell()])
    (kept,) = bench.logged
    assert (kept.status, kept.satisfaction_alert, kept.subject) == ("deferred", fell(), "shop/brand/Clay")
    later = Bench(quiet, before=[msgspec.json.decode(msgspec.json.encode(kept), type=DeliveryRecord)])
    await later.made.take([fell()])
    assert later.sent == [], "it waits already"
    later.now += timedelta(hours=1)
    later.failures = [TryAgain("away")] * 3
    await later.made.take_due()
    later.now += AWAY_FOR
    await later.made.take_due()
    assert later.statuses() == ["deferred", "deferred", "sent"] and later.sent[0].details["name"] == "Clay"
    assert later.logged[-1].satisfaction_alert is None


async def test_what_is_on_the_topic_of_refusals_is_read_before_anything_is_sent() -> None:
    refusals = FakeRefusals()
    refusals.coming = {b"shop/u1"}
    bench = Bench(SAVE, refusals=refusals)
    await bench.made.take([alert(), alert("u2", "a2")])
    assert [(one.user_id, one.status, one.reason) for one in bench.logged] == [
        ("u1", "suppressed", "refused: ads consent"), ("u2", "sent", "")]  # fmt: skip


async def test_while_nobody_can_say_who_refuses_nothing_goes_out_and_it_can_be_stopped() -> None:
    class Away(FakeRefusals):
        async def caught_up(self) -> None:
            await asyncio.Event().wait()

    bench = Bench(SAVE, refusals=Away())
    taking = asyncio.create_task(bench.made.take([alert()]))
    done, _ = await asyncio.wait({taking}, timeout=0.05)
    assert not done and not bench.logged
    bench.made.stopping.set()
    assert await taking is False and not bench.sent, "what was not handled is read again"


async def test_nothing_goes_out_about_who_was_erased() -> None:
    erasures = FakeErasures()
    erasures.note(subject(b"shop/u1"), Erasure(erasure_id="e", tenant="shop", requested_at=AT, suppress=True))
    bench = Bench(SAVE, erasures=erasures)
    await bench.made.take([alert()])
    assert bench.sent == [] and bench.logged == []


@pytest.mark.parametrize(("text", "complaint"), [
    ("deliveries: [{name: a, channel: crm, about: churn}]", "names channel 'crm'; there are none"),
    ("channels: {f: {type: csv, folder: x}}\ndeliveries: [{name: a, channel: f, about: segment}]", "`segment` goes with"),
    ("channels: {f: {type: csv, folder: x}}\ndeliveries: [{name: a, channel: f, about: churn, timezone: X}]", "time zone"),
    ("channels: {f: {type: fax}}", "Invalid value 'fax'"),
    ("channels: {m: {type: email, host: h, to: t, sender: s, user: u}}", "channel 'm' has a `user` and no `password_env`"),
    ("channels: {f: {type: csv, folder: x}}\ndeliveries: [{name: a, channel: f, about: churn, cap_days: 90}]", "<= 30"),
    ("channels: {f: {type: csv, folder: x}}\ndeliveries: [{name: a, channel: f, about: churn, gain: {value: 9}}]", "hold"),
    ("channels: {f: {type: csv, folder: x}}\ndeliveries: [{name: a, channel: f, about: churn, of: brand}]", "`fall_min`"),
    ("channels: {f: {type: csv, folder: x}}\ndeliveries: [{name: a, channel: f, about: satisfaction, reason: tickets, "
     "fall_min: 0.1}]", "`fall_min` is about opinions"),
    ("channels: {f: {type: csv, folder: x}}\ndeliveries: [{name: a, channel: f, about: satisfaction, holdout: 1}]", "users"),
    ("channels: {f: {type: csv, folder: x}}\ndeliveries: [{name: a, channel: f, about: churn, priority: high, "
     "purpose: service}]", "never held back"),
    ("channels: {f: {type: csv, folder: x}}\ncaps: [{messages: 2, days: 7, channels: [g]}]", "person in 7 days by g names "
     "channel 'g'; there are f"),
    ("caps: [{messages: 2, days: 1}, {messages: 2, days: 7, kept: 2}]", "cap 2, at most 2 messages to a person in 7 days: "
     "it keeps 2, so"),
    ("channels: {f: {type: csv, folder: x}, g: {type: csv, folder: x}}\n"
     "caps: [{messages: 2, days: 7, kept: 1, channels: [g]}]\n"
     "deliveries: [{name: a, channel: f, about: churn, priority: high}]", "no delivery that it is about"),
    ("caps: [{messages: 0, days: 7}]", ">= 1"),
    ("caps: [{messages: 1, days: 31}]", "<= 30"),
    ("suppress: [demo/u1, u17]", "`suppress` has 'u17': write tenant/user"),
    ("suppress: [/u17]", "`suppress` has '/u17'"),
    ("channels: {f: {type: csv, folder: x}}\ndeliveries: [{name: a, channel: f, about: churn, "
     "quiet: ['22:00:00Z', '08:00:00']}]", "no timezone component - at `$.deliveries[0].quiet[0]`"),
])
def test_what_is_wrong_with_the_file_is_said(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "deliveries.yml"
    path.write_text(text)
    with pytest.raises(DeliveryError) as refused:
        load(path)
    assert complaint in str(refused.value) and str(path) in str(refused.value)


def test_whose_users_a_delivery_is_about_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLICKWAKE_HOME", str(tmp_path))
    (tmp_path / "deliveries.yml").write_text("""
channels: {crm: {type: csv, folder: x}}
deliveries:
  - {name: save, channel: crm, about: churn}
  - {name: cart, channel: crm, about: segment, segment: full cart, tenant: outlet}
""")

    def said(*more: str) -> str:
        return CliRunner().invoke(app, ["deliveries", "--check", *more]).stdout

    alone = ["save: every tenant's churn → crm", "cart: outlet's segment full cart entered → crm"]
    monkeypatch.setenv("CLICKWAKE_COLLECTOR__WRITE_KEYS", '{"shop": "k"}')  # beside the demo's read key
    assert said().splitlines() == alone and msgspec.json.decode(said("--json"))["of_several_tenants"] == []
    monkeypatch.setenv("CLICKWAKE_COLLECTOR__WRITE_KEYS", '{"shop": "k", "outlet": "l"}')
    assert said().splitlines() == [*alone, "about each of outlet, shop, to the same channel: save; say whose: `tenant`"]
    found = msgspec.json.decode(said("--json"))
    assert found["tenants"] == {"save": None, "cart": "outlet"} and found["of_several_tenants"] == ["save"]


def test_what_became_of_messages_is_told_by_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"delivery": "save", "channel": "crm", "status": "sent", "why": "", "messages": 2, "newest": AT, "error": ""}
    monkeypatch.setattr("clickwake.deliveries.rows", lambda *_: [[{"tenant": whose, **row} for whose in ("outlet", "shop")]])
    head, *lines = CliRunner().invoke(app, ["deliveries"]).stdout.splitlines()
    assert [line.split()[:2] for line in (head, *lines)] == [["tenant", "delivery"], ["outlet", "save"], ["shop", "save"]]
