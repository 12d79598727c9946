"""Every use of TensorRT in this repository, held against NVIDIA's own bindings of both ends of what is supported."""

import json
import os
import subprocess
import textwrap
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.tensorrt import bindings
from tests.tensorrt.contract import Checker, fake_faults, imports_tensorrt

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for folder in ("harec_deploy", "training", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if imports_tensorrt(path.read_text())
]
FAKES = [path for path in sorted(Path(__file__).parent.glob("fake_*.py")) if path.stem != "fake_cuda"]
Run = Callable[..., str]


@pytest.fixture(scope="module", params=bindings.VERSIONS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a program under the real bindings of a version; without one, print their API."""
    version: str = request.param
    if reason := bindings.missing(version):
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return lambda *program: bindings.run(version, tmp_path_factory.mktemp("libraries"), *program)


@pytest.fixture(scope="module")
def api(run: Run) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(run())
    return described


def test_the_makefile_installs_both_versions() -> None:
    assert f"TENSORRT := {' '.join(bindings.VERSIONS)}\n" in (ROOT / "Makefile").read_text()


def test_the_files_that_use_tensorrt_are_found() -> None:
    assert ROOT / "harec_deploy/export/plan.py" in SOURCES


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_use_is_in_the_bindings(path: Path, api: dict[str, Any]) -> None:
    checker = Checker(path.read_text(), api)
    assert checker.faults == []
    assert checker.used  # the walk has seen what it is for


def test_what_the_build_is_made_of_was_seen(api: dict[str, Any]) -> None:
    used = Checker((ROOT / "harec_deploy/export/plan.py").read_text(), api).used
    assert {"Builder.build_serialized_network()", "OnnxParser.parse()", "ParserError.node_operator()"} <= used
    assert {"IBuilderConfig.set_timing_cache()", "BuilderFlag.TF32", "IProgressMonitor.step_complete"} <= used


def test_every_method_of_the_fakes_is_in_the_bindings(api: dict[str, Any]) -> None:
    modules = [import_module(f"tests.tensorrt.{path.stem}") for path in FAKES]
    fakes = [
        (cls.__qualname__, cls)
        for module in modules
        for holder in (module, module.ILogger)
        for cls in vars(holder).values()
        if isinstance(cls, type) and cls.__module__ == module.__name__ and not cls.__name__.startswith("_")
    ]
    assert {"Builder", "ILogger.Severity"} <= dict(fakes).keys()
    assert fake_faults(fakes, api) == []


def test_a_fake_that_differs_is_found(api: dict[str, Any]) -> None:
    class Builder:
        def build_engine(self, network: object) -> None: ...
        def create_network(self, flag: int = 0) -> None: ...

    class ICudaEngine:
        @property
        def name(self) -> str:
            return ""

        @name.setter
        def name(self, value: str) -> None: ...

    faults = fake_faults([("Builder", Builder), ("ICudaEngine", ICudaEngine), ("IEngine", ICudaEngine)], api)
    assert [fault.split(" takes ")[0] for fault in faults] == [
        "Builder has no build_engine",
        "Builder.create_network",
        "ICudaEngine.name is no such property",
        "tensorrt has no IEngine",
    ]


HEAD = "import tensorrt as trt\nfrom typing import Any\n"
# What is wrong, and the words that say so, for every version or for one.
WRONG: dict[str, tuple[str, str]] = {
    "no such name": ("trt.Bilder", "tensorrt has no Bilder"),
    "removed class": ("trt.IInt8Calibrator", "11.4: tensorrt has no IInt8Calibrator"),
    "removed flag": ("trt.BuilderFlag.FP16", "11.4: BuilderFlag has no FP16"),
    "removed property": (
        "def f(e: trt.ICudaEngine) -> int:\n return e.device_memory_size",
        "11.4: ICudaEngine has no dev",
    ),
    "documented, not there": (
        "def f(e: trt.ICudaEngine) -> int:\n return e.weights_loaded",
        "ICudaEngine has no weights_l",
    ),
    "quoted annotation": ("def f(e: 'trt.ICudaEngine | None') -> int:\n return e.nme", "ICudaEngine has no nme"),
    "wrong keyword": (
        "trt.Builder(logger=trt.Logger()).create_network(flag=1)",
        "Builder.create_network: has no keyword flag",
    ),
    "argument missing": ("trt.Builder()", "Builder: needs logger"),
    "argument too many": ("trt.Builder(trt.Logger(), 1)", "Builder: takes 1 arguments, got 2"),
    "arguments swapped": (
        "def f(n: trt.INetworkDefinition, log: trt.ILogger) -> None:\n trt.OnnxParser(log, n)",
        "OnnxParser: network is INetworkDefinition, got ILogger",
    ),
    "enum of another class": (
        "def f(c: trt.IBuilderConfig) -> None:\n c.set_flag(trt.MemoryPoolType.WORKSPACE)",
        "IBuilderConfig.set_flag: flag is BuilderFlag, got MemoryPoolType",
    ),
    "stars": ("def f(c: trt.IBuilderConfig, a: list[int]) -> None:\n c.set_flag(*a)", "is called with * or **"),
    "unknown property set": (
        "def f(c: trt.IBuilderConfig) -> None:\n c.level = 3",
        "IBuilderConfig has no property level",
    ),
    "read-only property set": ("def f(b: trt.IHostMemory) -> None:\n b.nbytes = 3", "IHostMemory.nbytes cannot be set"),
    "wrong value set": (
        "def f(c: trt.IBuilderConfig) -> None:\n c.progress_monitor = trt.Logger()",
        "object Logger where IBuilderConfig.progress_monitor is object IProgressMonitor",
    ),
    "result followed": (
        "def f(b: trt.Builder) -> None:\n c = b.create_builder_config()\n c.set_flags(1)",
        "IBuilderConfig has no set_flags",
    ),
    "self followed": (
        "class A:\n def __init__(self, b: trt.Builder) -> None:\n  self.c = b.create_builder_config()\n"
        " def f(self) -> None:\n  self.c.int8_calibrator",
        "11.4: IBuilderConfig has no int8_calibrator",
    ),
    "loop followed": (
        "def f(p: trt.OnnxParser) -> list[int]:\n return [p.get_error(i).lineno() for i in range(p.num_errors)]",
        "ParserError has no lineno",
    ),
    "container followed": (
        "def f(es: dict[str, trt.ICudaEngine]) -> None:\n for name, e in es.items():\n  e.destroy()",
        "ICudaEngine has no destroy",
    ),
    "dataclass followed": (
        "class A:\n e: trt.ICudaEngine\ndef f(many: list[A]) -> int:\n return sorted(many, key=lambda a: a.e.size)[0]",
        "ICudaEngine has no size",
    ),
    "tuple followed": (
        "def f(a: list[tuple[str, trt.ICudaEngine]]) -> None:\n b, c = a, 1\n for name, e in b:\n  name.x, e.destroy()",
        "ICudaEngine has no destroy",
    ),
    "not annotated": ("def f(e) -> int:\n return e.num_io_tensors", "cannot tell what .num_io_tensors is asked of"),
    "annotated as Any": (
        "def f(e: Any) -> int:\n return e.num_io_tensors",
        "cannot tell what .num_io_tensors is asked of",
    ),
    "annotated wrongly": ("x: trt.Builder = trt.Logger()", "object Logger where the annotation is object Builder"),
    "returned as plain": (
        "def f(b: trt.Builder) -> str:\n return b",
        "object Builder where the function's result is plain",
    ),
    "given away": (
        "import queue\nqueue.Queue().put(trt.Logger())",
        "goes into queue.Queue().put, where it cannot be foll",
    ),
    "given away inside": (
        "import queue\nclass A:\n def __init__(self) -> None:\n  self.log = trt.Logger()\nqueue.Queue().put([A()])",
        "goes into queue.Queue().put, where it cannot be followed",
    ),
    "asked by name": ("getattr(trt.BuilderFlag, 'FP' + '16')", "class BuilderFlag goes into getattr"),
    "method given away": (
        "import queue\nqueue.Queue().put(trt.Logger().log)",
        "method log goes into queue.Queue().put",
    ),
    "no such callback": (
        "class A(trt.IProgressMonitor):\n def __init__(self) -> None:\n  trt.IProgressMonitor.__init__(self)\n"
        " def step_done(self) -> bool:\n  return True",
        "IProgressMonitor has no step_done to override",
    ),
    "callback of other parameters": (
        "class A(trt.IProgressMonitor):\n def __init__(self) -> None:\n  trt.IProgressMonitor.__init__(self)\n"
        " def phase_finish(self, name: str) -> None: ...",
        "IProgressMonitor.phase_finish takes [['phase_name']], not ['name']",
    ),
    "base not made": (
        "class A(trt.ILogger):\n def log(self, severity: Any, msg: str) -> None: ...",
        "A does not call ILogger",
    ),
    "context manager": ("with trt.Logger() as log: pass", "with over object Logger: deprecated"),
    "no such conversion": ("int(trt.Logger())", "Logger has no __int__"),
}


@pytest.mark.parametrize(("source", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_use_is_found(source: str, message: str, api: dict[str, Any]) -> None:
    faults = Checker(HEAD + source, api).faults
    only, _, words = message.rpartition("11.4: ")
    del only
    if message.startswith("11.4") and not api["version"].startswith("11"):
        assert faults == []  # that version still has it
    else:
        assert any(words in fault for fault in faults), faults


def test_a_right_use_is_none(api: dict[str, Any]) -> None:
    source = """
    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.words: list[str] = []
        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            self.words.append(f"{severity.name} {msg}")
    def build(log: Log, onnx: bytes, workspace_bytes: int | None) -> bytes:
        builder = trt.Builder(log)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        if not parser.parse(model=onnx):
            raise ValueError([(e.desc(), e.code().name) for e in map_errors(parser)])
        plan = builder.build_serialized_network(network, config=builder.create_builder_config())
        return bytes(plan) if plan is not None else b""
    def map_errors(parser: trt.OnnxParser) -> list[trt.ParserError]:
        return [parser.get_error(i) for i in range(parser.num_errors)]
    """
    checker = Checker(HEAD + textwrap.dedent(source), api)
    assert checker.faults == []
    assert "Builder.build_serialized_network()" in checker.used


def test_the_real_bindings_take_our_log_and_monitor_and_refuse_to_start_in_one_line(run: Run, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(REAL)
    assert run(str(program)).splitlines() == [
        "['Error one', 'two']",
        "True False 0.5 Build",
        "TensorRT does not start on cuda:0 (GPU): it gives no reason",
    ]


REAL = """
from pathlib import Path
import tensorrt as trt
from harec_deploy.spec import EngineSpec
from harec_deploy.devices import CudaDevice
from harec_deploy.errors import HarecError
from harec_deploy.export import plan
from harec_deploy.export.timing import TimingCache

log = plan._Log()
for severity, text in (("ERROR", "Error\\n one"), ("WARNING", "no"), ("INTERNAL_ERROR", "two")):
    log.log(getattr(trt.ILogger.Severity, severity), text)
print(list(log.errors))

seen = []
monitor = plan._Monitor(lambda share, note: seen.append((share, note)))
monitor.phase_start("Build", None, 2)
first = monitor.step_complete("Build", 0)
monitor.stop.set()
print(first, monitor.step_complete("Build", 1), *seen[1])

gpu = CudaDevice(0, "GPU", (9, 0), 1 << 30, (13, 0))
engine = EngineSpec(tensorrt="", gpu="", capability="", profiles={}, sources={})
try:
    plan.build(Path("no.onnx"), [(1, 1, 1)], engine, device=gpu, timing=TimingCache(gpu, plan.VERSION, print))
except HarecError as error:
    print(str(error).replace(plan.VERSION + " ", ""))
"""


def test_no_text_of_nvidia_is_kept_here() -> None:
    tracked = subprocess.run(["git", "ls-files", "tests"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not [name for name in tracked.split() if name.endswith((".pyi", ".so", ".whl"))]
