"""The registry of releases: a folder or any fsspec URL.

    <registry>/bundles/<model_version>/manifest.json, user_encoder.onnx, item_adapter.onnx, churn.onnx,
                                       item_residuals.npz, item_links.npz, audience.json, golden.npz; uplift.onnx where it
                                       was learned
    <registry>/text/<space>/model.onnx, tokenizer.json, manifest.json

Beside each manifest.json lies manifest.json.sig where keys are in use, see `signing`. A bundle is believed only after its
signature was checked and its files were hashed, and the bytes that were hashed are the bytes that are loaded; then its
golden inputs must give its golden outputs on this machine. What fails is refused with the reason.
"""

from __future__ import annotations

import io
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import msgspec
import numpy as np
import structlog

from schemas.release import FORMAT_VERSION, FileEntry, Manifest, ModelRelease
from schemas.unreadable import UNREADABLE
from stream.adapters.models import signing
from stream.adapters.models.onnx import Bundle, TextEncoder, sha256
from stream.adapters.models.signing import SIGNATURE, Keys, Signer
from stream.core.ranking.blend import Blend
from stream.core.ranking.counts import CountsPolicy
from stream.core.segments import audience
from stream.core.segments.audience import NO_AUDIENCE, Audience, similarities
from stream.core.survival.churn import EDGES_DAYS, ChurnPolicy
from stream.core.survival.repurchase import Repurchase
from stream.core.user.featurize import ALERT_FEATURES, CHURN_FEATURES, FEATURE_VERSION, Float32
from stream.urls import without_userinfo

BUNDLE_FILES = ("user_encoder.onnx", "item_adapter.onnx", "churn.onnx", "item_residuals.npz", "item_links.npz",
                "golden.npz")
UPLIFT_FILE = "uplift.onnx"  # only where the manifest's `uplift` names deliveries
BUNDLE_FILES_LATER = ("audience.json",)  # that bundles of an older version do not have
FILE_BYTES_MAX = 1 << 30
GOLDEN_DELTA_MAX = 1e-3  # |Δ| between machines; kernels differ in the last bits

_manifest = msgspec.json.Decoder(Manifest)
log = structlog.get_logger()


class BundleRefused(Exception):
    """Why a bundle is not taken; the worker keeps the one it has. It names URLs without the password they may hold."""

    def __init__(self, why: str) -> None:
        super().__init__(without_userinfo(why))


class RegistryAway(BundleRefused):
    """The registry did not answer, which says nothing about the bundle: trying again later may help."""


class TextModel(msgspec.Struct, frozen=True, kw_only=True):
    """`manifest.json` of a text encoder."""

    space: str
    dim: int
    tokens_max: int
    files: dict[str, str]  # name → sha256


def bundle_uri(registry: str, model_version: str) -> str:
    return f"{registry.rstrip('/')}/bundles/{model_version}"


def load(registry: str, release: ModelRelease, threads: int = 1, keys: Keys = ()) -> Bundle:
    """Fetch, verify and open an announced bundle; with `keys`, one of them must have signed it. Raises `BundleRefused`."""
    uri, raw = _announced(registry, release)
    bundle = admit(registry, uri, raw, threads, keys)
    if bundle.manifest.model_version != release.model_version:
        raise BundleRefused(f"{uri} is {bundle.manifest.model_version}, announced was {release.model_version}")
    return bundle


def announced_manifest(registry: str, release: ModelRelease, keys: Keys = ()) -> Manifest:
    """What an announced bundle says of itself, its signature checked, its files not looked at. Raises `BundleRefused`."""
    uri, raw = _announced(registry, release)
    check_signature(uri, raw, keys)
    try:
        return _manifest.decode(raw)
    except UNREADABLE as error:
        raise BundleRefused(f"{uri}/manifest.json is unreadable: {error}") from error


def _announced(registry: str, release: ModelRelease) -> tuple[str, bytes]:
    """Where an announced bundle is, and its manifest as it was announced."""
    uri = release.uri if "://" in release.uri or release.uri.startswith("/") else f"{registry.rstrip('/')}/{release.uri}"
    raw = read(f"{uri}/manifest.json")
    if sha256(raw) != release.manifest_sha256:
        raise BundleRefused(f"{uri}/manifest.json is not the announced one: its sha256 differs")
    return uri, raw


