"""The runtime half of a ``tensorrt`` whose engines run ONNX in ONNX Runtime, on the memory of ``fake_cuda``.

A plan is a line of JSON, {"tensorrt": version, "capability": "9.0", "profiles": [{input: [min, opt, max]}, ...]}, and
the bytes of an ONNX file. What TensorRT refuses is refused: shapes outside the profile, memory that is not aligned or
not on the device, work on the default stream, recording before the first run, a context that two threads use at once.
"""

import ctypes
import enum
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime

from tests.tensorrt import fake_cuda

__version__ = "11.4.0.106"
CAPABILITY = "9.0"  # of the fake GPU
ROW_SCRATCH_BYTES = 1000  # that a context needs for each row of its profile's largest batch


def plan(onnx: bytes, profiles: Sequence[dict[str, Any]], **fields: object) -> bytes:
    """Return a plan. fields: replace what its first line says."""
    said = {"tensorrt": __version__, "capability": CAPABILITY, "profiles": list(profiles)} | fields
    return json.dumps(said).encode() + b"\n" + onnx


class ErrorCodeTRT(enum.Enum):
    SUCCESS = 0
    UNSPECIFIED_ERROR = 1
    INTERNAL_ERROR = 2
    INVALID_ARGUMENT = 3
    INVALID_CONFIG = 4
    FAILED_ALLOCATION = 5
    FAILED_INITIALIZATION = 6
    FAILED_EXECUTION = 7
    FAILED_COMPUTATION = 8
    INVALID_STATE = 9
    UNSUPPORTED_STATE = 10


class DataType(enum.Enum):
    FLOAT = "tensor(float)"
    HALF = "tensor(float16)"
    BF16 = "tensor(bfloat16)"
    INT8 = "tensor(int8)"
    INT32 = "tensor(int32)"
    INT64 = "tensor(int64)"
    UINT8 = "tensor(uint8)"
    BOOL = "tensor(bool)"


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


_NUMPY = {
    DataType.FLOAT: np.float32,
    DataType.HALF: np.float16,
    DataType.INT8: np.int8,
    DataType.INT32: np.int32,
    DataType.INT64: np.int64,
    DataType.UINT8: np.uint8,
    DataType.BOOL: np.bool_,
}


def nptype(trt_type: DataType) -> type:
    if trt_type not in _NUMPY:
        raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
    return _NUMPY[trt_type]


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def __init__(self) -> None:
        self._made = True

    def log(self, severity: "ILogger.Severity", msg: str) -> None:
        raise NotImplementedError


class IErrorRecorder:
    def __init__(self) -> None:
        self._made = True

    def report_error(self, arg0: ErrorCodeTRT, arg1: str) -> bool:
        raise NotImplementedError


class _Reporting:
    """What hands its error recorder down to what is made from it."""

    error_recorder: IErrorRecorder | None = None

    def _refuse(self, code: ErrorCodeTRT, words: str) -> bool:
        if self.error_recorder is not None:
            self.error_recorder.report_error(code, words)
        return False


class Runtime(_Reporting):
    def __init__(self, logger: ILogger) -> None:
        assert logger._made, "ILogger.__init__ was not called"
        self.logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> "ICudaEngine | None":
        assert fake_cuda.MACHINE.current, "no GPU is current"
        first, _, onnx = bytes(serialized_engine).partition(b"\n")
        try:
            said = json.loads(first)
            session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        except Exception:  # noqa: BLE001 - whatever is wrong with it, TensorRT says this
            self._refuse(ErrorCodeTRT.INTERNAL_ERROR, "IRuntime::deserializeCudaEngine: Magic tag does not match")
            return None
        if said["tensorrt"] != __version__ and not (said.get("version_compatible") and self.engine_host_code_allowed):
            self._refuse(ErrorCodeTRT.INTERNAL_ERROR, "stdVersionRead == kSERIALIZATION_VERSION failed")
            return None
        if said["capability"] != CAPABILITY and not said.get("hardware_compatible"):
            self._refuse(ErrorCodeTRT.INTERNAL_ERROR, "the engine plan file is generated on an incompatible device")
            return None
        return ICudaEngine(self, said, session)


