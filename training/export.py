"""Torch to ONNX, checked: same answers over batch sizes and lengths, indifferent to padding, no NaN for empty rows."""

from __future__ import annotations

import hashlib
import io
import logging
import warnings
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from schemas.release import FORMAT_VERSION, FileEntry, Manifest
from stream.adapters.models import model_store
from stream.adapters.models.onnx import Bundle, session, sha256
from stream.core.ranking.links import NO_LINKS, Links
from stream.core.ranking.links import to_bytes as links_to_bytes
from stream.core.survival.churn import EDGES_DAYS
from stream.core.user.featurize import ALERT_FEATURES, CHURN_FEATURES, FEATURE_VERSION, Float32
from stream.core.user.state import KINDS
from training.churn.churn import HazardNet
from training.parity import agree, agree_as_vectors, point_alike, ranks_alike
from training.recommend.user_encoder import Recommender

OPSET = 18
PARITY_BATCHES = (1, 2, 7, 32)
PARITY_LENGTHS = (1, 8, 16, 33)  # and the longest
GOLDEN_USERS = 8
ENCODER_INPUTS = ("items", "kinds", "ages", "mask")


def to_onnx(model: torch.nn.Module, example: tuple[torch.Tensor, ...], inputs: list[str], outputs: list[str],
            shapes: dict[str, Any]) -> bytes:
    """One graph in one file, with the named dynamic dimensions."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        program = torch.onnx.export(
            model.eval(), example, dynamo=True, opset_version=OPSET, verbose=False,
            input_names=inputs, output_names=outputs, dynamic_shapes=shapes,
        )  # fmt: skip
    assert program is not None
    return bytes(program.model_proto.SerializeToString())


def files(model: Recommender, net: HazardNet, item_ids: list[str], links: Links = NO_LINKS) -> dict[str, bytes]:
    """The bundle's files without manifest and golden vectors. Raises `ParityFailed`."""
    dim, text_dim, most = model.config.dim, model.config.text_dim, model.config.events_max
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=4 * most)
    example = tuple(torch.from_numpy(one) for one in random_inputs(3, 7, dim, 0).values())
    by_event = {0: batch, 1: length}
    built = {
        "user_encoder.onnx": to_onnx(
            model.encoder, example, list(ENCODER_INPUTS), ["user", "weights"],
            dict.fromkeys(ENCODER_INPUTS, by_event),
        ),
        "item_adapter.onnx": to_onnx(model.adapter, (torch.zeros(3, text_dim),), ["text"], ["vector"], {"text": {0: batch}}),
        "churn.onnx": to_onnx(
            net, (torch.zeros(3, len(CHURN_FEATURES)),), ["features"], ["log_survival"], {"features": {0: batch}}
        ),
    }  # fmt: skip
    check_parity(model, net, built)
    buffer = io.BytesIO()
    residuals = model.residuals.weight.detach().numpy().astype(np.float32)  # (N, D)
    np.savez(buffer, ids=np.array(item_ids, dtype=np.str_), vectors=residuals)
    built["item_residuals.npz"] = buffer.getvalue()
    built["item_links.npz"] = links_to_bytes(links)
    return built


