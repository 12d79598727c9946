"""What ONNX Runtime needs to use a GPU, and one line that says what of it is missing.

Left alone, ONNX Runtime takes the CPU where a provider cannot be had, and says so on stdout and stderr only.
"""

import contextlib
import ctypes
import io
import re
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as _native

from harec_deploy.errors import MissingDependency

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
_FILES = {CUDA: "libonnxruntime_providers_cuda.so", TENSORRT: "libonnxruntime_providers_tensorrt.so"}
_TENSORRT_FILES = ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10")
_CUDNN = "libcudnn.so.9"  # is loaded by name at the first convolution, so that it is not among what the files name
_ERROR, _FATAL = 3, 4  # levels of the log, which C++ writes to stderr


def require(provider: str, runner: str, device: str) -> None:
    """Load what a provider needs from where pip puts it.

    Raises:
        MissingDependency: this build of ONNX Runtime has no such provider, or a library is missing.
    """
    purpose = f"runner {runner} on {device}"
    if provider not in onnxruntime.get_available_providers():
        raise MissingDependency(other_build(), "gpu", purpose)
    _preload(provider)
    missing = _missing(provider)
    if missing is None:
        return
    if provider == TENSORRT and re.match(r"libnv(infer|onnxparser)", missing):
        cuda = onnxruntime.cuda_version.partition(".")[0]
        needed = f"TensorRT 10, which this onnxruntime-gpu is built for ({missing})"
        wanted = f"--extra-index-url https://pypi.nvidia.com 'tensorrt-cu{cuda}>=10.13.2,<11'"
        raise MissingDependency(needed, "gpu", purpose, wanted)
    raise MissingDependency(f"onnxruntime-gpu with CUDA's libraries ({missing})", "gpu", purpose)


def other_build() -> str:
    """Return what to install in place of the builds that are here, which overwrite each other's files."""
    here = [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]
    if here == ["onnxruntime-gpu"]:
        return "onnxruntime-gpu of another version: this one has no such provider"
    told = " and ".join(here) or "another build"
    away = f"pip uninstall {' '.join(here)}" if here else "uninstall it"
    return f"onnxruntime-gpu ({told} is here, and the builds overwrite each other's files: {away} first)"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep ONNX Runtime from writing what is raised or checked anyway."""
    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(_ERROR)


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def _preload(provider: str) -> None:
    """Load the libraries that lie in other packages' folders, where the system's loader does not look."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnxruntime.preload_dlls()
    found = find_spec("tensorrt_libs") if provider == TENSORRT else None
    for folder in (found and found.submodule_search_locations) or ():
        for name in _TENSORRT_FILES:
            with contextlib.suppress(OSError):  # what is not there is named by what needs it
                ctypes.CDLL(str(Path(folder, name)), mode=ctypes.RTLD_GLOBAL)


def _missing(provider: str) -> str | None:
    """Return what keeps the provider's library from being loaded, as the system's loader says it, or None."""
    folder = Path(_native.__file__).parent
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / _FILES[provider]))
        ctypes.CDLL(_CUDNN)
    except OSError as error:
        return _reason(str(error))
    return None


def _reason(text: str) -> str:
    """Return the loader's words as "libcudart.so.13 is missing" where they are of that kind."""
    match = re.match(r"(\S+): cannot open shared object file", text)
    return f"{Path(match[1]).name} is missing" if match else " ".join(text.split())
