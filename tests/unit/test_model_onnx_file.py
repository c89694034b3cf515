"""ONNX files read by hand: what they say, and that no bytes whatever crash the reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from model.errors import RuntimeFault
from model.runtimes.onnx_file import ONNXFile, read_onnx_file
from tests.tiny_models import BRIGHT, DARK
from tests.tiny_onnx import onnx_network

WHOLE = onnx_network((16, 16, 3), (BRIGHT, DARK), output="probability").SerializeToString()


def read(tmp_path: Path, content: bytes) -> ONNXFile:
    path = tmp_path / "weights.onnx"
    path.write_bytes(content)
    return read_onnx_file(path)


def test_facts_are_those_that_the_onnx_library_wrote(tmp_path):
    file = read(tmp_path, WHOLE)

    assert (file.producer, file.opset) == ("tests", 18)
    assert file.parameters == 3 * 2 + 2 + 2  # kernel, bias, axes
    # The cast behind it only passes on what the sigmoid made.
    assert file.last_operations == {"scores": "Sigmoid"}
    assert file.content == WHOLE


def test_tensors_in_nodes_and_in_inner_graphs_are_counted_and_must_be_inside(tmp_path):
    def network(tensor: TensorProto) -> bytes:
        inner = helper.make_graph(
            [helper.make_node("Constant", [], ["c"], value=tensor)], "inner", [],
            [helper.make_tensor_value_info("c", TensorProto.FLOAT, [5])],
        )  # fmt: skip
        branch = helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)
        graph = helper.make_graph(
            [branch], "outer", [helper.make_tensor_value_info("yes", TensorProto.BOOL, [])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5])],
        )  # fmt: skip
        return helper.make_model(graph).SerializeToString()

    tensor = numpy_helper.from_array(np.zeros(5, np.float32))
    assert read(tmp_path, network(tensor)).parameters == 10

    tensor.data_location = TensorProto.EXTERNAL
    with pytest.raises(RuntimeFault, match="keeps weights in other files"):
        read(tmp_path, network(tensor))


IMAGE = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])
SCORES = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])
OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]


def sparse_of(values: TensorProto) -> onnx.SparseTensorProto:
    values.name = "w"
    places = numpy_helper.from_array(np.arange(4, dtype=np.int64), "places")
    return helper.make_sparse_tensor(values, places, [4, 1])


def network_with(where: str, values: TensorProto) -> onnx.ModelProto:
    """Return a network whose only weights lie where few look for them."""
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    if where == "sparse initialiser":
        graph = helper.make_graph([product], "g", [IMAGE], [SCORES])
        graph.sparse_initializer.append(sparse_of(values))
        return helper.make_model(graph, opset_imports=OPSETS)
    if where == "sparse constant":
        constant = helper.make_node("Constant", [], ["w"], sparse_value=sparse_of(values))
        graph = helper.make_graph([constant, product], "g", [IMAGE], [SCORES])
        return helper.make_model(graph, opset_imports=OPSETS)
    constant = helper.make_node("Constant", [], ["w"], value=values)
    function = helper.make_function("own", "F", ["x"], ["y"], [constant, product], OPSETS[:1])
    called = helper.make_node("F", ["x"], ["y"], domain="own")
    graph = helper.make_graph([called], "g", [IMAGE], [SCORES])
    return helper.make_model(graph, opset_imports=OPSETS, functions=[function])


@pytest.mark.parametrize("where", ["sparse initialiser", "sparse constant", "function"])
def test_weights_that_lie_outside_are_found_wherever_they_belong_to(tmp_path, where):
    values = numpy_helper.from_array(np.ones(4, np.float32))
    assert read(tmp_path, network_with(where, values).SerializeToString()).parameters == 4

    values.data_location = TensorProto.EXTERNAL
    with pytest.raises(RuntimeFault, match="keeps weights in other files"):
        read(tmp_path, network_with(where, values).SerializeToString())


def test_place_of_weights_that_is_written_in_more_bits_than_are_read_is_seen(tmp_path):
    # Given a tensor whose field 14 says 1 + 2**32, which protocol buffers read as 1,
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[4]).SerializeToString()
    tensor += b"\x70\x81\x80\x80\x80\x10"
    assert TensorProto.FromString(tensor).data_location == TensorProto.EXTERNAL
    graph = helper.make_graph([], "g", [IMAGE], [SCORES]).SerializeToString()
    graph += b"\x2a" + bytes([len(tensor)]) + tensor

    with pytest.raises(RuntimeFault, match="keeps weights in other files"):
        read(tmp_path, b"\x3a" + bytes([len(graph)]) + graph)


def test_operation_at_the_end_is_found_inside_functions(tmp_path):
    # Given a sigmoid within a function within a function, and another that gives back its input,
    inner = helper.make_function(
        "own", "S", ["a"], ["b"], [helper.make_node("Sigmoid", ["a"], ["b"])], OPSETS[:1]
    )
    outer = helper.make_function(
        "own", "T", ["a"], ["a", "b"], [helper.make_node("S", ["a"], ["b"], domain="own")], OPSETS
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("T", ["r"], ["back", "y"], domain="own"),
    ]
    back = helper.make_tensor_value_info("back", TensorProto.FLOAT, [None, 4])
    graph = helper.make_graph(nodes, "g", [IMAGE], [SCORES, back])
    model = helper.make_model(graph, opset_imports=OPSETS, functions=[inner, outer])

    file = read(tmp_path, model.SerializeToString())

    assert file.last_operations == {"y": "Sigmoid", "back": "Relu"}


def test_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RuntimeFault, match=r"absent.onnx: cannot be read: No such file"):
        read_onnx_file(tmp_path / "absent.onnx")


def test_graphs_nested_without_end_are_refused(tmp_path):
    graph = helper.make_graph([], "g", [], [helper.make_tensor_value_info("y", 1, [1])])
    for _ in range(12):
        graph = helper.make_graph(
            [helper.make_node("Loop", ["a"], ["y"], body=graph)], "g", [],
            [helper.make_tensor_value_info("y", 1, [1])],
        )  # fmt: skip
    with pytest.raises(RuntimeFault, match="nested too deeply"):
        read(tmp_path, helper.make_model(graph).SerializeToString())


def fault_of(tmp_path: Path, content: bytes) -> str:
    try:
        read(tmp_path, content)
    except RuntimeFault as error:
        return str(error)
    return ""


def test_file_cut_anywhere_before_its_end_is_refused(tmp_path):
    # The graph is all but the last bytes; behind it stands the operator set.
    for end in range(0, len(WHOLE) - 40, 5):
        assert "is no complete ONNX model" in fault_of(tmp_path, WHOLE[:end]), end


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300), st.integers(0, len(WHOLE) - 1))
def test_no_bytes_crash_the_reader(tmp_path_factory, noise, place):
    folder = tmp_path_factory.mktemp("noise")
    for content in (noise, WHOLE[:place] + noise + WHOLE[place + len(noise) :]):
        fault = fault_of(folder, content)
        assert not fault or fault.startswith("weights.onnx: ")


def test_onnx_library_agrees_with_what_the_tests_wrote():
    model = onnx.load_model_from_string(WHOLE)

    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == [
        "Cast", "ReduceMean", "MatMul", "Add", "Sigmoid", "Cast",
    ]  # fmt: skip
