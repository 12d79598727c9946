"""Videos a second from file to label: `harec-deploy label` beside the loop of a notebook, and beside its own bound.

    pip install -e '.[export]' opencv-python-headless
    PYTHONPATH=. python benchmarks/end_to_end.py --json benchmarks/results/end_to_end.json

All take the same clips, made on the first run and kept in --videos: 320x240 Xvid AVI of 5 to 9 s, like UCF-101's.
All use the same ResNet-50 + LSTM(512), 16 frames of 224x224, 101 classes. The encoder's weights are random and the head
has learnt these very clips by heart, a class each, so labels are only good for being compared. The notebook's loop
takes one video after the other: OpenCV, resize by torchvision, PyTorch eager. Decode alone and engine alone give the
bound, since on a CPU both work on the same cores:

    bound = 1 / (1 / decode + 1 / engine)

Rounds are interleaved. With --profile the time of the run's own process is printed by function, instead of the figures.
"""

import cProfile
import json
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from decode import VIDEOS_FOLDER, machine, scene
from recognisers import Labels, notebook, write_learnt
from rich.console import Console
from rich.table import Table

from benchmarks.roster import PRECISIONS
from harec_deploy.discover import VideoFile, discover
from harec_deploy.export import export
from harec_deploy.export.verify import read_clips
from harec_deploy.label.engine import Engine, Stages
from harec_deploy.label.journal import read_rows
from harec_deploy.label.options import Options
from harec_deploy.label.run import label, make_plan
from harec_deploy.label.workers import Decoded, decode_ahead
from harec_deploy.loading import load
from harec_deploy.machine import cores
from harec_deploy.recognizer import Recognizer
from tests.media import Clip, make_packed_avi


def make_clips(folder: Path, count: int, console: Console) -> Path:
    """Encode the clips that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / f"clip_{number:03d}.avi"
        if not path.exists():
            console.print(f"encoding {path.name}")
            clip = Clip(codec="mpeg4", width=320, height=240, frames=125 + 25 * (number % 5), gop=250)
            unfinished = make_packed_avi(folder / "unfinished.avi", clip, scene(clip, number))
            unfinished.rename(path)
    return folder


def make_bundle(folder: Path, clips: Path) -> Path:
    """Write and export a ResNet-50 + LSTM with a random encoder and a head that tells these clips apart.

    Its int8 form is calibrated and proved on the same clips, so its proof says only that the labels here are kept.
    """
    if not (folder / "onnx-fp32").is_dir():
        write_learnt(folder, lambda spec: read_clips(spec, [str(clips)], limit=len(spec.classes)).pixels)
        export(folder, [str(clips)])
    if not (folder / "onnx-int8").is_dir():
        export(folder, [str(clips)], precision="int8")
    return folder


@dataclass
class Bench:
    """The ways to label the same videos, and what was measured of each: videos a second, a figure a round."""

    bundle: Path
    videos: list[VideoFile]
    speeds: dict[str, list[float]] = field(default_factory=dict)
    labels: dict[str, Labels] = field(default_factory=dict)

    def time(self, name: str, work: Callable[[], Labels], count: int | None = None) -> None:
        start = time.perf_counter()
        self.labels[name] = work()
        speed = (count or len(self.videos)) / (time.perf_counter() - start)
        self.speeds.setdefault(name, []).append(speed)

    def decode(self, recognizer: Recognizer) -> list[Decoded]:
        return list(decode_ahead(self.videos, make_plan(recognizer), cores()))

    def engine(self, recognizer: Recognizer, decoded: list[Decoded]) -> Labels:
        done = Engine(recognizer, Stages(cores())).label(decoded)
        return {Path(each.video.name).name: each.result.label or "" for each in done}

    def run(self, precision: str, out: Path) -> tuple[float, Labels]:
        """Return videos a second of a whole run, without loading the model, and its labels."""
        options = Options(out=out, runner="openvino", precision=precision, restart=True)
        summary = label(self.bundle, [str(video.path) for video in self.videos], options)
        rows = read_rows(out)
        return summary.videos_per_s, {Path(row.path).name: row.label or "" for row in rows.values()}


def measure(bench: Bench, rounds: int, slow: int, console: Console) -> None:
    """Time everything ``rounds`` times, in turn; the notebook's loop on the first ``slow`` videos only."""
    loops = {"notebook": notebook(bench.bundle), "notebook channels last": notebook(bench.bundle, channels_last=True)}
    ways = {way: load(bench.bundle, runner="openvino", precision=way) for way in PRECISIONS}
    decoded = bench.decode(ways["fp32"])
    for loop in loops.values():
        loop([bench.videos[0].path])
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            console.print(f"round {number + 1} of {rounds}")
            bench.time("decode", lambda: (bench.decode(ways["fp32"]), {})[1])
            for precision, recognizer in ways.items():
                bench.time(f"engine {precision}", lambda r=recognizer: bench.engine(r, decoded))  # type: ignore[misc]
                speed, labels = bench.run(precision, Path(folder) / f"{precision}.jsonl")
                bench.speeds.setdefault(f"label {precision}", []).append(speed)
                bench.labels[f"label {precision}"] = labels
            for name, loop in loops.items():
                bench.time(name, lambda loop=loop: loop([v.path for v in bench.videos[:slow]]), slow)  # type: ignore[misc]


