"""The registry: a good bundle loads; whatever is wrong with another is refused with the reason, and nothing else escapes."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import msgspec
import numpy as np
import onnx.parser
import pytest

from schemas.release import FORMAT_VERSION, FileEntry, Manifest, ModelRelease
from stream.adapters.models import model_store
from stream.adapters.models.model_store import BundleRefused, RegistryAway
from stream.adapters.models.onnx import sha256
from stream.core.ranking import links
from stream.core.survival.churn import EDGES_DAYS
from stream.core.user.featurize import CHURN_FEATURES, FEATURE_VERSION

DIM, TEXT_DIM, EVENTS = 4, 6, 3
HEAD = '<ir_version: 8, opset_import: ["" : 13]>'
USER_ENCODER = f"""{HEAD} g (float[B,L,{DIM}] items, int64[B,L] kinds, float[B,L] ages, bool[B,L] mask)
    => (float[B,{DIM}] user, float[B,L] weights) {{
  weights = Cast<to = 1>(mask)
  last = Constant<value = int64[1] {{2}}>()
  by_item = Unsqueeze(weights, last)
  weighted = Mul(items, by_item)
  axis = Constant<value = int64[1] {{1}}>()
  user = ReduceSum<keepdims = 0>(weighted, axis)
}}"""


def constant_rows(name: str, rows: int, columns: int, inputs: str, output: str) -> bytes:
    """x @ W with a fixed W."""
    values = ", ".join(str(round(0.1 * (i % 7) - 0.3, 1)) for i in range(rows * columns))
    text = f"""{HEAD} g (float[N,{rows}] {inputs}) => (float[N,{columns}] {output}) {{
      w = Constant<value = float[{rows},{columns}] {{{values}}}>()
      {output} = MatMul({inputs}, w)
    }}"""
    return bytes(onnx.parser.parse_model(text).SerializeToString())


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def golden(**more: Any) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    inputs = {
        "items": rng.normal(size=(2, EVENTS, DIM)).astype(np.float32),
        "kinds": np.ones((2, EVENTS), dtype=np.int64),
        "ages": np.zeros((2, EVENTS), dtype=np.float32),
        "mask": np.array([[True, True, False], [True, True, True]]),
        "text": rng.normal(size=(2, TEXT_DIM)).astype(np.float32),
        "features": rng.normal(size=(2, len(CHURN_FEATURES))).astype(np.float32),
    }
    return inputs | more


WEIGHTS = links.Weights(np.array([[5]], np.int32), np.ones((1, 1), np.float32))  # names a sixth item
LINKED = (np.zeros(1, np.float32), WEIGHTS, WEIGHTS, WEIGHTS)


def build(**change: Any) -> tuple[dict[str, bytes], Manifest]:
    """A small whole bundle; `change` replaces files or, for other names, fields of the manifest."""
    files = {
        "user_encoder.onnx": bytes(onnx.parser.parse_model(USER_ENCODER).SerializeToString()),
        "item_adapter.onnx": constant_rows("adapter", TEXT_DIM, DIM, "text", "vector"),
        "churn.onnx": constant_rows("churn", len(CHURN_FEATURES), len(EDGES_DAYS), "features", "log_survival"),
        "item_residuals.npz": npz(ids=np.array(["a", "b"]), vectors=np.eye(2, DIM, dtype=np.float32)),
        "item_links.npz": links.to_bytes(links.NO_LINKS),
        "golden.npz": b"",
    }
    files |= {name: data for name, data in change.items() if name in files}
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    manifest = Manifest(
        format_version=FORMAT_VERSION, model_version="v1", parent=None, created_at=moment, feature_version=FEATURE_VERSION,
        text_space="s", text_dim=TEXT_DIM, dim=DIM, events_max=EVENTS, blend={}, counts={}, churn={}, data_from=moment,
        data_to=moment, metrics={}, files={},
    )  # fmt: skip
    if "golden.npz" not in change:
        inputs = golden()
        outputs = model_store.golden_outputs(model_store.Bundle(manifest, files, 1), inputs)
        files["golden.npz"] = npz(**inputs, **outputs)
    entries = {name: FileEntry(sha256=sha256(data), bytes=len(data)) for name, data in files.items()}
    fields = {name: value for name, value in change.items() if name not in files}
    return files, msgspec.structs.replace(manifest, **({"files": entries} | fields))


def put(registry: Path, files: dict[str, bytes], manifest: Manifest) -> ModelRelease:
    raw = msgspec.json.encode(manifest)
    model_store.publish(str(registry), manifest.model_version, files | {"manifest.json": raw})
    return ModelRelease(model_version=manifest.model_version, uri=f"bundles/{manifest.model_version}",
                        manifest_sha256=sha256(raw), released_at=manifest.created_at)  # fmt: skip


def test_a_published_bundle_loads_and_runs(tmp_path: Path) -> None:
    bundle = model_store.load(str(tmp_path), put(tmp_path, *build()))
    arrays = golden()
    user, weights = bundle.encode({name: arrays[name] for name in ("items", "kinds", "ages", "mask")})
    assert np.allclose(user[0], arrays["items"][0, :2].sum(0), atol=1e-6) and weights.tolist()[0] == [1.0, 1.0, 0.0]
    bare = bundle.adapt(np.zeros((2, TEXT_DIM), dtype=np.float32), ["a", "unknown"])
    assert bare.tolist() == [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]  # residual alone; nothing at all
    assert [one.model_version for one in model_store.versions(str(tmp_path))] == ["v1"]
    assert not list(tmp_path.rglob("*.partial"))


def flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / "churn.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "churn.onnx").write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped byte": (flip_a_byte, "churn.onnx is damaged"),
    "missing file": (lambda folder: (folder / "item_residuals.npz").unlink(), "item_residuals.npz is missing"),
    "missing manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
    "another manifest": (lambda folder: (folder / "manifest.json").write_bytes(b"{}"), "not the announced one"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_after_publishing_is_refused(tmp_path: Path, damage: str) -> None:
    release = put(tmp_path, *build())
    act, why = DAMAGES[damage]
    act(tmp_path / "bundles" / "v1")
    with pytest.raises(BundleRefused, match=why):
        model_store.load(str(tmp_path), release)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"format_version": FORMAT_VERSION + 1}, "this worker reads"),
        ({"feature_version": FEATURE_VERSION + 1}, "this worker computes"),
        ({"dim": DIM + 1}, "has .* for 2 items of 5 dimensions"),
        ({"text_dim": TEXT_DIM + 1}, "dimensions of text"),
        ({"files": {}}, "names no churn.onnx"),
        ({"blend": {"sales": 2.5}}, "policies cannot be used: .*sales"),
        ({"counts": {"rules_half_life_days": 0.0}}, "policies cannot be used: .*rules_half_life_days"),
        ({"events_max": 0}, "events_max is 0"),
        ({"churn.onnx": b"no graph"}, "cannot be opened"),
        ({"item_residuals.npz": npz(ids=np.array(["a"]), vectors=np.zeros((1, DIM + 3), np.float32))}, "for 1 items"),
        ({"item_residuals.npz": npz(ids=np.array(["a", "b"]), vectors=np.zeros((1, DIM), np.float32))}, "for 2 items"),
        ({"item_links.npz": links.to_bytes(links.NO_LINKS._replace(ids=["a"]))}, "for 1 items"),
        ({"item_links.npz": links.to_bytes(links.Links(["a"], *LINKED))}, "names items beyond 1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_this_worker_is_refused(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    whole, _ = build()
    files, manifest = build(**{"golden.npz": whole["golden.npz"]} | change)
    with pytest.raises(BundleRefused, match=why):
        model_store.load(str(tmp_path), put(tmp_path, files, manifest))


def test_other_answers_than_the_golden_ones_are_refused(tmp_path: Path) -> None:
    whole, _ = build()
    values = dict(np.load(io.BytesIO(whole["golden.npz"])))
    for wrong in (values["user"] + 0.01, np.full_like(values["user"], np.nan)):
        files, manifest = build(**{"golden.npz": npz(**values | {"user": wrong})})
        with pytest.raises(BundleRefused, match="golden user differs"):
            model_store.load(str(tmp_path), put(tmp_path, files, manifest))


def test_a_registry_that_cannot_be_reached_is_a_reason_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = put(tmp_path, *build())
    with pytest.raises(BundleRefused, match="cannot be reached from here"):
        model_store.load(str(tmp_path), msgspec.structs.replace(release, uri="nosuch://bucket/v1"))
    with pytest.raises(BundleRefused, match=r"nosuch://files\.example/v1/manifest\.json cannot be") as refused:
        model_store.load(str(tmp_path), msgspec.structs.replace(release, uri="nosuch://me:secret@files.example/v1"))
    assert "secret" not in str(refused.value)

    def away(*_: Any, **__: Any) -> bytes:
        raise ConnectionError("no route to store")

    monkeypatch.setattr(type(fsspec.filesystem("file")), "cat_file", away)
    with pytest.raises(RegistryAway, match="no route to store"):
        model_store.load(str(tmp_path), release)


@pytest.mark.parametrize("operation", ["exists", "glob", "modified"])
def test_spaces_that_cannot_be_listed_are_no_crash_either(
    operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_store.write_files(str(tmp_path / "text" / "s"), {"manifest.json": b"{}"})
    assert model_store.newest_text_space(str(tmp_path)) == "s"

    def away(*_: Any, **__: Any) -> bytes:
        raise ConnectionError("no route to store")

    monkeypatch.setattr(type(fsspec.filesystem("file")), operation, away)
    with pytest.raises(RegistryAway, match="no route to store"):
        model_store.newest_text_space(str(tmp_path))


def test_unreadable_manifests_hide_no_other_bundle(tmp_path: Path) -> None:
    put(tmp_path, *build())
    (tmp_path / "bundles" / "v0").mkdir()
    (tmp_path / "bundles" / "v0" / "manifest.json").write_bytes(b'{"format_ver')
    assert [one.model_version for one in model_store.versions(str(tmp_path))] == ["v1"]


def test_a_half_written_text_encoder_is_refused_and_an_empty_registry_is_none(tmp_path: Path) -> None:
    assert model_store.load_text_encoder(str(tmp_path)) is None
    (tmp_path / "text" / "sp").mkdir(parents=True)
    (tmp_path / "text" / "sp" / "manifest.json").write_bytes(b"")
    with pytest.raises(BundleRefused, match="export the text encoder again"):
        model_store.load_text_encoder(str(tmp_path))
