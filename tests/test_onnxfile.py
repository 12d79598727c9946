"""The walk through an ONNX file finds a tensor that lies outside, wherever it hides."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from harec_deploy.onnxfile import has_external_data


def outside() -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return tensor


def inside() -> TensorProto:
    return numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")


def model(tensor: TensorProto, place: str) -> onnx.ModelProto:
    """Return a model that has ``tensor`` at one of the places where ONNX allows one."""
    empty = helper.make_graph([], "g", [], [])
    if place == "initializer":
        return helper.make_model(helper.make_graph([], "g", [], [], [tensor]))
    if place == "sparse":
        sparse = onnx.SparseTensorProto(values=tensor, dims=[4])
        return helper.make_model(helper.make_graph([], "g", [], [], sparse_initializer=[sparse]))
    if place == "constant":
        return helper.make_model(
            helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "g", [], [])
        )
    if place == "branch":
        branch = helper.make_graph([], "b", [], [], [tensor])
        node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
        return helper.make_model(helper.make_graph([node], "g", [], []))
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    function = helper.make_function("d", "f", [], ["c"], [node], [helper.make_opsetid("", 20)])
    return helper.make_model(empty, functions=[function])


@pytest.mark.parametrize("place", ["initializer", "sparse", "constant", "branch", "function"])
def test_external_data_is_found(place: str) -> None:
    assert has_external_data(model(outside(), place).SerializeToString())
    assert not has_external_data(model(inside(), place).SerializeToString())


def test_an_empty_location_counts_as_outside() -> None:
    tensor = inside()
    tensor.data_location = TensorProto.EXTERNAL
    assert has_external_data(model(tensor, "initializer").SerializeToString())


@pytest.mark.parametrize("field", [13, 14])
def test_a_field_number_that_is_cut_off_elsewhere_is_refused(field: int) -> None:
    """A reader that keeps 32 bits of a tag, as OpenVINO's does, sees another field than one that keeps them all."""
    tag = field << 3 | (2 if field == 13 else 0)
    plain = outside()
    if field == 14:
        plain.ClearField("external_data")
    before, _, behind = plain.SerializeToString().rpartition(bytes([tag]))
    tensor = before + bytes([tag | 0x80, 0x80, 0x80, 0x80, 0x70]) + behind
    graph = bytes([5 << 3 | 2, len(tensor)]) + tensor
    with pytest.raises(ValueError, match=f"field number {7 << 29 | field}"):
        has_external_data(bytes([7 << 3 | 2, len(graph)]) + graph)


def test_a_file_cut_anywhere_is_refused_or_read_to_the_end_of_a_field() -> None:
    data = model(inside(), "initializer").SerializeToString()
    refused = 0
    for length in range(1, len(data)):
        try:
            assert not has_external_data(data[:length])
        except ValueError as error:
            assert "byte" in str(error)  # noqa: PT017 - most cuts raise, those between two fields cannot
            refused += 1
    assert refused > 0.8 * len(data)


@pytest.mark.parametrize("data", [b"\xff" * 40, b"<html>not found</html>", b"\x0f"])
def test_other_bytes_are_no_message(data: bytes) -> None:
    with pytest.raises(ValueError, match="byte"):
        has_external_data(data)
