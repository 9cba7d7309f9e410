"""Bundles released into running workers: taken between two batches, or refused while the old one goes on."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from pydantic import SecretStr

from clickwake import topics as topic_admin
from schemas import topics
from schemas.outputs import Recommendation
from schemas.release import FileEntry, Manifest, ModelRelease
from stream.adapters.models import model_store, signing
from stream.adapters.models.onnx import sha256
from stream.settings import Settings
from tests.support import bundles
from tests.support.bundles import Exported
from tests.support.cluster import (
    Sender,
    Tail,
    Worker,
    assert_states_are_true,
    lag,
    members,
    produce_events,
    running,
    until,
)
from tests.support.fakes import event
from training.release import release as releases

HOUR_MS = 3_600_000
UNREADABLE = b'{"model_version": 5}'
WORKER = "workers.personalize"


class Visitors:
    """A live stream in which every event is another visitor's, so that each is due a recommendation whatever the batches;
    the first of them have been here before."""

    def __init__(self, settings: Settings, returning: int) -> None:
        now_ms = time.time_ns() // 1_000_000
        past = [event(user=f"v{n}", ts_ms=now_ms - (3 - step) * HOUR_MS, item=f"i{(n + step) % 12}", lane="import")
                for n in range(returning) for step in range(3)]  # fmt: skip
        produce_events(settings, past)
        self.sender = Sender(settings)
        self.tail = Tail(settings, topics.RECOMMENDATIONS)
        self.sent: list[str] = []

    def arrive(self, count: int) -> None:
        now_ms = time.time_ns() // 1_000_000
        first = len(self.sent)
        some = [event(user=f"v{n}", ts_ms=now_ms, item=f"i{n % 12}", id=f"live-{n}") for n in range(first, first + count)]
        self.sender.send(some)
        self.sent += [one["messageId"] for one in some]

    def flow_until(self, condition: Callable[[], Any], what: str) -> None:
        """Events keep coming until it is true."""

        def step() -> Any:
            self.arrive(8)
            self.tail.poll()
            return condition()

        until(step, 60, what)

    def recommendations(self) -> list[tuple[int, Recommendation]]:
        """(partition, recommendation) in the order of each partition."""
        return [(record.partition, msgspec.json.decode(record.value, type=Recommendation)) for record in self.tail.poll()]

    def all_served(self) -> bool:
        return len(self.recommendations()) >= len(self.sent)

    def versions(self) -> dict[int, list[str]]:
        """By partition, the model versions in the order they appear, repetitions left out."""
        found: dict[int, list[str]] = {}
        for partition, one in self.recommendations():
            found.setdefault(partition, []).append(one.model_version)
        return {partition: [version for version, _ in itertools.groupby(some)] for partition, some in found.items()}

    def close(self) -> None:
        self.sender.__exit__()
        self.tail.__exit__()


@pytest.fixture
def here(settings: Settings, tmp_path: Path) -> Settings:
    """Topics, item vectors, and a registry of the test's own."""
    settings = bundles.with_registry(settings, tmp_path / "models")
    topic_admin.create(settings)
    bundles.put_vectors(settings)
    return settings


@pytest.fixture
def visitors(here: Settings) -> Iterator[Visitors]:
    some = Visitors(here, returning=200)
    yield some
    some.close()


def counted(worker: Worker, result: str) -> float:
    return worker.metrics().get(f'clickwake_releases_total{{result="{result}"}}', 0.0)


