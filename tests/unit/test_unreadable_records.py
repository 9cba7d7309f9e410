"""Whatever bytes stand on a topic that a process reads, it goes on, and takes the good record beside them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from clickwake import dead_letters
from producers.dead_letters import dead_letter
from schemas import topics
from schemas.catalog import Item, ItemVector
from schemas.dead_letter import Source
from schemas.erasure import Erasure
from schemas.offers import POSITIONS_KEY, OfferTotals, PlacementTotals, Positions, UserOffers
from schemas.opinions import Opinion
from schemas.outputs import Decision
from schemas.release import ModelRelease
from schemas.topics import Topic
from stream.adapters.health.metrics import ReleaseMetrics
from stream.adapters.kafka.erasures import Erasures
from stream.adapters.kafka.kafka_clients import stopped
from stream.adapters.kafka.offers import OffersReader
from stream.adapters.kafka.serving_readers import ServingReaders
from stream.adapters.models import model_store, satisfaction
from stream.adapters.models.model_store import BundleRefused
from stream.adapters.models.onnx import sha256
from stream.core import terms
from stream.core.opinions.satisfaction import Subject
from stream.core.ranking.counts import ItemCount
from stream.core.statistics.changes import Policy
from stream.core.user import identity
from stream.insights import Tracker
from stream.outbox import utc
from stream.settings import Personalize, Settings
from tests.support.fakes import T0_MS, FakeErasures
from tests.support.kafka_python import on_topics
from tests.unit.test_personalize import IDENTITY, Bench
from workers import offers as offers_worker
from workers.catalog import Known
from workers.insights import Worker as Insights

AT = datetime(2026, 11, 1, tzinfo=UTC)
KEYS = (None, b"", b"\xff", b"/", b"a", b"a/b", b"x/t/i", b"#placement/\xff", b"t/item/\xff")
MARK = "mmmm"  # in a text of a good value


class Record(NamedTuple):
    key: bytes | None
    value: bytes | None
    offset: int = 0
    topic: str = "a topic"
    partition: int = 0
    timestamp: int = T0_MS
    headers: tuple[tuple[str, bytes | None], ...] = ()


def damaged(good: bytes) -> Iterator[bytes]:
    """No UTF-8 in a text, which is another error than the rest; cut short; deeper than a decoder goes; nothing at all."""
    if MARK.encode() in good:
        yield good.replace(MARK.encode(), b"\xff" * len(MARK))
    yield good[:-1]
    yield from (b"", b"null", b"\xff", b"\xc0", b"{}")
    yield from (one * 100_000 for one in (b"[", b"\x91", b'{"x":', b"\x81\xa1x"))


def around(key: bytes, good: bytes) -> list[Record]:
    """Unreadable records under the good one's key and under others, keys that are none, and the good record among them."""
    bad = [Record(key, one) for one in damaged(good)]
    bad += [Record(name, value, headers=(("term", None),)) for name in KEYS for value in (good[:-1], b"\xc1")]
    return [*bad, Record(key, good), *bad]


def test_the_term_of_a_header_without_a_value_is_none() -> None:
    assert terms.term_of([(terms.HEADER, None)]) is None


@pytest.fixture
def readers(tmp_path: Path) -> ServingReaders:
    settings = Settings(home=tmp_path, personalize=Personalize(satisfaction_weight=0.5))
    return ServingReaders(settings, ReleaseMetrics(CollectorRegistry()))


def test_what_is_ranked_with(readers: ServingReaders) -> None:
    def read(topic: Topic, key: bytes, good: bytes) -> None:
        readers.readers[topic]._on_records(around(key, good))

    vector = np.ones(3, dtype="<f4").tobytes()
    item = ItemVector(space="s", content_hash="h", vector=vector, item=Item(item_id="i", tenant="t", title=MARK))
    read(topics.ITEM_VECTORS, b"s/t/i", msgspec.msgpack.encode(item))
    read(topics.ITEM_COUNTS, b"0/t/i", msgspec.msgpack.encode(ItemCount(7.0, T0_MS, {MARK: 1.0}, T0_MS, 1, 7.0, 7.0)))
    read(topics.SATISFACTION, b"t/item/i", msgspec.msgpack.encode(Subject(n=4, total=3.0)))
    release = ModelRelease(model_version="v1", uri="u", manifest_sha256="0", released_at=AT, reason=MARK)
    read(topics.MODELS, b"current", msgspec.json.encode(release))
    serving = readers.serving
    serving.take_counts()
    assert list(serving.vectors) == [("t", "i")] and serving.vectors["t", "i"].keys() == {"s"}
    assert serving.satisfaction == {("t", "i"): (4.0, 3.0)}
    assert readers.releases.announcements.newest == release


