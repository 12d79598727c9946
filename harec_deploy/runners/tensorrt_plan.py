"""What is in a TensorRT plan, and what TensorRT says of it."""

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorrt as trt

from harec_deploy.errors import BundleError, DeviceError


class _Logger(trt.ILogger):  # type: ignore[misc]
    """Keeps TensorRT's log from stderr: its errors come through the recorder."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)

    def log(self, severity: "trt.ILogger.Severity", msg: str) -> None:
        """Take a message, from any thread."""


class Recorder(trt.IErrorRecorder):  # type: ignore[misc]
    """Keeps TensorRT's errors, which any of its threads may report, until somebody asks."""

    def __init__(self) -> None:
        trt.IErrorRecorder.__init__(self)
        self._lock = threading.Lock()
        self._codes: list[trt.ErrorCodeTRT] = []
        self._words: list[str] = []

    def num_errors(self) -> int:
        """Return how many errors there are."""
        with self._lock:
            return len(self._codes)

    def get_error_code(self, arg0: int) -> "trt.ErrorCodeTRT":
        """Return the code of an error."""
        with self._lock:
            return self._codes[arg0]

    def get_error_desc(self, arg0: int) -> str:
        """Return the words of an error."""
        with self._lock:
            return self._words[arg0]

    def has_overflowed(self) -> bool:
        """Return whether errors were dropped, which is never."""
        return False

    def clear(self) -> None:
        """Forget the errors."""
        with self._lock:
            self._codes, self._words = [], []

    def report_error(self, arg0: "trt.ErrorCodeTRT", arg1: str) -> bool:
        """Take an error; the answer is that what has failed is not to go on."""
        with self._lock:
            self._codes.append(arg0)
            self._words.append(" ".join(arg1.split()))
        return True

    def need(self, done: bool, what: str) -> None:
        """Raise what TensorRT says of ``what``, and forget it, unless it is done.

        Raises:
            MemoryError: the GPU has no memory left.
            BundleError: anything else.
        """
        if done:
            return
        with self._lock:
            out_of_memory = trt.ErrorCodeTRT.FAILED_ALLOCATION in self._codes
            words = "; ".join(dict.fromkeys(self._words))[:1000] or "it does not say why"
        self.clear()
        if out_of_memory:
            raise MemoryError(words)
        raise BundleError(f"TensorRT {trt.__version__} cannot {what}: {words}")


@dataclass(frozen=True, slots=True)
class Tensor:
    """The input or output of a plan; shape: behind the batch."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of a batch."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Bucket:
    """A batch, and the optimisation profile that is tuned for it."""

    rows: int
    profile: int


class Plan:
    """What is in a plan: its input, its output, and the buckets that it was tuned for, smallest first."""

    def __init__(self, content: bytes, *, brings_runtime: bool = False) -> None:
        """Read a plan for the GPU that is current.

        brings_runtime: it is version-compatible, and has the program in it that runs it.

        Raises:
            BundleError: TensorRT refuses it, or it is no graph of a bundle.
            DeviceError: TensorRT does not start.
            MemoryError: the GPU has no memory for it.
        """
        self.recorder = Recorder()
        self._logger = _Logger()
        try:
            runtime = trt.Runtime(self._logger)
        except TypeError:  # how the bindings put a null pointer
            raise DeviceError(
                f"TensorRT {trt.__version__} does not start on this GPU: is the driver too old?"
            ) from None
        runtime.error_recorder = self.recorder  # what is made from the runtime has it too
        if brings_runtime:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(content)
        self.recorder.need(engine is not None, "read it")
        self.runtime, self.engine = runtime, engine
        tensors: dict[bool, list[Tensor]] = {True: [], False: []}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            tensors[engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT].append(_tensor(engine, name))
        if [len(tensors[True]), len(tensors[False])] != [1, 1]:
            raise BundleError(f"it has {len(tensors[True])} inputs and {len(tensors[False])} outputs, not one of each")
        (self.given,), (self.returned,) = tensors[True], tensors[False]
        buckets: dict[int, Bucket] = {}
        for profile in range(engine.num_optimization_profiles):
            largest = tuple(engine.get_tensor_profile_shape(self.given.name, profile)[2])
            rows = int(largest[0])
            buckets.setdefault(rows, Bucket(rows, profile))  # the first is the one that is tuned for just this batch
        self.buckets = sorted(buckets.values(), key=lambda bucket: bucket.rows)


def _tensor(engine: "trt.ICudaEngine", name: str) -> Tensor:
    shape = tuple(engine.get_tensor_shape(name))
    try:
        dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
    except TypeError:
        raise BundleError(f"its tensor {name} has a type that NumPy does not know") from None
    if not shape or min(shape[1:], default=1) < 1:
        raise BundleError(f"its tensor {name} has the shape {shape}; only the first axis may be open")
    return Tensor(name, shape[1:], dtype)
