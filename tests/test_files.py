"""Files appear whole or not at all."""

import os
import socket
import stat
from pathlib import Path

import pytest

from harec_deploy.errors import VideoError
from harec_deploy.files import atomic_folder, atomic_write, open_regular, sha256


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"), atomic_write(path) as stream:
        stream.write(b"half of the new")
        assert path.read_bytes() == b"old"
        raise OSError("disk full")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_file_is_private_and_the_final_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with atomic_write(path) as stream:
        stream.write(b"new")
        (temporary,) = tmp_path.iterdir()
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_folder_takes_the_place_of_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "variant"
    for text in ("first", "second"):
        with atomic_folder(path) as staging:
            (staging / text).write_text(text)
    assert [file.name for file in path.iterdir()] == ["second"]
    with pytest.raises(RuntimeError, match="proof"), atomic_folder(path) as staging:
        (staging / "third").write_text("third")
        raise RuntimeError("proof")
    assert [file.name for file in path.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [path]


def test_sha256_of_a_known_text(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


class TestOpenRegular:
    def kind(self, path: Path) -> str:
        with pytest.raises(VideoError) as caught, open_regular(path):
            pass
        return caught.value.kind

    def test_refuses_what_is_no_regular_file(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "target").write_text("x")
        (tmp_path / "link").symlink_to(tmp_path / "target")
        (tmp_path / "broken").symlink_to(tmp_path / "nothing")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "socket"))
            for name in ("fifo", "link", "broken", "socket"):
                assert self.kind(tmp_path / name) == "not_regular", name
        assert self.kind(tmp_path) == "not_regular"
        assert self.kind(Path("/dev/zero")) == "not_regular"

    def test_tells_missing_from_empty(self, tmp_path: Path) -> None:
        (tmp_path / "empty").touch()
        assert self.kind(tmp_path / "empty") == "empty"
        assert self.kind(tmp_path / "gone") == "vanished"

    def test_gives_a_descriptor_of_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"content")
        with open_regular(tmp_path / "file") as descriptor:
            assert os.read(descriptor, 100) == b"content"
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(descriptor)
