"""A text encoder in eight bits: weights by channel, activations as they come (onnxruntime's dynamic quantisation).

Seven of the eight bits are used: without VNNI instructions sums of eight would overflow. Whether the vectors still rank as
well is for `evaluate text` to say; cosines do not.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from stream.adapters.models.onnx import TextEncoder
from training.parity import ParityFailed

COSINE_MIN = 0.85  # MiniLM's worst is 0.91: below this the graph is broken, not coarse


def int8(graph: bytes) -> bytes:
    """The graph with its matrix products in eight bits."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder) / "model.onnx", Path(folder) / "int8.onnx"
        whole.write_bytes(graph)
        quantize_dynamic(whole, small, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True,
                         op_types_to_quantize=["MatMul", "Gemm"])
        return small.read_bytes()


def check(exact: TextEncoder, coarse: TextEncoder, texts: list[str]) -> float:
    """The least cosine between the two encoders' vectors. Raises `ParityFailed`."""
    least = float((exact.encode(texts) * coarse.encode(texts)).sum(axis=1).min())
    if not np.isfinite(least) or least < COSINE_MIN:
        raise ParityFailed(f"text encoder in int8: cosine {least:.3f} to the exact one, at least {COSINE_MIN} is expected")
    return least
