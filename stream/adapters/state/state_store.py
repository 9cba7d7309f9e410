"""One RocksDB a partition: the values a changelog partition stands for, and up to which offset.

The store is a cache of its changelog. It may be thrown away at any time and is then read again (`changelog.recover`);
it must never be ahead of what it claims. So each write is one atomic batch of the values and the changelog offset they
stand for, and a store that cannot be trusted is wiped, saying why:

- it is of another incarnation of the changelog topic (its id differs): its offsets mean nothing;
- it was away for longer than half of `delete.retention.ms`: tombstones it has not read may be compacted away, and
  erased users would come back;
- RocksDB finds it corrupt, at opening or at an earlier read.

A store that another process holds open is neither: that raises `StoreLocked`.
RocksDB's log is not synced to disk: what a crash of the machine takes away is read again from the changelog.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

import msgspec
from rocksdict import (
    BlockBasedOptions,
    BottommostLevelCompaction,
    Cache,
    CompactOptions,
    DBCompressionType,
    Options,
    Rdict,
    WriteBatch,
    WriteBufferManager,
)

from stream.core.terms import NO_TERM, Begun
from stream.settings import Settings

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
NO_OFFSET = -1  # nothing of the changelog has been read
BLOCK_CACHE_BYTES = 64 << 20  # shared by all stores of the process
WRITE_BUFFER_BYTES = 16 << 20  # of one store; two of them at most, and
WRITE_BUFFERS_BYTES = 128 << 20  # in all of the process: then they are flushed earlier, as fast as the disk is
# A log is kept until both families are flushed, and `meta`, a few bytes a batch, fills its buffer after hours: by RocksDB's
# own limit the logs of one store grew to 780 MB, which a start after a kill reads again.
LOGS_BYTES = 4 * WRITE_BUFFER_BYTES
META_FAMILY = "meta"  # a column family of its own: no user's key can meet ours
META_KEY = b"store"
PURGED_KEY = b"purged"  # written so that there is something to flush
CORRUPT_MARK = "CORRUPT"  # left beside the database by a read that failed; the next opening wipes
LOCKED_WORDS = ("lock hold by", "No locks available", "While lock file", "Resource temporarily unavailable")
CORRUPT_WORDS = ("Corruption", "No such file", "Invalid argument", "not a directory", "does not exist")

WIPED = "state store %s is wiped and will be read again from its changelog: %s"


class StoreLocked(RuntimeError):
    """Another process has this store open: two workers with one state folder."""


class StoreCorrupt(RuntimeError):
    """A read failed. The store is marked and will be wiped and rebuilt when it is opened next: end the process."""


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """What the values stand for. `changelog_offset` is of the last changelog record in them, -1 for none."""

    format_version: int
    topic_id: str
    changelog_offset: int
    written_at_ms: int
    term: int = NO_TERM  # that held at this offset, see `stream.core.terms`
    unsettled: tuple[bytes, ...] | None = None
    begun: tuple[tuple[bytes, tuple[bytes, ...]], ...] = ()


@dataclass(frozen=True)
class Identity:
    """What a store must match to be trusted. `now_ms` is the wall clock when it is opened."""

    topic_id: str
    delete_retention_ms: int
    now_ms: int


def directory(settings: Settings, name: str, partition: int) -> Path:
    """Where the store of a partition is: `<home>/state/<topic prefix>/<name>-<partition>`."""
    return settings.state_dir / settings.kafka.topic_prefix / f"{name}-{partition:05d}"


class PartitionStore:
    """Keys and values are bytes. Not for several threads at once; reads and writes block, in the order of 10 µs a key."""

    def __init__(self, path: Path, db: Rdict, meta: Meta, wiped: str | None) -> None:
        self.path = path
        self.wiped = wiped  # why the store began empty, None if it was kept or is new
        self._meta = meta
        self._db: Rdict | None = db

    @classmethod
    def open(cls, path: Path, identity: Identity) -> Self:
        """The store at `path`, wiped first if it cannot be trusted. Raises `StoreLocked`, or `OSError` for a full disk."""
        found = _trusted(path, identity)
        if not isinstance(found, str):
            return cls(path, *found, None)
        log.warning(WIPED, path, found)
        _wipe(path)
        return cls(path, _open(path), _fresh(identity), found)

    def clear(self, reason: str) -> None:
        """Begin again with an empty store of the same identity."""
        log.warning(WIPED, self.path, reason)
        self.drop()
        self._db, self.wiped = _open(self.path), reason
        self._meta = msgspec.structs.replace(self._meta, changelog_offset=NO_OFFSET, term=NO_TERM, unsettled=None, begun=())

    @property
    def changelog_offset(self) -> int:
        """Offset of the last changelog record the values stand for, `NO_OFFSET` for none. Recovery starts behind it."""
        return self._meta.changelog_offset

    @property
    def term(self) -> int:
        """The term that held at `changelog_offset`."""
        return self._meta.term

    @property
    def unsettled(self) -> tuple[bytes, ...] | None:
        """Not None once records were recovered whose consequences are still to be drawn: the keys whose last records in the
        changelog do not count. Kept here, because a crash before that must not hide it from the next opening."""
        return self._meta.unsettled

    @property
    def begun(self) -> Begun:
        """What was not closed at `changelog_offset`, see `stream.core.terms`; kept here as `unsettled` is."""
        return dict(self._meta.begun)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values in the order of the keys, None for a key that is not there. Raises `StoreCorrupt`."""
        if not keys:
            return []
        try:
            values: list[bytes | None] = self._open_db().get(list(keys))
        except Exception as error:
            raise self._damaged(error) from error
        return values

    def write(
        self, puts: Mapping[bytes, bytes | None], changelog_offset: int, now_ms: int, term: int | None = None,
        unsettled: Iterable[bytes] | None = None, begun: Begun | None = None,
    ) -> None:  # fmt: skip
        """Apply all of it or nothing: None deletes. `changelog_offset` is of the last record these values stand for, `term`
        what holds there, None for the one that held before. With this everything is settled but what is `unsettled`, and
        closed but what is `begun`."""
        if changelog_offset < self.changelog_offset:
            raise ValueError(f"store {self.path} stands for changelog offset {self.changelog_offset}; writing "
                             f"{changelog_offset} would make it claim less than it holds")
        db = self._open_db()
        batch = WriteBatch(raw_mode=True)
        for key, value in puts.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        meta = msgspec.structs.replace(self._meta, changelog_offset=changelog_offset, written_at_ms=now_ms,
                                       term=self.term if term is None else term,
                                       unsettled=None if unsettled is None else tuple(sorted(unsettled)),
                                       begun=tuple((begun or {}).items()))
        self._write(db, batch, meta)

    def purge(self, keys: Sequence[bytes]) -> None:
        """Rewrite the files that may still hold these keys, which were deleted, or old values of them: RocksDB would keep
        them until it compacts by itself. Takes in the order of a second a GB. Other writes may go on meanwhile.

        Three kinds of files do: logs, which go once every family is flushed; tables, whose last level keeps marks of
        deletion unless it is told to be rewritten; and the manifest, which names the first and the last key of each table
        there was since it was begun. It is begun anew with every change of tables, see `_options`: one more comes last."""
        db, whole = self._open_db(), CompactOptions()
        whole.set_bottommost_level_compaction(BottommostLevelCompaction.force())
        meta = db.get_column_family(META_FAMILY)
        meta.flush()
        for key in keys:
            db.compact_range(key, key, whole)
        meta[PURGED_KEY] = b""
        meta.flush()

    def touch(self, now_ms: int) -> None:
        """Say that the store is up to date at this time, although there was nothing to write."""
        self._write(self._open_db(), WriteBatch(raw_mode=True), msgspec.structs.replace(self._meta, written_at_ms=now_ms))

    def iterate(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Keys that begin with `prefix`, in byte order, as they were when the iteration began."""
        try:
            for key, value in self._open_db().items(from_key=prefix or None):
                if not key.startswith(prefix):
                    return
                yield key, value
        except Exception as error:
            raise self._damaged(error) from error

    def close(self) -> None:
        """Release the store. Closing twice does no harm."""
        if self._db is not None:
            self._db.close()
            self._db = None  # RocksDB's lock is released with the last reference

    def drop(self) -> None:
        """Close and delete from disk."""
        self.close()
        _wipe(self.path)

    def _open_db(self) -> Rdict:
        if self._db is None:
            raise ValueError(f"state store {self.path} is closed")
        return self._db

    def _write(self, db: Rdict, batch: WriteBatch, meta: Meta) -> None:
        batch.put(META_KEY, msgspec.json.encode(meta), db.get_column_family_handle(META_FAMILY))
        try:
            db.write(batch)
        except Exception as error:  # rocksdict raises plain Exception with RocksDB's text
            raise OSError(f"state store {self.path} cannot be written ({error}): make room on its disk. Nothing is lost: "
                          "what it should hold is in the changelog, and is read from there") from error
        self._meta = meta

    def _damaged(self, error: Exception) -> Exception:
        if not any(word in str(error) for word in CORRUPT_WORDS):
            return error
        (self.path / CORRUPT_MARK).write_text(repr(error))
        return StoreCorrupt(f"state store {self.path} cannot be read ({error}); it will be wiped and read again from its "
                            f"changelog when it is opened next")


class _Corrupt(Exception):
    pass


def _fresh(identity: Identity) -> Meta:
    return Meta(format_version=FORMAT_VERSION, topic_id=identity.topic_id, changelog_offset=NO_OFFSET,
                written_at_ms=identity.now_ms)


def _trusted(path: Path, identity: Identity) -> tuple[Rdict, Meta] | str:
    """The open database and what it stands for, or why it must be wiped; then it is closed."""
    mark = path / CORRUPT_MARK
    if mark.exists():
        return f"a read had failed: {mark.read_text()}"
    try:
        db = _open(path)
    except _Corrupt as error:
        return str(error)
    try:
        raw = db.get_column_family(META_FAMILY).get(META_KEY)
        meta = None if raw is None else msgspec.json.decode(raw, type=Meta)
        unexplained = meta is None and next(iter(db.keys()), None) is not None
    except Exception as error:  # rocksdict's and msgspec's: either way nobody knows what the values stand for
        db.close()
        return f"what it stands for cannot be read: {error}"
    reason = "it has values but does not say what they stand for" if unexplained else None
    if meta is not None:
        reason = _outdated(meta, identity)
    if reason is None:
        return db, meta or _fresh(identity)
    db.close()
    return reason


def _outdated(meta: Meta, identity: Identity) -> str | None:
    if meta.format_version != FORMAT_VERSION:
        return f"it has format {meta.format_version}, this version reads {FORMAT_VERSION}"
    if meta.topic_id != identity.topic_id:
        return f"it belongs to changelog topic id {meta.topic_id}, the topic was made again with id {identity.topic_id}"
    away_ms = identity.now_ms - meta.written_at_ms
    if away_ms > identity.delete_retention_ms // 2:
        return (f"it was away for {away_ms / 3_600_000:.1f} h, more than half of delete.retention.ms "
                f"({identity.delete_retention_ms / 3_600_000:.1f} h): erased users could come back")
    return None


def _open(path: Path) -> Rdict:
    path.mkdir(parents=True, exist_ok=True)
    try:
        return Rdict(str(path / "db"), _options(), column_families={META_FAMILY: Options(raw_mode=True)})
    except Exception as error:  # rocksdict raises plain Exception with RocksDB's text
        text = str(error)
        if any(word in text for word in LOCKED_WORDS):
            raise StoreLocked(f"state store {path} is open in another process; give each worker its own CLICKWAKE_HOME, "
                              f"or stop the other one ({text})") from error
        if any(word in text for word in CORRUPT_WORDS):
            raise _Corrupt(text) from error
        raise OSError(f"state store {path} cannot be opened: {text}") from error


@cache
def _block_cache() -> Cache:
    return Cache(BLOCK_CACHE_BYTES)


@cache
def _write_buffers() -> WriteBufferManager:
    return WriteBufferManager(WRITE_BUFFERS_BYTES, allow_stall=False)


# Bytes of what all stores of the process share, by what it is.
SHARED: Mapping[str, Callable[[], int]] = {
    "block cache": lambda: _block_cache().get_usage(),
    "write buffers": lambda: _write_buffers().get_usage(),
}


def _options() -> Options:
    table = BlockBasedOptions()
    table.set_block_cache(_block_cache())
    table.set_bloom_filter(10, False)  # most users of a batch are new to a young store: spare them the disk
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_block_based_table_factory(table)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_write_buffer_manager(_write_buffers())
    options.set_max_total_wal_size(LOGS_BYTES)
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(2)
    options.set_max_manifest_file_size(1)  # a new one with every change: an old one names keys that are gone
    options.set_max_open_files(256)  # of one store; a worker may own dozens
    return options


def _wipe(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
