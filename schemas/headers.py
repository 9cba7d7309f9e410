"""What a record carries beside its key and value."""

from __future__ import annotations

from collections.abc import Iterable


def header(carried: Iterable[tuple[str, bytes | None]], name: str) -> bytes | None:
    """The first value under a name; None where there is none.

    >>> header([("term", None), ("term", b"7")], "term"), header([], "term")
    (b'7', None)
    """
    return next((value for known, value in carried if known == name and value is not None), None)
