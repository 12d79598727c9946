"""What `harec-deploy doctor` looks at, each in a process of its own: a package that dies on import takes nothing along.

`ask` is the side that wants to know, ``main`` the process that looks. What it finds is one line of JSON.
"""

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

from harec_deploy.errors import HarecError

PATIENCE_S = 60.0
_START = "import sys, json; sys.path[:] = json.loads(sys.argv.pop()); from harec_deploy import probes; probes.main()"
# Codecs of videos in the wild, and the decoders of FFmpeg that do them: its own "av1" needs hardware.
CODECS: dict[str, tuple[str, ...]] = {
    name: (name,) for name in ("h264", "hevc", "mpeg4", "mpeg2video", "msmpeg4", "wmv2", "vp8", "vp9")
}
CODECS |= {"av1": ("libdav1d", "libaom-av1", "libgav1"), "mjpeg": ("mjpeg",), "prores": ("prores",)}
# CUDA's libraries that GPU packages load, and the package of each.
CUDA_LIBRARIES = {
    "cudart": "nvidia-cuda-runtime",
    "cublas": "nvidia-cublas",
    "cublasLt": "nvidia-cublas",
    "cudnn": "nvidia-cudnn-cu13",
    "nvrtc": "nvidia-cuda-nvrtc",
    "cufft": "nvidia-cufft",
}
_NVDEC_CODECS = {"mpeg4": 2, "h264": 4, "mjpeg": 5, "hevc": 8, "vp8": 9, "vp9": 10, "av1": 11}  # cudaVideoCodec


@dataclass(frozen=True, slots=True)
class Answer:
    """What a probe found. state: "ok"; "missing", its package is not installed; "broken", told says how."""

    state: str
    told: str = ""
    facts: dict[str, Any] | None = None


def ask(name: str, *arguments: str, patience_s: float = PATIENCE_S) -> Answer:
    """Run a probe in a process of its own, for ``patience_s`` seconds at most. Never raises for what it finds."""
    paths = json.dumps([path for path in sys.path if path])
    command = [sys.executable, "-c", _START, name, *arguments, paths]
    try:
        done = subprocess.run(command, capture_output=True, timeout=patience_s, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return Answer("broken", f"no answer in {patience_s:g} s")
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    if lines:
        return Answer(**json.loads(lines[-1]))
    if done.returncode < 0:
        return Answer("broken", f"the process died of {signal.Signals(-done.returncode).name}")
    words = done.stderr.decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(words) if line.strip()), "without a word")
    return Answer("broken", f"the process ended with status {done.returncode}: {last[:200]}")


def main() -> None:
    """Answer for the probe that the command line names."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(found: Answer) -> None:
        os.write(answers, json.dumps(asdict(found)).encode() + b"\n")

    name, *arguments = sys.argv[1:]

    def failed(_: type[BaseException], error: BaseException, __: TracebackType | None) -> None:
        answer(_failure(error, PROBES[name].module))

    sys.excepthook = failed  # whatever an import raises, and a package may raise anything
    answer(Answer("ok", facts=PROBES[name].look(*arguments)))


def _failure(error: BaseException, module: str) -> Answer:
    text = " ".join(str(error).split())[:300]
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
        return Answer("missing")
    return Answer("broken", text if isinstance(error, HarecError) else f"{type(error).__name__}: {text}")


def _gpu() -> dict[str, Any]:
    from harec_deploy.devices import cuda_devices

    return {"devices": [asdict(device) | {"device": str(device)} for device in cuda_devices()]}


class DecoderCaps(ctypes.Structure):
    """CUVIDDECODECAPS of cuviddec.h: three questions, then the answers."""

    _fields_ = [
        ("codec", ctypes.c_int),
        ("chroma_format", ctypes.c_int),
        ("bit_depth_minus_8", ctypes.c_uint),
        ("reserved1", ctypes.c_uint * 3),
        ("is_supported", ctypes.c_ubyte),
        ("nvdecs", ctypes.c_ubyte),
        ("output_format_mask", ctypes.c_ushort),
        ("max_width", ctypes.c_uint),
        ("max_height", ctypes.c_uint),
        ("max_macroblocks", ctypes.c_uint),
        ("min_width", ctypes.c_ushort),
        ("min_height", ctypes.c_ushort),
        ("reserved3", ctypes.c_uint * 11),
    ]


def _nvdec() -> dict[str, Any]:
    """Ask the driver which codecs each GPU's decoders take, 8 bits of 4:2:0."""
    from harec_deploy.devices import cuda_devices

    try:
        cuvid = ctypes.CDLL("libnvcuvid.so.1")
    except OSError:
        return {"library": False, "devices": {}}
    found: dict[str, Any] = {}
    for device in cuda_devices():
        driver, handle, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p()
        driver.cuDeviceGet(ctypes.byref(handle), device.index)
        if status := driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle):
            raise RuntimeError(f"{device} gives no context: CUDA error {status}")
        driver.cuCtxPushCurrent_v2(context)
        found[str(device)] = {name: _caps(cuvid, code) for name, code in _NVDEC_CODECS.items()}
    return {"library": True, "devices": found}


