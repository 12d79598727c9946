"""Overlapping windows of a long video: features shared between windows beside the encoder run anew for each.

    pip install -e '.[export]'
    PYTHONPATH=. python benchmarks/windows.py --json benchmarks/results/windows.json

A video of one minute, windows of 16 frames in 4 s, one every second (each frame lies in four), by the ResNet-50 + LSTM
of end_to_end.py. Both ways get the same decoded frames; decoding is timed beside them. Rounds are interleaved, and the
probabilities of both must be equal to the bit.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from decode import VIDEOS_FOLDER, machine, scene
from end_to_end import make_bundle, make_clips
from numpy.typing import NDArray
from rich.console import Console

from harec_deploy.decode import Frames
from harec_deploy.decode.pyav import PyAVDecoder
from harec_deploy.loading import load
from harec_deploy.recognizer import Recognizer
from harec_deploy.sampling import Windowing, shown_at
from harec_deploy.windows import Track
from tests.media import Clip, write_frames

HOW = Windowing(window_s=4.0, stride_s=1.0)


def decoded(recognizer: Recognizer, video: Path) -> list[Frames]:
    track = Track(recognizer.spec.sampling, HOW)
    return list(PyAVDecoder().stream(video, track.timestamps_s, recognizer.spec.size, recognizer.part_frames))


def shared(recognizer: Recognizer, parts: list[Frames]) -> NDArray[np.float32]:
    track = Track(recognizer.spec.sampling, HOW)
    for part in parts:
        for clips in track.add(part, recognizer.keep(part.pixels), recognizer.batch_clips):
            track.probabilities.append(recognizer.judge(clips))
    return np.concatenate(track.probabilities)


def anew(recognizer: Recognizer, parts: list[Frames]) -> NDArray[np.float32]:
    pixels, shown_s = np.concatenate([p.pixels for p in parts]), np.concatenate([p.shown_s for p in parts])
    times = recognizer.spec.sampling.timestamps_s(HOW.windows(parts[-1].info.duration_s))
    return np.concatenate([recognizer.predict(pixels[places][None]) for places in shown_at(shown_s, times)])


def main(
    videos: Annotated[Path, typer.Option(help="where the video and the model are kept")] = VIDEOS_FOLDER,
    rounds: Annotated[int, typer.Option(help="how often everything is measured")] = 3,
    out: Annotated[Path | None, typer.Option("--json", help="write all figures here")] = None,
) -> None:
    console = Console()
    bundle = make_bundle(videos / "resnet50_lstm", make_clips(videos / "ucf_like", 16, console))
    video = videos / "minute_240p.mp4"
    if not video.exists():
        clip = Clip(width=320, height=240, frames=1500, gop=250, b_frames=3)
        write_frames(videos / "unfinished.mp4", clip, scene(clip)).rename(video)
    facts: dict[str, Any] = {"machine": machine(), "rounds": rounds}
    for precision in ("fp32", "bf16"):
        recognizer = load(bundle, runner="openvino", precision=precision)
        seconds: dict[str, list[float]] = {"decode": [], "shared": [], "anew": []}
        for _ in range(rounds):
            start = time.perf_counter()
            parts = decoded(recognizer, video)
            seconds["decode"].append(time.perf_counter() - start)
            results = {}
            for name, way in (("shared", shared), ("anew", anew)):
                start = time.perf_counter()
                results[name] = way(recognizer, parts)
                seconds[name].append(time.perf_counter() - start)
            assert np.array_equal(results["shared"], results["anew"])
        ratios = np.array(seconds["anew"]) / np.array(seconds["shared"])
        facts["windows"], facts["frames"] = len(results["shared"]), sum(len(part.pixels) for part in parts)
        facts[precision] = {name: round(statistics.median(values), 3) for name, values in seconds.items()}
        facts[precision] |= {"times_faster": round(float(np.median(ratios)), 2), "equal_to_the_bit": True}
        console.print(precision, facts[precision])
    if out:
        out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
