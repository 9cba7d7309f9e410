"""Signing in to the dashboard, and what attackers try instead."""

from __future__ import annotations

import asyncio
import stat
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Message
from starlette.websockets import WebSocket

from clickwake.dashboard import accounts as kept
from clickwake.dashboard import commands
from clickwake.dashboard.__main__ import refusal
from clickwake.dashboard.accounts import Account, Accounts, BadAccounts, matches, new
from clickwake.dashboard.gate import Gate, _local
from clickwake.dashboard.sessions import ADDRESS_ATTEMPTS, ATTEMPTS, LONGEST_S, Sessions
from stream.settings import Dashboard

PASSWORD = "a long way to the sea"  # noqa: S105 - of these tests
PAGE = {"accept": "text/html"}
HOST = "https://dashboard.example"
COST = kept.N


class Clock:
    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real hash at a cost of milliseconds."""
    monkeypatch.setattr(kept, "N", 1 << 4)
    monkeypatch.setattr(kept, "_NOBODY", msgspec.structs.replace(kept._NOBODY, n=1 << 4))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "accounts.json"
    kept.write(path, {one.name: one for one in (new("ann", "admin", PASSWORD), new("bob", "read", PASSWORD))})
    return path


class Bench:
    """The gate before a page and a socket that say who is there."""

    def __init__(self, path: Path, **settings: object) -> None:
        self.clock = Clock()
        self.sessions = Sessions(Accounts(path), 600.0, self.clock)
        self.settings = Dashboard(host="0.0.0.0", behind_tls=True).model_copy(update=settings)  # noqa: S104
        self.gate = Gate(_app(), self.sessions, self.settings)
        self.cookies = httpx.Cookies()

    def ask(self, method: str, path: str, **how: Any) -> httpx.Response:
        async def asking() -> httpx.Response:
            transport = httpx.ASGITransport(self.gate)
            async with httpx.AsyncClient(transport=transport, base_url=HOST, cookies=self.cookies) as client:
                answer = await client.request(method, path, **how)
                self.cookies = client.cookies
                return answer

        return asyncio.run(asking())

    def sign_in(self, name: str = "ann", password: str = PASSWORD, to: str = "/", **headers: str) -> httpx.Response:
        form = {"name": name, "password": password, "next": to}
        return self.ask("POST", "/sign-in", data=form, headers={"origin": HOST} | headers)

    def page(self, **headers: str) -> httpx.Response:
        return self.ask("GET", "/churn", headers=PAGE | headers)

    def socket(self, origin: str | None = HOST) -> list[Message]:
        """What a socket with the cookies we have is sent."""
        sent: list[Message] = []
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        headers = {"host": urlsplit(HOST).netloc, "cookie": cookie} | ({} if origin is None else {"origin": origin})
        scope = {"type": "websocket", "path": "/ws", "raw_path": b"/ws", "query_string": b"", "subprotocols": [],
                 "scheme": "wss", "server": ("dashboard.example", 443), "client": ("9.9.9.9", 1), "root_path": "",
                 "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}  # fmt: skip

        async def receive() -> Message:
            return {"type": "websocket.connect"}

        async def send(message: Message) -> None:
            sent.append(message)

        asyncio.run(self.gate(scope, receive, send))
        return sent


REFUSED = [{"type": "websocket.close", "code": 1008}]


def _app() -> Starlette:
    async def page(request: Request) -> Response:
        return PlainTextResponse(f"{request.state.visitor.name} {request.state.visitor.role}")

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(websocket.state.visitor.name)
        await websocket.close()

    return Starlette(routes=[Route("/{path:path}", page, methods=["GET", "POST"]), WebSocketRoute("/ws", socket)])


@pytest.fixture
def bench(file: Path) -> Bench:
    return Bench(file)


def test_one_signs_in_sees_the_page_and_signs_out(bench: Bench) -> None:
    assert COST >= 1 << 16, "what OWASP asks for, at r=8, p=2"
    asked = bench.page()
    assert asked.status_code == 401 and 'value="/churn"' in asked.text and "ann" not in asked.text
    done = bench.sign_in(to="/churn")
    assert (done.status_code, done.headers["location"]) == (303, "/churn")
    cookie = done.headers["set-cookie"]
    assert cookie.startswith("__Host-clickwake=")
    assert all(flag in cookie for flag in ("HttpOnly", "SameSite=strict", "Secure", "Path=/")) and "Domain" not in cookie
    shown = bench.page()
    assert (shown.status_code, shown.text) == (200, "ann admin")
    assert shown.headers["x-frame-options"] == "DENY"
    assert bench.ask("POST", "/sign-out", headers={"origin": HOST}).status_code == 303
    bench.cookies.set("__Host-clickwake", cookie.split("=", 1)[1].split(";")[0], "dashboard.example")  # kept by a thief
    assert bench.page().status_code == 401


def test_nothing_is_let_through_before_and_no_socket_either(bench: Bench) -> None:
    for path in ("/", "/users/u1", "/_nicegui/auto/static/x.js", "/sign-in/../churn", "//churn", "/SIGN-IN"):
        assert bench.ask("GET", path).status_code == 401, path
    assert bench.ask("POST", "/churn").status_code == 401
    assert bench.socket() == bench.socket(None) == REFUSED
    bench.sign_in()
    assert {"type": "websocket.send", "text": "ann"} in bench.socket()


def test_whether_it_runs_is_all_that_is_told_to_anybody(bench: Bench) -> None:
    answer = bench.ask("GET", "/health/live", headers={"host": "10.0.0.7:8060"})
    assert (answer.status_code, answer.text) == (200, "ok")


def test_pages_of_other_sites_can_neither_post_nor_open_sockets(bench: Bench) -> None:
    bench.sign_in()
    for origin in ("https://evil.example", "null", "https://dashboard.example.evil.example", "https://dashboard.example:444"):
        assert bench.ask("POST", "/churn", headers={"origin": origin}).status_code == 403
        assert bench.sign_in(origin=origin).status_code == 403, "or they would sign somebody in as themselves"
        assert bench.socket(origin) == REFUSED


def test_without_accounts_only_this_machine_by_its_name_is_answered(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "none.json", host="127.0.0.1", behind_tls=False)
    for host in ("127.0.0.1:8060", "localhost:8060"):
        assert bench.page(host=host).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "[bad"):
        assert bench.page(host=host).status_code == 421
    assert bench.page(host="localhost").text == " admin"


def test_a_wrong_name_and_a_wrong_password_are_told_apart_by_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    real = kept._hash
    monkeypatch.setattr(kept, "_hash", lambda *given: hashed.append(given[2]) or real(*given))
    answers = [bench.sign_in("ann", "x" * 20), bench.sign_in("nobody", "x" * 20)]
    assert answers[0].status_code == answers[1].status_code == 401 and answers[0].text == answers[1].text
    assert hashed[0] == hashed[1], "the same work"


def test_guessing_is_slowed_by_name_and_by_address(bench: Bench) -> None:
    for _ in range(ATTEMPTS):
        assert bench.sign_in(password="wrong" * 4).status_code == 401
    held = bench.sign_in()
    assert held.status_code == 429 and int(held.headers["retry-after"]) > 0, "the right one too: or it could be told by it"
    assert bench.sign_in("bob").status_code == 303
    bench.clock.now_s += 60
    assert bench.sign_in().status_code == 303
    found = [bench.sign_in(f"name {at}", **{"x-forwarded-for": f"1.2.3.{at}, 9.9.9.9"}).status_code
             for at in range(ADDRESS_ATTEMPTS + 5)]  # fmt: skip
    assert found[-1] == 429, "what a client writes before the proxy's word is no other address"
    assert bench.sign_in("bob", **{"x-forwarded-for": "9.9.9.8"}).status_code == 303


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
def test_no_cookie_but_ours_opens(cookie: str) -> None:
    sessions = Sessions(Accounts(Path("/nonexistent/accounts")), 600.0, Clock())
    assert sessions.visitor(cookie) is None


def test_a_cookie_that_was_changed_or_signed_by_another_process_opens_nothing(bench: Bench, file: Path) -> None:
    ann = Accounts(file).known()["ann"]
    own, other = bench.sessions.open(ann), Sessions(Accounts(file), 600.0, bench.clock).open(ann)
    assert bench.sessions.visitor(own) is not None
    assert bench.sessions.visitor(other) is None and bench.sessions.visitor(own.partition(".")[0]) is None
    for at in range(len(own) - 1):  # the last character holds two bits that say nothing
        assert bench.sessions.visitor(own[:at] + ("A" if own[at] != "A" else "B") + own[at + 1:]) is None


def test_a_session_ends_unused_after_a_day_and_with_its_account(bench: Bench, file: Path) -> None:
    sessions, known = bench.sessions, kept.read(file)
    idle, used = sessions.open(known["ann"]), sessions.open(known["bob"])
    for _ in range(3):
        bench.clock.now_s += 400
        visitor = sessions.visitor(used)
        assert visitor is not None and sessions.holds(visitor)
    assert sessions.visitor(idle) is None
    kept.write(file, known | {"bob": new("bob", "admin", PASSWORD + "!")})
    assert not sessions.holds(visitor) and sessions.visitor(used) is None, "another password: who has the old one is out"
    renewed = sessions.open(kept.read(file)["bob"])
    for _ in range(int(LONGEST_S / 500) + 1):
        bench.clock.now_s += 500
        ended = sessions.visitor(renewed) is None
    assert ended


def test_a_role_is_the_accounts_and_a_damaged_file_lets_nobody_in(bench: Bench, file: Path) -> None:
    bench.sign_in("bob")
    assert bench.page().text == "bob read"
    file.write_text('[{"name": "bob", "role": "owner"}]')
    assert bench.page().status_code == 503 and bench.sign_in("ann").status_code == 503


def test_signing_in_leads_to_the_page_of_an_id_that_holds_anything(bench: Bench) -> None:
    page = "/users/12%2FA%25%3F?lang=en"
    asked = bench.ask("GET", page, headers=PAGE)
    assert f'value="{page}"' in asked.text
    assert bench.sign_in(to=page).headers["location"] == page


@pytest.mark.parametrize("to", ["//evil.example", "https://evil.example", "/\\evil.example", "/\t/evil.example", "data:,"])
def test_signing_in_leads_to_no_other_site(bench: Bench, to: str) -> None:
    assert _local(to) == "/" and bench.sign_in(to=to).headers["location"] == "/"


def test_what_is_written_on_the_page_runs_nothing(bench: Bench) -> None:
    asked = bench.ask("GET", '/sign-in?next=/"><script>alert(1)</script>&lang="><script>', headers=PAGE)
    assert "<script>" not in asked.text and asked.status_code == 200
    assert "密码" in bench.ask("GET", "/sign-in?lang=zh").text


@pytest.mark.parametrize(("content", "headers", "status"), [
    (b"name=ann", {"content-type": "application/json"}, 415), (b"a" * 9_000, {}, 413), (b"\xff\xfe", {}, 400),
    (b"=&=&" * 9, {}, 400),
])  # fmt: skip
def test_forms_that_are_none_are_refused(bench: Bench, content: bytes, headers: dict[str, str], status: int) -> None:
    form = {"content-type": "application/x-www-form-urlencoded", "origin": HOST} | headers
    assert bench.ask("POST", "/sign-in", content=content, headers=form).status_code == status


def test_beyond_loopback_nothing_listens_without_tls_and_somebody_who_may_sign_in(file: Path, tmp_path: Path) -> None:
    none, some = Accounts(tmp_path / "none.json"), Accounts(file)
    everywhere = Dashboard(host="0.0.0.0")  # noqa: S104
    assert refusal(Dashboard(), none) is None
    assert "BEHIND_TLS" in str(refusal(everywhere, some))
    assert "add-user" in str(refusal(everywhere.model_copy(update={"behind_tls": True}), none))
    assert refusal(everywhere.model_copy(update={"behind_tls": True}), some) is None
    file.write_text("{")
    assert "cannot be read" in str(refusal(Dashboard(), some))


def test_users_are_added_and_taken_out_by_commands_and_no_password_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLICKWAKE_HOME", str(tmp_path))
    commands.add("ann", "admin", generate=True, stdin=False)
    password = capsys.readouterr().out.strip()
    path = tmp_path / "dashboard-accounts.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert password not in path.read_text() and matches(kept.read(path)["ann"], password)
    commands.users(as_json=True)
    assert msgspec.json.decode(capsys.readouterr().out) == [{"name": "ann", "role": "admin", "tenants": None}]
    commands.add("eve", "read", tenants=["t", "u"], generate=True, stdin=False)
    assert kept.read(path)["eve"].tenants == ("t", "u") and kept.read(path)["ann"].tenants is None
    commands.remove("eve")
    for refused in (lambda: commands.add("bob", "owner", generate=True, stdin=False), lambda: commands.remove("bob")):
        with pytest.raises(SystemExit):
            refused()
    commands.remove("ann")
    assert kept.read(path) == {} and Accounts(path).kept(), "the last one out does not open the door to everybody"


@pytest.mark.parametrize(("name", "password"), [("ann", "short"), ("", PASSWORD), (" ann", PASSWORD), ("a\nb", PASSWORD),
                                                ("a" * 65, PASSWORD), ("ann", "x" * 2_000)])  # fmt: skip
def test_short_passwords_and_names_nobody_could_type_are_refused(name: str, password: str) -> None:
    with pytest.raises(BadAccounts):
        new(name, "read", password)


def test_the_same_password_has_another_hash_each_time_and_a_real_one_is_slow() -> None:
    one, other = new("ann", "read", PASSWORD), new("ann", "read", PASSWORD)
    assert one.digest != other.digest and matches(one, PASSWORD) and not matches(one, PASSWORD + " ")
    started = time.process_time()
    assert not matches(real_cost(one), PASSWORD)  # the digest is the cheap one's
    assert time.process_time() - started > 0.02


def real_cost(account: Account) -> Account:
    return msgspec.structs.replace(account, n=COST)
