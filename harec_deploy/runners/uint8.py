"""The activations of an int8 graph as uint8, in memory: x86 multiplies uint8 by int8, and int8 by int8 only slowly.

A bundle's int8 file is what TensorRT takes: every activation is int8 with zero point 0. Behind a ReLU half of those 256
steps stand for values that never come, so zero point 0 of uint8 spreads all 256 over the same range; elsewhere zero
point 128 gives the same steps. Weights stay int8. Only bytes of scales and zero points change, so no package for ONNX
is needed; the fields are those of onnx.proto3, and the layout is what export/quantise.py writes.

On a CPU with neither AVX-512 VNNI nor AVX-VNNI such products may overflow 16 bits; the check clips tell at load.
"""

import struct
from pathlib import Path
from typing import NamedTuple

from harec_deploy.errors import BundleError
from harec_deploy.onnxfile import fields

_GRAPH, _NODE, _TENSOR = 7, 1, 5  # ModelProto.graph, GraphProto.node, GraphProto.initializer
_INPUT, _OUTPUT, _OPERATOR = 1, 2, 4  # of NodeProto
_NAME, _RAW = 8, 9  # of TensorProto
_INT8_SCALAR = b"\x10\x03"  # how a TensorProto of no dimensions begins: data_type = INT8
_UINT8, _MIDDLE = 2, 128


class _Node(NamedTuple):
    operator: str
    inputs: list[str]
    outputs: list[str]


def read_for_cpu(path: Path, precision: str) -> bytes:
    """Return the bytes of an ONNX file in the form that a CPU runs best. Raises BundleError for a damaged int8 file."""
    model = path.read_bytes()
    if precision != "int8":
        return model
    try:
        return with_uint8_activations(model)
    except ValueError as error:
        raise BundleError(f"{path} is no int8 graph of harec-deploy: {error}; export the bundle again") from None


def with_uint8_activations(model: bytes) -> bytes:
    """Return a serialised QDQ model with its activations rewritten; nothing else differs.

    Raises:
        ValueError: the bytes are no ONNX model, or its scales and zero points are not stored as scalars of raw bytes.
    """
    data = bytearray(model)
    graph = next((value for number, value in fields(memoryview(data)) if number == _GRAPH), None)
    if not isinstance(graph, memoryview):
        raise ValueError("it holds no graph")
    parts = [(number, value) for number, value in fields(graph) if isinstance(value, memoryview)]
    tensors = {_text(value, _NAME): value for number, value in parts if number == _TENSOR}
    nodes = [_node(value) for number, value in parts if number == _NODE]
    makers = {output: node for node in nodes for output in node.outputs}
    done: set[str] = set()  # tensors on both sides of a pooling share scale and zero point
    for node in nodes:
        if node.operator != "QuantizeLinear":
            continue
        values, scale, zero_point = _inputs(node, tensors)
        if zero_point in done:
            continue
        done.add(zero_point)
        positive = _never_negative(values, makers, tensors)
        _set_zero_point(tensors[zero_point], 0 if positive else _MIDDLE)
        if positive:
            raw = _raw(tensors[scale], 4)
            raw[:] = struct.pack("<f", struct.unpack("<f", raw)[0] * 127 / 255)
    return bytes(data)


def _inputs(node: _Node, tensors: dict[str, memoryview]) -> list[str]:
    if len(node.inputs) != 3 or not tensors.keys() >= set(node.inputs[1:]):
        raise ValueError("a QuantizeLinear has no constant scale and zero point")
    return node.inputs


def _never_negative(values: str, makers: dict[str, _Node], tensors: dict[str, memoryview]) -> bool:
    maker = makers.get(values)
    if maker is None:
        return False
    if maker.operator == "Clip" and len(maker.inputs) > 1 and maker.inputs[1] in tensors:
        return bool(struct.unpack("<f", _raw(tensors[maker.inputs[1]], 4))[0] >= 0)
    return maker.operator == "Relu"


def _set_zero_point(tensor: memoryview, value: int) -> None:
    raw = _raw(tensor, 1)
    if tensor[:2] != _INT8_SCALAR:
        raise ValueError("a zero point of activations is no int8 scalar")
    tensor[1], raw[0] = _UINT8, value


def _raw(tensor: memoryview, size: int) -> memoryview:
    """Return the bytes of a tensor's values, in place."""
    raw = next((value for number, value in fields(tensor) if number == _RAW), None)
    if not isinstance(raw, memoryview) or len(raw) != size:
        raise ValueError("a scale or zero point of activations is not stored as the raw bytes of one value")
    return raw


def _node(message: memoryview) -> _Node:
    found: dict[int, list[str]] = {_INPUT: [], _OUTPUT: [], _OPERATOR: []}
    for number, value in fields(message):
        if number in found and isinstance(value, memoryview):
            found[number].append(bytes(value).decode())
    return _Node("".join(found[_OPERATOR]), found[_INPUT], found[_OUTPUT])


def _text(message: memoryview, wanted: int) -> str:
    return next((bytes(v).decode() for n, v in fields(message) if n == wanted and isinstance(v, memoryview)), "")
