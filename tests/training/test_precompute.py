"""Features ahead of training: fit takes them as they are, and other tools get them as files."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from typer.testing import CliRunner

from harec_deploy.decode import Size, choose
from harec_deploy.errors import UsageError
from harec_deploy.models.encoders import frame_encoder
from harec_deploy.sampling import ClipSampling, whole
from training.__main__ import app
from training.datasets import Sample, read_manifest, scan_folders, write_manifest
from training.splits import split

OPTIONS = ["--architecture", "mobilenet_v2_lstm", "--frames", "2", "--size", "32"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.save(torchvision.models.get_model("mobilenet_v2", weights=None).state_dict(), path)
    return path


@pytest.fixture
def manifest(videos: Path, tmp_path: Path) -> Path:
    samples, _ = split(scan_folders(videos), (0, 0.5), seed=0)
    write_manifest(tmp_path / "m.csv", [*samples, samples[0]], "test")  # one video twice
    return tmp_path / "m.csv"


def run(*arguments: str | Path) -> str:
    ended = CliRunner().invoke(app, [str(word) for word in arguments], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return ended.output


def test_fit_takes_what_the_command_computed(manifest: Path, weights: Path, tmp_path: Path) -> None:
    told = run("features", manifest, *OPTIONS, "--encoder-weights", weights)
    (rows,) = (tmp_path / "cache").glob("features-*.rows")
    assert str(rows) in told.replace("\n", "")
    before = rows.stat()
    run("fit", manifest, "-o", tmp_path / "run", *OPTIONS, "--encoder-weights", weights, "--epochs", "1")
    assert (rows.stat().st_mtime_ns, rows.stat().st_size) == (before.st_mtime_ns, before.st_size)
    assert list((tmp_path / "cache").glob("*.rows")) == [rows]


def test_npy_files_are_the_features_of_the_clips_that_labelling_takes(
    manifest: Path, weights: Path, tmp_path: Path
) -> None:
    command = ("features", manifest, *OPTIONS, "--encoder-weights", weights, "--npy", tmp_path / "npy")
    run(*command)
    with (tmp_path / "npy/features.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    samples = read_manifest(manifest).samples
    assert [(row["video"], row["label"], row["split"]) for row in rows] == [
        (str(s.path), s.label, s.split) for s in samples
    ]
    assert rows[-1]["file"] == rows[0]["file"].replace(".npy", "-2.npy")
    encoder = frame_encoder("mobilenet_v2", str(weights)).eval()
    for row, sample in zip(rows, samples, strict=True):
        assert row["file"].startswith(f"{sample.split}/{sample.label}/{sample.path.stem}")
        kept = np.load(tmp_path / "npy" / row["file"])
        times = ClipSampling(frames=2).timestamps_s
        frames = choose().frames(sample.path, lambda info: times(whole(info.duration_s)[0]), Size(width=32, height=32))  # noqa: B023
        with torch.inference_mode():
            expected = encoder(torch.from_numpy(frames.pixels)).numpy()
        assert kept.shape == (2, 1280)
        np.testing.assert_allclose(kept, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(UsageError, match="npy has features of other settings"):
        run(*command, "--span", "0.5")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--architecture", "resnet18_lstm"], "features are those of a frozen encoder: give --encoder-weights"),
        (["--architecture", "convlstm"], "convlstm sees frames of a clip together: it has no features"),
        (
            ["--recipe", "ucf101-40-resnet50-lstm"],
            "features are those of a frozen encoder: .* a recipe without finetune",
        ),
        (["--architecture", "lrcn", "--encoder-weights", "w.pth"], "lrcn has no pre-trained encoder"),
    ],
)
def test_a_model_without_such_features_is_refused(manifest: Path, options: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run("features", manifest, *options)


def test_a_video_that_is_gone_is_told(manifest: Path, weights: Path, tmp_path: Path) -> None:
    samples = read_manifest(manifest).samples
    write_manifest(manifest, [*samples, Sample(tmp_path / "gone.mp4", "jump", split="test")], "test")
    with pytest.raises(UsageError, match=r"gone\.mp4: No such file or directory; make the manifest again"):
        run("features", manifest, *OPTIONS, "--encoder-weights", weights)
