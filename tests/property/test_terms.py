"""Owners that come, sleep inside a write, and wake when others own the partition: what they write late counts for nobody."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from stream.core.terms import BEGUN_MAX, BROUGHT, CLAIM_KEY, CLOSING_KEY, NO_TERM, Headers, count, headers

KEYS = (b"u1", b"u2", b"u3")


class Record(NamedTuple):
    offset: int
    key: bytes
    value: bytes | None
    headers: Headers


class Log(NamedTuple):
    records: list[Record]
    truth: dict[bytes, bytes | None]  # what the owner of the time wrote, told by who owned it and nothing else
    stale: set[bytes]


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """Claims, and writes of anybody who ever claimed."""
    records: list[Record] = []
    terms: list[int] = []  # of each owner
    truth: dict[bytes, bytes | None] = {}
    stale: set[bytes] = set()
    for number in range(draw(st.integers(1, 25))):
        if not terms or draw(st.integers(0, 3)) == 0:
            terms.append(len(records))
            records.append(Record(len(records), CLAIM_KEY, b"", []))
            continue
        owner, key = draw(st.integers(0, len(terms) - 1)), draw(st.sampled_from(KEYS))
        value = draw(st.sampled_from([b"%d" % number, None]))
        records.append(Record(len(records), key, value, headers(terms[owner])))
        if owner == len(terms) - 1:
            truth[key] = value
            stale.discard(key)
        else:
            stale.add(key)
    return Log(records, truth, stale)


@given(logs())
def test_only_what_the_owner_of_its_time_wrote_counts(log: Log) -> None:
    found = count(log.records)
    assert (found.puts, found.stale) == (log.truth, log.stale)


@given(logs(), st.data())
def test_reading_in_pieces_is_reading_at_once(log: Log, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(log.records)))
    first = count(log.records[:cut])
    then = count(log.records[cut:], first.term)
    assert first.puts | then.puts == log.truth
    assert (first.stale - then.puts.keys()) | then.stale == log.stale


@given(logs(), st.data())
def test_compaction_takes_nothing_that_counts_once_stale_keys_are_written_anew(log: Log, data: st.DataObject) -> None:
    """Kafka keeps the last record of each key of the part that it has compacted, whoever wrote it."""
    whole, term = list(log.records), count(log.records).term
    for key in sorted(log.stale):
        whole.append(Record(len(whole), key, log.truth.get(key), headers(term)))
    cut = data.draw(st.integers(0, len(whole)))
    kept = {record.key: record for record in whole[:cut]}
    compacted = [record for record in whole[:cut] if kept[record.key] is record] + whole[cut:]
    found, truth = count(compacted), log.truth | {key: None for key in log.stale if key not in log.truth}
    assert {key: value for key, value in found.puts.items() if value is not None} == {
        key: value for key, value in truth.items() if value is not None
    }
    assert found.stale == set()


def test_records_without_a_term_count_as_they_did() -> None:
    old = [Record(0, b"u1", b"1", []), Record(1, CLAIM_KEY, b"", []), Record(2, b"u1", b"2", headers(1)),
           Record(3, b"u1", b"3", [])]  # fmt: skip
    assert count(old) == ({b"u1": b"3"}, set(), 1, {})
    assert count([]).term == NO_TERM


def test_a_record_of_a_term_that_begins_behind_it_is_of_another_log() -> None:
    """Its topic was made again under whoever wrote it: no claim of this log is theirs."""
    log = [Record(0, b"u1", b"another log's", headers(0)), Record(1, CLAIM_KEY, b"", []), Record(2, b"u2", b"1", headers(1)),
           Record(3, b"u2", b"another log's", headers(500)), Record(4, b"u3", b"1", headers(1))]  # fmt: skip
    assert count(log) == ({b"u2": b"1", b"u3": b"1"}, {b"u1", b"u2"}, 1, {})


def test_of_intervals_whose_ends_were_compacted_away_little_is_carried_on_and_all_of_the_one_that_is_open() -> None:
    """The last end is the only one there is: what stands before it looks as if no interval of it had been closed."""
    closed = [Record(n, b"u%d" % n, b"", [(BROUGHT, b"x")]) for n in range(3 * BEGUN_MAX)]
    open_ = [Record(len(closed) + 1 + n, b"u%d" % n, b"", [(BROUGHT, b"y")]) for n in range(100)]
    assert len(count(closed).begun) <= BEGUN_MAX
    found = count([*closed, Record(len(closed), CLOSING_KEY, b"", []), *open_])
    assert found.begun == {record.key: (b"y",) for record in open_}
