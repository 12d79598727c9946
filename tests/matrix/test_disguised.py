"""Table A of the test matrix: files that are not what their names say. The id of a row stands in the test's id.

All are labelled in one run by one child, each with a good video behind it, which must come out as in a run of its own.

What other tests cover of the table at a lower level, on the decoder alone: tests/test_decode.py::test_refusals
(A1, A2, A3, A5, A7, A8, A10, A12, A15, A17), tests/test_discover.py (A4).
"""

import gzip
import io
import os
import re
import socket
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest

from harec_deploy.decode.pyav import PyAVDecoder
from harec_deploy.errors import VideoError
from tests.matrix.files import make_animation, make_subtitles, point_at
from tests.matrix.run import Made, Table, command, label_written, opened, write_table
from tests.media import decode_all, make_audio, make_jpeg, make_png, make_video

BAIT = "bait.ts"  # what playlists and references name: a FIFO beside them, so that opening it is seen and never ends


def text(content: str) -> Callable[[Path], object]:
    """Return what writes ``content``."""
    return lambda path: path.write_text(content)


def baited(content: str) -> Callable[[Path], object]:
    """Return what writes ``content``, in which {folder} is the file's own, and the bait beside it."""

    def write(path: Path) -> None:
        os.mkfifo(path.parent / BAIT)
        path.write_text(content.replace("{folder}", str(path.parent)))

    return write


def hls(*segments: str) -> str:
    return "#EXTM3U\n#EXT-X-TARGETDURATION:3\n" + "".join(f"#EXTINF:3,\n{s}\n" for s in segments) + "#EXT-X-ENDLIST\n"


SDP = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=x
c=IN IP4 127.0.0.1
t=0 0
m=video {port} RTP/AVP 96
a=rtpmap:96 H264/90000
"""
MPD = """<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT3S"
 profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet mimeType="video/mp4">
