"""Which bundle the workers should run: announced on the models topic, signed where keys are in use, acknowledged by every
in-sync replica."""

from __future__ import annotations

from collections.abc import Iterator, Set
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec
import structlog

from producers.kafka import KafkaUnavailable, Producer, from_the_beginning, to_its_end, unreachable
from schemas.release import Manifest, ModelRelease, Verdict
from schemas.topics import MODELS
from schemas.unreadable import UNREADABLE
from stream.adapters.models import announcements, model_store, signing
from stream.adapters.models.announcements import Announcements, NotBelieved
from stream.adapters.models.model_store import BundleRefused
from stream.adapters.models.onnx import sha256
from stream.adapters.models.signing import PublicKey, UnusableKey
from stream.settings import Settings
from training.release import verdicts

log = structlog.get_logger()

LATER = timedelta(milliseconds=1)


class NothingReleased(LookupError):
    """There is no release, or none before the current one; the message says what to do."""


class _Said(NamedTuple):
    """What the models topic says."""

    newest: ModelRelease | None  # of the announcements that count
    left_out: str  # the version of the last one that does not
    versions: Set[str]  # of those that count or did once


def release(settings: Settings, version: str, reason: str = "") -> ModelRelease:
    """Verify a bundle as a worker would, its signature included, then announce it. Returns once the broker has acknowledged.

    Announcing the same bundle again is harmless. Raises `BundleRefused` for a bundle workers would refuse, or where they
    would refuse the announcement because there is nothing here to sign it with; ConnectionError, KafkaUnavailable or
    NotAcknowledged when the announcement is not stored.
    """
    keys, signer = signing.trusted(settings.models), signing.signer(settings.models)
    raw = manifest_bytes(settings.registry, version)
    announced = ModelRelease(
        model_version=version, uri=f"bundles/{version}", manifest_sha256=sha256(raw), released_at=datetime.now(UTC),
        reason=reason,
    )  # fmt: skip
    model_store.load(settings.registry, announced, keys=keys)
    if keys and signer is None:
        raise BundleRefused("workers with CLICKWAKE_MODELS__VERIFY_KEYS refuse an announcement that is not signed: set "
                            "CLICKWAKE_MODELS__SIGNING_KEY here, too, or announce it where models are trained")
    topic = MODELS.name(settings.kafka.topic_prefix)
    with Producer(settings.kafka, [topic], wait_s=0) as producer:
        if signer is not None:
            announced = _after(_read(settings).newest, announced)
        value = msgspec.json.encode(announced)
        producer.send(topic, announcements.KEY, value, announcements.signed(value, signer))
    if verdicts.kept(settings.registry, version) is not None:  # somebody knows better; from now on it may be rolled back to
        verdicts.write(settings.registry, _overruled(settings.registry, version, reason))
    return announced


def _after(before: ModelRelease | None, announced: ModelRelease) -> ModelRelease:
    """The same, later than the one before, whatever the clocks of those who announce: of signed ones the newest counts."""
    if before is None or before.released_at < announced.released_at:
        return announced
    return msgspec.structs.replace(announced, released_at=before.released_at + LATER)


def _overruled(registry: str, version: str, reason: str) -> Verdict:
    verdict = verdicts.read(registry, version)
    assert verdict is not None
    return msgspec.structs.replace(
        verdict, released=True, reason=f"released by hand{f' ({reason})' if reason else ''} although {verdict.reason}"
    )


def sign_new(settings: Settings, version: str, manifest_sha256: str) -> PublicKey | None:
    """Sign a bundle this process has just published, if it holds a key: the manifest in the registry must still be the one
    that was written. Returns the key that was used. Raises `BundleRefused`."""
    signer = signing.signer(settings.models)
    if signer is None:
        return None
    raw = manifest_bytes(settings.registry, version)
    if sha256(raw) != manifest_sha256:
        raise BundleRefused(f"the manifest of {version} was changed after it was published; it is not signed")
    model_store.sign(model_store.bundle_uri(settings.registry, version), raw, signer)
    return signer.public


def sign_again(settings: Settings, version: str, *, trust: bool = False) -> PublicKey:
    """Sign a bundle and its text encoder with the present key, as when keys are changed. What no trusted key has signed is
    signed only with `trust`: somebody vouches for what lies in the registry. Raises `BundleRefused` and `UnusableKey`."""
    signer = signing.signer(settings.models)
    if signer is None:
        raise UnusableKey("CLICKWAKE_MODELS__SIGNING_KEY is not set: there is nothing to sign with")
    raw = manifest_bytes(settings.registry, version)
    keys = () if trust else signing.trusted(settings.models)
    bundle = model_store.admit(settings.registry, model_store.bundle_uri(settings.registry, version), raw, keys=keys)
    if bundle.manifest.tokenizer_sha256:
        model_store.sign_text_encoder(settings.registry, bundle.manifest.text_space, signer)
    model_store.sign(model_store.bundle_uri(settings.registry, version), raw, signer)
    return signer.public


