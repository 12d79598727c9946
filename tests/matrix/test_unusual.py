"""Table C of the test matrix: videos that are unusual and valid. The id of a row stands in the test's id.

All are labelled in one run by one child, each with a good video behind it, which must come out as in a run of its own;
the label and score of each must be those of a plain sequential decode of all of its frames.

What other tests cover of the table at a lower level, on the decoder alone: tests/test_packets.py (C4
test_variable_frame_rate), tests/test_picture.py (C5 test_display_matrix_equals_turned_pixels, C6
test_crop_takes_the_middle_of_the_picture_as_shown, C7 test_odd_sizes, C12 test_colours), tests/test_decode.py (C8
test_too_large, C13 test_unusual_h264, C15 test_frames_equal_a_sequential_decode).
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from av.video.frame import VideoFrame

from harec_deploy.decode import Size
from harec_deploy.decode.pyav import PyAVDecoder
from harec_deploy.label.child import Limits
from harec_deploy.loading import load
from harec_deploy.recognizer import Recognizer
from harec_deploy.sampling import whole
from tests.matrix.files import make_h264_of_size, merge, patch_box, repeat
from tests.matrix.run import Made, Table, assert_same_label, label_table
from tests.media import Clip, decode_all, make_audio, make_video, picture, read_index, rotate, write_frames

CLIP_FRAMES = 20  # of the bundle
SMALL = Limits(memory_bytes=1 << 30)  # of address space; a frame of 8K takes 50 MB


def video(**fields: Any) -> Callable[[Path], object]:
    """Return what writes the video that these fields of a Clip describe."""
    return lambda path: make_video(path, **fields)


def coloured(codec: str, pixel_format: str, **context: Any) -> Callable[[Path], object]:
    """Return what writes two flat halves in a pixel format."""

    def write(path: Path) -> None:
        clip = Clip(codec=codec, width=256, height=128, frames=6, b_frames=0)
        halves = np.array(GREYS if "gray" in pixel_format else COLOURS, dtype=np.uint8).repeat(128, axis=0)
        frame = np.ascontiguousarray(np.broadcast_to(halves, (128, 256, 3)))
        frames = (VideoFrame.from_ndarray(frame, format="rgb24") for _ in range(clip.frames))
        write_frames(path, clip, frames, pix_fmt=pixel_format, **context)

    return write


def plain(width: int, height: int, frames: int, *values: int) -> Iterator[VideoFrame]:
    """Yield frames without a picture, each of one (Y, Cb, Cr)."""
    for _ in range(frames):
        frame = VideoFrame(width, height, "yuv420p")
        for plane, value in zip(frame.planes, values, strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        yield frame


def flat(width: int, height: int, *values: int, **fields: Any) -> Callable[[Path], object]:
    clip = Clip(**{"width": width, "height": height, "b_frames": 0, "frames": 30, **fields})
    return lambda path: write_frames(path, clip, plain(width, height, clip.frames, *values))


def noise(path: Path) -> None:
    dice = np.random.default_rng(0)
    clip = Clip(frames=30)
    frames = (
        VideoFrame.from_ndarray(dice.integers(0, 256, (120, 160, 3), np.uint8), format="rgb24") for _ in range(30)
    )
    write_frames(path, clip, frames)


def turned(path: Path, degrees: int, *, pixels: bool) -> None:
    """Write a lossless video that is turned clockwise, by its pixels or by its header."""
    clip = Clip(frames=30, width=160, height=160, b_frames=0, options={"qp": "0"})
    if not pixels:
        rotate(make_video(path, clip), degrees)
        return
    turns = (np.ascontiguousarray(np.rot90(picture(clip, index), -degrees // 90)) for index in range(clip.frames))
    write_frames(path, clip, (VideoFrame.from_ndarray(turn, format="rgb24") for turn in turns))


def no_rate(path: Path) -> None:
    """Write an AVI whose header says 0 frames in 0 seconds."""
    data = make_video(path, codec="mjpeg", b_frames=0, frames=30).read_bytes()
    place = data.index(b"strh") + 28  # dwScale, dwRate
    path.write_bytes(data[:place] + bytes(8) + data[place + 8 :])


def long(path: Path, hours: float) -> None:
    """Write black frames, one a second."""
    source = path.with_name("source.mp4")
    clip = Clip(width=64, height=48, fps=1, frames=100, gop=50, b_frames=0)
    write_frames(source, clip, plain(64, 48, 100, 16, 128, 128))
    repeat(source, path, int(hours * 36))
    source.unlink()


def several(path: Path, first: str) -> None:
    """Write a video stream behind another: a small video, or a picture of the album."""
    small, main = path.with_name("small.mkv"), path.with_name("main.mkv")
    if first == "cover":
        make_video(small, codec="mjpeg", b_frames=0, frames=1, width=64, height=48)
    else:
        make_video(small, frames=2, width=64, height=48, b_frames=0)
    merge(path, [small, make_video(main)], dispositions=[Disposition.attached_pic.value] if first == "cover" else [])
    small.unlink()
    main.unlink()


def with_sound(path: Path, frames: int) -> None:
    """Write a video with five seconds of sound."""
    sound, main = path.with_name("sound.mp4"), path.with_name("main.mp4")
    merge(path, [make_video(main, frames=frames), make_audio(sound, seconds=5)])
    sound.unlink()
    main.unlink()


def later(path: Path) -> None:
    """Write an mp4 whose edit list leaves out the first ten frames; the first of them have negative decode times."""
    make_video(path, frames=40, b_frames=2)
    data = path.read_bytes()
    place = data.index(b"elst") + 4 + 12  # media_time of the first entry
    start = int.from_bytes(data[place : place + 4], "big")
    patch_box(path, "elst", 12, start + 10 * 512)


COLOURS = ((200, 60, 30), (40, 90, 210))
GREYS = ((90, 90, 90), (180, 180, 180))
PIXEL_FORMATS = [
    *(("libx264", ".mp4", name) for name in ("yuv420p10le", "yuv422p", "yuv444p")),
    *(("libx265", ".mp4", name) for name in ("yuv420p10le", "yuv420p12le", "gray10le")),
    *(("libvpx-vp9", ".webm", name) for name in ("yuv444p", "yuva420p", "gbrp")),
    *(("prores_ks", ".mov", name) for name in ("yuv422p10le", "yuv444p10le", "yuva444p10le")),
    *(("ffv1", ".mkv", name) for name in ("yuv444p12le", "gray", "bgra", "gbrp10le", "yuva420p", "rgb48le")),
    *(("qtrle", ".mov", name) for name in ("rgb24", "argb")),
]
BT2020, PQ, HLG, LIMITED, FULL, BT709 = 9, 16, 18, 1, 2, 1
TAGS = {
    "C12 full 709": {"colorspace": BT709, "color_range": FULL},
    "C12 limited 709": {"colorspace": BT709, "color_range": LIMITED},
    "C12 PQ": {"colorspace": BT2020, "color_primaries": BT2020, "color_trc": PQ},
    "C12 HLG": {"colorspace": BT2020, "color_primaries": BT2020, "color_trc": HLG},
}
FORMATS = {
    "C12 full 709": "yuvj420p",
    "C12 limited 709": "yuv420p",
    "C12 PQ": "yuv420p10le",
    "C12 HLG": "yuv420p10le",
}
CONTAINERS = {  # of each codec for which there is an encoder
    "libx264": ".mp4 .mov .avi .mkv .mpg .flv .ts .asf .mxf .3gp .wmv",
    "libx265": ".mp4 .mov .mkv .mpg .flv .ts",
    "libvpx": ".avi .mkv .webm .asf .ogv",
    "libvpx-vp9": ".mp4 .avi .mkv .webm .flv .asf",
    "libsvtav1": ".mp4 .mkv .webm",
    "mpeg1video": ".mp4 .avi .mkv .mpg .ts",
    "mpeg2video": ".mp4 .mov .avi .mkv .mpg .ts .mxf",
    "mpeg4": ".mp4 .mov .avi .mkv .mpg .ts .asf .3gp",
    "mjpeg": ".mp4 .mov .avi .mkv .asf",
    "wmv1": ".avi .asf .wmv",
    "wmv2": ".avi .asf .wmv",
    "msmpeg4v3": ".mov .avi .mkv .asf",
    "flv": ".avi .flv",
    "h263": ".mov .avi .3gp",
    "prores": ".mov .mkv .mxf",
    "ffv1": ".mp4 .avi .mkv .mxf",
    "rawvideo": ".avi .mkv",
}
SUPPORTED = [(codec, suffix) for codec, suffixes in CONTAINERS.items() for suffix in suffixes.split()]
# The muxer writes these, and FFmpeg itself does not know what is in the stream.
NAMELESS = {
    ("libvpx", ".ts"): "no_video_stream",
    ("libvpx-vp9", ".ts"): "no_video_stream",
    ("mjpeg", ".ts"): "no_video_stream",
    ("wmv2", ".mpg"): "decoder_missing",
    ("prores", ".mpg"): "decoder_missing",
}
LOSSLESS = {"qp": "0"}
TABLE: dict[str, Made] = {
    "C1": ("clip.mp4", video(frames=1)),
    **{
        f"C2 {count}": ("clip.mp4", video(frames=count))
        for count in (2, CLIP_FRAMES - 1, CLIP_FRAMES, CLIP_FRAMES + 1, 2 * CLIP_FRAMES + 1)
    },
    "C3 unknown": ("clip.h264", video(frames=30, b_frames=0)),
    "C3 0/0": ("clip.avi", no_rate),
    "C3 1": ("clip.mp4", video(frames=30, fps=1)),
    "C3 240": ("clip.mp4", video(frames=30, fps=240)),
    "C3 29.97": ("clip.mp4", video(frames=30, fps=Fraction(30000, 1001))),
    "C4 mp4": ("clip.mp4", video(vfr=True)),
    "C4 mkv": ("clip.mkv", video(vfr=True)),
    **{
        f"C5 {turn}": ("clip.mp4", lambda path, turn=turn: turned(path, turn, pixels=False))
        for turn in (0, 90, 180, 270)
    },
    **{
        f"C5 {turn} by pixels": ("clip.mp4", lambda path, turn=turn: turned(path, turn, pixels=True))
        for turn in (0, 90, 180, 270)
    },
    "C6": ("clip.mp4", video(frames=30, pixel_aspect=Fraction(4, 3))),
    "C6 square": ("clip.mp4", video(frames=30)),
    "C7 63x47": ("clip.mp4", video(codec="mpeg4", frames=30, width=63, height=47)),
    "C7 1x1": ("clip.mkv", video(codec="ffv1", b_frames=0, frames=5, width=1, height=1)),
    "C7 2x2000": ("clip.mp4", video(frames=5, width=2, height=2000)),
    "C7 2000x2": ("clip.mp4", video(frames=5, width=2000, height=2)),
    "C8 8K": ("clip.avi", flat(7680, 4320, 128, 90, 160, codec="mjpeg", frames=3)),
    "C8 16K": ("clip.avi", flat(15360, 8640, 128, 128, 128, codec="mjpeg", frames=1)),
    "C9 16K": ("clip.h264", lambda path: make_h264_of_size(path, 15360, 8640)),
    "C9 32000x8000": ("clip.h264", lambda path: make_h264_of_size(path, 32000, 8000)),
    "C9 65535x65535": ("clip.h264", lambda path: make_h264_of_size(path, 65535, 65535)),
    "C10 10 h": ("clip.mp4", lambda path: long(path, 10)),
    "C10 6 min": ("clip.mp4", lambda path: long(path, 0.1)),
    **{f"C11 {codec} {name}": (f"clip{suffix}", coloured(codec, name)) for codec, suffix, name in PIXEL_FORMATS},
    **{row: ("clip.mp4", coloured("libx265", FORMATS[row], **tags)) for row, tags in TAGS.items()},
    "C13 h264": ("clip.mp4", video(frames=30, options={"x264-params": "tff=1"})),
    "C13 mpeg2": ("clip.ts", video(codec="mpeg2video", frames=30, options={"flags": "+ildct+ilme"})),
    "C14 small": ("clip.mkv", lambda path: several(path, "small")),
    "C14 cover": ("clip.mkv", lambda path: several(path, "cover")),
    **{
        f"C15 {codec} {suffix}": (f"clip{suffix}", video(codec=codec, frames=6, b_frames=0, width=176, height=144))
        for codec, suffix in [*SUPPORTED, *NAMELESS]
    },
    "C16 negative dts": ("clip.mp4", video(frames=30, b_frames=3)),
    "C16 edit list": ("clip.mp4", later),
    "C17 0.04 s": ("clip.mp4", lambda path: with_sound(path, 1)),
    "C17 0.08 s": ("clip.mp4", lambda path: with_sound(path, 2)),
    "C17 1 s": ("clip.mp4", lambda path: with_sound(path, 25)),
    "C18 black": ("clip.mp4", flat(160, 120, 16, 128, 128)),
    "C18 white": ("clip.mp4", flat(160, 120, 235, 128, 128)),
    "C18 noise": ("clip.mp4", noise),
}
FAILED = {
    "C1": "too_short",
    "C8 16K": "too_large",
    "C9 16K": "too_large",
    "C9 32000x8000": "too_large",
    "C9 65535x65535": "corrupt",  # FFmpeg knows no such size
    **{f"C15 {codec} {suffix}": code for (codec, suffix), code in NAMELESS.items()},
    "C17 0.04 s": "too_short",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("unusual") / "in"


@pytest.fixture(scope="module")
def table(folder: Path, exported: Path) -> Table:
    return label_table(exported, folder, TABLE, all_files=True, limits=SMALL)


@pytest.fixture(scope="module")
def recognizer(exported: Path) -> Recognizer:
    return load(exported, runner="openvino", precision="fp32")


@pytest.mark.parametrize("row", FAILED)
def test_no_label(table: Table, row: str) -> None:
    table.failed(row, FAILED[row])


@pytest.mark.parametrize("row", [row for row in TABLE if row not in FAILED])
def test_the_label_of_a_plain_decode(table: Table, folder: Path, recognizer: Recognizer, row: str) -> None:
    got = table.labelled(row)
    assert got.duration_s is not None
    if row.startswith(("C10", "C14")) or row.endswith(".mpg"):  # too long; not the first stream; frames without a time
        return
    times = recognizer.spec.sampling.timestamps_s(whole(got.duration_s)[0])
    clip = decode_all(folder / row / TABLE[row][0]).pixels(times, recognizer.spec.size)
    probabilities = recognizer.predict(clip[None])[0]
    assert recognizer.spec.classes[int(probabilities.argmax())] == got.label
    assert float(probabilities.max()) == pytest.approx(got.score, abs=1e-4)


def test_the_bundle_is_what_the_table_takes_it_for(recognizer: Recognizer) -> None:
    assert recognizer.spec.sampling.frames == CLIP_FRAMES
    assert recognizer.spec.size.mode == "stretch"


@pytest.mark.parametrize(
    ("row", "fps"),
    [("C3 unknown", None), ("C3 1", 1.0), ("C3 240", 240.0), ("C3 29.97", 30000 / 1001)],
)
def test_c3_the_rate_is_not_rounded(table: Table, row: str, fps: float | None) -> None:
    got = table.rows[row]
    assert got.fps == (fps if fps is None else pytest.approx(fps, rel=1e-5))
    assert got.duration_s == pytest.approx(30 / (fps or 25), rel=1e-5)


def test_c4_the_rate_varies(folder: Path) -> None:
    for row in ("C4 mp4", "C4 mkv"):
        assert len(set(np.diff(decode_all(folder / row / TABLE[row][0]).shown_s).round(3).tolist())) > 3


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_c5_a_turned_header_is_as_good_as_turned_pixels(table: Table, folder: Path, degrees: int) -> None:
    row = f"C5 {degrees}"
    assert_same_label(table.rows[row], table.rows[f"{row} by pixels"], tolerance=0.02)
    assert PyAVDecoder().probe(folder / row / "clip.mp4").rotation_degrees == degrees


def test_c6_a_stretched_clip_is_the_same_whatever_the_shape_of_pixels(table: Table, folder: Path) -> None:
    with av.open(str(folder / "C6" / "clip.mp4")) as container:
        assert container.streams.video[0].codec_context.sample_aspect_ratio == Fraction(4, 3)
    assert_same_label(table.rows["C6"], table.rows["C6 square"], tolerance=0.02)


PEAK = """
import json, re, sys, time
from pathlib import Path
import numpy as np
from harec_deploy.decode import Size
from harec_deploy.decode.pyav import PyAVDecoder
from harec_deploy.errors import VideoError
start, error = time.perf_counter(), None
try:
    times = lambda info: np.arange(20) * info.duration_s / 20
    PyAVDecoder().frames(Path(sys.argv[1]), times, Size(width=64, height=48))
