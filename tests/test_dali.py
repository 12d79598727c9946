"""DALI gives the reference decoder's frames, within stated levels, or leaves the video to it.

DALI itself runs here, in its CPU form, on VP8, VP9 and MJPEG. What it is asked on a GPU is the same graph with another
device; tests/gpu/test_dali.py runs that where there is one.
"""

import inspect
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harec_deploy.decode import Frames, Refused, Size, VideoInfo, choose
from harec_deploy.decode.dali import DaliDecoder
from harec_deploy.decode.headers import one_picture_each, unsteady
from harec_deploy.decode.pyav import PyAVDecoder
from harec_deploy.decode.routes import GPU_CODECS, Rules
from harec_deploy.errors import VideoError
from tests.gpu.test_dali_decoder import CLIPS, LARGE
from tests.media import (
    Clip,
    cut,
    flip_bytes,
    make_audio,
    make_hidden_vp9,
    make_packed_avi,
    make_resized,
    make_video,
    pictures,
    read_index,
    rotate,
    write_frames,
)

VP9, VP8 = {"codec": "libvpx-vp9"}, {"codec": "libvpx", "options": {"auto-alt-ref": "0"}}
MJPEG = {"codec": "mjpeg"}
SIZE = Size(width=112, height=112)
SIZES = {"stretch": SIZE, "crop": Size(width=90, height=111, mode="crop"), "tall": Size(width=60, height=112)}
# The made videos are noise, the worst that scaling can be given: on real clips the mean is 0.2 to 2.1.
MEAN_LEVELS, MAX_LEVELS = 4.0, 80


@pytest.fixture(scope="module")
def decoder() -> DaliDecoder:
    return DaliDecoder("cpu")


def times_of(info: VideoInfo) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.linspace(0.05, info.duration_s - 0.01, 8)


def one(decoder: DaliDecoder, path: Path, size: Size = SIZE, count: int | None = None) -> Any:
    """Return what becomes of one video."""
    ((key, outcome),) = decoder.decode_many([(path.name, path)], times_of, size, count)
    assert key == path.name
    return outcome


def assert_like_reference(found: Any, path: Path, size: Size = SIZE) -> None:
    wanted = PyAVDecoder().frames(path, times_of, size)
    assert isinstance(found, Frames), found
    assert found.info == wanted.info
    assert found.last
    np.testing.assert_array_equal(found.shown_s, wanted.shown_s)
    assert [read_index(pixels) for pixels in found.pixels] == [read_index(pixels) for pixels in wanted.pixels]
    levels = np.abs(found.pixels.astype(np.int16) - wanted.pixels)
    assert found.pixels.shape == wanted.pixels.shape
    assert levels.mean() <= MEAN_LEVELS
    assert levels.max() <= MAX_LEVELS


TAKEN: dict[str, dict[str, Any]] = {
    "vp9.webm": VP9,
    "vp9_no_hidden.webm": VP9 | {"b_frames": 0},
    "vp9.mp4": VP9,
    "vp9_vfr.webm": VP9 | {"vfr": True},
    "vp9_late.webm": VP9 | {"start_s": 3},
    "vp9_long_gop.webm": VP9 | {"gop": 250, "frames": 150},
    "vp8.webm": VP8,
    "mjpeg.avi": MJPEG,
    "mjpeg.mp4": MJPEG,
    "mjpeg_vfr.mkv": MJPEG | {"vfr": True},
}


@pytest.mark.parametrize("mode", SIZES)
@pytest.mark.parametrize("name", TAKEN)
def test_frames_are_those_of_the_reference(tmp_path: Path, decoder: DaliDecoder, name: str, mode: str) -> None:
    path = make_video(tmp_path / name, **TAKEN[name])
    assert_like_reference(one(decoder, path, SIZES[mode]), path, SIZES[mode])


def test_crop_honours_the_pixel_aspect(tmp_path: Path, decoder: DaliDecoder) -> None:
    path = make_video(tmp_path / "wide.webm", **VP9, pixel_aspect=Fraction(16, 11))
    size = Size(width=64, height=64, mode="crop")
    wanted, found = PyAVDecoder().frames(path, times_of, size), one(decoder, path, size)
    assert np.abs(found.pixels.astype(np.int16) - wanted.pixels).mean() <= MEAN_LEVELS


