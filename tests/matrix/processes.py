"""Runs as processes: how they are started and waited for, and what they leave."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MAIN = "from harec_deploy.__main__ import main; main()"
FAULTY = "from harec_deploy.decode import DECODERS; DECODERS['pyav'] = 'tests.faulty:FaultyDecoder'; " + MAIN
Start = Callable[..., subprocess.Popen[str]]


def many(count: int, start: int = 0) -> None:
    """Make the good videos ``count`` more."""
    for place in range(start, start + count):
        shutil.copy("in/0.mp4", f"in/copy{place:04d}.mp4")


def rows(path: str = "out.jsonl") -> list[dict[str, Any]]:
    """Return the rows that are whole."""
    if not Path(path).exists():
        return []
    whole = [line for line in Path(path).read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    return [json.loads(line) for line in whole[1:]]


def wait_for(state: Callable[[], object], process: subprocess.Popen[str], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not state():
        assert process.poll() is None, f"it ended before: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err
    return process.returncode, out, err


def same(row: dict[str, Any]) -> str:
    """Return a row as text, to be compared."""
    return json.dumps({**row, "score": round(row["score"] or 0, 4), "top": None})
