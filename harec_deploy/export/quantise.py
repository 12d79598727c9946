"""A float encoder becomes one explicit QDQ model in int8, as ONNX Runtime, OpenVINO and TensorRT all take it.

Integer arithmetic as in Jacob et al. 2018 (https://arxiv.org/abs/1712.05877), with the restrictions of TensorRT: every
zero point is 0, weights have a scale for each output channel, biases stay float. What a convolution, a residual
addition or a pooling between them takes is quantised; the pixels' normalisation and everything behind the last
convolution stay float.
"""

import io
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

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
SWEEP_FRAMES = 16  # on which layers are compared: every one costs a run of the whole encoder
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
        self._frames = frames
        self._ranges = _observe(graph, frames, method)

    def write(self, path: Path, kept_float: Sequence[str] = ()) -> None:
        """Write the int8 model, all layers but ``kept_float`` quantised.

        Raises:
            UsageError: a layer that there is not.
            BundleError: TensorRT's parser would refuse the model.
        """
        if unknown := [name for name in kept_float if name not in self.layers]:
            raise UsageError(f"no layer {unknown[0]!r} to keep in float; there are {', '.join(self.layers)}")
        self._write(path, [name for name in self.layers if name not in kept_float])
        if told := list(faults(onnx.load(path))):
            raise BundleError(f"TensorRT would refuse the int8 encoder: {'; '.join(told[:3])}")

    def errors(self) -> Iterator[tuple[str, float]]:
        """Yield each layer with the error of the features when it alone is quantised, as a share of their norm."""
        from harec_deploy.runners.onnx import OnnxRunner

        frames = self._frames[:: max(len(self._frames) // SWEEP_FRAMES, 1)][:SWEEP_FRAMES]
        runner = OnnxRunner()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "encoder.onnx"

            def features(precision: str) -> NDArray[np.float32]:
                return runner.load_file(path, precision)(frames)

            onnx.save(self._model, path)
            wanted = features("fp32")
            for layer in self.layers:
                self._write(path, [layer])
                yield layer, float(np.linalg.norm(features("int8") - wanted) / np.linalg.norm(wanted))

    def _write(self, path: Path, layers: Sequence[str]) -> None:
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        if not layers:  # which the quantizer would take for all
            onnx.save(self._model, path)
            return
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
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
        onnx.save(_plain(quantizer.model.model), path)


def calibration_frames(clips: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return about FRAMES frames spread evenly over clips: uint8 (B, T, H, W, 3) -> uint8 (N, H, W, 3)."""
    frames: NDArray[np.uint8] = clips.reshape(-1, *clips.shape[2:])
    count = min(FRAMES, len(frames))
    return np.ascontiguousarray(frames[np.linspace(0, len(frames) - 1, count).astype(int)])


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


def _plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model as runners/uint8.py reads it: constants as raw bytes, and no types of values in between."""
    del model.graph.value_info[:]
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    onnx.checker.check_model(model, full_check=True)
    return model
