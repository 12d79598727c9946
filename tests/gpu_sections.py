"""Sections for gpu_check that go wrong in the ways that sections go wrong."""

import json
import os
import signal
import time
from collections.abc import Iterator

from benchmarks.gpu_check import Row, Setup


def dies(setup: Setup) -> Iterator[Row]:
    yield {"figure": 1}
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(setup: Setup) -> Iterator[Row]:
    while True:
        time.sleep(1)
        yield from ()


def raises(setup: Setup) -> Iterator[Row]:
    print("what a library prints is no row")  # noqa: T201
    yield {"figure": 2}
    raise RuntimeError("CUDA error:\nan illegal memory access")


def lacks(setup: Setup) -> Iterator[Row]:
    import nosuchmodule  # noqa: F401

    yield {}


def looks_back(setup: Setup) -> Iterator[Row]:
    """Say what is in the JSON while the check still runs."""
    sections = json.loads(setup.out.read_text())["sections"]
    yield {"states": {name: section["state"] for name, section in sections.items()}}
    yield {"figures": [row["figure"] for section in sections.values() for row in section["rows"] if "figure" in row]}
