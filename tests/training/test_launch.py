"""Several processes, one run: the weights and figures of one process, and one voice; signals; TensorBoard."""

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from typer.testing import CliRunner

from harec_deploy.bundle import load
from harec_deploy.errors import UsageError
from tests.media import make_video
from training.__main__ import app
from training.datasets import scan_folders, write_manifest
from training.module import read_metrics

ROOT = Path(__file__).parents[2]
GROUPS = 5  # four to train on, and one to watch, whose 3 videos two processes cannot share equally


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for place, label in enumerate(["climb", "jump", "swim"]):
        (root / label).mkdir()
        for group in range(GROUPS):
            make_video(root / label / f"v_{label}_g{group:02d}_c01.mp4", frames=20, seed=10 * group + place)
    samples = [replace(s, split="val" if int(s.group) == GROUPS - 1 else "train") for s in scan_folders(root)]
    write_manifest(root / "manifest.csv", samples, "test")
    torch.manual_seed(0)
    torch.save(torchvision.models.get_model("mobilenet_v2", weights=None).state_dict(), root / "encoder.pth")
    return root / "manifest.csv"


def arguments(manifest: Path, out: Path, *more: str) -> list[str]:
    """A head without dropout on stored features: nothing in it depends on who computes which clips of a batch."""
    given = "--architecture mobilenet_v2_lstm --frames 2 --size 64 --hidden 8 --dropout 0 --batch 2 --epochs 60"
    weights = ["--encoder-weights", str(manifest.parent / "encoder.pth")]
    return ["fit", str(manifest), "-o", str(out), *given.split(), *weights, *more]


def start(*options: str) -> subprocess.Popen[str]:
    """Start the command, as the leader of a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "training", *options],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"},
    )


@pytest.fixture(scope="module")
def alone(manifest: Path) -> Path:
    """The run of one process."""
    done = CliRunner().invoke(app, arguments(manifest, manifest.parent / "alone"), catch_exceptions=False)
    assert done.exit_code == 0
    return manifest.parent / "alone"


def test_two_processes_stop_together_go_on_and_come_to_the_result_of_one(alone: Path, manifest: Path) -> None:
    """Ctrl-C goes to both, as a terminal sends it; where in an epoch it comes is left to chance."""
    together = manifest.parent / "together"
    command = arguments(manifest, together, "--devices", "2")
    first = start(*command)
    assert first.stderr is not None
    said = []
    with first.stderr:
        for line in first.stderr:
            said.append(line)
            if line.startswith("epoch 6 of 60"):
                os.killpg(first.pid, signal.SIGINT)
    assert first.wait() == 130, said
    assert sum(line.startswith("epoch 6 ") for line in said) == 1
    assert said[-2:] == [
        "stopping after this step or validation; once more to stop at once\n",
        "interrupted; the same command goes on where it stopped\n",
    ]
    assert not (together / "bundle").exists()
    second = start(*command, "--resume")
    said = second.communicate()[1].splitlines()
    assert second.returncode == 0, said
    assert sum(line.startswith("going on from") for line in said) == 1
    assert sum(line.startswith("written to") for line in said) == 1

    mine, theirs = (load_file(run / "bundle/weights.safetensors") for run in (alone, together))
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)
    metrics = [read_metrics(run / "metrics.csv") for run in (alone, together)]
    assert [row["epoch"] for row in metrics[1]] == list(range(1, 61))
    assert [row["val_accuracy"] for row in metrics[1]] == pytest.approx([row["val_accuracy"] for row in metrics[0]])
    assert [row["val_loss"] for row in metrics[1]] == pytest.approx([row["val_loss"] for row in metrics[0]], rel=1e-3)
    assert (
        load(together / "bundle").spec.training["optimisation"] == load(alone / "bundle").spec.training["optimisation"]
    )
    assert len(list((manifest.parent / "cache").glob("features-*.rows"))) == 1


def test_tensorboard_shows_what_the_csv_file_says(manifest: Path, tmp_path: Path) -> None:
    if find_spec("tensorboardX") is None and os.environ.get("CI") != "true":
        pytest.skip("tensorboardX is not installed: pip install 'harec-deploy[train]'")
    reader = import_module("tensorboardX.proto.event_pb2")
    command = arguments(manifest, tmp_path / "run", "--tensorboard", "--epochs", "2")
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0
    (log,) = (tmp_path / "run/tensorboard").glob("events.*")
    shown: dict[str, list[float]] = {}
    for record in records(log.read_bytes()):
        for value in reader.Event.FromString(record).summary.value:
            shown.setdefault(value.tag, []).append(value.simple_value)
    rows = read_metrics(tmp_path / "run/metrics.csv")
    for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        assert shown[name] == pytest.approx([row[name] for row in rows])
    assert len(shown["lr-AdamW"]) == 12, "one for each step"


def records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a TFRecord file: length, its checksum, content, its checksum."""
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield data[12 : 12 + length]
        data = data[16 + length :]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--devices", "2", "--batch", "3"], "--batch 3 for 2 devices: allowed are multiples of their number"),
        (["--devices", "4", "--batch", "4"], "3 val videos for 4 devices: take fewer --devices"),
        (["--devices", "0"], "--devices 0: allowed are auto and 1"),
        (["--devices", "two"], "--devices two: allowed are auto, or a number from 1 on"),
        (["--nodes", "0"], "--nodes 0: allowed are 1 and more"),
        (["--nodes", "2"], "--nodes 2: on each machine set MASTER_ADDR"),
        (["--resume"], "run holds no checkpoint to go on from; without --resume a run begins there"),
        (["--resume", "--restart"], "--resume goes on with a run and --restart removes it: leave one out"),
        (["--seed", "-1"], "--seed -1: allowed are 0 to 4294967295"),
    ],
)
def test_what_cannot_be_is_told(manifest: Path, tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        CliRunner().invoke(app, arguments(manifest, tmp_path / "run", *options), catch_exceptions=False)
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()
