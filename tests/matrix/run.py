"""Labels all files of one table of the test matrix in one run, each with a good video behind it."""

import ctypes
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from harec_deploy.label.journal import Row
from harec_deploy.label.run import Options, label
from harec_deploy.label.summary import Summary
from tests.media import make_video

GOOD = "zz_good.mp4"  # sorted behind every other name
Made = tuple[str, Callable[[Path], object]]  # a file's name and what writes it there


@dataclass(frozen=True)
class Table:
    """The rows of one table: of each file by its id, and of the good video that came right behind it."""

    rows: dict[str, Row]
    behind: dict[str, Row]
    good: Row
    summary: Summary

    def failed(self, name: str, *codes: str) -> Row:
        """Assert that a file failed with one of these codes, has nothing of a label, and changed no other; its row."""
        row = self.rows[name]
        assert row.status == "failed"
        assert row.error is not None
        assert row.error["code"] in codes
        assert (row.label, row.score, row.top, row.segments) == (None, None, [], [])
        self.next_is_ok(name)
        return row

    def labelled(self, name: str, status: str = "ok") -> Row:
        """Assert that a file has a label, of decoded frames, and changed no other; its row."""
        row = self.rows[name]
        assert (row.status, row.error) == (status, None)
        assert row.label in {label for label, _ in row.top}
        assert row.score is not None
        assert 0 < row.score <= 1
        assert row.frames_decoded
        self.next_is_ok(name)
        return row

    def next_is_ok(self, name: str) -> None:
        """Assert that the good video behind a file has the row of a run of its own."""
        assert_same_label(self.behind[name], self.good)


def assert_same_label(row: Row, other: Row, tolerance: float = 1e-5) -> None:
    """Assert that two videos came out with the same status, label and score."""
    assert (row.status, row.label, row.error) == (other.status, other.label, other.error)
    assert row.score == pytest.approx(other.score, abs=tolerance)


def label_files(bundle: Path, inputs: list[str], out: Path, **options: Any) -> Summary:
    """Label with the settings that all these tests share; the journal must have a row for each input, and no more."""
    summary = label(bundle, inputs, Options(out=out, **{"runner": "openvino", "precision": "fp32", **options}))
    lines = [json.loads(line)["path"] for line in out.with_suffix(".jsonl").read_bytes().splitlines()[1:]]
    assert sorted(lines) == sorted(row.path for row in summary.rows)
    return summary


def label_table(bundle: Path, folder: Path, table: Mapping[str, Made], **options: Any) -> Table:
    """Write the files of ``table``, one in each folder, and label them all by one child, one after the other."""
    return label_written(bundle, folder, write_table(bundle, folder, table), **options)


def write_table(bundle: Path, folder: Path, table: Mapping[str, Made]) -> dict[str, Path]:
    """Write the files of ``table``, each in a folder of its own with a good video behind it."""
    paths = {}
    for name, (file_name, make) in table.items():
        paths[name] = folder / name / file_name
        paths[name].parent.mkdir(parents=True)
        make(paths[name])
        (folder / name / GOOD).write_bytes(good_video(bundle, folder.parent)[0])
    return paths


def label_written(bundle: Path, folder: Path, paths: Mapping[str, Path], **options: Any) -> Table:
    """Label what ``write_table`` wrote."""
    summary = label_files(bundle, [str(folder)], folder.with_suffix(".jsonl"), **{"workers": 1, **options})
    rows = rows_by_name(summary)
    return Table(
        rows={name: rows[str(path)] for name, path in paths.items() if str(path) in rows},
        behind={name: rows[str(folder / name / GOOD)] for name in paths},
        good=good_video(bundle, folder.parent)[1],
        summary=summary,
    )


def rows_by_name(summary: Summary) -> dict[str, Row]:
    """Return the rows by the exact names of their files."""
    return {row.key[0]: row for row in summary.rows}


@cache
def good_video(bundle: Path, folder: Path) -> tuple[bytes, Row]:
    """Return a good video, and its row in a run in which there was nothing else."""
    path = make_video(folder / "alone.mp4", frames=30)
    (row,) = label_files(bundle, [str(path)], folder / "alone.jsonl").rows
    assert row.status == "ok"
    return path.read_bytes(), row


def command(bundle: Path, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run ``harec-deploy label`` as a user does."""
    line = [sys.executable, "-m", "harec_deploy", "label", "-b", str(bundle), "--runner", "openvino", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=timeout_s)


# Root reads everything. Without these two capabilities it is held to the modes of files like anybody else.
WITHOUT_RIGHTS = """
import ctypes, os, sys
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; refused where there is nothing to lose
os.execv(sys.executable, [sys.executable, "-m", "harec_deploy", *sys.argv[1:]])
"""


def command_without_rights(bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``harec-deploy label`` with the rights of a plain user, also where the tests are run by root."""
    line = [sys.executable, "-c", WITHOUT_RIGHTS, "label", "-b", str(bundle), "--runner", "openvino", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


@contextmanager
def opened(*paths: Path) -> Iterator[list[str]]:
    """Watch files and give, when the block ends, the names of those that any process opened (Linux, inotify)."""
    libc = ctypes.CDLL(None, use_errno=True)
    watcher = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert watcher >= 0
    watched = {libc.inotify_add_watch(watcher, os.fsencode(path), 0x20): str(path) for path in paths}  # IN_OPEN
    assert min(watched) > 0, os.strerror(ctypes.get_errno())
    seen: list[str] = []
    try:
        yield seen
        try:
            events = os.read(watcher, 1 << 16)
        except BlockingIOError:
            events = b""
        while events:
            watch, _, _, length = struct.unpack_from("iIII", events)
            seen.append(watched[watch])
            events = events[16 + length :]
    finally:
        os.close(watcher)
