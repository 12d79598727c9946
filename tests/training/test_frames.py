"""Frames as JPEG files: the ones that labelling would take, in a folder a video."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from harec_deploy.decode import Size, choose
from harec_deploy.errors import UsageError
from harec_deploy.sampling import ClipSampling, whole
from training.__main__ import app
from training.cli.options import span_of
from training.datasets import Manifest, Sample, scan_folders, write_manifest
from training.frames import extract, places
from training.splits import split

SAMPLING, SIZE = ClipSampling(frames=4), Size(width=96, height=64)


@pytest.fixture
def data(videos: Path) -> Manifest:
    return Manifest(tuple(split(scan_folders(videos), (0.0, 0.5), seed=0)[0]))


def test_the_files_are_the_frames_of_labelling(data: Manifest, tmp_path: Path) -> None:
    assert extract(data, tmp_path / "o", SAMPLING, SIZE) == {}
    with (tmp_path / "o/frames.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["video"], row["split"]) for row in rows] == [(str(s.path), s.split) for s in data.samples]
    for row, sample in zip(rows, data.samples, strict=True):
        assert row["folder"] == f"{sample.split}/{sample.label}/{sample.path.stem}"
        files = sorted((tmp_path / "o" / row["folder"]).iterdir())
        assert [path.name for path in files] == ["000.jpg", "001.jpg", "002.jpg", "003.jpg"]
        asked = choose().frames(sample.path, lambda info: SAMPLING.timestamps_s(whole(info.duration_s)[0]), SIZE)
        for path, pixels in zip(files, asked.pixels, strict=True):
            with Image.open(path) as picture:
                assert np.abs(np.asarray(picture, dtype=int) - pixels).mean() < 2


def test_again_it_does_only_what_is_missing(data: Manifest, tmp_path: Path) -> None:
    extract(data, tmp_path / "o", SAMPLING, SIZE)
    first, second = sorted((tmp_path / "o").rglob("000.jpg"))[:2]
    before = second.stat().st_mtime_ns
    for path in first.parent.iterdir():
        path.unlink()
    first.parent.rmdir()
    extract(data, tmp_path / "o", SAMPLING, SIZE)
    assert first.exists()
    assert second.stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="has frames of other settings"):
        extract(data, tmp_path / "o", ClipSampling(frames=5), SIZE)


def test_names_stay_inside_and_apart(videos: Path, tmp_path: Path) -> None:
    good = next(videos.rglob("*.mp4"))
    (tmp_path / "v").mkdir()
    bad = tmp_path / "v/bad.mp4"
    bad.write_bytes(b"no video")
    samples = (Sample(good, "../../x", split="train"), Sample(good, "../../x", split="train"), Sample(bad, "..", ""))
    problems = extract(Manifest(samples), tmp_path / "o", SAMPLING, SIZE)
    assert {path: error.kind for path, error in problems.items()} == {bad: "not_video"}
    folders = sorted(str(path.parent.relative_to(tmp_path / "o")) for path in (tmp_path / "o").rglob("000.jpg"))
    assert folders == [f"train/_.._x/{good.stem}", f"train/_.._x/{good.stem}-2"]
    assert {path.name for path in tmp_path.iterdir()} == {"o", "v"}


def test_a_name_that_another_was_given_is_numbered_too(tmp_path: Path) -> None:
    names = ["a.mp4", "a.avi", "a-2.mp4", "a.mkv", "a-2.avi"]
    found = places([Sample(tmp_path / name, "x", split="train") for name in names])
    assert [place.removeprefix("train/x/") for place in found] == ["a", "a-2", "a-2-2", "a-3", "a-2-3"]


def test_the_command(data: Manifest, tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.csv", data.samples, "test")
    arguments = ["frames", str(tmp_path / "m.csv"), "-o", str(tmp_path / "o"), "--size", "64"]
    ended = CliRunner().invoke(app, [*arguments, "--frames", "3"])
    assert ended.exit_code == 0, ended.output
    assert len(list((tmp_path / "o").rglob("*.jpg"))) == 3 * len(data.samples)
    with pytest.raises(UsageError, match="frames"):
        CliRunner().invoke(app, [*arguments, "--frames", "0"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("text", "share"), [("0.5", 0.5), ("1", 1.0), ("0.25:0.75", 0.5), ("0:1", 1.0), ("0.4:0.6", 0.2)]
)
def test_a_span_is_a_share_or_its_ends(text: str, share: float) -> None:
    assert span_of(text) == share


@pytest.mark.parametrize("text", ["", "half", "0.2:0.5", "0.1:0.2:0.3", "0.5:"])
def test_a_span_that_is_not_central_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"--span {text}: allowed are a share"):
        span_of(text)
