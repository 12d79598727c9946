"""A machine with the fake TensorRT and a pretended GPU."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from harec_deploy import devices
from harec_deploy.devices import CudaDevice
from harec_deploy.export import onnx as graphs
from harec_deploy.runners import RUNNERS, Entry
from tests.tensorrt import fake_builder

H100 = CudaDevice(0, "NVIDIA H100 80GB HBM3", (9, 0), 80 << 30, (13, 0))
A100 = CudaDevice(0, "NVIDIA A100-SXM4-40GB", (8, 0), 40 << 30, (13, 0))
V100 = CudaDevice(0, "Tesla V100-SXM2-16GB", (7, 0), 16 << 30, (12, 9))
ON_TENSORRT = ("harec_deploy.export.plan", "harec_deploy.runners.tensorrt")  # bound to the TensorRT they found


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
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    module = ModuleType("tensorrt")
    module.__dict__.update({name: value for name, value in vars(fake_builder).items() if name[:1] != "_"})
    module.__dict__["__version__"] = fake_builder.__version__
    for name in ON_TENSORRT:
        sys.modules.pop(name, None)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setitem(RUNNERS, "tensorrt", Entry("tests.tensorrt.plan_runner:PlanRunner", "tensorrt", ("cuda",), ()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield Site(monkeypatch, tmp_path / "cache/harec-deploy/tensorrt")
    for name in ON_TENSORRT:
        sys.modules.pop(name, None)
