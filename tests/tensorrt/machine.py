"""A fake TensorRT on a fake GPU, in the places of the real ones."""

import sys
import types
from collections.abc import Iterator

import pytest

from harec_deploy import cuda, devices
from tests.tensorrt import fake_cuda, fake_runtime

OURS = tuple(f"harec_deploy.runners.tensorrt{part}" for part in ("", "_graph", "_plan"))  # made of the fake's classes


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
