"""TensorRT plans: which of them run here, and what is said of those that do not."""

import hashlib
import re
from pathlib import Path

import tensorrt as trt

from harec_deploy import cuda
from harec_deploy.bundle import Bundle
from harec_deploy.devices import CudaDevice, cuda_device
from harec_deploy.errors import BundleError, PlanRefused
from harec_deploy.runners.tensorrt_graph import PlanGraph
from harec_deploy.runners.tensorrt_plan import Plan
from harec_deploy.spec import EngineSpec, Variant

AMPERE = (8, 0)  # the oldest GPU that a hardware-compatible plan runs on


class TensorRTRunner:
    """Loads TensorRT plans onto one GPU.

    notes: what a person should know of the last variant that was loaded.
    """

    name = "tensorrt"
    version: str = trt.__version__
    batch_frames = 128  # the largest bucket of an export; of more, one is copied while another is computed

    def __init__(self, device: str) -> None:
        """Open a GPU, "cuda:N". Raises UsageError where there is none, DeviceError if it cannot be opened."""
        self.device = device
        self.notes: list[str] = []
        self._device = cuda_device(device)
        self.hardware = self._device.name
        self._gpu = cuda.Gpu(self._device.index)

    def precisions(self, variant: Variant) -> tuple[str, ...]:
        """Return the precision of plans, of those too that do not fit: it is for ``load`` to say why."""
        return (variant.precision,) if variant.engine else ()

    def load(self, bundle: Bundle, variant: str, *, precision: str, threads: int | None = None) -> dict[str, PlanGraph]:
        """Load the plans of a variant.

        Raises:
            PlanRefused: they were built by another TensorRT, or for another GPU.
            BundleError: a file was changed, TensorRT refuses it, or the GPU has no memory for it.
            DeviceError: the GPU or its driver fails.
        """
        described = bundle.spec.variants[variant]
        engine = described.engine
        if engine is None:
            raise BundleError(f"{variant} has no TensorRT plans: name another runner")
        again = f"harec-deploy export {bundle.folder} --tensorrt --precision {described.precision}"
        if reason := misfit(engine, self._device):
            told = f"{variant} was built {reason}: build it again with harec-deploy label ... --rebuild, or {again}"
            raise PlanRefused(told, variant, self.device)
        self.notes = []
        if engine.gpu != self.hardware:
            self.notes.append(
                f"{variant} was tuned on {engine.gpu}, this is {self.hardware}: an export here may be faster"
            )
        self._gpu.use()
        graphs = {}
        for name, file in described.graphs.items():
            path = bundle.path(file)
            content = _read(path, file.sha256)
            try:
                graphs[name] = self._fitted(name, Plan(content, brings_runtime=engine.version_compatible))
            except MemoryError as error:
                raise BundleError(f"{path} cannot be used: {self.device} has no memory for it: {error}") from None
            except BundleError as error:
                raise BundleError(f"{path} cannot be used: {error}; build it again with {again}") from None
        return graphs

    def _fitted(self, name: str, plan: Plan) -> PlanGraph:
        """Return the graph of a plan, without its largest buckets where the GPU has no memory for them."""
        buckets = plan.buckets
        while True:
            try:
                graph = PlanGraph(self._gpu, plan, buckets)
                break
            except MemoryError as error:
                if len(buckets) == 1:
                    least = f"{self.device} has no memory for batches of {buckets[0].rows}: {error}"
                    raise BundleError(least) from None
                buckets = buckets[:-1]
        if len(buckets) < len(plan.buckets):
            wanted = plan.buckets[-1].rows
            self.notes.append(
                f"{name} in batches of {buckets[-1].rows}, not {wanted}: {self.device} has no memory for more"
            )
        if graph.unrecorded:
            self.notes.append(f"{name} without CUDA graphs: {graph.unrecorded}")
        return graph


def misfit(engine: EngineSpec, gpu: CudaDevice) -> str:
    """Return with what plans were built, and what is here, if the two do not go together; else ""."""
    newer = _numbers(trt.__version__) > _numbers(engine.tensorrt)
    if engine.tensorrt != trt.__version__ and not (engine.version_compatible and newer):
        return f"by TensorRT {engine.tensorrt}, here is {trt.__version__}"
    capability = "{}.{}".format(*gpu.capability)
    if engine.capability != capability and not (engine.hardware_compatible and gpu.capability >= AMPERE):
        built = f"for compute capability {engine.capability} ({engine.gpu})"
        return f"{built}, {gpu} has {capability} ({gpu.name})"
    if engine.gpu != gpu.name and not engine.hardware_compatible:  # it may run, with kernels that were timed elsewhere
        return f"for {engine.gpu}, {gpu} is {gpu.name}"
    return ""


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _read(path: Path, sha256: str) -> bytes:
    """Return the bytes of a plan, if they still are the bundle's: a plan is a program, and TensorRT runs it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        told = f"its SHA-256 begins with {found[:12]}, that in bundle.json with {sha256[:12]}"
        raise BundleError(f"{path} was changed after the bundle was verified: {told}; copy the whole bundle again")
    return content
