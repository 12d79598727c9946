"""The building half of a TensorRT that needs no GPU: the real one's names, and plans for ONNX Runtime to execute.

Every public name and parameter here is held against the real bindings by test_contract.py. Only what begins with an
underscore is ours: ``_machine`` says what the pretended machine is and does. A plan is one line of JSON (TensorRT's
version, the GPU's capability, the shapes of each profile) and the ONNX file behind it.

It refuses what TensorRT refuses: UINT8 anywhere but at the network's edge, zero points, unknown operators and opsets,
shapes that do not fit, a network without a profile, a timing cache of another machine, builds that are told to stop.
"""

import enum
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

_HOLD_S = 60.0  # a build that waits to be cancelled, and is not


@dataclass
class _Machine:
    """What builds here.

    starts: a Builder can be made. result: a plan comes out. holds: the build goes on until it is told to stop.
    configs: of every build so far, the newest last.
    """

    version: str = "11.4.0.106"
    gpu: str = "NVIDIA H100 80GB HBM3"
    capability: str = "9.0"
    starts: bool = True
    result: bool = True
    holds: bool = False
    configs: list["IBuilderConfig"] = field(default_factory=list)


_machine = _Machine()
__version__ = _machine.version


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def __init__(self) -> None:
        self._made = True

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    def __init__(self) -> None:
        self._made = True


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 0
    PREFER_JIT_PYTHON_PLUGINS = 1
    PREFER_AOT_PYTHON_PLUGINS = 2


class BuilderFlag(enum.Enum):
    TF32 = "TF32"
    VERSION_COMPATIBLE = "VERSION_COMPATIBLE"


class MemoryPoolType(enum.Enum):
    WORKSPACE = "WORKSPACE"


class ProfilingVerbosity(enum.Enum):
    LAYER_NAMES_ONLY = "LAYER_NAMES_ONLY"
    DETAILED = "DETAILED"


class HardwareCompatibilityLevel(enum.Enum):
    NONE = "NONE"
    AMPERE_PLUS = "AMPERE_PLUS"


class ErrorCode(enum.Enum):
    MODEL_DESERIALIZE_FAILED = 3
    INVALID_NODE = 6
    UNSUPPORTED_GRAPH = 7
    UNSUPPORTED_NODE = 8
    UNSUPPORTED_NODE_DATATYPE = 11


class IHostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class ITensor:
    def __init__(self, _name: str, _shape: tuple[int, ...]) -> None:
        self._name, self._shape = _name, _shape

    @property
    def name(self) -> str:
        return self._name

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape


class INetworkDefinition:
    _onnx = b""
    _inputs: tuple[ITensor, ...] = ()
    _flags = 0

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    def get_input(self, index: int) -> ITensor | None:
        return self._inputs[index] if index < len(self._inputs) else None


class ParserError:
    _code, _desc, _name, _operator = ErrorCode.UNSUPPORTED_GRAPH, "", "", ""

    def code(self) -> ErrorCode:
        return self._code

    def desc(self) -> str:
        return self._desc

    def node_name(self) -> str:
        return self._name

    def node_operator(self) -> str:
        return self._operator


def _error(code: ErrorCode, desc: str, node: onnx.NodeProto | None = None) -> ParserError:
    error = ParserError()
    error._code, error._desc = code, desc
    if node is not None:
        error._name, error._operator = node.name, node.op_type
    return error


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        _expect(network, INetworkDefinition)
        _expect(logger, ILogger)
        self._network = network
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse(self, model: bytes, path: str | None = None) -> bool:
        try:
            graph = onnx.load_from_string(model)
            onnx.checker.check_model(graph)
        except (onnx.checker.ValidationError, DecodeError) as error:
            self._errors = [_error(ErrorCode.MODEL_DESERIALIZE_FAILED, f"Failed to parse the ONNX model\n{error}")]
            return False
        self._errors = list(_refusals(graph))
        self._network._onnx = model
        self._network._inputs = tuple(
            ITensor(each.name, tuple(dim.dim_value or -1 for dim in each.type.tensor_type.shape.dim))
            for each in graph.graph.input
        )
        return not self._errors


def _refusals(model: onnx.ModelProto) -> Iterator[ParserError]:
    """Yield what TensorRT's parser does not take (docs/operators.md of onnx-tensorrt)."""
    opset = model.opset_import[0].version
    if not 9 <= opset <= 24:
        yield _error(ErrorCode.UNSUPPORTED_GRAPH, f"opset {opset} is not supported, 9 to 24 are")
    inferred = onnx.shape_inference.infer_shapes(model).graph
    edge = {each.name for each in (*inferred.input, *inferred.output)}
    types = {each.name: each.type.tensor_type.elem_type for each in (*inferred.input, *inferred.value_info)}
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in inferred.initializer}
    for node in inferred.node:
        pixels = [name for name in node.input if types.get(name) == TensorProto.UINT8]
        if any(name not in edge for name in pixels) or (pixels and node.op_type != "Cast"):
            yield _error(ErrorCode.UNSUPPORTED_NODE_DATATYPE, "UINT8 is only a network's input or output", node)
        if node.op_type == "DynamicQuantizeLinear":
            yield _error(ErrorCode.UNSUPPORTED_NODE, "no importer for this operator", node)
        quantised = node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2
        if quantised and constants[node.input[2]].any():
            yield _error(ErrorCode.INVALID_NODE, "the zero point must be 0", node)


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:
        if not len(min) == len(opt) == len(max) or any(
            not 0 <= low <= tuned <= high for low, tuned, high in zip(min, opt, max, strict=True)
        ):
            raise ValueError(f"{input}: {min}, {opt}, {max}")
        self._shapes[input] = [tuple(min), tuple(opt), tuple(max)]

    def __bool__(self) -> bool:
        return bool(self._shapes)


