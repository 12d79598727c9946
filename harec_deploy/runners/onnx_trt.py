"""ONNX Runtime's own TensorRT provider: engines that it builds at the first load, and keeps."""

import os
from pathlib import Path
from typing import Any

from harec_deploy.errors import BundleError
from harec_deploy.files import cache_folder, sha256
from harec_deploy.runners import Graph
from harec_deploy.runners.onnx import CUDA_BATCH_FRAMES, BoundGraph, OnnxRunner, cuda_options
from harec_deploy.runners.onnx_providers import CUDA, TENSORRT, require

_FLAGS = {"fp16": "trt_fp16_enable", "bf16": "trt_bf16_enable", "int8": "trt_int8_enable"}


class OnnxTensorRTRunner(OnnxRunner):
    """Loads ONNX files into ONNX Runtime's TensorRT provider, which needs TensorRT 10.

    The first load builds an engine of each file, which takes minutes; the next ones find it in the user's cache folder.
    """

    name = "onnx-trt"

    def __init__(self, device: str = "cuda:0") -> None:
        super().__init__(device)
        require(TENSORRT, self.name, device)
        # TensorRT takes TF32 for fp32 unless told otherwise, and the provider has no option for it.
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")

    def load_file(self, path: Path, precision: str = "fp32", threads: int | None = None) -> Graph:
        """Load one ONNX file, building its engine where there is none. Raises BundleError for one that is refused."""
        model = path.read_bytes()
        # The file says what it takes; nothing is made of it on the CPU but that.
        (taken,) = self._session(path, model, ["CPUExecutionProvider"], threads, optimise=False).get_inputs()
        folder = engine_folder(path, f"{self.version}-{precision}")
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise BundleError(f"no engine can be kept in {folder}: {error.strerror}; set XDG_CACHE_HOME") from None
        options = tensorrt_options(self.device, precision, (taken.name, taken.shape[1:]), folder)
        session = self._session(path, model, [(TENSORRT, options), (CUDA, cuda_options(self.device))], threads)
        return BoundGraph(f"{path.name} on {self.device}", session, self.device, CUDA_BATCH_FRAMES)


def engine_folder(path: Path, how: str) -> Path:
    """Return where the engines of one ONNX file are kept, of nobody else's.

    The names that the provider gives engines do not depend on the weights: in a folder for all, two models of one
    architecture would take each other's.
    """
    return cache_folder() / "onnx-trt" / f"{sha256(path)[:32]}-{how}"


def tensorrt_options(device: str, precision: str, taken: tuple[str, list[Any]], folder: Path) -> dict[str, str]:
    """Return the options of the TensorRT provider.

    taken: name of the graph's input, and its shape behind the first axis.
    folder: for its engines; what they teach about timing is kept beside it, for all.
    https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html
    """
    name, row = taken
    shapes = {
        bound: f"{name}:{'x'.join(map(str, (count, *row)))}"
        for bound, count in (("min", 1), ("opt", CUDA_BATCH_FRAMES), ("max", CUDA_BATCH_FRAMES))
    }
    options = {
        "device_id": device.partition(":")[2],
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder.parent),
        **{f"trt_profile_{bound}_shapes": shape for bound, shape in shapes.items()},
    }
    return options | ({_FLAGS[precision]: "1"} if precision in _FLAGS else {})
