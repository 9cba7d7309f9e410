"""What the search says that shows whether anything is left of a user: what goes by itself, and what does not."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import SecretStr
from typer.testing import CliRunner

from clickwake import erase as commands
from clickwake.cli import app
from producers.dead_letters import dead_letter, encode
from schemas import topics
from schemas.dead_letter import Source
from schemas.erasure import Erased, Erasure, Receipt, subject
from schemas.events import key
from stream.adapters.models import signing
from stream.adapters.state.state_store import META_FAMILY, Identity, PartitionStore, directory
from stream.core.terms import CLOSING_KEY
from stream.erasure import search
from stream.erasure.eraser import Eraser, until
from stream.outbox import cloud_event
from stream.partition import DUE_PREFIX, Brought, Meta
from stream.pseudonyms import pseudonym
from stream.settings import Kafka, Models, Settings
from tests.support.fakes import T0_MS, event
from tests.support.kafka_python import on_topics

AT = datetime.fromtimestamp(T0_MS / 1_000, UTC)
GONE, DEVICE = "gone", "their-device"
DONE_MS = T0_MS + 60_000


class Record(NamedTuple):
    key: bytes | None
    value: bytes | None
    timestamp: int = T0_MS
    topic: str = ""
    partition: int = 0
    offset: int = 0
    headers: tuple[tuple[str, bytes], ...] = ()


def said(user: str, at_ms: int, **more: Any) -> Record:
    return Record(b"", msgspec.json.encode(event(user=user, **more)), at_ms)


def receipt(*ids: str, tenant: str = "t", at_ms: int = DONE_MS) -> Record:
    subjects = [subject(key(tenant, one)).decode() for one in ids]
    text = msgspec.json.encode(Receipt(erasure_id="e", tenant=tenant, requested_at=AT, done_at=AT, done=(),
                                       subjects=tuple(one.rpartition("/")[2] for one in subjects))).decode()  # fmt: skip
    done = Erasure(erasure_id="e", tenant=tenant, requested_at=AT, receipt=text)
    return Record(subjects[0].encode(), msgspec.json.encode(done), at_ms)


def found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ids: list[str], **records: list[Record]
) -> dict[str, tuple[int, bool]]:
    """Places on topics: how many records there, and whether they go by themselves."""
    on_topics(monkeypatch, {f"clickwake.{name.replace('_', '-')}.v1": some for name, some in records.items()})
    monkeypatch.setattr(search, "in_clickhouse", lambda *_: iter(()))
    return {one.place: (one.records, one.until is not None) for one in search.everywhere(Settings(home=tmp_path), "t", ids)}


def test_what_was_written_after_the_receipt_does_not_go_by_the_day_that_the_receipt_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    events = [said(GONE, T0_MS), said(GONE, DONE_MS), said("v", DONE_MS + 5), said("v", T0_MS, anonymousId=DEVICE)]
    listed = [receipt(GONE, at_ms=T0_MS - 9), receipt(GONE, DEVICE), receipt(GONE, tenant="other", at_ms=DONE_MS + 99),
              Record(b"t/x", b"{"), Record(b"t/y", None)]  # fmt: skip
    place = f"Kafka {topics.EVENTS.name('clickwake')}"
    clean = found(monkeypatch, tmp_path, [GONE, DEVICE], events=events, erasures=listed)
    assert clean == {f"{place}, older records": (3, True)}
    late = [*events, said(GONE, DONE_MS + 1), said("v", DONE_MS + 1, previousId=DEVICE)]
    left = found(monkeypatch, tmp_path, [GONE, DEVICE], events=late, erasures=listed)
    assert left == clean | {f"{place}, newer than any receipt": (2, False)}


def test_a_tombstone_names_its_user_until_compaction_has_taken_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place, gone = f"Kafka {topics.STATE.name('clickwake')}", key("t", GONE)
    state = [Record(gone, b"state"), Record(gone, None), Record(key("t", "other"), None)]
    assert found(monkeypatch, tmp_path, [GONE], personalize_state=state) == {f"{place}, older records": (2, True)}
    assert found(monkeypatch, tmp_path, [GONE], personalize_state=state[1:]) == {f"{place}, older records": (1, True)}
    back = [*state, Record(gone, b"a state of theirs again")]
    assert found(monkeypatch, tmp_path, [GONE], personalize_state=back) == {
        place: (1, False), f"{place}, older records": (2, True)}  # fmt: skip
    # closed after a day, compacted within one, kept as a tombstone for one, and taken by the next compaction
    assert until(topics.STATE, AT, Kafka()) == AT + timedelta(days=5)
    assert until(topics.EVENTS, AT, Kafka()) == AT + timedelta(days=31)


def of_partition(who: bytes, how: str) -> bytes:
    """A partition's own record that names somebody."""
    return msgspec.msgpack.encode(Meta(owed=[who]) if how == "owed" else Meta(ahead={who: Brought(7, {"folded": 1})}))


