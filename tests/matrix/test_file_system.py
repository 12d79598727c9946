"""Table D of the test matrix: what a file system may hold. The id of a row stands in the test's id or name.

What other tests cover:

D2   tests/test_discover.py::test_a_folder_is_walked_and_sorted (in/folder.mp4)
D10  tests/test_label.py::test_a_name_that_is_no_text_survives
D15  tests/test_label.py::test_no_videos_is_an_error_that_says_what_was_there (none),
     tests/test_cli.py (a folder that is missing: exit status 2)
D16 to D20  tests/matrix/test_changing.py
"""

import csv
import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harec_deploy.discover import discover
from harec_deploy.label.journal import Row
from tests.matrix.run import (
    WITHOUT_RIGHTS,
    Made,
    Table,
    assert_same_label,
    command,
    command_without_rights,
    good_video,
    label_files,
    label_table,
    opened,
    rows_by_name,
)


@pytest.fixture(scope="module")
def good(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Row]:
    """A good video and its row."""
    return good_video(exported, tmp_path_factory.mktemp("good"))


# One run over files of odd kinds and names


def listening(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the address of a socket holds 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def device(path: Path, kind: int, number: int) -> None:
    """Make a device, or where that is not allowed, a FIFO."""
    try:
        os.mknod(path, kind | 0o600, number)
    except PermissionError:
        os.mkfifo(path)


KINDS: dict[str, tuple[int, Callable[[Path], None]]] = {
    "D1 fifo": (stat.S_IFIFO, os.mkfifo),
    "D1 socket": (stat.S_IFSOCK, listening),
    "D1 zeros": (stat.S_IFCHR, lambda path: device(path, stat.S_IFCHR, os.makedev(1, 5))),
    "D1 disk": (stat.S_IFBLK, lambda path: device(path, stat.S_IFBLK, os.makedev(7, 250))),
}
NAMES = {
    "D2": b"folder.mp4/clip.mp4",
    "D9 lower": b"name.mp4",
    "D9 upper": b"NAME.mp4",
    "D9 composed": "\u00e9.mp4".encode(),
    "D9 decomposed": "e\u0301.mp4".encode(),
    "D10": b"\xff\xfe.mp4",
    "D11 newline": b"a\nb.mp4",
    "D11 tab": b"a\tb.mp4",
    "D11 escape": b"\x1b[31mred\x1b[0m.mp4",
    "D11 C1": "\u009b31m.mp4".encode(),
    "D11 quotes": b"\"'`.mp4",
    "D11 comma": b"a,b;c.mp4",
    "D11 delete": b"\x01\x7f.mp4",
    "D11 right to left": "\u202e4pm.mp4".encode(),
    "D13 -rf": b"-rf.mp4",
    "D13 --help": b"--help.mp4",
    "D13 http": b"http:x.mp4",
    "D13 concat": b"concat:a.mp4",
    "D13 %": b"f%03d.mp4",
    "D13 ~": b"~.mp4",
    "D13 $": b"$(id).mp4",
    "D14 255": b"a" * 251 + b".mp4",
    "D14 3900": b"/".join([b"d" * 200] * 19) + b"/clip.mp4",
}


@pytest.fixture(scope="module")
def table(exported: Path, tmp_path_factory: pytest.TempPathFactory, good: tuple[bytes, Row]) -> tuple[Table, Path]:
    def copy(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(good[0])

    made: dict[str, Made] = {name: ("clip.mp4", make) for name, (_, make) in KINDS.items()}
    made |= {name: (os.fsdecode(file_name), copy) for name, file_name in NAMES.items()}
    folder = tmp_path_factory.mktemp("kinds") / "in"
    return label_table(exported, folder, made), folder


@pytest.mark.parametrize("row", KINDS)
def test_only_regular_files_are_opened(table: tuple[Table, Path], row: str) -> None:
    rows, folder = table
    if stat.S_IFMT((folder / row / "clip.mp4").lstat().st_mode) != KINDS[row][0]:
        pytest.skip("no devices can be made here")
    rows.failed(row, "not_regular")


def test_d1_a_fifo_is_not_even_opened(exported: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "in" / "clip.mp4"
    fifo.parent.mkdir()
    os.mkfifo(fifo)
    with opened(fifo) as seen:
        (row,) = label_files(exported, [str(fifo.parent)], tmp_path / "out.jsonl").rows
    assert row.error is not None
    assert row.error["code"] == "not_regular"
    assert seen == []


def test_d1_a_device_behind_a_link_that_was_named(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").symlink_to("/dev/zero")
    start = time.monotonic()
    (row,) = label_files(exported, [str(tmp_path / "clip.mp4")], tmp_path / "out.jsonl").rows
    assert time.monotonic() - start < 30  # it has no end
    assert row.error is not None
    assert row.error["code"] == "not_regular"


@pytest.mark.parametrize("row", NAMES)
def test_names_are_only_names(table: tuple[Table, Path], good: tuple[bytes, Row], row: str) -> None:
    got = table[0].labelled(row)
    assert_same_label(got, good[1])
    assert os.fsencode(got.key[0]).endswith(b"/" + NAMES[row])


def test_d11_a_line_for_each_name(table: tuple[Table, Path]) -> None:
    lines = table[1].with_suffix(".jsonl").read_bytes().splitlines()
    assert len(lines) == 1 + 2 * (len(KINDS) + len(NAMES))
    assert all(line.isascii() or line.decode() for line in lines)
    paths = {json.loads(line)["path"] for line in lines[1:]}
    assert str(table[1] / "D11 newline" / "a\nb.mp4") in paths


# Rights


@pytest.fixture(scope="module")
def without_rights(
    exported: Path, tmp_path_factory: pytest.TempPathFactory, good: tuple[bytes, Row]
) -> Iterator[tuple[Path, subprocess.CompletedProcess[str], dict[str, Any]]]:
    """A run that may read neither one file nor one folder, and write to none."""
    root = tmp_path_factory.mktemp("rights")
    folder = root / "in"
    for name in ("a_secret.mp4", "closed/clip.mp4", "open/clip.mp4", "zz_good.mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(good[0])
    (folder / "a_secret.mp4").chmod(0)
    (folder / "closed").chmod(0)
    (folder / "open").chmod(0o555)
    folder.chmod(0o555)
    done = command_without_rights(exported, str(folder), "-o", str(root / "out.jsonl"), "--precision", "fp32")
    lines = [json.loads(line) for line in (root / "out.jsonl").read_text().splitlines()[1:]]
    yield folder, done, {os.path.relpath(row["path"], folder): row for row in lines}
    for path in (folder, folder / "closed", folder / "open"):
        path.chmod(0o755)


Rights = tuple[Path, subprocess.CompletedProcess[str], dict[str, Any]]


def test_d3_d4_what_cannot_be_read_is_a_row_each(without_rights: Rights, good: tuple[bytes, Row]) -> None:
    _, done, rows = without_rights
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    failed = {name: row["error"]["code"] for name, row in rows.items() if row["error"]}
    assert failed == {"a_secret.mp4": "unreadable", "closed": "unreadable"}
    for name in ("open/clip.mp4", "zz_good.mp4"):
        assert (rows[name]["status"], rows[name]["label"]) == ("ok", good[1].label)
        assert rows[name]["score"] == pytest.approx(good[1].score, abs=1e-5)


def test_d3_the_run_has_no_rights_of_root(without_rights: Rights) -> None:
    # Opened by a plain program in the same way: with the rights of root it would say nothing.
    code = WITHOUT_RIGHTS.replace('"-m", "harec_deploy"', '"-c", "import sys; open(sys.argv[1])"')
    secret = without_rights[0] / "a_secret.mp4"
    done = subprocess.run([sys.executable, "-c", code, str(secret)], capture_output=True, text=True, timeout=60)
    assert "PermissionError" in done.stderr


def test_d21_nothing_is_written_beside_the_inputs(without_rights: Rights) -> None:
    names = sorted(str(path.relative_to(without_rights[0])) for path in without_rights[0].rglob("*"))
    assert names == ["a_secret.mp4", "closed", "closed/clip.mp4", "open", "open/clip.mp4", "zz_good.mp4"]


# Links


@pytest.fixture
def linked(tmp_path: Path, good: tuple[bytes, Row], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with links of every kind; it lies in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("in/a/clip.mp4", "in/store/1f2e", "outside/clip.mp4"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(good[0])
    for name, target in {
        "in/again.mp4": "a/clip.mp4",  # reached without the link too
        "in/kept.mp4": "store/1f2e",  # a video by the link's name only
        "in/kept2.mp4": "store/1f2e",
        "in/out.mp4": "../outside/clip.mp4",
        "in/broken.mp4": "nothing.mp4",
        "in/loop1.mp4": "loop2.mp4",
        "in/loop2.mp4": "loop1.mp4",
        "in/a/up": "..",
        "in/over": "../outside",
        "in/abroad": "/",
        "in_by_link": "in",
    }.items():
        Path(name).symlink_to(target)
    return tmp_path


LINKS = 10  # in the folder


def found(*inputs: str, **options: Any) -> tuple[list[str], dict[str, int]]:
    discovery = discover(inputs, **options)
    assert not any(video.error for video in discovery.videos)
    return [video.name for video in discovery.videos], dict(discovery.ignored)


def test_d5_d6_links_are_not_followed(linked: Path, exported: Path, good: tuple[bytes, Row]) -> None:
    assert found("in") == (["in/a/clip.mp4"], {"links": LINKS, "other files": 1})
    done = command(exported, "in", "-o", "out.jsonl")
    assert done.returncode == 0
    assert "1 ok, 0 partial, 0 failed" in done.stderr
    assert f"passed over: {LINKS} links" in done.stderr


def test_d6_links_that_stay_inside_can_be_followed(linked: Path) -> None:
    names, ignored = found("in", follow_links=True)
    assert names == ["in/a/clip.mp4", "in/kept.mp4"]  # each file once
    assert ignored == {"links": LINKS - 1, "other files": 1}
    assert discover(["in"], follow_links=True).videos[1].path == linked / "in/store/1f2e"
    assert found("in/a", follow_links=True) == (["in/a/clip.mp4"], {"links": 1})
    assert found("in", "in/a", "in/kept.mp4", follow_links=True)[0] == names


def test_d6_a_folder_may_be_named_by_a_link(linked: Path) -> None:
    assert found("in_by_link", follow_links=True)[0] == ["in_by_link/a/clip.mp4", "in_by_link/kept.mp4"]


def test_d6_a_file_that_was_followed_can_be_decoded(linked: Path, exported: Path, good: tuple[bytes, Row]) -> None:
    (row,) = label_files(exported, ["in/kept.mp4"], Path("out.jsonl")).rows
    assert_same_label(row, good[1])


def test_d5_broken_links_and_loops_that_were_named(linked: Path, exported: Path) -> None:
    summary = label_files(exported, ["in/broken.mp4", "in/loop1.mp4"], Path("out.jsonl"))
    codes = {name: row.error["code"] for name, row in rows_by_name(summary).items() if row.error}
    assert codes == {"in/broken.mp4": "vanished", "in/loop1.mp4": "not_regular"}


def test_d7_d8_a_row_for_each_name(exported: Path, tmp_path: Path, good: tuple[bytes, Row]) -> None:
    for name in ("a/clip.mp4", "b/clip.mp4"):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        (tmp_path / "in" / name).write_bytes(good[0])
    (tmp_path / "in/a/second.mp4").hardlink_to(tmp_path / "in/a/clip.mp4")
    assert (tmp_path / "in/a/clip.mp4").stat().st_nlink == 2
    rows = rows_by_name(label_files(exported, [str(tmp_path / "in")], tmp_path / "out.jsonl"))
    assert sorted(rows) == [str(tmp_path / "in" / name) for name in ("a/clip.mp4", "a/second.mp4", "b/clip.mp4")]
    for row in rows.values():
        assert_same_label(row, good[1])


# Names on a terminal, in a table, on the command line


def test_d11_a_terminal_gets_no_control_characters(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for row, name in NAMES.items():
        if row.startswith(("D10", "D11")):
            Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).touch()
    escape = os.fsdecode(NAMES["D11 escape"])
    # The table has all the names; the summary has one for each error.
    for inputs in (str(folder), str(folder / escape)):
        done = command(exported, inputs, "-o", str(tmp_path / "out.jsonl"), "--table", "--restart")
        assert done.returncode == 3
        assert "e.g. " in done.stderr
        assert [c for c in done.stdout + done.stderr if c != "\n" and not c.isprintable()] == []
    assert "\\x1b[31mred" in done.stderr


def test_d12_a_spreadsheet_runs_no_formula(
    exported: Path, tmp_path: Path, good: tuple[bytes, Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ['=HYPERLINK("http:x").mp4', "+1.mp4", "-1.mp4", "@x.mp4", "\tx.mp4", "plain.mp4"]
    for name in names:
        Path(name).write_bytes(good[0])
    summary = label_files(exported, [f"./{name}" for name in names], Path("out.csv"))
    assert sorted(rows_by_name(summary)) == sorted(names)
    with Path("out.csv").open(newline="") as stream:
        cells = {row["path"] for row in csv.DictReader(stream)}
    assert cells == {"plain.mp4", *(f"'{name}" for name in names[:-1])}


def test_d13_names_that_look_like_something_else(
    exported: Path, tmp_path: Path, good: tuple[bytes, Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = sorted(os.fsdecode(name) for row, name in NAMES.items() if row.startswith("D13"))
    for name in names:
        Path(name).write_bytes(good[0])
    done = command(exported, "-o", "out.jsonl", "--", *names)
    assert done.returncode == 0
    assert sorted(json.loads(line)["path"] for line in Path("out.jsonl").read_text().splitlines()[1:]) == names


def test_d14_a_path_that_is_longer_than_any_may_be(exported: Path, tmp_path: Path, good: tuple[bytes, Row]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "zz_good.mp4").write_bytes(good[0])
    here = os.open(folder, os.O_RDONLY)
    for _ in range(22):  # of 201 bytes each; PATH_MAX is 4096
        os.mkdir("d" * 200, dir_fd=here)
        inner = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open("clip.mp4", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    deep, last = sorted(label_files(exported, [str(folder)], tmp_path / "out.jsonl").rows, key=lambda row: row.path)
    assert deep.error is not None
    assert deep.error["code"] == "unreadable"
    assert_same_label(last, good[1])


def test_d15_many_files(tmp_path: Path) -> None:
    count = 20_000
    for place in range(count):
        (tmp_path / f"{place}.mp4").touch()
    start = time.perf_counter()
    videos = discover([str(tmp_path)]).videos
    assert time.perf_counter() - start < 10
    assert len(videos) == count
    assert [video.name for video in videos] == sorted(video.name for video in videos)
