"""int8 graphs: one QDQ file that keeps TensorRT's rules, the same function in every runner, and gates that hold."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from harec_deploy.decode import Size
from harec_deploy.errors import BundleError, UsageError
from harec_deploy.export.int8 import Int8Options
from harec_deploy.export.onnx import write_graphs
from harec_deploy.export.qdq import faults
from harec_deploy.export.quantise import CALIBRATIONS, FRAMES, Quantiser, calibration_frames
from harec_deploy.models import build
from harec_deploy.runners import uint8
from harec_deploy.runners.onnx import OnnxRunner
from harec_deploy.runners.openvino import OpenVINORunner
from harec_deploy.runners.uint8 import with_uint8_activations
from harec_deploy.sampling import ClipSampling
from harec_deploy.spec import BundleSpec, FileRef, HeadSpec

SIDE = 64
INT8_ZERO = np.array(0, np.int8)
ARCHITECTURES = ("lrcn", "resnet18_lstm", "mobilenet_v2_lstm", "mobilenet_v3_large_lstm")
# Of the features' norm.
FEATURE_ERROR = {"lrcn": 0.01, "resnet18_lstm": 0.03, "mobilenet_v2_lstm": 0.005, "mobilenet_v3_large_lstm": 0.01}


def pixels(count: int) -> np.ndarray:
    """Return frames with shapes in them, uint8 (N, SIDE, SIDE, 3): noise alone leaves features of noise."""
    rng = np.random.default_rng(count)
    coarse = rng.integers(0, 256, (count, 8, 8, 3)).repeat(SIDE // 8, 1).repeat(SIDE // 8, 2)
    return np.clip(coarse + rng.normal(0, 10, coarse.shape), 0, 255).astype(np.uint8)


class Quantised:
    """An encoder's float file, and what quantises it."""

    def __init__(self, architecture: str, folder: Path) -> None:
        torch.manual_seed(1)
        size, head = Size(width=SIDE, height=SIDE), HeadSpec(hidden=4)
        model = build(architecture, head, 3, size=size).eval()
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):  # as after training: with bias, no two channels alike
                part.running_var.uniform_(0.5, 2)
                nn.init.normal_(part.bias, 0, 0.1)
        spec = BundleSpec(
            architecture=architecture,
            head=head,
            feature_dim=model.encoder.feature_dim,
            classes=["a", "b", "c"],
            sampling=ClipSampling(frames=2),
            size=size,
            weights=FileRef(path="weights.safetensors", size=0, sha256=""),
        )
        self.float = write_graphs(model, spec, folder)["encoder"]
        self.path = folder / "int8.onnx"
        self.quantiser = Quantiser(self.float, pixels(10), "minmax")
        self.quantiser.write(self.path)
        self.features = OnnxRunner().load_file(self.float)(pixels(6))


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Quantised]:
    made: dict[str, Quantised] = {}

    def of(architecture: str) -> Quantised:
        if architecture not in made:
            made[architecture] = Quantised(architecture, tmp_path_factory.mktemp(architecture))
        return made[architecture]

    return of


