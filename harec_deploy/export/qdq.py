"""What TensorRT's ONNX parser and builder ask of a QDQ model, checked on the file; nothing here runs TensorRT.

The rules are those of onnx-tensorrt's docs/operators.md and of NVIDIA's guide to explicit quantization
(https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html).
"""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

OPSETS = range(13, 25)  # scales per channel came with 13; 24 is the parser's last
_CONVOLUTION, _QUANTISE, _DEQUANTISE = "Conv", "QuantizeLinear", "DequantizeLinear"


def faults(model: onnx.ModelProto) -> Iterator[str]:
    """Yield what TensorRT would refuse in a QDQ model, or would not run in int8."""
    for opset in model.opset_import:
        if opset.domain or opset.version not in OPSETS:
            yield f"opset {opset.domain}{opset.version}"
    graph = _Graph(model.graph)
    for node in model.graph.node:
        if node.op_type in (_QUANTISE, _DEQUANTISE):
            yield from _grid_faults(graph, node)
        if node.op_type == _QUANTISE:
            yield from _pair_faults(graph, node)
        if node.op_type == _CONVOLUTION:
            yield from _convolution_faults(graph, node)


class _Graph:
    """A graph's nodes by what they make and take, and its constants."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self.makers: dict[str, NodeProto] = {output: node for node in graph.node for output in node.output}
        self.takers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.takers[name].append(node)

    def is_dequantised(self, name: str) -> bool:
        return name in self.makers and self.makers[name].op_type == _DEQUANTISE


def _grid_faults(graph: _Graph, node: NodeProto) -> Iterator[str]:
    """Check scale and zero point: constant, int8, symmetric; one scale, or one for each output channel of weights."""
    if len(node.input) != 3 or not graph.constants.keys() >= set(node.input[1:]):
        yield f"{node.name}: scale and zero point are no constants"
        return
    scale, zero_point = (graph.constants[name] for name in node.input[1:])
    if zero_point.data_type != TensorProto.INT8:
        yield f"{node.name}: type {TensorProto.DataType.Name(zero_point.data_type)}"
    if numpy_helper.to_array(zero_point).any():
        yield f"{node.name}: a zero point that is not 0"
    values = numpy_helper.to_array(scale)
    if values.dtype != np.float32 or not (np.isfinite(values) & (values > 0)).all():
        yield f"{node.name}: a scale that is no positive float32"
    weights = graph.constants.get(node.input[0])
    if weights is None and values.size != 1:
        yield f"{node.name}: {values.size} scales for an activation"
    if weights is not None and values.size not in (1, weights.dims[0]):
        yield f"{node.name}: {values.size} scales for weights of {weights.dims[0]} channels"


def _pair_faults(graph: _Graph, node: NodeProto) -> Iterator[str]:
    """Check that what is quantised is dequantised at once, on the same grid."""
    takers = graph.takers[node.output[0]]
    if not takers or any(taker.op_type != _DEQUANTISE for taker in takers):
        yield f"{node.name}: its output is not dequantised"
    if any(list(taker.input[1:]) != list(node.input[1:]) for taker in takers):
        yield f"{node.name}: dequantised on another grid"


def _convolution_faults(graph: _Graph, node: NodeProto) -> Iterator[str]:
    """Check that weights are quantised with the input only, and the bias never.

    A convolution in float may take an input that is quantised for another taker.
    """
    values, weights, *bias = (graph.is_dequantised(name) for name in node.input)
    if weights and not values:
        yield f"{node.name}: weights quantised alone"
    if any(bias):
        yield f"{node.name}: a quantised bias"
