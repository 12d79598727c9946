"""PyTorch modules to self-contained ONNX files."""

import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from harec_deploy.errors import UsageError
from harec_deploy.models import FramewiseModel, Model
from harec_deploy.models.clipwise import ClipwiseModel
from harec_deploy.models.typed import typed_encoder, typed_head
from harec_deploy.spec import BundleSpec

OPSETS = {"fp32": 20, "fp16": 20, "bf16": 22}  # convolutions and LSTM take bfloat16 from 22 on


def write_graphs(
    model: Model, spec: BundleSpec, folder: Path, *, precision: str = "fp32", lstm: str = "op"
) -> dict[str, Path]:
    """Write ``encoder.onnx`` and ``head.onnx``, or ``model.onnx`` of a clip-wise model, check and return their paths.

    encoder: frames uint8 (N, H, W, 3) -> features float32 (N, D), any N.
    head: features float32 (B, T, D) -> logits float32 (B, C), any B.
    model: clips uint8 (B, T, H, W, 3) -> logits float32 (B, C), any B.
    precision: "fp32", "fp16" or "bf16": the types inside the graphs, where they are safe; see models/typed.py.
    lstm: "op" for ONNX's LSTM, "unroll" for its T steps written out.

    Raises:
        UsageError: no such precision, no such form of the LSTM, or none for a clip-wise model.
    """
    if isinstance(model, ClipwiseModel):
        if (precision, lstm) != ("fp32", "op"):
            raise UsageError(f"{spec.architecture} takes whole clips: such models are exported in fp32 with --lstm op")
        return _write_clipwise(model, spec, folder)
    return _write_framewise(model, spec, folder, precision, lstm)


def _write_framewise(
    model: FramewiseModel, spec: BundleSpec, folder: Path, precision: str, lstm: str
) -> dict[str, Path]:
    encoder, head = typed_encoder(model.encoder, precision), typed_head(model.head, precision, lstm)
    opset = OPSETS[precision]
    frames = torch.zeros((2, spec.size.height, spec.size.width, 3), dtype=torch.uint8)
    features = torch.zeros((2, spec.sampling.frames, spec.feature_dim))
    return {
        "encoder": _write(encoder, frames, "frames", "features", folder / "encoder.onnx", opset),
        "head": _write(head, features, "features", "logits", folder / "head.onnx", opset),
    }


def _write_clipwise(model: ClipwiseModel, spec: BundleSpec, folder: Path) -> dict[str, Path]:
    clips = torch.zeros((2, spec.sampling.frames, spec.size.height, spec.size.width, 3), dtype=torch.uint8)
    return {"model": _write(model, clips, "clips", "logits", folder / "model.onnx", OPSETS["fp32"])}


def _write(module: nn.Module, example: Tensor, input_name: str, output_name: str, path: Path, opset: int) -> Path:
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
            opset_version=opset,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=False)
    proto = onnx.load(path)
    _without_traces(proto)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    return path


def _without_traces(proto: onnx.ModelProto) -> None:
    """Remove what the exporter notes of its sources: paths of this machine, and most of the bytes of a small graph."""
    graph = proto.graph
    for part in (*graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]
