"""Whom a message persuades to come back, learned from those it was sent and those the lot kept it from.

For each delivery: the gain of every user by a model of the others (cross-fitted), sorted, against what costs less: those the
most likely to come back when told (a response model), those the most at risk, and a lottery. Released only if the interval
of its Qini lies above 0, the lottery's; else the delivery goes on to everybody. Where a delivery already sends by an earlier
model, chances differ between users, and each counts by the inverse of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.pipeline import Pipeline

from stream.adapters.models.model_store import UPLIFT_FILE
from stream.adapters.models.onnx import session
from stream.core.user.featurize import ALERT_FEATURES, Float32
from training.evaluation.comparison import statistics
from training.evaluation.metrics import FloatArray, Interval, bootstrap
from training.parity import agree
from training.promotions import uplift
from training.promotions.trials import Trials
from training.promotions.uplift import Uplift

PARTS = 5
EACH_MIN = 300  # of the told and of the others: fewer do not tell a hundredth of return rate from chance
OUTCOMES_MIN = 20  # of them came back, and did not
SERVED = "clickwake"
RESPONSE, RISK, LOT = "response", "most at risk", "by lot"
OPSET, IR_VERSION = 18, 10  # what export writes, and what the runtime of the pinned range reads

Say = Callable[[str], None]


class Judged(NamedTuple):
    """One delivery's model on users it had not seen."""

    qini: dict[str, Interval]  # model → Qini, returns a 1,000 users
    ahead: dict[str, Interval]  # model → ours minus its, paired
    over_all: Interval  # returns a 1,000 users: telling those with a gain above 0, minus telling everybody

    @property
    def ships(self) -> bool:
        return self.qini[SERVED].low > 0


class Persuasion(NamedTuple):
    """What goes into the bundle: models by delivery, in the order of the graph; and how every delivery was judged."""

    models: dict[str, Uplift]
    judged: dict[str, Judged]
    seen: dict[str, tuple[int, int]]  # delivery → told, not told

    def files(self) -> dict[str, bytes]:
        """`uplift.onnx`, checked; nothing where no model is released. Raises `ParityFailed`."""
        return {UPLIFT_FILE: checked(self.models)} if self.models else {}

    def figures(self) -> dict[str, dict[str, float]]:
        """Of the manifest's `uplift`: the released ones, in the order of the graph."""
        return {name: self._figures(name) for name in self.models}

    def metrics(self) -> dict[str, float]:
        """Of the manifest's metrics: all that were judged, a loss too."""
        return {f"uplift_{name.replace(' ', '_')}_{measure}": value
                for name in self.judged for measure, value in self._figures(name).items()}  # fmt: skip

    def _figures(self, name: str) -> dict[str, float]:
        one, (told, untold) = self.judged[name], self.seen[name]
        found = {"told": float(told), "not_told": float(untold)}
        for what, value in (("qini", one.qini[SERVED]), ("ahead_of_response", one.ahead[RESPONSE]),
                            ("ahead_of_most_at_risk", one.ahead[RISK]), ("over_telling_all", one.over_all)):  # fmt: skip
            found |= {what: value.value, f"{what}_low": value.low, f"{what}_high": value.high}
        return {measure: round(value, 5) for measure, value in found.items()}


NOTHING = Persuasion({}, {}, {})


def learn(trials: Mapping[str, Trials], seed: int, say: Say) -> Persuasion:
    """Judge every delivery with enough trials, and learn those that are released from all of theirs."""
    models, judged, seen = {}, {}, {}
    for name, some in sorted(trials.items()):
        seen[name] = (int(some.told.sum()), int((~some.told).sum()))
        if why := too_few(some):
            say(f"delivery {name!r}: {why}; it goes on to everybody")
            continue
        found = judged[name] = judge(some, seed)
        text = f"Qini {_text(found.qini[SERVED])} returns a 1,000 users by {seen[name][0]} told and {seen[name][1]} not"
        if found.ships:
            models[name] = _fitted(some, np.ones(len(some.told), dtype=np.bool_))
            say(f"delivery {name!r}: it is known whom it persuades: {text}")
        else:
            say(f"delivery {name!r}: no better than a lottery: {text}; it goes on to everybody")
    return Persuasion(models, judged, seen)