except VideoError as caught:
    error = caught.kind
seconds = time.perf_counter() - start
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
print(json.dumps({"peak_mb": peak / 1024, "seconds": seconds, "error": error}))
"""


def peak(path: Path) -> dict[str, Any]:
    """Decode a clip in a process of its own; return the most memory that it had, in MB, the seconds and the error."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


@pytest.mark.parametrize("row", [row for row in TABLE if row.startswith(("C8", "C9"))])
def test_c8_c9_memory_has_a_bound(folder: Path, row: str) -> None:
    facts = peak(folder / row / TABLE[row][0])
    assert facts["error"] == FAILED.get(row)
    assert facts["peak_mb"] < 512
    if facts["error"]:
        assert facts["peak_mb"] < 200  # one frame of 16K takes 190 MB
        assert facts["seconds"] < 2


def test_c9_a_few_kilobytes_say_that_they_are_huge(folder: Path) -> None:
    for row, width in (("C9 16K", 15360), ("C9 32000x8000", 32000)):
        path = folder / row / "clip.h264"
        assert path.stat().st_size < 4096
        with av.open(str(path), options={"max_pixels": "1000"}) as container:  # or it takes a gigabyte
            assert container.streams.video[0].width == width


def test_c10_time_and_memory_do_not_depend_on_the_length(table: Table, folder: Path) -> None:
    short, long = (peak(folder / row / "clip.mp4") for row in ("C10 6 min", "C10 10 h"))
    assert table.rows["C10 10 h"].duration_s == 36_000
    assert table.rows["C10 10 h"].frames_decoded == 36_000
    assert long["peak_mb"] < short["peak_mb"] + 64
    assert long["seconds"] < short["seconds"] + 2


