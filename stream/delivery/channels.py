"""Ways out. Each sends one message and returns, or says whether another try makes sense."""

from __future__ import annotations

import asyncio
import csv
import io
import os
import smtplib
import ssl
from datetime import datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import httpx
import msgspec
import standardwebhooks

from stream.delivery.rules import Channel, Csv, Email, Webhook
from stream.delivery.said import AboutKind
from stream.files import append_line

RETRIED = (408, 425, 429, 500, 502, 503, 504)
PERMANENT = 500  # answers of a mail server from here on (RFC 5321, section 4.2.1)
SECRET_PREFIX = "whsec_"  # noqa: S105  # of a secret, not one
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what OWASP names (CSV injection)
COLUMNS = ("delivery_id", "at", "tenant", "user_id", "kind", "details", "thing")


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What goes out. `delivery_id` is derived, so whoever gets it twice can tell. `thing`: the item or brand, `brand/Clay`,
    that a message to the shop's own people is about; then `user_id` is empty."""

    delivery_id: str
    delivery: str
    kind: AboutKind
    tenant: str
    user_id: str
    at: datetime
    details: dict[str, Any]  # the alert, change or reminder itself
    thing: str = ""

    @property
    def subject(self) -> str:
        return f"{self.tenant}/{self.user_id or self.thing}"


class TryAgain(RuntimeError):
    """It did not arrive, and may the next time."""


class Refused(RuntimeError):
    """It will never be taken as it is."""


async def send(channel: Channel, message: Message) -> None:
    """Raises TryAgain, Refused."""
    if isinstance(channel, Webhook):
        await _post(channel, message)
    elif isinstance(channel, Email):
        await asyncio.to_thread(_mail, channel, message)
    else:
        await asyncio.to_thread(_write, channel, message)


async def _post(channel: Webhook, message: Message) -> None:
    body = msgspec.json.encode(message).decode()
    headers = {
        "Content-Type": "application/json", "webhook-id": message.delivery_id,
        "webhook-timestamp": str(int(message.at.timestamp())),
        "webhook-signature": _signer(channel.secret_env).sign(message.delivery_id, message.at, body),
    }  # fmt: skip
    try:
        async with httpx.AsyncClient(timeout=channel.timeout_s, follow_redirects=False) as client:
            answer = await client.post(channel.url, content=body, headers=headers)
    except httpx.InvalidURL:  # it quotes the part that is wrong
        raise TryAgain("the channel's url is none: mend it in the file of deliveries") from None
    except httpx.HTTPError as error:
        raise TryAgain(f"{_host(channel)} does not answer: {error!r}") from error
    if answer.status_code in RETRIED:
        raise TryAgain(f"{_host(channel)} answered {answer.status_code}")
    if not answer.is_success:
        raise Refused(f"{_host(channel)} answered {answer.status_code}: {_said_by(channel, answer)[:200]}")


def _host(channel: Webhook) -> str:
    """All of its URL that is told: of many hooks the path, or the query, is the secret.

    >>> _host(Webhook(url="https://me:pass@hooks.example:8443/T0/B0?key=secret", secret_env="HOOK"))
    'https://hooks.example:8443'
    """
    url = httpx.URL(channel.url)
    return f"{url.scheme}://{url.netloc.decode()}"


def _said_by(channel: Webhook, answer: httpx.Response) -> str:
    """What it answered; many a server names the path there."""
    url, text = httpx.URL(channel.url), answer.text
    for part in (url.raw_path.decode(), url.raw_path.decode().partition("?")[0], url.path, url.query.decode()):
        text = text.replace(part, "…") if len(part) > 1 else text
    return text