def test_a_single_video_is_a_batch_of_one(tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.webm", **VP9)
    decoder = choose("dali", "cpu")
    times = [2.0, 0.4, 2.0, -7.0, 1e9]
    wanted, found = (each.frames(path, times, SIZE) for each in (PyAVDecoder(), decoder))
    np.testing.assert_array_equal(found.shown_s, wanted.shown_s)
    assert [read_index(pixels) for pixels in found.pixels] == [read_index(pixels) for pixels in wanted.pixels]
    (part,) = decoder.stream(path, times_of, SIZE, 8)
    assert len(part.pixels) == 8
    assert decoder.probe(path) == PyAVDecoder().probe(path)


def test_a_video_that_needs_more_frames_than_a_part_holds_is_refused(tmp_path: Path, decoder: DaliDecoder) -> None:
    path = make_video(tmp_path / "clip.webm", **VP9)
    assert len(one(decoder, path, count=8).pixels) == 8
    assert "8 frames; at most 7" in str(one(decoder, path, count=7))
    with pytest.raises(Refused):
        next(decoder.stream(path, times_of, SIZE, 7))


def colours(path: Path, matrix: str) -> Path:
    """Write VP9 tagged with a colour matrix."""
    return make_video(path, **VP9, options={"colorspace": matrix})


def of_format(path: Path, pixel_format: str) -> Path:
    """Write MJPEG of a pixel format."""
    clip = Clip(codec="mjpeg", frames=20)
    return write_frames(path, clip, pictures(clip, range(20)), pix_fmt=pixel_format)


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "H.264": (lambda f: make_video(f / "clip.mp4"), "codec h264"),
    "MPEG-4": (lambda f: make_video(f / "clip.avi", codec="mpeg4"), "codec mpeg4"),
    "BT.709": (lambda f: colours(f / "clip.webm", "bt709"), "colour matrix 1"),
    "turned": (lambda f: rotate(make_video(f / "clip.mp4", **VP9), 90), "rotation"),
    "mirrored": (lambda f: rotate(make_video(f / "clip.mp4", **VP9), 0, mirrored=True), "rotation"),
    "4:4:4": (lambda f: of_format(f / "clip.avi", "yuvj444p"), "pixel format yuvj444p"),
    "4:2:2": (lambda f: of_format(f / "clip.avi", "yuvj422p"), "pixel format yuvj422p"),
    "odd width": (lambda f: make_video(f / "clip.webm", **VP9, width=161), "161x120 pixels"),
    "odd height": (lambda f: make_video(f / "clip.webm", **VP9, height=121), "160x121 pixels"),
    "hidden frames": (lambda f: make_hidden_vp9(f / "clip.webm", Clip(codec="libvpx-vp9")), "told by number"),
    "truncated": (lambda f: cut(make_video(f / "clip.avi", **MJPEG), 0.6), "not complete"),
    "truncated VP9": (lambda f: cut(make_video(f / "clip.webm", **VP9), 0.6), "not complete"),
    "another container": (lambda f: make_video(f / "clip.ivf", **VP9), "container ivf"),
    "bit flips": (
        lambda f: flip_bytes(make_video(f / "clip.avi", **MJPEG, frames=60), start=3000, every=1999),
        "DALI: ",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_it_may_not_decode_is_refused(tmp_path: Path, decoder: DaliDecoder, what: str) -> None:
    make, why = REFUSED[what]
    outcome = one(decoder, make(tmp_path))
    assert isinstance(outcome, Refused), outcome
    assert why in str(outcome)


def test_what_is_no_video_is_an_error(tmp_path: Path, decoder: DaliDecoder) -> None:
    (tmp_path / "text.webm").write_text("no video at all" * 99)
    (tmp_path / "empty.webm").touch()
    make_audio(tmp_path / "sound.mp4")
    kinds = {
        key: outcome.kind
        for key, outcome in decoder.decode_many([(p.name, p) for p in tmp_path.iterdir()], times_of, SIZE)
        if isinstance(outcome, VideoError)
    }
    wanted = {}
    for path in tmp_path.iterdir():
        with pytest.raises(VideoError) as caught:
            PyAVDecoder().probe(path)
        wanted[path.name] = caught.value.kind
    assert kinds == wanted
    with pytest.raises(VideoError):
        decoder.frames(tmp_path / "text.webm", [0.0], SIZE)


def test_a_suffix_means_nothing(tmp_path: Path, decoder: DaliDecoder) -> None:
    path = make_video(tmp_path / "clip.webm", **VP9).rename(tmp_path / "clip.avi")
    assert_like_reference(one(decoder, path), path)


def test_many_videos_of_many_kinds_come_back_under_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = DaliDecoder("cpu", batch=3)
    for place in range(5):
        make_video(tmp_path / f"a{place}.webm", **VP9, seed=place)
        make_video(tmp_path / f"b{place}.webm", **VP9, seed=place, width=192, height=144)
        make_video(tmp_path / f"c{place}.avi", **MJPEG, seed=place)
    make_video(tmp_path / "h264.mp4")
    batches: list[set[tuple[str, int, int]]] = []
    sizes: list[int] = []
    run = DaliDecoder._run

    def watched(self: DaliDecoder, batch: list[Any], size: Size) -> list[Any]:
        batches.append({each.group for each in batch})
        sizes.append(len(batch))
        return run(self, batch, size)

    monkeypatch.setattr(DaliDecoder, "_run", watched)
    paths = sorted(tmp_path.iterdir())
    done = list(decoder.decode_many([(path, path) for path in paths], times_of, SIZE))
    assert sorted(path for path, _ in done) == paths
    for path, outcome in done:
        if path.name == "h264.mp4":
            assert isinstance(outcome, Refused)
        else:
            assert_like_reference(outcome, path)
    assert all(len(groups) == 1 for groups in batches)
    assert max(sizes) == 3
    assert sum(sizes) == 15


def test_one_bad_video_costs_no_other_of_its_batch(tmp_path: Path, decoder: DaliDecoder) -> None:
    for name in "abcd":
        make_video(tmp_path / f"{name}.avi", **MJPEG, frames=60)
    bad = flip_bytes(tmp_path / "b.avi", start=3000, every=1999)
    outcomes = dict(decoder.decode_many([(p, p) for p in sorted(tmp_path.iterdir())], times_of, SIZE))
    assert isinstance(outcomes.pop(bad), Refused)
    assert len(outcomes) == 3
    for path, outcome in outcomes.items():
        assert_like_reference(outcome, path)


@pytest.mark.parametrize("start", [3000, 9000, 20000])
def test_damage_that_no_decoder_notices_looks_the_same(tmp_path: Path, decoder: DaliDecoder, start: int) -> None:
    path = flip_bytes(make_video(tmp_path / "clip.webm", **VP9), start=start, every=1999)
    outcome = one(decoder, path)
    if not isinstance(outcome, Refused):
        wanted = PyAVDecoder().frames(path, times_of, SIZE)
        np.testing.assert_array_equal(outcome.shown_s, wanted.shown_s)
        assert np.abs(outcome.pixels.astype(np.int16) - wanted.pixels).mean() <= MEAN_LEVELS


def test_a_video_whose_first_frame_looks_otherwise_is_refused(
    tmp_path: Path, decoder: DaliDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a wrong colour matrix, a stale buffer or a neighbour's frames would look like.
    path = make_video(tmp_path / "clip.webm", **VP9)
    run = DaliDecoder._run
    monkeypatch.setattr(DaliDecoder, "_run", lambda self, batch, size: [255 - each for each in run(self, batch, size)])
    assert "first frame differs" in str(one(decoder, path))


def test_memory_does_not_run_ahead(tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.webm", **VP9)
    taken = 0

    def videos() -> Any:
        nonlocal taken
        for taken in range(1, 101):
            yield taken, path

    outcomes = DaliDecoder("cpu", batch=2).decode_many(videos(), times_of, SIZE)
    next(outcomes)
    assert taken == 4
    assert sum(1 for _ in outcomes) == 99


@pytest.mark.parametrize("what", ["H.264", "MPEG-4", "HEVC", "B frames in AVI", "packed", "interlaced", "full range"])
def test_routes_on_a_gpu(tmp_path: Path, what: str) -> None:
    """The rules for a GPU, which need none: frames whose numbers or colours it could have otherwise are not for it."""
    large = {"width": 192, "height": 160}
    make: dict[str, tuple[Callable[[], Path], str | None]] = {
        "H.264": (lambda: make_video(tmp_path / "a.mp4", **large), None),
        "HEVC": (lambda: make_video(tmp_path / "a.mkv", codec="libx265", **large), None),
        "MPEG-4": (lambda: make_video(tmp_path / "a.avi", codec="mpeg4", b_frames=0, **large), None),
        "B frames in AVI": (lambda: make_video(tmp_path / "a.avi", codec="mpeg4", **large), "told by number"),
        "packed": (lambda: make_packed_avi(tmp_path / "a.avi", Clip(codec="mpeg4", **large)), "told by number"),
        "interlaced": (
            lambda: make_video(tmp_path / "a.mp4", options={"flags": "+ildct", "x264-params": "tff=1"}, **large),
            "fields",
        ),
        "full range": (
            lambda: make_video(tmp_path / "a.mp4", options={"x264-params": "fullrange=on"}, **large),
            "full",
        ),
    }
    path, why = make[what][0](), make[what][1]
    assert refusal(path, gpu=True) == why or (why and why in (refusal(path, gpu=True) or ""))


def refusal(path: Path, *, gpu: bool) -> str | None:
    from harec_deploy.decode.passes import Plain

    with PyAVDecoder().open(path) as video:
        _, first = next(Plain(video, drop=False).frames())
        return Rules(gpu=gpu).refusal(video, first)


@pytest.mark.parametrize("name", CLIPS)
def test_what_the_gpu_tests_decode_is_for_a_gpu(tmp_path: Path, name: str) -> None:
    assert refusal(make_video(tmp_path / name, **LARGE | CLIPS[name]), gpu=True) is None


def test_other_routes_on_a_gpu(tmp_path: Path) -> None:
    large = {"width": 192, "height": 160}
    vp9 = {"codec": "libvpx-vp9"} | large
    assert refusal(make_video(tmp_path / "plain.webm", **vp9, b_frames=0), gpu=True) is None
    hidden = make_video(tmp_path / "hidden.webm", **vp9)
    assert not _one_each(hidden)
    assert "one picture" in str(refusal(hidden, gpu=True))
    assert refusal(hidden, gpu=False) is None
    assert "pixels" in str(refusal(make_video(tmp_path / "small.mp4", width=96, height=96), gpu=True))
    assert refusal(make_video(tmp_path / "mjpeg.avi", codec="mjpeg", **large), gpu=True) == "codec mjpeg"
    assert "mjpeg" not in GPU_CODECS
    changed = make_resized(tmp_path / "resized.mkv", [(192, 160), (256, 192)])
    assert refusal(changed, gpu=True)


def _one_each(path: Path) -> bool:
    with PyAVDecoder().open(path) as video:
        return one_picture_each(bytes(packet) for packet in video.table.packets or [])


def test_a_change_of_size_is_seen_in_the_headers() -> None:
    def key(width: int, height: int) -> bytes:
        """Return a VP8 key frame's first bytes."""
        return b"\x10\0\0\x9d\x01\x2a" + width.to_bytes(2, "little") + height.to_bytes(2, "little")

    def vp9_key(width: int, height: int) -> bytes:
        body = (width - 1) << 16 | (height - 1)
        return b"\x82\x49\x83\x42" + (body << 4).to_bytes(5, "big")

    assert unsteady("vp8", b"", [key(160, 120), b"\x11rest", key(160, 120)]) is None
    assert unsteady("vp8", b"", [key(160, 120), key(320, 240)]) == "its size changes"
    assert unsteady("vp9", b"", [vp9_key(160, 120), vp9_key(160, 120)]) is None
    assert unsteady("vp9", b"", [vp9_key(160, 120), vp9_key(160, 122)]) == "its size changes"
    inter = int("1000011000" + "0" * 20 + "1" + "0" * 9, 2).to_bytes(5, "big")
    inter_other = int("1000011000" + "0" * 20 + "000" + "1" * 7, 2).to_bytes(5, "big")
    assert unsteady("vp9", b"", [vp9_key(160, 120), inter]) is None
    assert unsteady("vp9", b"", [vp9_key(160, 120), inter_other]) == "its size may change"
    volume = b"\0\0\1\x20abc"
    assert unsteady("mpeg4", volume, [volume + b"\0\0\1\xb6picture", b"\0\0\1\xb6picture"]) is None
    assert unsteady("mpeg4", volume, [b"\0\0\1\x20abd\0\0\1\xb6picture"]) == "its size or format may change"


@given(codec=st.sampled_from(["h264", "hevc", "mpeg4", "vp8", "vp9"]), header=st.binary(), data=st.lists(st.binary()))
def test_headers_of_noise_are_read_without_an_error(codec: str, header: bytes, data: list[bytes]) -> None:
    for extradata in (header, b"\1" + header[:3] + b"\xff\xe1" + header[3:]):
        assert unsteady(codec, extradata, data) in {None, *_SAID}
    one_picture_each(data)


_SAID = {
    "its H.264 headers are not of the usual form",
    "its HEVC headers are not of the usual form",
    "its VP9 profile is above 0",
    "its pictures may be single fields",
    "its size changes",
    "its size may change",
    "its size or format may change",
}


def test_the_keywords_used_exist_on_both_devices() -> None:
    """No GPU here: what the graph asks of DALI is compared with what the installed DALI knows."""
    from nvidia.dali import Pipeline, backend, fn, tensors, types

    names = {
        "decoders__Video": ({"cpu", "mixed"}, ["frames", "pad_mode", "affine"]),
        "Resize": ({"cpu", "gpu"}, ["size", "interp_type", "antialias"]),
        "Crop": ({"cpu", "gpu"}, ["crop", "rounding"]),
    }
    for name, (devices, keywords) in names.items():
        schema = backend.GetSchema(name)
        assert devices <= set(schema.GetSupportedBackends()), name
        assert set(keywords) <= set(schema.GetArgumentNames()), name
    for name, keyword in (("decoders__Video", "frames"), ("Resize", "size")):
        assert backend.GetSchema(name).IsTensorArgument(keyword), name  # one for each video
    assert {"batch_size", "num_threads", "device_id", "prefetch_queue_depth"} <= set(
        inspect.signature(Pipeline.__init__).parameters
    )
    assert {"name", "dtype", "ndim"} <= set(inspect.signature(fn.external_source).parameters)
    for tensor_list in (tensors.TensorListCPU, tensors.TensorListGPU):
        assert callable(tensor_list.as_cpu)
    assert callable(tensors.TensorListCPU.at)
    for name in ("UINT8", "INT32", "FLOAT", "INTERP_LINEAR"):
        assert hasattr(types, name)


def test_the_graph_of_a_gpu_is_built_of_known_parts() -> None:
    """The mixed operators take every keyword when the graph is drawn; only running it needs a driver."""
    from harec_deploy.decode.dali import _Graph

    graph = _Graph("cuda:0", Size(width=64, height=64, mode="crop"), 4)
    assert graph._pipeline.device_id == 0
    with pytest.raises(RuntimeError, match="CUDA"):
        graph._pipeline.build()


def test_a_copy_of_a_video_is_another_video(tmp_path: Path, decoder: DaliDecoder) -> None:
    first = make_video(tmp_path / "first.webm", **VP9)
    second = Path(shutil.copy(first, tmp_path / "second.webm"))
    done: Any = dict(decoder.decode_many([("first", first), ("second", second)], times_of, SIZE))
    np.testing.assert_array_equal(done["first"].pixels, done["second"].pixels)
