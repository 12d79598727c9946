"""Table E, what a run holds and says while it works: E24 terminals, E27 in small (in full: benchmarks/soak.py)."""

import contextlib
import os
import re
import signal
from pathlib import Path

import pytest

from tests.matrix.processes import MAIN, Start, finish, many, rows, wait_for
from tests.media import make_video, repeat
from tests.test_workers import children


def test_memory_does_not_grow_with_a_videos_length(workplace: Path, start: Start) -> None:
    """Forty minutes in windows take what four minutes take, in the run and in its child; see benchmarks/soak.py."""
    minute = make_video(Path("minute.mp4"), frames=300, fps=5, width=64, height=48, gop=25)
    peaks = []
    for minutes in (4, 40):
        path = repeat(minute, Path(f"{minutes}.mp4"), minutes)
        options = ("--window", "4s", "--stride", "1s", "--workers", "1", "--all-files", "--restart")
        process = start(*options, source=path.name)
        peak = [0, 0]
        while process.poll() is None:
            for place, pids in enumerate(({process.pid}, children(process.pid))):
                with contextlib.suppress(OSError, IndexError):  # it has just ended
                    # A child that is still a copy of its parent shows the parent's memory.
                    own = [pid for pid in pids if not place or command_line(pid) != command_line(process.pid)]
                    peak[place] = max(peak[place], *(memory_kib(pid, "VmHWM") for pid in own), 0)
        assert finish(process)[0] == 0
        (row,) = rows()
        assert row["duration_s"] == pytest.approx(60 * minutes)
        peaks.append(peak)
    assert peaks[0][1] > 10_000, "the child was never seen"
    # A table of packets is kept, some hundred bytes a frame: 11,000 frames more.
    assert peaks[1][0] < peaks[0][0] + 16_384
    assert peaks[1][1] < peaks[0][1] + 16_384


def memory_kib(pid: int, field: str) -> int:
    """Return what a process has in memory, "VmRSS", or had at most, "VmHWM"."""
    return int(Path(f"/proc/{pid}/status").read_text().split(f"{field}:")[1].split()[0])


def command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


class TestProgress:
    """Said while it works: a bar on a terminal, lines elsewhere, nothing when it is to be quiet."""

    NOTE = r"[\d.]+ videos/s, 1 failed; engine \d+%, decode \d+% busy"

    def test_lines_where_there_is_no_terminal(self, workplace: Path, start: Start) -> None:
        Path("in/bad.mp4").write_text("no video")
        code = "import harec_deploy.__main__, sys; sys.modules['harec_deploy.cli.label'].LINE_EVERY_S = 0; "
        _, _, err = finish(start(code=code + MAIN))
        told = [line for line in err.splitlines() if re.fullmatch(rf"\d/7 videos, {self.NOTE}; 0m0\ds left", line)]
        assert told[-1].startswith("7/7 videos")
        assert finish(start("--restart", "-q", code=code + MAIN))[2] == ""

    def test_a_bar_on_a_terminal(self, workplace: Path, start: Start) -> None:
        Path("in/bad.mp4").write_text("no video")
        terminal, its_end = os.openpty()
        process = start(stderr=its_end, env={"TERM": "xterm", "COLUMNS": "160"})
        os.close(its_end)
        seen = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(terminal, 4096):
                seen += part
        os.close(terminal)
        assert process.wait(timeout=60) == 3
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
        assert re.search(rf"labelling +\S+ +7/7 +{self.NOTE}", text), text


def written() -> int:
    """Return the rows in the journal, not read: there are thousands, looked at often."""
    journal = Path("out.jsonl")
    return journal.read_bytes().count(b"\n") - 1 if journal.exists() else 0


def test_what_a_run_holds_does_not_grow(workplace: Path, start: Start) -> None:
    """E27 in small: memory, descriptors and children are the same after 200 videos and after 3,000."""
    many(5000)  # so many that it is far from its end when it is looked at
    process = start("--workers", "2")
    held = []
    for target in (200, 3000):
        wait_for(lambda target=target: written() >= target, process)  # type: ignore[misc]
        held.append(
            (
                memory_kib(process.pid, "VmRSS"),
                max(memory_kib(child, "VmRSS") for child in children(process.pid)),
                len(list(Path(f"/proc/{process.pid}/fd").iterdir())),
                len(children(process.pid)),
            )
        )
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    (early_kib, early_child_kib, *early), (late_kib, late_child_kib, *late) = held
    assert early == late
    assert late[1] == 2
    assert late_kib < early_kib + 8192
    assert late_child_kib < early_child_kib + 4096
