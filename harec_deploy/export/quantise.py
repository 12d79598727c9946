"""A float encoder becomes one explicit QDQ model in int8, as ONNX Runtime, OpenVINO and TensorRT all take it.

Integer arithmetic as in Jacob et al. 2018 (https://arxiv.org/abs/1712.05877), with the restrictions of TensorRT: every
zero point is 0, weights have a scale for each output channel, biases stay float. What a convolution, a residual
addition or a pooling between them takes is quantised; the pixels' normalisation and everything behind the last
convolution stay float.

What int8 adds to the mean of a channel is taken from its bias (Nagel et al. 2019, https://arxiv.org/abs/1906.04721,
section 4.2, as it is measured on frames in appendix D): features are means over a frame, in which rounding averages out
and such a shift does not. It costs nothing when the model runs.
"""

import io
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from harec_deploy.errors import BundleError, UsageError
from harec_deploy.export.qdq import faults
from harec_deploy.runners import get

if TYPE_CHECKING:
    from onnxruntime.quantization.calibrate import CalibrationDataReader

# Our name: ONNX Runtime's, and its options. Entropy compares ranges of 128 bins or more, and by default has no more.
CALIBRATIONS: dict[str, tuple[str, dict[str, int]]] = {
    "minmax": ("MinMax", {}),
    "entropy": ("Entropy", {"num_bins": 1024}),
    "percentile": ("Percentile", {}),
}
FRAMES = 200  # for calibration
FEW_FRAMES = 32  # on which layers are corrected and compared: every one costs a run of the encoder
BATCH_FRAMES = 4  # a histogram wants every activation of a batch in memory; an uneven last batch is a batch of its own
_POOLING = "MaxPool"


