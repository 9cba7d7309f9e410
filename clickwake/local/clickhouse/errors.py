"""ClickHouse's error codes, as its HTTP interface answers them."""

from __future__ import annotations

import re

SYNTAX_ERROR = 62
BAD_ARGUMENTS = 36
NOT_IMPLEMENTED = 48
UNKNOWN_COMPRESSION_METHOD = 89
UNKNOWN_SETTING = 115
READONLY = 164
TOO_MANY_SIMULTANEOUS_QUERIES = 202
QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING = 216
CANNOT_DECOMPRESS = 271
SESSION_NOT_FOUND = 372
SESSION_IS_LOCKED = 373
INVALID_SESSION_TIMEOUT = 374
QUERY_WAS_CANCELLED = 394
ACCESS_DENIED = 497
AUTHENTICATION_FAILED = 516
UNKNOWN_EXCEPTION = 1002

_NAMES = {
    SYNTAX_ERROR: "SYNTAX_ERROR", BAD_ARGUMENTS: "BAD_ARGUMENTS", NOT_IMPLEMENTED: "NOT_IMPLEMENTED",
    UNKNOWN_COMPRESSION_METHOD: "UNKNOWN_COMPRESSION_METHOD", UNKNOWN_SETTING: "UNKNOWN_SETTING", READONLY: "READONLY",
    TOO_MANY_SIMULTANEOUS_QUERIES: "TOO_MANY_SIMULTANEOUS_QUERIES",
    QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING: "QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING",
    CANNOT_DECOMPRESS: "CANNOT_DECOMPRESS", SESSION_NOT_FOUND: "SESSION_NOT_FOUND", SESSION_IS_LOCKED: "SESSION_IS_LOCKED",
    INVALID_SESSION_TIMEOUT: "INVALID_SESSION_TIMEOUT", QUERY_WAS_CANCELLED: "QUERY_WAS_CANCELLED",
    ACCESS_DENIED: "ACCESS_DENIED", AUTHENTICATION_FAILED: "AUTHENTICATION_FAILED", UNKNOWN_EXCEPTION: "UNKNOWN_EXCEPTION",
}

# Which HTTP status the codes get; every other code is a 500.
_STATUS = {
    400: (6, 8, 15, 25, 26, 27, 36, 37, 38, 41, 42, 43, 44, 53, 62, 72, 117, 167, 168, 223),
    401: (194,),
    403: (192, 193, 497, 512, 516),
    404: (46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 152, 336, 372),
    408: (159,),
    501: (48,),
    503: (76, 209),
}
_STATUS_OF = {code: status for status, codes in _STATUS.items() for code in codes}
_ENGINE_TEXT = re.compile(r"Code: (\d+)\. (DB::Exception: .*)", re.DOTALL)


class QueryError(Exception):
    """A query failed, with the code and text a ClickHouse server would answer."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text

    @classmethod
    def refused(cls, code: int, reason: str) -> QueryError:
        """An error of this server, worded like the engine's.

        >>> QueryError.refused(48, "no external data").text
        'DB::Exception: no external data. (NOT_IMPLEMENTED)'
        """
        return cls(code, f"DB::Exception: {reason.rstrip('.')}. ({_NAMES[code]})")

    @classmethod
    def of_engine(cls, error: Exception) -> QueryError:
        """What chdb raised.

        >>> e = QueryError.of_engine(RuntimeError("Streaming query failed: Code: 60. DB::Exception: No. (UNKNOWN_TABLE)"))
        >>> e.code, e.status, e.text
        (60, 404, 'DB::Exception: No. (UNKNOWN_TABLE)')
        """
        found = _ENGINE_TEXT.search(str(error))
        if found:
            return cls(int(found[1]), re.sub(r" \(version [^)]*\)\s*$", "", found[2].strip()))
        return cls(UNKNOWN_EXCEPTION, f"DB::Exception: {error}. ({_NAMES[UNKNOWN_EXCEPTION]})")

    @property
    def status(self) -> int:
        return _STATUS_OF.get(self.code, 500)

    def body(self, version: str) -> bytes:
        return f"Code: {self.code}. {self.text} (version {version} (embedded))\n".encode(errors="replace")
