"""Tiny bundles in a registry: exported once a session by the project's own code, published in milliseconds."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
import torch
from kafka import KafkaProducer

from schemas import topics
from schemas.catalog import Item, ItemVector
from schemas.release import Manifest, ModelRelease
from stream.adapters.models import announcements, model_store, signing
from stream.adapters.models.onnx import sha256
from stream.core.ranking.links import NO_LINKS, REPEAT_UNKNOWN, Links, Weights, no_weights
from stream.core.ranking.links import to_bytes as links_to_bytes
from stream.core.segments.audience import Audience, to_bytes
from stream.core.survival.churn import EDGES_DAYS
from stream.core.user.featurize import CHURN_FEATURES
from stream.settings import Models, Settings
from training import export
from training.churn.churn import HazardNet
from training.recommend.user_encoder import Config, Recommender
from training.release import release

Headers = Sequence[tuple[str, bytes]]
TEXT_DIM = 384  # MiniLM's, so that the real text encoder's vectors fit too
SPACE = "tiny"
ITEMS = [Item(item_id=f"i{n}", tenant="t", title=f"thing {n}", category=f"c{n % 4}") for n in range(12)]
N = len(ITEMS)
BESIDE = Links(  # each item is bought with the next one, and half as often with the one after it; they say nothing else
    [item.item_id for item in ITEMS], np.full(N, REPEAT_UNKNOWN, np.float32), follows=no_weights(N), together=no_weights(N),
    beside=Weights(np.array([[(n + 1) % N, (n + 2) % N] for n in range(N)], np.int32),
                   np.tile(np.array([1.0, 0.5], np.float32), (N, 1))),
)  # fmt: skip
LAPSE_DAYS = 1.0  # of silence, then the churn model of these bundles raises an alert
CHURN = {"horizon_days": 14.0, "raise_at": 0.8, "clear_at": 0.5, "cooldown_days": 3.0}


class Exported(NamedTuple):
    """The ONNX files of one untrained recommender and of a churn model that says: back within a day, or hardly ever."""

    model: Recommender
    files: dict[str, bytes]


class Planted(HazardNet):
    """Rates that are the same for everybody, whatever their history."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        rates = np.where(EDGES_DAYS[:-1] < LAPSE_DAYS, 2.0, 0.001)  # returns a day
        stays = np.concatenate([[0.0], -np.cumsum(rates * np.diff(EDGES_DAYS))]).astype(np.float32)
        return torch.from_numpy(stays) + features[:, :1] * 0.0  # (B, E)


def exported() -> Exported:
    torch.manual_seed(0)
    text = torch.randn(len(ITEMS), TEXT_DIM)
    model = Recommender(Config(dim=16, layers=1, heads=2, text_dim=TEXT_DIM), text).eval()
    net = Planted(torch.zeros(len(CHURN_FEATURES)), torch.ones(len(CHURN_FEATURES))).eval()
    return Exported(model, export.files(model, net, [item.item_id for item in ITEMS]))


def files_of(made: Exported, seed: int = 0, audience: Audience | None = None) -> dict[str, bytes]:
    """A bundle's files; `seed` moves the item vectors, so that another seed is another model."""
    residuals = np.load(io.BytesIO(made.files["item_residuals.npz"]), allow_pickle=False)
    noise = np.random.default_rng(seed).normal(size=residuals["vectors"].shape).astype(np.float32)
    files = made.files | {"item_residuals.npz": npz(ids=residuals["ids"], vectors=residuals["vectors"] + noise)}
    return files if audience is None else files | {"audience.json": to_bytes(audience)}


def publish(
    registry: str, made: Exported, *, seed: int = 0, space: str = SPACE, parent: str | None = None,
    audience: Audience | None = None, links: Links = NO_LINKS, **fields: Any,
) -> Manifest:  # fmt: skip
    """A whole bundle, see `files_of`; `fields` of the manifest."""
    files = files_of(made, seed, audience) | {"item_links.npz": links_to_bytes(links)}
    manifest = msgspec.structs.replace(
        export.draft(made.model, space, parent, files, (0, 1)), **({"churn": CHURN} | fields)
    )
    golden = export.golden(export.open_files(manifest, files), np.zeros((2, len(CHURN_FEATURES)), dtype=np.float32))
    return export.publish(registry, manifest, files, {"golden.npz": golden})[0]


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def with_registry(settings: Settings, registry: Path) -> Settings:
    return settings.model_copy(update={"models": Models(registry=str(registry))})


def announcement(registry: str, manifest: Manifest) -> ModelRelease:
    """What a publisher who does not verify puts on the models topic for a bundle."""
    raw = (Path(model_store.bundle_uri(registry, manifest.model_version)) / "manifest.json").read_bytes()
    return ModelRelease(model_version=manifest.model_version, uri=f"bundles/{manifest.model_version}",
                        manifest_sha256=sha256(raw), released_at=manifest.created_at)  # fmt: skip


class Announced:
    """Stands for the models topic: what `training.release.release` announces is current from then on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, registry: str) -> None:
        self.current: ModelRelease | None = None
        self.versions: set[str] = set()
        self.registry = registry
        monkeypatch.setattr(release, "current", lambda settings: self.current)
        monkeypatch.setattr(release, "ever_announced", lambda settings: self.versions)
        monkeypatch.setattr(release, "release", self.release)

    def release(self, settings: Settings, version: str, reason: str = "") -> ModelRelease:
        manifest = next(one for one in model_store.versions(self.registry) if one.model_version == version)
        self.current = msgspec.structs.replace(announcement(self.registry, manifest), reason=reason)
        self.versions.add(version)
        return self.current


def announce(settings: Settings, value: ModelRelease | bytes, headers: Headers | None = None) -> None:
    """Straight onto the models topic, past `training.release.release`; signed by the settings' key where no `headers`
    are."""
    raw = value if isinstance(value, bytes) else msgspec.json.encode(value)
    signed = announcements.signed(raw, signing.signer(settings.models)) if headers is None else headers
    _send(settings, topics.MODELS, [(announcements.KEY, raw)], signed)


def put_vectors(settings: Settings, items: Iterable[Item] = ITEMS, *, space: str = SPACE, dim: int = TEXT_DIM) -> None:
    """Item vectors as the catalog worker would put them, without its text encoder: drawn, the same in every run."""
    rng = np.random.default_rng(11)
    records = []
    for item in items:
        drawn = rng.normal(size=dim)
        vector = (drawn / np.linalg.norm(drawn)).astype("<f4").tobytes() if item.text() else b""
        value = ItemVector(space=space, content_hash=item.item_id, vector=vector, item=item)
        records.append((f"{space}/{item.tenant}/{item.item_id}".encode(), msgspec.msgpack.encode(value)))
    _send(settings, topics.ITEM_VECTORS, records)


def _send(settings: Settings, topic: topics.Topic, records: list[tuple[bytes, bytes]], headers: Headers = ()) -> None:
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers, acks="all")
    name = topic.name(settings.kafka.topic_prefix)
    futures = [producer.send(name, key=key, value=value, headers=list(headers)) for key, value in records]
    for future in futures:
        future.get(30)
    producer.close()
