"""Frames of a long video, some at a time: the same frames as all at once."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from harec_deploy.decode import Frames, Size
from harec_deploy.decode.pyav import PyAVDecoder
from harec_deploy.errors import VideoError
from tests.media import Clip, flip_bytes, make_packed_avi, make_video

SIZE = Size(width=160, height=120)
TIMES = [0.0, *np.arange(0.1, 2.9, 0.11), 0.1, 99.0]


def last_pass(parts: Iterable[Frames]) -> tuple[list[Frames], int]:
    """Return the parts that count, and how often the video was begun anew."""
    kept: list[Frames] = []
    anew = 0
    for part in parts:
        if kept and part.shown_s[0] <= kept[-1].shown_s[-1]:
            kept, anew = [], anew + 1
        kept.append(part)
    return kept, anew


@pytest.mark.parametrize("count", [1, 7, 24, 1000])
@pytest.mark.parametrize("name", ["long_gop.mp4", "short_gop.mp4", "vfr.mkv", "packed.avi", "damaged.mp4"])
def test_parts_are_the_whole(tmp_path: Path, name: str, count: int) -> None:
    path = tmp_path / name
    if name == "packed.avi":
        make_packed_avi(path, Clip(codec="mpeg4", frames=75))
    else:
        make_video(path, frames=75, gop=250 if name == "long_gop.mp4" else 12, vfr=name == "vfr.mkv")
    if name == "damaged.mp4":
        flip_bytes(path, every=3001)
    whole = PyAVDecoder().frames(path, TIMES, SIZE)
    parts, _ = last_pass(PyAVDecoder().stream(path, TIMES, SIZE, count))
    shown_s, first = np.unique(whole.shown_s, return_index=True)
    np.testing.assert_array_equal(np.concatenate([part.shown_s for part in parts]), shown_s)
    np.testing.assert_array_equal(np.concatenate([part.pixels for part in parts]), whole.pixels[first])
    assert [len(part.pixels) for part in parts[:-1]] == [count] * (len(parts) - 1)
    assert 1 <= len(parts[-1].pixels) <= count
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].bad_packets == whole.bad_packets
    assert parts[-1].info == whole.info


def test_damage_behind_the_first_parts_begins_the_video_anew(tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.mp4", frames=75, gop=12)
    flip_bytes(path, start=int(path.stat().st_size * 0.7), every=501)
    parts, anew = last_pass(PyAVDecoder().stream(path, TIMES, SIZE, 4))
    assert anew == 1
    assert parts[0].shown_s[0] == 0.0
    whole = PyAVDecoder(selective=False).frames(path, TIMES, SIZE)
    _, first = np.unique(whole.shown_s, return_index=True)
    np.testing.assert_array_equal(np.concatenate([part.pixels for part in parts]), whole.pixels[first])
    assert parts[-1].bad_packets == whole.bad_packets > 0


def test_noise_is_told_at_the_end(tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.mp4", frames=75, gop=250)
    flip_bytes(path, every=31)
    with pytest.raises(VideoError):
        list(PyAVDecoder().stream(path, TIMES, SIZE, 4))


def test_a_stream_that_is_left_closes_its_file(tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.mp4", frames=75)
    before = len(list(Path("/proc/self/fd").iterdir()))
    stream = PyAVDecoder().stream(path, TIMES, SIZE, 4)
    next(stream)
    assert len(list(Path("/proc/self/fd").iterdir())) > before
    stream.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
