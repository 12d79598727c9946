"""harec-deploy doctor: what it says is what other sources say, and nothing that is broken stops it."""

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import pytest

from harec_deploy import machine
from harec_deploy.probes import CODECS, PROBES, DecoderCaps, ask

PIP_TENSORRT = "pip install --extra-index-url https://pypi.nvidia.com tensorrt-cu13"


def doctor(*arguments: str, first: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command, with the packages of a folder ``first``."""
    paths = os.pathsep.join([*([str(first)] if first else []), *filter(None, sys.path)])
    command = [sys.executable, "-m", "harec_deploy", "doctor", *arguments]
    variables = {**os.environ, "PYTHONPATH": paths, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=variables)


def findings(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return {each["name"]: each for each in json.loads(done.stdout)["findings"]}


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    return findings(doctor("--json"))


def package(folder: Path, name: str, code: str) -> Path:
    """Write a package that runs ``code`` when it is imported."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    return folder


def test_the_processor_is_the_one_that_linux_names(found: dict[str, dict[str, Any]]) -> None:
    facts, text = found["CPU"]["facts"], Path("/proc/cpuinfo").read_text()
    if names := re.findall(r"^model name\s*: (.+)$", text, re.M):  # Arm has none
        assert facts["model"] == names[0].strip()
    assert facts["cores"] == text.count("processor\t:")
    for name, pattern in (("avx2", r"\bavx2\b"), ("avx512f", r"\bavx512f\b"), ("vnni", r"\bavx(512)?_vnni\b")):
        assert facts["instruction_sets"][name] == bool(re.search(pattern, text)), name


def test_cores_outside_the_affinity_are_not_counted() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from harec_deploy import machine; print(machine.cpu()['cores_allowed'])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 0 < float(said) <= 1


@pytest.mark.parametrize(
    ("membership", "files", "cores", "memory"),
    [
        ("0::/", {"cpu.max": "max 100000\n", "memory.max": "max\n"}, None, None),
        ("0::/job/a", {"job/a/cpu.max": "max 100000\n", "job/cpu.max": "250000 100000\n"}, 2.5, None),
        (
            "0::/job/a",
            {"job/a/memory.max": "4096\n", "job/memory.max": "8192\n", "cpu.max": "50000 100000\n"},
            0.5,
            4096,
        ),
        ("3:cpu,cpuacct:/x", {"cpu/x/cpu.cfs_quota_us": "300000\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, 3.0, None),
        ("3:cpu:/x", {"cpu/x/cpu.cfs_quota_us": "-1\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, None, None),
        ("4:memory:/x", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None, None),
        ("4:memory:/x", {"memory/memory.limit_in_bytes": "1048576\n"}, None, 1048576),
        ("", {}, None, None),
    ],
)
def test_control_groups_limit_cores_and_memory(
    tmp_path: Path, membership: str, files: dict[str, str], cores: float | None, memory: int | None
) -> None:
    (tmp_path / "cgroup").write_text(membership)
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text)
    assert machine.cpu_quota(tmp_path / "cgroup", tmp_path / "fs") == cores
    assert machine.memory_limit(tmp_path / "cgroup", tmp_path / "fs") == memory


@pytest.mark.parametrize(("quota", "cores"), [(None, 3), (8.0, 3), (2.0, 2), (1.5, 1), (0.25, 1)])
def test_as_many_workers_as_whole_cores_are_left(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    assert machine.cores() == cores


def test_memory_and_space_are_what_other_tools_say(found: dict[str, dict[str, Any]]) -> None:
    facts = found["memory"]["facts"]
    assert facts["memory_bytes"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < facts["memory_free_bytes"] <= facts["memory_bytes"]
    shared = os.statvfs("/dev/shm")
    assert facts["shared_memory_bytes"] == shared.f_blocks * shared.f_frsize


@pytest.mark.parametrize(
    ("name", "distribution"),
    [("ONNX Runtime", "onnxruntime"), ("OpenVINO", "openvino"), ("PyTorch", "torch"), ("PyAV", "av")],
)
def test_versions_are_those_that_pip_installed(found: dict[str, dict[str, Any]], name: str, distribution: str) -> None:
    assert found[name]["state"] == "ok"
    assert found[name]["facts"]["version"].partition("+")[0] == version(distribution).partition("+")[0]


def test_decoders_are_those_that_pyav_lists(found: dict[str, dict[str, Any]]) -> None:
    facts = found["PyAV"]["facts"]
    assert sorted(facts["decoders"] + facts["missing"]) == sorted(CODECS)
    for codec, names in CODECS.items():
        assert (codec in facts["decoders"]) == bool(av.codecs_available.intersection(names)), codec


def test_what_is_not_installed_or_broken_is_named_with_its_pip_line(tmp_path: Path) -> None:
    hidden = "raise ModuleNotFoundError(f'No module named {__name__!r}', name=__name__)"  # as where it is not installed
    package(tmp_path, "torch", hidden)
    package(tmp_path, "nvidia", hidden)
    package(tmp_path, "tensorrt", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    done = doctor("--json", first=tmp_path)
    found = findings(done)
    assert (found["PyTorch"]["state"], found["PyTorch"]["remedy"]) == ("missing", "pip install 'harec-deploy[export]'")
    assert (found["TensorRT"]["state"], found["TensorRT"]["told"]) == ("broken", "the process died of SIGSEGV")
    assert found["TensorRT"]["remedy"] == PIP_TENSORRT.replace("install", "install --force-reinstall")
    assert found["DALI"]["remedy"] == "pip install 'harec-deploy[dali]'"
    assert found["OpenVINO"]["state"] == "ok"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise RuntimeError('libnvinfer.so.11:\\n cannot open')", "RuntimeError: libnvinfer.so.11: cannot open"),
        ("import tensorrt_libs", "ModuleNotFoundError: No module named 'tensorrt_libs'"),
        ("import os; os._exit(3)", "the process ended with status 3: without a word"),
        ("raise SystemExit('no licence')", "the process ended with status 1: no licence"),
        ("print('{}')\nraise KeyboardInterrupt", "KeyboardInterrupt: "),
        ("pass", "AttributeError: module 'tensorrt' has no attribute '__version__'"),
    ],
)
def test_a_package_that_dies_on_import_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, told: str
) -> None:
    monkeypatch.syspath_prepend(package(tmp_path, "tensorrt", code))
    answer = ask("tensorrt")
    assert (answer.state, answer.told) == ("broken", told)


def test_a_package_that_hangs_on_import_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(package(tmp_path, "tensorrt", "import time\nwhile True: time.sleep(1)"))
    answer = ask("tensorrt", patience_s=0.5)
    assert (answer.state, answer.told) == ("broken", "no answer in 0.5 s")


def test_two_onnx_runtimes_overwrite_each_other(tmp_path: Path) -> None:
    for name in ("onnxruntime", "onnxruntime-gpu"):
        folder = tmp_path / f"{name.replace('-', '_')}-1.2.3.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2.3\n")
    found = findings(doctor("--json", first=tmp_path))["ONNX Runtime"]
    assert found["state"] == "broken"
    assert "onnxruntime 1.2.3 and onnxruntime-gpu 1.2.3 are both installed" in found["told"]
    assert found["remedy"].startswith("pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'harec-deploy[")


def test_one_onnx_runtime_is_no_clash(found: dict[str, dict[str, Any]]) -> None:
    assert found["ONNX Runtime"]["facts"]["distributions"] == {"onnxruntime": version("onnxruntime")}


def test_the_choice_for_a_bundle_is_what_label_takes(exported: Path) -> None:
    chosen = findings(doctor(str(exported), "--json"))["auto"]
    assert chosen["state"] == "ok"
    assert (chosen["facts"]["variant"], chosen["facts"]["decoder"]) == ("onnx-fp32", "pyav")
    assert re.search(r"the fastest here, in clips/s: .*(openvino|onnx) fp32 \d", chosen["told"])
    assert chosen["facts"]["runner"] in ("openvino", "onnx")


def test_a_damaged_bundle_is_a_finding(bundle: Path) -> None:
    (bundle / "weights.safetensors").write_bytes(b"")
    chosen = findings(doctor(str(bundle), "--json"))["auto"]
    assert chosen["state"] == "broken"
    assert re.search(r"weights.safetensors has 0 bytes, not \d+: copy the whole bundle again", chosen["told"])


def test_the_table_fits_a_page_and_has_no_colours(found: dict[str, dict[str, Any]]) -> None:
    done = doctor()
    assert done.returncode == 0
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    for name, finding in found.items():
        assert re.search(rf"^{name} ", done.stdout, re.M), name
        for word in finding["remedy"].split():
            assert word in done.stdout


def test_the_json_has_a_finding_for_each_part(found: dict[str, dict[str, Any]]) -> None:
    assert len(found) == len(PROBES) + 2
    for finding in found.values():
        assert set(finding) == {"name", "state", "told", "remedy", "facts"}
        assert finding["state"] in ("ok", "missing", "broken", "unknown")
        assert finding["told"]


DRIVER = r"""
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDriverGetVersion(int *version) { *version = 13020; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 40 + ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Painted GPU", length); return device != 40; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)24 << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : 9; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)0x40; return device != 40; }
int cuCtxPushCurrent_v2(void *context) { return context != (void *)0x40; }
"""
# The struct as NVIDIA's cuviddec.h has it; this decoder takes H.264 with three engines, and says nothing of AV1's.
VIDEO = r"""
typedef struct {
    int codec, chroma; unsigned depth, reserved1[3];
    unsigned char supported, engines; unsigned short formats;
    unsigned max_width, max_height, max_blocks; unsigned short min_width, min_height;
    unsigned char histogram, counter; unsigned short bins; unsigned reserved3[10];
} Caps;
int cuvidGetDecoderCaps(Caps *caps) {
    if (caps->chroma != 1 || caps->depth != 0 || caps->reserved1[2] != 0 || sizeof(Caps) != SIZE) return 1;
    caps->supported = caps->codec == 4 || caps->codec == 11;
    caps->engines = caps->codec == 4 ? 3 : 0;
    caps->formats = 0xffff; caps->max_width = 4096; caps->max_height = 4352; caps->min_width = 48;
    return 0;
}
"""


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CUDA driver that shows a GPU that is not there."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: the driver's libraries cannot be made")
    folder = tmp_path_factory.mktemp("driver")
    for name, code in (("libcuda.so.1", DRIVER), ("libnvcuvid.so.1", VIDEO)):
        (folder / f"{name}.c").write_text(code.replace("SIZE", str(ctypes.sizeof(DecoderCaps))))
        subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / name, folder / f"{name}.c"], check=True)
    return folder