@pytest.mark.parametrize(("codec", "suffix", "pixel_format"), PIXEL_FORMATS)
def test_c11_colours_of_a_patch(folder: Path, codec: str, suffix: str, pixel_format: str) -> None:
    path = folder / f"C11 {codec} {pixel_format}" / f"clip{suffix}"
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).format.name == GIVEN.get(f"{codec} {pixel_format}", pixel_format)
    (pixels,) = PyAVDecoder().frames(path, [0.0], Size(width=256, height=128)).pixels
    for half, colour in zip(
        (pixels[:, 16:112], pixels[:, 144:240]), GREYS if "gray" in pixel_format else COLOURS, strict=True
    ):
        np.testing.assert_allclose(half.reshape(-1, 3).mean(axis=0), colour, atol=3)
        assert half.reshape(-1, 3).std(axis=0).max() < 1


GIVEN = {  # by the decoder, where it has another name for it
    "libvpx-vp9 yuva420p": "yuv420p",  # alpha is a stream of its own, for another decoder
    "prores_ks yuv444p10le": "yuv444p12le",
    "prores_ks yuva444p10le": "yuva444p12le",
    "ffv1 rgb48le": "gbrp16le",
}


def test_c12_the_tags_are_there(folder: Path) -> None:
    for row, tags in TAGS.items():
        with av.open(str(folder / row / "clip.mp4")) as container:
            frame = next(container.decode(video=0))
        assert {name: getattr(frame, name) for name in tags} == tags
        assert frame.format.name == FORMATS[row]