def current(settings: Settings) -> ModelRelease | None:
    """The announced release, read to the topic's end; None when nothing was released yet. Those that do not count are left
    out. Raises ConnectionError, and `NothingReleased` where there is no topic, or none of what was announced counts: a
    bundle runs then that nobody here knows of."""
    newest, left_out, _ = _read(settings)
    if newest is None and left_out:
        raise NothingReleased(f"{left_out} was announced, but not under a signature that the keys here know, so nobody here "
                              "can say what runs: announce it once more with clickwake release")
    return newest


def ever_announced(settings: Settings) -> Set[str]:
    """The versions of all bundles that were ever announced, under keys of earlier days, too. Raises as `current`."""
    return _read(settings).versions


def _read(settings: Settings) -> _Said:
    from kafka.errors import KafkaError

    found, left_out, versions = Announcements(signing.trusted(settings.models)), "", set[str]()
    try:
        with from_the_beginning(settings.kafka, MODELS.name(settings.kafka.topic_prefix)) as consumer:
            for record in to_its_end(consumer):
                try:
                    if found.note(record) and found.newest is not None:
                        versions.add(found.newest.model_version)
                except NotBelieved as error:
                    left_out = error.version
                    if found.newest is None:  # of earlier keys, or of none; nobody can put a record before what counts
                        versions.add(left_out)
                    log.warning("announcement left out", model_version=error.version, why=str(error))
    except KafkaUnavailable as error:
        raise NothingReleased(str(error)) from error
    except KafkaError as error:
        raise ConnectionError(unreachable(settings.kafka, error)) from error
    return _Said(found.newest, left_out, versions)


def rollback(settings: Settings, reason: str = "") -> ModelRelease:
    """Announce the bundle that ran before the current one: its parent, or that one's if the parent was never released. That
    the current one was left is kept beside it, so that nobody goes back to it.

    Raises `NothingReleased` when there is none to go back to.
    """
    now = current(settings)
    if now is None:
        raise NothingReleased("nothing was released yet, so there is nothing to roll back; see clickwake models")
    return go_back(settings, now.model_version, before(settings, now.model_version),
                   reason or f"rolled back from {now.model_version}", reason or "by hand")  # fmt: skip


def go_back(settings: Settings, left: str, to: str, reason: str, why: str) -> ModelRelease:
    """Announce a bundle with the reason, and keep beside the one that is left why it was. Raises as `release`."""
    announced = release(settings, to, reason)
    try:
        verdicts.write(settings.registry, Verdict(model_version=left, against=to, released=False,
                                                  reason=f"rolled back: {why}", judged_at=datetime.now(UTC)))  # fmt: skip
    except Exception as error:  # each kind of store has its own client's errors; what is to run is announced by now
        log.warning("not kept why a bundle was left", model_version=left, why=f"{type(error).__name__}: {error}")
    return announced


def before(settings: Settings, version: str) -> str:
    """The nearest of a bundle's ancestors. Raises `NothingReleased` where there is none."""
    nearest = next(ancestors(settings, version), None)
    if nearest is None:
        raise NothingReleased(f"{version} has no parent that was released; name a bundle with clickwake release")
    return nearest


def ancestors(settings: Settings, version: str) -> Iterator[str]:
    """The bundles that a bundle comes from, the nearest first, which were announced once and neither kept back nor rolled
    back since. Raises as `ever_announced`, and BundleRefused where the manifest of one is gone."""
    released, at = ever_announced(settings), version
    while (parent := manifest_of(settings.registry, at).parent) is not None:
        if parent in released and verdicts.kept(settings.registry, parent) is None:
            yield parent
        at = parent


def manifest_bytes(registry: str, version: str) -> bytes:
    """The manifest of a bundle as it lies in the registry. Raises `BundleRefused` when there is none."""
    fs, path = model_store.opened(f"{model_store.bundle_uri(registry, version)}/manifest.json")
    try:
        return bytes(fs.cat_file(path))
    except FileNotFoundError as error:
        raise BundleRefused(f"there is no bundle {version} in {registry}; clickwake models lists them") from error


def manifest_of(registry: str, version: str) -> Manifest:
    """The same, decoded; nothing of the bundle is checked. Raises `BundleRefused`."""
    try:
        return msgspec.json.decode(manifest_bytes(registry, version), type=Manifest)
    except UNREADABLE as error:
        raise BundleRefused(f"the manifest of {version} in {registry} is unreadable: {error}") from error
