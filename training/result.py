"""What a run writes down: its videos when it begins, and when it ends the bundle, with all it was made from."""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from harec_deploy import __version__
from harec_deploy.bundle import WEIGHTS_FILE, file_ref, save
from harec_deploy.files import atomic_folder, atomic_write
from harec_deploy.models import FramewiseModel, Model
from harec_deploy.spec import BundleSpec
from training.calibration import Calibration
from training.datasets import Manifest, Sample, write_manifest

if TYPE_CHECKING:
    from training.settings import Recipe

PROOF_CLIPS = 100  # held-out clips that export proves the model on, and those that it calibrates on, at most


def fold_folders(run: Path) -> list[Path]:
    """Return the folders of a run's folds, fold-0 first; others with names such as fold-old are none."""
    found = [path for path in run.glob("fold-*") if re.fullmatch(r"fold-[0-9]+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("fold-")))


def write_inputs(run: Path, manifest: Manifest, data: dict[str, Any] | None) -> None:
    """Write what is trained on to ``run/manifest.csv`` and the videos held out to ``run/test.txt``."""
    write_manifest(run / "manifest.csv", manifest.samples, "written by python -m training fit", data=data)
    held_out = manifest.only("test").samples
    with atomic_write(run / "test.txt") as stream:
        stream.write(b"".join(os.fsencode(sample.path) + b"\n" for sample in held_out))


def _trained_part(recipe: "Recipe") -> str:
    """Return what was trained of the encoder: "frozen", "trained" or "last 2 stages trained"."""
    if recipe.finetune_stages:
        return f"last {recipe.finetune_stages} stages trained"
    return "frozen" if recipe.freeze_encoder else "trained"


def _spread(samples: Sequence[Sample]) -> list[str]:
    """Return the paths of at most PROOF_CLIPS of the samples, evenly spread."""
    step = max(len(samples) / PROOF_CLIPS, 1.0)
    return [str(samples[int(place * step)].path) for place in range(min(len(samples), PROOF_CLIPS))]


def write_bundle(
    folder: Path,
    model: Model,
    manifest: Manifest,
    recipe: "Recipe",
    began_with: dict[str, str],
    metrics: dict[str, float],
    calibration: Calibration,
    notes: dict[str, Any],
) -> None:
    """Write to ``folder`` a model, the recipe it was made by, and the ``metrics`` of the epoch its weights are of.

    began_with: "name" and "sha256" of the file of its encoder's first weights; empty where there was none.
    notes: what else is known of the run: the recipe's name, the fold, how its videos were chosen.
    """
    held_out = manifest.only("test").samples or manifest.only("val").samples
    training = {
        **notes,
        "videos": {split: len(manifest.only(split).samples) for split in ("train", "val", "test")},
        "encoder_weights": recipe.encoder_weights or "none",
        **{f"encoder_weights_{fact}": value for fact, value in began_with.items()},
        "encoder": _trained_part(recipe),
        "flip": recipe.flip,
        "jitter": recipe.jitter,
        "seed": recipe.seed,
        "augmentation": asdict(recipe.augmentation),
        "optimisation": asdict(recipe.optimisation),
        "metrics": metrics,
        "calibration": asdict(calibration),
        "versions": {"harec_deploy": __version__, "torch": version("torch"), "python": sys.version.split()[0]},
        "proof_clips": _spread(held_out),
        "calibration_clips": _spread(manifest.only("train").samples),
    }
    with atomic_folder(folder) as staging:
        weights = staging / WEIGHTS_FILE
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, weights)
        spec = BundleSpec(
            architecture=recipe.architecture,
            head=recipe.head,
            feature_dim=model.encoder.feature_dim if isinstance(model, FramewiseModel) else 0,
            classes=manifest.classes,
            sampling=recipe.sampling,
            size=recipe.size,
            weights=file_ref(staging, weights),
            temperature=calibration.temperature,
            training=training,
        )
        save(staging, spec)
