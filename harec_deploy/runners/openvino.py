"""OpenVINO on the CPU: the same ONNX files, in fp32, in their own half precision, or, where the CPU has it, bf16."""

import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harec_deploy.bundle import Bundle
from harec_deploy.errors import BundleError
from harec_deploy.runners.parts import CPU_FRAMES, takes_frames
from harec_deploy.runners.uint8 import read_for_cpu
from harec_deploy.spec import Variant

# Without this, importing OpenVINO reports to Google Analytics and writes an id to the home folder.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino  # noqa: E402

# What is computed in for a precision, by what the CPU must be capable of; float32 where it is not. OpenVINO left to
# itself would take bf16 for fp16 graphs, which has three bits less.
_TYPES = {"bf16": ("BF16", openvino.Type.bf16), "fp16": ("FP16", openvino.Type.f16)}
PART_FRAMES = 8  # that a stream computes at a time


@cache
def _core() -> openvino.Core:
    """Return the one core of this process, which lives as long.

    With its CPU plugin a core gives the thread another stack for signals to be handled on. Of two cores that go in the
    order in which they came, the second puts back the first one's stack, which is freed: the next signal would end the
    process (seen in 2026.4).
    """
    return openvino.Core()


class _OpenVINOGraph:
    """A graph whose batches are computed in parts, side by side in as many streams as it was compiled for.

    rows: of a part, at most; None for batches that stay whole.
    """

    def __init__(self, compiled: openvino.CompiledModel, rows: int | None) -> None:
        self._compiled, self._rows = compiled, rows
        self._begin()

    def _begin(self) -> None:
        self._requests = openvino.AsyncInferQueue(self._compiled)
        self._requests.set_callback(_keep)

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        rows = min(self._rows or len(batch), -(-len(batch) // len(self._requests)))
        parts = [batch[start : start + rows] for start in range(0, len(batch), max(rows, 1))]
        results: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(parts)
        try:
            for place, part in enumerate(parts):
                self._requests.start_async([part], (results, place), share_inputs=True)
            self._requests.wait_all()
        except RuntimeError as error:
            self._begin()  # a request that was refused is never given back
            raise BundleError(f"OpenVINO cannot run the graph: {' '.join(str(error).split())}") from None
        return np.concatenate(results)


def _keep(request: openvino.InferRequest, of: tuple[list[NDArray[np.float32]], int]) -> None:
    """Copy what a request gave to its place."""
    results, place = of
    results[place] = np.array(request.get_output_tensor(0).data, dtype=np.float32)


class OpenVINORunner:
    """Loads ONNX files into OpenVINO."""

    name = "openvino"
    version: str = openvino.__version__
    hardware = ""
    batch_frames = CPU_FRAMES

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.notes: list[str] = []
        self._core = _core()

    def precisions(self, variant: Variant) -> tuple[str, ...]:
        """Return that of the graphs, as fine or finer; of fp32 ones, "bf16" too where the CPU computes in it.

        Half-precision graphs run on any CPU: one without such arithmetic computes in float32 with the half weights.
        """
        if not variant.is_onnx:
            return ()
        if variant.precision != "fp32":
            return (variant.precision,)
        return ("fp32", "bf16") if self._type("bf16") == openvino.Type.bf16 else ("fp32",)

    def load(
        self, bundle: Bundle, variant: str, *, precision: str, threads: int | None = None
    ) -> dict[str, _OpenVINOGraph]:
        """Load the ONNX files of a variant. Raises BundleError for one that is refused."""
        files = bundle.spec.variants[variant].graphs
        return {name: self.load_file(bundle.path(file), precision, threads) for name, file in files.items()}

    def load_file(self, path: Path, precision: str = "fp32", threads: int | None = None) -> _OpenVINOGraph:
        """Load one ONNX file. Raises BundleError for a file that OpenVINO refuses."""
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": self._type(precision)}
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            # From bytes, so that no path in the file could be followed.
            model = self._core.read_model(model=read_for_cpu(path, precision))
            frames = takes_frames(model.input(0).partial_shape)
            # A stream that has threads of its own waits for no other's.
            options["PERFORMANCE_HINT"] = "THROUGHPUT" if frames else "LATENCY"
            return _OpenVINOGraph(self._core.compile_model(model, "CPU", options), PART_FRAMES if frames else None)
        except RuntimeError as error:
            raise BundleError(f"OpenVINO {self.version} refuses {path}: {' '.join(str(error).split())}") from None

    def _type(self, precision: str) -> openvino.Type:
        capability, kind = _TYPES.get(precision, ("FP32", openvino.Type.f32))
        capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return kind if capability in capabilities else openvino.Type.f32