def admit(registry: str, uri: str, raw_manifest: bytes, threads: int = 1, keys: Keys = ()) -> Bundle:
    """All that a worker asks of a bundle: the signature before anything is parsed, then `verify`, then that the text encoder
    whose vectors it expects is the registry's. Raises `BundleRefused`."""
    check_signature(uri, raw_manifest, keys)
    bundle = verify(uri, raw_manifest, threads)
    expected = bundle.manifest.tokenizer_sha256
    if expected:
        text = text_model(registry, bundle.manifest.text_space, keys)
        if text.files.get("tokenizer.json") != expected or text.dim != bundle.manifest.text_dim:
            raise BundleRefused(f"{uri} expects another text encoder than the registry holds as {text.space}: tokenizer or "
                                "dimension differ; train again, or put the one back it was trained with")  # fmt: skip
    return bundle


def sign_text_encoder(registry: str, space: str, signer: Signer) -> None:
    """Put the signature beside a text encoder's manifest."""
    sign(_text_uri(registry, space), read(f"{_text_uri(registry, space)}/manifest.json"), signer)


def check_signature(uri: str, raw_manifest: bytes, keys: Keys) -> str | None:
    """The id of the one of `keys` that signed the manifest; without keys nothing is asked. Raises `BundleRefused`."""
    if not keys:
        return None
    fs, root = opened(uri)
    with _answering(f"{uri}/{SIGNATURE}"):
        present = fs.exists(f"{root}/{SIGNATURE}")
    if not present:
        raise BundleRefused(f"{uri} is not signed: there is no {SIGNATURE}, and this installation asks for a signature")
    try:
        return signing.check(raw_manifest, read(f"{uri}/{SIGNATURE}"), keys).id
    except signing.SignatureRefused as error:
        raise BundleRefused(f"{uri}: {error}") from error


def sign(uri: str, raw_manifest: bytes, signer: Signer) -> None:
    """Put the signature beside the manifest."""
    fs, root = opened(uri)
    fs.pipe_file(f"{root}/{SIGNATURE}", signer.sign(raw_manifest))


def verify(uri: str, raw_manifest: bytes, threads: int = 1) -> Bundle:
    """Check a bundle against its manifest and open it. Raises `BundleRefused`."""
    try:
        manifest = _manifest.decode(raw_manifest)
    except UNREADABLE as error:
        raise BundleRefused(f"{uri}/manifest.json is unreadable: {error}") from error
    if manifest.format_version != FORMAT_VERSION:
        raise BundleRefused(f"format {manifest.format_version}, this worker reads {FORMAT_VERSION}")
    if manifest.feature_version != FEATURE_VERSION:
        raise BundleRefused(f"features of version {manifest.feature_version}, this worker computes {FEATURE_VERSION}")
    _check_policies(manifest)
    names = (*BUNDLE_FILES, *([UPLIFT_FILE] if manifest.uplift else []))
    missing = set(names) - manifest.files.keys()
    if missing:
        raise BundleRefused(f"the manifest names no {', '.join(sorted(missing))}")
    later = (name for name in BUNDLE_FILES_LATER if name in manifest.files)
    files = read_files(uri, {name: manifest.files[name] for name in (*names, *later)})
    try:
        bundle = Bundle(manifest, files, threads)
        golden = dict(np.load(io.BytesIO(files["golden.npz"]), allow_pickle=False))
        _check_golden(bundle, golden)
    except BundleRefused:
        raise
    except Exception as error:  # onnxruntime and numpy raise many kinds for a file that is not what it should be
        raise BundleRefused(f"{uri} cannot be opened: {type(error).__name__}: {error}") from error
    return bundle


def read_files(uri: str, entries: dict[str, FileEntry]) -> dict[str, bytes]:
    """Files of a folder, each hashed: the bytes that were hashed are the bytes returned. Raises `BundleRefused`."""
    files = {}
    for name, entry in entries.items():
        data = files[name] = read(f"{uri}/{name}")
        if len(data) != entry.bytes or sha256(data) != entry.sha256:
            raise BundleRefused(f"{name} is damaged: {len(data)} bytes with another sha256 than the manifest's")
    return files


def _check_policies(manifest: Manifest) -> None:
    try:
        CountsPolicy.from_manifest(manifest.counts)
        Blend.from_manifest(manifest.blend)
        ChurnPolicy.from_manifest(manifest.churn)
        Repurchase.from_manifest(manifest.repurchase)
    except msgspec.ValidationError as error:
        raise BundleRefused(f"the manifest's policies cannot be used: {error}") from error
    if manifest.events_max < 1:
        raise BundleRefused(f"events_max is {manifest.events_max}, at least 1 is needed")