ALIKE = (key("t", GONE + "2"), key("t", "other-" + GONE), key("other", GONE), key("t", "v"))


@pytest.mark.parametrize("how", ["owed", "ahead"])
def test_a_partitions_record_that_names_somebody_in_it_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    place = f"Kafka {topics.STATE.name('clickwake')}"
    for who in ALIKE:
        assert found(monkeypatch, tmp_path, [GONE], personalize_state=[Record(CLOSING_KEY, of_partition(who, how))]) == {}
    named = Record(CLOSING_KEY, of_partition(key("t", GONE), how))
    assert found(monkeypatch, tmp_path, [GONE], personalize_state=[named]) == {place: (1, False)}
    later = [named, Record(CLOSING_KEY, of_partition(ALIKE[0], how))]
    assert found(monkeypatch, tmp_path, [GONE], personalize_state=later) == {f"{place}, older records": (1, True)}


def test_a_header_that_names_somebody_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def alerts(*subjects: str) -> list[Record]:
        return [Record(b"t/w", b"{}", headers=tuple(cloud_event("churn-alert", "a", one, T0_MS))) for one in subjects]

    place = f"Kafka {topics.CHURN_ALERTS.name('clickwake')}, newer than any receipt"
    assert found(monkeypatch, tmp_path, [GONE], churn_alerts=alerts(*(one.decode() for one in ALIKE))) == {}
    assert found(monkeypatch, tmp_path, ["1.0"], churn_alerts=alerts("t/v")) == {}, "the version of the headers is no user"
    assert found(monkeypatch, tmp_path, [GONE], churn_alerts=alerts("t/v", f"t/{GONE}")) == {place: (1, False)}


PLANTED: dict[str, Any] = {
    "its key": lambda store, who: store.write({who: b""}, 1, T0_MS),
    "when it is due": lambda store, who: store.write({DUE_PREFIX + who: b""}, 1, T0_MS),
    "owed": lambda store, who: store.write({CLOSING_KEY: of_partition(who, "owed")}, 1, T0_MS),
    "ahead": lambda store, who: store.write({CLOSING_KEY: of_partition(who, "ahead")}, 1, T0_MS),
    "unsettled": lambda store, who: store.write({}, 1, T0_MS, unsettled=[who]),
    "begun": lambda store, who: store.write({}, 1, T0_MS, begun={who: (b"brought",)}),
}


@pytest.mark.parametrize("where", PLANTED)
def test_whatever_a_state_store_holds_of_somebody_is_found(tmp_path: Path, where: str) -> None:
    for who, hits in ((key("t", GONE), 1), *((one, 0) for one in ALIKE)):
        settings = Settings(home=tmp_path / str(hits) / who.decode().replace("/", "-"))
        store = PartitionStore.open(directory(settings, "personalize", 0), Identity("t1", 1, T0_MS))
        PLANTED[where](store, who)
        store.close()
        said = [one.records for one in search.in_stores(settings.state_dir, search.Needles("t", [GONE]))]
        assert said == [hits] * hits, who


