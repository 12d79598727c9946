"""Graphs with types in half precision and LSTMs written out: the same function, as TensorRT's parser takes it."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from harec_deploy.decode import Size
from harec_deploy.errors import BundleError, UsageError
from harec_deploy.export.onnx import write_graphs
from harec_deploy.models import FramewiseModel, build
from harec_deploy.models.typed import typed_encoder, typed_head
from harec_deploy.models.unrolled import UnrolledLSTM
from harec_deploy.runners.onnx import OnnxRunner
from harec_deploy.runners.openvino import OpenVINORunner
from harec_deploy.sampling import ClipSampling
from harec_deploy.spec import BundleSpec, FileRef, HeadSpec, Variant

FRAMES, SIDE, CLASSES = 4, 64, 5
# How far outputs may be from float32's, as a share of the largest: some rounding errors of 2^-11 and 2^-8 add up.
TOLERANCES = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-2}
TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
HEADS = {
    "one layer, max": HeadSpec(hidden=12),
    "two layers, mean": HeadSpec(hidden=12, layers=2, pool="mean", layer_norm=False),
    "both directions, last": HeadSpec(hidden=12, bidirectional=True, pool="last"),
}
# Of each head some of its forms: an export takes seconds. All of them are compared in PyTorch.
WRITTEN = [
    *[("one layer, max", precision, "unroll") for precision in TYPES],
    ("one layer, max", "fp16", "op"),
    ("two layers, mean", "fp32", "unroll"),
    ("two layers, mean", "bf16", "op"),
    ("both directions, last", "fp16", "unroll"),
    ("both directions, last", "bf16", "op"),
]
ENCODERS = [
    *[("lrcn", precision) for precision in TYPES],
    ("mobilenet_v2_lstm", "fp16"),
    ("mobilenet_v2_lstm", "bf16"),
    ("mobilenet_v3_large_lstm", "fp16"),
]
# onnx-tensorrt, docs/operators.md for TensorRT 10.15: the operators with a Y among those that are written here.
KNOWN = set(
    "Add Cast Clip Concat Conv Expand Gather Gemm HardSigmoid HardSwish LSTM LayerNormalization MatMul MaxPool Mul "
    "ReduceMax ReduceMean Relu Reshape Shape Sigmoid Slice Split Squeeze Tanh Transpose Unsqueeze".split()
)

Graphs = Callable[..., dict[str, Path]]


@cache
def model(architecture: str, head: HeadSpec) -> FramewiseModel:
    """Return a recogniser with random weights, and with statistics and outputs as large as after training."""
    torch.manual_seed(5)
    made = build(architecture, head, CLASSES, size=Size(width=SIDE, height=SIDE)).eval()
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.1)
    made.head.classifier.weight.data.mul_(10)
    return made


def spec_of(architecture: str, made: FramewiseModel, head: HeadSpec) -> BundleSpec:
    return BundleSpec(
        architecture=architecture,
        head=head,
        feature_dim=made.encoder.feature_dim,
        classes=[f"class {i}" for i in range(CLASSES)],
        sampling=ClipSampling(frames=FRAMES),
        size=Size(width=SIDE, height=SIDE),
        weights=FileRef(path="weights.safetensors", size=0, sha256=""),
    )


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """Write the graphs of a model, once for all tests: graphs(precision, lstm, architecture, a name of HEADS)."""

    @cache
    def write(precision: str, lstm: str, architecture: str, head: str) -> dict[str, Path]:
        made = model(architecture, HEADS[head])
        folder = tmp_path_factory.mktemp(f"{architecture}-{precision}-{lstm}")
        return write_graphs(made, spec_of(architecture, made, HEADS[head]), folder, precision=precision, lstm=lstm)

    def written(
        precision: str, lstm: str = "unroll", architecture: str = "lrcn", head: str = "one layer, max"
    ) -> dict[str, Path]:
        return write(precision, lstm, architecture, head)  # the cache tells names and defaults apart

    return written


def frames(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def features(made: FramewiseModel, clips: int) -> np.ndarray:
    shape = (clips, FRAMES, made.encoder.feature_dim)
    return np.random.default_rng(clips).standard_normal(shape, dtype=np.float32)


def torch_of(module: nn.Module, batch: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return module(torch.from_numpy(batch)).numpy()


def runners(precision: str) -> list[OnnxRunner | OpenVINORunner]:
    variant = Variant(
        precision=precision, graphs={"model": FileRef(path="model.onnx", size=0, sha256="")}, made_with={}, proofs=[]
    )
    return [runner for runner in (OnnxRunner(), OpenVINORunner()) if precision in runner.precisions(variant)]


def assert_near(got: np.ndarray, wanted: np.ndarray, precision: str) -> None:
    assert got.dtype == np.float32
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= TOLERANCES[precision] * np.abs(wanted).max()


class TestUnrolled:
    @pytest.mark.parametrize("layers", [1, 2, 3])
    @pytest.mark.parametrize("bidirectional", [False, True])
    @pytest.mark.parametrize(("clips", "steps"), [(1, 1), (4, 9)])
    def test_is_the_lstm(self, layers: int, bidirectional: bool, clips: int, steps: int) -> None:
        torch.manual_seed(layers)
        lstm = nn.LSTM(7, 5, layers, batch_first=True, bidirectional=bidirectional).eval()
        values = torch.randn(clips, steps, 7)
        with torch.inference_mode():
            torch.testing.assert_close(UnrolledLSTM(lstm)(values)[0], lstm(values)[0], atol=1e-5, rtol=0)

    @pytest.mark.parametrize("options", [{"batch_first": False}, {"proj_size": 2}, {"bias": False}])
    def test_other_lstms_are_refused(self, options: dict[str, int | bool]) -> None:
        with pytest.raises(ValueError, match="only an LSTM with batch_first, biases and no projections"):
            UnrolledLSTM(nn.LSTM(7, 5, **({"batch_first": True} | options)))  # type: ignore[arg-type]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("lstm", ["op", "unroll"])
@pytest.mark.parametrize("precision", TYPES)
def test_typed_heads_are_the_head(head: str, lstm: str, precision: str) -> None:
    made = model("lrcn", HEADS[head])
    batch = features(made, 3)
    assert_near(torch_of(typed_head(made.head, precision, lstm), batch), torch_of(made.head, batch), precision)


@pytest.mark.parametrize(("head", "precision", "lstm"), WRITTEN)
def test_heads_run_in_every_runner_for_any_batch(graphs: Graphs, head: str, lstm: str, precision: str) -> None:
    made = model("lrcn", HEADS[head])
    path = graphs(precision, lstm, head=head)["head"]
    assert runners(precision)
    for runner in runners(precision):
        graph = runner.load_file(path, precision)
        for clips in (1, 3):
            batch = features(made, clips)
            assert_near(graph(batch), torch_of(made.head, batch), precision)


@pytest.mark.parametrize(("architecture", "precision"), ENCODERS)
def test_encoders_run_in_every_runner_for_any_batch(graphs: Graphs, architecture: str, precision: str) -> None:
    made = model(architecture, HEADS["one layer, max"])
    path = graphs(precision, architecture=architecture)["encoder"]
    for runner in runners(precision):
        graph = runner.load_file(path, precision)
        for count in (1, 3):
            assert_near(graph(frames(count)), torch_of(made.encoder, frames(count)), precision)


def test_onnx_runtime_has_no_bfloat16_on_the_cpu(graphs: Graphs) -> None:
    """What OnnxRunner.precisions says. When this fails, ONNX Runtime has learnt it, and precisions should too."""
    for path in graphs("bf16").values():
        with pytest.raises(BundleError, match="NOT_IMPLEMENTED"):
            OnnxRunner().load_file(path, "bf16")
    assert [runner.name for runner in runners("bf16")] == ["openvino"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_weights_have_the_type_and_fragile_parts_are_float32(graphs: Graphs, precision: str) -> None:
    written = graphs(precision)
    encoder, head = (onnx.load(written[name]) for name in ("encoder", "head"))
    assert types_of(encoder, "Conv") == {TYPES[precision]}
    assert types_of(head, "MatMul") == {TYPES[precision]}
    for operator in ("LayerNormalization", "Gemm", "Sigmoid", "Tanh", "ReduceMax"):
        assert types_of(head, operator) == {TensorProto.FLOAT}, operator
    assert types_of(encoder, "Mul") == {TensorProto.FLOAT}  # of pixels
    for proto in (encoder, head):
        (given,), (result,) = proto.graph.input, proto.graph.output
        assert given.type.tensor_type.elem_type == (TensorProto.UINT8 if proto is encoder else TensorProto.FLOAT)
        assert result.type.tensor_type.elem_type == TensorProto.FLOAT
        assert not any(part.metadata_props for part in proto.graph.node)  # they name files of this machine


def types_of(proto: onnx.ModelProto, operator: str) -> set[int]:
    """Return the types of the values that the nodes of one operator give."""
    shaped = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in (*shaped.graph.value_info, *shaped.graph.output)}
    found = {types[node.output[0]] for node in shaped.graph.node if node.op_type == operator}
    assert found, operator
    return found


@pytest.mark.parametrize(
    ("head", "precision"), [(head, precision) for head, precision, lstm in WRITTEN if lstm == "op"]
)
def test_the_operator_has_the_type_too(graphs: Graphs, head: str, precision: str) -> None:
    assert types_of(onnx.load(graphs(precision, "op", head=head)["head"]), "LSTM") == {TYPES[precision]}


def test_batch_normalisation_is_folded_where_half_would_overflow() -> None:
    """A trained network may have maps that are almost constant: one over their deviation is beyond fp16."""
    made = build("lrcn", HeadSpec(hidden=4), CLASSES, size=Size(width=SIDE, height=SIDE)).eval()
    norm = made.encoder.backbone.layers[1]
    norm.eps = 1e-12
    norm.running_var.fill_(1e-11)  # below the smallest number of fp16
    made.encoder.backbone.layers[0].weight.data.mul_(1e-5)
    batch = frames(2)
    assert_near(torch_of(typed_encoder(made.encoder, "fp16"), batch), torch_of(made.encoder, batch), "fp16")


def test_the_model_itself_is_left_alone() -> None:
    made = build("mobilenet_v3_large_lstm", HeadSpec(hidden=4), CLASSES, size=Size(width=SIDE, height=SIDE)).eval()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    typed_encoder(made.encoder, "fp16")
    typed_head(made.head, "bf16", "unroll")
    assert made.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_unknown_types_and_forms_are_refused() -> None:
    made = model("lrcn", HEADS["one layer, max"])
    with pytest.raises(UsageError, match="unknown precision 'int4' for a graph; allowed are fp32, fp16, bf16"):
        typed_encoder(made.encoder, "int4")
    with pytest.raises(UsageError, match="unknown form of the LSTM 'loop'; allowed are op, unroll"):
        typed_head(made.head, "fp32", "loop")


class TestParserRules:
    """What TensorRT's ONNX parser takes, by its operators.md; nothing here runs TensorRT."""

    @pytest.mark.parametrize(("head", "precision", "lstm"), WRITTEN)
    def test_heads(self, graphs: Graphs, head: str, lstm: str, precision: str) -> None:
        proto, spec = onnx.load(graphs(precision, lstm, head=head)["head"]), HEADS[head]
        assert list(faults(proto)) == []
        count = Counter(node.op_type for node in proto.graph.node)
        assert count["LSTM"] == (spec.layers if lstm == "op" else 0)
        if lstm == "unroll":  # one product with the inputs of all steps, and one of each step but the first
            assert count["MatMul"] == FRAMES * spec.layers * (1 + spec.bidirectional)

    @pytest.mark.parametrize(("architecture", "precision"), ENCODERS)
    def test_encoders(self, graphs: Graphs, architecture: str, precision: str) -> None:
        assert list(faults(onnx.load(graphs(precision, architecture=architecture)["encoder"]))) == []

    def test_faults_are_found(self) -> None:
        pixels = helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 4])
        logits = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 1])
        late_cast = [
            helper.make_node("Transpose", ["x"], ["t"], "early"),
            helper.make_node("Cast", ["t"], ["y"], "cast", to=TensorProto.FLOAT),
        ]
        graph = helper.make_graph(late_cast, "g", [pixels], [logits])
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
        assert list(faults(proto)) == ["early: Transpose of uint8", "cast: t is uint8 inside the graph"]
        proto.opset_import[0].version = 25
        proto.graph.node[1].op_type = "DynamicQuantizeLinear"
        proto.graph.node[0].op_type = "Shape"
        told = list(faults(proto))
        assert told[:2] == ["opset 25", "early: Shape of uint8"]
        assert "cast: DynamicQuantizeLinear" in told
        moving = helper.make_node("ReduceMax", ["x", "where"], ["y"], "reduce")
        cached = helper.make_node("LayerNormalization", ["x"], ["y", "mean"], "norm")
        stacked = helper.make_node("LSTM", ["x"], ["y"], "lstm", layout=1)
        graph = helper.make_graph([moving, cached, stacked], "g", [], [logits])
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
        wanted = ["reduce: axes that are no initialiser", "norm: 2 outputs", "lstm: layout is 1"]
        assert list(faults(proto)) == wanted


