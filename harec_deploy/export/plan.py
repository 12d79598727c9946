"""An ONNX file becomes a TensorRT plan, by one path for TensorRT 10.13 to 11.4.

The types in the ONNX file are the precision: networks are strongly typed, and no precision flag is ever set. Of
TensorRT only such names are used as both ends of that range have; tests/tensorrt holds every call here against them.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import tensorrt as trt

from harec_deploy.devices import CudaDevice
from harec_deploy.errors import BundleError, HarecError, MissingDependency
from harec_deploy.export.timing import TimingCache
from harec_deploy.spec import EngineSpec

Profile = tuple[int, int, int]  # smallest, tuned and largest batch
Bar = Callable[[float, str], None]  # the share of the work that is done, 0 to 1, and what is being done

VERSION: str = trt.__version__
_ERRORS_KEPT = 3
_CTRL_C_S = 0.2  # how often the thread that Ctrl-C reaches looks whether the build has ended


def build(
    onnx: Path,
    profiles: Sequence[Profile],
    engine: EngineSpec,
    *,
    device: CudaDevice,
    timing: TimingCache,
    bar: Bar = lambda share, note: None,
) -> bytes:
    """Return the plan of a self-contained ONNX file with one input, whose first axis is the batch.

    profiles: TensorRT tunes kernels for each. engine: the settings to build with; its names and versions are not read.
    bar: is called from another thread. Its share may fall: TensorRT does not say how much is still to come.

    Raises:
        BundleError: TensorRT cannot read the file or has no kernels for it; its own words are in the message.
        HarecError: TensorRT does not start on this machine.
        MissingDependency: building on another GPU than the first needs cuda-core.
        KeyboardInterrupt: Ctrl-C; the build ends at its next step.
    """
    monitor, log = _Monitor(bar), _Log()
    with ThreadPoolExecutor(1, thread_name_prefix="tensorrt") as pool:
        # TensorRT may call back from any thread, or for a long time not at all: the main thread stays free for Ctrl-C.
        work = pool.submit(lambda: _build(onnx, profiles, engine, device, timing, monitor, log))
        try:
            while not work.done():
                wait([work], timeout=_CTRL_C_S)
        except KeyboardInterrupt:
            monitor.stop.set()
            raise
    return work.result()


def _build(
    onnx: Path,
    profiles: Sequence[Profile],
    engine: EngineSpec,
    device: CudaDevice,
    timing: TimingCache,
    monitor: "_Monitor",
    log: "_Log",
) -> bytes:
    _use(device)
    try:
        builder = trt.Builder(log)
    except (TypeError, RuntimeError):  # TypeError is how the bindings put a null pointer
        raise HarecError(f"TensorRT {VERSION} does not start on {device} ({device.name}): {_told(log)}") from None
    # Networks of TensorRT 11 are always strongly typed; those of 10 only when asked.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _read(network, onnx, log)
    config = _config(builder, engine)
    cache = _timing_cache(config, timing)  # TensorRT does not keep it alive
    for profile in profiles:
        if not _add_profile(builder, network, config, profile):
            raise BundleError(f"TensorRT {VERSION} refuses batches of {profile} for {onnx.name}: {_told(log)}")
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BundleError(f"TensorRT {VERSION} builds no plan of {onnx.name} on {device.name}: {_told(log)}")
    measured = config.get_timing_cache().serialize()
    if measured is not None:
        timing.write(bytes(measured))
    del cache
    return bytes(plan)


def _use(device: CudaDevice) -> None:
    """Send this thread's CUDA calls to ``device``; of themselves they go to the first."""
    if device.index == 0:
        return
    try:
        from cuda.core import Device
    except ModuleNotFoundError as error:
        raise MissingDependency(error.name or "cuda.core", "tensorrt", f"building on {device}") from None
    Device(device.index).set_current()


def _read(network: trt.INetworkDefinition, onnx: Path, log: "_Log") -> None:
    """Read the file into the network. Raises BundleError with all that the parser says."""
    parser = trt.OnnxParser(network, log)
    # From bytes, so that no path in the file could be followed.
    if not parser.parse(onnx.read_bytes()):
        faults = "; ".join(_fault(parser.get_error(index)) for index in range(parser.num_errors))
        raise BundleError(f"TensorRT {VERSION} cannot read {onnx.name}: {faults or _told(log)}")
    shape = tuple(network.get_input(0).shape) if network.num_inputs == 1 else ()
    if shape[:1] != (-1,) or -1 in shape[1:]:
        raise BundleError(f"{onnx.name} must have one input of any batch first, got {network.num_inputs}, {shape}")