def test_what_a_store_notes_and_nobody_can_read_is_searched_as_it_stands(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    store = PartitionStore.open(directory(settings, "personalize", 0), Identity("t1", 1, T0_MS))
    store._open_db().get_column_family(META_FAMILY)[b"a note"] = b'of "' + GONE.encode() + b'"'
    store.close()
    assert [one.records for one in search.in_stores(settings.state_dir, search.Needles("t", [GONE]))] == [1]


def test_what_nobody_was_asked_to_erase_is_left_on_every_topic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With pseudonyms, the id itself is among what is looked for: it may have come by an import."""
    events, named = [said(GONE, T0_MS), said("pn", T0_MS)], ["pn", GONE]
    left = found(monkeypatch, tmp_path, named, events=events, erasures=[receipt("pn")])
    place = f"Kafka {topics.EVENTS.name('clickwake')}"
    assert left == {f"{place}, newer than any receipt": (1, False), f"{place}, older records": (1, True)}


def test_a_search_that_finds_nothing_names_what_it_did_not_look_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CLICKWAKE_HOME", str(tmp_path))
    monkeypatch.setattr(search, "everywhere", lambda *_: iter(()))
    said = CliRunner().invoke(app, ["erase", GONE, "--tenant", "t", "--verify"])
    assert said.exit_code == 0 and "nothing else is left in the topics, tables and files" in said.stdout
    beyond = [line for line in said.stdout.splitlines() if line.startswith("not searched: ")]
    for what in ("other machines", str(tmp_path), "memory", "Kafka topics that do not begin with clickwake.", "backups",
                 "anonymous ids", "bytes that state stores have deleted"):  # fmt: skip
        assert any(what in line for line in beyond), what


def test_what_is_said_of_a_receipt_is_whether_it_is_signed_and_whether_that_was_checked() -> None:
    signer = signing.Signer(Ed25519PrivateKey.generate())
    text = receipt(GONE).value
    done = msgspec.json.decode(text or b"", type=Erasure)
    assert done.receipt is not None
    signed = msgspec.structs.replace(done, signature=signer.sign(done.receipt.encode(), signing.RECEIPT).decode())
    without, keyed = Settings(), Settings(models=Models(verify_keys=(signer.public.text,)))
    assert commands.signed_by(without, done).startswith("NOT signed: the erasure worker has no CLICKWAKE_MODELS__")
    assert commands.signed_by(without, signed).startswith("signed, which was not checked")
    assert commands.signed_by(keyed, signed) == f"signed by key {signer.public.id}"
    with pytest.raises(signing.SignatureRefused, match="the receipt of erasure e is NOT signed"):
        commands.signed_by(keyed, done)
    with pytest.raises(signing.SignatureRefused, match="changed after it was signed"):
        commands.signed_by(keyed, msgspec.structs.replace(signed, receipt=done.receipt + " "))


@pytest.mark.parametrize("key_of", [None, Ed25519PrivateKey.generate()], ids=["no key", "a key"])
def test_a_receipt_says_itself_whether_it_is_signed(key_of: Ed25519PrivateKey | None) -> None:
    private = None if key_of is None else SecretStr(base64.b64encode(key_of.private_bytes_raw()).decode())
    nobody: Any = None
    eraser = Eraser(Settings(models=Models(signing_key=private)), nobody, Erased())  # type: ignore[arg-type]
    final = eraser._finished(Erasure(erasure_id="e", tenant="t", requested_at=AT, user_id=GONE), [key("t", GONE)], [])
    said = msgspec.json.decode(final.receipt or "", type=Receipt)
    assert said.signed is (key_of is not None) is (final.signature is not None)


def test_a_dead_letter_is_searched_for_what_was_refused_also_by_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(payload: bytes) -> Record:
        return Record(b"t/", encode(dead_letter(tenant="t", kind="undecodable", messages=(), payload=payload, at=AT,
                                                source=Source(topic="x", partition=0, offset=0))))  # fmt: skip

    letters = [refused(b'{"userId": 4711, "event": "x"}'), refused(b'{"anonymousId":4711}'), refused(b'{"userId": "4711"'),
               refused(b'{"userId": 47110, "price": 4711}'), Record(b"t/", b"\xff")]  # fmt: skip
    found_here = found(monkeypatch, tmp_path, ["4711"], dead_letters=letters, erasures=[receipt("4711")])
    assert found_here == {f"Kafka {topics.DEAD_LETTERS.name('clickwake')}, older records": (3, True)}


def test_a_number_is_found_in_a_file_also_where_two_pieces_of_it_meet(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(search, "CHUNK_BYTES", 128)
    for at in range(100, 160):
        (tmp_path / f"{at}.log").write_text("x" * at + '"userId": 4711' + ", " * 100)
    (tmp_path / "other").write_text('"product_id": 4711, "userId": 47110, "userId": 14711')
    assert len(list(search.in_files(tmp_path, search.Needles("t", ["4711"])))) == 60


@pytest.mark.parametrize(("arguments", "names"), [([], ["old", "new", GONE]), (["--as-is"], [GONE])])
def test_everything_is_looked_for_that_a_user_may_be_called(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], names: list[str]
) -> None:
    keys = {"new": "n" * 32, "old": "o" * 32}
    monkeypatch.setenv("CLICKWAKE_PRIVACY__PSEUDONYM_KEYS", msgspec.json.encode([*keys.values()]).decode())
    asked = []

    def verify(tenant: str, ids: list[str], *, as_json: bool) -> int:
        asked.append((tenant, set(ids)))
        return 0

    monkeypatch.setattr(commands, "verify", verify)
    assert CliRunner().invoke(app, ["erase", GONE, "--tenant", "t", "--verify", *arguments]).exit_code == 0
    called = {pseudonym(keys[one].encode(), "t", GONE) if one in keys else one for one in names}
    assert asked == [("t", called)]
