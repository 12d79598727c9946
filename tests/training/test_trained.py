"""A model that has learnt its classes, through the gates: int8 passes them, a file that int8 ruins does not."""

import shutil
from pathlib import Path

import pytest

from harec_deploy.errors import ProofError
from harec_deploy.export import export
from harec_deploy.export.int8 import Int8Options
from tests.test_cli import run
from tests.test_int8 import make_fragile
from training.datasets import scan_folders
from training.fit import SILENT, fit
from training.settings import recipe_for
from training.splits import split
from training.synthetic import synthesize

RIGHT = 0.5  # chance is 1/8; without looking at the order of frames, 1/2 is the best there is


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle whose model was trained on four people, and videos of two others, in a folder a class."""
    folder = tmp_path_factory.mktemp("trained")
    synthesize(folder / "videos", actors=5, clips_per_action=2)
    synthesize(folder / "others", actors=2, clips_per_action=1, seed=1)
    samples, _ = split(scan_folders(folder / "videos"), (0, 0.2), seed=0)
    optimisation = {"epochs": 12, "batch": 8, "learning_rate": 3e-3}
    recipe = recipe_for("lrcn", sampling={"frames": 8}, size={}, head={}, optimisation=optimisation, flip=False, seed=0)
    return fit(samples, recipe, folder / "run", SILENT, cache=folder / "cache"), folder / "others"


def test_int8_keeps_what_a_model_has_learnt(trained: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, others = trained
    shutil.copytree(bundle, tmp_path / "bundle")
    how = Int8Options(calibrate=[str(bundle.parents[1] / "videos")])
    variant = export(tmp_path / "bundle", [str(others)], precision="int8", int8=how).spec.variants["onnx-int8"]
    assert {proof.runner for proof in variant.proofs} == {"onnx", "openvino"}
    for proof in variant.proofs:
        assert (proof.clips, proof.labelled, proof.passed) == (16, 16, True)
        assert proof.top1_agreement == 1.0
        assert proof.accuracy == proof.reference_accuracy
        assert proof.accuracy > RIGHT


def test_what_int8_ruins_ends_at_the_gate(trained: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, others = trained
    shutil.copytree(bundle, folder := tmp_path / "bundle")
    make_fragile(folder)
    for proof in export(folder, [str(others)]).spec.variants["onnx-fp32"].proofs:
        assert (proof.accuracy or 0) > RIGHT  # in float nothing has changed
    before = sorted(file.name for file in folder.rglob("*"))
    done = run("export", str(folder), "--clips", str(others), "--precision", "int8", "--keep-float", "none")
    assert done.returncode == ProofError.exit_status == 5
    assert " -> " in done.stderr  # a clip that flips, with both labels
    assert "of 16 right (PyTorch " in done.stderr
    assert sorted(file.name for file in folder.rglob("*")) == before
