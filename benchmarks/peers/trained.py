"""What every program here begins with: the trained network as its author has it, and how a label is told.

Not counted among anybody's lines of code: all of them need it, whatever library does the rest.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harec_deploy.bundle import load
from harec_deploy.sampling import Window
from harec_deploy.spec import BundleSpec


class Asked(NamedTuple):
    """The command line: the model's folder, what it says of itself, the videos, and which of the options were given."""

    bundle: Path
    spec: BundleSpec
    videos: list[str]
    options: frozenset[str]


def asked(*options: str) -> Asked:
    """Read the command line; ``options`` are the names of those that the program knows, such as "bf16"."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("videos", nargs="+")
    for name in options:
        parser.add_argument(f"--{name}", action="store_true")
    values = parser.parse_args()
    given = frozenset(name for name in options if getattr(values, name.replace("-", "_")))
    return Asked(values.bundle, load(values.bundle).spec, values.videos, given)


def times_s(spec: BundleSpec, duration_s: float) -> NDArray[np.float64]:
    """Return the times of a clip's frames in a video of this length, as the model was trained on them."""
    return spec.sampling.timestamps_s(Window(0.0, duration_s))


def places(spec: BundleSpec, frames: int, fps: float) -> NDArray[np.int64]:
    """Return the same as numbers of frames, for a library that counts them."""
    return (times_s(spec, frames / fps) * fps).astype(np.int64)


def network(bundle: Path, **to: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Return the network in PyTorch: normalised frames (N, 3, H, W) -> features (N, D), and (B, T, D) -> logits.

    to: what the encoder's ``.to`` gets, such as memory_format.
    """
    from harec_deploy.models import from_bundle

    model = from_bundle(load(bundle)).eval()
    return model.encoder.backbone.to(**to), model.head


def ready() -> None:
    """Say that the model is loaded and the first video may come."""
    print(json.dumps({"ready": True}), flush=True)


def tell(video: str, classes: list[str], probabilities: Any) -> None:
    """Print the label of a video and its score; probabilities: of all classes, (C,)."""
    place = int(probabilities.argmax())
    score = round(float(probabilities[place]), 6)
    print(json.dumps({"path": video, "label": classes[place], "score": score}), flush=True)