def error(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_runner_gives_nearly_the_features(quantised: Callable[[str], Quantised], architecture: str) -> None:
    made = quantised(architecture)
    results = [runner.load_file(made.path, "int8")(pixels(6)) for runner in (OnnxRunner(), OpenVINORunner())]
    for got in results:
        assert 1e-5 < error(got, made.features) < FEATURE_ERROR[architecture]
    assert error(*results) < FEATURE_ERROR[architecture]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_file_keeps_tensorrts_rules(quantised: Callable[[str], Quantised], architecture: str) -> None:
    made = quantised(architecture)
    model = onnx.load(made.path)
    assert list(faults(model)) == []
    count = Counter(node.op_type for node in model.graph.node)
    quantised_convolutions = [
        node for node in model.graph.node if node.op_type == "Conv" and "_DequantizeLinear_Output" in node.input[0]
    ]
    assert len(quantised_convolutions) == count["Conv"]
    assert {tensor.data_type for tensor in model.graph.initializer if tensor.name.endswith("weight_quantized")} == {
        TensorProto.INT8
    }
    assert made.path.stat().st_size < 0.4 * made.float.stat().st_size


def test_pooling_between_layers_is_in_int8(quantised: Callable[[str], Quantised]) -> None:
    graph = onnx.load(quantised("resnet18_lstm").path).graph
    (pooling,) = [node for node in graph.node if node.op_type == "MaxPool"]
    makers = {output: node for node in graph.node for output in node.output}
    (taker,) = [node for node in graph.node if pooling.output[0] in node.input]
    before = makers[pooling.input[0]]
    assert (before.op_type, taker.op_type) == ("DequantizeLinear", "QuantizeLinear")
    assert list(before.input[1:]) == list(taker.input[1:])  # one grid, so that the pooling is of integers


def test_residual_additions_are_layers_and_the_normalisation_is_none(quantised: Callable[[str], Quantised]) -> None:
    layers = quantised("resnet18_lstm").quantiser.layers
    assert [name for name in layers if name.startswith("residual")] == [f"residual {n}" for n in range(1, 9)]
    assert len(layers) == 8 + 20
    assert layers[:2] == ["backbone.trunk.0", "backbone.trunk.4.0.conv1"]


class TestUint8:
    """The same file as uint8, in memory."""

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_only_activations_change(self, quantised: Callable[[str], Quantised], architecture: str) -> None:
        before = onnx.load(quantised(architecture).path)
        after = onnx.ModelProto.FromString(with_uint8_activations(quantised(architecture).path.read_bytes()))
        onnx.checker.check_model(after, full_check=True)
        assert after.graph.node == before.graph.node
        old, new = ({t.name: t for t in each.graph.initializer} for each in (before, after))
        changed = {name for name in old if old[name] != new[name]}
        grids = {
            (node.input[1], node.input[2]): node.input[0]
            for node in before.graph.node
            if node.op_type == "QuantizeLinear"
        }
        assert changed <= {name for grid in grids for name in grid}
        makers = {output: node.op_type for node in before.graph.node for output in node.output}
        for (scale, zero_point), values in grids.items():
            zero = numpy_helper.to_array(new[zero_point])
            ratio = numpy_helper.to_array(new[scale]) / numpy_helper.to_array(old[scale])
            assert zero.dtype == np.uint8
            if makers[values] in ("Relu", "Clip"):
                assert zero == 0
                assert ratio == pytest.approx(127 / 255)
            elif makers[values] != "MaxPool":  # which has the grid of what it pools
                assert (zero, ratio) == (128, 1)

    def test_a_clip_below_zero_keeps_its_negative_values(self) -> None:
        zero_points = {}
        for low in (0.0, -1.0):
            nodes = [
                helper.make_node("Clip", ["x", "low", "high"], ["clipped"]),
                helper.make_node("QuantizeLinear", ["clipped", "scale", "zero"], ["q"]),
                helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
            ]
            zero_points[low] = after_rewriting(nodes, low=low)["zero"]
        assert zero_points == {0.0: 0, -1.0: 128}

    def test_runners_compute_what_the_int8_file_says(self, quantised: Callable[[str], Quantised]) -> None:
        """Two further bits behind each ReLU: the same function, within the error of the coarser grid."""
        made = quantised("resnet18_lstm")
        signed, unsigned = (OnnxRunner().load_file(made.path, p)(pixels(6)) for p in ("fp32", "int8"))
        assert error(unsigned, signed) < FEATURE_ERROR["resnet18_lstm"]
        assert error(unsigned, made.features) < 1.1 * error(signed, made.features)

    def test_float_graphs_are_left_alone(self, exported: Path) -> None:
        head = (exported / "onnx-fp32/head.onnx").read_bytes()
        assert with_uint8_activations(head) == head

    def test_the_runners_use_it(self, quantised: Callable[[str], Quantised], monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(model: bytes) -> bytes:
            raise ValueError("seen")

        monkeypatch.setattr(uint8, "with_uint8_activations", refuse)
        for runner in (OnnxRunner(), OpenVINORunner()):
            runner.load_file(quantised("lrcn").path, "fp32")
            with pytest.raises(BundleError, match=r"int8.onnx is no int8 graph of harec-deploy: seen; export"):
                runner.load_file(quantised("lrcn").path, "int8")

    @pytest.mark.parametrize("cut", [0, 1, 40, 1000, -1])
    def test_damage_is_one_line(self, quantised: Callable[[str], Quantised], tmp_path: Path, cut: int) -> None:
        path = tmp_path / "encoder.onnx"
        path.write_bytes(quantised("lrcn").path.read_bytes()[:cut])
        for runner in (OnnxRunner(), OpenVINORunner()):
            with pytest.raises(BundleError):
                runner.load_file(path, "int8")

    @pytest.mark.parametrize("zero", [np.array([0], np.int8), np.array(0, np.uint8), None])
    def test_other_zero_points_are_refused(self, zero: np.ndarray | None) -> None:
        node = helper.make_node("QuantizeLinear", ["x", "scale", *([] if zero is None else ["zero"])], ["y"])
        with pytest.raises(ValueError, match="zero point"):
            after_rewriting([node], zero=zero)


def after_rewriting(
    nodes: list[onnx.NodeProto], *, low: float = 0.0, zero: np.ndarray | None = INT8_ZERO
) -> dict[str, np.ndarray]:
    values = {"scale": np.float32(0.1), "low": np.float32(low), "high": np.float32(6), "zero": zero}
    constants = [numpy_helper.from_array(np.asarray(v), name) for name, v in values.items() if v is not None]
    model = helper.make_model(helper.make_graph(nodes, "g", [], [], constants))
    after = onnx.ModelProto.FromString(with_uint8_activations(model.SerializeToString()))
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}


def first_dequantised(graph: onnx.GraphProto) -> onnx.NodeProto:
    """Return the first node that dequantises activations."""
    return next(n for n in graph.node if n.op_type == "DequantizeLinear" and "weight" not in n.input[0])


class TestRules:
    """Each rule is broken once in a file that keeps them all."""

    def broken(self, made: Quantised, change: Callable[[onnx.GraphProto], None]) -> list[str]:
        model = onnx.load(made.path)
        change(model.graph)
        return list(faults(model))

    def test_opset(self, quantised: Callable[[str], Quantised]) -> None:
        model = onnx.load(quantised("lrcn").path)
        model.opset_import[0].version = 25
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        assert list(faults(model)) == ["opset 25", "opset com.microsoft1"]

    @pytest.mark.parametrize(
        ("ending", "value", "told"),
        [
            ("add_zero_point", np.array(3, np.int8), "a zero point that is not 0"),
            ("add_zero_point", np.array(0, np.uint8), "type UINT8"),
            ("add_scale", np.array(0, np.float32), "a scale that is no positive float32"),
            ("add_scale", np.array(np.inf, np.float32), "a scale that is no positive float32"),
            ("add_scale", np.ones(3, np.float32), "3 scales for an activation"),
            ("weight_scale", np.ones(5, np.float32), "5 scales for weights of"),
        ],
    )
    def test_grids(self, quantised: Callable[[str], Quantised], ending: str, value: np.ndarray, told: str) -> None:
        def change(graph: onnx.GraphProto) -> None:
            tensor = next(t for t in graph.initializer if t.name.endswith(ending))
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))

        assert any(told in fault for fault in self.broken(quantised("lrcn"), change))

    def test_a_constant_that_is_none(self, quantised: Callable[[str], Quantised]) -> None:
        def change(graph: onnx.GraphProto) -> None:
            next(node for node in graph.node if node.op_type == "QuantizeLinear").input[1] = "frames"

        assert "scale and zero point are no constants" in self.broken(quantised("lrcn"), change)[0]

    def test_pairs(self, quantised: Callable[[str], Quantised]) -> None:
        def other_grid(graph: onnx.GraphProto) -> None:
            node = first_dequantised(graph)
            node.input[1] = next(t.name for t in graph.initializer if t.name.endswith("relu_scale"))

        def cast(graph: onnx.GraphProto) -> None:
            first_dequantised(graph).op_type = "Cast"

        assert any("dequantised on another grid" in fault for fault in self.broken(quantised("lrcn"), other_grid))
        assert any("its output is not dequantised" in fault for fault in self.broken(quantised("lrcn"), cast))

    def test_convolutions(self, quantised: Callable[[str], Quantised]) -> None:
        def float_input(graph: onnx.GraphProto) -> None:
            next(node for node in graph.node if node.op_type == "Conv").input[0] = "permute"

        def quantised_bias(graph: onnx.GraphProto) -> None:
            node = next(node for node in graph.node if node.op_type == "Conv")
            del node.input[2:]
            node.input.append(node.input[1])

        assert any("weights quantised alone" in fault for fault in self.broken(quantised("lrcn"), float_input))
        assert any("a quantised bias" in fault for fault in self.broken(quantised("lrcn"), quantised_bias))


