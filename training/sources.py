"""What a recipe trains on: features, stored frames or videos, and the part of the model that is trained on them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import nn

from harec_deploy.files import sha256
from harec_deploy.models import FramewiseModel, Model
from harec_deploy.models.clipwise import ClipwiseModel
from harec_deploy.models.encoders import FrameEncoder
from harec_deploy.models.hub import local_file
from training.datasets import Manifest
from training.features import DecodedFrames, Grid, Source, features_shape, stored_features, stored_frames
from training.module import Clips
from training.settings import Recipe

if TYPE_CHECKING:
    from training.fit import Report

STORE_BYTES = 8 << 30  # what does not change is kept up to this size; above, it is computed anew in every epoch
FLOAT_BYTES = 4


def weights_file(recipe: Recipe, say: Callable[[str], None]) -> Path | None:
    """Return the file with the encoder's first weights, fetched if it is a name or an address. Raises UsageError."""
    if recipe.encoder_weights is None:
        return None
    return local_file(recipe.encoder_weights, recipe.architecture, say)


def described(weights: Path | None) -> dict[str, str]:
    """Return what is kept of a file of weights: its name and its SHA-256."""
    return {} if weights is None else {"name": weights.name, "sha256": sha256(weights)}


def source_for(
    model: Model, manifest: Manifest, recipe: Recipe, report: "Report", cache: Path
) -> tuple[Source, nn.Module]:
    """Return where clips come from and the part of the model that is trained on them."""
    paths = [sample.path for sample in manifest.samples]
    grid = Grid(recipe.sampling, recipe.size)
    if recipe.freeze_encoder and isinstance(model, FramewiseModel):
        report.say(f"features of {len(paths)} videos by the frozen encoder, once for all epochs")
        return stored_features(paths, grid, model.encoder, cache, report.step), model.head
    if recipe.freeze_encoder and isinstance(model, ClipwiseModel):
        report.say("the frozen encoder sees whole clips, and other ones in each epoch: its features cannot be stored")
        model.encoder.freeze()
    if recipe.finetune_stages:
        model.encoder.freeze(but_last=recipe.finetune_stages)
        if isinstance(model, FramewiseModel) and not recipe.augmentation.changes_pixels:
            begin, rest = model.encoder.cut(recipe.finetune_stages)
            if len(paths) * math.prod(features_shape(grid, begin)) * FLOAT_BYTES <= STORE_BYTES:
                report.say(f"{len(paths)} videos through the encoder's frozen stages, once for all epochs")
                trained = FramewiseModel(cast(FrameEncoder, rest), model.head)  # of maps instead of frames
                return stored_features(paths, grid, begin, cache, report.step), trained
    if len(paths) * grid.places * grid.size.height * grid.size.width * 3 > STORE_BYTES:
        report.say(f"frames of {len(paths)} videos are decoded in every epoch: too many to store")
        return DecodedFrames(paths, grid), model
    report.say(f"frames of {len(paths)} videos, decoded once for all epochs")
    return stored_frames(paths, grid, cache, report.step), model


def clips_of(source: Source, manifest: Manifest, recipe: Recipe, split: str) -> Clips:
    """Return the clips of one split, those of "train" augmented as the recipe says."""
    labels = manifest.labels(manifest.classes)
    indices = [i for i, sample in enumerate(manifest.samples) if sample.split == split]
    return Clips(
        source,
        indices,
        [labels[i] for i in indices],
        Grid(recipe.sampling, recipe.size),
        augment=split == "train",
        flip=recipe.flip,
        jitter=recipe.jitter,
        pixels=recipe.augmentation,
        seed=recipe.seed,
    )
