"""Annotated copies: every frame at its time with the label drawn in; a child that goes wrong costs one video."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from harec_deploy.decode import DECODERS, Size
from harec_deploy.decode.picture import Scaler
from harec_deploy.decode.pyav import PyAVDecoder
from harec_deploy.errors import MissingDependency, UsageError
from harec_deploy.label import annotate
from harec_deploy.label.annotate import Annotated, annotate_all
from harec_deploy.label.child import Limits
from harec_deploy.label.journal import Row
from harec_deploy.label.overlay import Caption, Overlay
from harec_deploy.label.redraw import write
from tests.media import Clip, cut, decode_all, flip_bytes, make_packed_avi, make_video, read_index, rotate
from tests.test_outputs import failed_row, make_row
from tests.test_workers import children

SEGMENTS = [(0.0, 0.8, "Biking", 0.91), (0.8, 1.6, "HorseRiding", 0.45), (1.6, 2.4, "跑步 \U0001f3c3\n\0", 1.0)]


def row_of(path: Path, root: Path, **fields: Any) -> Row:
    """Return the row of a video that lies below ``root``."""
    status = path.stat()
    told = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "duration_s": None}
    return make_row(os.fsencode(path.relative_to(root)), **told | fields)


def annotated(path: Path, **fields: Any) -> Path:
    """Annotate one video and return its copy."""
    root = path.parent
    done = annotate_all(root / "out", [row_of(path, root, **fields)], root=root)
    assert done == Annotated(1, [])
    return root / "out" / path.with_suffix(".mp4").name


def pixels_of(path: Path, size: Size) -> NDArray[np.uint8]:
    """Return every frame as shown, scaled: uint8 (F, H, W, 3)."""
    played = decode_all(path)
    scaler = Scaler(size, played.context.sample_aspect_ratio)
    return np.stack([scaler.picture(frame).pixels for frame in played.frames])


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(np.float64) - other) ** 2)))


def drawn_px(width: int, height: int) -> tuple[int, int]:
    """Return how many lines are drawn over at the top and at the bottom."""
    overlay = Overlay(width, height, Caption(label="a", score=None, segments=[]), 1.0)
    return overlay.label_px, overlay.timeline_px


@pytest.mark.parametrize(
    ("name", "clip"),
    [
        ("b.mp4", Clip(width=320, height=240)),
        ("b.mkv", Clip(width=320, height=240, vfr=True, seed=3)),
        ("b.mov", Clip(width=320, height=240, vfr=True, fps=30)),
        ("b.webm", Clip(codec="libvpx-vp9", width=320, height=240)),
        ("b.ts", Clip(width=320, height=240, start_s=30)),
        ("b.avi", Clip(codec="mpeg4", width=320, height=240)),
        ("b.h264", Clip(width=320, height=240, b_frames=0)),
    ],
    ids=str,
)
def test_frames_and_times_stay_and_only_the_bands_are_drawn_over(tmp_path: Path, name: str, clip: Clip) -> None:
    source = make_video(tmp_path / name, clip)
    copy = annotated(source, segments=SEGMENTS)
    before, after = decode_all(source), decode_all(copy)
    assert len(after.frames) == len(before.frames) == clip.frames
    np.testing.assert_allclose(after.shown_s, before.shown_s, atol=1.01e-3 if name.endswith("mkv") else 1e-4)
    assert after.frames[0].pts == 0
    assert after.context.codec.canonical_name == "h264"
    size = Size(width=clip.width, height=clip.height)
    old, new = pixels_of(source, size), pixels_of(copy, size)
    top, bottom = drawn_px(clip.width, clip.height)
    inside = slice(top + 2, clip.height - bottom - 2)
    assert psnr(old[:, inside], new[:, inside]) > 32
    assert psnr(old[:, :top], new[:, :top]) < 15
    assert psnr(old[:, -bottom:], new[:, -bottom:]) < 15


def test_the_label_is_that_of_the_time(tmp_path: Path) -> None:
    segments = [(0.0, 0.8, "Biking", 0.91), (1.2, 2.4, "HorseRiding", 0.45)]
    source = make_video(tmp_path / "a.mp4", width=320, height=240, options={"qp": "0"})
    shown = pixels_of(annotated(source, segments=segments, label="Whole", score=0.5), Size(width=320, height=240))
    top, bottom = drawn_px(320, 240)
    for place, said in ((10, ("Biking", 0.91)), (25, ("Whole", 0.5)), (50, ("HorseRiding", 0.45))):
        wanted = pixels_of(source, Size(width=320, height=240))[place].copy()
        caption = Caption(label=said[0], score=said[1], segments=segments)
        whole = Overlay(320, 240, caption, 2.4)
        whole.draw(wanted, place / 25 if said[0] != "Whole" else 1.0)
        assert psnr(shown[place, :top], wanted[:top]) > 30, said
    cursor = shown[:, -bottom // 2].astype(int).min(axis=-1).argmax(axis=-1)
    assert (np.diff(cursor) >= 0).all()
    np.testing.assert_allclose(cursor, np.linspace(0, 319 * 59 / 60, 60), atol=5)


@pytest.mark.parametrize(
    ("size", "aspect", "wanted"),
    [
        ((1920, 1080), Fraction(1), (1280, 720)),
        ((161, 121), Fraction(1), (160, 120)),
        ((320, 240), Fraction(4, 3), (426, 240)),
        ((64, 32), Fraction(1), (64, 32)),
        ((16, 800), Fraction(1), (14, 720)),
    ],
    ids=str,
)
def test_size_is_as_shown_even_and_of_at_most_720_lines(
    tmp_path: Path, size: tuple[int, int], aspect: Fraction, wanted: tuple[int, int]
) -> None:
    codec = "mjpeg" if size[0] % 2 else "libx264"
    source = make_video(tmp_path / "a.mkv", codec=codec, width=size[0], height=size[1], frames=4, pixel_aspect=aspect)
    with av.open(str(annotated(source))) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == wanted
        assert stream.sample_aspect_ratio in (None, 1)
        assert len(list(container.decode(stream))) == 4


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_turned_video_is_written_upright(tmp_path: Path, degrees: int) -> None:
    source = rotate(make_video(tmp_path / "a.mp4", width=320, height=240, frames=10), degrees)
    copy = annotated(source)
    with av.open(str(copy)) as container:
        frame = next(container.decode(video=0))
        assert frame.rotation == 0
        assert (frame.width, frame.height) == ((240, 320) if degrees != 180 else (320, 240))
    size = Size(width=frame.width, height=frame.height)
    old, new = pixels_of(source, size), pixels_of(copy, size)
    top, bottom = drawn_px(size.width, size.height)
    assert psnr(old[:, top + 2 : -bottom - 2], new[:, top + 2 : -bottom - 2]) > 30


def test_packed_avi_has_every_frame_in_its_place(tmp_path: Path) -> None:
    clip = Clip(codec="mpeg4", width=320, height=240, frames=40)
    copy = annotated(make_packed_avi(tmp_path / "a.avi", clip))
    played = decode_all(copy)
    np.testing.assert_allclose(played.shown_s, np.arange(40) / 25, atol=1e-4)
    shown = pixels_of(copy, Size(width=320, height=240))
    top = drawn_px(320, 240)[0]
    uncovered = shown.copy()
    uncovered[:, :top] = shown[:, top : 2 * top]  # of the same blocks
    assert [read_index(pixels) for pixels in uncovered] == list(range(40))


def add_sound(path: Path, codec: str, *, start_s: float = 0.0, **context: Any) -> Path:
    """Write a copy of a video with a second and a half of a tone, beginning ``start_s`` after the first frame."""
    copy = path.with_name(f"sound{path.suffix}")
    with av.open(str(path)) as source, av.open(str(copy), "w") as output:
        video = source.streams.video[0]
        out = output.add_stream_from_template(video)
        sound: Any = output.add_stream(codec, rate=48000, layout="mono", **context)
        first = None
        for packet in source.demux(video):
            if packet.dts is not None:
                first = packet.pts * packet.time_base if first is None else first
                packet.stream = out
                output.mux(packet)
        tone = (np.sin(np.arange(72000) / 20) * 8000).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
        frame.sample_rate, frame.time_base = 48000, Fraction(1, 48000)
        frame.pts = round((first + Fraction(start_s)) * 48000)
        resampler = av.AudioResampler(sound.format, "mono", 48000, frame_size=sound.frame_size or 1024)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(sound.encode(part))
        output.mux(sound.encode(None))
    return copy


def packets(path: Path) -> list[tuple[float, bytes]]:
    """Return (seconds after the first frame, data) of the sound's packets."""
    with av.open(str(path)) as container:
        first = next(container.decode(video=0)).time
    with av.open(str(path)) as container:
        found = [packet for packet in container.demux(audio=0) if packet.size]
        return [(float(packet.pts * packet.time_base) - first, bytes(packet)) for packet in found]


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "aac"), ("a.mkv", "libopus"), ("a.mkv", "libmp3lame"), ("a.avi", "libmp3lame")]
)
def test_sound_is_copied(tmp_path: Path, name: str, codec: str) -> None:
    video = "mpeg4" if name.endswith("avi") else "libx264"
    source = add_sound(make_video(tmp_path / name, codec=video, width=320, height=240, b_frames=0), codec)
    before, after = packets(source), packets(annotated(source))
    assert [data for _, data in after] == [data for _, data in before]
    shifts = np.array([late - early for (early, _), (late, _) in zip(before, after, strict=True)])
    assert abs(shifts).max() < 0.002


