"""harec_deploy.cuda without a GPU: all that it uses of cuda-core is there, by cuda-core's own types."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from harec_deploy import cuda

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def types_of_cuda_core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for MYPYPATH with cuda-core's types where its modules are at run time; the wheel has them elsewhere."""
    spec = find_spec("cuda.core") if find_spec("cuda") else None
    if spec is None or spec.origin is None:
        reason = "cuda-core is not installed: pip install 'harec-deploy[dev]'"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    installed = Path(spec.origin).parent
    folder = tmp_path_factory.mktemp("types")
    place = folder / "cuda/core"
    for source in [*(installed / "cu13").rglob("*.py"), *(installed / "cu13").rglob("*.pyi")]:
        target = place / source.relative_to(installed / "cu13")
        target.parent.mkdir(parents=True, exist_ok=True)
        # A type checker cannot add up an __all__ of others, and then sees no name at all.
        target.write_text(source.read_text().partition("\n__all__ = [\n    *")[0])
    (place / "__init__.py").write_text((installed / "__init__.py").read_text().partition("\n__all__ = [\n    *")[0])
    return folder


def faults(source: str, types: Path, folder: Path) -> list[str]:
    """Return what mypy has against a file, with the types of cuda-core."""
    path = folder / "used.py"
    path.write_text(source)
    command = [sys.executable, "-m", "mypy", "--config-file=", "--follow-imports=silent", "--no-error-summary"]
    command += ["--namespace-packages", "--explicit-package-bases", f"--cache-dir={types / 'cache'}", str(path)]
    search = os.pathsep.join(map(str, (types, ROOT)))
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env={**os.environ, "MYPYPATH": search}, timeout=300
    )
    assert done.returncode in (0, 1), done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("used.py") and "import-untyped" not in line]


def test_all_that_is_used_is_in_cuda_core(types_of_cuda_core: Path, tmp_path: Path) -> None:
    assert faults((ROOT / "harec_deploy/cuda.py").read_text(), types_of_cuda_core, tmp_path) == []


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ("stream=stream.core", "stream.core", "Too many positional arguments"),
        ("self.core.sync()", "self.core.synchronize()", 'has no attribute "synchronize"'),
        ("timing_enabled=timed", "enable_timing=timed", 'Unexpected keyword argument "enable_timing"'),
        ("builder.end_building()", "builder.finish()", 'has no attribute "finish"'),
        ("self._device.allocate(size_bytes", "self._device.allocate(str(size_bytes)", "incompatible type"),
        ("LegacyPinnedMemoryResource", "OldPinnedMemoryResource", 'has no attribute "OldPinnedMemoryResource"'),
        ("from_dlpack(array, stream.handle)", "from_dlpack(array, stream=1)", 'Unexpected keyword argument "stream"'),
    ],
)
def test_what_is_not_in_cuda_core_is_found(
    types_of_cuda_core: Path, tmp_path: Path, right: str, wrong: str, told: str
) -> None:
    source = (ROOT / "harec_deploy/cuda.py").read_text()
    assert right in source
    assert told in "\n".join(faults(source.replace(right, wrong), types_of_cuda_core, tmp_path))


def test_importing_it_needs_no_cuda_core() -> None:
    code = "import sys; sys.modules['cuda'] = None; import harec_deploy.cuda"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("array", "gaps"),
    [
        (np.zeros((3, 4, 5)), False),
        (np.zeros((0, 4)), False),
        (np.zeros(()), False),
        (np.zeros((3, 1, 5))[:, ::-1], False),
        (np.zeros((3, 4, 5))[1:], False),
        (np.zeros((3, 4, 5))[::2], True),
        (np.zeros((3, 4, 5))[:, 1:], True),
        (np.zeros((3, 4, 5)).transpose(0, 2, 1), True),
        (np.zeros((3, 4))[:, ::-1], True),
    ],
)
def test_gaps_are_seen_in_strides(array: np.ndarray, gaps: bool) -> None:
    strides = [step // array.itemsize for step in array.strides]
    assert cuda.packed(array.shape, strides) is not gaps
    assert array.flags.c_contiguous is not gaps
    assert cuda.packed(array.shape, None)
