"""HTTP content encodings in both directions, as streams. Clients send one frame a block, so frames may follow on."""

from __future__ import annotations

import zlib
from typing import Any, Protocol

from clickwake.local.clickhouse.errors import CANNOT_DECOMPRESS, UNKNOWN_COMPRESSION_METHOD, QueryError

PREFERRED = ("lz4", "zstd", "gzip", "deflate")  # cheapest first: both ends are on one machine
_GZIP, _ZLIB = 31, 15  # window bits of zlib's two containers


class Decoder:
    """Decompresses a request's body piece by piece."""

    def __init__(self, encoding: str) -> None:
        if encoding not in ("", "identity", *PREFERRED):
            raise QueryError.refused(UNKNOWN_COMPRESSION_METHOD, f"Content-Encoding {encoding!r} is not known here; "
                                                                 f"use one of {', '.join(PREFERRED)}")
        self._encoding = "" if encoding == "identity" else encoding
        self._frame: Any = None

    def feed(self, data: bytes) -> bytes:
        if not self._encoding:
            return data
        out = []
        try:
            while data:
                if self._frame is None:
                    self._frame = _frame(self._encoding)
                out.append(self._frame.decompress(data))
                if not self._frame.eof:
                    break
                data = self._frame.unused_data or b""
                self._frame = None
        except (RuntimeError, zlib.error, _zstd_error()) as error:
            raise QueryError.refused(CANNOT_DECOMPRESS, f"the body is not {self._encoding}: {error}") from error
        return b"".join(out)

    def finish(self) -> None:
        """Raises `QueryError` when the last frame was cut off."""
        if self._frame is not None:
            raise QueryError.refused(CANNOT_DECOMPRESS, f"the {self._encoding} body ended in the middle of a frame")


def _zstd_error() -> type[Exception]:
    import zstandard

    return zstandard.ZstdError


def _frame(encoding: str) -> Any:
    if encoding == "lz4":
        import lz4.frame  # type: ignore[import-untyped]

        return lz4.frame.LZ4FrameDecompressor()
    if encoding == "zstd":
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj()
    return zlib.decompressobj(_GZIP if encoding == "gzip" else _ZLIB)


class Encoder(Protocol):
    def compress(self, data: bytes) -> bytes: ...
    def flush(self) -> bytes: ...


class _Plain:
    def compress(self, data: bytes) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


class _Lz4:
    """One frame over the whole answer."""

    def __init__(self) -> None:
        import lz4.frame

        self._frame = lz4.frame.LZ4FrameCompressor()
        self._begun = False

    def compress(self, data: bytes) -> bytes:
        begin = b"" if self._begun else bytes(self._frame.begin())
        self._begun = True
        return begin + bytes(self._frame.compress(data))

    def flush(self) -> bytes:
        return self.compress(b"") + bytes(self._frame.flush())


def choose(accept_encoding: str) -> str:
    """
    >>> choose("gzip, deflate;q=0.5, lz4"), choose("br")
    ('lz4', '')
    """
    accepted = {part.split(";", maxsplit=1)[0].strip().lower() for part in accept_encoding.split(",")}
    return next((name for name in PREFERRED if name in accepted), "")


def encoder(encoding: str) -> Encoder:
    if encoding == "lz4":
        return _Lz4()
    if encoding == "zstd":
        import zstandard

        return zstandard.ZstdCompressor(level=1).compressobj()
    if encoding:
        return zlib.compressobj(1, zlib.DEFLATED, _GZIP if encoding == "gzip" else _ZLIB)
    return _Plain()