def figures(bench: Bench) -> dict[str, Any]:
    """Return medians, ratios to the notebook round by round, and the share of the bound that a run reached."""
    speeds = {name: statistics.median(values) for name, values in bench.speeds.items()}
    facts: dict[str, Any] = {"videos": len(bench.videos), "rounds": len(bench.speeds["decode"])}
    facts["videos_per_s"] = {name: round(value, 3) for name, value in speeds.items()}
    facts["every_round"] = {name: [round(v, 3) for v in values] for name, values in bench.speeds.items()}
    reference = bench.labels["notebook"]
    for precision in PRECISIONS:
        own, engine = bench.speeds[f"label {precision}"], bench.speeds[f"engine {precision}"]
        bounds = [1 / (1 / d + 1 / e) for d, e in zip(bench.speeds["decode"], engine, strict=True)]
        labels = bench.labels[f"label {precision}"]
        facts[precision] = {
            "times_notebook": round(ratio(own, bench.speeds["notebook"]), 2),
            "times_notebook_channels_last": round(ratio(own, bench.speeds["notebook channels last"]), 2),
            "of_bound": round(ratio(own, bounds), 3),
            "same_label_as_notebook": f"{sum(labels[n] == reference[n] for n in reference)} of {len(reference)}",
        }
    return facts


def ratio(own: list[float], other: list[float]) -> float:
    return float(np.median(np.array(own) / np.array(other)))


def main(
    videos: Annotated[Path, typer.Option(help="where the clips and the model are kept")] = VIDEOS_FOLDER,
    count: Annotated[int, typer.Option(help="how many clips")] = 64,
    rounds: Annotated[int, typer.Option(help="how often everything is measured")] = 5,
    slow: Annotated[int, typer.Option(help="clips that the notebook's loop labels in a round")] = 8,
    out: Annotated[Path | None, typer.Option("--json", help="write all figures here")] = None,
    profile: Annotated[str, typer.Option(help="profile a run in this precision instead")] = "",
) -> None:
    console = Console()
    clips = make_clips(videos / "ucf_like", count, console)
    bench = Bench(make_bundle(videos / "resnet50_lstm", clips), discover([str(clips)]).videos[:count])
    if profile:
        with cProfile.Profile() as profiler, tempfile.TemporaryDirectory() as folder:
            bench.run(profile, Path(folder) / "run.jsonl")
        pstats.Stats(profiler).sort_stats("tottime").print_stats(15)
        return
    begun = machine()
    measure(bench, rounds, slow, console)
    facts = figures(bench)
    table = Table("", "videos/s, median", "all rounds")
    for name, value in facts["videos_per_s"].items():
        table.add_row(name, f"{value:.2f}", " ".join(f"{each:.2f}" for each in facts["every_round"][name]))
    console.print(table, {name: facts[name] for name in PRECISIONS})
    if out:
        out.write_text(json.dumps({"machine": begun, **facts}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
