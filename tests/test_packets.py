"""What the packets of a video tell: clocks, gaps, hidden pictures, missing ends, damage; and real clips."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from harec_deploy.decode import Frames, Size, VideoInfo, packets, passes
from harec_deploy.decode.packets import PacketTable, read_table
from harec_deploy.decode.pyav import PyAVDecoder
from harec_deploy.errors import VideoError
from harec_deploy.sampling import ClipSampling, Window
from tests.media import (
    Clip,
    Sequential,
    cut,
    decode_all,
    flip_bytes,
    make_hidden_vp9,
    make_packed_avi,
    make_skipped_avi,
    make_video,
    read_index,
    replace_bytes,
)

SIZE = Size(width=64, height=48)


def table_of(path: Path) -> PacketTable:
    with av.open(str(path)) as container:
        return read_table(container, container.streams.video[0])


def indices(path: Path, times: Any) -> list[int]:
    """Return the index that each decoded frame carries in its pixels."""
    return [read_index(pixels) for pixels in PyAVDecoder().frames(path, times, SIZE).pixels]


# The videos are what they are said to be: without these the other tests could pass on easier ones.


def test_packed_avi_is_packed(tmp_path: Path) -> None:
    clip = Clip(codec="mpeg4", b_frames=2)
    packed, plain = make_packed_avi(tmp_path / "packed.avi", clip), make_video(tmp_path / "plain.avi", clip)
    for path, pictures, smallest in ((packed, 2, 10), (plain, 1, 100)):
        with av.open(str(path)) as container:
            chunks = [bytes(packet) for packet in container.demux(video=0) if packet.size]
        assert max(chunk.count(b"\0\0\1\xb6") for chunk in chunks) == pictures
        assert (min(map(len, chunks)) < 10) == (smallest == 10)  # the placeholders
        assert (b"DivX503b1393p" in path.read_bytes()) == (pictures == 2)
    frames = [frame.to_ndarray(format="rgb24") for frame in decode_all(packed).frames]
    assert [read_index(pixels) for pixels in frames] == list(range(clip.frames))


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "mpeg2video"])
def test_b_frames_are_there(tmp_path: Path, codec: str) -> None:
    for b_frames in (0, 2):
        path = make_video(tmp_path / "clip.mkv", codec=codec, b_frames=b_frames)
        kinds = {av.video.frame.PictureType(frame.pict_type).name for frame in decode_all(path).frames}
        assert kinds == ({"I", "P", "B"} if b_frames else {"I", "P"})


@pytest.mark.parametrize(("gop", "keys"), [(1, 60), (12, 5), (250, 1)])
def test_key_frames_are_where_they_were_asked_for(tmp_path: Path, gop: int, keys: int) -> None:
    table = table_of(make_video(tmp_path / "clip.mp4", gop=gop, b_frames=0))
    assert table.keys.tolist() == list(range(0, 60, gop))
    assert len(table.keys) == keys


def test_open_gop_has_leading_pictures(tmp_path: Path) -> None:
    table = table_of(make_video(tmp_path / "clip.mp4", gop=12, b_frames=3, open_gop=True))
    leading = [
        packet for key in table.keys for packet in range(key + 1, len(table.pts)) if table.pts[packet] < table.pts[key]
    ]
    assert leading
    for packet in leading:
        start = table.start_for(packet)
        assert start is not None
        assert table.pts[start] < table.pts[packet]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".webm"])
def test_variable_frame_rate(tmp_path: Path, suffix: str) -> None:
    clip = Clip(codec="libvpx-vp9" if suffix == ".webm" else "libx264", vfr=True)
    path = make_video(tmp_path / f"clip{suffix}", clip)
    shown_s = clip.ticks() / 8 / clip.fps
    assert len(set(np.diff(clip.ticks()).tolist())) > 3  # it does vary
    table = table_of(path)
    np.testing.assert_allclose(table.shown_s, shown_s, atol=6e-4)  # Matroska counts milliseconds
    middles = (shown_s[1:] + shown_s[:-1]) / 2
    assert table.at(middles).tolist() == list(range(clip.frames - 1))
    assert indices(path, middles[::7]) == list(range(clip.frames - 1))[::7]


@pytest.mark.parametrize("keep_bytes", [packets.KEEP_BYTES, 0], ids=["in_memory", "by_seeking"])
def test_only_the_gop_of_a_wanted_frame_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_bytes: int
) -> None:
    path = make_video(tmp_path / "clip.mp4", gop=12)
    fed: list[int] = []

    def spy(*arguments: Any) -> Iterator[Any]:
        for index, packet in packets.packets_from(*arguments):
            fed.append(index)
            yield index, packet

    monkeypatch.setattr(packets, "KEEP_BYTES", keep_bytes)
    monkeypatch.setattr(passes, "packets_from", spy)
    assert indices(path, [27.5 / 25, 51.5 / 25]) == [27, 51]
    assert fed[0] == 24
    assert set(fed) <= {*range(24, 36), *range(48, 60)}
    assert len(fed) < 16


# Clocks


def test_a_time_on_a_frames_start_means_that_frame(tmp_path: Path) -> None:
    table = table_of(make_video(tmp_path / "clip.mkv", fps=30, frames=40))
    assert table.at(np.arange(40) / 30 + 5e-4).tolist() == list(range(40))
    assert table.at(table.shown_s).tolist() == list(range(40))
    assert table.at(np.array([-1.0, 99.0])).tolist() == [0, 39]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi", ".h264", ".flv"])
def test_duration_and_rate(tmp_path: Path, suffix: str) -> None:
    info = PyAVDecoder().probe(make_video(tmp_path / f"clip{suffix}", fps=25, frames=50, b_frames=0))
    assert info.duration_s == pytest.approx(2.0, abs=2e-3)
    if suffix == ".h264":
        assert info.fps is None  # what FFmpeg says is made up
    else:
        assert info.fps == pytest.approx(25, rel=1e-3)
    assert (info.width, info.height, info.codec, info.pixel_format) == (160, 120, "h264", "yuv420p")
    assert info.rotation_degrees == 0
    assert info.frames_found == 50
    assert info.complete


def test_dropped_frames_of_an_avi(tmp_path: Path) -> None:
    # A capture program that lost frames writes chunks without data; the clock runs on.
    clip = Clip(codec="mjpeg", b_frames=0, frames=40, vfr=True)
    path = make_video(tmp_path / "clip.avi", clip)
    shown_s = clip.ticks() / 8 / clip.fps
    assert PyAVDecoder().probe(path).complete
    assert PyAVDecoder().probe(path).duration_s > shown_s[-1]
    assert indices(path, shown_s + 1e-3) == list(range(40))


def test_pictures_of_an_avi_that_are_not_coded(tmp_path: Path) -> None:
    # Where nothing moves an encoder may write a placeholder, for which the decoder gives no frame.
    clip = Clip(codec="mpeg4", b_frames=0, frames=40)
    path = make_skipped_avi(tmp_path / "clip.avi", clip, range(10, 15))
    assert len(decode_all(path).frames) == 35
    assert indices(path, (np.arange(40) + 0.5) / 25) == [
        index if index not in range(10, 15) else 9 for index in range(40)
    ]


@pytest.mark.parametrize("b_frames", [1, 2, 3])
def test_packed_avi_is_told_by_place(tmp_path: Path, b_frames: int) -> None:
    path = make_packed_avi(tmp_path / "clip.avi", Clip(codec="mpeg4", b_frames=b_frames))
    assert indices(path, (np.arange(60) + 0.5) / 25) == list(range(60))


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_packed_pictures_in_a_container_with_times(tmp_path: Path, suffix: str) -> None:
    # Copied out of an AVI as they are: each picture gets the time of the packet before or behind it.
    path = make_packed_avi(tmp_path / f"clip{suffix}", Clip(codec="mpeg4"))
    times = [frame.pts for frame in decode_all(path).frames]
    assert times != sorted(times)
    assert indices(path, (np.arange(60) + 0.5) / 25) == list(range(60))


def test_hidden_pictures_of_vp9(tmp_path: Path) -> None:
    path = make_hidden_vp9(tmp_path / "clip.webm", Clip(codec="libvpx-vp9"))
    with av.open(str(path)) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) > 60
    assert PyAVDecoder().probe(path).frames_found == 60
    assert indices(path, (np.arange(60) + 0.5) / 25) == list(range(60))


# What is missing or damaged


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("keep_bytes", [packets.KEEP_BYTES, 0], ids=["in_memory", "by_seeking"])
def test_cut_mp4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, keep_bytes: int) -> None:
    monkeypatch.setattr(packets, "KEEP_BYTES", keep_bytes)
    path = make_video(tmp_path / "clip.mp4")
    whole = decode_all(path)
    info = PyAVDecoder().probe(cut(path, share))
    assert not info.complete
    assert info.frames_expected == 60
    assert 10 < info.frames_found < 60
    # The last packets are cut in the middle or stand before others in display order; all earlier ones are sound.
    times = whole.shown_s[: info.frames_found - 6]
    got = PyAVDecoder().frames(path, times, SIZE)
    np.testing.assert_array_equal(got.pixels, whole.pixels(times, SIZE))


def test_cut_mkv_is_seen_by_its_duration(tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.mkv", frames=100)
    assert PyAVDecoder().probe(path).complete
    assert not PyAVDecoder().probe(cut(path, 0.6)).complete


def test_cut_picture_is_the_same_however_it_is_reached(tmp_path: Path) -> None:
    # The rest of a picture that ends too early is what the decoder's buffer held before.
    for seed in range(4):
        path = cut(make_video(tmp_path / "clip.mov", codec="mjpeg", b_frames=0, seed=seed), 0.8)
        duration_s = PyAVDecoder().probe(path).duration_s
        smart, plain = (PyAVDecoder(selective=selective).frames(path, [0.2, duration_s], SIZE) for selective in (1, 0))
        np.testing.assert_array_equal(smart.pixels, plain.pixels)


def test_header_that_promises_more(tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.avi", codec="mjpeg", frames=20)
    count = (20).to_bytes(4, "little")
    data = path.read_bytes()
    for tag, offset in ((b"avih", 24), (b"strh", 40)):  # dwTotalFrames, dwLength
        place = data.index(tag) + offset
        assert data[place : place + 4] == count
        data = data[:place] + (50).to_bytes(4, "little") + data[place + 4 :]
    path.write_bytes(data)
    info = PyAVDecoder().probe(path)
    assert (info.frames_found, info.complete) == (20, False)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi"])
def test_damage_gives_the_same_frames_every_time(tmp_path: Path, suffix: str) -> None:
    sound = make_video(tmp_path / f"sound{suffix}")
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(sound.read_bytes())
    flip_bytes(path, every=997, start=5000)
    times = np.arange(60) / 25
    smart, plain, again = (PyAVDecoder(selective=mode).frames(path, times, SIZE) for mode in (True, False, True))
    assert not np.array_equal(smart.pixels, PyAVDecoder().frames(sound, times, SIZE).pixels)  # there is damage
    np.testing.assert_array_equal(smart.pixels, plain.pixels)
    np.testing.assert_array_equal(smart.pixels, again.pixels)
    assert smart.bad_packets == again.bad_packets


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", ".mp4"), ("libx264", ".avi"), ("mjpeg", ".avi")])
def test_a_refused_packet_is_counted_and_moves_no_other(tmp_path: Path, codec: str, suffix: str) -> None:
    path = make_video(tmp_path / f"clip{suffix}", codec=codec, gop=1, b_frames=0, frames=20)
    table = table_of(path)
    assert table.packets is not None
    third = bytes(table.packets[3])
    replace_bytes(path, third, bytes(len(third)))
    got = PyAVDecoder().frames(path, (np.arange(20) + 0.5) / 25, SIZE)
    assert got.bad_packets == 1
    assert [read_index(pixels) for pixels in got.pixels] == [0, 1, 2, 2, *range(4, 20)]  # the frame before stays


OUT_OF_MEMORY = """
import resource, sys
from pathlib import Path
from harec_deploy.decode import Size
from harec_deploy.decode.pyav import PyAVDecoder
small, big, selective = sys.argv[1:]
PyAVDecoder().probe(Path(small))  # all libraries are loaded
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 20),) * 2)
try:
    PyAVDecoder(selective=selective == "yes").frames(Path(big), [0.0, 0.04], Size(width=8, height=8))
