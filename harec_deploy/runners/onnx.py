"""ONNX Runtime on the CPU."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harec_deploy.bundle import Bundle, Variant
from harec_deploy.errors import BundleError

# Without this, ONNX Runtime reports to Microsoft and writes an id to the cache folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as _native

# What it raises has no common base: Fail, InvalidArgument, InvalidGraph and so on.
_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(each for each in vars(_native).values() if isinstance(each, type) and issubclass(each, Exception)),
)

onnxruntime.set_default_logger_severity(3)  # its warnings are about optimisations, and go to stderr from C++


class _OnnxGraph:
    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._input = session.get_inputs()[0].name
        self._output = session.get_outputs()[0].name

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        try:
            return np.asarray(self._session.run([self._output], {self._input: batch})[0], dtype=np.float32)
        except _ERRORS as error:
            raise BundleError(f"ONNX Runtime cannot run the graph: {' '.join(str(error).split())}") from None


class OnnxRunner:
    """Loads ONNX files into ONNX Runtime."""

    name = "onnx"
    version: str = onnxruntime.__version__
    hardware = ""
    batch_frames = 16

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def precisions(self, variant: Variant) -> tuple[str, ...]:
        """Return the precision of the graphs: values have their types, if not every step of the arithmetic has.

        On a CPU it has neither convolutions nor matrix products in bfloat16.
        """
        if not variant.is_onnx or (variant.precision == "bf16" and self.device == "cpu"):
            return ()
        return (variant.precision,)

    def load(
        self, bundle: Bundle, variant: str, *, precision: str, threads: int | None = None
    ) -> dict[str, _OnnxGraph]:
        """Load the ONNX files of a variant. Raises BundleError for one that is refused."""
        files = bundle.spec.variants[variant].graphs
        return {name: self.load_file(bundle.path(file), precision, threads) for name, file in files.items()}

    def load_file(self, path: Path, precision: str = "fp32", threads: int | None = None) -> _OnnxGraph:
        """Load one ONNX file. Raises BundleError for a file that ONNX Runtime refuses."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        try:
            # From bytes, so that no path in the file could be followed.
            session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        except _ERRORS as error:
            raise BundleError(f"ONNX Runtime {self.version} refuses {path}: {' '.join(str(error).split())}") from None
        return _OnnxGraph(session)
