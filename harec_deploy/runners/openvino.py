"""OpenVINO on the CPU: the same ONNX files, in fp32, in their own half precision, or, where the CPU has it, bf16."""

import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harec_deploy.bundle import Bundle
from harec_deploy.errors import BundleError
from harec_deploy.runners.uint8 import read_for_cpu
from harec_deploy.spec import Variant

# Without this, importing OpenVINO reports to Google Analytics and writes an id to the home folder.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
import openvino  # noqa: E402

# What is computed in for a precision, by what the CPU must be capable of; float32 where it is not. OpenVINO left to
# itself would take bf16 for fp16 graphs, which has three bits less.
_TYPES = {"bf16": ("BF16", openvino.Type.bf16), "fp16": ("FP16", openvino.Type.f16)}


@cache
def _core() -> openvino.Core:
    """Return the one core of this process, which lives as long.

    With its CPU plugin a core gives the thread another stack for signals to be handled on. Of two cores that go in the
    order in which they came, the second puts back the first one's stack, which is freed: the next signal would end the
    process (seen in 2026.4).
    """
    return openvino.Core()


class _OpenVINOGraph:
    def __init__(self, compiled: openvino.CompiledModel) -> None:
        self._request = compiled.create_infer_request()

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        try:
            self._request.infer([batch], share_inputs=True)
        except RuntimeError as error:
            raise BundleError(f"OpenVINO cannot run the graph: {' '.join(str(error).split())}") from None
        return np.array(self._request.get_output_tensor(0).data, dtype=np.float32)


class OpenVINORunner:
    """Loads ONNX files into OpenVINO."""

    name = "openvino"
    version: str = openvino.__version__
    hardware = ""
    batch_frames = 16

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
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": self._type(precision),
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            # From bytes, so that no path in the file could be followed.
            model = self._core.read_model(model=read_for_cpu(path, precision))
            return _OpenVINOGraph(self._core.compile_model(model, "CPU", options))
        except RuntimeError as error:
            raise BundleError(f"OpenVINO {self.version} refuses {path}: {' '.join(str(error).split())}") from None

    def _type(self, precision: str) -> openvino.Type:
        capability, kind = _TYPES.get(precision, ("FP32", openvino.Type.f32))
        capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return kind if capability in capabilities else openvino.Type.f32
