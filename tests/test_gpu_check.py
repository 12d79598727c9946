"""gpu_check: the whole of it on the CPU, what it says where something is missing, and that it survives its sections."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from benchmarks import gpu_check, gpu_machine, gpu_runs, gpu_tables, tables
from benchmarks.gpu_check import Setup

ROOT = Path(__file__).parents[1]
NO_GPU = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
# What a machine may lack: all but numpy, msgspec, typer, rich and PyAV.
OPTIONAL = ("openvino", "onnxruntime", "lightning", "onnx", "onnxscript", "torch", "torchvision", "safetensors")
OPTIONAL += ("tensorrt", "nvidia", "cuda", "cv2", "matplotlib", "pyarrow", "PIL", "pytest")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT, env={**NO_GPU, **environment})


def setup_of(folder: Path, device: str = "cpu") -> Setup:
    return Setup("any", "any:any", device, folder, folder / "out.json", tiny=True, soft_s=300.0, hard_s=300.0)


def check_on_cpu(folder: Path, *hidden: str) -> tuple[dict[str, Any], str, str]:
    """Return the JSON, the Markdown and the words of a check on a machine where ``hidden`` is not installed."""
    code = f"import sys; sys.modules.update(dict.fromkeys({hidden}))"  # to import them fails then as if they were not
    (folder / "sitecustomize.py").write_text(code)
    done = run(
        *("--device", "cpu", "--tiny", "--seconds", "600", "--work", str(folder / "work")),
        *("--out", str(folder / "out.json")),
        PYTHONPATH=os.pathsep.join([str(folder), *filter(None, sys.path)]),
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "out.json").read_text()), (folder / "out.md").read_text(), done.stdout


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, str]:
    return check_on_cpu(tmp_path_factory.mktemp("gpu_check"), "tensorrt")


def test_every_section_ends_well(smoke: tuple[dict[str, Any], str, str]) -> None:
    content = smoke[0]
    assert (content["device"], content["tiny"]) == ("cpu", True)
    assert {name: section["state"] for name, section in content["sections"].items()} == dict.fromkeys(
        gpu_check.SECTIONS, "ok"
    )
    assert sum(section["seconds"] for section in content["sections"].values()) < content["seconds"]


def test_every_way_keeps_its_labels_and_has_figures(smoke: tuple[dict[str, Any], str, str]) -> None:
    rows = smoke[0]["sections"]["engine"]["rows"]
    ways = {tuple(row[key] for key in ("variant", "runner", "precision")) for row in rows if "same_labels" in row}
    assert len(ways) >= 2  # the machine of the tests has more than one runtime or precision
    assert all(row["same_labels"] == 1 and row["max_abs_dp"] < 0.1 for row in rows if "same_labels" in row)
    timed = [row for row in rows if "clips_per_s" in row]
    assert {(row["variant"], row["runner"], row["precision"]) for row in timed} == ways
    assert {row["batch"] for row in timed} == {1, 4}
    for row in timed:
        assert 0 < row["p50_ms"] <= row["p90_ms"]
        assert row["repetitions"] >= 3
        assert (row["p99_ms"] is None) == (row["repetitions"] < 100)


def test_decoders_and_whole_runs_have_figures(smoke: tuple[dict[str, Any], str, str]) -> None:
    sections = smoke[0]["sections"]
    decoded = [row for row in sections["decode"]["rows"] if "videos_per_s" in row]
    assert {row["videos"] for row in decoded} == {"xvid_240p_packed", "h264_240p"}
    assert "CPU cores" in {row["route"] for row in decoded}
    for row in decoded:
        assert row["frames_per_s"] == pytest.approx(30 * row["videos_per_s"], rel=0.01)
        assert row["count"] > row["videos_per_s"] * row["seconds"] > 0  # those before the clock counted are not in it
    ways = {row["way"]: row for row in sections["end_to_end"]["rows"]}
    assert ways["notebook fp32"]["decoder"] in ("OpenCV", "PyAV, as OpenCV is not importable")
    own = ways["label, decoder pyav"]
    assert own["same_labels"] == 1  # the model knows these videos by heart
    assert own["ok"] == own["count"] >= 4
    rates = [ways[name]["videos_per_s"] for name in ("decode alone, CPU cores", "engine alone")]
    assert own["of_bound"] == pytest.approx(own["videos_per_s"] * sum(1 / rate for rate in rates), abs=1e-3)


def test_what_is_missing_is_named(smoke: tuple[dict[str, Any], str, str]) -> None:
    content, page, words = smoke
    (found,) = (row for row in content["sections"]["machine"]["rows"] if row.get("name") == "TensorRT")
    assert found["state"] == "missing"
    for text in (page, words):
        assert "TensorRT: missing: not installed" in text
        assert "tests: not run: the tests need a GPU" in text
        assert "| engine |" in page


def test_with_the_least_that_it_needs_it_says_what_it_lacks(tmp_path: Path) -> None:
    content, page, _ = check_on_cpu(tmp_path, *OPTIONAL)
    assert {section["state"] for section in content["sections"].values()} == {"ok"}
    states = {row["name"]: row["state"] for row in content["sections"]["machine"]["rows"] if "name" in row}
    for name in ("PyTorch", "ONNX Runtime", "OpenVINO", "TensorRT", "DALI", "torchvision", "cv2", "pytest"):
        assert states[name] == "missing", name
    assert (states["CPU"], states["PyAV"]) == ("ok", "ok")
    rows = content["sections"]["prepare"]["rows"]
    assert {"model": "not made", "because": "torch is not importable"} in rows
    assert [row["made"] for row in rows if "videos" in row] == [4, 2]
    for name in ("engine", "end_to_end"):
        assert f"- {name}: not run: there is no model" in page
    decoded = {row["videos"] for row in content["sections"]["decode"]["rows"] if row.get("videos_per_s", 0) > 0}
    assert decoded == {"xvid_240p_packed", "h264_240p"}


def test_readme_gets_the_table_that_was_measured(
    smoke: tuple[dict[str, Any], str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gpu_check.json").write_text(json.dumps(smoke[0]))
    monkeypatch.setattr(tables, "GPU_CHECK", tmp_path / "gpu_check.json")
    assert tables.gpu_table() == smoke[1].strip()


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path / "out.json"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == ["no cuda:0 here: there is no GPU; --device cpu --tiny tries the check itself"]
    assert not list(tmp_path.iterdir())


def test_the_stand_in_for_safetensors_reads_and_writes_what_the_package_does(tmp_path: Path) -> None:
    tensors = {
        "odd": torch.arange(3, dtype=torch.float16),  # so that what follows lies at no multiple of its size
        "wide": torch.randn(2, 3, 4),
        "count": torch.tensor(7),
        "none": torch.zeros(0, 5, dtype=torch.float16),
    }
    save_file(tensors, tmp_path / "package.safetensors", metadata={"format": "pt"})
    code = (
        "import sys; from pathlib import Path; import safetensors; from safetensors.torch import load_file, save_file\n"
    )
    code += f"assert Path(safetensors.__file__).is_relative_to({str(gpu_check.STAND_IN)!r})\n"
    code += "save_file(load_file(Path('package.safetensors')), Path('stand_in.safetensors'))\n"
    code += "Path('damaged').write_bytes(bytes(20))\n"
    code += "try: load_file(Path('damaged'))\nexcept safetensors.SafetensorError as error: print(error)"
    environment = {**os.environ, "PYTHONPATH": str(gpu_check.STAND_IN)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120
    )
    assert done.stdout.startswith("damaged is no safetensors file: "), done.stderr
    written = load_file(tmp_path / "stand_in.safetensors")
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (written[name].dtype, written[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(written[name], tensor)


def test_sections_have_the_stand_in_only_where_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "before")
    assert gpu_check._environment()["PYTHONPATH"] == "before"
    monkeypatch.setattr(gpu_check, "find_spec", lambda name: None)
    assert gpu_check._environment()["PYTHONPATH"] == os.pathsep.join(["before", str(gpu_check.STAND_IN)])


def test_a_pip_line_is_printed_with_its_brackets() -> None:
    row = {"runner": "onnx", "not_run": "pip install 'harec-deploy[ort]'"}
    content = {"sections": {"engine": {"state": "ok", "rows": [row]}}}
    console = Console(width=200)
    with console.capture() as caught:
        console.print(gpu_tables.summary(content))
    assert "pip install 'harec-deploy[ort]'" in caught.get()


@pytest.mark.parametrize("name", ["gpu_check", "gpu_machine", "gpu_videos", "gpu_engine", "gpu_runs", "gpu_tables"])
def test_it_needs_little_to_be_imported(name: str) -> None:
    code = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL}))\nimport benchmarks.{name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_a_section_that_goes_wrong_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {"dies": 1.0, "hangs": 0.03, "raises": 1.0, "lacks": 1.0, "looks_back": 1.0}
    sections = {name: (f"tests.gpu_sections:{name}", weight) for name, weight in weights.items()}
    monkeypatch.setattr(gpu_check, "SECTIONS", sections)
    monkeypatch.chdir(ROOT)
    out = tmp_path / "out.json"
    with (tmp_path / "words").open("w") as words:
        gpu_check.check("cpu", out, tmp_path, seconds=200, tiny=True, console=Console(file=words, width=200))
    found = json.loads(out.read_text())["sections"]
    assert found["dies"]["state"] == "crashed: SIGSEGV; the rows are what it came to"
    assert found["dies"]["rows"] == [{"figure": 1}]
    assert found["hangs"]["state"].startswith("stopped: not done after ")
    assert found["raises"]["state"].startswith("failed with status 1")
    assert found["raises"]["rows"] == [{"figure": 2}, {"failed": "RuntimeError: CUDA error: an illegal memory access"}]
    assert (found["lacks"]["state"], found["lacks"]["rows"]) == ("ok", [{"not_run": "nosuchmodule is not importable"}])
    before = {name: found[name]["state"] for name in ("dies", "hangs", "raises", "lacks")}
    assert found["looks_back"]["rows"] == [{"states": {**before, "looks_back": "running"}}, {"figures": [1, 2]}]
    lines = gpu_tables.missing({"sections": found})
    assert "dies: crashed: SIGSEGV; the rows are what it came to" in lines
    assert "lacks: not run: nosuchmodule is not importable" in lines


GPU_TESTS = """
import os
import pytest