class TestQuantiser:
    def test_layers_stay_float(self, quantised: Callable[[str], Quantised], tmp_path: Path) -> None:
        made = quantised("resnet18_lstm")
        kept = made.quantiser.layers[::2]
        made.quantiser.write(tmp_path / "half.onnx", kept)
        nodes = onnx.load(tmp_path / "half.onnx").graph.node
        weights = {node.name: node.input[1] for node in nodes if node.op_type == "Conv"}
        assert list(faults(onnx.load(tmp_path / "half.onnx"))) == []
        for name in made.quantiser.layers:
            if not name.startswith("residual"):
                assert weights[name].endswith("_DequantizeLinear_Output") is (name not in kept), name
        # The first convolution behind the pooling in float, though the first addition takes the same in int8.
        made.quantiser.write(tmp_path / "shared.onnx", ["backbone.trunk.4.0.conv1"])
        made.quantiser.write(tmp_path / "float.onnx", made.quantiser.layers)
        got = OnnxRunner().load_file(tmp_path / "float.onnx", "int8")(pixels(6))
        np.testing.assert_allclose(got, made.features, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("architecture", "share_left"),
        [("resnet18_lstm", 0.8), ("mobilenet_v2_lstm", 0.3), ("mobilenet_v3_large_lstm", 0.3)],
    )
    def test_biases_make_up_for_shifted_means(
        self, quantised: Callable[[str], Quantised], tmp_path: Path, architecture: str, share_left: float
    ) -> None:
        made = quantised(architecture)
        made.quantiser.write(tmp_path / "shifted.onnx", correct=False)
        load = OnnxRunner().load_file
        shifted, corrected = (load(path, "int8")(pixels(6)) for path in (tmp_path / "shifted.onnx", made.path))
        of_the_mean = [abs((got - made.features).mean(0)).mean() for got in (shifted, corrected)]
        assert of_the_mean[1] < share_left * of_the_mean[0]
        assert error(corrected, made.features) < error(shifted, made.features)

    def test_convolutions_that_share_a_bias_or_have_none(
        self, quantised: Callable[[str], Quantised], tmp_path: Path
    ) -> None:
        model = onnx.load(quantised("resnet18_lstm").float)
        first, second, third = [node for node in model.graph.node if node.op_type == "Conv"][1:4]
        second.input[2] = first.input[2]
        del third.input[2:]
        onnx.save(model, tmp_path / "float.onnx")
        Quantiser(tmp_path / "float.onnx", pixels(10), "minmax").write(tmp_path / "int8.onnx")
        load = OnnxRunner().load_file
        got, wanted = load(tmp_path / "int8.onnx", "int8")(pixels(6)), load(tmp_path / "float.onnx")(pixels(6))
        assert error(got, wanted) < FEATURE_ERROR["resnet18_lstm"]
        model = onnx.load(tmp_path / "int8.onnx")
        biases = [node.input[2] for node in model.graph.node if node.op_type == "Conv"]
        taken = {name for node in model.graph.node for name in node.input}
        assert len(set(biases)) == len(biases) == 20
        assert {tensor.name for tensor in model.graph.initializer} <= taken

    def test_the_sweep_finds_the_layer_that_int8_destroys(self, tmp_path: Path) -> None:
        made = with_an_outlier(Quantised("lrcn", tmp_path))
        errors = dict(made.errors())
        assert errors.keys() == set(made.layers)
        assert max(errors, key=errors.__getitem__) == made.layers[1]
        assert errors[made.layers[1]] > 5 * errors[made.layers[2]]

    @pytest.mark.parametrize("method", CALIBRATIONS)
    def test_methods_choose_other_ranges(
        self, quantised: Callable[[str], Quantised], tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Of 10 frames, so that the last batch is uneven; one value is far from all others."""
        made, frames = quantised("lrcn"), np.full((10, SIDE, SIDE, 3), 120, np.uint8)
        frames[0, 0, 0, 0] = 255
        Quantiser(made.float, frames, method).write(tmp_path / "encoder.onnx")
        tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "encoder.onnx").graph.initializer}
        largest = 127 * tensors["add_scale"]
        if method == "minmax":
            assert largest == pytest.approx(1.0, abs=0.01)  # 255 of pixels from -1 to 1
        else:
            assert largest < 0.5
        assert capsys.readouterr().out == ""

    def test_what_is_refused(self, quantised: Callable[[str], Quantised], tmp_path: Path) -> None:
        made = quantised("lrcn")
        with pytest.raises(UsageError, match="unknown calibration 'max'; allowed are minmax, entropy, percentile"):
            Int8Options(method="max")
        with pytest.raises(UsageError, match=r"no layer 'stem' to keep in float; there are backbone"):
            made.quantiser.write(tmp_path / "encoder.onnx", ["stem"])

    def test_frames_are_spread_over_the_clips(self) -> None:
        clips = np.arange(30, dtype=np.uint8)[:, None, None, None, None].repeat(20, 1)
        chosen = calibration_frames(clips)
        assert chosen.shape == (FRAMES, 1, 1, 1)
        assert set(chosen.ravel().tolist()) == set(range(30))
        assert len(calibration_frames(clips[:2])) == 40


def with_an_outlier(made: Quantised) -> Quantiser:
    """Scale one channel up behind the first layer, and down again in the second: the same function for floats only."""
    model = onnx.load(made.float)
    first, second = [node for node in model.graph.node if node.op_type == "Conv"][:2]
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, axis, factor in ((first.input[1], 0, 1e3), (first.input[2], 0, 1e3), (second.input[1], 1, 1e-3)):
        values = numpy_helper.to_array(tensors[name]).copy()
        np.moveaxis(values, axis, 0)[0] *= factor
        tensors[name].CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, made.float)
    return Quantiser(made.float, pixels(10), "minmax")
