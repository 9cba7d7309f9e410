"""What an HTTP request asks for: who, which settings, which query, where its data begins."""

from __future__ import annotations

import base64
import binascii
import email.parser
import email.policy
import hmac
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from clickwake.local.clickhouse.codec import Decoder
from clickwake.local.clickhouse.errors import (
    AUTHENTICATION_FAILED,
    BAD_ARGUMENTS,
    NOT_IMPLEMENTED,
    SYNTAX_ERROR,
    QueryError,
)
from clickwake.local.clickhouse.sql import Statement, describe

INSERT_HEAD_BYTES_MAX = 256 * 1024  # the engine's own max_query_size: the INSERT must be told from its data within this
QUERY_BYTES_MAX = 64 << 20  # a query is held in memory; the engine's max_query_size is checked after this one
# Parameters of the HTTP interface; every other one is a setting of the query.
_OURS = {"query", "database", "default_format", "session_id", "session_timeout", "session_check", "close_session",
         "query_id", "user", "password", "quota_key", "compress", "decompress", "buffer_size", "wait_end_of_query",
         "stacktrace", "client_protocol_version", "role", "enable_http_compression", "send_progress_in_http_headers",
         "http_headers_progress_interval_ms", "cancel_http_readonly_queries_on_client_close"}


@dataclass
class Request:
    method: str
    headers: dict[str, str]  # names in lower case
    arguments: dict[str, str]
    body: AsyncIterator[bytes]
    settings: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)

    @property
    def query_id(self) -> str:
        return self.arguments.setdefault("query_id", str(uuid.uuid4()))

    @property
    def database(self) -> str:
        return self.arguments.get("database") or self.headers.get("x-clickhouse-database", "")

    @property
    def default_format(self) -> str:
        return self.arguments.get("default_format") or self.headers.get("x-clickhouse-format", "") or "TabSeparated"

    @property
    def whole_answer(self) -> bool:
        """Wait for the end of the query, so that the status tells how it ended."""
        return self.arguments.get("wait_end_of_query", "0") in ("1", "true")

    @property
    def accept_encoding(self) -> str:
        """Empty unless the client switched compression on, as the server wants it."""
        wanted = self.arguments.get("enable_http_compression", "0") in ("1", "true")
        return self.headers.get("accept-encoding", "") if wanted else ""


def parse(scope: dict[str, Any], body: AsyncIterator[bytes]) -> Request:
    """The request of an ASGI scope. Raises `QueryError` for parameters this server cannot honour."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    arguments = dict(parse_qsl(scope["query_string"].decode(), keep_blank_values=True))
    request = Request(scope["method"], headers, arguments, body)
    _sort_arguments(request, arguments)
    for name in ("compress", "decompress"):
        if arguments.get(name, "0") not in ("0", "false", ""):
            raise QueryError.refused(NOT_IMPLEMENTED, f"{name}=1 (ClickHouse's own block compression) is not supported by "
                                                      "the embedded server; use enable_http_compression=1 instead")
    if arguments.get("role"):
        raise QueryError.refused(NOT_IMPLEMENTED, "the embedded server has one user and no roles; leave `role` out")
    return request


def _sort_arguments(request: Request, arguments: dict[str, str]) -> None:
    for name, value in arguments.items():
        if name.startswith("param_"):
            request.params[name.removeprefix("param_")] = value
        elif name not in _OURS:
            request.settings[name] = value


def authenticate(request: Request, user: str, password: str) -> None:
    """Basic auth, X-ClickHouse-User and -Key, or user and password in the URL. Raises `QueryError` 516."""
    given_user, given = request.headers.get("x-clickhouse-user"), request.headers.get("x-clickhouse-key", "")
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    if given_user is None and scheme.lower() == "basic":
        try:
            given_user, _, given = base64.b64decode(credentials, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise QueryError.refused(AUTHENTICATION_FAILED, "Invalid HTTP Basic authentication") from error
    elif given_user is None and scheme:
        raise QueryError.refused(AUTHENTICATION_FAILED, f"{scheme} authentication is not supported by the embedded server")
    elif given_user is None:
        given_user, given = request.arguments.get("user", "default"), request.arguments.get("password", "")
    if (given_user or "default") != user or not hmac.compare_digest(given.encode(), password.encode()):
        raise QueryError.refused(AUTHENTICATION_FAILED, f"{given_user}: Authentication failed: password is incorrect, or "
                                                        "there is no user with such name")


async def read_query(request: Request) -> tuple[Statement, AsyncIterator[bytes]]:
    """The statement, and the data of an INSERT as it arrives (nothing for every other statement)."""
    content_type = request.headers.get("content-type", "")
    if content_type.startswith("multipart/form-data"):
        await _read_form(request, content_type)
    in_url = request.arguments.get("query", "").encode()
    pieces = _decoded(request)
    head = in_url + b"\n" if in_url else b""
    statement = describe(head, complete=False) if head else None
    ended = False
    while statement is None and not ended:
        piece = await anext(pieces, None)
        ended = piece is None
        head += piece or b""
        if ended or (len(head) <= INSERT_HEAD_BYTES_MAX and head[:64].lstrip()[:6].upper() == b"INSERT"):
            statement = describe(head, complete=ended)
        if len(head) > QUERY_BYTES_MAX:
            raise QueryError.refused(SYNTAX_ERROR, f"Max query size exceeded: more than {QUERY_BYTES_MAX} bytes")
    if statement is None or not statement.verb:
        raise QueryError.refused(SYNTAX_ERROR, "Syntax error: Empty query")
    first = head[statement.data_at:] if statement.data_at is not None else b""
    if in_url and first == b"\n":
        first = b""  # the line break that was put between the URL's query and the body
    return statement, _data(first, pieces)


async def _data(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first:
        yield first
    async for piece in rest:
        if piece:
            yield piece


async def _decoded(request: Request) -> AsyncIterator[bytes]:
    decoder = Decoder(request.headers.get("content-encoding", "").strip().lower())
    async for piece in request.body:
        yield decoder.feed(piece)
    decoder.finish()


async def _read_form(request: Request, content_type: str) -> None:
    """Fields of a form are URL parameters that did not fit into the URL."""
    raw = b"".join([piece async for piece in request.body])
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + raw)
    fields: dict[str, str] = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        if part.get_filename() is not None:
            raise QueryError.refused(NOT_IMPLEMENTED, f"external data ({name}) is not supported by the embedded server; "
                                                      "insert it into a temporary table of a session instead")
        if not isinstance(name, str):
            raise QueryError.refused(BAD_ARGUMENTS, "a part of the form has no name")
        content = part.get_payload(decode=True)
        fields[name] = content.decode() if isinstance(content, bytes) else ""
    if "query" in fields and request.arguments.get("query"):
        fields["query"] = request.arguments["query"] + "\n" + fields["query"]
    request.arguments.update(fields)
    _sort_arguments(request, fields)
    request.body = _nothing()


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""
