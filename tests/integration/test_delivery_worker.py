"""The delivery worker on a real broker: an alert reaches its webhook once, also after a restart, and the log says so."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import msgspec
import pytest

from clickwake import topics as topic_admin
from schemas import topics
from schemas.events import key
from schemas.outputs import ChurnAlert, DeliveryRecord
from stream.adapters import clickhouse
from stream.settings import Settings
from tests.support.cluster import Sender, read_all, running, until

GROUP_SETTLES_S = 60


@pytest.fixture
def hook() -> Iterator[tuple[list[dict[str, object]], str]]:
    """What arrived, and where."""
    got: list[dict[str, object]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Kept, not printed."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield got, f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


def alert(user: str, **more: Any) -> tuple[bytes, bytes]:
    now = datetime.now(UTC)
    made = ChurnAlert(alert_id=f"alert-{user}", tenant="t", user_id=user, state="raised", probability=0.8, horizon_days=14,
                      interval=(0.7, 0.9), reasons=("silent",), last_event_ts=now, as_of_ts=now, model_version="v", **more)
    return key("t", user), msgspec.json.encode(made)


def test_an_alert_reaches_its_webhook_once(settings: Settings, hook: tuple[list[dict[str, object]], str]) -> None:
    got, url = hook
    topic_admin.create(settings)
    settings.home.mkdir(parents=True, exist_ok=True)
    secret = {"HOOK_SECRET": "whsec"}
    with Sender(settings, topics.CHURN_ALERTS) as alerts:
        with running(settings, "workers.delivery", **secret) as worker:
            until(lambda: "nothing to deliver yet" in worker.log(), 30, "it waits for the file and says so")
            settings.deliveries_file.write_text(
                f"channels: {{crm: {{type: webhook, url: '{url}', secret_env: HOOK_SECRET}}}}\n"
                "deliveries: [{name: save them, channel: crm, about: churn, cap_days: 7, holdout: 0.0000001, "
                "gain: {value: 10.0, cost: 1.0, explore: 0.0}}]\n")
            until(lambda: "delivery worker ready" in worker.log(), 30, "it has read the file")
            lost = alert("u8", effects={"save them": (0.2, 0.15)})  # worth less than its cost
            alerts.send([alert("u1"), (b"t/u9", b"{"), lost, alert("u2", effects={"save them": (0.5, 0.25)})])
            until(lambda: len(got) == 2, GROUP_SETTLES_S, "both reached the webhook")
            until(lambda: len(read_all(settings, topics.DELIVERIES)) == 3, 20, "all three are logged")
        alerts.send([alert("u1"), alert("u3")])  # the first one again, as after a crash of who said it
        with running(settings, "workers.delivery", **secret), running(settings, "workers.sink"):
            until(lambda: len(got) == 3, GROUP_SETTLES_S, "only the new one goes out")
            until(lambda: _sent(settings) == 3, 60, "the table says so")
    assert [one["user_id"] for one in got] == ["u1", "u2", "u3"]
    records = [msgspec.json.decode(one.value, type=DeliveryRecord) for one in read_all(settings, topics.DELIVERIES)]
    assert len({one.delivery_id for one in records}) == len(records) == 4
    told = {one.user_id: (one.status, one.expected and one.expected.gain) for one in records}
    assert told == {"u1": ("sent", None), "u2": ("sent", 1.5), "u3": ("sent", None), "u8": ("left_out", pytest.approx(-0.5))}
    assert time.time() - records[0].at.timestamp() < 300


def _sent(settings: Settings) -> int | None:
    try:
        with closing(clickhouse.open_client(settings.clickhouse)) as client:
            return int(client.query("SELECT sum(users) FROM delivery_outcomes WHERE status = 'sent'").first_row[0])
    except clickhouse.ClickHouseError as error:
        if "UNKNOWN" in str(error):
            return None
        raise
