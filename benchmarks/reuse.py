"""Features of earlier frames reused: labels kept, frames spared and time saved on fixed and on moving cameras.

    pip install -e '.[train,export]'
    PYTHONPATH=. python benchmarks/reuse.py CLIPS --encoder-weights mobilenet_v2.pth --json OUT.json

CLIPS is UT-Interaction as architectures.py takes it. A MobileNetV2 + LSTM is trained on it, and another one on clips
of a fixed camera that are rendered here: sensor noise, and for part of the time a small figure, who walks past, stands
still, or stands and waves, which is the hard one: a hand is all that tells the last two apart. Both are exported, and
then label with reuse and without:

    fixed             minutes of the second kind, in windows of 4 s, one every second; most of the time nobody is there
    moving            a panning camera, in the same windows
    ut_interaction    each clip as a whole

Before that the statistic itself is measured: between frames of the same empty scene only the noise differs, between
frames in which the figure moves both do. The table gives the levels of the one (99 of 100 are below) and of the other
(99 of 100 are above) by size of block; a block of the frame's size is the plain mean.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import typer
from av.video.frame import VideoFrame
from decode import VIDEOS_FOLDER, machine, scene
from numpy.typing import NDArray
from rich.console import Console

from harec_deploy.decode import Size
from harec_deploy.decode.pyav import PyAVDecoder
from harec_deploy.export.reuse import prove_reuse
from harec_deploy.loading import load
from harec_deploy.reuse import difference
from harec_deploy.sampling import Windowing
from tests.media import Clip, write_frames

HOW = Windowing(window_s=4.0, stride_s=1.0)
SIZE = Size(width=224, height=224)
MINUTE = 1500  # frames
BLOCKS = (8, 16, 32, 224)
ACTIONS = ("nobody", "stands", "walks", "waves")
FIXED = Clip(width=320, height=240, frames=100, gop=250, b_frames=3, options={"preset": "fast", "crf": "23"})
RECIPE = "--architecture mobilenet_v2_lstm --frames 8 --hidden 128 --epochs 40 --learning-rate 3e-3 --no-flip".split()
Figure = Callable[[int], str]  # frame -> action


def fixed_camera(frames: int, seed: int, action: Figure) -> Iterator[VideoFrame]:
    """Yield a scene that stands still, with sensor noise that is new in each frame, and with what somebody does."""
    random = np.random.default_rng(seed)
    height, width = FIXED.height, FIXED.width
    still = np.full((height, width), 110.0)
    for cell in (64, 16, 4):  # detail of several sizes
        shape = (-(-height // cell), -(-width // cell))
        still += random.normal(0, 10 + cell / 4, shape).repeat(cell, 0).repeat(cell, 1)[:height, :width]
    planes = np.full((height * 3 // 2, width), 128, np.uint8)
    pace, place = random.uniform(1.5, 3.0), random.uniform(0.2, 0.8)  # pixels a frame, share of the width
    for index in range(frames):
        luma = still + random.normal(0, 3, still.shape)
        _draw(luma, action(index), index, pace, place)
        planes[:height] = np.clip(luma, 16, 235)
        yield VideoFrame.from_ndarray(planes, format="yuv420p")


def _draw(luma: NDArray[np.float64], action: str, index: int, pace: float, place: float) -> None:
    """Draw a figure of a quarter of the height: body, head, and an arm that hangs or waves."""
    if action == "nobody":
        return
    height, width = luma.shape
    tall = height // 4
    top, left = height // 2, int((place * width + (pace * index if action == "walks" else 0)) % (width - tall))
    middle, thick = left + tall // 2, tall // 12
    luma[top + tall // 4 : top + tall, middle - 2 * thick : middle + 2 * thick] = 30
    luma[top : top + tall // 5, middle - thick : middle + thick] = 210
    raised = 0.5 + 0.5 * np.sin(index / 4) if action == "waves" else 0.0
    for step in range(tall // 3):  # the arm, from the shoulder outward
        y, x = top + tall // 3 + int(step * (1 - 2 * raised)), middle + 2 * thick + int(step * np.sin(raised * np.pi))
        luma[y : y + thick, x : x + thick] = 220


def spells(seed: int) -> Figure:
    """Return what is done when in a minute: most of the time nobody is there."""
    random = np.random.default_rng(seed)
    order = [*random.permutation(ACTIONS[1:]), *["nobody"] * 5]
    turns = random.permutation(order)
    return lambda index: str(turns[index * len(turns) // MINUTE % len(turns)])


def render(path: Path, pictures: Iterator[VideoFrame], frames: int) -> None:
    """Encode a video that is not there yet."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_frames(path.parent / "unfinished.mp4", replace(FIXED, frames=frames), pictures).rename(path)


