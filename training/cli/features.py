"""The command that computes features ahead of training."""

from pathlib import Path
from typing import Annotated

import typer

from harec_deploy.cli import console
from training.cli import options


def features(
    manifest: Annotated[Path, typer.Argument(help="What prepare wrote.")],
    recipe: options.RecipeName = "",
    architecture: options.Architecture = None,
    encoder_weights: options.EncoderWeights = None,
    frames: options.Frames = None,
    size: options.FrameSize = None,
    resize: options.Resize = None,
    span: options.Span = None,
    cache: options.Cache = None,
    npy: Annotated[
        Path | None, typer.Option(help="Folder for a .npy file a clip as well, float32 (frames, features).")
    ] = None,
) -> None:
    """Compute the features of a frozen encoder once, for every fit with the same encoder and clips.

    Interrupted, the same command goes on where it stopped; only videos that are new or changed are computed.
    """
    try:
        from training import recipes
        from training.precompute import precompute, write_npy
    except ModuleNotFoundError as error:
        raise console.missing(error, "train", "training") from None
    from training.datasets import read_manifest
    from training.features import Grid

    given = {
        "architecture": architecture,
        "encoder_weights": encoder_weights,
        "sampling": {"frames": frames, "span": span},
        "size": {"width": size, "height": size, "mode": resize},
    }
    what, data = recipes.to_recipe(recipes.read(recipe, given)), read_manifest(manifest)
    with console.counted("videos") as step:
        found = precompute(data, what, cache or manifest.parent / "cache", step, console.say)
    console.say(f"features of {len(data.samples)} videos in {found.rows.path}; fit with the same options takes them")
    if npy is not None:
        write_npy(data.samples, found, Grid(what.sampling, what.size), npy)
        console.say(f"{len(data.samples)} .npy files in {npy}, listed in {npy / 'features.csv'}")
