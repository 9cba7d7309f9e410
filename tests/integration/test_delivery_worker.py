"""The delivery worker on a real broker: an alert reaches its webhook, file or mail once, also after a restart or a kill, and
the log says so; the shop's own people are told of what fell the same way; who refuses advertising gets none."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email import message_from_string
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from clickhouse_connect.driver.client import Client

from clickwake import topics as topic_admin
from schemas import topics
from schemas.opinions import Quote, SatisfactionAlert
from schemas.outputs import DeliveryRecord
from stream.adapters.database import clickhouse
from stream.delivery.channels import COLUMNS
from stream.settings import Settings
from tests.support.certificates import Authority
from tests.support.cluster import Sender, Tail, Worker, read_all, running, until
from tests.support.fakes import alert, event
from tests.support.mail import PASSWORD, mail_server

T = TypeVar("T")
GROUP_SETTLES_S = 60
FULL = "cap over all: at most 1 message to a person in 7 days"


class Hook:
    """What arrived, and where; `then` is done with the number of messages before the newest one is answered."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.url = ""
        self.then: Callable[[int], None] = lambda number: None


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            made.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            made.then(len(made.got))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Kept, not printed."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    made.url = f"http://127.0.0.1:{server.server_address[1]}/"
    yield made
    server.shutdown()
    server.server_close()


def fell(number: int, **more: Any) -> tuple[bytes, bytes]:
    now = datetime.now(UTC)
    made = SatisfactionAlert(
        alert_id=f"fell-{number}", tenant="t", about="brand", name=f"brand {number}", state="raised", number=1,
        changed_at=now, as_of_ts=now, before=0.8, after=0.3, opinions_before=40, opinions_after=9,
        opinions_per_false_alarm=1000,
        evidence=(Quote(opinion_id="o", sentence="It broke.", satisfaction=0.0, said_at=now),))  # fmt: skip
    made = msgspec.structs.replace(made, **more)
    return f"t/brand/{made.name}".encode(), msgspec.json.encode(made)


