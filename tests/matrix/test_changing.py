"""Table D of the test matrix, second part: files that change while they are read, the run's own, a mount that hangs.

The id of a row stands in the test's id or name. What other tests cover: D16
tests/test_workers.py::test_a_video_that_changes_or_goes_is_noticed, on the decoders alone.

A hanging mount (D20) needs FUSE and the right to mount; a decoder that hangs for another reason is in
tests/test_workers.py::test_a_fault_costs_one_video[HANG].
"""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harec_deploy.decode import DECODERS
from harec_deploy.discover import discover
from harec_deploy.label.journal import Row
from tests.faulty import PAUSE
from tests.matrix.hanging_mount import hanging_mount
from tests.matrix.run import assert_same_label, command, good_video, label_files, rows_by_name


@pytest.fixture(scope="module")
def good(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Row]:
    """A good video and its row."""
    return good_video(exported, tmp_path_factory.mktemp("good"))


def swapped(path: Path, kind: str) -> None:
    """Put something else in a file's place."""
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(path.with_name("zz_good.mp4"))


@pytest.mark.parametrize(
    ("kind", "code"),
    [("gone", "vanished"), ("fifo", "not_regular"), ("folder", "not_regular"), ("link", "not_regular")],
)
def test_d16_d18_swapped_after_it_was_found(
    exported: Path, tmp_path: Path, good: tuple[bytes, Row], kind: str, code: str
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.mp4", "zz_good.mp4"):
        (folder / name).write_bytes(good[0])
    told: list[str] = []

    def swap(text: str) -> None:  # the run says how many videos there are before it opens the first
        told.append(text)
        if len(told) == 1:
            swapped(folder / "a.mp4", kind)

    bad, last = label_files(exported, [str(folder)], tmp_path / "out.jsonl", workers=1, announce=swap).rows
    assert told[0].startswith("2 videos")
    assert bad.error is not None
    assert bad.error["code"] == code
    assert bad.label is None
    assert_same_label(last, good[1])


def grow(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"more")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "D16 deleted": (Path.unlink, "vanished"),
    "D17 grows": (grow, "changed"),
    "D17 is truncated": (lambda path: os.truncate(path, 100), "changed"),
    "D17 is emptied": (lambda path: os.truncate(path, 0), "changed"),
    "D17 is replaced": (lambda path: path.with_name("zz_good.mp4").rename(path), "changed"),
    "D17 is touched": (lambda path: os.utime(path, (1, 1)), "changed"),
    "D18 becomes a fifo": (lambda path: swapped(path, "fifo"), "changed"),
}


@pytest.mark.parametrize("row", CHANGES)
def test_changed_while_it_is_read(
    exported: Path, tmp_path: Path, good: tuple[bytes, Row], monkeypatch: pytest.MonkeyPatch, row: str
) -> None:
    change, code = CHANGES[row]
    monkeypatch.setitem(DECODERS, "pyav", "tests.faulty:FaultyDecoder")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(good[0] + PAUSE)
    for name in ("zz_good.mp4", "zzz_good.mp4"):
        (folder / name).write_bytes(good[0])
    reading = folder / "a.mp4.reading"
    changed = threading.Event()

    def change_it() -> None:
        while not reading.exists():
            time.sleep(0.01)
        change(folder / "a.mp4")
        changed.set()
        reading.rmdir()

    thread = threading.Thread(target=change_it, daemon=True)
    thread.start()
    rows = rows_by_name(label_files(exported, [str(folder)], tmp_path / "out.jsonl", workers=1))
    assert changed.is_set()
    bad = rows[str(folder / "a.mp4")]
    assert bad.error is not None
    assert bad.error["code"] == code
    assert (bad.label, bad.score, bad.top) == (None, None, [])
    assert_same_label(rows[str(folder / "zzz_good.mp4")], good[1])


def test_d17_a_pause_alone_changes_nothing(
    exported: Path, tmp_path: Path, good: tuple[bytes, Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without this the tests above could pass on a file that is refused for its end.
    (tmp_path / "a.mp4").write_bytes(good[0] + PAUSE)
    (row,) = label_files(exported, [str(tmp_path / "a.mp4")], tmp_path / "out.jsonl").rows
    assert_same_label(row, good[1])


# The run's own files; a mount that hangs


def test_d19_results_in_the_folder_of_the_inputs(exported: Path, tmp_path: Path, good: tuple[bytes, Row]) -> None:
    (tmp_path / "clip.mp4").write_bytes(good[0])
    for name in ("out.csv", "again.jsonl"):
        for _ in range(2):
            (row,) = label_files(exported, [str(tmp_path)], tmp_path / name).rows
            assert_same_label(row, good[1])
    assert {"out.csv", "out.jsonl", "again.jsonl"} <= {path.name for path in tmp_path.iterdir()}


def test_d19_own_files_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("clip.mp4", "out.jsonl", "sub/out.jsonl"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    found = discover(["."], all_files=True, but=[tmp_path / "out.jsonl"])
    assert [video.name for video in found.videos] == ["./clip.mp4", "./sub/out.jsonl"]
    assert found.ignored == {"own files": 1}
    (named,) = discover(["out.jsonl"], but=[tmp_path / "out.jsonl"]).videos
    assert named.name == "out.jsonl"


def test_d20_a_mount_that_hangs(exported: Path, tmp_path: Path, good: tuple[bytes, Row]) -> None:
    for name in ("in/mount", "in/next"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "in/next/clip.mp4").write_bytes(good[0])
    out = tmp_path / "out.jsonl"
    with hanging_mount(tmp_path / "in/mount", "clip.mp4") as reading:
        options = ("-o", str(out), "--timeout", "2", "--workers", "1", "-q")
        done = command(exported, str(tmp_path / "in"), *options, timeout_s=20)
        assert reading.is_set()
    assert done.returncode == 3
    bad, last = [json.loads(line) for line in out.read_text().splitlines()[1:]]
    assert bad["error"]["code"] == "timeout"
    assert (last["status"], last["label"]) == ("ok", good[1].label)