class Quantiser:
    """Quantises one encoder, whole or with some of its layers left in float.

    layers: what can be left, in the order of the graph: convolutions by the name of their weights, and residual
    additions as "residual N".
    """

    def __init__(self, graph: Path, frames: NDArray[np.uint8], method: str) -> None:
        """Read a float encoder, uint8 (N, H, W, 3) -> float32 (N, D), and observe its activations.

        frames: real ones, uint8 (N, H, W, 3). method: a key of CALIBRATIONS; how the range of an activation is chosen.

        Raises:
            MissingDependency: ONNX Runtime is not installed.
        """
        get("onnx")  # says what is missing
        self._model = onnx.load(graph, load_external_data=False)
        self.layers = _name_layers(self._model)
        self._frames = _spread(frames, FEW_FRAMES)
        self._ranges = _observe(graph, frames, method)

    def write(self, path: Path, kept_float: Sequence[str] = (), *, correct: bool = True) -> None:
        """Write the int8 model, all layers but ``kept_float`` quantised.

        correct: whether biases make up for what int8 adds to the mean of a channel.

        Raises:
            UsageError: a layer that there is not.
            BundleError: TensorRT's parser would refuse the model.
        """
        if unknown := [name for name in kept_float if name not in self.layers]:
            raise UsageError(f"no layer {unknown[0]!r} to keep in float; there are {', '.join(self.layers)}")
        model = self._quantised([name for name in self.layers if name not in kept_float], correct=correct)
        if told := list(faults(model)):
            raise BundleError(f"TensorRT would refuse the int8 encoder: {'; '.join(told[:3])}")
        onnx.save(model, path)

    def errors(self) -> Iterator[tuple[str, float]]:
        """Yield each layer with the error of the features when it alone is quantised, as a share of their norm."""
        wanted = _run(self._model, "fp32", self._frames)
        for layer in self.layers:
            got = _run(self._quantised([layer]), "int8", self._frames)
            yield layer, float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))

    @cached_property
    def _means(self) -> dict[str, NDArray[np.float32]]:
        """Each convolution with the means of its channels in float, (C,), in the order of the graph."""
        nodes = [node for node in self._model.graph.node if node.op_type == "Conv" and node.name in self.layers]
        shapes = {tensor.name: tensor.dims for tensor in self._model.graph.initializer}
        names, ends = [node.name for node in nodes], np.cumsum([shapes[node.input[1]][0] for node in nodes])
        return dict(zip(names, np.split(_channel_means(self._model, names, "fp32", self._frames), ends), strict=False))

    def _correct(self, model: onnx.ModelProto, layers: Sequence[str]) -> None:
        """Give the quantised convolutions, first to last, biases with which their channels have the means of float."""
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in [node for node in model.graph.node if node.name in layers and node.op_type == "Conv"]:
            excess = _channel_means(model, [node.name], "int8", self._frames) - self._means[node.name]
            own, shared = f"{node.name}.bias_corrected", node.input[2:]
            bias = -excess + (numpy_helper.to_array(tensors[shared[0]]) if shared else 0)
            model.graph.initializer.append(numpy_helper.from_array(bias.astype(np.float32), own))
            node.input[2:] = [own]

    def _quantised(self, layers: Sequence[str], *, correct: bool = True) -> onnx.ModelProto:
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        if not layers:  # which the quantizer would take for all
            return self._model
        model = _copy(self._model)
        # Where a quantised layer takes what is pooled, quantising before the pooling is the same, and pools in int8.
        taken = {name for node in model.graph.node if node.name in layers for name in node.input}
        poolings = [node.name for node in model.graph.node if node.op_type == _POOLING and node.output[0] in taken]
        operators = sorted({node.op_type for node in model.graph.node if node.name in layers})
        options = {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            # An output is quantised where something takes it, so that what stands between, as a ReLU, comes first.
            "OpTypesToExcludeOutputQuantization": operators,
            "ForceQuantizeNoInputCheck": True,
        }
        quantizer = QDQQuantizer(
            model,
            True,  # scales per channel
            False,  # no reduced range: it doubles the error of a MobileNet
            QuantType.QInt8,
            QuantType.QInt8,
            self._ranges,
            [*layers, *poolings],
            [],
            [*operators, _POOLING],
            options,
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        model = _plain(quantizer.model.model)
        if correct:
            self._correct(model, layers)
        return _without_the_unused(model)


def calibration_frames(clips: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return about FRAMES frames spread evenly over clips: uint8 (B, T, H, W, 3) -> uint8 (N, H, W, 3)."""
    return _spread(clips.reshape(-1, *clips.shape[2:]), FRAMES)


def _spread(frames: NDArray[np.uint8], most: int) -> NDArray[np.uint8]:
    places = np.linspace(0, len(frames) - 1, min(most, len(frames))).astype(int)
    return np.ascontiguousarray(frames[places])


def _name_layers(model: onnx.ModelProto) -> list[str]:
    """Name the nodes that can be quantised, and return their names."""
    constants = {tensor.name for tensor in model.graph.initializer}
    layers = []
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type} {number}"
        if node.op_type == "Conv":
            node.name = node.input[1].removesuffix(".weight")
            layers.append(node.name)
        elif node.op_type == "Add" and not constants & set(node.input):  # a constant is the pixels' normalisation
            node.name = f"residual {sum(name.startswith('residual ') for name in layers) + 1}"
            layers.append(node.name)
    return layers


def _observe(graph: Path, frames: NDArray[np.uint8], method: str) -> Any:
    """Return the range of every activation, as ONNX Runtime's quantizer takes them."""
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    name = onnx.load(graph, load_external_data=False).graph.input[0].name
    known_as, options = CALIBRATIONS[method]
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):  # it prints what it does
        calibrator = create_calibrator(
            graph,
            ["Conv", "Add", _POOLING],
            augmented_model_path=str(Path(folder) / "observed.onnx"),
            calibrate_method=CalibrationMethod[known_as],
            extra_options=options,
        )
        for start in range(0, len(frames), BATCH_FRAMES):
            calibrator.collect_data(_reader([{name: frames[start : start + BATCH_FRAMES]}]))
        return calibrator.compute_data()


def _reader(batches: list[dict[str, NDArray[np.uint8]]]) -> "CalibrationDataReader":
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            return batches.pop() if batches else None

    return Reader()


def _run(model: onnx.ModelProto, precision: str, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the first output of a model in ONNX Runtime, as the runner runs it."""
    from harec_deploy.runners.onnx import OnnxRunner

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.onnx"
        onnx.save(model, path)
        return OnnxRunner().load_file(path, precision)(frames)


def _channel_means(
    model: onnx.ModelProto, convolutions: Sequence[str], precision: str, frames: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Return the mean of every channel of convolutions over frames and places, one after the other, (sum of C,)."""
    model = _copy(model)
    nodes = model.graph.node
    wanted = [place for place, node in enumerate(nodes) if node.name in convolutions]
    outputs = [nodes[place].output[0] for place in wanted]
    del nodes[wanted[-1] + 1 :]  # a graph is in the order in which it runs
    nodes.extend(helper.make_node("GlobalAveragePool", [output], [f"{output} mean"]) for output in outputs)
    nodes.append(helper.make_node("Concat", [f"{output} mean" for output in outputs], ["means"], axis=1))
    del model.graph.output[:]
    model.graph.output.append(helper.make_empty_tensor_value_info("means"))
    means: NDArray[np.float32] = _run(model, precision, frames).mean((0, 2, 3))
    return means


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def _without_the_unused(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model without constants that nothing takes."""
    taken = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in taken]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def _plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model as runners/uint8.py reads it: constants as raw bytes, and no types of values in between."""
    del model.graph.value_info[:]
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    onnx.checker.check_model(model, full_check=True)
    return model
