"""What folding the normalisation of pixels into the first convolution could gain at most: encoders without any.

    pip install -e '.[export,ort]'
    PYTHONPATH=. python benchmarks/normalisation.py --json benchmarks/results/normalisation.json

Every encoder is exported twice, as it is and with pixels that are only cast to float, which no folding can beat. Both
run on the same batch of 16 frames, in turn, and the ratios are taken round by round. The encoders pad with zeros after
they normalise, so a shift moved into the bias is wrong along the border of the picture; how wrong, is measured too.
"""

import copy
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from decode import machine
from rich.console import Console
from torch import nn

from harec_deploy.export.onnx import write_graphs
from harec_deploy.models import ARCHITECTURES, FramewiseModel, build
from harec_deploy.models.encoders import FrameEncoder
from harec_deploy.runners.onnx import OnnxRunner
from harec_deploy.runners.openvino import OpenVINORunner
from harec_deploy.spec import BundleSpec, FileRef

NAMES = ("lrcn", "mobilenet_v2_lstm", "resnet50_lstm")
FRAMES = 16


class Bare(FrameEncoder):
    """An encoder whose normalisation costs nothing, and whose features mean nothing."""

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float().movedim(-1, 1)


def folded_error(encoder: FrameEncoder) -> float:
    """Return the largest error of a frame's features, as a share of their length, with the shift in the bias."""
    folded = copy.deepcopy(encoder)
    convolution = next(part for part in folded.modules() if isinstance(part, nn.Conv2d))
    with torch.inference_mode():
        convolution.bias = nn.Parameter(torch.einsum("oihw,i->o", convolution.weight, folded.get_buffer("offset")))
        convolution.weight *= folded.get_buffer("scale")[:, None, None]
        noise = torch.rand(4, 3, 7, 7)  # of several sizes, as in pictures
        pixels = nn.functional.interpolate(noise, (224, 224), mode="bicubic").mul(255).clamp(0, 255).byte()
        wanted = encoder(pixels.permute(0, 2, 3, 1))
        got = folded.backbone(pixels.float())
    return float(((got - wanted).norm(dim=1) / wanted.norm(dim=1)).max())


def ratios(paths: dict[str, Path], side: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return by runner and precision how many times as long the encoder takes as it does without normalisation."""
    pixels = np.random.default_rng(0).integers(0, 256, (FRAMES, side, side, 3), dtype=np.uint8)
    facts = {}
    for runner, precision in ((OpenVINORunner(), "fp32"), (OpenVINORunner(), "bf16"), (OnnxRunner(), "fp32")):
        graphs = {name: runner.load_file(path, precision) for name, path in paths.items()}
        seconds: dict[str, list[float]] = {name: [] for name in graphs}
        for turn in range(-2, rounds):
            for name in sorted(graphs, reverse=turn % 2 == 1):
                start = time.perf_counter()
                graphs[name](pixels)
                if turn >= 0:
                    seconds[name].append(time.perf_counter() - start)
        each = np.array(seconds["as it is"]) / np.array(seconds["bare"])
        low, middle, high = np.percentile(each, (25, 50, 75))
        milliseconds = 1000 * statistics.median(seconds["as it is"])
        told = {"ratio": middle, "quarter": low, "three_quarters": high, "ms": milliseconds}
        facts[f"{runner.name} {precision}"] = {name: round(float(value), 4) for name, value in told.items()}
    return facts


def measure(name: str, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    known = ARCHITECTURES[name]
    model = build(name, known.head, 5, size=known.size).eval()
    bare = Bare(model.encoder.backbone, model.encoder.feature_dim, (0.5,) * 3, (0.5,) * 3)
    spec = BundleSpec(
        architecture=name,
        head=known.head,
        feature_dim=model.encoder.feature_dim,
        classes=[f"class {number}" for number in range(5)],
        sampling=known.sampling,
        size=known.size,
        weights=FileRef(path="", size=0, sha256=""),
    )
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for way, encoder in (("as it is", model.encoder), ("bare", bare)):
            (target := Path(folder) / way).mkdir()
            paths[way] = write_graphs(FramewiseModel(encoder, model.head), spec, target)["encoder"]
        facts: dict[str, Any] = dict(ratios(paths, known.size.width, rounds))
    return facts if name == "lrcn" else {**facts, "error_of_shift_in_bias": folded_error(model.encoder)}


def main(
    rounds: Annotated[int, typer.Option(help="how often everything is measured")] = 40,
    out: Annotated[Path | None, typer.Option("--json", help="write all figures here")] = None,
) -> None:
    facts: dict[str, Any] = {"machine": machine(), "rounds": rounds}
    for name in NAMES:
        facts[name] = measure(name, rounds)
        Console().print(name, facts[name])
    if out:
        out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
