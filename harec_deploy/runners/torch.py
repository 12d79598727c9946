"""PyTorch: the bundle's own weights, in fp32 the reference of every proof, and a fast way on a GPU without TensorRT."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from harec_deploy.bundle import Bundle
from harec_deploy.devices import CudaDevice, cuda_device
from harec_deploy.errors import BundleError, MissingDependency
from harec_deploy.models import FramewiseModel, from_bundle
from harec_deploy.models.encoders import one_line
from harec_deploy.runners import Graph
from harec_deploy.runners.parts import CPU_FRAMES, Parts, cpu_rows
from harec_deploy.runners.torch_cuda import CudaGraph, Rows
from harec_deploy.spec import WEIGHTS_VARIANT, Variant

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CUDA_BATCH_FRAMES = 128


class _InType(nn.Module):
    """A part of a model that computes in a coarser type; it takes and gives float32."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = module.to(dtype)
        self.dtype = dtype

    def forward(self, pixels: Tensor) -> Tensor:
        """Return what the module gives."""
        features: Tensor = self.module(pixels.to(self.dtype))
        return features.float()


class _HostGraph:
    def __init__(self, name: str, module: nn.Module, rows: Rows, threads: int | None) -> None:
        self._parts = Parts(name, cpu_rows((None, *rows.shape)))
        self._module = module
        self._rows = rows
        self._threads = threads

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        self._rows.expect(batch)
        return np.concatenate(self._parts.feed(batch, self._run))

    def _run(self, part: NDArray[Any]) -> NDArray[np.float32]:
        # PyTorch shares the memory, and takes none that is read-only or runs backwards.
        tensor = torch.from_numpy(np.require(part, requirements=["C", "W"]))
        try:
            with torch.inference_mode(), _threads(self._threads):
                result: NDArray[np.float32] = self._module(tensor).numpy()
        except RuntimeError as error:
            raise BundleError(f"PyTorch cannot run the graph: {one_line(error)}") from None
        return result


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Compute with so many threads; PyTorch has one number for the whole process, so it is put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class TorchRunner:
    """Executes the weights of a bundle; the variant has no files."""

    name = "torch"
    version = str(torch.__version__)
    compiles = False

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.hardware = ""
        self.notes: list[str] = []
        self.batch_frames = CPU_FRAMES
        if device != "cpu":
            gpu = cuda_device(device)
            _require_cuda(self.name, gpu)
            self.hardware = gpu.name
            self.batch_frames = CUDA_BATCH_FRAMES

    def precisions(self, variant: Variant) -> tuple[str, ...]:
        """Return the types that the backbone can compute in here; its normalisation and the head stay in fp32."""
        if variant.graphs:
            return ()
        return ("fp32", "bf16") if self.device == "cpu" else ("fp32", "fp16", "bf16")

    def load(self, bundle: Bundle, variant: str, *, precision: str, threads: int | None = None) -> dict[str, Graph]:
        """Load the weights. Raises BundleError for weights or a precision that do not fit.

        threads: of the CPU; by default what PyTorch is set to.
        On a GPU this turns TF32 off for the whole process: fp32 is to mean fp32.
        """
        if variant != WEIGHTS_VARIANT or precision not in TYPES:
            raise BundleError(f"PyTorch executes the variant {WEIGHTS_VARIANT} in fp32, fp16 or bf16, not {variant}")
        model = from_bundle(bundle)
        if precision != "fp32":
            model.encoder.backbone = _InType(model.encoder.backbone, TYPES[precision])
        if self.compiles:
            # On a GPU batches come in few sizes; on the CPU in any, and each would be compiled anew.
            model.encoder.compile(dynamic=self.device == "cpu")
        if self.device != "cpu":
            torch.backends.cuda.matmul.fp32_precision = "ieee"
            torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
            torch.backends.cudnn.rnn.fp32_precision = "ieee"  # type: ignore[attr-defined]
        try:
            return {
                name: self._graph(f"{name} in torch {precision}", module.to(self.device), rows, threads)
                for name, (module, rows) in _graphs(model, bundle).items()
            }
        except RuntimeError as error:
            raise BundleError(f"PyTorch cannot load the weights on {self.device}: {one_line(error)}") from None

    def _graph(self, name: str, module: nn.Module, rows: Rows, threads: int | None) -> Graph:
        if self.device == "cpu":
            return _HostGraph(name, module, rows, threads)
        return CudaGraph(f"{name} on {self.device}", module, rows, torch.device(self.device), CUDA_BATCH_FRAMES)


class CompiledTorchRunner(TorchRunner):
    """Executes the weights by what torch.compile makes of the encoder: a runner with proofs of its own.

    Compiling takes up to minutes, and a C++ compiler, or Triton on a GPU. An LSTM gains nothing by it.
    """

    name = "torch-compile"
    compiles = True


def _graphs(model: nn.Module, bundle: Bundle) -> dict[str, tuple[nn.Module, Rows]]:
    """Return the graphs of a frame-wise or a clip-wise model, and what each takes."""
    spec = bundle.spec
    frame, count = (spec.size.height, spec.size.width, 3), spec.sampling.frames
    if isinstance(model, FramewiseModel):
        return {
            "encoder": (model.encoder, Rows("uint8", frame)),
            "head": (model.head, Rows("float32", (count, spec.feature_dim))),
        }
    return {"model": (model, Rows("uint8", (count, *frame)))}


def _require_cuda(name: str, gpu: CudaDevice) -> None:
    """Raise MissingDependency where PyTorch cannot use the GPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of what is raised here
        if torch.cuda.is_available():
            return
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU only"
    served = ".".join(map(str, gpu.driver))
    here = f"torch {torch.__version__}, which is here, is built for {built}; the driver serves CUDA {served}"
    raise MissingDependency(f"torch in a build for this GPU ({here})", "torch", f"runner {name} on {gpu}")