<Representation id="1" bandwidth="100000"><BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>
"""
HTML = "<!DOCTYPE html><html><head><title>404</title></head><body>Not found</body></html>\n"


def zipped(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("clip.mp4", content)


def tarred(path: Path, content: bytes) -> None:
    entry = tarfile.TarInfo("clip.mp4")
    entry.size = len(content)
    with tarfile.open(path, "w") as archive:
        archive.addfile(entry, io.BytesIO(content))


def with_cover(path: Path, muxer: str) -> None:
    cover = make_png(path.with_suffix(".png"))
    make_audio(path, cover=cover, muxer=muxer)
    cover.unlink()


def refer_to_bait(path: Path) -> None:
    """Write a QuickTime file that says that its samples lie in the bait."""
    os.mkfifo(path.parent / BAIT)
    point_at(make_video(path, frames=20, muxer={"movflags": "write_colr"}), BAIT)


def table(other: bytes, port: int) -> dict[str, Made]:
    """Return the files of the table; ``other`` is a good video, ``port`` that of a server."""
    url = f"http://127.0.0.1:{port}/clip.mp4"
    key = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "1" * 32, "encryption_kid": "2" * 32}
    return {
        "A1": ("clip.mp4", Path.touch),
        "A2": ("clip.mp4", text("not a video\n" * 100)),
        "A3": ("clip.mp4", lambda path: path.write_bytes(np.random.default_rng(0).bytes(1 << 20))),
        "A4 avi": ("clip.avi", lambda path: path.write_bytes(other)),
        "A4 MP4": ("clip.MP4", lambda path: path.write_bytes(other)),
        "A4 bak": ("clip.mp4.bak", lambda path: path.write_bytes(other)),
        "A4 none": ("clip", lambda path: path.write_bytes(other)),
        "A5 png": ("clip.mp4", make_png),
        "A5 jpg": ("clip.mp4", make_jpeg),
        "A6 gif": ("clip.mp4", lambda path: make_animation(path, "gif")),
        "A6 apng": ("clip.mp4", lambda path: make_animation(path, "apng")),
        "A7": ("clip.mp4", make_audio),
        "A8 m4a": ("clip.mp4", lambda path: with_cover(path, "mp4")),
        "A8 mp3": ("clip.mp4", lambda path: with_cover(path, "mp3")),
        "A9": ("clip.mkv", make_subtitles),
        "A10": ("clip.mp4", baited(f"ffconcat version 1.0\nfile {BAIT}\n")),
        "A11 m3u8 file": ("list.m3u8", baited(hls(f"file://{{folder}}/{BAIT}"))),
        "A11 m3u8 passwd": ("list.m3u8", text(hls("file:///etc/passwd"))),
        "A11 m3u8 name": ("list.m3u8", baited(hls(BAIT))),
        "A11 m3u8 http": ("list.m3u8", text(hls(url))),
        "A11 mpd http": ("list.mpd", text(MPD.format(url=url))),
        "A11 mpd name": ("list.mpd", baited(MPD.format(url=BAIT))),
        "A11 sdp": ("list.sdp", text(SDP.format(port=port))),
        "A12 mp4": ("clip.mp4", baited(hls(BAIT))),
        "A12 ts": ("clip.ts", baited(hls(BAIT))),
        "A13": ("list.m3u8", text(hls("list.m3u8"))),
        "A14": ("clip.mov", refer_to_bait),
        "A15": ("clip.mp4", text(HTML)),
        "A16 zip": ("clip.mp4", lambda path: zipped(path, other)),
        "A16 gz": ("clip.mp4", lambda path: path.write_bytes(gzip.compress(other))),
        "A16 tar": ("clip.mp4", lambda path: tarred(path, other)),
        "A17": ("clip.mp4", lambda path: make_video(path, muxer=key)),
    }


EXPECTED = {
    "A1": {"empty"},
    "A2": {"not_video"},
    "A3": {"not_video"},
    "A5": {"forbidden_container"},
    "A6": {"forbidden_container"},
    "A7": {"no_video_stream"},
    "A8 m4a": {"no_video_stream"},
    "A8 mp3": {"forbidden_container"},  # the container says so before its streams are looked at
    "A9": {"no_video_stream"},
    "A10": {"forbidden_container"},
    # FFmpeg knows a playlist by its extension, and the descriptor through which a file is opened has none.
    "A11": {"forbidden_container", "not_video"},
    "A12": {"forbidden_container", "not_video"},
    "A13": {"forbidden_container", "not_video"},
    "A14": {"too_short", "truncated", "corrupt"},
    "A15": {"not_video"},
    "A16": {"not_video"},
    "A17": {"decoder_missing"},
}


@dataclass
class Server:
    """A listening socket, and how many came."""

    port: int
    visits: int = 0


@contextmanager
def running_server() -> Iterator[Server]:
    """Serve nobody, but count them; the count is right when the block has ended."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = Server(listening.getsockname()[1])

        def serve() -> None:
            while True:
                visitor, _ = listening.accept()
                with visitor:
                    if visitor.recv(4) == b"stop":
                        return
                server.visits += 1

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server
        finally:
            with socket.create_connection(("127.0.0.1", server.port)) as last:
                last.sendall(b"stop")
            thread.join()


@dataclass(frozen=True)
class Disguised:
    """The rows of the table, the files, and which baits were opened while the rows came about."""

    table: Table
    paths: dict[str, Path]
    taken: list[str]
    visits: int


@pytest.fixture(scope="module")
def disguised(tmp_path_factory: pytest.TempPathFactory, exported: Path) -> Disguised:
    folder = tmp_path_factory.mktemp("disguised") / "in"
    other = make_video(folder.parent / "other.mp4", frames=20, seed=5).read_bytes()
    with running_server() as server:
        paths = write_table(exported, folder, table(other, server.port))
        with opened(*folder.rglob(BAIT)) as taken:
            rows = label_written(exported, folder, paths, all_files=True)
    return Disguised(rows, paths, taken, server.visits)


