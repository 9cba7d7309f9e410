"""With a key set nobody without it says what workers run: not with a bundle that was signed once, nor by saying again what
was announced once. Without one the last record counts, as ever."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from clickwake import topics as admin
from schemas.release import Manifest
from schemas.topics import DAY_MS, FOREVER_MS, MODELS
from stream.adapters.health.metrics import ReleaseMetrics
from stream.adapters.models import announcements, model_store, signing
from stream.adapters.models.announcements import Announcements, NotBelieved
from stream.adapters.models.model_store import BundleRefused
from stream.adapters.models.releases import Releases
from stream.adapters.models.signing import Signer
from stream.serving import ServingState
from stream.settings import Models, Settings
from tests.support import bundles
from tests.support.bundles import Exported
from tests.support.kafka_python import on_topics
from training import schedule
from training.release import release as releases


class Record(NamedTuple):
    key: bytes
    value: bytes
    headers: Sequence[tuple[str, bytes]]
    offset: int


class Topic:
    """The models topic, as Kafka's two clients show it; `send` is open to whoever may write there."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def send(self, topic: str, key: bytes, value: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        self.records.append(Record(key, value, headers, len(self.records)))

    def again(self, record: Record) -> Record:
        self.send("", record.key, record.value, record.headers)
        return self.records[-1]

    def __enter__(self) -> Topic:
        return self

    def __exit__(self, *_: object) -> None: ...


class Here(NamedTuple):
    """Two signed bundles, the second made from the first, and a topic on which nothing is announced."""

    trainer: Settings
    worker: Settings
    first: Manifest
    second: Manifest
    topic: Topic

    def read(self) -> tuple[str, list[str]]:
        """(what a process without a memory runs that reads the topic now, why it refused what it refused)"""
        found, refused = Announcements(signing.trusted(self.worker.models)), []
        for record in self.topic.records:
            try:
                found.note(record)
            except NotBelieved as error:
                refused.append(str(error))
        return (found.newest.model_version if found.newest else "nothing"), refused


@pytest.fixture
def here(tmp_path: Path, exported: Exported, monkeypatch: pytest.MonkeyPatch) -> Here:
    key, registry, topic = Ed25519PrivateKey.generate(), str(tmp_path / "models"), Topic()
    signer = Signer(key)
    private = SecretStr(base64.b64encode(key.private_bytes_raw()).decode())
    trainer = Settings(home=tmp_path, models=Models(registry=registry, signing_key=private))
    worker = Settings(home=tmp_path, models=Models(registry=registry, verify_keys=(signer.public.text,)))
    first = bundles.publish(registry, exported)
    second = bundles.publish(registry, exported, seed=1, parent=first.model_version)
    for one in (first, second):
        model_store.sign(model_store.bundle_uri(registry, one.model_version),
                         releases.manifest_bytes(registry, one.model_version), signer)  # fmt: skip
    monkeypatch.setattr(releases, "Producer", lambda *_, **__: topic)
    on_topics(monkeypatch, {MODELS.name("clickwake"): topic.records})
    return Here(trainer, worker, first, second, topic)


def unsigned(here: Here) -> None:
    here.topic.send("", b"current", msgspec.json.encode(bundles.announcement(here.trainer.registry, here.first)))


def of_the_time_to_come(here: Here) -> None:
    later = msgspec.json.decode(here.topic.records[0].value) | {"released_at": "2099-01-01T00:00:00Z"}
    here.topic.send("", b"current", msgspec.json.encode(later), here.topic.records[0].headers)


def by_another_key(here: Here) -> None:
    value = here.topic.records[0].value
    here.topic.send("", b"current", value, announcements.signed(value, Signer(Ed25519PrivateKey.generate())))


def with_the_signature_of_the_manifest(here: Here) -> None:
    bundle = Path(model_store.bundle_uri(here.trainer.registry, here.first.model_version))
    signature = (bundle / signing.SIGNATURE).read_bytes()
    here.topic.send("", b"current", (bundle / "manifest.json").read_bytes(), [(announcements.HEADER, signature)])


def said_again(here: Here) -> None:
    here.topic.again(here.topic.records[0])