def test_sound_stays_beside_the_pictures_of_a_stream_that_starts_late(tmp_path: Path) -> None:
    source = add_sound(make_video(tmp_path / "a.ts", width=320, height=240, start_s=30), "aac", start_s=0.5)
    with av.open(str(annotated(source))) as container:
        (codec,) = (stream.codec.canonical_name for stream in container.streams.audio)
        sound = list(container.decode(audio=0))
    assert codec == "aac"
    loud = next(frame for frame in sound if abs(frame.to_ndarray()).max() > 0.1)
    assert loud.time == pytest.approx(0.5, abs=0.05)
    assert sound[-1].time == pytest.approx(2.0, abs=0.08)


def test_sound_that_mp4_cannot_hold_is_left_out(tmp_path: Path) -> None:
    source = add_sound(make_video(tmp_path / "a.mov", width=320, height=240), "pcm_s16le")
    with av.open(str(annotated(source))) as container:
        assert len(container.streams.audio) == 0
        assert len(list(container.decode(video=0))) == 60


def test_an_ffmpeg_without_x264_writes_mpeg4(tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.mkv", width=320, height=240, vfr=True)
    with (tmp_path / "out.mp4").open("w+b") as stream:
        write(source, stream, Caption(label="a", score=0.5, segments=[]), PyAVDecoder(), encoder="mpeg4")
    before, after = decode_all(source), decode_all(tmp_path / "out.mp4")
    assert after.context.codec.canonical_name == "mpeg4"
    assert len(after.frames) == 60
    np.testing.assert_allclose(after.shown_s, before.shown_s, atol=1e-3)


def test_a_video_that_fails_costs_a_line(tmp_path: Path) -> None:
    names = "good.mp4 text.mp4 truncated.mp4 broken.mp4 changed.mp4 gone.mp4".split()
    (tmp_path / "in").mkdir()
    for name in names:
        make_video(tmp_path / "in" / name, frames=30)
    (tmp_path / "in/text.mp4").write_text("no video")
    cut(tmp_path / "in/truncated.mp4", 0.02)
    flip_bytes(tmp_path / "in/broken.mp4", every=3)
    rows = [row_of(tmp_path / "in" / name, tmp_path) for name in names]
    (tmp_path / "in/changed.mp4").write_bytes((tmp_path / "in/good.mp4").read_bytes() + b"\0")
    (tmp_path / "in/gone.mp4").unlink()
    seen: list[tuple[int, int]] = []
    rows += [failed_row("in/failed.mp4"), make_row("in/nul\0byte.mp4")]
    done = annotate_all(
        tmp_path / "out", rows, root=tmp_path, workers=2, progress=lambda done, total: seen.append((done, total))
    )
    told = dict(done.failures)
    assert list(told) == [f"in/{name}.mp4" for name in ("text", "truncated", "broken", "changed", "gone", "nul\0byte")]
    assert told["in/text.mp4"].startswith("no video container")
    assert told["in/changed.mp4"] == "the file changed while it was read"
    assert told["in/gone.mp4"] == "the file was there when the run began and is gone"
    assert all("\n" not in line and line for line in told.values())
    assert done.done == 1
    (copy,) = (path for path in (tmp_path / "out").rglob("*") if not path.is_dir())
    assert copy.name == "good.mp4"
    assert copy.stat().st_mode == (tmp_path / "in/good.mp4").stat().st_mode
    assert seen == [(place, 7) for place in range(1, 8)]


FAULTS = {
    "SEGV": "the decoder died of SIGSEGV",
    "KILL": "killed from outside",
    "RAISE": "IndexError: list index out of range",
    "SAY": "(7): what went wrong",
    "HANG": "annotating took longer than 3 s",
    "HOLD": "annotating took longer than 3 s",
    "SPIN": "annotating took longer than 3 s",
    "OOM": "the memory limit was reached",
}


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DECODERS, "pyav", "tests.faulty:FaultyDecoder")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))


