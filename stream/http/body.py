"""Reads a request's body without ever holding more than the limit, compressed or not, and finds the key, and the address."""

from __future__ import annotations

import asyncio
import base64
import binascii
import zlib

from starlette.requests import ClientDisconnect, HTTPConnection, Request

from stream.http.answers import Refused

BODY_TIMEOUT_S = 15.0  # a slow phone sends 500 KiB in that; a client that drips bytes holds a slot no longer
MEDIA_TYPES = ("application/json", "text/plain", "application/octet-stream", "")  # sendBeacon sends text/plain
GZIP_WBITS = 31
ADDRESS_BYTES_MAX = 32 * 1024  # one event; a batch is posted


def too_large(limit: int, what: str) -> Refused:
    return Refused(413, "too_large", f"{what} is larger than {limit:,} bytes, compressed or not. Send it in smaller parts.")


class Inflater:
    """Decompresses gzip piece by piece, any number of members, and stops at the limit: a bomb costs its first bytes.

    >>> import gzip
    >>> inflater = Inflater(100, "the body")
    >>> inflater.feed(gzip.compress(b"abc")) + inflater.feed(b"") + inflater.finish()
    b'abc'
    """

    def __init__(self, limit: int, what: str) -> None:
        self._limit, self._what, self._room = limit, what, limit
        self._stream = zlib.decompressobj(GZIP_WBITS)
        self._started = False

    def feed(self, piece: bytes) -> bytes:
        out = bytearray()
        while piece:
            if self._stream.eof:
                self._stream = zlib.decompressobj(GZIP_WBITS)
            self._started = True
            try:
                part = self._stream.decompress(piece, self._room + 1)
            except zlib.error as error:
                raise Refused(400, "invalid_gzip", f"The body is not valid gzip: {error}.") from error
            if len(part) > self._room:
                raise too_large(self._limit, self._what)
            self._room -= len(part)
            out += part
            piece = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
        return bytes(out)

    def finish(self) -> bytes:
        if not (self._started and self._stream.eof):
            raise Refused(400, "invalid_gzip", "The gzip body is cut off.")
        return b""


def query(request: Request) -> str:
    """What stands behind the `?`; raises Refused 413."""
    raw: bytes = request.scope["query_string"]
    if len(raw) > ADDRESS_BYTES_MAX:
        raise too_large(ADDRESS_BYTES_MAX, "The address")
    return raw.decode(errors="replace")


def inflated(raw: bytes, limit: int, what: str) -> bytes:
    """Raises Refused 400 or 413."""
    inflater = Inflater(limit, what)
    return inflater.feed(raw) + inflater.finish()


async def read(
    request: Request, limit: int, what: str, *, gzipped: bool = False, media_types: tuple[str, ...] = MEDIA_TYPES
) -> bytes:
    """The decompressed body; raises Refused 400, 408, 413 or 415. `gzipped`: it is, whether its header says so or not."""
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type not in media_types:
        raise Refused(415, "unsupported_media_type", f"Content-Type {media_type!r} is not taken; send application/json.")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", ""):
        raise Refused(415, "unsupported_encoding", f"Content-Encoding {encoding!r} is not taken; send gzip or none.")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise too_large(limit, what)
    inflater = Inflater(limit, what) if gzipped or encoding == "gzip" else None
    body, received = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for piece in request.stream():
                received += len(piece)
                if received > limit:
                    raise too_large(limit, what)
                body += inflater.feed(piece) if inflater else piece
    except TimeoutError:
        raise Refused(408, "timeout", f"The body did not arrive within {BODY_TIMEOUT_S:g} s.") from None
    except ClientDisconnect:
        raise Refused(400, "disconnected", "The client went away before the body was complete.") from None
    if inflater:
        inflater.finish()
    return bytes(body)


def address(request: HTTPConnection, behind_tls: bool) -> str:
    """Of the client: behind a proxy the last the proxy named, for whatever stands before it anybody may have written. Empty
    where nobody says it."""
    told = request.headers.get("x-forwarded-for", "") if behind_tls else ""
    return told.rpartition(",")[2].strip() or (request.client.host if request.client else "")


def basic_key(request: Request) -> str | None:
    """The user name of Basic auth, which is the key; None without such a header. Raises Refused 401."""
    return basic(request.headers.get("authorization", ""))


def basic(authorization: str) -> str | None:
    """The same of the header itself."""
    scheme, _, credentials = authorization.partition(" ")
    if not scheme:
        return None
    try:
        if scheme.lower() != "basic":
            raise ValueError
        return base64.b64decode(credentials, validate=True).decode().partition(":")[0]
    except (ValueError, binascii.Error):
        raise Refused(401, "unauthorized", "The Authorization header is not Basic auth (the key as user).") from None
