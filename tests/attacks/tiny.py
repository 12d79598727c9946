"""A bundle of two graphs that are written by hand: made in an instant, and every weight of it is known.

The features of a frame are its mean red, green and blue, 0 to 255; a clip's class is the strongest colour.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from harec_deploy.bundle import Bundle, file_ref, save
from harec_deploy.decode import Size
from harec_deploy.sampling import ClipSampling
from harec_deploy.spec import BundleSpec, FileRef, HeadSpec, Variant

CLASSES = ["red", "green", "blue"]
FRAMES, SIDE = 4, 32
OPSET = helper.make_opsetid("", 20)


def graph(
    nodes: Sequence[onnx.NodeProto],
    source: onnx.ValueInfoProto,
    target: onnx.ValueInfoProto,
    constants: dict[str, NDArray[np.generic]],
) -> onnx.ModelProto:
    """Return a checked model with one input, one output and constants."""
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    made = helper.make_model(
        helper.make_graph(list(nodes), "tiny", [source], [target], weights), opset_imports=[OPSET], ir_version=10
    )
    onnx.checker.check_model(made, full_check=True)
    return made


def encoder(side: int = SIDE) -> onnx.ModelProto:
    """Return the encoder: frames uint8 (N, side, side, 3) -> features float32 (N, 3)."""
    return graph(
        [
            helper.make_node("Cast", ["frames"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["pixels", "axes"], ["features"], keepdims=0),
        ],
        helper.make_tensor_value_info("frames", TensorProto.UINT8, ["batch", side, side, 3]),
        helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 3]),
        {"axes": np.array([1, 2])},
    )


def head(weight: NDArray[np.float32] | None = None, *, brightest: float | None = None) -> onnx.ModelProto:
    """Return the head: features float32 (B, T, 3) -> logits float32 (B, C).

    weight: float32 (C, 3). brightest: the logits of a clip whose mean colour is above it are NaN.
    """
    weight = np.eye(3, dtype=np.float32) if weight is None else weight
    nodes = [
        helper.make_node("ReduceMean", ["features", "time"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["product"]),
    ]
    constants: dict[str, NDArray[np.generic]] = {"time": np.array([1]), "weight": weight.T.copy()}
    if brightest is None:
        nodes.append(helper.make_node("Identity", ["product"], ["logits"]))
    else:
        nodes += [
            helper.make_node("ReduceMean", ["mean", "time"], ["brightness"], keepdims=1),
            helper.make_node("Sub", ["limit", "brightness"], ["room"]),
            helper.make_node("Sqrt", ["room"], ["root"]),  # NaN below 0
            helper.make_node("Mul", ["root", "zero"], ["nothing"]),
            helper.make_node("Add", ["product", "nothing"], ["logits"]),
        ]
        constants |= {"limit": np.array(brightest, np.float32), "zero": np.array(0, np.float32)}
    return graph(
        nodes,
        helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", FRAMES, 3]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(weight)]),
        constants,
    )


def tiny_bundle(
    folder: Path,
    *,
    graphs: dict[str, bytes] | None = None,
    suffix: str = ".onnx",
    check: dict[str, NDArray[np.generic]] | None = None,
    **fields: object,
) -> Bundle:
    """Write a bundle whose hashes are right, whatever its files hold: what an attacker would publish.

    graphs: name -> the bytes of its file. suffix: of the graphs' files. check: the arrays of check.npz.
    fields: replace what bundle.json says.
    """
    folder.mkdir(parents=True)
    weights = folder / "weights.safetensors"
    save_file({"head.classifier.weight": np.eye(3, dtype=np.float32)}, weights)
    graphs = {"encoder": encoder().SerializeToString(), "head": head().SerializeToString()} | (graphs or {})
    if check is not None:
        np.savez(folder / "check.npz", **check)  # type: ignore[arg-type]
    spec = {
        "architecture": "tiny",
        "head": HeadSpec(hidden=1),
        "feature_dim": 3,
        "classes": CLASSES,
        "sampling": ClipSampling(frames=FRAMES),
        "size": Size(width=SIDE, height=SIDE),
        "weights": file_ref(folder, weights),
        "check": None if check is None else file_ref(folder, folder / "check.npz"),
        "variants": {
            "onnx-fp32": Variant(
                precision="fp32",
                graphs={name: put(folder, f"onnx-fp32/{name}{suffix}", data) for name, data in graphs.items()},
                made_with={},
                proofs=[],
            )
        },
    }
    return save(folder, BundleSpec(**(spec | fields)))  # type: ignore[arg-type]


def put(folder: Path, name: str, data: bytes) -> FileRef:
    """Write a file of the bundle and return its reference."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return file_ref(folder, path)
