"""The frames that the decoder gives are those of a plain sequential decode, for every codec, container and GOP."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from harec_deploy.decode import Frames, Size, choose, packets, passes, picture, pyav
from harec_deploy.decode.pyav import PyAVDecoder
from harec_deploy.errors import UsageError, VideoError
from harec_deploy.sampling import ClipSampling, Window, sliding
from tests.media import (
    Clip,
    cut,
    decode_all,
    make_audio,
    make_packed_avi,
    make_png,
    make_resized,
    make_video,
    read_index,
    replace_bytes,
)

FORMATS = [
    *(("libx264", suffix) for suffix in (".mp4", ".mkv", ".ts", ".mov", ".flv", ".h264", ".avi")),
    *(("libx265", suffix) for suffix in (".mp4", ".mkv", ".ts")),
    *(("mpeg4", suffix) for suffix in (".mp4", ".mkv", ".avi", ".m4v")),
    *(("libvpx-vp9", suffix) for suffix in (".webm", ".mp4")),
    *(("mpeg2video", suffix) for suffix in (".ts", ".mpg")),
    *(("mjpeg", suffix) for suffix in (".avi", ".mov")),
    ("packed mpeg4", ".avi"),
    ("libvpx", ".webm"),
    ("libsvtav1", ".mp4"),
    ("prores", ".mov"),
]
VARIABLE = {".mp4", ".mkv", ".ts", ".mov", ".webm", ".flv", ".avi"}  # containers that can hold a variable rate
ODD = {"mpeg4", "libvpx", "libvpx-vp9", "mjpeg"}  # codecs that take odd widths and heights
SIZE = Size(width=64, height=48)

bounded = settings(
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # shrinking a failure would encode some hundreds of videos
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@st.composite
def clips(draw: Any, codec: str, suffix: str) -> Clip:
    packed, codec = codec.startswith("packed"), codec.removeprefix("packed ")
    gop = draw(st.sampled_from([12, 1, 250]))
    if codec == "libsvtav1":
        gop = max(gop, 12)  # it has no mode for key frames only
    b_frames = draw(st.integers(0, 3)) if gop > 1 and codec != "mjpeg" else 0
    # With B frames the clock of an AVI does not tell which picture a gap stands behind.
    vfr = suffix in VARIABLE and not packed and (suffix != ".avi" or b_frames == 0) and draw(st.booleans())
    odd = draw(st.integers(0, 1)) if codec in ODD and not packed else 0
    return Clip(
        codec=codec,
        frames=draw(st.sampled_from([40, 2, 3, 17, 75])),
        width=draw(st.sampled_from([160, 96, 202])) + odd,
        height=draw(st.sampled_from([120, 96, 130])) + odd,
        gop=gop,
        b_frames=b_frames,
        vfr=vfr,
        open_gop=draw(st.booleans()),
        seed=draw(st.integers(0, 9)),
    )


def made(folder: Path, clip: Clip, suffix: str, *, packed: bool = False) -> Path:
    path = folder / f"clip{suffix}"
    return make_packed_avi(path, clip) if packed else make_video(path, clip)


def assert_same(got: Frames, path: Path, times: list[float], size: Size) -> None:
    """Assert that ``got`` has the frames and times of a plain decode, and that all of them were counted."""
    truth = decode_all(path)
    np.testing.assert_array_equal(got.pixels, truth.pixels(times, size))
    np.testing.assert_allclose(got.shown_s, truth.shown_s[truth.places(times)], atol=1e-6)
    assert got.info.frames_found == len(truth.frames)
    assert got.info.complete
    assert got.bad_packets == 0


@settings(bounded, max_examples=7)
@given(
    data=st.data(),
    shares=st.lists(st.integers(-10, 110), min_size=1, max_size=6),
    size=st.sampled_from([SIZE, Size(width=48, height=48, mode="crop")]),
    selective=st.sampled_from([True, True, False]),
    keep_bytes=st.sampled_from([packets.KEEP_BYTES, 0]),
)
@pytest.mark.parametrize(("codec", "suffix"), FORMATS)
def test_frames_equal_a_sequential_decode(
    tmp_path_factory: pytest.TempPathFactory,
    codec: str,
    suffix: str,
    data: Any,
    shares: list[int],
    size: Size,
    selective: bool,
    keep_bytes: int,
) -> None:
    clip = data.draw(clips(codec, suffix))
    path = made(tmp_path_factory.mktemp("clip"), clip, suffix, packed=codec.startswith("packed"))
    decoder = PyAVDecoder(selective=selective)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packets, "KEEP_BYTES", keep_bytes)
        duration_s = decoder.probe(path).duration_s
        times = [duration_s * share / 100 for share in shares]
        got = decoder.frames(path, times, size)
    assert_same(got, path, times, size)
    if size is SIZE:  # a crop cuts blocks off
        assert [read_index(pixels) for pixels in got.pixels] == decode_all(path).places(times)
    path.unlink()


@pytest.mark.parametrize("keep_bytes", [packets.KEEP_BYTES, 0], ids=["in_memory", "by_seeking"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".mov"])
@pytest.mark.parametrize("fields", [{"gop": 12, "b_frames": 2}, {"gop": 12, "b_frames": 0}, {"gop": 1, "b_frames": 0}])
def test_sound_video_is_decoded_selectively(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_bytes: int, suffix: str, fields: dict[str, Any]
) -> None:
    # Without this the tests above would pass with a decoder that always falls back to decoding everything.
    path = make_video(tmp_path / f"clip{suffix}", **fields)
    monkeypatch.setattr(packets, "KEEP_BYTES", keep_bytes)
    monkeypatch.setattr(passes.Plain, "pictures", lambda *_: pytest.fail("decoded from the first packet"))
    times = [0.0, *np.arange(20, 26) / 25, 1.9, 2.36]  # with six in a row there are pictures that nothing refers to
    assert_same(PyAVDecoder().frames(path, times, SIZE), path, times, SIZE)


def test_open_gop_leading_pictures(tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.mp4", gop=12, b_frames=3, open_gop=True)
    for time in np.arange(60) / 25:
        assert_same(PyAVDecoder().frames(path, [float(time)], SIZE), path, [float(time)], SIZE)


@pytest.mark.parametrize(
    "options",
    [{"intra-refresh": "1"}, {"refs": "8", "b-pyramid": "strict"}, {"slices": "4"}, {"x264-params": "tff=1"}],
    ids=["intra_refresh", "many_references", "slices", "interlaced"],
)
def test_unusual_h264(tmp_path: Path, options: dict[str, str]) -> None:
    path = make_video(tmp_path / "clip.mp4", width=160, height=128, options=options)
    times = [0.1, 0.9, 1.3, 2.2]
    assert_same(PyAVDecoder().frames(path, times, SIZE), path, times, SIZE)


@pytest.mark.parametrize(("suffix", "packed"), [(".mp4", False), (".mkv", False), (".avi", True)])
def test_windows(tmp_path: Path, suffix: str, packed: bool) -> None:
    codec = "mpeg4" if packed else "libx264"
    path = made(tmp_path, Clip(codec=codec, frames=75, vfr=suffix == ".mkv"), suffix, packed=packed)
    decoder, sampling = PyAVDecoder(), ClipSampling(frames=5)
    for window in sliding(decoder.probe(path).duration_s, 1.0, 0.5):
        times = sampling.timestamps_s(window)
        assert_same(decoder.frames(path, times, SIZE), path, times.tolist(), SIZE)


def test_timestamps_may_depend_on_the_video(tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.mp4")
    sampling = ClipSampling(frames=4)
    got = PyAVDecoder().frames(path, lambda info: sampling.timestamps_s(Window(0.0, info.duration_s)), SIZE)
    assert [read_index(pixels) for pixels in got.pixels] == [7, 22, 37, 52]  # the middles of four parts of 60 frames


def test_times_in_any_order_and_twice(tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.mp4")
    got = PyAVDecoder().frames(path, [2.0, 0.4, 2.0, -7.0, 1e9, 0.4], SIZE)
    assert [read_index(pixels) for pixels in got.pixels] == [50, 10, 50, 0, 59, 10]
    assert got.shown_s.tolist() == pytest.approx([2.0, 0.4, 2.0, 0.0, 2.36, 0.4])


def test_a_frame_is_shown_until_the_next_one(tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.mp4", fps=25, frames=10)
    got = PyAVDecoder().frames(path, [0.0399, 0.04, 0.0799, 0.0801], SIZE)
    assert [read_index(pixels) for pixels in got.pixels] == [0, 1, 1, 2]


def test_arrays(tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.mp4", frames=5)
    got = PyAVDecoder().frames(path, [0.0, 0.1, 0.2], Size(width=40, height=24))
    assert got.pixels.shape == (3, 24, 40, 3)
    assert got.pixels.dtype == np.uint8
    assert got.pixels.flags.c_contiguous
    assert got.shown_s.dtype == np.float64


@pytest.mark.parametrize("suffix", [".ts", ".h264"])
def test_size_changes_in_mid_stream(tmp_path: Path, suffix: str) -> None:
    path = make_resized(tmp_path / f"clip{suffix}", [(160, 120), (96, 64)])
    assert {frame.width for frame in decode_all(path).frames} == {160, 96}
    times = [0.0, 0.7, 0.81, 1.5]
    got = PyAVDecoder().frames(path, times, SIZE)
    assert_same(got, path, times, SIZE)
    assert [read_index(pixels) for pixels in got.pixels] == [0, 17, 0, 17]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".flv"])
def test_the_first_frame_is_the_clock_zero(tmp_path: Path, suffix: str) -> None:
    path = make_video(tmp_path / f"clip{suffix}", start_s=3600)
    assert decode_all(path).frames[0].time == 3600
    got = PyAVDecoder().frames(path, [0.0, 1.0], SIZE)
    assert [read_index(pixels) for pixels in got.pixels] == [0, 25]


NAMES = [b"\xff\xfe.mp4", b"a\nb.mp4", b"-rf.mp4", b"http:x.mp4", b"=1+1.mp4", b"%03d.mp4", b"concat:a.mp4", b"none"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("relative", [False, True])
def test_names_are_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes, relative: bool) -> None:
    source = make_video(tmp_path / "source.mp4", frames=10)
    source.rename(tmp_path / os.fsdecode(name))
    monkeypatch.chdir(tmp_path)
    path = Path(os.fsdecode(name)) if relative else tmp_path / os.fsdecode(name)
    got = PyAVDecoder().frames(path, [0.2], SIZE)
    assert read_index(got.pixels[0]) == 5


def test_choose() -> None:
    assert choose().name == choose("pyav").name == "pyav"
    with pytest.raises(UsageError, match="allowed are auto, pyav"):
        choose("vlc")


def _text(content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        make_video(folder / "good.mp4")
        path = folder / "clip.mp4"
        path.write_text(content)
        return path

    return make


def _noise(folder: Path) -> Path:
    return _special(folder, lambda path: path.write_bytes(np.random.default_rng(0).bytes(1 << 20)))


def _zeroed(folder: Path) -> Path:
    path = make_video(folder / "clip.mp4")
    data = path.read_bytes()
    start = data.index(b"mdat") + 4
    path.write_bytes(data[:start] + bytes(len(data) - start))
    return path


def _cut_in_first_frame(folder: Path) -> Path:
    path = make_video(folder / "clip.mp4")
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 4 + 30])
    return path


def _special(folder: Path, make: Callable[[Path], object]) -> Path:
    path = folder / "clip.mp4"
    make(path)
    return path


def _link(folder: Path) -> Path:
    make_video(folder / "good.mp4")
    return _special(folder, lambda path: path.symlink_to(folder / "good.mp4"))


def _socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as server:
        return _special(folder, lambda path: server.bind(str(path)))


def _encrypted(folder: Path) -> Path:
    key = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "1" * 32, "encryption_kid": "2" * 32}
    return make_video(folder / "clip.mp4", muxer=key)


PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\ngood.mp4\n#EXT-X-ENDLIST\n"
BAD = {
    "missing": (lambda folder: folder / "none.mp4", {"vanished"}),
    "fifo": (lambda folder: _special(folder, os.mkfifo), {"not_regular"}),
    "socket": (_socket, {"not_regular"}),
    "folder": (lambda folder: _special(folder, Path.mkdir), {"not_regular"}),
    "link": (_link, {"not_regular"}),
    "broken link": (lambda folder: _special(folder, lambda path: path.symlink_to("none")), {"not_regular"}),
    "device": (lambda _: Path("/dev/zero"), {"not_regular"}),
    "name too long": (lambda folder: folder / ("a" * 300 + ".mp4"), {"unreadable"}),
    "path too long": (lambda folder: folder / ("a/" * 2500 + "clip.mp4"), {"unreadable"}),
    "no bytes": (lambda folder: _special(folder, Path.touch), {"empty"}),
    "text": (_text("not a video\n" * 100), {"not_video"}),
    "html": (_text("<!DOCTYPE html><html><body>404</body></html>\n"), {"not_video"}),
    "noise": (_noise, {"not_video"}),
    "no index": (lambda folder: cut(make_video(folder / "clip.mp4"), 0.02), {"not_video"}),
    "png": (lambda folder: make_png(folder / "clip.mp4"), {"forbidden_container"}),
    "ffconcat": (_text("ffconcat version 1.0\nfile good.mp4\n"), {"forbidden_container"}),
    "m3u8": (_text(PLAYLIST), {"forbidden_container", "not_video"}),
    "sound": (lambda folder: make_audio(folder / "clip.mp4"), {"no_video_stream"}),
    "cover": (lambda folder: make_audio(folder / "clip.mp4", cover=make_png(folder / "a.png")), {"no_video_stream"}),
    "unknown codec": (lambda f: replace_bytes(make_video(f / "clip.mp4"), b"avc1", b"zz99"), {"decoder_missing"}),
    "encrypted": (_encrypted, {"decoder_missing"}),
    "cut in the first frame": (_cut_in_first_frame, {"truncated"}),
    "zeros for pictures": (_zeroed, {"corrupt"}),
    "one frame": (lambda folder: make_video(folder / "clip.mp4", frames=1), {"too_short"}),
}  # fmt: skip


@pytest.mark.parametrize("selective", [True, False])
@pytest.mark.parametrize("name", BAD)
def test_refusals(tmp_path: Path, name: str, selective: bool) -> None:
    if name == "unknown codec" and tuple(map(int, av.__version__.split(".")[:2])) < (18, 1):
        pytest.skip("PyAV before 18.1 ends the process on such a file (PyAV-Org/PyAV#2344)")
    make, kinds = BAD[name]
    path = make(tmp_path)
    decoder = PyAVDecoder(selective=selective)
    for attempt in (lambda: decoder.frames(path, [0.0], SIZE), lambda: decoder.probe(path)):
        with pytest.raises(VideoError) as caught:
            attempt()
        assert caught.value.kind in kinds
        assert "\n" not in str(caught.value)


def test_playlists_that_plain_ffmpeg_follows_are_refused(tmp_path: Path) -> None:
    make_video(tmp_path / "good.mp4", frames=10)
    for name, text in (("list.mp4", "ffconcat version 1.0\nfile good.mp4\n"), ("list.m3u8", PLAYLIST)):
        (tmp_path / name).write_text(text)
        assert len(decode_all(tmp_path / name).frames) == 10  # the danger is real
        with pytest.raises(VideoError) as caught:
            PyAVDecoder().frames(tmp_path / name, [0.0], SIZE)
        assert caught.value.kind in {"forbidden_container", "not_video"}


def test_cover_is_a_video_stream_to_ffmpeg(tmp_path: Path) -> None:
    with av.open(str(make_audio(tmp_path / "clip.mp4", cover=make_png(tmp_path / "a.png")))) as container:
        assert container.streams.video[0].disposition == av.stream.Disposition.attached_pic


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable(tmp_path: Path) -> None:
    path = make_video(tmp_path / "folder.mp4")
    path.chmod(0)
    with pytest.raises(VideoError) as caught:
        PyAVDecoder().probe(path)
    assert caught.value.kind == "unreadable"


def test_too_large(tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.mp4", width=160, height=120)
    with pytest.raises(VideoError, match="160x120") as caught:
        PyAVDecoder(max_pixels=160 * 120 - 1).probe(path)
    assert caught.value.kind == "too_large"
    assert PyAVDecoder(max_pixels=160 * 120).probe(path).width == 160


def test_a_picture_that_grows_is_not_decoded(tmp_path: Path) -> None:
    path = make_resized(tmp_path / "clip.ts", [(96, 64), (320, 240)])
    decoder = PyAVDecoder(max_pixels=160 * 120)
    got = decoder.frames(path, [0.7, 1.2], SIZE)
    assert got.bad_packets > 0
    assert [read_index(pixels) for pixels in got.pixels] == [17, 19]  # the last small picture stays


def _subclasses(cls: type[Exception]) -> Iterator[type[Exception]]:
    for child in cls.__subclasses__():
        yield child
        yield from _subclasses(child)


ERRORS = sorted(set(_subclasses(av.error.FFmpegError)), key=lambda cls: cls.__name__)


@pytest.mark.parametrize("error", ERRORS, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("where", ["av.open", "read_table", "Scaler.picture"])
def test_every_ffmpeg_error_is_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], where: str
) -> None:
    path = make_video(tmp_path / "clip.mp4", frames=5)

    def fail(*_: object, **__: object) -> None:
        raise error(1, "made up")

    target, name = {"av.open": (av, "open"), "read_table": (pyav, "read_table")}.get(where, (picture.Scaler, "picture"))
    monkeypatch.setattr(target, name, fail)
    with pytest.raises(VideoError) as caught:
        PyAVDecoder().frames(path, [0.0], SIZE)
    if issubclass(error, MemoryError):
        assert caught.value.kind == "out_of_memory"
