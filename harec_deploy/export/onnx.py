"""PyTorch modules to self-contained ONNX files."""

import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from harec_deploy.bundle import BundleSpec
from harec_deploy.models import FramewiseModel, Model
from harec_deploy.models.clipwise import ClipwiseModel

OPSET = 20


def write_graphs(model: Model, spec: BundleSpec, folder: Path) -> dict[str, Path]:
    """Write ``encoder.onnx`` and ``head.onnx``, or ``model.onnx`` of a clip-wise model, check and return their paths.

    encoder: frames uint8 (N, H, W, 3) -> features float32 (N, D), any N.
    head: features float32 (B, T, D) -> logits float32 (B, C), any B.
    model: clips uint8 (B, T, H, W, 3) -> logits float32 (B, C), any B.
    """
    if isinstance(model, ClipwiseModel):
        return _write_clipwise(model, spec, folder)
    return _write_framewise(model, spec, folder)


def _write_framewise(model: FramewiseModel, spec: BundleSpec, folder: Path) -> dict[str, Path]:
    frames = torch.zeros((2, spec.size.height, spec.size.width, 3), dtype=torch.uint8)
    features = torch.zeros((2, spec.sampling.frames, spec.feature_dim))
    return {
        "encoder": _write(model.encoder, frames, "frames", "features", folder / "encoder.onnx"),
        "head": _write(model.head, features, "features", "logits", folder / "head.onnx"),
    }


def _write_clipwise(model: ClipwiseModel, spec: BundleSpec, folder: Path) -> dict[str, Path]:
    clips = torch.zeros((2, spec.sampling.frames, spec.size.height, spec.size.width, 3), dtype=torch.uint8)
    return {"model": _write(model, clips, "clips", "logits", folder / "model.onnx")}


def _write(module: nn.Module, example: Tensor, input_name: str, output_name: str, path: Path) -> Path:
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            dynamic_shapes=({0: batch},),
            input_names=[input_name],
            output_names=[output_name],
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=False)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    return path