except Exception as error:
    print(getattr(error, "kind", error))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@pytest.mark.parametrize("selective", ["yes", "no"])
def test_out_of_memory_is_not_taken_for_damage(tmp_path: Path, selective: str) -> None:
    small = make_video(tmp_path / "small.mp4", codec="mpeg4", frames=2)
    big = make_video(tmp_path / "big.mp4", codec="mpeg4", frames=2, width=4096, height=2304, gop=1, b_frames=0)
    command = [sys.executable, "-c", OUT_OF_MEMORY, str(small), str(big), selective]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "out_of_memory\n"


# Real clips

CLIPS = Path(os.environ.get("HAREC_CLIPS") or Path(__file__).parents[2] / "shared" / "clips") / "hard"
REAL = sorted(path for path in CLIPS.rglob("*") if path.is_file())


def outcome(path: Path, times: Callable[[VideoInfo], list[float]], *, selective: bool) -> Frames | str:
    """Return what the decoder gives, or the kind of its refusal; any other exception is a failure."""
    try:
        return PyAVDecoder(selective=selective).frames(path, times, SIZE)
    except VideoError as error:
        return error.kind


@pytest.mark.real_clips
@pytest.mark.skipif(not REAL, reason=f"no folder of real clips at {CLIPS}: set HAREC_CLIPS")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_clip(path: Path) -> None:
    def times(info: VideoInfo) -> list[float]:
        return [info.duration_s * share for share in (0.1, 0.5, 0.63)]

    smart, plain = (outcome(path, times, selective=selective) for selective in (True, False))
    if isinstance(smart, str) or isinstance(plain, str):
        assert smart == plain
        return
    np.testing.assert_array_equal(smart.pixels, plain.pixels)
    np.testing.assert_array_equal(smart.shown_s, plain.shown_s)
    assert smart.info == plain.info


