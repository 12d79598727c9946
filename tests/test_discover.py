"""What a labelling run takes from folders, lists and globs, and what it passes over."""

import os
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
    ],
)
def test_inputs_that_do_not_exist(tree: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("*", r"\*")):
        discover([text])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_an_unreadable_folder_is_one_failed_row(tree: Path) -> None:
    Path("in/a").chmod(0)
    (video,) = (video for video in discover(["in"]).videos if video.error and video.error.kind == "unreadable")
    assert video.name == "in/a"
