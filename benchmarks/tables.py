"""Prints the tables of README from the measured figures in benchmarks/results, or writes them into it.

python benchmarks/tables.py
python benchmarks/tables.py --write
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from harec_deploy.intervals import wilson

RESULTS = Path(__file__).parent / "results"
GPU_CHECK = RESULTS / "gpu_check.json"
DECODERS = ("PyAV sequential", "harec-deploy", "torchcodec approximate", "decord", "OpenCV grab/retrieve")

PRECISIONS = ("fp32", "bf16", "int8")
ENGINES = {
    "torch fp32": "PyTorch, fp32",
    "torch bf16": "PyTorch, autocast to bf16",
    "onnx fp32": "ONNX Runtime, fp32",
    "onnx int8": "ONNX Runtime, int8",
    "openvino fp32": "OpenVINO, fp32",
    "openvino bf16": "OpenVINO, bf16",
    "openvino int8": "OpenVINO, int8",
}


def decode_table() -> str:
    """Return milliseconds a video by decoder, with the right frames where not all 16 were."""
    rows = ["| 16 uniform frames to 224x224, ms a video | " + " | ".join(DECODERS) + " |", "|---" * 6 + "|"]
    for video in json.loads((RESULTS / "decode.json").read_text())["results"]:
        cells = [decode_cell(video["decoders"].get(name, {})) for name in DECODERS]
        rows.append(f"| {Path(video['video']).stem.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(rows)


def decode_cell(figures: dict[str, float]) -> str:
    if "median_ms" not in figures:
        return "-"
    wrong = "" if figures["right"] == 16 else f", {figures['right']} of 16 right"
    return f"{figures['median_ms']:.0f} ({figures['ratio']:.2f}{wrong})"


def architectures_table() -> str:
    """Return the accuracy of architectures with sequences held out, by whole clips and six views, and at random."""
    facts = json.loads((RESULTS / "architectures.json").read_text())["summary"]
    at_random = {own["model"]: own for own in facts if own["split"] == "random"}
    heads = "sequences held out | 95 % | six views of a clip | split at random | 95 % | labels changed by export"
    rows = [f"| ten folds of 120 clips | {heads} |", "|---" * 7 + "|"]
    for own in (each for each in facts if each["split"] == "sequences"):
        loose = at_random.get(own["model"])
        cells = [*_with_interval(own["whole"]), _over_seeds(own["views"])]
        cells += _with_interval(loose["whole"]) if loose else ["-", "-"]
        cells += [f"{own['labels_changed_by_export']} of 120"]
        rows.append(f"| {own['model']} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _with_interval(figures: dict[str, Any]) -> list[str]:
    low, high = figures["interval"]
    return [_over_seeds(figures), f"{low:.2f} to {high:.2f}"]


def _over_seeds(figures: dict[str, Any]) -> str:
    spread = "" if figures["stdev"] is None else f" ± {figures['stdev']:.3f}"
    seeds = len(figures["by_seed"])
    return f"{figures['mean']:.3f}{spread}" + ("" if seeds == 3 else f" ({seeds} seed{'s' if seeds > 1 else ''})")


def features_table() -> str:
    """Return the seconds of an epoch from stored features and from video."""
    facts = json.loads((RESULTS / "features.json").read_text())
    told = f"an epoch of {facts['clips']} clips, s"
    rows = [f"| {told} | from stored features | from video | times faster, at least |", "|---|---|---|---|"]
    features_s, video_s = facts["epoch_s"]["features"], facts["epoch_s"]["video"]
    cells = f"{features_s:.2f} | {video_s:.1f} | {facts['times_faster']:.0f}, {facts['times_faster_least']:.0f}"
    rows.append(f"| ResNet-50, frozen, + LSTM | {cells} |")
    return "\n".join(rows)


def leak_table() -> str:
    """Return what each split promises, and what its models are worth on people never seen."""
    facts = json.loads((RESULTS / "leak.json").read_text())
    seeds = len(facts["random"]["runs"])
    rows = [f"| accuracy, mean of {seeds} seeds | its own test videos | people never seen |", "|---|---|---|"]
    for name, told in (("random", "`--split-by random`"), ("group", "`--split-by group`")):
        cells = []
        for side in (facts[name]["test"], facts[name]["new_people"]):
            low, high = side["95%"]
            cells.append(f"{side['mean']:.3f} ({low:.2f} to {high:.2f})")
        rows.append(f"| {told} | {' | '.join(cells)} |")
    return "\n".join(rows)


def end_to_end_table() -> str:
    """Return videos a second from file to label, and how many times the notebook's loop that is."""
    facts = json.loads((RESULTS / "end_to_end.json").read_text())
    speeds = facts["videos_per_s"]
    rows = ["| from file to label | videos/s | times the notebook | share of the bound |", "|---|---|---|---|"]
    loops = ("notebook", "notebook channels last")
    rows += [f"| {name} | {speeds[name]:.2f} | {speeds[name] / speeds['notebook']:.2f} | |" for name in loops]
    for precision in PRECISIONS:
        own = facts[precision]
        cells = f"{speeds[f'label {precision}']:.2f} | {own['times_notebook']:.2f} | {own['of_bound']:.2f}"
        rows.append(f"| `harec-deploy label --precision {precision}` | {cells} |")
    rows.append(f"| decode alone | {speeds['decode']:.1f} | | |")
    rows += [f"| engine alone, {way} | {speeds[f'engine {way}']:.2f} | | |" for way in PRECISIONS]
    return "\n".join(rows)


