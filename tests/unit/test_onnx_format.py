"""ONNX files from strangers: data outside the file and foreign operators are refused by name, damaged files too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from stream.adapters.models import onnx as runtime
from stream.adapters.models.onnx_format import DEPTH_MAX, NotAllowed, check

FLOAT = TensorProto.FLOAT


def external(name: str, location: str) -> TensorProto:
    tensor = TensorProto(name=name, dims=[4], data_type=FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def model(node: onnx.NodeProto | None = None, weights: TensorProto | None = None, domain: str = "") -> onnx.ModelProto:
    weights = weights or numpy_helper.from_array(np.ones(4, dtype=np.float32), "w")
    node = node or helper.make_node("Add", ["x", "w"], ["y"], name="add")
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", FLOAT, [4])],
                              [helper.make_tensor_value_info("y", FLOAT, [4])], [weights])  # fmt: skip
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def nested(levels: int, innermost: onnx.GraphProto) -> onnx.NodeProto:
    graph = innermost
    for _ in range(levels):
        node = helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=innermost)
        graph = helper.make_graph([node], "inner", [], [])
    return helper.make_node("If", ["x"], ["y"], then_branch=graph, else_branch=innermost)


def test_a_whole_model_runs() -> None:
    session = runtime.session(model().SerializeToString(), 1)
    assert session.run(None, {"x": np.ones(4, dtype=np.float32)})[0].tolist() == [2.0] * 4


@pytest.mark.parametrize("location", ["weights.bin", "../../etc/hostname", "/etc/hostname"])
def test_data_outside_the_file_is_refused_before_it_is_read(location: str, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(np.ones(4, dtype=np.float32).tobytes())
    with pytest.raises(NotAllowed, match="tensor 'secret' has its data outside the file"):
        runtime.session(model(weights=external("secret", location)).SerializeToString(), 1)


def test_data_outside_the_file_is_found_wherever_a_tensor_can_be() -> None:
    tensor = external("hidden", "x")
    constant = helper.make_node("Constant", [], ["y"], value=tensor)
    inner = helper.make_graph([constant], "inner", [], [])
    sparse = onnx.SparseTensorProto(values=tensor, dims=[4])
    several = helper.make_node("Custom", [], ["y"])
    several.attribute.add(name="all", type=onnx.AttributeProto.TENSORS).tensors.append(tensor)
    in_sparse = model()
    in_sparse.graph.sparse_initializer.append(sparse)
    in_function = model()
    in_function.functions.append(helper.make_function("", "F", [], ["y"], [constant], [helper.make_opsetid("", 17)]))
    in_training = model()
    in_training.training_info.add().algorithm.CopyFrom(inner)
    merged = model().SerializeToString() + onnx.ModelProto(graph=inner).SerializeToString()  # a field twice is merged
    for one in (model(constant), model(nested(3, inner)), model(several), in_sparse, in_function, in_training):
        with pytest.raises(NotAllowed, match="'hidden'"):
            check(one.SerializeToString())
    with pytest.raises(NotAllowed, match="'hidden'"):
        check(merged)


def test_operators_of_strangers_are_refused_by_their_domain() -> None:
    foreign = helper.make_node("Exfiltrate", ["x", "w"], ["y"], domain="evil.example")
    for one in (model(foreign), model(foreign, domain="evil.example"), model(domain="evil.example")):
        with pytest.raises(NotAllowed, match=r"domain 'evil\.example'"):
            runtime.session(one.SerializeToString(), 1)


def test_nesting_has_an_end() -> None:
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "inner", [], [])
    with pytest.raises(NotAllowed, match="nested deeper"):
        check(model(nested(DEPTH_MAX // 3 + 1, inner)).SerializeToString())


@given(st.binary(max_size=300))
def test_any_bytes_are_checked_or_refused(raw: bytes) -> None:
    try:
        check(raw)
    except NotAllowed as error:
        assert str(error)


@given(st.data())
def test_damaged_models_are_checked_or_refused(data: st.DataObject) -> None:
    raw = bytearray(model().SerializeToString())
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=5)):
        raw[at] = data.draw(st.integers(0, 255))
    cut = bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        check(cut)
    except NotAllowed as error:
        assert str(error)
