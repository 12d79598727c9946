"""Pictures of a data set, drawn from real videos and looked at by their pixels."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from harec_deploy.errors import UsageError
from tests.media import make_video
from training import show, show_augmented
from training.__main__ import app
from training.datasets import Manifest, Sample, inspect, scan_folders, write_manifest
from training.splits import split


def of(path: Path) -> Sample:
    return Sample(path, path.parent.name)


def pixels(path: Path) -> NDArray[np.float64]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L"), dtype=np.float64)


def test_a_sheet_has_a_row_a_class(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Manifest(tuple(scan_folders(videos)))
    assert show.samples_sheet(data, tmp_path / "all.png") == 3
    monkeypatch.setattr(show, "MAX_CLASSES", 2)
    assert show.samples_sheet(data, tmp_path / "two.png") == 2
    heights = [len(pixels(tmp_path / name)) for name in ("all.png", "two.png")]
    assert heights[0] == pytest.approx(1.5 * heights[1], rel=0.05)


def test_a_damaged_video_leaves_its_place_empty(videos: Path, tmp_path: Path) -> None:
    good = next(videos.rglob("*.mp4"))
    for place in range(2):
        for label in "ab":
            (tmp_path / label).mkdir(exist_ok=True)
            shutil.copy(good, tmp_path / label / f"{place}.mp4")
    (tmp_path / "b/0.mp4").write_bytes(b"no video")
    data = Manifest(tuple(of(path) for path in sorted(tmp_path.rglob("*.mp4"))))
    show.samples_sheet(data, tmp_path / "sheet.png")
    rows, columns = np.array_split(pixels(tmp_path / "sheet.png"), 2), show.PER_CLASS
    cells = [[cell.std() for cell in np.array_split(row, columns, axis=1)[:2]] for row in rows]
    assert min(cells[0]) > 40
    assert cells[1][1] > 40
    assert cells[1][0] < 40  # a word on white


def test_the_videos_of_a_row_are_spread(tmp_path: Path) -> None:
    members = [Sample(tmp_path / str(place), "a") for place in range(60)]
    assert [sample.path.name for sample in show._spread(members)] == ["0", "10", "20", "30", "40", "50"]
    assert len(show._spread(members[:2])) == 2


def test_the_command_draws_both(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "d/climb").mkdir(parents=True)
    make_video(tmp_path / "d/climb/other_g01_c01.mp4", frames=20, width=160, height=120)
    shutil.copytree(videos / "jump", tmp_path / "d/jump")
    readable, _ = inspect(scan_folders(tmp_path / "d"))
    done, _ = split(readable, (0.0, 0.5), seed=0)
    assert {(s.width, s.height) for s in done} >= {(160, 120)}
    write_manifest(tmp_path / "d/manifest.csv", done, "test")
    ended = CliRunner().invoke(app, ["show", str(tmp_path / "d/manifest.csv"), "-o", str(tmp_path / "pictures")])
    assert ended.exit_code == 0, ended.output
    for name in ("samples.png", "numbers.png"):
        assert pixels(tmp_path / "pictures" / name).std() > 10


def test_augmented_clips_are_drawn_below_their_own(videos: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.csv", scan_folders(videos), "test")
    command = ["show", str(tmp_path / "m.csv"), "--colour", "0.5"]
    ended = CliRunner().invoke(app, [*command, "--crop", "0.3", "--hue", "0.3"], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    classes = np.array_split(pixels(tmp_path / "augmented.png"), 3)
    for strips in (np.array_split(rows, 1 + show_augmented.TIMES) for rows in classes):
        assert min(strip.std() for strip in strips) > 10
        high = min(len(strip) for strip in strips)
        for first, second in itertools.combinations(strips, 2):
            assert np.abs(first[:high] - second[:high]).mean() > 10
    with pytest.raises(UsageError, match=r"augmentation\.crop is 3\.0; allowed are"):
        CliRunner().invoke(app, [*command, "--crop", "3"], catch_exceptions=False)
