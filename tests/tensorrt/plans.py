"""Bundles with TensorRT plans for the fake, and their graphs in ONNX Runtime to compare with."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime

from harec_deploy.bundle import Bundle, save
from harec_deploy.spec import EngineSpec, FileRef, Variant
from tests.attacks.tiny import encoder, head, put, tiny_bundle
from tests.tensorrt import fake_cuda, fake_runtime

VARIANT = "tensorrt-fp32-sm90"
BUCKETS = (1, 4, 8)
GRAPHS = {"encoder": encoder, "head": head}


def profiles(model: onnx.ModelProto, buckets: Sequence[int]) -> list[dict[str, list[list[int]]]]:
    """Return a fixed profile for each bucket, and one from 1 to the largest."""
    (given,) = model.graph.input
    row = [axis.dim_value for axis in given.type.tensor_type.shape.dim[1:]]
    ranges = [(rows, rows, rows) for rows in buckets] + [(1, buckets[-1], buckets[-1])]
    return [{given.name: [[rows, *row] for rows in three]} for three in ranges]


def engine_spec(sources: dict[str, FileRef], **fields: object) -> EngineSpec:
    """Return what is told of plans that fit the fake. fields: replace what it says."""
    told: dict[str, object] = {
        "tensorrt": fake_runtime.__version__,
        "gpu": fake_cuda.GPU.name,
        "capability": fake_runtime.CAPABILITY,
        "profiles": {name: [(rows, rows, rows) for rows in BUCKETS] for name in GRAPHS},
    }
    if "sources" in EngineSpec.__struct_fields__:
        told["sources"] = sources
    else:
        told |= {"source": "onnx-fp32", "source_sha256": {name: file.sha256 for name, file in sources.items()}}
    return EngineSpec(**(told | fields))  # type: ignore[arg-type]


def engine_bundle(
    folder: Path,
    *,
    variant: str = VARIANT,
    buckets: Sequence[int] = BUCKETS,
    plans: dict[str, bytes] | None = None,
    said: dict[str, object] | None = None,
    onnx_too: bool = False,
    **fields: object,
) -> Bundle:
    """Write a bundle whose variant of plans fits the fake.

    plans: replace the bytes of a plan. said, fields: replace what the plans say of themselves, and the bundle of them.
    onnx_too: with the ONNX variant for the CPU.
    """
    bundle = tiny_bundle(folder)
    onnx_files = {name: model().SerializeToString() for name, model in GRAPHS.items()}
    made = {
        name: fake_runtime.plan(onnx_files[name], profiles(model(), buckets), **(said or {}))
        for name, model in GRAPHS.items()
    } | (plans or {})
    variants = {
        variant: Variant(
            precision="fp32",
            graphs={name: put(folder, f"{variant}/{name}.plan", data) for name, data in made.items()},
            made_with={},
            proofs=[],
            engine=engine_spec(
                {name: put(folder, f"{variant}/{name}.onnx", data) for name, data in onnx_files.items()}, **fields
            ),
        )
    }
    if onnx_too:
        variants |= bundle.spec.variants
    return save(folder, msgspec.structs.replace(bundle.spec, variants=variants))


def reference(name: str, batch: np.ndarray) -> np.ndarray:
    """Return what ONNX Runtime makes of a batch."""
    session = onnxruntime.InferenceSession(GRAPHS[name]().SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: batch})[0])
