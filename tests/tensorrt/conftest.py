"""A machine with the fake TensorRT and a pretended GPU."""

import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from harec_deploy import cuda, devices
from harec_deploy.devices import CudaDevice
from harec_deploy.export import onnx as graphs
from tests.tensorrt import fake_builder, fake_cuda, fake_runtime

OURS = tuple(f"harec_deploy.runners.tensorrt{part}" for part in ("", "_graph", "_plan"))  # made of the fake's classes
H100 = CudaDevice(0, "NVIDIA H100 80GB HBM3", (9, 0), 80 << 30, (13, 0))
A100 = CudaDevice(0, "NVIDIA A100-SXM4-40GB", (8, 0), 40 << 30, (13, 0))
V100 = CudaDevice(0, "Tesla V100-SXM2-16GB", (7, 0), 16 << 30, (12, 9))
ON_TENSORRT = "harec_deploy.export.plan"  # bound to the TensorRT that it found


def fake_tensorrt() -> types.ModuleType:
    """Return a module ``tensorrt`` with all names of the fake."""
    module = types.ModuleType("tensorrt")
    vars(module).update({name: value for name, value in vars(fake_runtime).items() if not name.startswith("__")})
    module.__version__ = fake_runtime.__version__
    return module


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_cuda.Machine]:
    """The fake GPU; what it has and can do may be changed before something is loaded."""
    made = fake_cuda.Machine()
    monkeypatch.setattr(fake_cuda, "MACHINE", made)
    monkeypatch.setattr(cuda, "Gpu", fake_cuda.Gpu)
    monkeypatch.setattr(devices, "cuda_devices", lambda: (fake_cuda.GPU,))
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt())
    for name in OURS:
        sys.modules.pop(name, None)
    yield made
    for name in OURS:
        sys.modules.pop(name, None)


class Site:
    """The pretended machine; what the fake does is set on ``machine``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        self._monkeypatch = monkeypatch
        self.cache = cache
        self.machine = fake_builder._Machine()
        monkeypatch.setattr(fake_builder, "_machine", self.machine)
        self.gpu(H100)

    def gpu(self, *gpus: CudaDevice) -> None:
        """Have these GPUs, and no other."""
        self._monkeypatch.setattr(devices, "cuda_devices", lambda: gpus)
        for gpu in gpus[:1]:
            self.machine.gpu, self.machine.capability = gpu.name, ".".join(map(str, gpu.capability))
            self._monkeypatch.setattr(fake_runtime, "CAPABILITY", self.machine.capability)


@pytest.fixture
def quick_graphs(exported: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Have the fp32 graphs copied, which takes torch seconds to write again; returns the types that were asked for."""
    asked = []

    def write(model: object, spec: object, folder: Path, **types: str) -> dict[str, Path]:
        asked.append(types)
        names = ("encoder", "head")
        return {name: Path(shutil.copy(exported / f"onnx-fp32/{name}.onnx", folder)) for name in names}

    monkeypatch.setattr(graphs, "write_graphs", write)
    return asked


@pytest.fixture
def site(machine: fake_cuda.Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    """A TensorRT that builds, and runs what it has built on the fake GPU."""
    building = {name: value for name, value in vars(fake_builder).items() if name[:1] != "_"}
    vars(sys.modules["tensorrt"]).update(building, __version__=fake_builder.__version__)
    monkeypatch.delitem(sys.modules, ON_TENSORRT, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield Site(monkeypatch, tmp_path / "cache/harec-deploy/tensorrt")
    sys.modules.pop(ON_TENSORRT, None)