@pytest.mark.parametrize("row", [name for name in table(b"", 0) if not name.startswith("A4")])
def test_it_fails_for_what_it_is(disguised: Disguised, row: str) -> None:
    disguised.table.failed(row, *EXPECTED.get(row) or EXPECTED[row.split()[0]])


@pytest.mark.parametrize("row", ["A4 avi", "A4 MP4", "A4 bak", "A4 none"])
def test_content_decides_and_not_the_name(disguised: Disguised, row: str) -> None:
    assert disguised.table.labelled(row).codec == "h264"


def test_a4_names_that_are_no_videos_are_counted(disguised: Disguised, exported: Path, tmp_path: Path) -> None:
    folders = [str(disguised.paths[row].parent) for row in ("A4 avi", "A4 MP4", "A4 bak", "A4 none")]
    done = command(exported, *folders, "-o", str(tmp_path / "out.jsonl"))
    assert done.returncode == 0
    assert "6 ok, 0 partial, 0 failed" in done.stderr  # the good one in each folder, .avi and .MP4
    assert "passed over: 2 other files" in done.stderr


def test_a10_a11_a12_a14_nothing_that_was_named_is_opened(disguised: Disguised) -> None:
    assert disguised.taken == []
    assert disguised.visits == 0


def follow(path: Path, options: dict[str, str]) -> None:
    """Let plain FFmpeg do with a file what it likes, which mostly ends in an error."""
    try:
        with av.open(str(path), options=options, timeout=5.0) as container:
            next(container.decode(video=0))
    except (av.error.FFmpegError, IndexError, StopIteration):
        pass


@pytest.mark.parametrize("row", ["A10", "A11 m3u8 file", "A11 m3u8 name", "A12 mp4", "A14"])
def test_plain_ffmpeg_opens_what_is_named(disguised: Disguised, tmp_path: Path, row: str) -> None:
    # Without this the test above could pass on files that name nothing. (PyAV's FFmpeg is built without DASH.)
    source = disguised.paths[row]
    bait = make_video(tmp_path / BAIT, frames=10)
    copy = tmp_path / (source.name if row != "A12 mp4" else "list.m3u8")
    copy.write_bytes(source.read_bytes().replace(os.fsencode(source.parent), os.fsencode(tmp_path)))
    with opened(bait) as taken:
        follow(copy, {"enable_drefs": "1"} if row == "A14" else {})
    assert taken


def test_plain_ffmpeg_goes_to_the_server(disguised: Disguised, tmp_path: Path) -> None:
    source, copy = disguised.paths["A11 m3u8 http"], tmp_path / "list.m3u8"
    with running_server() as server:
        copy.write_text(re.sub(r"(127\.0\.0\.1):\d+", rf"\1:{server.port}", source.read_text()))
        follow(copy, {"protocol_whitelist": "file,http,tcp"})
    assert server.visits


def test_a13_is_refused_at_once(disguised: Disguised) -> None:
    start = time.perf_counter()
    with pytest.raises(VideoError):
        PyAVDecoder().probe(disguised.paths["A13"])
    assert time.perf_counter() - start < 1.0


def test_the_files_are_what_they_should_be(disguised: Disguised) -> None:
    def streams(row: str) -> list[tuple[str, str]]:
        with av.open(str(disguised.paths[row])) as container:
            return [(stream.type, stream.codec.name) for stream in container.streams]

    assert streams("A5 jpg") == [("video", "mjpeg")]
    assert streams("A6 gif") == [("video", "gif")]
    assert streams("A6 apng") == [("video", "apng")]
    assert streams("A7") == [("audio", "aac")]
    assert streams("A8 mp3") == [("audio", "mp3float"), ("video", "png")]
    assert streams("A8 m4a") == [("audio", "aac"), ("video", "png")]
    assert [kind for kind, _ in streams("A9")] == ["subtitle"]
    for row in ("A6 gif", "A6 apng"):
        assert len(decode_all(disguised.paths[row]).frames) == 10
    assert b"senc" in disguised.paths["A17"].read_bytes()