ATTACKS: dict[Callable[[Here], None], str] = {
    unsigned: "is not signed: who holds CLICKWAKE_MODELS__SIGNING_KEY",
    of_the_time_to_come: "changed after it was signed",
    by_another_key: "signed by none of the trusted keys",
    with_the_signature_of_the_manifest: "is unreadable",
    said_again: "is said again",
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_who_can_only_write_to_the_topic_announces_no_older_bundle(here: Here, attack: Callable[[Here], None]) -> None:
    releases.release(here.trainer, here.first.model_version)
    releases.release(here.trainer, here.second.model_version)
    attack(here)
    running, refused = here.read()
    assert running == here.second.model_version and len(refused) == 1 and ATTACKS[attack] in refused[0]
    current = releases.current(here.trainer)
    assert current is not None and current.model_version == here.second.model_version, "nor do commands believe it"


def test_what_was_announced_without_a_signature_is_not_taken_for_no_release(here: Here) -> None:
    """As after an upgrade, or once keys are set: something runs, so nothing may be released unjudged in its place."""
    unsigned(here)
    for asking in (releases.current, releases.rollback):
        with pytest.raises(releases.NothingReleased, match="nobody here can say what runs: announce it once more"):
            asking(here.trainer)
    with pytest.raises(releases.NothingReleased, match="announce it once more"):
        schedule.run_once(here.trainer, "t")  # before it trains for nothing
    releases.release(here.trainer, here.first.model_version)
    current = releases.current(here.trainer)
    assert current is not None and current.model_version == here.first.model_version


def test_a_rollback_is_taken_and_what_was_rolled_back_is_not_brought_back_by_saying_it_again(here: Here) -> None:
    for one in (here.first, here.second):
        releases.release(here.trainer, one.model_version)
    assert releases.rollback(here.trainer).model_version == here.first.model_version
    assert here.read() == (here.first.model_version, [])
    here.topic.again(here.topic.records[1])
    running, refused = here.read()
    assert running == here.first.model_version and "is said again" in refused[0]


def test_only_what_was_announced_is_gone_back_to_whether_or_not_there_were_keys_then(
    here: Here, exported: Exported
) -> None:
    third = bundles.publish(here.trainer.registry, exported, seed=2, parent=here.second.model_version)
    releases.sign_again(here.trainer, third.model_version, trust=True)
    unsigned(here)
    releases.release(here.trainer, third.model_version)
    assert releases.rollback(here.trainer).model_version == here.first.model_version, "nobody announced the second"


def test_the_newest_counts_although_the_clock_of_who_announced_it_is_behind(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = releases.release(here.trainer, here.first.model_version)
    ahead = msgspec.structs.replace(before, released_at=before.released_at + timedelta(days=1))
    value = msgspec.json.encode(ahead)
    here.topic.send("", b"current", value, announcements.signed(value, signing.signer(here.trainer.models)))
    after = releases.release(here.trainer, here.second.model_version)
    assert after.released_at > ahead.released_at and here.read() == (here.second.model_version, [])


def test_who_has_no_private_key_is_told_before_an_announcement_that_nobody_would_believe(here: Here) -> None:
    with pytest.raises(BundleRefused, match="set CLICKWAKE_MODELS__SIGNING_KEY here, too"):
        releases.release(here.worker, here.first.model_version)
    assert here.topic.records == []


def test_without_a_key_the_last_record_counts_signed_or_not(here: Here) -> None:
    open_to_all = here.worker.model_copy(update={"models": Models(registry=here.worker.registry)})
    releases.release(here.trainer, here.second.model_version)
    releases.release(open_to_all, here.first.model_version)
    anybody = here._replace(worker=open_to_all)
    assert anybody.read() == (here.first.model_version, [])
    here.topic.again(here.topic.records[0])
    assert anybody.read() == (here.second.model_version, [])


def test_a_worker_refuses_aloud_what_comes_last_and_passes_over_what_was_said_before_there_were_keys(here: Here) -> None:
    metrics = ReleaseMetrics(CollectorRegistry())
    worker = Releases(here.worker, ServingState(), ThreadPoolExecutor(1), metrics)

    def refused() -> Any:
        return metrics.releases.labels("refused")._value.get()

    unsigned(here)
    releases.release(here.trainer, here.first.model_version)
    worker.on_records(here.topic.records)
    assert refused() == 0 and worker.announcements.newest is not None
    unsigned(here)
    worker.on_records(here.topic.records[-1:])
    assert refused() == 1 and worker.announcements.newest.model_version == here.first.model_version


async def test_a_worker_that_believes_nothing_that_was_announced_goes_on_with_what_it_ran_last(here: Here) -> None:
    """As one that is upgraded before its release is announced once more, under a signature."""
    here.worker.state_dir.mkdir(parents=True, exist_ok=True)
    worker = Releases(here.worker, state := ServingState(), ThreadPoolExecutor(1), ReleaseMetrics(CollectorRegistry()))
    worker._memo.parent.mkdir(parents=True, exist_ok=True)
    worker._memo.write_bytes(msgspec.json.encode(bundles.announcement(here.trainer.registry, here.first)))
    unsigned(here)
    worker.on_records(here.topic.records)
    running = asyncio.create_task(worker.run())
    try:
        async with asyncio.timeout(60):
            await worker.settled()
        assert state.current.version == here.first.model_version and worker.announcements.newest is None
    finally:
        running.cancel()


def test_the_topic_keeps_every_announcement() -> None:
    config = MODELS.config()
    assert config["cleanup.policy"] == "compact" and int(config["min.compaction.lag.ms"]) == FOREVER_MS
    assert int(config["max.compaction.lag.ms"]) >= int(config["min.compaction.lag.ms"]) > DAY_MS


def test_a_topic_made_by_an_older_version_is_said_to_differ(here: Here) -> None:
    found = admin._Existing(1, MODELS.config() | {"min.compaction.lag.ms": "0", "max.compaction.lag.ms": str(DAY_MS)})
    for settings in (here.worker, Settings()):
        (difference,) = admin._outcome(MODELS, settings, found).differences
        assert difference.startswith("older announcements may go")
        assert admin._outcome(MODELS, settings, admin._Existing(1, MODELS.config())).result == "exists"


def test_nobody_without_a_key_names_a_bundle_to_go_back_to(here: Here) -> None:
    unsigned(here)  # before keys were set
    releases.release(here.trainer, here.second.model_version)
    assert releases.before(here.trainer, here.second.model_version) == here.first.model_version
    here.topic.records.clear()
    releases.release(here.trainer, here.second.model_version)
    unsigned(here)
    with pytest.raises(releases.NothingReleased, match="no parent that was released"):
        releases.before(here.trainer, here.second.model_version)
