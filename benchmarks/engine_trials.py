"""What was tried to bring int8 nearer to this CPU's peak, each held against the engine as it is, in one run.

    PYTHONPATH=. python benchmarks/engine_trials.py CLIPS --json benchmarks/results/engine_trials.json

The int8 encoder of engine.py, ResNet-50 with 16 frames of 224x224: streams and parts, threads pinned to cores or not,
pixels already normalised, the layout of channels, and what a runtime fuses. Rounds are interleaved; a trial's
ratio is how many times as long it takes as the runner does, above 1 where it loses.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import onnxruntime
import openvino
import typer
from decode import machine
from engine import CLIPS, rounds_of, write_models
from numpy.typing import NDArray
from recognisers import write_learnt
from rich.console import Console

from benchmarks.measured import middle, ratio
from harec_deploy.export.quantise import calibration_frames
from harec_deploy.export.verify import read_clips
from harec_deploy.runners.onnx import SPIN_US, OnnxRunner
from harec_deploy.runners.openvino import OpenVINORunner
from harec_deploy.runners.uint8 import read_for_cpu

Run = Callable[[], NDArray[np.float32]]
SHIPPED = {"openvino": "OpenVINO as it is run", "onnx": "ONNX Runtime as it is run"}
FASTEST = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}


def in_openvino(model: bytes, frames: NDArray[Any], rows: int, **options: Any) -> Run:
    """Return a run of the frames in parts of ``rows``."""
    core = openvino.Core()
    requests = openvino.AsyncInferQueue(core.compile_model(core.read_model(model=model), "CPU", FASTEST | options))
    parts = [frames[start : start + rows] for start in range(0, len(frames), rows)]
    results: list[Any] = [None] * len(parts)
    requests.set_callback(lambda request, place: results.__setitem__(place, request.get_output_tensor(0).data.copy()))

    def run() -> NDArray[np.float32]:
        for place, part in enumerate(parts):
            requests.start_async([part], place, share_inputs=True)
        requests.wait_all()
        return np.concatenate(results)

    return run


def in_onnxruntime(model: bytes, frames: NDArray[Any], level: str = "ORT_ENABLE_ALL", **entries: str) -> Run:
    """Return a run of the frames with the runner's settings but for ``entries``, whose "__" stand for dots."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    for name, value in {"intra_op__spin_duration_us": str(SPIN_US), **entries}.items():
        options.add_session_config_entry(f"session.{name.replace('__', '.')}", value)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: frames})[0]


def without_pixels(model: bytes) -> tuple[bytes, str]:
    """Return the encoder from its first QuantizeLinear on, and the name of what that takes: normalised planes."""
    cut = onnx.load_from_string(model)
    nodes = cut.graph.node
    start = next(place for place, node in enumerate(nodes) if node.op_type == "QuantizeLinear")
    name = nodes[start].input[0]
    makers = {output: node for node in nodes for output in node.output}
    todo, before = [name], set[str]()
    while todo:
        if node := makers.get(todo.pop()):
            before.update(node.output)
            todo += node.input
    kept = [node for node in nodes if not before & set(node.output)]
    del nodes[:]
    nodes.extend(kept)
    del cut.graph.input[:]
    shape = ["batch", 3, "height", "width"]
    cut.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    return cut.SerializeToString(), name


def planes(model: bytes, name: str, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return normalised frames as the encoder makes them, float32 (N, 3, H, W)."""
    whole = onnx.load_from_string(model)
    del whole.graph.output[:]
    whole.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    return in_onnxruntime(whole.SerializeToString(), frames)()


def trials(path: Path, frames: NDArray[np.uint8]) -> dict[str, dict[str, Run]]:
    """Return what is run, by the runtime: the first as the runner has it, the others with one thing changed."""
    model = read_for_cpu(path, "int8")
    cut, name = without_pixels(model)
    normalised = planes(model, name, frames)
    runners = (OpenVINORunner(), OnnxRunner())
    graphs = {runner.name: runner.load_file(path, "int8", 2) for runner in runners}
    whole = len(frames)
    return {
        "openvino": {
            SHIPPED["openvino"]: lambda: graphs["openvino"](frames),
            "one stream of both threads, all frames at once": in_openvino(model, frames, whole, NUM_STREAMS=1),
            "parts of 4 frames": in_openvino(model, frames, 4),
            "parts of 2 frames": in_openvino(model, frames, 2),
            "threads pinned to cores": in_openvino(model, frames, 8, ENABLE_CPU_PINNING=True),
            "threads not pinned": in_openvino(model, frames, 8, ENABLE_CPU_PINNING=False),
            "pixels normalised before": in_openvino(cut, normalised, 8),
        },
        "onnx": {
            SHIPPED["onnx"]: lambda: graphs["onnx"](frames),
            "threads pinned to cores": in_onnxruntime(model, frames, intra_op_thread_affinities="2"),
            "threads that do not spin": in_onnxruntime(model, frames, intra_op__allow_spinning="0"),
            "pixels normalised before": in_onnxruntime(cut, normalised),
            "channels not innermost": in_onnxruntime(model, frames, "ORT_ENABLE_EXTENDED"),
            "nothing fused": in_onnxruntime(model, frames, "ORT_DISABLE_ALL"),
        },
    }


def layers(path: Path) -> dict[str, int]:
    """Return how many nodes the file has, how many OpenVINO runs of it, and how many of those change a layout only."""
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model=read_for_cpu(path, "int8")), "CPU", FASTEST)
    kinds = [node.get_rt_info()["layerType"].astype(str) for node in compiled.get_runtime_model().get_ops()]
    return {"nodes": len(onnx.load(path).graph.node), "run": len(kinds), "reorders": kinds.count("Reorder")}


def main(
    clips: Annotated[Path, typer.Argument(help="videos that the ranges of int8 come from")],
    rounds: Annotated[int, typer.Option(help="how often everything is measured")] = 20,
    out: Annotated[Path | None, typer.Option("--json", help="write all figures here")] = None,
) -> None:
    console, facts = Console(), dict[str, Any](machine=machine(), rounds=rounds)
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_learnt(Path(folder) / "bundle", None)
        pixels = read_clips(bundle.spec, [str(clips)], CLIPS).pixels
        encoder = write_models(bundle, calibration_frames(pixels), Path(folder) / "graphs")["int8"]["encoder"]
        runs, facts["openvino_layers"] = trials(encoder, pixels[0]), layers(encoder)
        for runtime, own in runs.items():
            wanted, shipped = own[SHIPPED[runtime]](), SHIPPED[runtime]
            apart = {name: float(np.abs(run() - wanted).max() / np.abs(wanted).max()) for name, run in own.items()}
            measured = list(rounds_of(own, rounds))
            base, told = [each[shipped] for each in measured], dict[str, Any]()
            for name in own:
                seconds = [each[name] for each in measured]
                ms = {key: round(1e3 * value, 1) for key, value in middle(seconds).items()}
                times = {key: round(value, 3) for key, value in ratio(seconds, base).items()}
                told[name] = {"ms": ms, "times_shipped": times, "features_apart": round(apart[name], 5)}
                console.print(f"{runtime}, {name}: {told[name]}")
            facts[runtime] = told
    console.print(facts["openvino_layers"])
    if out:
        out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