def test_passes(): assert os.environ["HAREC_FAIL_WITHOUT_GPU"] == "1"

def test_fails(): raise RuntimeError("no kernel image\\nis available")

@pytest.mark.skip(reason="no DALI")
def test_is_skipped(): pass
"""


def test_gpu_tests_are_counted_and_failures_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_some.py").write_text(GPU_TESTS)
    monkeypatch.setattr(gpu_machine, "TESTS", tmp_path)
    rows = list(gpu_machine.tests(setup_of(tmp_path, "cuda:0")))
    assert rows[-1] == {"status": 1, "passed": 1, "failed": 1, "skipped": 1}
    told = {
        (outcome, row[outcome].rpartition(".")[2], row["because"]) for row in rows[:-1] for outcome in list(row)[:1]
    }
    assert told == {
        ("failed", "test_some::test_fails", "RuntimeError: no kernel image"),
        ("skipped", "test_some::test_is_skipped", "no DALI"),
    }


def test_gpu_tests_that_are_not_there_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_machine, "TESTS", tmp_path / "none")
    (row,) = gpu_machine.tests(setup_of(tmp_path, "cuda:0"))
    assert row["not_run"].startswith(f"there is no {tmp_path}/none in ")


SMI = """<?xml version="1.0" ?>
<nvidia_smi_log>
  <driver_version>580.1</driver_version>
  <gpu id="0">
    <product_name>Painted GPU</product_name>
    <gpu_power_readings>
      <current_power_limit>700.00 W</current_power_limit><default_power_limit>N/A</default_power_limit>
    </gpu_power_readings>
    <clocks><sm_clock>345 MHz</sm_clock><mem_clock>3201 MHz</mem_clock><video_clock>765 MHz</video_clock></clocks>
    <max_clocks><sm_clock>1980 MHz</sm_clock><video_clock>1545 MHz</video_clock></max_clocks>
  </gpu>