def test_counts_that_cannot_be_read_leave_those_that_were_before(readers: ServingReaders) -> None:
    serving, count = readers.serving, ItemCount(7.0, T0_MS, {MARK: 1.0}, T0_MS, 1, 7.0, 7.0)
    good = msgspec.msgpack.encode(count)
    for value in (good, *damaged(good)):
        serving.on_count(b"0/t/i", value)
        serving.take_counts()
    assert serving.counts == {("t", "i", 0): count}


async def test_the_identity_topic() -> None:
    bench = Bench()
    good = identity.encode(identity.Claim("t", "anonymous", MARK, T0_MS))
    bad = list(damaged(good))
    await bench.feed(*bad, good, source=IDENTITY)
    assert bench.part.outcomes["rejected"] == len(bad)
    assert [user for _, user in bench.part.read(b"t/anonymous").claims] == [MARK]


def test_erasures(tmp_path: Path) -> None:
    noted: list[Erasure] = []
    reader = Erasures(Settings(home=tmp_path), lambda key, one: noted.append(one))
    erasure = Erasure(erasure_id=MARK, tenant="t", requested_at=AT)
    reader._on_records(around(b"t/0", msgspec.json.encode(erasure)))
    assert noted == [erasure]


def test_what_offers_are_chosen_with(tmp_path: Path) -> None:
    reader = OffersReader(Settings(home=tmp_path))
    totals, user = PlacementTotals(offers={MARK: OfferTotals(impressions=3)}), UserOffers(seen={MARK: [T0_MS]})
    reader._on_records(around(b"#placement/t/home", msgspec.msgpack.encode(totals)))
    reader._on_records(around(b"t/u", msgspec.msgpack.encode(user)))
    assert reader.totals("t", "home") == totals and reader.spent("t")[MARK].impressions == 3
    assert reader.seen(b"t/u") == {MARK: [T0_MS]} and reader.seen(b"a/b") == {}


async def test_what_the_offers_worker_had_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = offers_worker.Worker(Settings(home=tmp_path))
    user = msgspec.msgpack.encode(UserOffers(seen={MARK: [T0_MS]}, seen_until_ms={MARK: T0_MS + 1}))
    positions = Positions(offsets={"events": {0: 5}})

    async def read_whole(settings: Settings, topic: str, note: Any, *, committed: bool) -> None:
        for one in damaged(user):
            note([Record(b"#placement/t/home", one), Record(b"t/bad", one), Record(None, one)])
        note([Record(b"t/u", user), Record(POSITIONS_KEY, msgspec.msgpack.encode(positions))])

    monkeypatch.setattr(offers_worker, "read_whole", read_whole)
    await worker._restore()
    assert (worker.ledger.users[b"t/u"], worker.positions, worker.ledger.placements) == (user, positions, {})


def test_decisions_that_the_offers_worker_reads(tmp_path: Path) -> None:
    worker = offers_worker.Worker(Settings(home=tmp_path))
    good = msgspec.json.encode(Decision(
        recommendation_id="r", tenant="t", user_id=MARK, scenario="home", items=(), candidates=1, as_of_event_id="",
        as_of_ts=None, served_at=utc(T0_MS), model_version="v"))  # fmt: skip
    for record in around(b"t/u", good):
        worker._one_decision(record)
    worker._react(0, [Record(b"t/u", one, at) for at, one in enumerate((*damaged(b'"offer-' + good), good))])
    assert worker.ledger.users == {}