def test_a_release_in_the_stream_switches_each_partition_once_and_loses_nothing(
    here: Settings, visitors: Visitors, exported: Exported, tmp_path: Path
) -> None:
    first = bundles.publish(here.registry, exported).model_version
    second = bundles.publish(here.registry, exported, seed=1, parent=first).model_version
    releases.release(here, first)
    with running(here, WORKER, tmp_path / "one") as one, running(here, WORKER, tmp_path / "two") as two:
        until(lambda: members(here, "personalize") == 2 and lag(here, "personalize", topics.EVENTS) == 0, 60, "both at work")
        everywhere = set(range(here.kafka.partitions))
        visitors.flow_until(lambda: visitors.versions().keys() == everywhere, "outputs of every partition")
        releases.release(here, second)
        switched = {partition: [first, second] for partition in everywhere}
        visitors.flow_until(lambda: visitors.versions() == switched, "the new model in every partition")
        visitors.arrive(80)
        until(visitors.all_served, 30, "a recommendation for each event")
        assert visitors.versions() == switched, "never back"
        for worker in (one, two):
            assert (counted(worker, "taken"), counted(worker, "refused")) == (2, 0)
            assert worker.metrics()[f'clickwake_model_info{{model_version="{second}"}}'] == 1
    answered = [rec.as_of_event_id for _, rec in visitors.recommendations()]
    assert sorted(answered) == sorted(visitors.sent), "one for each event that was due one"
    assert {rec.degraded for _, rec in visitors.recommendations()} == {None}
    assert all(len(rec.items) == 10 for _, rec in visitors.recommendations())
    assert_states_are_true(here)


# --- faulty bundles: whole ones, spoiled as a broken disk, a broken copy or a hostile publisher would ---------------------


def folder_of(registry: str, manifest: Manifest) -> Path:
    return Path(model_store.bundle_uri(registry, manifest.model_version))


def resealed(registry: str, manifest: Manifest, **fields: Any) -> ModelRelease:
    """The bundle with other fields or files in its manifest, hashes and announcement made to fit."""
    folder = folder_of(registry, manifest)
    entries = {name: FileEntry(sha256=sha256((folder / name).read_bytes()), bytes=(folder / name).stat().st_size)
               for name in manifest.files}  # fmt: skip
    (folder / "manifest.json").write_bytes(
        msgspec.json.encode(msgspec.structs.replace(manifest, **({"files": entries} | fields)))
    )
    return bundles.announcement(registry, manifest)


def flipped_bit(registry: str, manifest: Manifest) -> ModelRelease:
    path = folder_of(registry, manifest) / "churn.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return bundles.announcement(registry, manifest)


def missing_file(registry: str, manifest: Manifest) -> ModelRelease:
    (folder_of(registry, manifest) / "user_encoder.onnx").unlink()
    return bundles.announcement(registry, manifest)


def wrong_golden_vectors(registry: str, manifest: Manifest) -> ModelRelease:
    path = folder_of(registry, manifest) / "golden.npz"
    values = dict(np.load(io.BytesIO(path.read_bytes())))
    path.write_bytes(bundles.npz(**values | {"user": values["user"] + 0.01}))
    return resealed(registry, manifest)


FAULTS: dict[str, tuple[Callable[[str, Manifest], ModelRelease], str]] = {
    "flipped bit": (flipped_bit, "churn.onnx is damaged"),
    "missing file": (missing_file, "user_encoder.onnx is missing"),
    "items of another dimension": (lambda where, it: resealed(where, it, dim=it.dim + 1), "for 12 items of 17 dimensions"),
    "texts of another dimension": (lambda where, it: resealed(where, it, text_dim=it.text_dim + 1), "dimensions of text"),
    "a catalog of another dimension": (lambda where, it: resealed(where, it, text_space="narrow"), "has 5 dimensions"),
    "wrong golden vectors": (wrong_golden_vectors, "golden user differs by 0.01"),
    "a policy of the wrong type": (lambda where, it: resealed(where, it, blend={"sales": 2.5}), "sales"),
    "a policy that divides by zero": (
        lambda where, it: resealed(where, it, counts={"popularity_half_life_days": 0.0}), "popularity_half_life_days"),
    "another manifest than announced": (
        lambda where, it: msgspec.structs.replace(bundles.announcement(where, it), manifest_sha256="0" * 64),
        "not the announced one"),
    "nowhere": (
        lambda where, it: msgspec.structs.replace(bundles.announcement(where, it), uri="nosuch://place/bundle"),
        "cannot be reached from here"),
}  # fmt: skip


