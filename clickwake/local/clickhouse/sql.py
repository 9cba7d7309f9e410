"""Just enough of ClickHouse's grammar to route a statement: where an INSERT's data begins, which format comes out.

The engine parses everything again; what is told apart here only decides which of its entry points is called.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from clickwake.local.clickhouse.errors import ACCESS_DENIED, NOT_IMPLEMENTED, SYNTAX_ERROR, QueryError

_TOKEN = re.compile(
    rb"""(?P<blank>\s+|--[^\n]*|\#[!\ ][^\n]*|/\*.*?\*/)
       |(?P<string>'(?:[^'\\]|\\.|'')*')
       |(?P<quoted>`(?:[^`\\]|\\.|``)*`|"(?:[^"\\]|\\.|"")*")
       |(?P<heredoc>\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)
       |(?P<word>[A-Za-z_\x80-\xff][\w\x80-\xff]*)
       |(?P<number>\d[\w.]*)
       |(?P<other>.)""",
    re.DOTALL | re.VERBOSE,
)
# They would read files of whoever runs the server, or start programs; a real server confines them to a folder.
_LOCAL_FUNCTIONS = {b"FILE", b"FILECLUSTER", b"EXECUTABLE", b"PYTHON", b"SQLITE", b"EXECUTABLEPOOL"}
_ANSWERING = {b"SELECT", b"WITH", b"(", b"FROM", b"SHOW", b"DESCRIBE", b"DESC", b"EXISTS", b"EXPLAIN", b"CHECK", b"KILL"}
_OPENING, _CLOSING = b"([{", b")]}"


@dataclass(frozen=True)
class Token:
    kind: str
    text: bytes  # words in upper case
    start: int
    end: int
    depth: int


@dataclass(frozen=True)
class Statement:
    """`head` is what to run; of an INSERT with data, it ends before FORMAT or VALUES, and data starts at `data_at`."""

    verb: bytes
    head: bytes
    format: str | None  # the output's, or the inserted data's
    data_at: int | None
    keeps_state: bool  # SET, USE, temporary tables: what a session is for

    @property
    def is_insert(self) -> bool:
        return self.data_at is not None

    @property
    def has_output(self) -> bool:
        return self.verb in _ANSWERING

    @property
    def may_stream(self) -> bool:
        return self.verb in (b"SELECT", b"WITH", b"(")


def tokens(sql: bytes) -> Iterator[Token]:
    """
    >>> [t.text for t in tokens(b"select 'a;b' -- c")]
    [b'SELECT', b"'a;b'"]
    """
    depth = 0
    for match in _TOKEN.finditer(sql):
        kind = "heredoc" if match.lastgroup == "tag" else match.lastgroup or ""
        if kind == "blank":
            continue
        text = match[0].upper() if kind == "word" else match[0]
        if kind == "other" and text in _CLOSING:
            depth -= 1
        yield Token(kind, text, match.start(), match.end(), depth)
        if kind == "other" and text in _OPENING:
            depth += 1


def describe(sql: bytes, *, complete: bool = True) -> Statement | None:
    """What kind of statement `sql` is; None when it is an INSERT whose data is not in sight yet and more may come.

    Raises `QueryError` for what this server refuses: several statements at once, files of the server's machine.

    >>> describe(b"INSERT INTO t (a) FORMAT TSV\\n1").head
    b'INSERT INTO t (a) '
    >>> describe(b"SELECT 1 FORMAT JSON").format
    'JSON'
    >>> describe(b"INSERT INTO t", complete=False) is None
    True
    """
    stream = tokens(sql)
    first = next(stream, None)
    if first is None:
        return None if not complete else Statement(b"", sql, None, None, False)
    if first.text == b"INSERT":
        return _insert(sql, stream, complete)
    if not complete:
        return None
    return _other(sql, [first, *stream])


def _insert(sql: bytes, stream: Iterator[Token], complete: bool) -> Statement | None:
    previous = b"INSERT"
    rest: list[Token] = []
    for token in stream:
        rest.append(token)
        if token.kind == "word" and token.depth == 0 and previous not in (b"INTO", b"TABLE", b"."):
            if token.text == b"INFILE":
                raise QueryError.refused(NOT_IMPLEMENTED, "FROM INFILE is for clickhouse-client: send the file as the body")
            if token.text in (b"SELECT", b"WITH"):
                return _other(sql, [Token("word", b"INSERT", 0, 6, 0), *rest, *stream]) if complete else None
            if token.text == b"VALUES":
                return Statement(b"INSERT", sql[:token.start], "Values", token.end, False)
            if token.text == b"FORMAT":
                name = next(stream, None)
                if name is None or (name.end == len(sql) and not complete):
                    return None if not complete else _other(sql, rest)
                return Statement(b"INSERT", sql[:token.start], sql[name.start:name.end].decode(),
                                 _data_start(sql, name.end), False)
        _refuse_local(previous, token, rest)
        previous = token.text
    return Statement(b"INSERT", sql, None, None, False) if complete else None


def _data_start(sql: bytes, end: int) -> int:
    """Data begins after the first line break, if only blanks precede it, else after the blanks."""
    blanks = re.compile(rb"[ \t\f\r]*\n?").match(sql, end)
    return blanks.end() if blanks else end


def _other(sql: bytes, found: list[Token]) -> Statement:
    end = len(found)
    while end and found[end - 1].text == b";":
        end -= 1
    if any(token.text == b";" for token in found[:end]):
        raise QueryError.refused(SYNTAX_ERROR, "Multi-statements are not allowed: send one statement a request")
    previous = b""
    for position, token in enumerate(found[:end]):
        _refuse_local(previous, token, found[:position + 1])
        if token.text == b"OUTFILE" and previous == b"INTO":
            raise QueryError.refused(NOT_IMPLEMENTED, "INTO OUTFILE is for clickhouse-client: the answer is the file")
        previous = token.text
    words = [token.text for token in found[:4]]
    keeps = words[0] in (b"SET", b"USE") or (words[0] in (b"CREATE", b"DROP", b"ATTACH") and b"TEMPORARY" in words)
    head = sql[:found[end].start] if end < len(found) else sql
    return Statement(words[0], head, _output_format(sql, found[:end]), None, keeps)


def _output_format(sql: bytes, found: list[Token]) -> str | None:
    """The name after FORMAT, when nothing but SETTINGS follows it."""
    for position in range(len(found) - 2, 0, -1):
        token, name = found[position], found[position + 1]
        if token.text == b"FORMAT" and token.kind == name.kind == "word" and token.depth == 0:
            after = found[position + 2].text if position + 2 < len(found) else b"SETTINGS"
            return sql[name.start:name.end].decode() if after == b"SETTINGS" else None
    return None


def _refuse_local(previous: bytes, token: Token, so_far: list[Token]) -> None:
    """`so_far` ends with `token`; a table or column that happens to be called `file` is allowed after INTO or TABLE."""
    if token.text != b"(" or previous not in (*_LOCAL_FUNCTIONS, b"INPUT"):
        return
    before = so_far[-3].text if len(so_far) > 2 else b""
    if previous == b"INPUT" and before in (b"FROM", b"JOIN", b","):
        raise QueryError.refused(NOT_IMPLEMENTED, "the embedded server has no input(): insert the rows as they are, then "
                                                  "transform them with INSERT … SELECT from that table")
    if previous in _LOCAL_FUNCTIONS and before not in (b"INTO", b"TABLE", b"EXISTS", b".", b","):
        raise QueryError.refused(ACCESS_DENIED, f"{previous.decode().lower()}() reaches files of the machine the server "
                                                "runs on, which the embedded server does not allow")


def from_infile(head: bytes, path: str, data_format: str) -> bytes:
    """An INSERT whose data is a file of this machine; the grammar wants the file before SETTINGS.

    >>> from_infile(b"INSERT INTO t (a) SETTINGS x = 1 ", "/f", "CSV")
    b"INSERT INTO t (a) FROM INFILE '/f' COMPRESSION 'none' SETTINGS x = 1 FORMAT CSV"
    """
    at, previous = len(head), b""
    for token in tokens(head):
        named = previous in (b"INTO", b"TABLE", b".")
        if token.kind == "word" and token.depth == 0 and token.text == b"SETTINGS" and not named:
            at = token.start
            break
        previous = token.text
    escaped = path.replace("\\", "\\\\").replace("'", "\\'")
    parts = (head[:at], f"FROM INFILE '{escaped}' COMPRESSION 'none'".encode(), head[at:], f"FORMAT {data_format}".encode())
    return b" ".join(part.strip() for part in parts if part.strip())