def golden_outputs(bundle: Bundle, golden: dict[str, Any]) -> dict[str, Float32]:
    """What a bundle says to golden inputs (items, kinds, ages, mask, text, features, alert_features)."""
    user, weights = bundle.encode({name: golden[name] for name in ("items", "kinds", "ages", "mask")})
    adapted = bundle.adapt(golden["text"], [""] * len(golden["text"]))
    said = {"user": user, "weights": weights, "adapted": adapted, "log_survival": bundle.survival(golden["features"])}
    if bundle.manifest.uplift:
        said["effects"] = np.stack(list(bundle.effects(golden["alert_features"]).values()), axis=1)  # (B, K, 2)
    if bundle.audience.clusters:
        said["near"] = similarities(user, bundle.audience.centroids())
    return said


def _check_golden(bundle: Bundle, golden: dict[str, Any]) -> None:
    manifest = bundle.manifest
    shapes = {
        "items": golden["items"].shape[-1] == manifest.dim,
        "text": golden["text"].shape[-1] == manifest.text_dim,
        "features": golden["features"].shape[-1] == len(CHURN_FEATURES),
        "log_survival": golden["log_survival"].shape[-1] == len(EDGES_DAYS),
    }
    if manifest.uplift:
        shapes["alert_features"] = golden["alert_features"].shape[-1] == len(ALERT_FEATURES)
    wrong = [name for name, fits in shapes.items() if not fits]
    if wrong:
        raise BundleRefused(f"dimensions of {', '.join(wrong)} differ from what the manifest and this worker expect")
    for name, value in golden_outputs(bundle, golden).items():
        if name not in golden:
            raise BundleRefused(f"golden.npz says nothing of {name}")
        expected = golden[name]
        if value.shape != expected.shape:
            raise BundleRefused(f"golden {name} has shape {value.shape}, expected {expected.shape}")
        delta = float(np.abs(value - expected).max(initial=0.0))
        if not delta <= GOLDEN_DELTA_MAX:
            raise BundleRefused(f"golden {name} differs by {delta:.2g}, at most {GOLDEN_DELTA_MAX} is allowed")


def load_text_encoder(
    registry: str, space: str | None = None, threads: int = 1, keys: Keys = ()
) -> tuple[str, TextEncoder] | None:
    """The text encoder of a space, or the newest there is; None when the registry has none. Raises `BundleRefused`."""
    space = space or newest_text_space(registry, keys)
    if space is None:
        return None
    uri, model = _text_uri(registry, space), text_model(registry, space, keys)
    files = {name: read(f"{uri}/{name}") for name in ("model.onnx", "tokenizer.json")}
    for name, data in files.items():
        if sha256(data) != model.files.get(name):
            raise BundleRefused(f"text encoder {uri}/{name} is damaged: its sha256 is not the manifest's")
    return model.space, TextEncoder(files["model.onnx"], files["tokenizer.json"], threads, model.tokens_max)


def text_model(registry: str, space: str, keys: Keys = ()) -> TextModel:
    """The manifest of a text encoder, its signature checked. Raises `BundleRefused`."""
    uri = _text_uri(registry, space)
    raw = read(f"{uri}/manifest.json")
    check_signature(uri, raw, keys)
    try:
        model = msgspec.json.decode(raw, type=TextModel)
    except UNREADABLE as error:
        raise BundleRefused(f"{uri}/manifest.json is unreadable: {error}; export the text encoder again") from error
    if model.space != space:
        raise BundleRefused(f"{uri} holds the text encoder of space {model.space}")
    return model


def tokenizer_sha256(registry: str, space: str) -> str:
    """Of the registry's text encoder of that space; empty when there is none."""
    fs, root = opened(_text_uri(registry, space))
    return text_model(registry, space).files["tokenizer.json"] if fs.exists(f"{root}/manifest.json") else ""


