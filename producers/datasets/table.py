"""Rows of a data set: read line by line, in event-time order, each one accounted for.

A line is a row: none of the sets has line breaks inside a field, and a stray quote then costs one row, not the rest
of the file. Empty lines are no rows. Rows are numbered from 1, without the header where there is one.
"""

from __future__ import annotations

import array
import csv
import gzip
import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from schemas.dead_letter import Kind
from schemas.events import user_of

GZIP_MAGIC = b"\x1f\x8b"
NO_TIME = -(2**62)  # sorts an undated first line before everything


class DatasetError(ValueError):
    """The file as a whole cannot be read: missing, not this data set, or cut off."""


class Invalid(ValueError):
    """One row cannot be read. `path` is the column."""

    def __init__(self, path: str, keyword: str, message: str) -> None:
        super().__init__(message)
        self.path, self.keyword, self.message = path, keyword, message


class Drop(Exception):
    """One row is left out on purpose, for `reason`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Accepted(msgspec.Struct, frozen=True):
    """`event` is canonical: `schemas.events.encode(event)` is what travels."""

    row: int
    event: dict[str, Any]
    ts_ms: int

    @property
    def user(self) -> str:
        return user_of(self.event)


class Dropped(msgspec.Struct, frozen=True):
    """Readable, and left out on purpose."""

    row: int
    reason: str
    raw: bytes


class Rejected(msgspec.Struct, frozen=True):
    """Not readable: `path` names the column. `user` and `ts_ms`: whose it is and when it happened, "" and 0 where nobody can
    tell."""

    row: int
    path: str
    keyword: str
    message: str
    raw: bytes
    user: str = ""
    ts_ms: int = 0
    kind: Kind = "undecodable"


Row = Accepted | Dropped | Rejected
Parse = Callable[[int, list[str]], tuple[dict[str, Any], int]]  # (row, fields) → (event, its time in ms)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's content, decompressed if it is gzip whatever its name is; it may be a pipe, which is read once. Raises
    DatasetError where it cannot be opened, or is cut off or damaged, once that is read."""
    with ExitStack() as open_:
        try:
            file = open_.enter_context(path.open("rb"))
            zipped = file.peek(len(GZIP_MAGIC)).startswith(GZIP_MAGIC)
        except OSError as error:
            raise DatasetError(f"Cannot open {path}: {error.strerror or error}. Name an existing file.") from error
        try:
            yield cast(IO[bytes], open_.enter_context(gzip.GzipFile(fileobj=file))) if zipped else file
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DatasetError(f"{path} is cut off or damaged: {error}. Fetch it again.") from error


def lines(path: Path, header: Sequence[str] | None) -> Iterator[tuple[int, bytes]]:
    """(row, line) for each row after the header, which must be `header`, None where there is none; raises DatasetError."""
    with opened(path) as file:
        row = 0
        first = file.readline().removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")
        if header is not None and first.decode("utf-8", "replace").split(",") != list(header):
            raise DatasetError(f"{path} starts with {first[:200]!r}; expected the columns {','.join(header)}")
        for line in file if header is not None else itertools.chain((first,), file):
            stripped = line.rstrip(b"\r\n")
            if stripped:
                row += 1
                yield row, stripped


def fields(line: bytes, columns: int) -> list[str]:
    """The fields of one CSV line; raises Invalid.

    >>> fields(b'a,"b,c",d', 3)
    ['a', 'b,c', 'd']
    """
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise Invalid("", "encoding", f"the line is not UTF-8 at byte {error.start}") from error
    if '"' in text:
        try:
            values = next(csv.reader([text], strict=True))
        except csv.Error as error:
            raise Invalid("", "csv", f"the line is not CSV: {error}") from error
    else:
        values = text.split(",")
    if len(values) != columns:
        raise Invalid("", "columns", f"the line has {len(values)} fields, expected {columns}")
    return values


def number(text: str, column: str) -> float:
    """A finite number; raises Invalid naming the column."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise Invalid(column, "type", f"{text[:80]!r} is not a number")
    return value


def unix_seconds(text: str, column: str) -> int:
    """Seconds since 1970 of a plausible event, 2000 to 2100; raises Invalid naming the column."""
    if not (text.isascii() and text.isdigit() and 946_684_800 <= int(text[:12]) < 4_102_444_800):
        raise Invalid(column, "format", f"{text[:80]!r} is not a time in seconds since 1970, between 2000 and 2100")
    return int(text)


def required(text: str, column: str) -> str:
    """A field that identifies something: not empty, at most 256 characters; raises Invalid naming the column."""
    if not 0 < len(text) <= 256:
        raise Invalid(column, "length", f"needs 1 to 256 characters, has {len(text)}")
    return text


def parsed(row: int, line: bytes, columns: int, parse: Parse) -> Row:
    try:
        event, ts_ms = parse(row, fields(line, columns))
    except Invalid as error:
        return Rejected(row, error.path, error.keyword, error.message, line)
    except Drop as drop:
        return Dropped(row, drop.reason, line)
    return Accepted(row, event, ts_ms)


def in_event_time(path: Path, header: Sequence[str], time: Callable[[list[str]], int], parse: Parse) -> Iterator[Row]:
    """`lines_in_event_time` of a CSV file, whose rows `time` and `parse` take as fields."""
    columns = len(header)
    return lines_in_event_time(path, header, lambda line: time(fields(line, columns)),
                               lambda row, line: parsed(row, line, columns, parse))  # fmt: skip


def lines_in_event_time(path: Path, header: Sequence[str] | None, time: Callable[[bytes], int],
                        parse: Callable[[int, bytes], Row]) -> Iterator[Row]:
    """Every row of the file, parsed, in the order of `time`; rows of equal time keep the file's order.

    A first pass reads the times only. A sorted file is then streamed; another is held in memory (a CSV of some 200 bytes a
    row, JSON of some 500). A row whose time cannot be read, for which `time` raises Invalid, stays behind the row before it.
    The order depends on the content alone, so that a position in it can be resumed.
    """
    times, last, in_order = array.array("q"), NO_TIME, True
    for _, line in lines(path, header):
        try:
            current = time(line)
        except Invalid:
            current = last
        in_order = in_order and current >= last
        times.append(current)
        last = current
    if in_order:
        for row, line in lines(path, header):
            yield parse(row, line)
        return
    held = [line for _, line in lines(path, header)]
    for index in sorted(range(len(held)), key=times.__getitem__):
        yield parse(index + 1, held[index])