def engine_table() -> str:
    """Return clips a second by engine and precision, and the share of the int8 peak that each reaches."""
    facts = json.loads((RESULTS / "engine.json").read_text())
    told = f"{facts['threads']} cores, {facts['gflop_a_clip']:.0f} GFLOP a clip"
    heads = "clips/s | times PyTorch eager fp32 | times its own fp32 | GFLOP/s | share of the int8 peak"
    rows = [f"| {told} | {heads} |", "|---" * 6 + "|"]
    for name, told in ENGINES.items():
        own = facts[name]
        cells = f"{own['times_torch']:.2f} | {own['times_own_fp32']:.2f} | {own['gf_s']} | {own['of_int8_peak']:.2f}"
        rows.append(f"| {told} | {own['clips_per_s']:.2f} | {cells} |")
    rows.append(f"| int8 convolutions of the fastest size: the peak | | | | {facts['int8_peak_gf_s']} | 1 |")
    share = facts["int8_time_by_kernel"]
    small = sum(value for kernel, value in share.items() if "_1x1_" in kernel)
    large = sum(value for kernel, value in share.items() if "Convolution" in kernel) - small
    told = (
        f"{small:.0%} goes into convolutions of 1x1, {large:.0%} into the others, {1 - small - large:.0%} into all else"
    )
    return "\n".join([*rows, "", f"Of the time of int8 in OpenVINO {told}."])


def int8_gates_table() -> str:
    """Return what the proof of int8 measured on trained models, the worst of the runners where they differ."""
    heads = "held-out clips | labels kept (95 %) | accuracy, PyTorch's | largest change of a probability | in float"
    rows = [f"| trained model, on | {heads} |", "|---" * 6 + "|"]
    for own in json.loads((RESULTS / "int8_gates.json").read_text())["rows"]:
        told = f"{own['model']}, {own['data']}"
        if "refused" in own:
            why = own["refused"].partition(": ")[2].partition("; needed")[0].replace("|", "\\|")
            rows.append(f"| {told} | refused by the gate: {why} | | | | |")
            continue
        worst = min(own["proofs"], key=lambda proof: (proof["top1_agreement"], proof["accuracy"]))
        low, high = wilson(worst["top1_agreement"] * worst["clips"], worst["clips"])
        cells = [f"{worst['clips']}", f"{worst['top1_agreement']:.3f} ({low:.2f} to {high:.2f})"]
        cells += [f"{worst['accuracy']:.3f}, {worst['reference_accuracy']:.3f}"]
        cells += [f"{max(proof['max_abs_dp'] for proof in own['proofs']):.3f}"]
        rows.append(f"| {told} | {' | '.join(cells)} | {len(own['kept_float'])} of {own['layers']} layers |")
    return "\n".join(rows)


