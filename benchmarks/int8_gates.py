"""The gates of int8 on trained models: labels kept, accuracy lost, and the layers that had to stay in float.

    python -m benchmarks.int8_gates CLIPS --encoder-weights mobilenet_v2.pth --json benchmarks/results/int8_gates.json

CLIPS is UT-Interaction as architectures.py takes it: trained on half of its sequences, proved on the others. The
second data set is rendered as for ``make demo``, and proved on people who were not trained on. MobileNetV2 has ImageNet
weights and is frozen; the ResNets are trained from nothing, whole, on frames of 64x64, to fit two cores: they learn
less than is usual. int8 is calibrated on training clips only, with the options that ``harec-deploy export --precision
int8`` has. Beside the gate, every layer becomes int8 by each calibration, with biases as they were and corrected.
"""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import typer
from rich.console import Console

from benchmarks.architectures import FROZEN, SEQUENCE
from harec_deploy.bundle import load
from harec_deploy.errors import ProofError
from harec_deploy.export import export
from harec_deploy.export.onnx import write_graphs
from harec_deploy.export.quantise import CALIBRATIONS, Quantiser, calibration_frames
from harec_deploy.export.verify import read_clips, reference_logits
from harec_deploy.machine import facts
from harec_deploy.models import from_bundle
from harec_deploy.runners.openvino import OpenVINORunner
from training.datasets import Sample, grouped, scan_folders
from training.fit import SILENT, fit
from training.recipes import RecipeFile, to_recipe
from training.splits import folds
from training.synthetic import synthesize

FROM_NOTHING: dict[str, Any] = {
    "sampling": {"frames": 8},
    "size": {"width": 64, "height": 64},
    "head": {"hidden": 128},
    "optimisation": {"epochs": 50, "batch": 8, "learning_rate": 1e-3, "amp": "bf16"},
}
MODELS: dict[str, dict[str, Any]] = {
    "MobileNetV2 + LSTM": FROZEN,
    "ResNet-18 + LSTM": {"architecture": "resnet18_lstm", **FROM_NOTHING},
    "ResNet-50 + LSTM": {"architecture": "resnet50_lstm", **FROM_NOTHING},
}
SCENES = {"actors": 10, "clips_per_action": 3, "seed": 0}
FLIP = {"generated": False, "UT-Interaction": True}  # left and right are classes of the first


def gate(name: str, data: str, samples: Sequence[Sample], encoder_weights: Path, work: Path) -> dict[str, Any]:
    """Train, export in fp32 and in int8, and return what the proof measured."""
    settings = MODELS[name]
    weights = str(encoder_weights) if settings is FROZEN else None
    start = time.perf_counter()
    recipe = to_recipe(RecipeFile(**settings, encoder_weights=weights, flip=FLIP[data]))
    bundle = fit(samples, recipe, work, SILENT, cache=work.parent / "cache")
    row: dict[str, Any] = {"model": name, "data": data, "training_s": round(time.perf_counter() - start, 1)}
    row["every_layer"] = every_layer(bundle, work)
    try:
        variant = export(bundle, precision="int8").spec.variants["onnx-int8"]
    except ProofError as error:
        return row | {"refused": str(error)}
    assert variant.quantisation
    row |= {"layers": variant.quantisation.layers, "kept_float": variant.quantisation.kept_float}
    return row | {"proofs": [msgspec.to_builtins(proof) for proof in variant.proofs]}


def every_layer(folder: Path, work: Path) -> list[dict[str, Any]]:
    """Return what int8 of every layer does to the held-out clips, by calibration and with biases as they were or not.

    feature_error: of the features' norm. labels_kept: of ``clips``, in OpenVINO.
    """
    bundle, runner = load(folder), OpenVINORunner()
    spec, model = bundle.spec, from_bundle(bundle)
    training, held_out = (read_clips(spec, spec.training[f"{name}_clips"], 100) for name in ("calibration", "proof"))
    labels = reference_logits(model, held_out).argmax(1)
    graphs = write_graphs(model, spec, work)
    head, pixels = runner.load_file(graphs["head"]), held_out.pixels.reshape(-1, *held_out.pixels.shape[2:])
    wanted, told = runner.load_file(graphs["encoder"])(pixels), list[dict[str, Any]]()
    for method in CALIBRATIONS:
        quantiser = Quantiser(graphs["encoder"], calibration_frames(training.pixels), method)
        for correct in (False, True):
            quantiser.write(work / "int8.onnx", correct=correct)
            features = runner.load_file(work / "int8.onnx", "int8")(pixels)
            kept = int((head(features.reshape(len(labels), -1, spec.feature_dim)).argmax(1) == labels).sum())
            error = float(np.linalg.norm(features - wanted) / np.linalg.norm(wanted))
            row = {"method": method, "biases_corrected": correct, "feature_error": error}
            told.append(row | {"labels_kept": kept, "clips": len(labels)})
    return told


def main(
    clips: Annotated[Path, typer.Argument(help="UT-Interaction")],
    encoder_weights: Annotated[Path, typer.Option(help="of MobileNetV2, as torchvision has them")],
    out: Annotated[Path, typer.Option("--json", help="all figures, written after each model")],
    resume: Annotated[bool, typer.Option("--resume", help="go on with the models that the JSON lacks")] = False,
) -> None:
    console = Console()
    rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"] if resume and out.exists() else []
    done = {(row["data"], row["model"]) for row in rows}
    with tempfile.TemporaryDirectory(prefix="harec-int8-") as folder:
        synthesize(Path(folder) / "videos", **SCENES)  # type: ignore[arg-type]
        sets = {
            "generated": scan_folders(Path(folder) / "videos"),
            "UT-Interaction": grouped(scan_folders(clips), SEQUENCE),
        }
        for data, samples in sets.items():
            half, *_ = folds(samples, 2, seed=0)
            for name in (name for name in MODELS if (data, name) not in done):
                rows.append(gate(name, data, half, encoder_weights, Path(folder) / f"{data} {name}"))
                console.print(rows[-1])
                text = json.dumps({"machine": facts(), "rows": rows}, indent=1)
                for root in (Path(folder) / "videos", clips.absolute()):  # which is this machine's
                    text = text.replace(f"{root}/", "")
                out.write_text(text + "\n")


if __name__ == "__main__":
    typer.run(main)