class ITimingCache:
    def __init__(self, _content: bytes = b"") -> None:
        self._content = _content

    def serialize(self) -> IHostMemory:
        return IHostMemory(self._content)

    def _fits(self) -> bool:
        key = f"{_machine.version}|{_machine.gpu}|"
        return not self._content or self._content.startswith(key.encode())

    def _add(self, entry: bytes) -> None:
        key = f"{_machine.version}|{_machine.gpu}|".encode()
        self._content = (self._content or key) + hashlib.sha256(entry).hexdigest().encode()


class IBuilderConfig:
    builder_optimization_level = property(
        lambda self: self._values.get("level", 3), lambda self, value: self._set("level", value, int)
    )
    profiling_verbosity = property(
        lambda self: self._values.get("verbosity", ProfilingVerbosity.LAYER_NAMES_ONLY),
        lambda self, value: self._set("verbosity", value, ProfilingVerbosity),
    )
    hardware_compatibility_level = property(
        lambda self: self._values.get("hardware", HardwareCompatibilityLevel.NONE),
        lambda self, value: self._set("hardware", value, HardwareCompatibilityLevel),
    )
    progress_monitor = property(
        lambda self: self._values.get("monitor"), lambda self, value: self._set("monitor", value, IProgressMonitor)
    )

    def __init__(self) -> None:
        self._values: dict[str, object] = {}
        self._flags = {BuilderFlag.TF32}
        self._pools: dict[MemoryPoolType, int] = {}
        self._profiles: list[IOptimizationProfile] = []
        self._cache: ITimingCache | None = None
        self._began_with = b""

    def _set(self, name: str, value: object, kind: type) -> None:
        _expect(value, kind)
        self._values[name] = value

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        _expect(pool, MemoryPoolType)
        self._pools[pool] = pool_size

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(flag)

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        _expect(cache, ITimingCache)
        if not (ignore_mismatch or cache._fits()):
            return False
        self._cache, self._began_with = cache, cache._content
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        if not profile:
            return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1


class Builder:
    def __init__(self, logger: ILogger) -> None:
        _expect(logger, ILogger)
        if not _machine.starts:
            logger.log(ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        network = INetworkDefinition()
        network._flags = flags
        return network

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        _expect(network, INetworkDefinition)
        _expect(config, IBuilderConfig)
        _machine.configs.append(config)
        try:
            self._check(network, config)
            self._work(config)
        except ValueError as error:
            self._logger.log(ILogger.Severity.ERROR, f"IBuilder::buildSerializedNetwork: {error}\n")
            return None
        if config._cache is not None:
            config._cache._add(network._onnx)
        described = {
            "tensorrt": _machine.version,
            "capability": _machine.capability,
            "profiles": [each._shapes for each in config._profiles],
        }
        return IHostMemory(json.dumps(described).encode() + b"\n" + network._onnx)

    def _check(self, network: INetworkDefinition, config: IBuilderConfig) -> None:
        if network._flags != 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED:
            raise ValueError("the network is not strongly typed")
        if not _machine.result:
            raise ValueError("Could not find any implementation for node conv1.")
        if not config._profiles:
            raise ValueError("the network has dynamic inputs, but no optimization profile has been defined")
        for profile in config._profiles:
            for tensor in network._inputs:
                for shape in profile._shapes[tensor.name]:
                    if len(shape) != len(tensor.shape) or any(
                        wanted not in (-1, got) for wanted, got in zip(tensor.shape, shape, strict=True)
                    ):
                        raise ValueError(f"{shape} does not fit {tensor.name} {tensor.shape}")

    def _work(self, config: IBuilderConfig) -> None:
        """Go through two phases, one inside the other, as long as the monitor lets us."""
        monitor = config.progress_monitor
        if monitor is None:
            return
        monitor.phase_start("Building Engine", None, 2)
        monitor.phase_start("Tactic Selection", "Building Engine", 4)
        end, step = time.monotonic() + _HOLD_S, 0
        while step < 4 or (_machine.holds and time.monotonic() < end):
            if not monitor.step_complete("Tactic Selection", min(step, 3)):
                raise ValueError("the build was cancelled")
            step += 1
        monitor.phase_finish("Tactic Selection")
        monitor.step_complete("Building Engine", 0)
        monitor.step_complete("Building Engine", 1)
        monitor.phase_finish("Building Engine")


def _expect(value: object, kind: type) -> None:
    """Refuse as the bindings do: by a TypeError, also for one of ours whose base was never made."""
    if not isinstance(value, kind) or (kind in (ILogger, IProgressMonitor) and not hasattr(value, "_made")):
        raise TypeError(f"incompatible function arguments: {type(value).__name__}, not {kind.__name__}")