def int8_biases_table() -> str:
    """Return how far features are off and which labels stay with every layer in int8, by calibration and biases."""
    names = {"minmax": "min-max", "percentile": "percentile", "entropy": "entropy"}
    heads = [f"{words}, {how}" for words in names.values() for how in ("biases as they were", "corrected")]
    rows = [f"| every layer in int8: features' error, labels kept | {' | '.join(heads)} |", "|---" * 7 + "|"]
    for own in json.loads((RESULTS / "int8_gates.json").read_text())["rows"]:
        told = {(row["method"], row["biases_corrected"]): row for row in own["every_layer"]}
        each = [told[name, corrected] for name in names for corrected in (False, True)]
        cells = [f"{row['feature_error']:.3f}, {row['labels_kept']} of {row['clips']}" for row in each]
        rows.append(f"| {own['model']}, {own['data']} | {' | '.join(cells)} |")
    return "\n".join(rows)


def trials_table() -> str:
    """Return what was tried of the engine in int8, as times of what the runner takes."""
    facts = json.loads((RESULTS / "engine_trials.json").read_text())
    rows = ["| int8 encoder of ResNet-50, 16 frames | ms | times as long (lowest to highest round) |", "|---" * 3 + "|"]
    for runtime, words in (("openvino", "OpenVINO"), ("onnx", "ONNX Runtime")):
        for name, own in facts[runtime].items():
            times = own["times_shipped"]
            spread = f"{times['median']:.2f} ({times['lowest']:.2f} to {times['highest']:.2f})"
            told = name if name.startswith(words) else f"{words}, {name}"
            rows.append(f"| {told} | {own['ms']['median']:.0f} | {spread} |")
    layers = facts["openvino_layers"]
    rows.append(
        f"\nOf the file's {layers['nodes']} nodes OpenVINO runs {layers['run']}, inputs and constants with them; "
        f"{layers['reorders']} change a layout."
    )
    return "\n".join(rows)


def jitter_table() -> str:
    """Return how right the frozen model is on inner folds by the way in which training clips are shifted in time."""
    facts = json.loads((RESULTS / "jitter.json").read_text())
    words = {"clip": "a clip's frames alike", "frame": "each frame by itself", "none": "not at all"}
    count = len(facts["correct"])
    rows = [f"| training clips are shifted in time | accuracy | of {count}: better, worse than each by itself |"]
    rows.append("|---" * 3 + "|")
    for name, told in words.items():
        own = facts[name]
        beside = "-" if name == "frame" else f"{own['better']}, {own['worse']}"
        rows.append(f"| {told} (`--jitter {name}`) | {own['mean']:.3f} | {beside} |")
    return "\n".join(rows)


def reuse_table() -> str:
    """Return what reused features spare and cost, by footage and threshold."""
    facts = json.loads((RESULTS / "reuse.json").read_text())
    kinds = {"fixed": "fixed camera", "moving": "moving camera", "ut_interaction": "UT-Interaction, whole clips"}
    rows = ["| footage, threshold | frames reused | times faster | labels kept | gate |", "|---" * 5 + "|"]
    for kind, told in kinds.items():
        for own in facts["proofs"][kind]:
            low, high = own["top1_interval"]
            kept = f"{own['top1_agreement']:.3f} of {own['windows']} ({low:.2f} to {high:.2f})"
            gate = "passed" if own["passed"] else "failed" if own["share_reused"] else "nothing to spare"
            cells = [f"{own['share_reused']:.2f}", f"{own['times_faster']:.2f}", kept, gate]
            rows.append(f"| {told}, {own['threshold']:g} | {' | '.join(cells)} |")
    return "\n".join(rows)