def faults(proto: onnx.ModelProto) -> Iterator[str]:
    """Yield what TensorRT's parser would refuse in a graph."""
    for opset in proto.opset_import:
        if opset.domain or not 9 <= opset.version <= 24:
            yield f"opset {opset.domain}{opset.version}"
    graph = proto.graph
    pixels = {value.name for value in graph.input if value.type.tensor_type.elem_type == TensorProto.UINT8}
    constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
    unsigned = {name for name, kind in constants.items() if kind == TensorProto.UINT8}
    for node in graph.node:
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type not in KNOWN:
            yield f"{node.name}: {node.op_type}"
        if node.op_type == "Cast" and attributes["to"] == TensorProto.UINT8:
            unsigned.update(node.output)
        if pixels & set(node.input) and node.op_type != "Cast":
            yield f"{node.name}: {node.op_type} of uint8"
            unsigned.update(node.output if node.op_type != "Shape" else [])
        yield from (f"{node.name}: {name} is uint8 inside the graph" for name in node.input if name in unsigned)
        if node.op_type.startswith("Reduce") and len(node.input) > 1 and node.input[1] not in constants:
            yield f"{node.name}: axes that are no initialiser"
        if node.op_type in ("LayerNormalization", "MaxPool") and len(node.output) > 1:
            yield f"{node.name}: {len(node.output)} outputs"
        if node.op_type == "MaxPool" and set(attributes.get("dilations", [1])) != {1}:
            yield f"{node.name}: dilations"
        yield from (f"{node.name}: {name} is {attributes[name]}" for name in ("layout",) if attributes.get(name))