def test_a_faulty_bundle_is_refused_with_the_reason_and_the_old_one_goes_on(
    here: Settings, visitors: Visitors, exported: Exported
) -> None:
    parent = bundles.publish(here.registry, exported).model_version
    good = bundles.publish(here.registry, exported, seed=1, parent=parent).model_version
    bundles.put_vectors(here, space="narrow", dim=5)
    releases.release(here, parent)

    def served_by(version: str) -> None:
        """The next visitors get that model's recommendations."""
        before = len(visitors.sent)
        visitors.arrive(8)
        until(visitors.all_served, 30, "a recommendation for each event")
        assert {rec.model_version for _, rec in visitors.recommendations()[before:]} == {version}

    with running(here, WORKER) as worker:
        served_by(parent)
        releases.release(here, good)
        until(lambda: counted(worker, "taken") == 2, 20, "the good release")
        served_by(good)
        for number, (name, (spoil, why)) in enumerate(FAULTS.items(), 1):
            spoiled = bundles.publish(here.registry, exported, seed=1 + number, parent=good)
            bundles.announce(here, spoil(here.registry, spoiled))
            until(lambda number=number: counted(worker, "refused") == number, 20, f"refusal of {name}")
            refusals = [line for line in worker.log().splitlines() if "release refused" in line]
            assert why in refusals[-1] and f"keeps={good}" in refusals[-1], (name, refusals[-1:])
            served_by(good)
        releases.release(here, good)  # said again, so that there is something to roll back from
        assert releases.rollback(here).model_version == parent
        until(lambda: counted(worker, "taken") == 3, 20, "the roll-back")
        served_by(parent)
        assert counted(worker, "refused") == len(FAULTS)
        bundles.announce(here, UNREADABLE)
        until(lambda: counted(worker, "refused") == len(FAULTS) + 1, 20, "refusal of what is no announcement")
        assert f"unreadable: Expected `str`, got `int` - at `$.model_version`\" keeps={parent}" in worker.log()
        served_by(parent)
    assert_states_are_true(here)


def test_a_release_in_a_new_space_waits_until_every_item_is_encoded_in_it_and_flips_once(
    here: Settings, visitors: Visitors, exported: Exported
) -> None:
    old = bundles.publish(here.registry, exported).model_version
    new = bundles.publish(here.registry, exported, seed=1, parent=old, space="another").model_version
    releases.release(here, old)
    with running(here, WORKER) as worker:
        until(lambda: counted(worker, "taken") == 1, 30, "the old release")
        bundles.put_vectors(here, bundles.ITEMS[:-1], space="another")
        releases.release(here, new)
        until(lambda: "release waits for its vector space" in worker.log() and "missing=1" in worker.log(), 30, "it waits")
        visitors.arrive(40)
        until(visitors.all_served, 30, "the old model meanwhile")
        assert {rec.model_version for _, rec in visitors.recommendations()} == {old}
        bundles.put_vectors(here, bundles.ITEMS[-1:], space="another")
        until(lambda: counted(worker, "taken") == 2, 30, "the flip, without another announcement")
        before = len(visitors.sent)
        visitors.arrive(40)
        until(visitors.all_served, 30, "the new model")
        assert {rec.model_version for _, rec in visitors.recommendations()[before:]} == {new}
        assert all(len(rec.items) == 10 and rec.degraded is None for _, rec in visitors.recommendations()[before:])
        assert releases.rollback(here).model_version == old
        until(lambda: counted(worker, "taken") == 3, 20, "back at once: the old space is still there")
        assert counted(worker, "refused") == 0
    assert_states_are_true(here)