def render_all(folder: Path, minutes: int) -> None:
    """Render clips to learn from, of 12 scenes, and minutes of scenes that are not among those."""
    for action in ACTIONS:
        for seed in range(48):
            name = f"v_{action}_g{seed % 12:02d}_c{seed // 12:02d}.mp4"
            pictures = fixed_camera(FIXED.frames, seed, lambda index, action=action: action)  # type: ignore[misc]
            render(folder / "learn" / action / name, pictures, FIXED.frames)
    for seed in range(100, 100 + minutes):
        render(folder / "fixed" / f"{seed}.mp4", fixed_camera(MINUTE, seed, spells(seed)), MINUTE)
        moving = replace(FIXED, frames=MINUTE)
        render(folder / "moving" / f"{seed}.mp4", scene(moving, seed), MINUTE)


def learn(clips: Path, folder: Path, weights: Path, regex: str) -> float:
    """Train and export a bundle if it is not there yet; return its accuracy on held-out groups."""
    manifest = folder.with_suffix(".csv")
    steps: list[list[str | Path]] = [
        ["training", "prepare", clips, "-o", manifest, "--group-regex", regex],
        ["training", "fit", manifest, "-o", folder, "--encoder-weights", weights, "--restart", *RECIPE],
        ["training", "evaluate", folder, "-o", folder / "evaluation"],
        ["harec_deploy", "export", folder / "bundle"],
    ]
    if not (folder / "bundle" / "onnx-fp32").is_dir():
        with folder.with_suffix(".log").open("a") as log:
            for step in steps:
                subprocess.run([sys.executable, "-m", *map(str, step)], stdout=log, stderr=log, check=True)
    return float(json.loads((folder / "evaluation" / "metrics.json").read_text())["accuracy"])


def margins(folder: Path) -> list[dict[str, float]]:
    """Return by size of block how many levels noise and movement are, and their ratio."""
    levels: dict[str, list[list[float]]] = {"nobody": [], "walks": [], "waves": []}
    for action, found in levels.items():
        for path in sorted((folder / "learn" / action).iterdir()):
            pixels = PyAVDecoder().frames(path, [0.5, 1.0, 1.5, 2.0, 2.5, 3.0], SIZE).pixels
            pairs = list(pairwise(pixels))
            found += [[difference(one, other, block) for block in BLOCKS] for one, other in pairs]
    noise = np.percentile(levels["nobody"], 99, axis=0)
    facts = []
    for place, block in enumerate(BLOCKS):
        own = {"block": block, "noise": float(noise[place])}
        for action in ("walks", "waves"):
            own[action] = float(np.percentile(levels[action], 1, axis=0)[place])
        facts.append({**own, "margin": min(own["walks"], own["waves"]) / own["noise"]})
    return facts


def measure(bundle: Path, clips: Path, threshold: float, windowing: Windowing | None, rounds: int) -> dict[str, Any]:
    """Return the proof, with the median and the range of the speed over the rounds."""
    recognizer = load(bundle, runner="openvino", precision="fp32")
    proofs = [prove_reuse(recognizer, [str(clips)], threshold, windowing=windowing) for _ in range(rounds)]
    speeds = [proof.times_faster for proof in proofs]
    facts = msgspec.to_builtins(proofs[0]) | {"times_faster": statistics.median(speeds)}
    return {**facts, "every_round": speeds, "flipped": len(facts["flipped"]), "flips": len(facts["flips"])}


def main(
    clips: Annotated[Path, typer.Argument(help="UT-Interaction, a folder a class")],
    encoder_weights: Annotated[Path, typer.Option(help="torchvision's MobileNetV2 weights")],
    videos: Annotated[Path, typer.Option(help="where videos and models are kept")] = VIDEOS_FOLDER / "reuse",
    minutes: Annotated[int, typer.Option(help="of each kind of camera")] = 6,
    thresholds: Annotated[str, typer.Option(help="levels, with commas between")] = "2,4,8,24",
    rounds: Annotated[int, typer.Option(help="how often everything is measured")] = 3,
    out: Annotated[Path | None, typer.Option("--json", help="write all figures here")] = None,
) -> None:
    console = Console()
    console.print("rendering what is not there yet")
    render_all(videos, minutes)
    console.print("training what is not there yet")
    accuracy = {
        "fixed": learn(videos / "learn", videos / "fixed_run", encoder_weights, r"_g(\d+)_"),
        "ut_interaction": learn(clips, videos / "ut_run", encoder_weights, r"set\d_\d+_(\d+)_"),
    }
    facts: dict[str, Any] = {"machine": machine(), "rounds": rounds, "accuracy": accuracy, "margins": margins(videos)}
    console.print(facts["accuracy"], facts["margins"])
    footage = {
        "fixed": (videos / "fixed_run", videos / "fixed", HOW),
        "moving": (videos / "fixed_run", videos / "moving", HOW),
        "ut_interaction": (videos / "ut_run", clips, None),
    }
    facts["proofs"] = {}
    for name, (run, folder, how) in footage.items():
        levels = [float(level) for level in thresholds.split(",")]
        facts["proofs"][name] = [measure(run / "bundle", folder, level, how, rounds) for level in levels]
        console.print(name, facts["proofs"][name])
    if out:
        out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
