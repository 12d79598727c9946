"""Clips a second of every engine and precision on this CPU, and how near int8 comes to the machine's peak.

    pip install -e '.[export,ort]'
    PYTHONPATH=. python benchmarks/engine.py CLIPS --json benchmarks/results/engine.json

ResNet-50 + LSTM(512), 101 classes, 16 frames of 224x224, the same random weights for all, so the labels mean nothing
and no gate is asked: accuracy is measured on trained models by ``harec-deploy export``. CLIPS are real videos, whose
frames the ranges of int8 come from. Encoder and head run one clip at a time. Rounds are interleaved; medians are
given, and ratios round by round. The peak is that of int8 convolutions of the fastest size in OpenVINO, measured
in the same rounds.
"""

import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import openvino
import torch
import typer
from decode import machine
from numpy.typing import NDArray
from recognisers import write_learnt
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from harec_deploy.bundle import Bundle
from harec_deploy.export.int8 import CLIPS
from harec_deploy.export.onnx import write_graphs
from harec_deploy.export.quantise import Quantiser, calibration_frames
from harec_deploy.export.verify import read_clips
from harec_deploy.models import FramewiseModel, from_bundle
from harec_deploy.runners.onnx import OnnxRunner
from harec_deploy.runners.openvino import OpenVINORunner
from harec_deploy.runners.uint8 import read_for_cpu

FRAMES, CHANNELS, SIDE, LAYERS = 16, 256, 14, 32  # of the convolutions whose speed is the peak
SETTLE_S = 0.1  # before each run: an engine's threads go on spinning for a while after its work
OPTIONS = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
LEARNT = 8  # clips that the head learns, so that logits are not all alike
Run = Callable[[], Any]


def int8_convolutions(threads: int) -> tuple[Run, float]:
    """Return equal convolutions of uint8 by int8, one after the other, and their operations.

    Their sizes are those of the third stage of ResNet-50, which are the fastest there: more than a product of large
    matrices reaches, since all that a core works on stays in its own cache.
    """
    ops = openvino.opset13
    rng = np.random.default_rng(0)
    levels = [np.float32(0), np.float32(2.55)] * 2
    x = ops.parameter([FRAMES, CHANNELS, SIDE, SIDE], openvino.Type.f32)
    scales = np.full((CHANNELS, 1, 1, 1), 1e-4, np.float32)
    y = x
    for _ in range(LAYERS):
        weights = ops.convert(ops.constant(rng.integers(-127, 128, (CHANNELS, CHANNELS, 3, 3), dtype=np.int8)), "f32")
        y = ops.fake_quantize(y, *levels, 256)
        y = ops.relu(ops.convolution(y, ops.multiply(weights, scales), [1, 1], [1, 1], [1, 1], [1, 1]))
    options = {**OPTIONS, "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(
        openvino.Model([ops.reduce_mean(y, np.array([2, 3]))], [x]), "CPU", options
    )
    kernels = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    used = [k["primitiveType"].astype(str) for k in kernels if k["layerType"].astype(str) == "Convolution"]
    if len(used) != LAYERS or not all(kernel.endswith("_I8") for kernel in used):
        raise SystemExit(f"OpenVINO does not compute the peak in int8, but by {', '.join(used)}")
    request = compiled.create_infer_request()
    values = rng.random((FRAMES, CHANNELS, SIDE, SIDE), dtype=np.float32)
    operations = 2.0 * LAYERS * FRAMES * SIDE**2 * 9 * CHANNELS**2
    return (lambda: request.infer([values], share_inputs=True)), operations


def time_by_kernel(path: Path, frames: NDArray[np.uint8], threads: int) -> dict[str, float]:
    """Return the share of an int8 encoder's time by kind of layer and kernel in OpenVINO, the largest first."""
    core, seconds = openvino.Core(), Counter[str]()
    options = {**OPTIONS, "INFERENCE_NUM_THREADS": threads, "PERF_COUNT": True}
    request = core.compile_model(
        core.read_model(model=read_for_cpu(path, "int8")), "CPU", options
    ).create_infer_request()
    for _ in range(10):
        request.infer([frames])
        for layer in request.profiling_info:
            seconds[f"{layer.node_type}, {layer.exec_type}"] += layer.real_time.total_seconds()
    shares = {name: round(value / seconds.total(), 3) for name, value in seconds.most_common()}
    return {name: share for name, share in shares.items() if share}


def write_models(bundle: Bundle, frames: NDArray[np.uint8], folder: Path) -> dict[str, dict[str, Path]]:
    """Write the float graphs and those whose encoder is in int8."""
    (folder / "fp32").mkdir(parents=True)
    graphs = write_graphs(from_bundle(bundle), bundle.spec, folder / "fp32")
    Quantiser(graphs["encoder"], frames, "minmax").write(folder / "int8.onnx")
    return {"fp32": graphs, "int8": {**graphs, "encoder": folder / "int8.onnx"}}