def test_with_a_key_set_an_unsigned_bundle_or_announcement_is_refused_and_a_signed_one_taken(
    here: Settings, visitors: Visitors, exported: Exported, tmp_path: Path
) -> None:
    public = signing.keygen(tmp_path / "signing.key")
    owner = here.model_copy(update={"models": here.models.model_copy(update={
        "signing_key": SecretStr(str(tmp_path / "signing.key"))})})  # fmt: skip
    good = bundles.publish(here.registry, exported)
    releases.sign_again(owner, good.model_version, trust=True)
    releases.release(owner, good.model_version)
    unsigned = bundles.publish(here.registry, exported, seed=1, parent=good.model_version)
    with pytest.raises(model_store.BundleRefused, match="is not signed"):
        releases.release(owner, unsigned.model_version)
    newer = bundles.publish(here.registry, exported, seed=2, parent=good.model_version)
    releases.sign_again(owner, newer.model_version, trust=True)
    with running(here, WORKER, CLICKWAKE_MODELS__VERIFY_KEYS=json.dumps([public.text])) as worker:
        until(lambda: counted(worker, "taken") == 1, 30, "the signed release")
        told = bundles.announcement(here.registry, unsigned)
        bundles.announce(owner, msgspec.structs.replace(told, released_at=datetime.now(UTC)))
        until(lambda: counted(worker, "refused") == 1, 20, "refusal of the unsigned one")
        assert "is not signed: there is no manifest.json.sig" in worker.log()
        releases.release(owner, newer.model_version)
        until(lambda: counted(worker, "taken") == 2, 20, "the newer release")
        bundles.announce(here, bundles.announcement(here.registry, good))
        until(lambda: counted(worker, "refused") == 2, 20, "refusal of the older bundle, announced by who has no key")
        with Tail(here, topics.MODELS) as tail:
            said = until(tail.poll, 20, "what was announced")
        bundles.announce(here, said[0].value, said[0].headers)
        until(lambda: counted(worker, "refused") == 3, 20, "refusal of its own announcement, said again")
        visitors.arrive(8)
        until(visitors.all_served, 30, "a recommendation for each event")
        assert releases.rollback(owner).model_version == good.model_version
        until(lambda: counted(worker, "taken") == 3, 20, "the roll-back")
        assert counted(worker, "refused") == 3
    assert {rec.model_version for _, rec in visitors.recommendations()} == {newer.model_version}


def test_a_registry_that_is_away_is_tried_again_without_another_announcement(
    here: Settings, visitors: Visitors, exported: Exported
) -> None:
    first = bundles.publish(here.registry, exported).model_version
    second = bundles.publish(here.registry, exported, seed=1, parent=first)
    releases.release(here, first)
    with running(here, WORKER) as worker:
        until(lambda: counted(worker, "taken") == 1, 30, "the first release")
        manifest = folder_of(here.registry, second) / "manifest.json"
        shutil.move(manifest, manifest.with_name("aside"))
        manifest.mkdir()  # neither there nor missing: what an answer other than "not found" looks like on a disk
        raw = manifest.with_name("aside").read_bytes()
        bundles.announce(here, ModelRelease(model_version=second.model_version, uri=f"bundles/{second.model_version}",
                                            manifest_sha256=sha256(raw), released_at=second.created_at))  # fmt: skip
        until(lambda: "could not be read" in worker.log(), 20, "the log says what is wrong")
        visitors.arrive(8)
        until(visitors.all_served, 30, "the old model meanwhile")
        manifest.rmdir()
        shutil.move(manifest.with_name("aside"), manifest)
        until(lambda: counted(worker, "taken") == 2, 20, "taken once the registry is back")
        assert counted(worker, "refused") == 0
    assert {version for some in visitors.versions().values() for version in some} == {first}


def test_an_unreadable_announcement_does_not_keep_anybody_from_rolling_back(here: Settings, exported: Exported) -> None:
    parent = bundles.publish(here.registry, exported).model_version
    good = bundles.publish(here.registry, exported, seed=1, parent=parent).model_version
    for one in (parent, good):
        releases.release(here, one)
    bundles.announce(here, UNREADABLE)
    assert releases.rollback(here).model_version == parent


def test_a_worker_started_on_a_refused_announcement_goes_on_with_the_release_it_took_last(
    here: Settings, visitors: Visitors, exported: Exported
) -> None:
    good = bundles.publish(here.registry, exported).model_version
    spoiled = bundles.publish(here.registry, exported, seed=1, parent=good)
    releases.release(here, good)
    with running(here, WORKER) as worker:
        until(lambda: counted(worker, "taken") == 1, 30, "the good release")
    bundles.announce(here, flipped_bit(here.registry, spoiled))
    with running(here, WORKER) as worker:
        visitors.arrive(8)
        until(visitors.all_served, 30, "a recommendation for each event")
        assert counted(worker, "refused") == 1 and "falling back to the release taken last" in worker.log()
    assert {version for some in visitors.versions().values() for version in some} == {good}
