"""Which records of a changelog count. A term is the time one owner holds a partition, as in Raft (Ongaro, Ousterhout 2014).

Whoever opens a partition writes a claim to its changelog first. The claim's offset is its term: terms go up with the log,
no two are the same, and nobody has to hand them out. Every record carries the term it was written in. A record of an older
term than the newest that stands before it comes from somebody who owned the partition once, slept inside a write, and woke:
it does not count, for nobody; nor does one of a term that begins behind it, which is of another topic that had the same
name. Its key has to be written anew all the same, because compaction knows nothing of terms and would keep the record that
came last; `min.compaction.lag.ms` of the topic is the time there is for that.

An owner writes an interval at a time, states first and the partition's own record, CLOSING_KEY, last. More than one request
takes is not there at once: who is gone in between leaves states of an interval that nothing closes. They count. What such an
interval brought is on the states' own records, in a header, for whoever reads the input again.

Records without a term are of a version before 0.4.0, or of a tool: they count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from schemas.headers import header

CLAIM_KEY = b"#term"  # no user key starts with '#'
CLOSING_KEY = b"#meta"  # likewise
HEADER = "term"
BROUGHT = "brought"  # the header that says what an interval brought to a key
NO_TERM = -1  # before the first claim
BEGUN_MAX = 20_000  # keys of an interval; more are states whose intervals' ends compaction took out
_BYTES = 8

Headers = list[tuple[str, bytes]]
Begun = dict[bytes, tuple[bytes, ...]]  # of an interval that nothing closed: key → what its records say it brought, in order


class Written(Protocol):
    """A record of the log."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def offset(self) -> int: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


class Counted(NamedTuple):
    """Of a stretch of the log: the last value that counts of each key, keys whose last record does not count, and what holds
    at its end: the term, and the interval that is not closed."""

    puts: dict[bytes, bytes | None]
    stale: set[bytes]
    term: int
    begun: Begun


def headers(term: int) -> Headers:
    """What a record of this term carries."""
    return [] if term == NO_TERM else [(HEADER, term.to_bytes(_BYTES, "big"))]


def term_of(carried: Iterable[tuple[str, bytes | None]]) -> int | None:
    """The term in a record's headers.

    >>> term_of(headers(7)), term_of([("ce_id", b"x")])
    (7, None)
    """
    value = header(carried, HEADER)
    return None if value is None else int.from_bytes(value, "big")


def count(records: Iterable[Written], term: int = NO_TERM, begun: Begun | None = None) -> Counted:
    """Read a stretch of the log from one partition, in order, behind which `term` held and `begun` was not closed.

    In a log that was compacted only the last end of an interval is left. All that stands before it seems not to be closed,
    up to nearly every key: it is let go at BEGUN_MAX, since it is carried and written from each stretch to the next.

    >>> class R(NamedTuple):
    ...     offset: int
    ...     key: bytes
    ...     value: bytes
    ...     headers: Headers
    >>> log = [R(0, CLAIM_KEY, b"a", []), R(1, b"k", b"of a", headers(0)), R(2, CLAIM_KEY, b"b", []),
    ...        R(3, b"k", b"of b", headers(2)), R(4, b"k", b"a again", headers(0))]
    >>> count(log)
    Counted(puts={b'k': b'of b'}, stale={b'k'}, term=2, begun={})
    """
    puts: dict[bytes, bytes | None] = {}
    begun = dict(begun or {})
    stale: set[bytes] = set()
    for record in records:
        if record.key is None:
            continue
        if record.key == CLAIM_KEY:
            term = record.offset
            continue
        of = term_of(record.headers)
        if of is not None and not term <= of < record.offset:
            stale.add(record.key)
            continue
        term = term if of is None else of
        puts[record.key] = record.value
        stale.discard(record.key)
        if record.key == CLOSING_KEY:
            begun.clear()
        elif record.value is None:
            begun.pop(record.key, None)
        elif (brought := header(record.headers, BROUGHT)) is not None:
            begun[record.key] = (*begun.get(record.key, ()), brought)
            if len(begun) > BEGUN_MAX:
                begun.clear()
    return Counted(puts, stale, term, begun)
