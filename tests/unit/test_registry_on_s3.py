"""A registry on S3: what another process wrote there is seen, though s3fs keeps for ever what it once listed."""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from s3fs import S3FileSystem

from stream.adapters.models import model_store
from stream.adapters.models.model_store import BundleRefused
from tests.unit.test_model_store import build
from training.release import release, verdicts

ROOT = Path(__file__).parents[2]
REGISTRY = "s3://bucket/models"
Bucket = dict[str, bytes]


class Body(io.BytesIO):
    async def read(self, size: int = -1) -> bytes:  # type: ignore[override]
        return super().read(size)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """The objects of a bucket, by their keys; s3fs asks it instead of a server."""
    objects: Bucket = {}

    def entry(key: str) -> dict[str, Any]:
        return {"Key": key, "Size": len(objects[key]), "LastModified": datetime(2026, 1, 1, tzinfo=UTC)}

    async def call(self: S3FileSystem, method: str, *_: Any, Key: str = "", Prefix: str = "", **more: Any) -> dict[str, Any]:
        if method == "list_objects_v2":
            below = sorted(key for key in objects if key.startswith(Prefix))
            folders = {Prefix + key.removeprefix(Prefix).split("/")[0] + "/" for key in below
                       if "/" in key.removeprefix(Prefix) and more["Delimiter"]}  # fmt: skip
            return {"Contents": [entry(key) for key in below if not key.startswith(tuple(folders))],
                    "CommonPrefixes": [{"Prefix": one} for one in sorted(folders)]}  # fmt: skip
        if Key not in objects:
            raise FileNotFoundError(Key)
        if method == "head_object":
            return entry(Key) | {"ContentLength": len(objects[Key])}
        assert method == "get_object"
        return {"Body": Body(objects[Key])}

    monkeypatch.setattr(S3FileSystem, "_call_s3", call)
    S3FileSystem.clear_instance_cache()
    yield objects
    S3FileSystem.clear_instance_cache()


def bundle(version: str) -> Bucket:
    files, manifest = build(model_version=version)
    raw = msgspec.json.encode(manifest)
    return {f"models/bundles/{version}/{name}": data for name, data in (files | {"manifest.json": raw}).items()}


def test_a_later_bundle_is_listed_and_opened(bucket: Bucket) -> None:
    bucket |= bundle("v1")
    assert [one.model_version for one in model_store.versions(REGISTRY)] == ["v1"]
    bucket |= bundle("v2")
    assert [one.model_version for one in model_store.versions(REGISTRY)] == ["v2", "v1"]
    raw = model_store.read(f"{REGISTRY}/bundles/v2/manifest.json")
    assert model_store.verify(f"{REGISTRY}/bundles/v2", raw).manifest.model_version == "v2"


def test_a_folder_that_was_seen_half_written_is_whole_later(bucket: Bucket) -> None:
    bucket["models/text/s/tokenizer.json"] = b"{}"
    assert model_store.newest_text_space(REGISTRY) is None
    with pytest.raises(BundleRefused, match="is missing"):
        model_store.text_model(REGISTRY, "s")
    manifest = {"space": "s", "dim": 4, "tokens_max": 8, "files": {}}
    bucket["models/text/s/manifest.json"] = json.dumps(manifest).encode()
    assert model_store.newest_text_space(REGISTRY) == "s"
    assert model_store.text_model(REGISTRY, "s").dim == 4


def test_a_verdict_and_a_manifest_that_came_later_are_read(bucket: Bucket) -> None:
    bucket |= bundle("v1")
    raw = bucket.pop("models/bundles/v1/manifest.json")
    assert model_store.listed(f"{REGISTRY}/bundles", "*/*.onnx")
    assert verdicts.read(REGISTRY, "v1") is None
    with pytest.raises(BundleRefused, match="there is no bundle v1"):
        release.manifest_bytes(REGISTRY, "v1")
    bucket |= {"models/bundles/v1/manifest.json": raw, "models/bundles/v1/verdict.json": json.dumps(
        {"model_version": "v1", "against": None, "released": False, "reason": "worse", "judged_at": "2026-01-01T00:00:00Z"}
    ).encode()}  # fmt: skip
    assert verdicts.kept(REGISTRY, "v1") == "worse" and release.manifest_bytes(REGISTRY, "v1") == raw


def test_a_registry_is_opened_in_one_place() -> None:
    """That forgets what was listed before."""
    opening = {path.relative_to(ROOT).as_posix() for folder in ("stream", "workers", "producers", "training", "clickwake")
               for path in (ROOT / folder).rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))
               if isinstance(node, ast.Import | ast.ImportFrom)
               and {"fsspec", "s3fs"} & {name.split(".")[0] for name in (
                   [one.name for one in node.names] if isinstance(node, ast.Import) else [node.module or ""])}}  # fmt: skip
    assert opening == {"stream/adapters/models/model_store.py"}