def _mail(channel: Email, message: Message) -> None:
    mail = EmailMessage()
    mail["From"], mail["To"] = channel.sender, channel.to
    mail["Subject"] = f"{message.delivery}: {_one_line(message.user_id or message.thing)}"
    mail["Message-ID"] = f"<{message.delivery_id}@clickwake>"
    head = f"{message.kind} of {message.subject} at {message.at:%Y-%m-%d %H:%M} UTC"
    mail.set_content("\n".join([head, "", *(_told(name, value) for name, value in message.details.items())]))
    try:
        with smtplib.SMTP(channel.host, channel.port, timeout=20) as server:
            if channel.tls:
                server.starttls(context=ssl.create_default_context())
            if channel.user is not None and channel.password_env is not None:
                _log_in(server, channel.user, channel.password_env)
            server.send_message(mail)
    except smtplib.SMTPRecipientsRefused as error:
        final = all(code >= PERMANENT for code, _ in error.recipients.values())  # before that a server may be greylisting
        raise (Refused if final else TryAgain)(f"{channel.host} refuses {channel.to}: {error}") from error
    except smtplib.SMTPDataError as error:
        final = error.smtp_code >= PERMANENT
        raise (Refused if final else TryAgain)(f"{channel.host} refuses the mail: {error}") from error
    except (OSError, smtplib.SMTPException) as error:
        raise TryAgain(f"{channel.host}:{channel.port} does not take mail: {error!r}") from error


def _log_in(server: smtplib.SMTP, user: str, password_env: str) -> None:
    """Raises TryAgain, which names the variable of the password, never what is in it."""
    try:
        server.login(user, _secret(password_env))
    except smtplib.SMTPAuthenticationError as error:
        why = error.smtp_error if isinstance(error.smtp_error, str) else error.smtp_error.decode(errors="replace")
        raise TryAgain(f"the mail server refuses user {user!r} with the password in {password_env}: {error.smtp_code} "
                       f"{_one_line(why[:200])}; set the right one and start the worker again") from None  # fmt: skip
    except UnicodeEncodeError:  # it quotes both
        raise TryAgain(f"user {user!r} or the password in {password_env} is not ASCII: this login takes no other") from None


def _one_line(text: str) -> str:
    """Ids are what clients make them, and a header has one line.

    >>> _one_line("u1\\nBcc: everybody")
    'u1 Bcc: everybody'
    """
    return "".join(one if one.isprintable() else " " for one in text)


def _told(name: str, value: Any) -> str:
    """A detail in words: a quote, or another of several things with parts, on a line of its own.

    >>> print(_told("evidence", [{"sentence": "It broke.", "satisfaction": 0.25}]))
    evidence:
      - sentence: It broke.; satisfaction: 0.25
    """
    if isinstance(value, list | tuple) and value and all(isinstance(one, dict) for one in value):
        lines = ("; ".join(f"{part}: {said}" for part, said in one.items()) for one in value)
        return "\n".join([f"{name}:", *(f"  - {line}" for line in lines)])
    return f"{name}: {value}"


def _write(channel: Csv, message: Message) -> None:
    path = Path(channel.folder) / f"{message.delivery}-{message.at:%Y-%m-%d}.csv"
    row = (message.delivery_id, message.at.isoformat(), message.tenant, message.user_id, message.kind,
           msgspec.json.encode(message.details).decode(), message.thing)  # fmt: skip
    try:
        append_line(path, _line(row), _line(COLUMNS))
    except OSError as error:
        raise TryAgain(f"{path} cannot be written: {error}") from error


def _line(row: tuple[str, ...]) -> bytes:
    """One line of CSV. A cell that a spreadsheet would take for a formula begins with an apostrophe."""
    text = io.StringIO()
    csv.writer(text).writerow(f"'{one}" if one[:1] in FORMULA else one for one in row)
    return text.getvalue().encode()


def _secret(name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise TryAgain(f"the environment has no {name}: set it and start the delivery worker again")
    return value


def _signer(name: str) -> standardwebhooks.Webhook:
    """For a secret as Standard Webhooks writes it, `whsec_` and base64; anything else is taken as it stands."""
    value = _secret(name)
    try:
        return standardwebhooks.Webhook(value if value.startswith(SECRET_PREFIX) else value.encode())
    except ValueError as error:
        raise TryAgain(f"{name} is not base64 after {SECRET_PREFIX}: {error}; mend it and start again") from error
