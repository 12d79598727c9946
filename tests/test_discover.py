"""What a labelling run takes from folders, lists and globs, and what it passes over."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from harec_deploy.discover import discover
from harec_deploy.errors import UsageError


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with videos, other files, links and a FIFO; it is the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("in/b.mp4", "in/a/c.AVI", "in/a/notes.txt", "in/a/noext", "in/.hidden.mkv", "other/d.webm"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("x")
    os.mkfifo("in/fifo.mp4")
    Path("in/folder.mp4").mkdir()
    Path("in/folder.mp4/e.mov").write_text("x")
    Path("in/link.mp4").symlink_to("../other/d.webm")
    Path("in/loop").symlink_to("..")
    Path("in/broken.mp4").symlink_to("nothing")
    return tmp_path


def names(*inputs: str, **options: bool) -> list[str]:
    return [video.name for video in discover(inputs, **options).videos]


def test_a_folder_is_walked_and_sorted(tree: Path) -> None:
    found = discover(["in"])
    assert names("in") == ["in/.hidden.mkv", "in/a/c.AVI", "in/b.mp4", "in/fifo.mp4", "in/folder.mp4/e.mov"]
    assert found.ignored == {"links": 3, "other files": 2}
    errors = {video.name: video.error.kind for video in found.videos if video.error}
    assert errors == {"in/fifo.mp4": "not_regular"}


def test_all_files_takes_any_suffix(tree: Path) -> None:
    assert set(names("in", all_files=True)) - set(names("in")) == {"in/a/notes.txt", "in/a/noext"}


def test_named_files_are_taken_whatever_their_suffix(tree: Path) -> None:
    assert names("in/a/noext", "./in//b.mp4") == ["in/a/noext", "in/b.mp4"]


def test_a_named_link_is_meant(tree: Path) -> None:
    (video,) = discover(["in/link.mp4"]).videos
    assert video.error is None
    assert video.path == (tree / "other/d.webm").resolve()


def test_one_name_twice_is_one_video(tree: Path) -> None:
    assert names("in/b.mp4", "in", "in/b.mp4") == names("in")


def test_globs_and_lists(tree: Path) -> None:
    Path("list.txt").write_bytes(b"in/b.mp4\r\n\nother\nin/a/*.AVI\n")
    assert names("@list.txt") == ["in/a/c.AVI", "in/b.mp4", "other/d.webm"]
    listed = b"in/b.mp4\0other/d.webm\0"
    code = "from harec_deploy.discover import discover; print([video.name for video in discover(['-', 'in/a']).videos])"
    done = subprocess.run([sys.executable, "-c", code], input=listed, capture_output=True, check=True)
    assert done.stdout.decode() == "['in/a/c.AVI', 'in/b.mp4', 'other/d.webm']\n"
    done = subprocess.run(
        ["sh", "-c", f"{shlex.join([sys.executable, '-c', code])} <&-"], capture_output=True, check=False
    )
    assert b"UsageError: - stands for a list on standard input, and there is none" in done.stderr
    Path("windows.txt").write_bytes(b"\xef\xbb\xbfin/b.mp4\r\n")
    assert names("@windows.txt") == ["in/b.mp4"]
    assert names("in/**/*.mov") == ["in/folder.mp4/e.mov"]
    assert names(str(tree / "in" / "*.mkv")) == [str(tree / "in" / ".hidden.mkv")]


@pytest.mark.parametrize("name", [b"\xff\xfe.mp4", b"a\nb.mp4", b"-rf.mp4", b"http:x.mp4", b"*.mp4", b"@x.mp4"])
def test_any_name_is_only_a_name(tmp_path: Path, name: bytes) -> None:
    path = os.fsencode(tmp_path) + b"/" + name
    Path(os.fsdecode(path)).write_text("x")
    (video,) = discover([str(tmp_path)]).videos
    assert os.fsencode(video.name) == path
    assert video.error is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gone", "gone: no such file or folder"),
        ("in/*.xyz", "nothing matches"),
        ("http://example.com/a.mp4", "only local files and folders are labelled; download it first"),
        ("@gone.txt", "expected a text file with a path a line"),
        ("@loop.txt", "@loop.txt: the list names itself; expected a text file with a path a line"),
    ],
)
def test_inputs_that_do_not_exist(tree: Path, text: str, message: str) -> None:
    Path("round.txt").write_text("@loop.txt\n")
    Path("loop.txt").write_text("in\n@round.txt\n")
    with pytest.raises(UsageError, match=message.replace("*", r"\*")):
        discover([text])


def test_folders_may_lie_deeper_than_python_can_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    depth = sys.getrecursionlimit() + 100
    folder = os.open(".", os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=folder)
        inner = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(os.open("deep.mp4", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
    os.close(folder)
    Path("z.mp4").touch()
    try:
        assert [video.name.count("/d") for video in discover(["."]).videos] == [depth + 1, 0]
    finally:
        subprocess.run(["rm", "-r", "d"], check=True)  # pytest and shutil would call themselves too often


def test_what_lies_above_a_linked_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "far/inner").mkdir(parents=True)
    (tmp_path / "near").mkdir()
    (tmp_path / "near/link").symlink_to(tmp_path / "far/inner")
    for name in ("far/v.mp4", "near/v.mp4"):
        (tmp_path / name).write_text(name)
    (video,) = discover(["near/link/../v.mp4"]).videos
    assert video.path == tmp_path / "far/v.mp4"
    (video,) = discover(["near/../near/v.mp4"]).videos
    assert (video.name, video.path) == ("near/v.mp4", tmp_path / "near/v.mp4")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_an_unreadable_folder_is_one_failed_row(tree: Path) -> None:
    Path("in/a").chmod(0)
    (video,) = (video for video in discover(["in"]).videos if video.error and video.error.kind == "unreadable")
    assert video.name == "in/a"
