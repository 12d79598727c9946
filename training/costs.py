"""What an architecture costs: parameters and arithmetic, counted on PyTorch's meta device, which computes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch.utils.flop_counter import FlopCounterMode

from harec_deploy.decode import Size
from harec_deploy.models import ARCHITECTURES, FramewiseModel, build
from harec_deploy.spec import HeadSpec


@dataclass(frozen=True, slots=True)
class Cost:
    """What one clip of an architecture costs.

    kind: "frame-wise" or "clip-wise". frames, width, height: of the clip.
    flops: of convolutions and matrix products, a multiply-add counted as two. pretrained: its encoder may be.
    """

    architecture: str
    kind: str
    frames: int
    width: int
    height: int
    parameters: int
    flops: int
    pretrained: bool


def cost(architecture: str, head: HeadSpec, classes: int, *, frames: int, size: Size) -> Cost:
    """Count the parameters of an architecture, and its arithmetic for one clip.

    Raises:
        UsageError: no such architecture, or clips that are too small for it.
    """
    with torch.device("meta"):
        model = build(architecture, head, classes, size=size, frames=frames).eval()
        clip = torch.empty((1, frames, size.height, size.width, 3), dtype=torch.uint8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(clip)
    return Cost(
        architecture,
        "frame-wise" if isinstance(model, FramewiseModel) else "clip-wise",
        frames,
        size.width,
        size.height,
        sum(parameter.numel() for parameter in model.parameters()),
        counter.get_total_flops(),
        ARCHITECTURES[architecture].pretrained,
    )


def all_costs(classes: int) -> list[Cost]:
    """Return the cost of every architecture as it is used unless told otherwise."""
    return [
        cost(each.name, each.head, classes, frames=each.sampling.frames, size=each.size)
        for each in ARCHITECTURES.values()
    ]


def as_rows(costs: Sequence[Cost]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Return the columns and rows of a table for people."""
    columns = ("architecture", "kind", "clip", "parameters, M", "GFLOPs a clip", "pre-trained encoder")
    rows = [
        (
            each.architecture,
            each.kind,
            f"{each.frames} x {each.width}x{each.height}",
            f"{each.parameters / 1e6:.3g}",
            f"{each.flops / 1e9:.3g}",
            "yes" if each.pretrained else "no",
        )
        for each in costs
    ]
    return columns, rows


def to_json(costs: Sequence[Cost], classes: int) -> str:
    """Return the costs for machines; ``flops_of_multiply_add`` says how they were counted."""
    facts = {"classes": classes, "flops_of_multiply_add": 2, "architectures": list(costs)}
    return msgspec.json.format(msgspec.json.encode(facts), indent=2).decode()