def too_few(trials: Trials) -> str | None:
    """Why nothing can be learned yet; None when it can."""
    for told, what in ((True, "told"), (False, "not told")):
        returned = trials.returned[trials.told == told]
        if len(returned) < EACH_MIN:
            return f"not enough yet to learn whom it persuades: {len(returned)} were {what} so far, of {EACH_MIN}"
        fewest = int(min(returned.sum(), len(returned) - returned.sum()))
        if fewest < OUTCOMES_MIN:
            return (f"not enough yet to learn whom it persuades: of {len(returned)} {what}, {returned.sum():.0f} came back; "
                    f"{OUTCOMES_MIN} who did and {OUTCOMES_MIN} who did not are needed")
    return None


def judge(trials: Trials, seed: int) -> Judged:
    """Each user by a model of the other parts."""
    n = len(trials.told)
    parts = np.random.default_rng(seed).permutation(n) % PARTS
    scores = {SERVED: np.zeros(n), RESPONSE: np.zeros(n), RISK: trials.risk, LOT: np.random.default_rng(seed + 1).random(n)}
    for part in range(PARTS):
        held = parts == part
        model = _fitted(trials, ~held)
        scores[SERVED][held] = model.gain(trials.features[held])
        scores[RESPONSE][held] = model.response(trials.features[held])
    weights = uplift.weigh(trials.told, trials.propensity)
    together = np.stack([trials.told, trials.returned, weights], axis=1)  # (N, 3): what is drawn together

    def qini(some: FloatArray, drawn: FloatArray) -> float:
        return uplift.qini(some, drawn[:, 0], drawn[:, 1], drawn[:, 2])

    models, ahead = statistics(scores, together, {"qini": qini}, SERVED, seed)
    return Judged({name: one["qini"] for name, one in models.items()}, {name: one["qini"] for name, one in ahead.items()},
                  bootstrap(1_000 * over_telling_all(trials, scores[SERVED] > 0), seed))  # fmt: skip


def over_telling_all(trials: Trials, telling: npt.NDArray[np.bool_]) -> FloatArray:
    """(N,): whose mean is what telling only some brings over telling all, in returns a user (inverse propensities: Horvitz
    and Thompson 1952). Who is told either way counts nothing.

    >>> one = Trials(np.zeros((2, 1), np.float32), np.array([True, False]), np.ones(2), np.full(2, 0.5), np.ones(2))
    >>> over_telling_all(one, np.array([False, False])).tolist()
    [-2.0, 2.0]
    """
    told = trials.returned * np.where(trials.told, -1 / trials.propensity, 1 / (1 - trials.propensity))
    return np.asarray(np.where(telling, 0.0, told))


def _fitted(trials: Trials, some: npt.NDArray[np.bool_]) -> Uplift:
    told = trials.told[some]
    return uplift.fit(trials.features[some], told, trials.returned[some], uplift.weigh(told, trials.propensity[some]))


def graph(models: Mapping[str, Uplift]) -> bytes:
    """features (B, F) → chances (B, K, 2): for each of K deliveries P(returned | told), P(returned | not)."""
    lines = [_line(one) for model in models.values() for one in (model.treated, model.control)]
    weights, bias = np.stack([one for one, _ in lines], axis=1), np.array([one for _, one in lines], dtype=np.float32)
    made = helper.make_graph(
        [helper.make_node("Gemm", ["features", "weights", "bias"], ["logits"]),
         helper.make_node("Sigmoid", ["logits"], ["flat"]),
         helper.make_node("Reshape", ["flat", "shape"], ["chances"])],
        "uplift",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", len(weights)])],
        [helper.make_tensor_value_info("chances", TensorProto.FLOAT, ["batch", len(models), 2])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(bias, "bias"),
         numpy_helper.from_array(np.array([-1, len(models), 2], dtype=np.int64), "shape")],
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _line(pipeline: Pipeline) -> tuple[Float32, float]:
    """A scaler and a regression in one: weights (F,) and bias of the raw features."""
    scaler, regression = pipeline[0], pipeline[-1]
    weights = regression.coef_[0] / scaler.scale_
    return weights.astype(np.float32), float(regression.intercept_[0] - weights @ scaler.mean_)


def checked(models: Mapping[str, Uplift]) -> bytes:
    """The graph, once it says what the regressions say. Raises `ParityFailed`."""
    built = graph(models)
    run = session(built, 1)
    for size in (1, 2, 33):
        features = np.random.default_rng(size).normal(size=(size, len(ALERT_FEATURES))).astype(np.float32)
        (found,) = run.run(None, {"features": features})
        for at, (name, model) in enumerate(models.items()):
            expected = np.stack([model.response(features), model.control.predict_proba(features)[:, 1]], axis=1)
            agree(f"uplift of {name!r} at batch {size}", found[:, at], expected)
    return built


def _text(one: Interval) -> str:
    return f"{one.value:.1f} ({one.low:.1f} to {one.high:.1f})"
