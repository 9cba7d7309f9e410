"""The ways out of alerts: what each does with one, and what it says when it cannot."""

from __future__ import annotations

import base64
import csv
import hashlib
import hmac
import json
import socketserver
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from email import message_from_string
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import msgspec
import pytest
import standardwebhooks

from stream.delivery import channels
from stream.delivery.channels import Message, Refused, TryAgain
from stream.delivery.rules import Csv, Email, Webhook

VARIABLE = "HOOK_SECRET"
MESSAGE = Message(delivery_id="d1", delivery="save", kind="churn-alert", tenant="shop", user_id="=u1",
                  at=datetime(2026, 11, 25, 12, 0, tzinfo=UTC), details={"probability": 0.8})


class Hook(BaseHTTPRequestHandler):
    got: list[tuple[dict[str, str], bytes]]
    status = 200

    def do_POST(self) -> None:
        self.got.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(type(self).status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Kept, not printed."""


@pytest.fixture
def hook() -> Iterator[tuple[type[Hook], str]]:
    handler = type("One", (Hook,), {"got": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


async def test_webhooks_are_signed_and_say_whether_to_come_again(
    hook: tuple[type[Hook], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, url = hook
    channel = Webhook(url=url, secret_env=VARIABLE)
    with pytest.raises(TryAgain, match="no HOOK_SECRET"):
        await channels.send(channel, MESSAGE)
    monkeypatch.setenv("HOOK_SECRET", "whsec")
    await channels.send(channel, MESSAGE)
    ((headers, body),) = handler.got
    made = hmac.new(b"whsec", f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body, hashlib.sha256)
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(made.digest()).decode()}"
    assert json.loads(body)["details"] == {"probability": 0.8}
    for status, error in ((503, TryAgain), (410, Refused)):
        handler.status = status
        with pytest.raises(error, match=str(status)):
            await channels.send(channel, MESSAGE)
    with pytest.raises(TryAgain, match="does not answer"):
        await channels.send(Webhook(url="http://127.0.0.1:1/", secret_env=VARIABLE), MESSAGE)


async def test_a_receiver_verifies_a_webhook_with_the_secret_in_its_own_form(
    hook: tuple[type[Hook], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, url = hook
    secret = "whsec_" + base64.b64encode(b"known to two alone").decode()
    monkeypatch.setenv("HOOK_SECRET", secret)
    message = msgspec.structs.replace(MESSAGE, at=datetime.now(UTC), user_id="Zoë")
    await channels.send(Webhook(url=url, secret_env=VARIABLE), message)
    ((headers, body),) = handler.got
    assert standardwebhooks.Webhook(secret).verify(body, dict(headers))["user_id"] == "Zoë"
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(secret).verify(body.replace(b"Zo", b"Zu"), dict(headers))
    monkeypatch.setenv("HOOK_SECRET", "whsec_no base64 é")
    with pytest.raises(TryAgain, match="not base64"):
        await channels.send(Webhook(url=url, secret_env=VARIABLE), message)


async def test_files_are_safe_for_spreadsheets(tmp_path: Path) -> None:
    channel = Csv(folder=str(tmp_path / "out"))
    for _ in range(2):
        await channels.send(channel, MESSAGE)
    with (tmp_path / "out" / "save-2026-11-25.csv").open() as file:
        head, first, second = csv.reader(file)
    assert tuple(head) == channels.COLUMNS and first == second and first[3] == "'=u1"


def about_a_brand() -> Message:
    details = {"name": "Clay", "evidence": [{"sentence": "The handle broke.", "satisfaction": 0.0}, {"sentence": "Bad."}]}
    return msgspec.structs.replace(MESSAGE, user_id="", kind="satisfaction-alert", thing="brand/Clay", details=details)


def test_messages_about_users_are_what_they_were() -> None:
    assert "thing" not in json.loads(msgspec.json.encode(MESSAGE))
    assert json.loads(msgspec.json.encode(about_a_brand()))["thing"] == "brand/Clay"


class Smtp(socketserver.StreamRequestHandler):
    """As much of SMTP as smtplib needs."""

    mails: list[str]

    def handle(self) -> None:
        self.wfile.write(b"220 test\r\n")
        while line := self.rfile.readline():
            if line.upper().startswith(b"DATA"):
                self.wfile.write(b"354 go on\r\n")
                lines = []
                while (one := self.rfile.readline()) != b".\r\n":
                    lines.append(one.decode())
                self.mails.append("".join(lines))
            if line.upper().startswith(b"QUIT"):
                self.wfile.write(b"221 bye\r\n")
                return
            self.wfile.write(b"250 ok\r\n")


async def test_mail_goes_to_the_team() -> None:
    handler = type("One", (Smtp,), {"mails": []})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        channel = Email(host="127.0.0.1", port=server.server_address[1], to="crm@shop.example", sender="c@shop.example",
                        tls=False)  # fmt: skip
        await channels.send(channel, MESSAGE)
        await channels.send(channel, about_a_brand())
        server.shutdown()
    staff = message_from_string(handler.mails[1])
    assert staff["Subject"] == "save: brand/Clay" and "shop/brand/Clay" in staff.get_payload()
    assert "evidence:\n  - sentence: The handle broke.; satisfaction: 0.0\n" in staff.get_payload().replace("\r", "")
    mail = message_from_string(handler.mails[0])
    assert mail["To"] == "crm@shop.example" and mail["Message-ID"] == "<d1@clickwake>"
    assert "probability: 0.8" in mail.get_payload()
    with pytest.raises(TryAgain, match="does not take mail"):
        await channels.send(msgspec.structs.replace(channel, port=1), MESSAGE)