</nvidia_smi_log>"""


def test_clocks_and_power_come_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{SMI}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert gpu_machine.nvidia_smi() == {
        "driver": "580.1",
        "name": "Painted GPU",
        "clocks": {"sm": "345 MHz", "mem": "3201 MHz", "video": "765 MHz"},
        "max_clocks": {"sm": "1980 MHz", "video": "1545 MHz"},
        "power": {"current_power_limit": "700.00 W"},
    }
    program.write_text("#!/bin/sh\necho NVIDIA-SMI has failed; exit 9\n")
    assert gpu_machine.nvidia_smi()["broken"].startswith("status 9, ")


@pytest.mark.parametrize(
    ("kind", "count", "frames_per_s", "wanted"),
    [
        # 7 decoders of 771 frames/s at 1860 MHz, running at 1545 MHz
        ("h264_1080p", 7, 2000.0, {"bound_frames_per_s": 4483, "of_bound": 0.446}),
        ("h264_720p", 7, 2000.0, {"bound_frames_per_s": 10087, "of_bound": 0.198}),
        ("h264_1080p", 7, 0.0, {}),  # nothing was decoded on the GPU
        ("xvid_240p", 7, 2000.0, {}),  # for which NVIDIA gives no figure
        ("h264_1080p", 0, 2000.0, {}),  # the driver does not say how many decoders there are
    ],
)
def test_the_bound_of_the_decoders_is_nvidias(
    tmp_path: Path, kind: str, count: int, frames_per_s: float, wanted: dict[str, float]
) -> None:
    gpu = {"devices": [{"device": "cuda:0", "capability": [9, 0]}]}
    nvdec = {"devices": {"cuda:0": {"h264": {"nvdecs": count}}}}
    rows = [{"nvidia_smi": {"max_clocks": {"video": "1545 MHz"}}}]
    rows += [{"name": "GPU", "facts": gpu}, {"name": "NVDEC", "facts": nvdec}]
    (tmp_path / "out.json").write_text(json.dumps({"sections": {"machine": {"rows": rows}}}))
    setup = Setup("decode", "", "cuda:0", tmp_path, tmp_path / "out.json", tiny=False)
    assert gpu_runs.bound(setup, kind, frames_per_s) == wanted


def test_make_runs_it() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "-n", "gpu-check", "PYTHON=python3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, env=environment)
    assert done.stdout.split() == ["python3", "-m", "benchmarks.gpu_check"]
