"""The command that computes features ahead of training."""

from pathlib import Path
from typing import Annotated

import typer

from harec_deploy.cli import console


def features(
    manifest: Annotated[Path, typer.Argument(help="What prepare wrote.")],
    recipe: Annotated[
        str, typer.Option(help="A TOML file, or a recipe's name (see run); the options below go on top of it.")
    ] = "",
    architecture: Annotated[
        str | None, typer.Option(help="One that python -m training models lists; resnet50_lstm by default.")
    ] = None,
    encoder_weights: Annotated[
        str | None, typer.Option(help="imagenet, or a file with the encoder's state dict.")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of a clip; the architecture's by default.")] = None,
    size: Annotated[int | None, typer.Option(help="Width and height of a frame in pixels.")] = None,
    resize: Annotated[str | None, typer.Option(help="stretch, or crop: shorter side and centre crop.")] = None,
    span: Annotated[float | None, typer.Option(help="Central share of a video that is sampled; 1.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Where features are kept, as for fit; beside the manifest by default.")
    ] = None,
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
        found = precompute(data, what, cache or manifest.parent / "cache", step)
    console.say(f"features of {len(data.samples)} videos in {found.rows.path}; fit with the same options takes them")
    if npy is not None:
        write_npy(data.samples, found, Grid(what.sampling, what.size), npy)
        console.say(f"{len(data.samples)} .npy files in {npy}, listed in {npy / 'features.csv'}")
