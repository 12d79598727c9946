"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

from harec_deploy.errors import UsageError


def span_of(text: str) -> float:
    """Return the central share that "0.5" or "0.25:0.75" means. Raises UsageError for one that is not central."""
    try:
        ends = [float(part) for part in text.split(":")]
    except ValueError:
        ends = []
    if len(ends) == 2 and abs(ends[0] + ends[1] - 1) < 1e-6:
        return round(ends[1] - ends[0], 9)
    if len(ends) != 1:
        raise UsageError(
            f"--span {text}: allowed are a share, such as 0.5, or its two ends around the middle, 0.25:0.75"
        )
    return ends[0]


RecipeName = Annotated[
    str, typer.Option(help="A TOML file, or a recipe's name (see run); the options below go on top of it.")
]
Architecture = Annotated[
    str | None, typer.Option(help="One that python -m training models lists; resnet50_lstm by default.")
]
EncoderWeights = Annotated[
    str | None, typer.Option(help="imagenet, kinetics400 (for I3D), an address, or a file with the weights.")
]
Frames = Annotated[int | None, typer.Option(help="Frames of a clip; the architecture's by default.")]
FrameSize = Annotated[int | None, typer.Option("--size", help="Width and height of a frame in pixels.")]
Resize = Annotated[str | None, typer.Option(help="stretch, or crop: shorter side and centre crop.")]
Span = Annotated[
    float | None,
    typer.Option(
        parser=span_of, metavar="SHARE", help="Central share of a video that is sampled: 0.5, or as 0.25:0.75; 1."
    ),
]
Cache = Annotated[
    Path | None, typer.Option(help="Where decoded frames and features are kept; beside the manifest by default.")
]
Crop = Annotated[
    float | None, typer.Option(help="Least share of the picture in random crops, one a clip: 0.5; 1 for none.")
]
Aspect = Annotated[float | None, typer.Option(help="How much wider or narrower crops may be in shape; 1.33.")]
Colour = Annotated[
    float | None, typer.Option(help="Change brightness, contrast, saturation by up to this share: 0.2; 0 for none.")
]
Hue = Annotated[float | None, typer.Option(help="Move hues by up to this share of the colour circle; 0.")]
