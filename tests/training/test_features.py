"""Stored frames and features are those of labelling, and never stale."""

from pathlib import Path

import numpy as np
import pytest
import torch

from harec_deploy.decode import Size, choose
from harec_deploy.errors import UsageError
from harec_deploy.models.encoders import frame_encoder
from harec_deploy.sampling import ClipSampling, whole
from training.features import PER_PART, DecodedFrames, Grid, stored_features, stored_frames

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


def test_a_store_is_found_again_and_made_anew_when_anything_changes(paths: list[Path], tmp_path: Path) -> None:
    calls: list[int] = []

    def count(done: int, total: int) -> None:
        calls.append(done)

    torch.manual_seed(0)
    encoder = frame_encoder("resnet18", None).eval()
    stored_features(paths, GRID, encoder, tmp_path, count)
    assert calls == [1, 2, 3]
    stored_features(paths, GRID, encoder, tmp_path, count)
    assert calls == [1, 2, 3]
    with torch.no_grad():
        next(encoder.parameters()).add_(1e-3)
    stored_features(paths, GRID, encoder, tmp_path, count)
    assert len(calls) == 6
    paths[0].touch()
    stored_features(paths, GRID, encoder, tmp_path, count)
    assert len(calls) == 9
    assert len(list(tmp_path.iterdir())) == 3


def test_an_unreadable_video_stops_with_its_name_and_leaves_no_store(paths: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    with pytest.raises(UsageError, match=r"bad\.mp4: not_video: .*; take it out of the manifest"):
        stored_frames([*paths, bad], GRID, tmp_path / "cache", ignore)
    assert list((tmp_path / "cache").iterdir()) == []