@pytest.mark.usefixtures("faulty")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_child_that_goes_wrong_costs_one_video(tmp_path: Path, fault: str) -> None:
    (tmp_path / "bad.mp4").write_text(f"{fault} please")
    make_video(tmp_path / "good.mp4", frames=10)
    rows = [row_of(tmp_path / "bad.mp4", tmp_path), row_of(tmp_path / "good.mp4", tmp_path, duration_s=10.0)]
    before = children()
    done = annotate_all(
        tmp_path / "out", rows, root=tmp_path, workers=1, limits=Limits(memory_bytes=2 << 30, seconds=3.0)
    )
    assert done.done == 1
    ((name, told),) = done.failures
    assert name == "bad.mp4"
    assert FAULTS[fault] in told
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.mp4"]
    assert children() == before


def limits_of_child(parent: int) -> tuple[int, str]:
    """Return the process id of a child, and its limits once it has given up its rights."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for child in children(parent):
            if "NoNewPrivs:\t1" in Path(f"/proc/{child}/status").read_text():
                return child, Path(f"/proc/{child}/limits").read_text()
        time.sleep(0.02)
    raise AssertionError("no child with few rights")


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_run_that_was_stopped_starts_nothing_and_tells_no_faults(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", frames=10)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.mp4").write_text("of another model")
    stop = threading.Event()
    stop.set()
    rows = [row_of(tmp_path / "a.mp4", tmp_path)]
    assert annotate_all(tmp_path / "out", rows, root=tmp_path, stop=stop) == Annotated(0, [])
    assert not (tmp_path / "out/a.mp4").exists()


def test_a_copy_that_is_older_than_the_journal_is_made_again(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", frames=10)
    (tmp_path / "out").mkdir()
    copy = tmp_path / "out/a.mp4"
    for age_s, done in ((-60.0, 1), (60.0, 0)):
        copy.write_text("there")
        again = {"root": tmp_path, "again": lambda row: False, "since_s": copy.stat().st_mtime - age_s}
        assert annotate_all(tmp_path / "out", [row_of(tmp_path / "a.mp4", tmp_path)], **again) == Annotated(done, [])
        assert (copy.read_bytes() == b"there") == (not done)


@pytest.mark.usefixtures("faulty")
def test_an_interrupt_ends_the_children_and_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "hang.mp4").write_text("HANG")
    make_video(tmp_path / "good.mp4", frames=10)
    rows = [row_of(tmp_path / name, tmp_path) for name in ("good.mp4", "hang.mp4")]
    before, threads = children(), threading.active_count()

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        annotate_all(tmp_path / "out", rows, root=tmp_path, workers=2, progress=interrupt)
    assert time.monotonic() - start < 20
    assert children() == before
    assert threading.active_count() == threads
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.mp4"]


def test_a_child_has_few_rights_and_dies_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "hang.mp4").write_text("HANG")
    code = """
        import sys
        from pathlib import Path
        from harec_deploy.decode import DECODERS
        from tests.test_annotate import annotate_all, row_of
        DECODERS["pyav"] = "tests.faulty:FaultyDecoder"
        folder = Path(sys.argv[1])
        annotate_all(folder / "out", [row_of(folder / "hang.mp4", folder)], root=folder)
    """
    program = "\n".join(line.strip() for line in code.splitlines())
    paths = os.pathsep.join(path for path in [str(Path(__file__).parents[1]), *sys.path] if path)
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env={**os.environ, "PYTHONPATH": paths})
    try:
        child, limits = limits_of_child(parent.pid)
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    rows = {line[:26].strip(): line[26:].split()[:2] for line in limits.splitlines()}
    assert rows["Max file size"] == [str(8 << 30)] * 2
    assert rows["Max address space"] == [str(4 << 30)] * 2
    deadline = time.monotonic() + 30
    while is_alive(child):
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.02)


def test_a_child_can_open_nothing_once_it_decodes(tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.mp4", frames=200, width=640, height=480)
    code = """
        import os, sys
        from pathlib import Path
        from harec_deploy.decode.pyav import PyAVDecoder
        from harec_deploy.label import redraw
        from harec_deploy.label.overlay import Caption
        draw = redraw.Overlay.draw
        def greedy(self, pixels, time_s):
            try:
                os.open(sys.argv[1], os.O_RDONLY)
            except OSError as error:
                os.write(2, f"{error.strerror}\\n".encode())
                os._exit(9)
            os._exit(8)
        redraw.Overlay.draw = greedy
        with open(sys.argv[2], "w+b") as stream:
            caption = Caption(label="a", score=None, segments=[])
            redraw.write(Path(sys.argv[1]), stream, caption, PyAVDecoder(), sealed=redraw._open_nothing_more)
    """
    program = "\n".join(line.removeprefix(" " * 8) for line in code.splitlines())
    paths = os.pathsep.join(path for path in [str(Path(__file__).parents[1]), *sys.path] if path)
    command = [sys.executable, "-c", program, str(source), str(tmp_path / "out.mp4")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (9, "Too many open files\n")


def test_mistakes_are_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_video(tmp_path / "a.avi", codec="mpeg4", frames=10)
    (tmp_path / "link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path / "link"):
        with pytest.raises(UsageError, match="holds videos that are read: name another folder"):
            annotate_all(folder, [row_of(source, tmp_path)], root=tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependency, match=r"pip install 'harec-deploy\[annotate\]'"):
        annotate_all(tmp_path / "out", [row_of(source, tmp_path)], root=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a.avi", "link"}


def test_links_are_not_written_through_and_one_that_was_named_is_read(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    source = make_video(tmp_path / "store/a.mp4", frames=10)
    (tmp_path / "named.mp4").symlink_to(source)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/store").symlink_to(tmp_path / "elsewhere")
    told = {"size": source.stat().st_size, "mtime_ns": source.stat().st_mtime_ns}
    rows = [make_row("named.mp4", **told), make_row("store/a.mp4", **told)]
    done = annotate_all(tmp_path / "out", rows, root=tmp_path)
    ((name, reason),) = done.failures
    assert (done.done, name) == (1, "store/a.mp4")
    assert "is a link, and nothing is written through it" in reason
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert (tmp_path / "out/named.mp4").stat().st_size > 1000


def test_a_long_video_has_more_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    monkeypatch.setattr(annotate, "_wait", lambda child, seconds, stop: given.append(seconds))
    source = make_video(tmp_path / "a.mp4", frames=10)
    durations: Sequence[float | None] = (None, 100.0, 1e300)
    for duration_s in durations:
        annotate_all(tmp_path / "out", [row_of(source, tmp_path, duration_s=duration_s)], root=tmp_path)
    assert given == [120.0, 120.0 + 100 * annotate.EFFORT, 120.0 + annotate.MAX_EXTRA_S]


class TestOverlay:
    def paint(self, background: int, time_s: float = 0.0, **caption: Any) -> NDArray[np.uint8]:
        pixels = np.full((240, 426, 3), background, np.uint8)
        said = Caption(**{"label": "Biking", "score": 0.9, "segments": []} | caption)
        Overlay(426, 240, said, 10.0).draw(pixels, time_s)
        return pixels

    @pytest.mark.parametrize("background", [0, 128, 255])
    def test_text_stands_out_on_every_picture(self, background: int) -> None:
        band = self.paint(background)[: drawn_px(426, 240)[0]].astype(float) / 255
        linear = np.where(band <= 0.04045, band / 12.92, ((band + 0.055) / 1.055) ** 2.4)
        luminance = linear @ [0.2126, 0.7152, 0.0722]
        assert (luminance.max() + 0.05) / (np.median(luminance) + 0.05) > 7  # WCAG AAA

    @pytest.mark.parametrize("label", ["", "\n", "x" * 100_000, "跑步", "بسبس", "\ud800", "\U0001f3c3" * 50, "e\u0301"])
    def test_any_label_can_be_drawn_and_leaves_the_score_alone(self, label: str) -> None:
        plain, drawn = self.paint(0), self.paint(0, label=label)
        np.testing.assert_array_equal(drawn[:, 390:], plain[:, 390:])
        np.testing.assert_array_equal(drawn[24:], plain[24:])

    def test_accents_are_left_out_rather_than_the_letter(self) -> None:
        np.testing.assert_array_equal(self.paint(0, label="Élan à vélo"), self.paint(0, label="Elan a velo"))

    @pytest.mark.parametrize("segment", [(5.0, -1e308), (1e308, 1e309), (-1e300, 1e300), (9.0, 9.0)], ids=str)
    def test_no_time_of_a_journal_stops_it(self, segment: tuple[float, float]) -> None:
        self.paint(0, segments=[(*segment, "Biking", 1e300)], time_s=9.0)

    def test_a_label_has_one_colour_wherever_it_is(self) -> None:
        line = self.paint(0, segments=[(0.0, 3.0, "a", 1.0), (3.0, 6.0, "b", 1.0), (8.0, 10.0, "a", 1.0)])[-6]
        first, second, gap, last = (tuple(line[round(426 * part)]) for part in (0.2, 0.5, 0.7, 0.9))
        assert first == last
        assert len({first, second, gap}) == 3