def _caps(cuvid: ctypes.CDLL, codec: int) -> dict[str, int] | None:
    """Return how many decoders take a codec, 0 where the driver does not say, and up to which size; None for none."""
    caps = DecoderCaps(codec=codec, chroma_format=1, bit_depth_minus_8=0)
    if cuvid.cuvidGetDecoderCaps(ctypes.byref(caps)) or not caps.is_supported:
        return None
    return {"nvdecs": caps.nvdecs, "max_width": caps.max_width, "max_height": caps.max_height}


def _cuda() -> dict[str, Any]:
    """Say which of CUDA's libraries are there: in a package's folder, or where the loader looks."""
    return {"libraries": {name: where for name in CUDA_LIBRARIES if (where := _library(name))}}


def _library(name: str) -> str | None:
    for folder in map(Path, sys.path):
        for found in sorted(folder.glob(f"nvidia/*/lib/lib{name}.so.*")):
            return str(found)
    for major in (13, 12, 9, 11):  # of CUDA; cuDNN's is 9, cuFFT is one behind
        try:
            ctypes.CDLL(soname := f"lib{name}.so.{major}")
        except OSError:
            continue
        return soname
    return None


def _version_of(module: str) -> Callable[[], dict[str, Any]]:
    return lambda: {"version": str(import_module(module).__version__)}


def _onnxruntime() -> dict[str, Any]:
    onnxruntime = import_module("harec_deploy.runners.onnx").onnxruntime  # by way of ours, which stops its reports
    return {"version": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()}


def _openvino() -> dict[str, Any]:
    openvino = import_module("harec_deploy.runners.openvino").openvino
    core = openvino.Core()
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    number = re.match(r"[\d.]*\d", openvino.__version__)
    return {
        "version": number[0] if number else openvino.__version__,
        "devices": list(core.available_devices),
        "cpu_precisions": sorted(each.lower() for each in capabilities if each in ("FP32", "FP16", "BF16", "INT8")),
    }


def _torch() -> dict[str, Any]:
    torch = import_module("torch")
    return {"version": torch.__version__, "cuda": torch.version.cuda, "cuda_available": torch.cuda.is_available()}


def _pyav() -> dict[str, Any]:
    import av
    from av.codec.codec import Codec

    there = set()
    for name in {each for names in CODECS.values() for each in names}:
        try:
            Codec(name, "r")
        except ValueError:
            continue
        there.add(name)
    return {
        "version": av.__version__,
        "ffmpeg": str(getattr(av, "ffmpeg_version_info", "?")),
        "decoders": [codec for codec, names in CODECS.items() if there.intersection(names)],
        "missing": [codec for codec, names in CODECS.items() if not there.intersection(names)],
    }


def _choice(bundle: str = "") -> dict[str, Any]:
    """Say what `auto` stands for here; with a bundle, what it takes after measuring."""
    from harec_deploy.devices import resolve
    from harec_deploy.label.decoders import choose_decoders
    from harec_deploy.runners import installed

    decoders = choose_decoders("auto", "auto")
    facts: dict[str, Any] = {
        "decoder": decoders.name,
        "decoder_reason": decoders.reason,
        "devices": list(resolve("auto")),
    }
    if bundle:
        from harec_deploy.loading import load

        recognizer = load(bundle)
        runner = recognizer.execution.runner
        return facts | {
            "device": runner.device,
            "runner": runner.name,
            "precision": recognizer.execution.precision,
            "variant": recognizer.execution.variant,
            "reason": recognizer.reason,
        }
    return facts | {"runners": {place: [each.name for each in installed(place)] for place in resolve("auto")}}


@dataclass(frozen=True, slots=True)
class Probe:
    """What looks, and the module without which the answer is "missing"."""

    look: Callable[..., dict[str, Any]]
    module: str = ""


PROBES = {
    "gpu": Probe(_gpu),
    "nvdec": Probe(_nvdec),
    "cuda": Probe(_cuda),
    "cuda_core": Probe(_version_of("cuda.core"), "cuda.core"),
    "tensorrt": Probe(_version_of("tensorrt"), "tensorrt"),
    "dali": Probe(_version_of("nvidia.dali"), "nvidia.dali"),
    "onnxruntime": Probe(_onnxruntime, "onnxruntime"),
    "openvino": Probe(_openvino, "openvino"),
    "torch": Probe(_torch, "torch"),
    "pyav": Probe(_pyav, "av"),
    "choice": Probe(_choice),
}
