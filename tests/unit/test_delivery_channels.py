"""The ways out of alerts: what each does with one, and what it says when it cannot."""

from __future__ import annotations

import base64
import csv
import hashlib
import hmac
import json
import threading
import traceback
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
from stream.delivery.rules import Csv, Webhook
from tests.support.certificates import Authority
from tests.support.mail import PASSWORD, mail_server

VARIABLE = "HOOK_SECRET"
MESSAGE = Message(delivery_id="d1", delivery="save", kind="churn-alert", tenant="shop", user_id="=u1",
                  at=datetime(2026, 11, 25, 12, 0, tzinfo=UTC), details={"probability": 0.8})


class Hook(BaseHTTPRequestHandler):
    got: list[tuple[dict[str, str], bytes]]
    status = 200
    says = ""

    def do_POST(self) -> None:
        self.got.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
        said = self.says.format(path=self.path).encode()
        self.send_response(type(self).status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

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


async def test_what_a_hooks_url_holds_is_in_no_error(
    hook: tuple[type[Hook], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many the path is the secret; errors are logged, and stand in Kafka and ClickHouse."""
    handler, url = hook
    monkeypatch.setenv("HOOK_SECRET", "whsec")
    handler.says = "Cannot POST {path}"
    host = url.rstrip("/").removeprefix("http://")
    for status, error, answers in ((503, TryAgain, host), (404, Refused, host), (0, TryAgain, "127.0.0.1:1")):
        handler.status = status
        secret = Webhook(url=f"http://me:secret-1@{answers}/secret-2/secret%2D3?key=secret-4", secret_env=VARIABLE)
        with pytest.raises(error) as refused:
            await channels.send(secret, MESSAGE)
        assert f"http://{answers} " in str(refused.value) and "secret" not in str(refused.value)
        assert status != 404 or str(refused.value).endswith("404: Cannot POST …")
    with pytest.raises(TryAgain, match="file of deliveries") as refused:
        await channels.send(Webhook(url="http://me:secret-1:x/", secret_env=VARIABLE), MESSAGE)
    assert "secret" not in str(refused.value) and refused.value.__suppress_context__


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


@pytest.mark.parametrize("first", "=+-@\t\r")
async def test_no_cell_begins_as_a_formula_does(tmp_path: Path, first: str) -> None:
    await channels.send(Csv(folder=str(tmp_path)), msgspec.structs.replace(MESSAGE, user_id=f"{first}1+1"))
    with (tmp_path / "save-2026-11-25.csv").open(newline="") as file:
        assert [row[3] for row in csv.reader(file)] == ["user_id", f"'{first}1+1"]


def about_a_brand() -> Message:
    details = {"name": "Clay", "evidence": [{"sentence": "The handle broke.", "satisfaction": 0.0}, {"sentence": "Bad."}]}
    return msgspec.structs.replace(MESSAGE, user_id="", kind="satisfaction-alert", thing="brand/Clay", details=details)


async def test_files_name_what_a_message_is_about(tmp_path: Path) -> None:
    for message in (MESSAGE, about_a_brand()):
        await channels.send(Csv(folder=str(tmp_path)), message)
    with (tmp_path / "save-2026-11-25.csv").open(newline="") as file:
        assert [(row["user_id"], row["thing"]) for row in csv.DictReader(file)] == [("'=u1", ""), ("", "brand/Clay")]


def test_messages_about_users_are_what_they_were() -> None:
    assert "thing" not in json.loads(msgspec.json.encode(MESSAGE))
    assert json.loads(msgspec.json.encode(about_a_brand()))["thing"] == "brand/Clay"


async def test_mail_goes_to_the_team() -> None:
    with mail_server() as (handler, channel):
        channel = msgspec.structs.replace(channel, tls=False, user=None, password_env=None)
        await channels.send(channel, MESSAGE)
        await channels.send(channel, about_a_brand())
    staff = message_from_string(handler.mails[1])
    assert staff["Subject"] == "save: brand/Clay" and "shop/brand/Clay" in staff.get_payload()
    assert "evidence:\n  - sentence: The handle broke.; satisfaction: 0.0\n" in staff.get_payload().replace("\r", "")
    mail = message_from_string(handler.mails[0])
    assert mail["To"] == "crm@shop.example" and mail["Message-ID"] == "<d1@clickwake>"
    assert "probability: 0.8" in mail.get_payload()
    with pytest.raises(TryAgain, match="does not take mail"):
        await channels.send(msgspec.structs.replace(channel, port=1), MESSAGE)


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """The one that this system trusts."""
    made = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.file))
    return made


@pytest.mark.parametrize(("verb", "code", "error"), [
    ("RCPT", 450, TryAgain), ("RCPT", 550, Refused), ("DATA", 451, TryAgain), ("DATA", 554, Refused),
])  # fmt: skip
async def test_a_mail_server_says_by_its_code_whether_to_come_again(verb: str, code: int, error: type[Exception]) -> None:
    with mail_server() as (handler, channel):
        handler.answers = {verb: f"{code} not this one"}
        channel = msgspec.structs.replace(channel, tls=False, user=None, password_env=None)
        with pytest.raises(error, match=f"{code}.*not this one"):
            await channels.send(channel, MESSAGE)
    assert not handler.mails


async def test_mail_goes_by_starttls_and_a_login(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD, "sesame")
    with mail_server(authority.server()) as (handler, channel):
        await channels.send(channel, MESSAGE)
    assert handler.heard == ["EHLO", "STARTTLS", "EHLO", "AUTH", "MAIL", "RCPT", "DATA", "QUIT"]
    (mail,) = handler.mails
    assert message_from_string(mail)["Subject"] == "save: =u1"


@pytest.mark.parametrize(("address", "days", "trusted", "complaint"), [
    ("127.0.0.1", 1, False, "unable to get local issuer certificate"), ("127.0.0.1", -1, True, "has expired"),
    ("mail.example", 1, True, "IP address mismatch"),
])  # fmt: skip
async def test_a_mail_server_with_a_wrong_certificate_gets_neither_password_nor_mail(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str, days: int, trusted: bool,
    complaint: str,
) -> None:  # fmt: skip
    monkeypatch.setenv(PASSWORD, "sesame")
    signer = authority if trusted else Authority(tmp_path, "another authority")
    with mail_server(signer.server(address, days=days)) as (handler, channel), pytest.raises(TryAgain, match=complaint):
        await channels.send(channel, MESSAGE)
    assert handler.heard == ["EHLO", "STARTTLS"] and not handler.mails


async def test_a_mail_server_without_tls_gets_neither_password_nor_mail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD, "sesame")
    with mail_server() as (handler, channel), pytest.raises(TryAgain, match="STARTTLS extension not supported"):
        await channels.send(channel, MESSAGE)
    assert handler.heard == ["EHLO", "QUIT"]


@pytest.mark.parametrize(("password", "complaint"), [
    ("open up", r"user 'clickwake' with the password in SMTP_PASSWORD: 535 5\.7\.8 that is not it; set the right one"),
    ("sésame", "user 'clickwake' or the password in SMTP_PASSWORD is not ASCII"), ("", "no SMTP_PASSWORD: set it"),
])  # fmt: skip
async def test_what_is_wrong_with_the_password_is_said_and_the_password_is_not(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, password: str, complaint: str
) -> None:
    monkeypatch.setenv(PASSWORD, password)
    with mail_server(authority.server()) as (handler, channel), pytest.raises(TryAgain, match=complaint) as refused:
        await channels.send(channel, MESSAGE)
    assert not handler.mails
    told = "".join(traceback.format_exception(refused.value))
    assert not password or (password not in told and base64.b64encode(password.encode()).decode() not in told)
