"""DALI on a GPU: the same frames as the reference decoder, of the codecs that only NVDEC decodes, and nothing lost."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harec_deploy.decode import DECODERS, Frames, Refused, Size, VideoInfo
from harec_deploy.decode.pyav import PyAVDecoder
from harec_deploy.devices import cuda_devices
from harec_deploy.label.child import Limits, Plan
from harec_deploy.label.decoders import choose_decoders
from harec_deploy.label.workers import decode_ahead
from harec_deploy.sampling import ClipSampling
from tests.media import flip_bytes, make_video, read_index
from tests.test_workers import videos_in

pytestmark = pytest.mark.gpu
SIZE = Size(width=112, height=112)
LARGE = {"width": 320, "height": 240}
# Levels off the reference on noise, the worst for scaling; NVDEC's pictures are those of any conforming decoder.
MEAN_LEVELS = 6.0


@pytest.fixture(autouse=True)
def on_a_gpu() -> None:
    if not cuda_devices() and os.environ.get("HAREC_FAIL_WITHOUT_GPU") != "1":
        pytest.skip("there is no GPU")
    assert cuda_devices(), "HAREC_FAIL_WITHOUT_GPU is 1, and there is no GPU"


def times_of(info: VideoInfo) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.linspace(0.05, info.duration_s - 0.01, 8)


CLIPS: dict[str, dict[str, Any]] = {
    "h264.mp4": {},
    "h264_no_b.mkv": {"b_frames": 0},
    "h264_long_gop.mp4": {"gop": 250, "frames": 150},
    "h264_open_gop.mp4": {"open_gop": True},
    "h264_vfr.mkv": {"vfr": True},
    "h264_late.mkv": {"start_s": 3},
    "hevc.mp4": {"codec": "libx265"},
    "hevc_open_gop.mkv": {"codec": "libx265", "open_gop": True},
    "mpeg4.avi": {"codec": "mpeg4", "b_frames": 0},
    "mpeg4_b.mp4": {"codec": "mpeg4"},
    "vp9.webm": {"codec": "libvpx-vp9", "b_frames": 0},
    "vp8.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "0"}},
}


@pytest.mark.parametrize("mode", ["stretch", "crop"])
@pytest.mark.parametrize("name", CLIPS)
def test_frames_are_those_of_the_reference(tmp_path: Path, name: str, mode: Any) -> None:
    from harec_deploy.decode.dali import DaliDecoder

    path, size = make_video(tmp_path / name, **LARGE | CLIPS[name]), Size(width=112, height=112, mode=mode)
    wanted = PyAVDecoder().frames(path, times_of, size)
    ((_, found),) = DaliDecoder("cuda:0").decode_many([(0, path)], times_of, size, 8)
    assert isinstance(found, Frames), f"{name}: {found}"
    assert found.info == wanted.info
    np.testing.assert_array_equal(found.shown_s, wanted.shown_s)
    if mode == "stretch":
        assert [read_index(each) for each in found.pixels] == [read_index(each) for each in wanted.pixels]
    levels = np.abs(found.pixels.astype(np.int16) - wanted.pixels)
    assert levels.mean() <= MEAN_LEVELS, f"mean {levels.mean():.2f}, max {levels.max()} levels"


def test_batches_of_many_kinds(tmp_path: Path) -> None:
    from harec_deploy.decode.dali import DaliDecoder

    for name, clip in CLIPS.items():
        for seed in range(3):
            make_video(tmp_path / f"{seed}_{name}", **LARGE | clip, seed=seed)
    paths = sorted(tmp_path.iterdir())
    done = list(DaliDecoder("cuda:0", batch=4).decode_many([(path, path) for path in paths], times_of, SIZE, 8))
    assert Counter(path for path, _ in done) == Counter(paths)
    for path, found in done:
        wanted = PyAVDecoder().frames(path, times_of, SIZE)
        assert isinstance(found, Frames), f"{path.name}: {found}"
        assert [read_index(each) for each in found.pixels] == [read_index(each) for each in wanted.pixels], path.name


def test_damage_costs_no_other_video(tmp_path: Path) -> None:
    from harec_deploy.decode.dali import DaliDecoder

    for name in "abcd":
        make_video(tmp_path / f"{name}.mp4", **LARGE)
    bad = flip_bytes(tmp_path / "b.mp4", every=499)
    paths = sorted(tmp_path.iterdir())
    done = dict(DaliDecoder("cuda:0").decode_many([(path, path) for path in paths], times_of, SIZE, 8))
    assert isinstance(done.pop(bad), Refused | Frames)
    for path, found in done.items():
        wanted = PyAVDecoder().frames(path, times_of, SIZE)
        assert isinstance(found, Frames)
        assert [read_index(each) for each in found.pixels] == [read_index(each) for each in wanted.pixels]


def test_its_children_decode_beside_the_cpu(tmp_path: Path) -> None:
    """The child as a run starts it: its limits leave CUDA what it needs."""
    for place in range(24):
        make_video(tmp_path / f"{place}.mp4", **LARGE, seed=place)
    make_video(tmp_path / "packed.avi", codec="mpeg4", **LARGE)
    batch = choose_decoders("dali", "cuda:0").batch_plan(Limits())
    plan = Plan(decoder=DECODERS["pyav"], sampling=ClipSampling(frames=8), size=SIZE, count=8, batch=batch)
    videos = videos_in(tmp_path)
    done = list(decode_ahead(videos, plan, 2))
    assert Counter(item.video for item in done) == Counter(videos)
    routes = {item.video.path.name: (item.route, item.refused) for item in done}
    assert routes.pop("packed.avi")[0] == "pyav"
    assert {route for route, _ in routes.values()} == {"dali"}, routes
    assert all(item.frames is not None for item in done)
