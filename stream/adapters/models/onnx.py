"""ONNX sessions: hashed bytes in, arrays out, no surprises with threads.

Calls block; the caller runs them on a thread of their own, because inline they stall the event loop for 400 ms.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer

from schemas.release import Manifest
from stream.adapters.models import onnx_format
from stream.core.ranking import links
from stream.core.segments import audience
from stream.core.user.featurize import Float32

TEXT_BATCH_MAX = 32
TOKENS_MAX = 256
LENGTHS = (8, 16, 32)  # users are encoded with others of like length: most are short, and padding costs as much as events
# … and not more touches in one call, padding included: what is worked out in between stays in the core's own cache then. At
# lengths of 50, 5 users at once take 0.46 ms each, 32 take 1.1 and 128 take 1.3 (one thread, 2 MB of L2); at 20, 12 take
# 0.17 and 64 take 0.35. And the runtime keeps what its largest calls needed: 217 MB once there were 256 users, now 7.
TOUCHES_MAX = 256


def session(model: bytes, threads: int) -> onnxruntime.InferenceSession:
    """A CPU session over these very bytes, which the caller has hashed. Spinning is off: the cores are shared. Raises
    `onnx_format.NotAllowed` for a file that reaches outside itself, and onnxruntime's own errors."""
    onnx_format.check(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # it keeps a plan of every shape it has ever seen, and is no faster
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class TokenModel:
    """A graph over a text's tokens: texts in, its outputs out, a row a text. Texts are sorted by length, so a batch pads
    little; the order of the result is the input's."""

    def __init__(self, model: bytes, tokenizer_json: bytes, threads: int, tokens_max: int = TOKENS_MAX) -> None:
        self._session = session(model, threads)
        self._tokenizer = Tokenizer.from_str(tokenizer_json.decode())
        self._tokenizer.enable_truncation(tokens_max)
        self._tokenizer.enable_padding()
        self._inputs = {one.name for one in self._session.get_inputs()}
        self._outputs = [(one.name, tuple(one.shape[1:])) for one in self._session.get_outputs()]

    def run(self, texts: list[str]) -> dict[str, Float32]:
        """Each output of the graph by its name, (N, …) float32."""
        found = {name: np.zeros((len(texts), *shape), dtype=np.float32) for name, shape in self._outputs}
        order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
        for start in range(0, len(order), TEXT_BATCH_MAX):
            some = order[start : start + TEXT_BATCH_MAX]
            for name, values in zip(found, self._run_batch([texts[at] for at in some]), strict=True):
                found[name][some] = values
        return found

    def _run_batch(self, texts: list[str]) -> list[Float32]:
        encoded = self._tokenizer.encode_batch(texts)
        arrays = {
            "input_ids": np.array([one.ids for one in encoded], dtype=np.int64),  # (B, L)
            "attention_mask": np.array([one.attention_mask for one in encoded], dtype=np.int64),
            "token_type_ids": np.array([one.type_ids for one in encoded], dtype=np.int64),
        }
        inputs = {name: value for name, value in arrays.items() if name in self._inputs}
        return [np.asarray(one, dtype=np.float32) for one in self._session.run(None, inputs)]


class TextEncoder(TokenModel):
    """Texts to unit vectors."""

    @property
    def dim(self) -> int:
        """T, the length of a vector."""
        return int(self._outputs[0][1][0])

    def encode(self, texts: list[str]) -> Float32:
        """(N, T) float32, L2-normalised."""
        return self.run(texts)[self._outputs[0][0]]


def _unit(vectors: Float32) -> Float32:
    """(N, D) at length 1; what has none stays zeros."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Float32 = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 1e-9)
    return unit


class Bundle:
    """The models of a release over one manifest; implements `stream.ports.Models`.

    Raises ValueError, or what numpy and onnxruntime raise, for files that are not what they should be.
    """

    def __init__(self, manifest: Manifest, files: Mapping[str, bytes], threads: int) -> None:
        self.manifest = manifest
        self._user = session(files["user_encoder.onnx"], threads)
        self._adapter = session(files["item_adapter.onnx"], threads)
        self._churn = session(files["churn.onnx"], threads)
        self._uplift = session(files["uplift.onnx"], threads) if manifest.uplift else None
        table = np.load(io.BytesIO(files["item_residuals.npz"]), allow_pickle=False)
        ids, vectors = [str(one) for one in table["ids"]], table["vectors"].astype(np.float32)
        if vectors.shape != (len(ids), manifest.dim):  # golden items have no residual, so they would not show it
            raise ValueError(f"item_residuals.npz has {vectors.shape} for {len(ids)} items of {manifest.dim} dimensions")
        self._residuals = dict(zip(ids, vectors, strict=True))
        self.learned = dict(zip(ids, _unit(vectors), strict=True))  # what `adapt` says of an item without text
        self.links = links.from_bytes(files["item_links.npz"])
        told = files.get("audience.json")  # bundles before 0.4.0 have none
        self.audience = audience.NO_AUDIENCE if told is None else audience.from_bytes(told, manifest.dim)

    def adapt(self, text_vectors: Float32, item_ids: list[str]) -> Float32:
        """(N, T) → (N, D): normalise(adapter(text) + residual of the item, if it has one)."""
        (vectors,) = self._adapter.run(None, {"text": np.ascontiguousarray(text_vectors, dtype=np.float32)})
        vectors = np.array(vectors, dtype=np.float32)
        for at, item_id in enumerate(item_ids):
            residual = self._residuals.get(item_id)
            if residual is not None:
                vectors[at] += residual
        return _unit(vectors)

    def encode(self, arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[Float32, Float32]:
        """`featurize.batch` → user vectors (B, D), event weights (B, L); what a user gets does not depend on the others."""
        mask = arrays["mask"]  # (B, L)
        size, length = mask.shape
        if size * length <= TOUCHES_MAX:
            return self._encode(arrays)
        users, weights = np.zeros((size, self.manifest.dim), np.float32), np.zeros((size, length), np.float32)
        used = np.where(mask.any(axis=1), length - mask[:, ::-1].argmax(axis=1), 1)  # (B,): up to the last known item
        ends = [*(one for one in LENGTHS if one < length), length]
        for above, end in zip([0, *ends], ends, strict=False):
            alike = np.flatnonzero((used > above) & (used <= end))
            step = max(1, TOUCHES_MAX // end)
            for start in range(0, len(alike), step):
                some = alike[start : start + step]
                users[some], weights[some, :end] = self._encode({name: one[some, :end] for name, one in arrays.items()})
        return users, weights

    def _encode(self, arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[Float32, Float32]:
        user, weights = self._user.run(["user", "weights"], dict(arrays))
        return np.asarray(user, dtype=np.float32), np.asarray(weights, dtype=np.float32)

    def survival(self, features: Float32) -> Float32:
        """(B, F) → (B, E) log survival."""
        (log_survival,) = self._churn.run(None, {"features": features})
        return np.asarray(log_survival, dtype=np.float32)

    def effects(self, features: Float32) -> dict[str, Float32]:
        """(B, F) alert features → delivery → (B, 2): P(back within 7 days) if it is sent, and if not."""
        if self._uplift is None:
            return {}
        (chances,) = self._uplift.run(None, {"features": features})  # (B, K, 2)
        return dict(zip(self.manifest.uplift, np.asarray(chances, dtype=np.float32).transpose(1, 0, 2), strict=True))
