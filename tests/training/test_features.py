"""Stored frames and features are those of labelling, and never stale."""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from harec_deploy.decode import Size, choose
from harec_deploy.decode.pyav import PyAVDecoder
from harec_deploy.errors import UsageError
from harec_deploy.models.encoders import frame_encoder
from harec_deploy.sampling import ClipSampling, whole
from training.features import PER_PART, DecodedFrames, Grid, stored_features, stored_frames
from training.module import Clips

GRID = Grid(ClipSampling(frames=4, span=0.8), Size(width=64, height=48))


@pytest.fixture(scope="module")
def paths(videos: Path) -> list[Path]:
    return sorted(videos.rglob("*.*"))[:3]


def ignore(done: int, total: int) -> None:
    """Take progress."""


def test_the_middle_places_are_what_labelling_takes(paths: list[Path], tmp_path: Path) -> None:
    deploy = choose().frames(paths[1], lambda i: GRID.sampling.timestamps_s(whole(i.duration_s)[0]), GRID.size).pixels
    for source in (stored_frames(paths, GRID, tmp_path, ignore), DecodedFrames(paths, GRID)):
        np.testing.assert_array_equal(source.clip(1, GRID.middle(), mirror=False).numpy(), deploy)
        np.testing.assert_array_equal(source.clip(1, GRID.middle(), mirror=True).numpy(), deploy[:, :, ::-1])


def test_stored_and_decoded_frames_agree_at_any_place(paths: list[Path], tmp_path: Path) -> None:
    places = np.array([0, 4, 8, 4 * PER_PART - 1])
    stored, decoded = stored_frames(paths, GRID, tmp_path, ignore), DecodedFrames(paths, GRID)
    for index in range(len(paths)):
        one, other = (source.clip(index, places, mirror=False) for source in (stored, decoded))
        assert torch.equal(one, other)


def test_stored_features_are_the_encoders(paths: list[Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = frame_encoder("resnet18", None).eval()
    stored = stored_features(paths, GRID, encoder, tmp_path, ignore)
    for mirror in (False, True):
        frames = DecodedFrames(paths, GRID).clip(2, GRID.middle(), mirror=mirror)
        with torch.inference_mode():
            torch.testing.assert_close(
                stored.clip(2, GRID.middle(), mirror=mirror), encoder(frames), atol=1e-4, rtol=1e-4
            )


class Count:
    """Counts the videos that are computed."""

    def __init__(self) -> None:
        self.videos = 0

    def __call__(self, done: int, total: int) -> None:
        self.videos += 1

    def taken(self) -> int:
        """Return the count and begin anew."""
        videos, self.videos = self.videos, 0
        return videos


def test_features_are_found_again_and_made_anew_when_anything_changes(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = [Path(shutil.copy(path, tmp_path)) for path in paths[:2]]
    torch.manual_seed(0)
    encoder = frame_encoder("resnet18", None)
    count = Count()

    first = Grid(GRID.sampling, Size(width=32, height=24))

    def computed(grid: Grid = first) -> int:
        stored_features(copies, grid, encoder, tmp_path / "cache", count)
        return count.taken()

    assert (computed(), computed()) == (2, 0)
    with torch.no_grad():
        next(encoder.parameters()).add_(1e-3)
    assert (computed(), computed()) == (2, 0)
    for sampling in ({"frames": 3, "span": 0.8}, {"frames": 4, "span": 0.7}):
        assert computed(Grid(ClipSampling(**sampling), first.size)) == 2  # type: ignore[arg-type]
    for size in ({"height": 32}, {"mode": "crop"}):
        assert computed(Grid(first.sampling, msgspec.structs.replace(first.size, **size))) == 2
    for field in ("name", "version"):
        with monkeypatch.context() as patch:
            patch.setattr(PyAVDecoder, field, "another")
            assert computed() == 2
    copies[0].touch()
    assert computed() == 1
    shutil.copy(paths[2], copies[1])
    assert computed() == 1
    assert computed() == 0


def test_an_unreadable_video_stops_with_its_name_and_keeps_the_others(paths: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    with pytest.raises(UsageError, match=r"bad\.mp4: not_video: .*; take it out of the manifest"):
        stored_frames([*paths, bad], GRID, tmp_path / "cache", ignore)
    count = Count()
    stored_frames(paths, GRID, tmp_path / "cache", count)
    assert count.taken() == 0


def test_a_loader_with_workers_gives_the_frames_of_labelling(paths: list[Path]) -> None:
    clips = Clips(DecodedFrames(paths, GRID), range(len(paths)), [0, 1, 2], GRID, augment=False, flip=True)
    (batch, labels), *more = DataLoader(clips, batch_size=len(paths), num_workers=2)
    assert (labels.tolist(), more) == ([0, 1, 2], [])
    for path, clip in zip(paths, batch, strict=True):
        deploy = choose().frames(path, lambda i: GRID.sampling.timestamps_s(whole(i.duration_s)[0]), GRID.size).pixels
        np.testing.assert_array_equal(clip.numpy(), deploy)
