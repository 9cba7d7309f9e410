"""A released bundle of models: the manifest inside it and the announcement on the models topic."""

from __future__ import annotations

import msgspec

from schemas.events import Instant

FORMAT_VERSION = 2  # 2: item links, and a blend that is a mixture


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    sha256: str
    bytes: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`manifest.json` of a bundle. `files` names every other file; one that is not named is not read."""

    format_version: int
    model_version: str  # sortable: UTC time and a content hash, 20261124T050000Z-1a2b3c4d
    parent: str | None
    created_at: Instant
    feature_version: int  # must equal stream.core.user.featurize.FEATURE_VERSION of the worker
    text_space: str  # id of the text encoder whose item vectors the bundle expects
    text_dim: int
    tokenizer_sha256: str = ""  # of that text encoder; empty when the registry held none, as with vectors from elsewhere
    dim: int  # of user vectors and adapted item vectors
    events_max: int  # length of the user encoder's input
    blend: dict[str, float]  # weights of the parts of the score, see stream.core.ranking.recommend
    counts: dict[str, float]  # half-lives and bounds of the live counts, see stream.core.ranking.counts
    churn: dict[str, float]  # raise_at, clear_at, horizon_days, see stream.core.survival.churn
    data_from: Instant
    data_to: Instant
    metrics: dict[str, float]
    files: dict[str, FileEntry]
    uplift: dict[str, dict[str, float]] = {}  # delivery → figures; in the order of `uplift.onnx`, which is there if any is
    repurchase: dict[str, float] = {}  # when items are bought again, see stream.core.survival.repurchase; empty: not learned


class ModelRelease(msgspec.Struct, frozen=True, kw_only=True):
    """On `clickwake.models.v1` under key `current`: the bundle every worker should run."""

    model_version: str
    uri: str  # where the bundle is; relative to the registry unless it names a scheme
    manifest_sha256: str
    released_at: Instant
    reason: str = ""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """`verdict.json` beside a bundle: whether it was released when it was made, and why."""

    model_version: str
    against: str | None  # the bundle that was current then
    released: bool
    reason: str
    judged_at: Instant
    days_from: Instant | None = None  # the held-out days both were asked on
    days_to: Instant | None = None
    users: int = 0
    ahead: dict[str, tuple[float, float, float]] = {}  # measure → candidate minus current, paired: value, 95% low, high
