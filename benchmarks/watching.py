"""Runs a program and measures it from outside: when its lines come, processor time and memory of it and its children.

Memory is the proportional set size, added up over the tree, so that pages which processes share count once.
"""

import ctypes
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LINES_EVERY_S = 0.01
MEMORY_EVERY_S = 0.25
ENDING_S = 10.0  # that what a program leaves behind has, before it is ended
PR_SET_CHILD_SUBREAPER = 36


@dataclass
class Watched:
    """What was seen of a program: its status and lines, each with the seconds since its start, and what it cost."""

    status: int = 0
    lines: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    whole_s: float = 0.0
    cpu_s: float = 0.0
    peak_mib: float = 0.0
    said: str = ""

    @property
    def rows(self) -> list[tuple[float, dict[str, Any]]]:
        """The lines that tell a label."""
        return [(at, line) for at, line in self.lines if "label" in line]


def parents() -> dict[int, int]:
    """Return the parent of every process, zombies left out."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, ppid = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has ended meanwhile
            continue
        if state != "Z":
            found[int(folder.name)] = int(ppid)
    return found


def descendants(root: int) -> set[int]:
    """Return the processes below one, however deep."""
    above, found, new = parents(), set[int](), {root}
    while new:
        new = {pid for pid, parent in above.items() if parent in new} - found
        found |= new
    return found


def pss_mib(pid: int) -> float:
    """Return the share of memory that is a process's own, 0.0 when it has ended."""
    try:
        rolled = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return int(rolled.split("Pss:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        return 0.0


def lines_of(text: str) -> list[dict[str, Any]]:
    """Return the JSON objects in lines of text; what stands before or after one in its line is passed over."""
    found = []
    for line in text.splitlines():
        start = line.find('{"')
        if start < 0:
            continue
        try:
            value, _ = json.JSONDecoder().raw_decode(line, start)
        except json.JSONDecodeError:
            continue
        found.append(value)
    return found


def watch(command: Sequence[str], *, env: Mapping[str, str], journal: Path | None = None) -> Watched:
    """Run a command to its end, and reap all that it started.

    journal: the file whose lines count, where they do not come out of the program itself.
    """
    # What loses its parent becomes a child of this process: its time is counted too, and nothing stays behind.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    seen, start, next_look = Watched(), time.monotonic(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        said, complained = Path(folder) / "out", Path(folder) / "err"
        with said.open("w") as out, complained.open("w") as err:
            process = subprocess.Popen(command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env={**env})
        reader = _Reader(journal or said, start)
        while True:
            seen.lines += reader.new()
            if time.monotonic() >= next_look:
                memory = sum(pss_mib(pid) for pid in descendants(os.getpid()))
                seen.peak_mib, next_look = max(seen.peak_mib, memory), time.monotonic() + MEMORY_EVERY_S
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(LINES_EVERY_S)
        seen.whole_s = time.monotonic() - start
        process.returncode = seen.status = os.waitstatus_to_exitcode(status)
        seen.cpu_s = used.ru_utime + used.ru_stime + _reap_rest()
        seen.lines += reader.new()
        seen.said = complained.read_text(errors="replace")
    return seen


def _reap_rest() -> float:
    """Wait for what a program left running, end it if it goes on; return the seconds of processor that it used."""
    used_s, give_up = 0.0, time.monotonic() + ENDING_S
    while True:
        try:
            pid, _, used = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return used_s
        if pid:
            used_s += used.ru_utime + used.ru_stime
        elif time.monotonic() > give_up:
            for child in descendants(os.getpid()):
                os.kill(child, signal.SIGKILL)
            give_up = time.monotonic() + ENDING_S
        else:
            time.sleep(LINES_EVERY_S)


class _Reader:
    """Gives the lines that a growing file has got since it was last asked."""

    def __init__(self, path: Path, start: float) -> None:
        self.path, self.start, self.offset = path, start, 0

    def new(self) -> list[tuple[float, dict[str, Any]]]:
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self.offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self.offset += len(whole) + len(newline)
        now = time.monotonic() - self.start
        return [(now, line) for line in lines_of(whole.decode(errors="replace"))]