def normalisation_table() -> str:
    """Return what encoders would gain at most if their pixels needed no normalisation, and what folding would break."""
    facts = json.loads((RESULTS / "normalisation.json").read_text())
    names = {"lrcn": "LRCN", "mobilenet_v2_lstm": "MobileNetV2", "resnet50_lstm": "ResNet-50"}
    ways = {"openvino fp32": "OpenVINO, fp32", "openvino bf16": "OpenVINO, bf16", "onnx fp32": "ONNX Runtime, fp32"}
    rows = [f"| {' | '.join(['time with, to without', *ways.values(), 'error of a folded shift'])} |", "|---" * 5 + "|"]
    for name, told in names.items():
        own = facts[name]
        error = own.get("error_of_shift_in_bias")
        cells = [f"{own[way]['ratio']:.3f}" for way in ways] + ["-" if error is None else f"{error:.0%}"]
        rows.append(f"| {told} | {' | '.join(cells)} |")
    return "\n".join(rows)


def windows_table() -> str:
    """Return the seconds that a minute of video takes with shared features and without."""
    facts = json.loads((RESULTS / "windows.json").read_text())
    told = f"{facts['windows']} windows over {facts['frames']} frames, s"
    rows = [f"| {told} | shared features | encoder anew for each | times faster |", "|---|---|---|---|"]
    for way in ("fp32", "bf16"):
        own = facts[way]
        rows.append(f"| {way} | {own['shared']:.1f} | {own['anew']:.1f} | {own['times_faster']:.2f} |")
    return "\n".join(rows)


def folders_table() -> str:
    """Return what a run holds as the folder grows."""
    heads = "videos | ms a video | memory, MiB | its largest decoding child, MiB | descriptors | children"
    held = ("rss_mib", "child_rss_mib", "descriptors", "children")
    rows = [f"| {heads} |", "|---" * 6 + "|"]
    for own in json.loads((RESULTS / "soak.json").read_text())["folders"]:
        cells = [f"{own['videos']:,}", f"{own['ms_a_video']:.1f}"]
        cells += [" to ".join(f"{value:g}" for value in own[name]) for name in held]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def lengths_table() -> str:
    """Return what a run holds as one video grows."""
    rows = ["| one video of | times real time | memory, MiB | its decoding child, MiB |", "|---|---|---|---|"]
    for own in json.loads((RESULTS / "soak.json").read_text())["lengths"]:
        memory = " to ".join(f"{value:g}" for value in own["rss_mib"])
        cells = [f"{own['duration_s'] / 60:.0f} min", f"{own['times_real_time']}", memory, f"{own['child_rss_mib']:g}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def gpu_table() -> str:
    """Return what gpu_check measured."""
    tables = import_module("benchmarks.gpu_tables" if __package__ else "gpu_tables")  # as a module, or as a script
    return str(tables.markdown(json.loads(GPU_CHECK.read_text()))).strip()


TABLES = {
    "decode": decode_table,
    "architectures": architectures_table,
    "features": features_table,
    "leak": leak_table,
    "end_to_end": end_to_end_table,
    "engine": engine_table,
    "trials": trials_table,
    "int8_gates": int8_gates_table,
    "int8_biases": int8_biases_table,
    "reuse": reuse_table,
    "normalisation": normalisation_table,
    "windows": windows_table,
    "folders": folders_table,
    "lengths": lengths_table,
    "jitter": jitter_table,
}
if GPU_CHECK.exists():  # there is nothing to show before it ran on a GPU
    TABLES["gpu"] = gpu_table


def placed(text: str) -> str:
    """Return README's ``text`` with every table between its marks made anew."""
    for name, table in TABLES.items():
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        assert start, f"README has no place for {name}"
        assert end, f"README's place for {name} has no end"
        text = "".join([before, start, table(), "\n", end, after])
    return text


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        readme = RESULTS.parents[1] / "README.md"
        readme.write_text(placed(readme.read_text()))
    else:
        for name, table in TABLES.items():
            print(f"<!-- {name} -->", table(), f"<!-- /{name} -->", sep="\n", end="\n\n")
