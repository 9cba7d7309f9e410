"""A linear model on hashed character n-grams, and its ONNX graph over what `stream.core.opinions.ngrams.batch` gives.

TF-IDF with sublinear counts, unit length, logistic regression; what is hashed instead of looked up needs no vocabulary.
Weights of term and document frequency: Salton and Buckley, "Term-weighting Approaches in Automatic Text Retrieval" (1988).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from scipy import sparse

from stream.adapters.models.onnx import session
from stream.core.opinions.ngrams import NgramPolicy, batch, counted
from training.evaluation.metrics import FloatArray
from training.opinions.reviews import Reviews
from training.parity import agree

UNSPACED = ("zh", "ja", "th", "km", "lo", "my")  # written without spaces: a word has one or two characters
BUCKETS = 1 << 22  # 50,000 Chinese reviews have 720,000 n-grams; with 1 << 20 buckets a left-out category loses .01 of AUC
SHORT, LONG = NgramPolicy(low=1, high=3, buckets=BUCKETS), NgramPolicy(low=2, high=5, buckets=BUCKETS)
STRENGTHS = (3.0, 10.0)  # inverse ridge penalties to choose from
DOCUMENTS_MIN = 2  # an n-gram of a single review says nothing of others
PARITY_TEXTS = 64
OPSET, IR_VERSION = 18, 10
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Linear:
    """idf (buckets,), 0 where too few reviews had any n-gram of a bucket; weights (buckets,); the constant. Both tables hold
    what float16 holds."""

    policy: NgramPolicy
    idf: Doubles
    weights: Doubles
    constant: float


def counts_of(texts: list[str], policy: NgramPolicy) -> sparse.csr_matrix:
    """(U, buckets): how often each text has n-grams of each bucket."""
    rows = [counted(text, policy) for text in texts]
    ends = np.cumsum([0, *(len(ids) for ids, _ in rows)])
    ids = np.concatenate([np.zeros(0, np.int64), *(ids for ids, _ in rows)])
    often = np.concatenate([np.zeros(0, np.int64), *(often for _, often in rows)]).astype(np.float64)
    return sparse.csr_matrix((often, ids, ends), shape=(len(texts), policy.buckets))


def inverse_frequency(counts: sparse.csr_matrix) -> Doubles:
    """(buckets,): log of the inverse share of reviews; 0 below DOCUMENTS_MIN reviews."""
    documents = np.bincount(counts.indices, minlength=counts.shape[1])
    idf = np.log((1 + counts.shape[0]) / (1 + documents)) + 1
    return np.asarray(np.where(documents >= DOCUMENTS_MIN, idf, 0.0))


def weighed(counts: sparse.csr_matrix, idf: Doubles) -> sparse.csr_matrix:
    """(U, buckets) of unit length: (1 + log count) · idf."""
    values = counts.copy()
    values.data = (1 + np.log(values.data)) * idf[values.indices]
    length = np.sqrt(np.asarray(values.multiply(values).sum(axis=1)).ravel())
    values.data /= np.repeat(np.maximum(length, 1e-9), np.diff(values.indptr))
    return values


def fit(train: Reviews, validation: Reviews) -> Linear:
    """Learned on `train`. Of a regression on the features as they are, one on features scaled by how one-sided each n-gram
    is (`log_ratio`), and the mean of both, the one that gives `validation` the best likelihood. Deterministic."""
    policy = SHORT if train.language in UNSPACED else LONG
    counts = counts_of(train.texts, policy)
    idf = inverse_frequency(counts)
    features, held_out = weighed(counts, idf), weighed(counts_of(validation.texts, policy), idf)

    def loss(model: Linear) -> float:
        signed = np.where(validation.recommended > 0, 1.0, -1.0) * (held_out @ model.weights + model.constant)
        return float(np.logaddexp(0.0, -signed).mean())

    def regression(scale: Doubles) -> Linear:
        from sklearn.linear_model import LogisticRegression

        scaled, found = features.copy(), []
        scaled.data = scaled.data * scale[scaled.indices]
        for strength in STRENGTHS:
            model = LogisticRegression(C=strength, solver="liblinear", dual=True, max_iter=1_000, random_state=0)
            model.fit(scaled, train.recommended)
            found.append(Linear(policy, idf, model.coef_[0] * scale, float(model.intercept_[0])))
        return min(found, key=loss)

    plain, telling = regression(np.ones(policy.buckets)), regression(log_ratio(counts, train.recommended))
    mean = Linear(policy, idf, (plain.weights + telling.weights) / 2, (plain.constant + telling.constant) / 2)
    best = min((plain, telling, mean), key=loss)
    return Linear(policy, _halved(idf), _halved(best.weights), best.constant)


def log_ratio(counts: sparse.csr_matrix, y: FloatArray) -> Doubles:
    """(buckets,): |log of an n-gram's share among recommending reviews over its share among the others|, smoothed by one.

    Wang and Manning, "Baselines and Bigrams" (2012), section 2.1.
    """
    sides = [np.bincount(counts[np.flatnonzero(side)].indices, minlength=counts.shape[1]) + 1.0 for side in (y > 0, y <= 0)]
    return np.asarray(np.abs(np.log(sides[0] / sides[0].sum()) - np.log(sides[1] / sides[1].sum())))


def _halved(values: Doubles) -> Doubles:
    """As float16 holds them: that is how they travel."""
    return values.astype(np.float16).astype(np.float64)


def logits(model: Linear, texts: list[str]) -> FloatArray:
    """(U,) as sklearn says them: what the graph is held against."""
    return np.asarray(weighed(counts_of(texts, model.policy), model.idf) @ model.weights + model.constant)


def to_onnx(model: Linear) -> bytes:
    """ids (B, K), counts (B, K) → recommended (B,). A count of 0 is padding: it weighs nothing."""

    def constant(name: str, value: npt.NDArray[Any]) -> Any:
        return numpy_helper.from_array(value, name)

    nodes = [
        ("Gather", ["idf", "ids"], "half_idf"),  # (B, K)
        ("Cast", ["half_idf"], "idf_of"),
        ("Max", ["counts", "one"], "at_least_one"),
        ("Log", ["at_least_one"], "logged"),
        ("Min", ["counts", "one"], "there"),
        ("Add", ["logged", "there"], "term"),  # 1 + log count, or 0
        ("Mul", ["term", "idf_of"], "value"),
        ("Mul", ["value", "value"], "squared"),
        ("ReduceSum", ["squared", "axis"], "summed"),  # (B,)
        ("Sqrt", ["summed"], "length"),
        ("Max", ["length", "least"], "length_at_least"),
        ("Gather", ["weights", "ids"], "half_weight"),  # (B, K)
        ("Cast", ["half_weight"], "weight_of"),
        ("Mul", ["value", "weight_of"], "product"),
        ("ReduceSum", ["product", "axis"], "total"),  # (B,)
        ("Div", ["total", "length_at_least"], "scaled"),
        ("Add", ["scaled", "constant"], "recommended"),
    ]
    attributes = {"ReduceSum": ("keepdims", 0), "Cast": ("to", TensorProto.FLOAT)}
    made = [helper.make_node(kind, inputs, [output]) for kind, inputs, output in nodes]
    for node in made:
        if node.op_type in attributes:
            node.attribute.append(helper.make_attribute(*attributes[node.op_type]))
    graph = helper.make_graph(
        made,
        "ngrams",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "width"]),
         helper.make_tensor_value_info("counts", TensorProto.FLOAT, ["batch", "width"])],
        [helper.make_tensor_value_info("recommended", TensorProto.FLOAT, ["batch"])],
        [constant("idf", model.idf.astype(np.float16)), constant("weights", model.weights.astype(np.float16)),
         constant("constant", np.array(model.constant, np.float32)), constant("one", np.array(1, np.float32)),
         constant("least", np.array(1e-9, np.float32)), constant("axis", np.array([1], np.int64))],
    )  # fmt: skip
    opset = helper.make_opsetid("", OPSET)
    built = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="clickwake")
    onnx.checker.check_model(built)
    return bytes(built.SerializeToString())


def check_parity(model: Linear, graph: bytes, texts: list[str]) -> float:
    """The largest difference of a logit between the graph and sklearn's arithmetic. Raises `ParityFailed`."""
    some = ["", "x", *texts[:PARITY_TEXTS]]
    opened, expected = session(graph, 1), logits(model, some)
    (together,) = opened.run(["recommended"], batch(some, model.policy))
    alone = np.concatenate([opened.run(["recommended"], batch([text], model.policy))[0] for text in some])
    return max(agree("n-grams in a batch", together, expected), agree("n-grams one by one", alone, expected))