def newest_text_space(registry: str, keys: Keys = ()) -> str | None:
    """The space of the text encoder exported last; None when the registry has none. With `keys`, one that none of them
    signed is passed over: it must not keep the catalog from working. Raises `RegistryAway`."""
    uri = f"{registry.rstrip('/')}/text"
    fs, _ = opened(uri)
    manifests = listed(uri, "*/manifest.json")
    with _answering(uri):
        newest_first = sorted(manifests, key=lambda one: str(fs.modified(one)), reverse=True)
    for path in newest_first:
        space = posixpath.basename(posixpath.dirname(path))
        try:
            if keys:
                check_signature(_text_uri(registry, space), read(f"{_text_uri(registry, space)}/manifest.json"), keys)
        except RegistryAway:
            raise
        except BundleRefused as error:
            log.warning("text encoder passed over", space=space, why=str(error))
            continue
        return space
    return None


def _text_uri(registry: str, space: str) -> str:
    return f"{registry.rstrip('/')}/text/{space}"


def versions(registry: str) -> list[Manifest]:
    """All bundles in the registry, newest first; unreadable ones are left out and logged."""
    fs, _ = opened(registry)
    found = []
    for path in listed(f"{registry.rstrip('/')}/bundles", "*/manifest.json"):
        try:
            found.append(_manifest.decode(fs.cat_file(path)))
        except UNREADABLE as error:
            log.warning("bundle left out", manifest=path, why=str(error))
    return sorted(found, key=lambda one: one.model_version, reverse=True)


def audience_of(registry: str, manifest: Manifest) -> Audience:
    """What a bundle of the registry says of everybody; nothing for one that says nothing. Raises `BundleRefused`."""
    entry = manifest.files.get("audience.json")
    if entry is None:
        return NO_AUDIENCE
    data = read_files(bundle_uri(registry, manifest.model_version), {"audience.json": entry})["audience.json"]
    try:
        return audience.from_bytes(data, manifest.dim)
    except ValueError as error:
        raise BundleRefused(f"{bundle_uri(registry, manifest.model_version)}: {error}") from error


def publish(registry: str, model_version: str, files: dict[str, bytes]) -> str:
    """Write a bundle's files, the manifest last: a bundle without a manifest does not exist. Returns its URI."""
    uri = bundle_uri(registry, model_version)
    write_files(uri, files)
    return uri


def write_files(uri: str, files: dict[str, bytes]) -> None:
    """Write files under a folder; `manifest.json` last and by renaming, so that no reader sees half of one."""
    fs, root = opened(uri)
    for name in sorted(files, key=lambda name: (name == "manifest.json", name)):
        path = f"{root}/{name}"
        fs.makedirs(posixpath.dirname(path), exist_ok=True)
        if name == "manifest.json":
            fs.pipe_file(f"{path}.partial", files[name])
            fs.mv(f"{path}.partial", path)
        else:
            fs.pipe_file(path, files[name])


def opened(uri: str) -> tuple[Any, str]:
    """The file system of a URI and the path in it, to be used at once: what it knew of folders is forgotten, since other
    processes write there. Raises `BundleRefused` when its scheme cannot be used here."""
    try:
        fs, path = fsspec.core.url_to_fs(uri)
    except (ValueError, ImportError) as error:
        raise BundleRefused(f"{uri} cannot be reached from here: {error}; check CLICKWAKE_MODELS__REGISTRY") from error
    fs.invalidate_cache()  # s3fs keeps listings for ever; sftp does not take `use_listings_cache=False`
    return fs, path


def listed(uri: str, pattern: str) -> list[str]:
    """Paths under a folder of the registry; none where there is no such folder. Raises `RegistryAway` without an answer."""
    fs, root = opened(uri)
    with _answering(uri):
        return list(fs.glob(f"{root}/{pattern}")) if fs.exists(root) else []


def read(uri: str) -> bytes:
    """One file of the registry. Raises `BundleRefused` when it is missing or too large, `RegistryAway` without an answer."""
    fs, path = opened(uri)
    with _answering(uri):
        if fs.size(path) > FILE_BYTES_MAX:
            raise BundleRefused(f"{uri} is larger than {FILE_BYTES_MAX} bytes")
        data: bytes = fs.cat_file(path)
    return data


@contextmanager
def _answering(uri: str) -> Iterator[None]:
    """Turns what a store's client raises into what we raise."""
    try:
        yield
    except BundleRefused:
        raise
    except FileNotFoundError as error:
        raise BundleRefused(f"{uri} is missing") from error
    except Exception as error:  # each kind of store has its own client's errors
        raise RegistryAway(f"{uri} could not be read: {type(error).__name__}: {error}") from error