@pytest.mark.real_clips
@pytest.mark.skipif(not REAL, reason=f"no folder of real clips at {CLIPS}: set HAREC_CLIPS")
def test_packets_without_a_picture_keep_their_time() -> None:
    # A screen recording in AVI. Most packets say "as before"; the decoder has no delay, so its times are right.
    path = CLIPS / "vfr" / "fate__tscc__oneminute.avi"
    with av.open(str(path)) as container:
        shown_s = np.array([frame.pts / 15 for frame in container.decode(video=0)])
    times = [5.6, 20.9, 28.2, 50.9]
    got = PyAVDecoder().frames(path, times, SIZE)
    truth = Sequential(decode_all(path).frames, shown_s, decode_all(path).context)
    np.testing.assert_array_equal(got.pixels, truth.pixels(times, SIZE))


@pytest.mark.real_clips
@pytest.mark.skipif(not REAL, reason=f"no folder of real clips at {CLIPS}: set HAREC_CLIPS")
@pytest.mark.parametrize("path", [path for path in REAL if path.parent.name == "encrypted"], ids=lambda path: path.name)
def test_an_encrypted_video_has_no_frames(path: Path) -> None:
    with pytest.raises(VideoError) as caught:
        PyAVDecoder().frames(path, ClipSampling(frames=16).timestamps_s(Window(0, 5)), SIZE)
    assert caught.value.kind in {"decoder_missing", "corrupt", "not_video"}