def _fault(error: trt.ParserError) -> str:
    node = f"node {error.node_name()!r} ({error.node_operator()}): " if error.node_operator() else ""
    return f"{node}{' '.join(error.desc().split())} [{error.code().name}]"


def _config(builder: trt.Builder, engine: EngineSpec) -> trt.IBuilderConfig:
    config = builder.create_builder_config()
    if engine.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, engine.workspace_bytes)
    config.builder_optimization_level = engine.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # layers can be inspected by name; costs no speed
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: fp32 would have the mantissa of fp16
    if engine.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if engine.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    return config


def _timing_cache(config: trt.IBuilderConfig, timing: TimingCache) -> trt.ITimingCache:
    """Give the config what was measured before, or an empty cache. The result must live until the build ends."""
    cache = config.create_timing_cache(timing.read())
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        timing.ignore("is of another TensorRT or GPU")
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _add_profile(
    builder: trt.Builder, network: trt.INetworkDefinition, config: trt.IBuilderConfig, batches: Profile
) -> bool:
    """Have kernels tuned for these batches of the network's input; False where TensorRT refuses them."""
    tensor = network.get_input(0)
    low, tuned, high = ((batch, *tuple(tensor.shape)[1:]) for batch in batches)
    profile = builder.create_optimization_profile()
    try:
        profile.set_shape(tensor.name, low, tuned, high)
    except ValueError:
        return False
    # bool() is how a profile says whether its shapes fit together; -1 is how the config refuses it
    return bool(profile) and config.add_optimization_profile(profile) >= 0


def _told(log: "_Log") -> str:
    return "; ".join(log.errors) or "it gives no reason"


class _Log(trt.ILogger):  # type: ignore[misc]
    """Keeps TensorRT's last errors for our own message. All threads of a build write to it."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: deque[str] = deque(maxlen=_ERRORS_KEPT)

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
            self.errors.append(" ".join(msg.split()))


class _Monitor(trt.IProgressMonitor):  # type: ignore[misc]
    """Tells a bar how far a build is, and ends the build once ``stop`` is set."""

    def __init__(self, bar: Bar) -> None:
        trt.IProgressMonitor.__init__(self)
        self.stop = threading.Event()
        self._bar = bar
        self._phases = Phases()
        self._lock = threading.Lock()

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        with self._lock:
            self._phases.start(phase_name, parent_phase, num_steps)
            self._show()

    def step_complete(self, phase_name: str, step: int) -> bool:
        with self._lock:
            self._phases.step(phase_name, step)
            self._show()
        return not self.stop.is_set()

    def phase_finish(self, phase_name: str) -> None:
        with self._lock:
            self._phases.finish(phase_name)

    def _show(self) -> None:
        self._bar(self._phases.share, self._phases.note)


@dataclass(slots=True)
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


@dataclass(slots=True)
class Phases:
    """The phases of a build that are under way; TensorRT names them as they begin, some inside a step of another."""

    live: dict[str, _Phase] = field(default_factory=dict)

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Take up a phase; ``parent`` is None for an outermost one."""
        self.live[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str, step: int) -> None:
        """Note that step ``step``, from 0 on, of a phase has ended."""
        if name in self.live:
            self.live[name].done = step + 1

    def finish(self, name: str) -> None:
        """Forget a phase; it may end before its last step."""
        self.live.pop(name, None)

    @property
    def share(self) -> float:
        """How much of the newest outermost phase is done, 0 to 1; a phase inside a step counts as a part of it."""
        outermost = [name for name, phase in self.live.items() if phase.parent is None]
        return self._done(outermost[-1]) if outermost else 0.0

    @property
    def note(self) -> str:
        """The newest phase's name."""
        return next(reversed(self.live), "")

    def _done(self, name: str) -> float:
        phase = self.live[name]
        inside = sum(self._done(child) for child, each in self.live.items() if each.parent == name and child != name)
        return min((phase.done + min(inside, 1.0)) / phase.steps, 1.0)