def test_a_gpu_and_its_decoders_are_what_the_driver_says(libraries: Path) -> None:
    found = findings(doctor("--json", LD_LIBRARY_PATH=str(libraries)))
    told = "cuda:0: Painted GPU, compute 8.9, 24.0 GiB, driver for CUDA 13.2"
    assert (found["GPU"]["state"], found["GPU"]["told"]) == ("ok", told)
    assert found["NVDEC"]["told"] == "cuda:0: 3 decoders; h264 av1; without mpeg4 mjpeg hevc vp8 vp9"
    assert found["NVDEC"]["facts"]["devices"]["cuda:0"]["h264"] == {"nvdecs": 3, "max_width": 4096, "max_height": 4352}
    assert found["NVDEC"]["facts"]["devices"]["cuda:0"]["av1"]["nvdecs"] == 0
    assert found["NVDEC"]["facts"]["devices"]["cuda:0"]["hevc"] is None


def test_a_driver_without_its_video_library_leaves_the_decoders_unknown(libraries: Path, tmp_path: Path) -> None:
    shutil.copy(libraries / "libcuda.so.1", tmp_path)
    found = findings(doctor("--json", LD_LIBRARY_PATH=str(tmp_path)))
    assert found["NVDEC"]["state"] == "unknown"
    assert "NVIDIA_DRIVER_CAPABILITIES" in found["NVDEC"]["told"]
