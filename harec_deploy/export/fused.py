"""The two graphs of a frame-wise model in one file, for programs that know nothing of bundles.

    clips (B, T, H, W, 3) -> frames (B * T, H, W, 3) -> encoder -> features (B * T, D) -> (B, T, D) -> head -> (B, C)

It is made of the exported files, so it computes what they compute, in whatever types they have.
"""

from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import ModelProto, compose, parser

from harec_deploy.spec import BundleSpec


def write_fused(graphs: Mapping[str, Path], spec: BundleSpec, folder: Path) -> dict[str, Path]:
    """Write ``model.onnx``, check and return its path: clips uint8 (B, T, H, W, 3) -> logits float32 (B, C), any B.

    graphs: the files ``encoder`` and ``head`` of a variant.
    """
    encoder, head = (_part(onnx.load(graphs[name]), name) for name in ("encoder", "head"))
    frames, pixels = spec.sampling.frames, f"{spec.size.height}, {spec.size.width}, 3"
    clips, every = f"uint8[batch, {frames}, {pixels}]", f"float[batch, {frames}, {spec.feature_dim}]"
    apart = _reshape(clips, "clips", f"uint8[images, {pixels}]", f"-1, {pixels}", encoder)
    together = _reshape(f"float[images, {spec.feature_dim}]", "each", every, f"-1, {frames}, {spec.feature_dim}", head)
    made = compose.merge_models(apart, encoder, [("clips_out", "encoder_frames")])
    made = compose.merge_models(made, together, [("encoder_features", "each")])
    made = compose.merge_models(made, head, [("each_out", "head_features")])
    path = folder / "model.onnx"
    onnx.checker.check_model(made, full_check=True)
    onnx.save(made, path)
    return {"model": path}


def _part(model: ModelProto, name: str) -> ModelProto:
    """Return a graph with ``name`` before its names, but that of the logits.

    Noted shapes are left out, for the encoder's batch is not the head's.
    """
    del model.graph.value_info[:]
    return compose.add_prefix(model, f"{name}_", rename_outputs=name == "encoder")


def _reshape(given: str, name: str, wanted: str, shape: str, like: ModelProto) -> ModelProto:
    """Return a model, of the versions of another, that reshapes ``name`` to ``<name>_out``; ``given`` to ``wanted``."""
    rank, opset = shape.count(",") + 1, next(each.version for each in like.opset_import if not each.domain)
    return parser.parse_model(
        f"""<ir_version: {like.ir_version}, opset_import: ["": {opset}]>
        {name}_reshape ({given} {name}) => ({wanted} {name}_out) <int64[{rank}] {name}_shape = {{{shape}}}>
        {{ {name}_out = Reshape({name}, {name}_shape) }}"""
    )