def refusing(user: str) -> dict[str, Any]:
    return event(user=user, item="i1", ts_ms=time.time_ns() // 1_000_000, context={"consent": {"ads": False}})


def test_an_alert_reaches_its_webhook_once(settings: Settings, hook: Hook) -> None:
    got, url = hook.got, hook.url
    topic_admin.create(settings)
    settings.home.mkdir(parents=True, exist_ok=True)
    secret = {"HOOK_SECRET": "whsec"}
    with Sender(settings, topics.CHURN_ALERTS) as alerts:
        with running(settings, "workers.delivery", **secret) as worker:
            until(lambda: "nothing to deliver yet" in worker.log(), 30, "it waits for the file and says so")
            settings.deliveries_file.write_text(
                f"channels: {{crm: {{type: webhook, url: '{url}', secret_env: HOOK_SECRET}}}}\n"
                "caps: [{messages: 1, days: 7}]\n"
                "deliveries: [{name: save them, channel: crm, about: churn, cap_days: 7, holdout: 0.0000001, "
                "gain: {value: 10.0, cost: 1.0, explore: 0.0}}, {name: also, channel: crm, about: churn, cap_days: 0}]\n")
            until(lambda: "delivery worker ready" in worker.log(), 30, "it has read the file")
            lost = alert("u8", effects={"save them": (0.2, 0.15)})  # worth less than its cost
            alerts.send([alert("u1"), (b"t/u9", b"{"), lost, alert("u2", effects={"save them": (0.5, 0.25)})])
            until(lambda: len(got) == 3, GROUP_SETTLES_S, "all three reached the webhook, each by one delivery")
            until(lambda: len(read_all(settings, topics.DELIVERIES)) == 6, 20, "all six decisions are logged")
            counted = until(lambda: _counted(worker, 6), 20, "and counted")
        assert counted == {("save them", "sent", ""): 2, ("save them", "left_out", ""): 1, ("also", "sent", ""): 1,
                           ("also", "capped", FULL): 2}  # fmt: skip
        alerts.send([alert("u1"), alert("u3")])  # the first one again, as after a crash of who said it
        with running(settings, "workers.delivery", **secret) as worker, running(settings, "workers.sink"):
            until(lambda: len(got) == 4, GROUP_SETTLES_S, "only the new one goes out")
            alerts.send([alert("u8", alert_id="later")])
            until(lambda: _counted(worker, 4), 20, "what it got of the worker before is known from the log")
            until(lambda: _sent(settings) == 4, 60, "the table says so")
            metrics = worker.metrics()
    assert metrics['clickwake_delivery_channel_up{channel="crm"}'] == 1
    assert metrics[f'clickwake_delivery_lag{{topic="{topics.CHURN_ALERTS.name(settings.kafka.topic_prefix)}"}}'] == 0
    assert metrics['clickwake_delivery_seconds_bucket{delivery="save them",le="60.0",waited_for="nothing"}'] == 1
    assert sorted(one["user_id"] for one in got) == ["u1", "u2", "u3", "u8"]
    records = list(map(_record, read_all(settings, topics.DELIVERIES)))
    assert len({one.delivery_id for one in records}) == len(records) == 10
    save, also = ([one for one in records if one.delivery == name] for name in ("save them", "also"))
    told = {one.about_id: (one.status, one.expected and one.expected.gain) for one in save}
    assert told == {"alert-u1": ("sent", None), "alert-u2": ("sent", 1.5), "alert-u3": ("sent", None),
                    "alert-u8": ("left_out", pytest.approx(-0.5)), "later": ("capped", None)}  # fmt: skip
    assert {one.about_id: (one.status, one.reason) for one in also} == {
        "alert-u8": ("sent", "")} | dict.fromkeys(("alert-u1", "alert-u2", "alert-u3", "later"), ("capped", FULL))
    assert time.time() - records[0].at.timestamp() < 300


def test_killed_in_the_middle_the_shops_people_are_told_once_and_who_refuses_advertising_is_not(
    settings: Settings, hook: Hook
) -> None:
    topic_admin.create(settings)
    settings.home.mkdir(parents=True, exist_ok=True)
    settings.deliveries_file.write_text(
        f"channels: {{crm: {{type: webhook, url: '{hook.url}', secret_env: HOOK_SECRET}}}}\n"
        "deliveries:\n  - {name: quality, channel: crm, about: satisfaction, of: brand}\n"
        "  - {name: save them, channel: crm, about: churn}\n"
        "  - {name: bills, channel: crm, about: churn, purpose: service}\n")
    secret = {"HOOK_SECRET": "whsec"}
    with (running(settings, "workers.personalize"), Sender(settings) as events,
          Sender(settings, topics.CHURN_ALERTS) as alerts):  # fmt: skip
        events.send([refusing("no")])
        with Sender(settings, topics.SATISFACTION_ALERTS) as falls:
            falls.send([*map(fell, range(6)), fell(0, alert_id="again"), fell(7, state="cleared"), fell(8, about="item")])
        with running(settings, "workers.delivery", **secret) as worker:

            def kill(number: int) -> None:
                if number == 4:  # it was sent, and is not in the log
                    os.kill(worker.process.pid, signal.SIGKILL)

            hook.then = kill
            until(lambda: worker.process.poll() is not None, GROUP_SETTLES_S, "killed with the fourth under way")
            worker.stopped = True
        with running(settings, "workers.delivery", **secret), running(settings, "workers.sink"):
            until(lambda: len(_logged(settings)) == 7, GROUP_SETTLES_S, "the rest goes out, and is logged")
            assert [one.key for one in read_all(settings, topics.ADS_REFUSALS)] == [b"t/no"]
            alerts.send([alert("no"), alert("yes")])
            until(lambda: len(_logged(settings)) == 11, 20, "who refuses is known through the personalize worker")
            with Tail(settings, topics.ADS_REFUSALS) as refusals:
                until(lambda: len(refusals.poll()) == 1, 20, "the first refusal")
                began = time.monotonic()
                events.send([refusing("yes")])
                until(lambda: len(refusals.poll()) == 2, 20, "the second refusal")
                print(f"a refusal is on its topic {time.monotonic() - began:.3f} s after the event was sent")
            alerts.send([alert("yes", alert_id="next")])
            until(lambda: len(_logged(settings)) == 13, 20, "the next is judged by it")
            named = {f"brand/brand {number}" for number in range(6)}
            until(lambda: _things(settings) == named, 60, "the table names the things")
            until(lambda: _sent(settings) == 3, 20, "what is about a thing is about no user")
    arrived = Counter(one["delivery_id"] for one in hook.got)
    assert sorted(arrived.values()) == [1] * 8 + [2], "one was under way: it came again, under the same id"
    told = {(one.user_id or one.thing, one.delivery, one.about_id): (one.status, one.reason)
            for one in _logged(settings).values()}  # fmt: skip
    assert [status for (_, name, _), (status, _) in told.items() if name == "quality"].count("sent") == 6
    assert told["brand/brand 0", "quality", "again"] == ("capped", "this delivery's own cap, once in 7 days")
    refused, sent = ("suppressed", "refused: ads consent"), ("sent", "")
    assert {key: what for key, what in told.items() if key[1] != "quality"} == {
        ("no", "save them", "alert-no"): refused, ("no", "bills", "alert-no"): sent, ("yes", "save them", "alert-yes"): sent,
        ("yes", "bills", "alert-yes"): sent, ("yes", "save them", "next"): refused,
        ("yes", "bills", "next"): ("capped", "this delivery's own cap, once in 7 days")}


def test_files_and_mail_go_out_once_and_the_log_says_what_became_of_each(settings: Settings, tmp_path: Path) -> None:
    topic_admin.create(settings)
    settings.home.mkdir(parents=True, exist_ok=True)
    authority = Authority(tmp_path)
    secrets = {"SSL_CERT_FILE": str(authority.file), PASSWORD: "sesame"}
    with (mail_server(authority.server()) as (mailbox, mail), Sender(settings, topics.CHURN_ALERTS) as alerts,
          Sender(settings, topics.SATISFACTION_ALERTS) as falls):  # fmt: skip
        team = f"type: email, host: {mail.host}, port: {mail.port}, to: {mail.to}, sender: {mail.sender}, user: {mail.user}"
        settings.deliveries_file.write_text(
            f"channels: {{files: {{type: csv, folder: '{tmp_path}/out'}}, team: {{{team}, password_env: {PASSWORD}}}}}\n"
            "deliveries:\n- {name: listed, channel: files, about: churn}\n- {name: mailed, channel: team, about: churn}\n"
            "- {name: quality, channel: team, about: satisfaction, of: brand}\n")
        with running(settings, "workers.delivery", **secrets):
            mailbox.answers = {"DATA": "451 come again"}
            alerts.send([alert("u1")])
            until(lambda: "DATA" in mailbox.heard, GROUP_SETTLES_S, "the mail server is asked")
            mailbox.answers = {}
            until(lambda: len(_logged(settings)) == 2, 20, "the mail is taken when it comes again")
            mailbox.answers = {"RCPT": "550 no such team"}
            alerts.send([alert("=u2")])
            until(lambda: len(_logged(settings)) == 4, 20, "a refused one is given up, the file has it")
            mailbox.answers = {}
            falls.send([fell(0)])
            until(lambda: len(_logged(settings)) == 5, 20, "the shop's own people are told")
        alerts.send([alert("u1"), alert("u3")])  # the first one again, as after a crash of who said it
        with running(settings, "workers.delivery", **secrets), running(settings, "workers.sink"):
            until(lambda: len(_logged(settings)) == 7, GROUP_SETTLES_S, "only the new one goes out")
            stored = until(lambda: _stored(settings, 7), 60, "the table says so")
    told = {(one.delivery, one.user_id or one.thing): one for one in _logged(settings).values()}
    assert {whose: one.status for whose, one in told.items() if one.status != "sent"} == {("mailed", "=u2"): "failed"}
    assert told["mailed", "u1"].attempts > 1 and "550" in told["mailed", "=u2"].error
    assert stored == {(one.delivery_id, one.channel, one.status) for one in told.values()}
    mails = list(map(message_from_string, mailbox.mails))
    sent = [whose for whose in told if whose[0] != "listed" and whose != ("mailed", "=u2")]
    assert sorted(one["Message-ID"] for one in mails) == sorted(f"<{told[whose].delivery_id}@clickwake>" for whose in sent)
    assert sorted(one["Subject"] for one in mails) == ["mailed: u1", "mailed: u3", "quality: brand/brand 0"]
    assert ["It broke." in one.get_payload() for one in mails] == [one["Subject"].startswith("quality") for one in mails]
    rows = [row for path in sorted((tmp_path / "out").iterdir()) for row in csv.reader(path.read_text().splitlines())]
    assert [(row[0], row[3]) for row in rows if tuple(row) != COLUMNS] == [
        (told["listed", user].delivery_id, cell) for user, cell in (("u1", "u1"), ("=u2", "'=u2"), ("u3", "u3"))]


def test_what_ended_while_the_worker_was_off_does_not_go_out_and_a_changed_file_is_taken_while_it_runs(
    settings: Settings, hook: Hook
) -> None:
    topic_admin.create(settings)
    settings.home.mkdir(parents=True, exist_ok=True)
    channel = f"channels: {{crm: {{type: webhook, url: '{hook.url}', secret_env: HOOK_SECRET}}}}\n"
    save, secret, now = "{name: save, channel: crm, about: churn, cap_days: 0", {"HOOK_SECRET": "whsec"}, datetime.now(UTC)
    start, end = (f"{now + timedelta(hours=hours):%H:%M:%S}" for hours in (-1, 2))
    settings.deliveries_file.write_text(f"{channel}deliveries: [{save}, quiet: ['{start}', '{end}']}}]\n")
    with Sender(settings, topics.CHURN_ALERTS) as alerts:
        with running(settings, "workers.delivery", **secret):
            alerts.send([alert("u1"), alert("u2")])
            until(lambda: len(read_all(settings, topics.DELIVERIES)) == 2, GROUP_SETTLES_S, "both wait")
        alerts.send([alert("u1", alert_id="back", state="cleared")])
        with Sender(settings, topics.DELIVERIES) as log:  # the night is over
            log.send([(one.key, msgspec.json.encode(msgspec.structs.replace(_record(one), until=now)))
                      for one in read_all(settings, topics.DELIVERIES)])  # fmt: skip
        settings.deliveries_file.write_text(f"{channel}deliveries: [{save}}}]\n")
        with running(settings, "workers.delivery", **secret) as worker:
            until(lambda: len(hook.got) == 1, GROUP_SETTLES_S, "what still holds goes out")
            taken = worker.log().count("deliveries taken")  # by the worker before, too
            settings.deliveries_file.write_text(f"{channel}deliveries: [{save}}}]\nsuppress: [t/u3]\n")
            until(lambda: worker.log().count("deliveries taken") > taken, 20, "the changed file is taken")
            alerts.send([alert("u3"), alert("u1", alert_id="again")])
            until(lambda: len(hook.got) == 2, 20, "the one who is not suppressed gets it")
            settings.deliveries_file.write_text(f"deliveries: [{save}}}]")
            until(lambda: "names channel 'crm'; there are none" in worker.log(), 20, "a broken one is said")
            alerts.send([alert("u4")])
            until(lambda: len(hook.got) == 3, 20, "and what the file said before stays")
    assert [one["user_id"] for one in hook.got] == ["u2", "u1", "u4"]
    records = map(_record, read_all(settings, topics.DELIVERIES))
    last = {(one.user_id, one.about_id): (one.status, one.reason) for one in records}
    assert last == {
        ("u1", "alert-u1"): ("expired", "its cause is over: cleared"), ("u2", "alert-u2"): ("sent", ""),
        ("u3", "alert-u3"): ("suppressed", "in the file's `suppress`"), ("u1", "again"): ("sent", ""),
        ("u4", "alert-u4"): ("sent", "")}


def _record(message: Any) -> DeliveryRecord:
    return msgspec.json.decode(message.value, type=DeliveryRecord)


def _logged(settings: Settings) -> dict[str, DeliveryRecord]:
    """What became of each; the log has each once."""
    records = list(map(_record, read_all(settings, topics.DELIVERIES)))
    found = {one.delivery_id: one for one in records}
    assert len(found) == len(records)
    return found


def _counted(worker: Worker, messages: int) -> dict[tuple[str, str, str], int] | None:
    """Messages that a worker counted, by delivery, status and reason; None while there are others than so many."""
    found = {}
    for name, value in worker.metrics().items():
        if name.startswith("clickwake_deliveries_total{") and value:
            labels = dict(re.findall(r'(\w+)="([^"]*)"', name))
            found[labels["delivery"], labels["status"], labels["reason"]] = round(value)
    return found if sum(found.values()) == messages else None


def _things(settings: Settings) -> set[str] | None:
    return _asked(settings, lambda client: {row[0] for row in client.query(
        "SELECT thing FROM deliveries FINAL WHERE thing != '' AND user_id = '' AND status = 'sent'").result_rows})


def _stored(settings: Settings, messages: int) -> set[tuple[str, str, str]] | None:
    """(id, channel, status) of each, once so many are stored."""
    found = _asked(settings, lambda client: {(str(one), str(way), str(status)) for one, way, status in client.query(
        "SELECT delivery_id, channel, status FROM deliveries FINAL").result_rows})
    return found if found is not None and len(found) == messages else None


def _sent(settings: Settings) -> int | None:
    return _asked(settings, lambda client: int(client.query(
        "SELECT sum(users) FROM delivery_outcomes WHERE status = 'sent'").first_row[0]))


def _asked(settings: Settings, ask: Callable[[Client], T]) -> T | None:
    """None while the sink has not made the tables yet."""
    try:
        with closing(clickhouse.open_client(settings.clickhouse)) as client:
            return ask(client)
    except clickhouse.ClickHouseError as error:
        if "UNKNOWN" in str(error):
            return None
        raise