class ICudaEngine(_Reporting):
    # For tests: called in the middle of each execution.
    _while_running: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, runtime: Runtime, said: dict[str, Any], session: onnxruntime.InferenceSession) -> None:
        self.runtime, self.error_recorder, self.session = runtime, runtime.error_recorder, session
        self.profiles = said["profiles"]
        self.inputs, self.outputs = session.get_inputs(), session.get_outputs()

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return str([*self.inputs, *self.outputs][index].name)

    def _tensor(self, name: str) -> Any:
        return next(tensor for tensor in [*self.inputs, *self.outputs] if tensor.name == name)

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if self._tensor(name) in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self._tensor(name).type)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(length if isinstance(length, int) else -1 for length in self._tensor(name).shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.profiles[profile_index][name]]

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return ROW_SCRATCH_BYTES * int(max(shapes[2][0] for shapes in self.profiles[profile_index].values()))

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy.STATIC
    ) -> "IExecutionContext":
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED, "the fake has no memory of its own"
        return IExecutionContext(self)


class IExecutionContext(_Reporting):
    def __init__(self, engine: ICudaEngine) -> None:
        self.engine, self.error_recorder = engine, engine.error_recorder
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch = (0, 0)
        self.runs = 0
        self.busy = threading.Lock()

    def _bad(self, words: str) -> bool:
        return self._refuse(ErrorCodeTRT.INVALID_ARGUMENT, f"IExecutionContext: {words}")

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < self.engine.num_optimization_profiles:
            return self._bad(f"profile {profile_index} of {self.engine.num_optimization_profiles}")
        self.shapes.clear()
        fake_cuda.MACHINE.stream(stream_handle).put(lambda: setattr(self, "profile", profile_index))
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self.profile is None:
            return self._bad("no profile is chosen, or its stream was not waited for")
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        if len(shape) != len(low) or not all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
            return self._bad(f"{name} {shape} is not in the profile, {low} to {high}")
        self.shapes[name] = tuple(shape)
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        assert self.profile is not None
        needed = self.engine.get_device_memory_size_for_profile_v2(self.profile)
        if memory % 256 or size < needed or not fake_cuda.MACHINE.lies_on_device(memory, size):
            self._bad(f"device memory of {size} bytes at {memory:#x}, {needed} are needed")
        else:
            self.scratch = (memory, size)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if memory % 256:
            return self._bad(f"{name} at {memory:#x} is not aligned")
        self.addresses[name] = memory
        return True

    def infer_shapes(self) -> list[str]:
        return [tensor.name for tensor in self.engine.inputs if tensor.name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        rows = next(iter(self.shapes.values()), (-1,))[0]
        return self.shapes.get(name) or (rows, *self.engine.get_tensor_shape(name)[1:])

    def execute_async_v3(self, stream_handle: int) -> bool:
        if stream_handle == 0:
            return self._bad("the default stream")
        if not self.busy.acquire(blocking=False):
            return self._bad("two threads at once")
        try:
            self.engine._while_running()
            return self._execute(fake_cuda.MACHINE.stream(stream_handle))
        finally:
            self.busy.release()

    def _execute(self, stream: fake_cuda.Stream) -> bool:
        if self.infer_shapes() or not self.scratch[0]:
            return self._bad("shapes or device memory are missing")
        if stream.recording is not None and not self.runs:
            return self._refuse(ErrorCodeTRT.INVALID_STATE, "a first run cannot be recorded")
        arrays = {}
        for tensor in [*self.engine.inputs, *self.engine.outputs]:
            shape, dtype = self.get_tensor_shape(tensor.name), np.dtype(nptype(DataType(tensor.type)))
            address, size = self.addresses.get(tensor.name, 0), int(np.prod(shape)) * dtype.itemsize
            if not fake_cuda.MACHINE.lies_on_device(address, size):
                return self._bad(f"{size} bytes for {tensor.name} at {address:#x} are not on the device")
            arrays[tensor.name] = _at(address, size).view(dtype).reshape(shape)
        scratch = _at(*self.scratch)
        self.runs += 1
        stream.put(lambda: self._compute(arrays, scratch))
        return True

    def _compute(self, arrays: dict[str, np.ndarray], scratch: np.ndarray) -> None:
        assert fake_cuda.MACHINE.lies_on_device(scratch.ctypes.data, scratch.nbytes), "the scratch memory was freed"
        scratch.fill(0xEE)
        names = [tensor.name for tensor in self.engine.outputs]
        given = {tensor.name: arrays[tensor.name].copy() for tensor in self.engine.inputs}
        for name, result in zip(names, self.engine.session.run(names, given), strict=True):
            arrays[name][...] = result


def _at(address: int, size_bytes: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(address))
