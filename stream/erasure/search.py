"""Is anything left of a user? Looks for the id's bytes in every store, whatever is said to have been done there.

Looked for is the id as it stands in keys (`tenant/id`), in JSON (`"id"`, or a number called an id) and in MessagePack (with
its length), not its bare characters: an id such as 12 is part of everything. The key likewise, which values hold too: a
partition's own record, headers of Kafka, and what a state store notes about itself. In ClickHouse, also whole values; in
dead letters, also what was refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from rocksdict import AccessType, Options, Rdict

from schemas import topics
from schemas.dead_letter import DeadLetter
from schemas.erasure import Receipt, decode, subject
from schemas.events import key
from schemas.topics import Topic
from schemas.unreadable import UNREADABLE
from stream.adapters.database import clickhouse
from stream.adapters.kafka.global_reader import readable
from stream.adapters.kafka.kafka_clients import records
from stream.adapters.state.state_store import META_FAMILY, Meta
from stream.erasure.eraser import OUTSIDE, until
from stream.erasure.rows import HOLDS, numbers, quoted
from stream.settings import Settings
from stream.urls import without_userinfo

FILES_NOT_SEARCHED = ("kafka", "clickhouse", "state")  # by their own ways
VOCABULARIES = "models/text/*/tokenizer.json"  # words of a public model; a user called as one of them is not in there
CHUNK_BYTES = 1 << 20
NO_RECEIPTS: Mapping[str, int] = {}
BETWEEN_BYTES_MAX = 64  # of a number's name and the blanks before it


class NotSearched(msgspec.Struct, frozen=True, kw_only=True):
    """What a search that finds nothing says nothing about, and what to do or to know."""

    place: str
    why: str


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """Records at a place that name the user. `until`: older copies, gone by then on their own."""

    place: str
    records: int
    until: datetime | None = None


class Needle:
    """What an id looks like where it is kept."""

    def __init__(self, tenant: str, ident: str) -> None:
        self.ident, self.key = ident, key(tenant, ident)
        names = ident, self.key.decode()
        self.texts = (*(text.encode() for text in quoted(names)),
                      *(msgspec.msgpack.encode(one) for one in (*names, self.key)))  # fmt: skip
        self.number = [re.compile(one.encode()) for one in numbers([ident])]

    def of(self, record_key: bytes | None, value: bytes, headers: Iterable[bytes]) -> bool:
        """Whether a record names it."""
        return (record_key in (self.key, b"#due/" + self.key) or self.inside(value)
                or any(one == self.key or self.inside(one) for one in headers))

    def inside(self, value: bytes) -> bool:
        return any(one in value for one in self.texts) or any(one.search(value) for one in self.number)


class Needles:
    """All ids that are looked for."""

    def __init__(self, tenant: str, ids: Sequence[str]) -> None:
        self.tenant, self.ids = tenant, list(ids)
        self._all = [Needle(tenant, one) for one in ids]
        self.bytes_max = max(len(one) for needle in self._all for one in (needle.key, *needle.texts)) + BETWEEN_BYTES_MAX

    def of(self, record_key: bytes | None, value: bytes | None, headers: Sequence[bytes] = ()) -> list[str]:
        """Which ids a record names; a tombstone does by its key."""
        return [one.ident for one in self._all if one.of(record_key, value or b"", headers)]

    def anywhere(self, piece: bytes) -> bool:
        """Whether a piece of a file names any."""
        return any(one.key in piece or one.inside(piece) for one in self._all)


def everywhere(settings: Settings, tenant: str, ids: Sequence[str]) -> Iterator[Found]:
    """Every place where something is found, as it is found. Reads all topics, tables and local files once, and before that
    who was erased when."""
    needles = Needles(tenant, ids)
    done = receipts(records(settings, topics.ERASURES), needles)
    for topic in topics.TOPICS:
        yield from in_topic(settings, topic, needles, done)
    yield from in_clickhouse(settings, needles)
    yield from in_stores(settings.state_dir, needles)
    yield from in_files(settings.home, needles)


def not_searched(settings: Settings) -> list[NotSearched]:
    """What `everywhere` does not look at."""
    home, prefix, database = settings.home.absolute(), settings.kafka.topic_prefix, settings.clickhouse.database
    places = (
        ("the user's anonymous ids: a receipt has their hashes alone", "ask for each that you know by itself"),
        (f"other machines, and other homes than {home}: states, logs and files of processes there",
         "ask `clickwake erase --verify` there, too"),
        ("what running processes hold in memory", "they go by the list of erasures; those that start read it anew"),
        (f"Kafka topics that do not begin with {prefix}., and those of others; ClickHouse databases other than {database}",
         "what copies from here is for who set it up"),
        ("files of Kafka and ClickHouse, and Kafka's records that compaction has not reached and no reader is shown",
         "asked through the servers alone; deleted bytes go as they clean up, on topics by the days that the receipt names"),
        (f"bytes that state stores have deleted and their files may still hold, in {settings.state_dir}",
         "read as values: an erasure has the files rewritten, anything else goes as they are compacted"),
        (f"the registry of models, {without_userinfo(settings.registry)}, where it is not in the home",
         "released models hold no ids"),
        OUTSIDE,
    )  # fmt: skip
    return [NotSearched(place=place, why=why) for place, why in places]


def receipts(erasures: Iterable[Any], needles: Needles) -> dict[str, int]:
    """When the newest receipt of each id was written, ms, from the list's records. By the broker's clock, as the time of any
    record is."""
    whose = {subject(key(needles.tenant, one)).decode().rpartition("/")[2]: one for one in needles.ids}
    found: dict[str, int] = {}
    for at_ms, erasure in readable((one for one in erasures if one.value), lambda one: (one.timestamp, decode(one.value))):
        if erasure.receipt is not None and erasure.tenant == needles.tenant:
            for one in msgspec.json.decode(erasure.receipt, type=Receipt).subjects:
                if one in whose:
                    found[whose[one]] = max(at_ms, found.get(whose[one], 0))
    return found


def in_topic(settings: Settings, topic: Topic, needles: Needles, done: Mapping[str, int] = NO_RECEIPTS) -> Iterator[Found]:
    """The last record of each key on a compacted topic; on others what was written after the last receipt (`done`: id → ms),
    or without one. Apart from those, what waits for compaction or retention."""
    last: dict[bytes, bool] = {}
    hits = newer = 0
    for record in records(settings, topic):
        found = needles.of(record.key, _said(topic, record.value), [value for _, value in record.headers or () if value])
        hits += bool(found)
        if topic.cleanup == "compact":
            last[record.key or b""] = bool(found) and record.value is not None
        else:
            newer += any(record.timestamp > done.get(one, 0) for one in found)
    name, current = topic.name(settings.kafka.topic_prefix), sum(last.values())
    if current:
        yield Found(place=f"Kafka {name}", records=current)
    if newer:
        yield Found(place=f"Kafka {name}, newer than any receipt", records=newer)
    if older := hits - current - newer:
        gone_by = until(topic, datetime.now(UTC), settings.kafka)
        yield Found(place=f"Kafka {name}, older records", records=older, until=gone_by)


def _said(topic: Topic, value: bytes | None) -> bytes | None:
    """A record's value; a dead letter's with what was refused, which is base64 in it."""
    if topic is not topics.DEAD_LETTERS or value is None:
        return value
    try:
        return value + msgspec.json.decode(value, type=DeadLetter).payload
    except UNREADABLE:
        return value  # whatever it is, it is searched as it stands


def in_clickhouse(settings: Settings, needles: Needles) -> Iterator[Found]:
    """Every text column of every table, asked for whole values and for the id inside JSON."""
    with closing(clickhouse.open_client(settings.clickhouse)) as client:
        columns = client.query(
            "SELECT table, groupArray((name, type)) FROM system.columns WHERE database = {database:String} AND table IN "
            "(SELECT name FROM system.tables WHERE database = {database:String} AND engine NOT LIKE '%View') "
            "AND type LIKE '%String%' GROUP BY table ORDER BY table", parameters={"database": settings.clickhouse.database},
        ).result_rows
        for table, found in columns:
            where = " OR ".join(_holds(name, kind) for name, kind in found)
            sql = f"SELECT count() FROM `{table}` WHERE {where}"  # noqa: S608  # names are the server's own
            if any(name == "tenant" for name, _ in found):
                sql = f"SELECT count() FROM `{table}` WHERE tenant = {{tenant:String}} AND ({where})"  # noqa: S608
            parameters = {"tenant": needles.tenant, "ids": needles.ids, "quoted": quoted(needles.ids),
                          "numbers": numbers(needles.ids)}  # fmt: skip
            count = int(client.query(sql, parameters=parameters).result_rows[0][0])
            if count:
                yield Found(place=f"ClickHouse {table}", records=count)


def _holds(name: str, kind: str) -> str:
    one = f"(x IN {{ids:Array(String)}} OR {HOLDS})"
    if kind.startswith("Array"):
        return f"arrayExists(x -> {one}, `{name}`)"
    return f"arrayExists(x -> {one}, [toString(`{name}`)])"


def in_stores(folder: Path, needles: Needles) -> Iterator[Found]:
    """The state stores on this machine, read beside the process that has them open."""
    for path in sorted(folder.glob("*/*/db")):
        options = Options(raw_mode=True)
        db = Rdict(str(path), options, access_type=AccessType.read_only(False), column_families={META_FAMILY: options})
        try:
            hits = sum(1 for name, value in db.items() if needles.of(name, value))
            hits += sum(1 for name, value in db.get_column_family(META_FAMILY).items() if needles.of(name, _noted(value)))
        finally:
            db.close()
        if hits:
            yield Found(place=f"state store {path.parent.name}", records=hits)


def _noted(value: bytes) -> bytes:
    """What a store notes about itself; with the keys in it, which are base64 there."""
    try:
        return value + msgspec.msgpack.encode(msgspec.json.decode(value, type=Meta))
    except UNREADABLE:
        return value


def in_files(home: Path, needles: Needles) -> Iterator[Found]:
    """Logs, checkpoints and whatever else lies in the home."""
    for path in sorted(home.rglob("*")):
        within = path.relative_to(home)
        if not path.is_file() or within.parts[0] in FILES_NOT_SEARCHED or within.match(VOCABULARIES):
            continue
        if _names(path, needles):
            yield Found(place=str(path), records=1)


def _names(path: Path, needles: Needles) -> bool:
    before = b""
    with path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            if needles.anywhere(before + piece):
                return True
            before = piece[-needles.bytes_max :]
    return False

