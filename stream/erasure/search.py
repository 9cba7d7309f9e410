"""Is anything left of a user? Looks for the id's bytes in every store, whatever is said to have been done there.

Looked for is the id as it stands in keys (`tenant/id`), in JSON (`"id"`) and in MessagePack (with its length), not its bare
characters: an id such as 12 is part of everything. In ClickHouse, also whole values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from rocksdict import AccessType, Options, Rdict

from schemas import topics
from schemas.events import key
from schemas.topics import Topic
from stream.adapters import clickhouse
from stream.adapters.kafka_clients import admin_arguments
from stream.erasure.eraser import until
from stream.erasure.rows import quoted
from stream.settings import Settings

FILES_NOT_SEARCHED = ("kafka", "clickhouse", "state")  # by their own ways
VOCABULARIES = "models/text/*/tokenizer.json"  # words of a public model; a user called as one of them is not in there
CHUNK_BYTES = 1 << 20


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """Records at a place that name the user. `until`: older copies, gone by then on their own."""

    place: str
    records: int
    until: datetime | None = None


class Needles:
    """What an id looks like where it is kept."""

    def __init__(self, tenant: str, ids: Sequence[str]) -> None:
        self.tenant, self.ids = tenant, list(ids)
        self.keys = [key(tenant, one) for one in ids]
        self.inside = [text.encode() for text in quoted(ids)] + [msgspec.msgpack.encode(one) for one in ids]

    def in_key(self, record_key: bytes | None) -> bool:
        return record_key is not None and any(record_key in (one, b"#due/" + one) for one in self.keys)

    def in_value(self, value: bytes | None) -> bool:
        return value is not None and any(one in value for one in self.inside)


def everywhere(settings: Settings, tenant: str, ids: Sequence[str]) -> Iterator[Found]:
    """Every place where something is found, as it is found. Reads all topics, tables and local files once."""
    needles = Needles(tenant, ids)
    for topic in topics.TOPICS:
        yield from in_topic(settings, topic, needles)
    yield from in_clickhouse(settings, needles)
    yield from in_stores(settings.state_dir, needles)
    yield from in_files(settings.home, needles)


def in_topic(settings: Settings, topic: Topic, needles: Needles) -> Iterator[Found]:
    """The last record of each key on a compacted topic, and apart from those what waits for compaction or retention."""
    from kafka import KafkaConsumer, TopicPartition

    name = topic.name(settings.kafka.topic_prefix)
    consumer = KafkaConsumer(**admin_arguments(settings), group_id=None, enable_auto_commit=False)
    last: dict[bytes, bool] = {}
    hits = 0
    try:
        tps = [TopicPartition(name, number) for number in sorted(consumer.partitions_for_topic(name) or ())]
        consumer.assign(tps)
        consumer.seek_to_beginning(*tps)
        ends = consumer.end_offsets(tps)
        while any(consumer.position(tp) < ends[tp] for tp in tps):
            for record in (one for some in consumer.poll(timeout_ms=1_000).values() for one in some):
                hit = record.value is not None and (needles.in_key(record.key) or needles.in_value(record.value))
                hits += hit
                if topic.cleanup == "compact":
                    last[record.key or b""] = hit
    finally:
        consumer.close()
    current = sum(last.values())
    if current:
        yield Found(place=f"Kafka {name}", records=current)
    if hits > current:
        yield Found(place=f"Kafka {name}, older records", records=hits - current, until=until(topic, datetime.now(UTC)))


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
            parameters = {"tenant": needles.tenant, "ids": needles.ids, "quoted": quoted(needles.ids)}
            count = int(client.query(sql, parameters=parameters).result_rows[0][0])
            if count:
                yield Found(place=f"ClickHouse {table}", records=count)


def _holds(name: str, kind: str) -> str:
    one = "(x IN {ids:Array(String)} OR arrayExists(q -> position(x, q) > 0, {quoted:Array(String)}))"
    if kind.startswith("Array"):
        return f"arrayExists(x -> {one}, `{name}`)"
    return f"arrayExists(x -> {one}, [toString(`{name}`)])"


def in_stores(folder: Path, needles: Needles) -> Iterator[Found]:
    """The state stores on this machine, read beside the process that has them open."""
    for path in sorted(folder.glob("*/*/db")):
        options = Options(raw_mode=True)
        db = Rdict(str(path), options, access_type=AccessType.read_only(False), column_families={"meta": options})
        try:
            hits = sum(1 for name, value in db.items() if needles.in_key(name) or needles.in_value(value))
        finally:
            db.close()
        if hits:
            yield Found(place=f"state store {path.parent.name}", records=hits)


def in_files(home: Path, needles: Needles) -> Iterator[Found]:
    """Logs, checkpoints and whatever else lies in the home."""
    wanted = [*needles.keys, *needles.inside]
    for path in sorted(home.rglob("*")):
        within = path.relative_to(home)
        if not path.is_file() or within.parts[0] in FILES_NOT_SEARCHED or within.match(VOCABULARIES):
            continue
        if _names(path, wanted):
            yield Found(place=str(path), records=1)


def _names(path: Path, wanted: Sequence[bytes]) -> bool:
    overlap = max(len(one) for one in wanted)
    before = b""
    with path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            if any(one in before + piece for one in wanted):
                return True
            before = piece[-overlap:]
    return False