def test_what_the_catalog_worker_reads() -> None:
    known = Known()
    vector = ItemVector(space="s", content_hash="h", vector=b"1234", item=Item(item_id="i", tenant="t", title=MARK))
    known.on_vectors(around(b"s/t/i", msgspec.msgpack.encode(vector)))
    release = ModelRelease(model_version="v1", uri="u", manifest_sha256="0", released_at=AT, reason=MARK)
    known.on_releases(around(b"current", msgspec.json.encode(release)))
    assert known.vectors == {"h": b"1234"} and known.releases.newest == release


async def test_what_the_insights_worker_reads(tmp_path: Path) -> None:
    worker = Insights(Settings(home=tmp_path), lambda: None)
    item = msgspec.json.encode(Item(item_id="i", tenant="t", title=MARK, brand="Clay"))
    worker.catalog._on_records(around(b"t/i", item))
    assert worker.brands == {b"t/i": "Clay"}

    async def nothing(_: object) -> list[Opinion]:
        return []

    opinion = Opinion(opinion_id="o", tenant="t", user_id=MARK, event_id="e", source="review", lane="live", said_at=AT,
                      item_id="i", brand="", language="en", satisfaction=0.5, stars=None, stars_read=None,
                      p_satisfied=None, aspects=(), telling="", model_version="")  # fmt: skip
    tracker = Tracker(Policy(), FakeErasures(), nothing)
    for state in (b"\xc1", *damaged(msgspec.msgpack.encode([MARK]))):
        tracker.load([Record(b"t/item/i", state)])
        folded = await tracker.fold(around(b"t/i", msgspec.json.encode(opinion)))
        assert msgspec.msgpack.decode(folded.states[b"t/item/i"], type=Subject).opinions == 1
    await stopped(worker.producer)


def test_manifests_that_are_no_text(tmp_path: Path) -> None:
    for number, raw in enumerate(damaged(msgspec.json.encode({"model_version": MARK}))):
        for folder in (f"bundles/v{number}", f"text/s{number}", f"satisfaction/2-en-{number}"):
            model_store.write_files(str(tmp_path / folder), {"manifest.json": raw})
        release = ModelRelease(model_version="v", uri=f"bundles/v{number}", manifest_sha256=sha256(raw), released_at=AT)
        registry = str(tmp_path)
        with pytest.raises(BundleRefused):
            model_store.announced_manifest(registry, release)
        with pytest.raises(BundleRefused):
            model_store.load(registry, release)
        with pytest.raises(BundleRefused):
            model_store.text_model(registry, f"s{number}")
        with pytest.raises(BundleRefused):
            satisfaction.load(registry, f"2-en-{number}")
    assert model_store.versions(str(tmp_path)) == []


def test_a_release_that_was_taken_last_and_cannot_be_read_is_none(readers: ServingReaders) -> None:
    readers.releases._memo.parent.mkdir(parents=True)
    for raw in damaged(msgspec.json.encode({"reason": MARK})):
        readers.releases._memo.write_bytes(raw)
        assert readers.releases._last_taken() is None


def test_a_dead_letter_that_cannot_be_read_keeps_no_other_from_being_mended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    letter = dead_letter(tenant="t", kind="undecodable", messages=(), payload=b"{}", at=AT,
                         source=Source(topic=MARK, partition=0, offset=0))  # fmt: skip
    records = [one._replace(offset=at) for at, one in enumerate(around(b"t/u", msgspec.json.encode(letter)))]
    on_topics(monkeypatch, {topics.DEAD_LETTERS.name("clickwake"): records})
    assert dead_letters.read(Settings()) == [letter]
    said = capsys.readouterr().err
    assert "a topic[0]: the record at offset 1 is left out" in said and said.count("left out") == len(records) - 1


def test_a_record_that_is_left_out_is_named(caplog: pytest.LogCaptureFixture) -> None:
    reader = OffersReader(Settings())
    reader._on_records([Record(b"t/u", b"\xc1", offset=41)])
    assert "a topic[0]: the record at offset 41 is left out" in caplog.text
