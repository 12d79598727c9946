"""ONNX Runtime, on the CPU or by CUDA."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harec_deploy.bundle import Bundle
from harec_deploy.devices import cuda_device
from harec_deploy.errors import BundleError
from harec_deploy.spec import Variant

# Without this, ONNX Runtime reports to Microsoft and writes an id to the cache folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as _native

from harec_deploy.runners import Graph
from harec_deploy.runners.onnx_providers import CUDA, quiet, require
from harec_deploy.runners.parts import CPU_FRAMES, OutOfMemory, Parts, cpu_rows
from harec_deploy.runners.uint8 import read_for_cpu

CUDA_BATCH_FRAMES = 128
# Its threads wait for work by spinning, for far longer than a clip leaves them idle, on cores that decoders need.
SPIN_US = 1000

# What it raises has no common base: Fail, InvalidArgument, InvalidGraph and so on.
_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(each for each in vars(_native).values() if isinstance(each, type) and issubclass(each, Exception)),
)
# In the words of CUDA, of its own arena, and of cuDNN.
_NO_MEMORY = re.compile(r"out of memory|to allocate memory|than requested bytes|ALLOC_FAILED", re.I)

onnxruntime.set_default_logger_severity(3)  # its warnings are about optimisations, and go to stderr from C++


class _OnnxGraph:
    def __init__(self, name: str, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._input = session.get_inputs()[0].name
        self._output = session.get_outputs()[0].name
        self._parts = Parts(name, cpu_rows(session.get_inputs()[0].shape))

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        return np.concatenate(self._parts.feed(batch, self._run))

    def _run(self, part: NDArray[Any]) -> NDArray[np.float32]:
        try:
            return np.asarray(self._session.run([self._output], {self._input: part})[0], dtype=np.float32)
        except _ERRORS as error:
            raise BundleError(f"ONNX Runtime cannot run the graph: {' '.join(str(error).split())}") from None


class BoundGraph:
    """A session whose input and output lie in the memory of a device, so that each crosses once.

    name: in the words that a person reads. device: "cpu" or "cuda:N". limit: rows at a time.
    """

    def __init__(self, name: str, session: onnxruntime.InferenceSession, device: str, limit: int) -> None:
        self.parts = Parts(name, limit)
        self._session = session
        self._input = session.get_inputs()[0].name
        self._output = session.get_outputs()[0].name
        kind, _, index = device.partition(":")
        self._place = (kind, int(index or 0))

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Run the graph. Raises BundleError for a batch that it does not take, and where memory runs out for a row."""
        return np.concatenate(self.parts.feed(np.ascontiguousarray(batch), self._run))

    def _run(self, part: NDArray[Any]) -> NDArray[np.float32]:
        binding = self._session.io_binding()
        try:
            binding.bind_ortvalue_input(self._input, onnxruntime.OrtValue.ortvalue_from_numpy(part, *self._place))
            binding.bind_output(self._output, *self._place)
            self._session.run_with_iobinding(binding)
            return np.asarray(binding.copy_outputs_to_cpu()[0], dtype=np.float32)
        except _ERRORS as error:
            if _NO_MEMORY.search(str(error)):
                raise OutOfMemory from None
            raise BundleError(f"ONNX Runtime cannot run the graph: {' '.join(str(error).split())}") from None


class OnnxRunner:
    """Loads ONNX files into ONNX Runtime."""

    name = "onnx"
    version: str = onnxruntime.__version__

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.hardware = ""
        self.batch_frames = CPU_FRAMES
        self.notes: list[str] = []
        if device != "cpu":
            self.hardware = cuda_device(device).name
            self.batch_frames = CUDA_BATCH_FRAMES
            require(CUDA, self.name, device)

    def precisions(self, variant: Variant) -> tuple[str, ...]:
        """Return the precision of the graphs: values have their types, if not every step of the arithmetic has.

        On a CPU it has neither convolutions nor matrix products in bfloat16.
        """
        if not variant.is_onnx or (variant.precision == "bf16" and self.device == "cpu"):
            return ()
        return (variant.precision,)

    def load(self, bundle: Bundle, variant: str, *, precision: str, threads: int | None = None) -> dict[str, Graph]:
        """Load the ONNX files of a variant. Raises BundleError for one that is refused."""
        files = bundle.spec.variants[variant].graphs
        return {name: self.load_file(bundle.path(file), precision, threads) for name, file in files.items()}

    def load_file(self, path: Path, precision: str = "fp32", threads: int | None = None) -> Graph:
        """Load one ONNX file. Raises BundleError for a file that ONNX Runtime refuses."""
        # From bytes, so that no path in the file could be followed.
        if self.device == "cpu":
            model = read_for_cpu(path, precision)
            return _OnnxGraph(path.name, self._session(path, model, ["CPUExecutionProvider"], threads))
        model = path.read_bytes()
        session = self._session(path, model, [(CUDA, cuda_options(self.device))], threads)
        return BoundGraph(f"{path.name} on {self.device}", session, self.device, CUDA_BATCH_FRAMES)

    def _session(
        self, path: Path, model: bytes, providers: list[Any], threads: int | None, *, optimise: bool = True
    ) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
        if not optimise:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            with quiet():
                session = onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)
        except _ERRORS as error:
            raise BundleError(f"ONNX Runtime {self.version} refuses {path}: {' '.join(str(error).split())}") from None
        wanted = [each if isinstance(each, str) else each[0] for each in providers]
        if left_out := [each for each in wanted if each not in session.get_providers()]:
            raise BundleError(
                f"ONNX Runtime {self.version} goes on without {left_out[0]} on {self.device}: "
                "see in harec-deploy doctor whether driver and libraries fit"
            )
        return session


def cuda_options(device: str) -> dict[str, str]:
    """Return the options of the CUDA provider, as its documentation advises for batches of changing size.

    https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
    """
    return {
        "device_id": device.partition(":")[2],
        "use_tf32": "0",  # fp32 is to mean fp32
        "cudnn_conv_algo_search": "HEURISTIC",  # the default times every algorithm for every new batch size
        "arena_extend_strategy": "kSameAsRequested",  # others use this GPU's memory too
    }
