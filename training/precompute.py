"""The features that ``fit`` trains a head on, computed before it is asked for, and as .npy files for other tools.

out/<split>/<class>/<video>.npy ...    out/features.csv: file, video, label, split, group
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from harec_deploy.errors import UsageError
from harec_deploy.files import atomic_write
from harec_deploy.models import CLIPWISE, FramewiseModel, build
from training.datasets import Manifest, Sample
from training.features import Grid, StoredFeatures, stored_features
from training.frames import places, same_settings, write_table
from training.settings import Recipe
from training.sources import weights_file
from training.store import Progress


def precompute(
    manifest: Manifest, recipe: Recipe, cache: Path, progress: Progress, say: Callable[[str], None]
) -> StoredFeatures:
    """Return the features of a manifest's videos, from the file in ``cache`` that ``fit`` with the same recipe takes.

    Raises:
        UsageError: the recipe has no frozen encoder of single frames; as ``stored_features``.
    """
    if recipe.architecture in CLIPWISE:
        raise UsageError(f"{recipe.architecture} sees frames of a clip together: it has no features of each to store")
    if not recipe.freeze_encoder:
        raise UsageError(
            "features are those of a frozen encoder: give --encoder-weights, and a recipe without finetune"
        )
    weights = weights_file(recipe, say)
    model = build(
        recipe.architecture,
        recipe.head,
        len(manifest.classes),
        size=recipe.size,
        encoder_weights=None if weights is None else str(weights),
    )
    assert isinstance(model, FramewiseModel)
    paths = [sample.path for sample in manifest.samples]
    return stored_features(paths, Grid(recipe.sampling, recipe.size), model.encoder, cache, progress)


def write_npy(samples: Sequence[Sample], features: StoredFeatures, grid: Grid, out: Path) -> None:
    """Write the features of each clip that labelling takes: a file float32 (T, D) a video, and a table of them.

    Raises:
        UsageError: ``out`` has features of another encoder, sampling or size.
    """
    out.mkdir(parents=True, exist_ok=True)
    same_settings(out, "features", f"{features.rows.path.stem}\n")
    names = [f"{place}.npy" for place in places(samples)]
    for index, name in enumerate(names):
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as stream:
            np.save(stream, features.clip(index, grid.middle(), mirror=False).numpy())
    write_table(out / "features.csv", "file", list(zip(names, samples, strict=True)))