def ways(bundle: Bundle, clip: NDArray[np.uint8], files: dict[str, dict[str, Path]], threads: int) -> dict[str, Run]:
    """Return what is timed: each gives the logits of one clip, uint8 (T, H, W, 3) -> float32 (1, C)."""
    found: dict[str, Run] = {}
    model = from_bundle(bundle)
    assert isinstance(model, FramewiseModel)
    pixels = torch.from_numpy(clip)[None]

    def eager() -> NDArray[np.float32]:
        with torch.inference_mode():
            return model(pixels).numpy()

    def autocast() -> NDArray[np.float32]:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return model(pixels).float().numpy()

    found["torch fp32"], found["torch bf16"] = eager, autocast
    for runner, precisions in ((OpenVINORunner(), ("fp32", "bf16", "int8")), (OnnxRunner(), ("fp32", "int8"))):
        for precision in precisions:
            paths = files["int8" if precision == "int8" else "fp32"]
            # The head has no int8 form: it is loaded as it would be of the variant.
            encoder, head = (runner.load_file(paths[name], precision, threads) for name in ("encoder", "head"))
            found[f"{runner.name} {precision}"] = lambda e=encoder, h=head: h(e(clip)[None])  # type: ignore[misc]
    return found


def rounds_of(runs: dict[str, Run], rounds: int) -> Iterator[dict[str, float]]:
    """Yield the seconds of each run, in turn, a round at a time; a first round to warm up does not count."""
    for number in range(rounds + 1):
        seconds = {}
        for name, run in runs.items():
            time.sleep(SETTLE_S)
            start = time.perf_counter()
            run()
            seconds[name] = time.perf_counter() - start
        if number:
            yield seconds


def figures(measured: list[dict[str, float]], flops: float, operations: float) -> dict[str, Any]:
    """Return medians, ratios and shares of what was measured.

    flops: of one clip, and operations: of the run that gives the peak; a multiplication and an addition are two.
    """
    peak = [operations / seconds["peak"] for seconds in measured]
    facts: dict[str, Any] = {
        "gflop_a_clip": round(flops / 1e9, 2),
        "int8_peak_gf_s": round(statistics.median(peak) / 1e9),
    }
    for name in (name for name in measured[0] if name != "peak"):
        seconds = [each[name] for each in measured]
        base = f"{name.split()[0]} fp32"
        facts[name] = {
            "clips_per_s": round(1 / statistics.median(seconds), 3),
            "times_torch": ratio([each["torch fp32"] for each in measured], seconds),
            "times_own_fp32": ratio([each[base] for each in measured], seconds),
            "gf_s": round(flops / statistics.median(seconds) / 1e9),
            "of_int8_peak": ratio([flops / s for s in seconds], peak),
            "every_round_s": [round(s, 4) for s in seconds],
        }
    return facts


def ratio(above: list[float], below: list[float]) -> float:
    return round(float(np.median(np.array(above) / np.array(below))), 3)


def main(
    clips: Annotated[Path, typer.Argument(help="videos that the ranges of int8 come from")],
    threads: Annotated[int, typer.Option(help="of every engine")] = 2,
    rounds: Annotated[int, typer.Option(help="how often everything is measured")] = 15,
    out: Annotated[Path | None, typer.Option("--json", help="write all figures here")] = None,
) -> None:
    console, begun = Console(), machine()
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        read: dict[str, NDArray[np.uint8]] = {}
        bundle = write_learnt(
            Path(folder) / "bundle",
            lambda spec: read.setdefault("clips", read_clips(spec, [str(clips)], CLIPS).pixels)[:LEARNT],
        )
        frames = calibration_frames(read["clips"])
        files = write_models(bundle, frames, Path(folder) / "graphs")
        peak, operations = int8_convolutions(threads)
        runs = {**ways(bundle, read["clips"][0], files, threads), "peak": peak}
        with FlopCounterMode(display=False) as counter:
            runs["torch fp32"]()
        wanted = runs["torch fp32"]()
        apart = {name: float(np.abs(run() - wanted).max()) for name, run in runs.items() if name != "peak"}
        measured = list(rounds_of(runs, rounds))
        kernels = time_by_kernel(files["int8"]["encoder"], read["clips"][0], threads)
    facts = {"threads": threads, "rounds": rounds, "calibration_frames": len(frames), "int8_time_by_kernel": kernels}
    facts |= figures(measured, counter.get_total_flops(), operations)
    table = Table("", "clips/s", "x torch", "x own fp32", "GF/s", "of int8 peak", "logits apart")
    for name, difference in apart.items():
        row = facts[name]
        row["max_logit_difference"] = round(difference, 4)
        shown = ("clips_per_s", "times_torch", "times_own_fp32", "gf_s", "of_int8_peak", "max_logit_difference")
        table.add_row(name, *(str(row[key]) for key in shown))
    console.print(table, f"int8 peak {facts['int8_peak_gf_s']} GF/s, {facts['gflop_a_clip']} GFLOP a clip")
    console.print("of an int8 encoder's time in OpenVINO:", kernels)
    if out:
        out.write_text(json.dumps({"machine": begun, **facts}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
