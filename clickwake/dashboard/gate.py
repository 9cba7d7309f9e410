"""In front of every page, file and socket of the dashboard: who has not signed in gets the page where one does.

Where there are no accounts, on loopback alone, everybody is let in as before; but a request must be about this machine by
name, or a page elsewhere could reach it by a DNS name that it lets point here. Sockets and forms must come from our own
pages: browsers say where from (`Origin`).
"""

from __future__ import annotations

import asyncio
import html
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qsl, urlencode, urlsplit

import structlog
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clickwake.dashboard.accounts import BadAccounts, matches
from clickwake.dashboard.sessions import Sessions, TooManyAttempts, Visitor
from clickwake.dashboard.words import Words, language
from stream.http import body
from stream.http.answers import Refused
from stream.http.page import STYLE
from stream.http.quoted import quoted_path
from stream.settings import LOOPBACK, Dashboard

IN, OUT = "/sign-in", "/sign-out"
HEALTH = "/health/live"  # says that the process answers, to anybody
FORM_BYTES_MAX = 8_192
FORMS = ("application/x-www-form-urlencoded",)
WAITING_MAX = 8  # attempts whose passwords are not looked at yet
ANYBODY = Visitor("", "admin")  # who sits at the machine
HEADERS = {
    "X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}  # fmt: skip
FORM = """<!doctype html><html lang="{lang}"><head><meta charset="utf-8"><title>Clickwake · {title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}
main{{max-width:22rem;margin:12vh auto}}label{{display:block;margin-top:1rem}}
input{{font:inherit;width:100%;box-sizing:border-box;padding:.5rem;border:1px solid #7d8790;border-radius:4px;
background:transparent;color:inherit}}
button{{font:inherit;margin-top:1.5rem;padding:.5rem 1.5rem;border:0;border-radius:4px;background:#0b6e5f;color:#fff}}
:focus-visible{{outline:3px solid #0b8a76;outline-offset:2px}}[role=alert]{{color:#b3261e}}
@media(prefers-color-scheme:dark){{[role=alert]{{color:#ff8f86}}}}</style></head><body><main>
<h1>Clickwake</h1><p><a lang="{other}" href="{there}">{other_name}</a></p>{said}
<form method="post" action="/sign-in?lang={lang}">
<input type="hidden" name="next" value="{next}">
<label>{name}<input name="name" autocomplete="username" autofocus required maxlength="64"></label>
<label>{password}<input name="password" type="password" autocomplete="current-password" required maxlength="1024"></label>
<button>{title}</button></form></main></body></html>"""

log = structlog.get_logger()


class Gate:
    """ASGI middleware. What it lets through finds the visitor in `request.state.visitor`."""

    def __init__(self, app: ASGIApp, sessions: Sessions, settings: Dashboard) -> None:
        self.app, self.sessions, self.settings = app, sessions, settings
        self._hashing = ThreadPoolExecutor(1, "passwords")  # a flood takes one core and 64 MiB, not all there is
        self._waiting = 0

    @property
    def cookie(self) -> str:
        """`__Host-`: only we can have set it, over TLS, for this host (RFC 6265bis, 4.1.3)."""
        return "__Host-clickwake" if self.settings.behind_tls else "clickwake"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        asked = HTTPConnection(scope)
        try:
            answer = await self._answer(asked, scope, receive)
        except BadAccounts as error:
            log.error("nobody can sign in", why=str(error))
            answer = HTMLResponse("The dashboard's accounts cannot be read; its log says why.", 503)
        if answer is None:
            await self.app(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            answer.headers.update(HEADERS | {"Cache-Control": "no-store"})
            await answer(scope, receive, send)

    async def _answer(self, asked: HTTPConnection, scope: Scope, receive: Receive) -> Response | None:
        """What is answered here; None for what goes on to the pages."""
        if scope["type"] == "http" and scope["path"] == HEALTH:
            return PlainTextResponse("ok")
        needed = self.settings.host not in LOOPBACK or self.sessions.accounts.kept()
        if not needed and _name(f"//{asked.headers.get('host', '')}") not in LOOPBACK:
            return HTMLResponse("This dashboard has no accounts: it answers to 127.0.0.1 and localhost only.", 421)
        changes = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD", "OPTIONS")
        if changes and not _ours(asked):
            return HTMLResponse("This came from a page of another site.", 403)
        visitor = self.sessions.visitor(asked.cookies.get(self.cookie)) if needed else ANYBODY
        path = scope["path"]
        if scope["type"] == "http" and path == IN and needed:
            return await self._sign_in(Request(scope, receive))
        if scope["type"] == "http" and path == OUT and scope["method"] == "POST":
            return self._sign_out(visitor)
        if visitor is None:
            if scope["type"] == "http" and scope["method"] == "GET" and "text/html" in asked.headers.get("accept", ""):
                query = f"?{asked.url.query}" if asked.url.query else ""
                return self._form(asked, next_=quoted_path(scope) + query)
            return HTMLResponse("Sign in first.", 401)
        scope.setdefault("state", {})["visitor"] = visitor
        return None

    async def _sign_in(self, request: Request) -> Response:
        if request.method == "GET":
            return self._form(request, next_=request.query_params.get("next", "/"), status=200)
        try:
            form = await _form_of(request)
        except Refused as error:
            return HTMLResponse(html.escape(error.message), error.status)
        name, password, to = (form.get(one, "") for one in ("name", "password", "next"))
        try:
            cookie = await self._attempt(name, password, request)
        except TooManyAttempts as error:
            answer = self._form(request, "Too many attempts. Try again later.", to, 429)
            answer.headers["Retry-After"] = str(error.wait_s)
            return answer
        if cookie is None:
            return self._form(request, "Name or password is wrong.", to, 401)
        done = RedirectResponse(_local(to), 303)
        done.set_cookie(self.cookie, cookie, path="/", httponly=True, samesite="strict", secure=self.settings.behind_tls)
        return done

    async def _attempt(self, name: str, password: str, request: Request) -> str | None:
        """The cookie of a new session; None for a wrong name or password, which look alike."""
        address = body.address(request, self.settings.behind_tls)
        self.sessions.admit(name, address)
        if self._waiting >= WAITING_MAX:
            raise TooManyAttempts(1)
        self._waiting += 1
        try:
            account = self.sessions.accounts.known().get(name)
            right = await asyncio.get_running_loop().run_in_executor(self._hashing, matches, account, password)
        finally:
            self._waiting -= 1
        cookie = self.sessions.open(account) if right and account is not None else None
        log.info("signed in" if cookie else "sign-in refused", name=name[:64], address=address)
        return cookie

    def _sign_out(self, visitor: Visitor | None) -> Response:
        if visitor is not None:
            self.sessions.close(visitor)
        done = RedirectResponse(IN, 303)
        done.delete_cookie(self.cookie, path="/", httponly=True, samesite="strict", secure=self.settings.behind_tls)
        return done

    def _form(self, asked: HTTPConnection, said: str = "", next_: str = "/", status: int = 401) -> HTMLResponse:
        t = Words(language(asked.query_params.get("lang", ""), asked.headers.get("accept-language", "")))
        alert = f'<p role="alert">{html.escape(t(said))}</p>' if said else ""
        other, name = ("en", "English") if t.language == "zh" else ("zh", "中文")
        there = f"{IN}?{urlencode({'lang': other, 'next': _in_language(_local(next_), other)})}"
        return HTMLResponse(FORM.format(
            lang=t.language, style=STYLE, said=alert, next=html.escape(_local(next_)), title=html.escape(t("Sign in")),
            name=html.escape(t("Name")), password=html.escape(t("Password")), other=other, other_name=name,
            there=html.escape(there)), status)  # fmt: skip


async def _form_of(request: Request) -> dict[str, str]:
    """Fields of a form. Raises Refused 400, 408, 413 or 415."""
    raw = await body.read(request, FORM_BYTES_MAX, "the form", media_types=FORMS)
    try:
        return dict(parse_qsl(raw.decode(), keep_blank_values=True, max_num_fields=8, strict_parsing=True))
    except ValueError as error:
        raise Refused(400, "invalid_form", "The form cannot be read.") from error


def _ours(asked: HTTPConnection) -> bool:
    """Whether it comes from one of our pages; what is no browser says nothing, and carries no cookie by itself."""
    origin = asked.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == asked.headers.get("host")


def _name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _local(path: str) -> str:
    """Where to go after signing in: a path of ours, never another site.

    >>> _local("/churn?lang=zh"), _local("//evil.example/"), _local("/\\\\evil.example"), _local("https://evil.example")
    ('/churn?lang=zh', '/', '/', '/')
    """
    good = path.startswith("/") and not path.startswith(("//", "/\\", IN)) and path.isprintable() and "\\" not in path
    return path if good else "/"


def _in_language(path: str, language: str) -> str:
    """The same page in another language.

    >>> _in_language("/churn?lang=en&tenant=a%26b", "zh"), _in_language("/", "zh")
    ('/churn?lang=zh&tenant=a%26b', '/?lang=zh')
    """
    asked = urlsplit(path)
    return f"{asked.path}?{urlencode(dict(parse_qsl(asked.query)) | {'lang': language})}"


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()),
                                  *((name.lower().encode(), value.encode()) for name, value in HEADERS.items())]  # fmt: skip
        await send(message)

    return sending
