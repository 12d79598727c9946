"""A place to run the command in, and the command as a process."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.matrix.processes import FAULTY, ROOT, Start


@pytest.fixture
def workplace(tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with good videos in ``in``."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for place, path in enumerate(sorted(videos.rglob("*.*"))):
        shutil.copy(path, f"in/{place}{path.suffix}")
    return tmp_path


@pytest.fixture
def start(exported: Path) -> Iterator[Start]:
    """Start ``harec-deploy label`` as a process, with the faulty decoder in its children; it is ended with the test."""
    begun: list[subprocess.Popen[str]] = []

    def begin(
        *more: str, source: str = "in", code: str = FAULTY, env: dict[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, "label", source, "-b", str(exported), "-o", "out.jsonl"]
        command += ["--runner", "openvino", "--precision", "fp32", *more]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        begun.append(subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)} | (env or {}), **pipes))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()