def random_inputs(size: int, length: int, dim: int, seed: int) -> dict[str, npt.NDArray[Any]]:
    """Encoder inputs as `featurize.batch` makes them: unit vectors, left-aligned, padded; the last row may be empty."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, length + 1, size)
    lengths[0] = length
    if size > 2:
        lengths[-1] = 0
    mask = np.arange(length) < lengths[:, None]  # (B, L)
    items = rng.normal(size=(size, length, dim))
    items /= np.linalg.norm(items, axis=2, keepdims=True)
    ages = np.sort(rng.uniform(0, 8, (size, length)), axis=1)[:, ::-1]
    return {
        "items": (items * mask[:, :, None]).astype(np.float32),
        "kinds": rng.integers(1, KINDS, (size, length)) * mask,
        "ages": (ages * mask).astype(np.float32),
        "mask": mask,
    }


def check_parity(model: Recommender, net: HazardNet, built: dict[str, bytes]) -> float:
    """The largest difference between torch and ONNX over batches and lengths; raises `ParityFailed`, see `parity`."""
    adapter, churn = session(built["item_adapter.onnx"], 1), session(built["churn.onnx"], 1)
    worst = _encoder_parity(model, built["user_encoder.onnx"])
    for size in PARITY_BATCHES:
        rng = np.random.default_rng(size)
        text = rng.normal(size=(size, model.config.text_dim)).astype(np.float32)
        text /= np.linalg.norm(text, axis=1, keepdims=True)
        features = rng.normal(size=(size, len(CHURN_FEATURES))).astype(np.float32)
        with torch.no_grad():
            adapted, survival = model.adapter(torch.from_numpy(text)).numpy(), net(torch.from_numpy(features)).numpy()
        (vectors,) = adapter.run(None, {"text": text})  # (B, D)
        worst = max(worst, agree_as_vectors(f"item_adapter at batch {size}", vectors, adapted))
        (said,) = churn.run(None, {"features": features})  # (B, E)
        stays, expected_stays = np.exp(said), np.exp(survival)  # far out a logarithm is large and means nothing
        worst = max(worst, agree(f"churn at batch {size}", stays, expected_stays))
        point_alike(f"churn at batch {size}", said, survival)
        ranks_alike(f"churn at batch {size}, whom it sees leaving first", stays.T, expected_stays.T)
    return worst


def _encoder_parity(model: Recommender, graph: bytes) -> float:
    """User vectors are compared at unit length: their length is the temperature."""
    encoder, worst = session(graph, 1), 0.0
    temperature = float(model.encoder.log_temperature.detach().exp())
    for size in PARITY_BATCHES:
        for length in sorted({*PARITY_LENGTHS, model.config.events_max}):
            inputs = random_inputs(size, length, model.config.dim, size * 100 + length)
            user, weights = encoder.run(["user", "weights"], inputs)
            with torch.no_grad():
                expected = [one.numpy() for one in model.encoder(*(torch.from_numpy(one) for one in inputs.values()))]
            where = f"user_encoder at batch {size}, length {length}"
            empty = ~inputs["mask"].any(1)
            padded, _ = encoder.run(["user", "weights"], {name: _pad(one) for name, one in inputs.items()})
            worst = max(
                worst,
                agree_as_vectors(where, user / temperature, expected[0] / temperature),
                agree(f"{where}, weights", weights, expected[1]),
                agree(f"{where}, rows without events", user[empty], np.zeros_like(user[empty])),
                agree_as_vectors(f"{where}, padded by 5", padded / temperature, user / temperature),
            )
    return worst


def _pad(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.pad(array, [(0, 0), (0, 5)] + [(0, 0)] * (array.ndim - 2))


def open_files(manifest: Manifest, built: dict[str, bytes], threads: int = 2) -> Bundle:
    """A bundle from files that are not published yet."""
    return Bundle(manifest, built, threads)


def golden(bundle: Bundle, features: Float32) -> bytes:
    """Golden inputs and what the bundle says to them; features (V, F) of real visits."""
    manifest = bundle.manifest
    rng = np.random.default_rng(0)
    inputs: dict[str, Any] = dict(random_inputs(GOLDEN_USERS, manifest.events_max, manifest.dim, 0))
    inputs["text"] = rng.normal(size=(GOLDEN_USERS, manifest.text_dim)).astype(np.float32)
    some = features[:GOLDEN_USERS] if len(features) else np.zeros((1, len(CHURN_FEATURES)), dtype=np.float32)
    inputs["features"] = np.ascontiguousarray(some, dtype=np.float32)
    if manifest.uplift:
        inputs["alert_features"] = rng.normal(size=(GOLDEN_USERS, len(ALERT_FEATURES))).astype(np.float32)
    outputs = model_store.golden_outputs(bundle, inputs)
    assert outputs["log_survival"].shape[1] == len(EDGES_DAYS)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **inputs, **outputs)
    return buffer.getvalue()


def draft(
    model: Recommender, text_space: str, parent: str | None, built: dict[str, bytes], span_ms: tuple[int, int]
) -> Manifest:
    """A manifest before evaluation: no metrics, default policies, files not named yet."""
    now = datetime.now(UTC)
    content = hashlib.sha256(b"".join(built[name] for name in sorted(built))).hexdigest()[:8]
    return Manifest(
        format_version=FORMAT_VERSION, model_version=f"{now:%Y%m%dT%H%M%SZ}-{content}", parent=parent, created_at=now,
        feature_version=FEATURE_VERSION, text_space=text_space, text_dim=model.config.text_dim, dim=model.config.dim,
        events_max=model.config.events_max, blend={}, counts={}, churn={},
        data_from=datetime.fromtimestamp(span_ms[0] / 1000, UTC), data_to=datetime.fromtimestamp(span_ms[1] / 1000, UTC),
        metrics={}, files={},
    )  # fmt: skip


def publish(registry: str, manifest: Manifest, built: dict[str, bytes], extra: dict[str, bytes]) -> tuple[Manifest, str]:
    """Write the bundle, then load it again as a worker would. Returns the manifest as written and its sha256.

    `extra` files (the report) stand in the manifest too, and the tokenizer of the registry's text encoder, if it has the
    bundle's. Raises BundleRefused when what was written is not accepted.
    """
    contents = built | extra
    entries = {name: FileEntry(sha256=sha256(data), bytes=len(data)) for name, data in sorted(contents.items())}
    tokenizer = model_store.tokenizer_sha256(registry, manifest.text_space)
    final = msgspec.structs.replace(manifest, files=entries, tokenizer_sha256=tokenizer)
    raw = msgspec.json.format(msgspec.json.encode(final), indent=2)
    uri = model_store.publish(registry, final.model_version, contents | {"manifest.json": raw})
    model_store.admit(registry, uri, raw)
    return final, sha256(raw)