def test_c13_the_videos_are_interlaced(folder: Path) -> None:
    for row in ("C13 h264", "C13 mpeg2"):
        with av.open(str(folder / row / TABLE[row][0])) as container:
            assert next(container.decode(video=0)).interlaced_frame, row


@pytest.mark.parametrize("row", ["C14 small", "C14 cover"])
def test_c14_the_best_stream_is_taken(table: Table, folder: Path, row: str) -> None:
    with av.open(str(folder / row / "clip.mkv")) as container:
        assert [stream.width for stream in container.streams.video] == [64, 160]
    assert (table.rows[row].width, table.rows[row].codec) == (160, "h264")
    assert PyAVDecoder().probe(folder / row / "clip.mkv").stream_index == 1


def test_c16_an_edit_list_cuts_the_start_off(folder: Path) -> None:
    path = folder / "C16 edit list" / "clip.mp4"
    assert [read_index(frame.to_ndarray(format="rgb24")) for frame in decode_all(path).frames] == list(range(10, 40))
    with av.open(str(folder / "C16 negative dts" / "clip.mp4")) as container:
        assert next(container.demux(video=0)).dts < 0
    got = PyAVDecoder().frames(path, (np.arange(30) + 0.5) / 25, Size(width=64, height=48))
    assert [read_index(pixels) for pixels in got.pixels] == list(range(10, 40))


def test_c17_sound_does_not_lengthen_a_video(table: Table, folder: Path) -> None:
    assert table.rows["C17 1 s"].duration_s == pytest.approx(1.0)
    assert table.rows["C17 0.08 s"].duration_s == pytest.approx(0.08)
    with av.open(str(folder / "C17 1 s" / "clip.mp4")) as container:
        assert container.duration > 4.9e6
