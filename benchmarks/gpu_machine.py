"""The first sections of gpu_check: what the machine is, and its GPU tests."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.gpu_check import Row, Setup
from harec_deploy.doctor import examine

# What the check uses beside what doctor looks at, and for what.
OTHERS = {"torchvision": "the model", "safetensors": "the model's file", "onnx": "export", "onnxscript": "export"}
OTHERS |= {"cv2": "the notebook's loop; PyAV takes its place", "pytest": "the GPU tests"}
TESTS = Path("tests/gpu")


def machine(setup: Setup) -> Iterator[Row]:
    """Yield the GPU's state, and what is importable and what is not."""
    yield {"python": platform.python_version(), "system": platform.platform()}
    yield {"nvidia_smi": nvidia_smi() or "not here"}
    for found in examine(patience_s=max(setup.left_s, 1.0)):
        yield {"name": found.name, "state": found.state, "told": found.told, "facts": found.facts}
    for module, purpose in OTHERS.items():
        yield {"name": module, "state": "ok" if find_spec(module) else "missing", "told": f"for {purpose}"}


def nvidia_smi() -> dict[str, Any]:
    """Return the driver, clocks and limits of power that nvidia-smi tells of the first GPU; nothing where it is not."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    done = subprocess.run([program, "-q", "-x", "-i", "0"], capture_output=True, text=True, timeout=60)
    try:
        log = ElementTree.fromstring(done.stdout)
    except ElementTree.ParseError as error:
        return {"broken": f"status {done.returncode}, {error}"}
    facts: dict[str, Any] = {"driver": _text(log, "driver_version"), "name": _text(log, "gpu/product_name")}
    for name in ("clocks", "max_clocks"):  # of the SMs, memory and video, such as "1980 MHz"
        facts[name] = {each.tag.removesuffix("_clock"): each.text for each in log.iterfind(f"gpu/{name}/*")}
    limits = (each for each in log.iter() if each.tag.endswith("power_limit"))
    return facts | {"power": {each.tag: each.text for each in limits if each.text != "N/A"}}


def _text(log: ElementTree.Element, path: str) -> str | None:
    return log.findtext(path)


def tests(setup: Setup) -> Iterator[Row]:
    """Run the GPU tests, which fail where they would be skipped elsewhere, and yield what came of each that did."""
    if setup.device == "cpu":
        yield {"not_run": "the tests need a GPU"}
        return
    if not TESTS.is_dir():
        yield {"not_run": f"there is no {TESTS} in {Path.cwd()}"}
        return
    if find_spec("pytest") is None:
        yield {"not_run": "pytest is not importable: pip install pytest"}
        return
    results = setup.work / "gpu_tests.xml"
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={results}", str(TESTS)]
    environment = {**os.environ, "HAREC_FAIL_WITHOUT_GPU": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=max(setup.left_s, 1.0))
    except subprocess.TimeoutExpired:
        yield {"stopped": f"not done after {setup.soft_s:.0f} s"}
        return
    yield from _results(results, done)


def _results(results: Path, done: "subprocess.CompletedProcess[str]") -> Iterator[Row]:
    if not results.exists():
        last = (done.stderr.strip() or done.stdout.strip() or "without a word").splitlines()[-1]
        yield {"not_run": f"pytest ended with status {done.returncode}: {last}"}
        return
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for case in ElementTree.parse(results).getroot().iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        wrong = next((each for each in case if each.tag in ("failure", "error", "skipped")), None)
        if wrong is None:
            counts["passed"] += 1
            continue
        outcome = "skipped" if wrong.tag == "skipped" else "failed"
        counts[outcome] += 1
        yield {outcome: name, "because": (wrong.get("message") or "").partition("\n")[0][:300]}
    yield {"status": done.returncode, **counts}
