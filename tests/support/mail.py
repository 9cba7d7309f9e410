"""A mail server in a thread, as much of one as the delivery worker's mail needs."""

from __future__ import annotations

import base64
import contextlib
import socketserver
import ssl
import threading
from collections.abc import Iterator

from stream.delivery.rules import Email

PASSWORD = "SMTP_PASSWORD"  # noqa: S105  # the variable it is in; it is `sesame`


class Smtp(socketserver.StreamRequestHandler):
    """As much of SMTP as smtplib needs. With a `context` it takes nothing before STARTTLS and a login."""

    mails: list[str]
    heard: list[str]
    answers: dict[str, str]  # instead of what it would say to a verb
    context: ssl.SSLContext | None = None

    def handle(self) -> None:
        self.safe, self.known = False, self.context is None
        self.wfile.write(b"220 test\r\n")
        while line := self.rfile.readline().decode():
            verb, _, rest = line.strip().partition(" ")
            self.heard.append(verb.upper())
            told = self.answers.get(verb.upper()) or self._say(verb, rest)
            self.wfile.write(f"{told}\r\n".encode())
            if verb.upper() == "QUIT" or (verb.upper() == "STARTTLS" and not self._is_safe_now()):
                return

    def _say(self, verb: str, rest: str) -> str:
        said: str = getattr(self, f"_{verb.lower()}", lambda _: "250 ok" if self.known else "530 log in first")(rest)
        return said

    def finish(self) -> None:
        super().finish()
        self.connection.close()

    def _ehlo(self, _: str) -> str:
        if self.context is None:
            return "250 ok"
        return "250-test\r\n250 AUTH LOGIN PLAIN" if self.safe else "250-test\r\n250 STARTTLS"

    def _starttls(self, _: str) -> str:
        return "220 go on"

    def _quit(self, _: str) -> str:
        return "221 bye"

    def _is_safe_now(self) -> bool:
        assert self.context is not None
        try:
            self.connection = self.context.wrap_socket(self.connection, server_side=True)
        except ssl.SSLError:  # the client does not trust it
            return False
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", buffering=0)
        self.safe = True
        return True

    def _auth(self, rest: str) -> str:
        how, _, told = rest.partition(" ")
        self.known = self.safe and how == "PLAIN" and base64.b64decode(told) == b"\0clickwake\0sesame"
        return "235 welcome" if self.known else "535 5.7.8 that is not it"

    def _data(self, _: str) -> str:
        self.wfile.write(b"354 go on\r\n")
        lines = []
        while (one := self.rfile.readline()) != b".\r\n":
            lines.append(one.decode())
        self.mails.append("".join(lines))
        return "250 ok"


@contextlib.contextmanager
def mail_server(context: ssl.SSLContext | None = None) -> Iterator[tuple[type[Smtp], Email]]:
    """A server, and the channel to it."""
    handler = type("One", (Smtp,), {"mails": [], "heard": [], "answers": {}, "context": context})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield handler, Email(host="127.0.0.1", port=server.server_address[1], to="crm@shop.example",
                                 sender="c@shop.example", user="clickwake", password_env=PASSWORD)  # fmt: skip
        finally:
            server.shutdown()
