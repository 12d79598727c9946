"""How the cost of a video grows, of harec-deploy and of its peers: with videos, length, classes and frames of a clip.

    PYTHONPATH=. python benchmarks/growth.py --json benchmarks/results/growth.json

All in fp32, harec-deploy in OpenVINO. lrcn, a small model, where growth would hide behind the encoder: folders of small
videos (names that are links to ten of them), one clip of a whole video, classes. ResNet-50 + LSTM(512) for the frames
of a clip, which hide nothing else. Windows of 4 s, one every second, are harec-deploy's alone: no peer has them. Rounds
are interleaved; what takes minutes is in the first round only. soak.py looks at what a run of harec-deploy holds
meanwhile. A bundle has two classes or more: one alone is refused.
"""

import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from decode import VIDEOS_FOLDER, machine
from end_to_end import make_clips
from recognisers import write_learnt
from rich.console import Console

from benchmarks.measured import middle
from benchmarks.roster import PEERS, Peer, environment
from benchmarks.watching import watch
from harec_deploy.export import export
from harec_deploy.files import atomic_write
from tests.media import make_video, repeat

NAMES = (
    "harec-deploy fp32",
    "notebook, OpenCV",
    "torchcodec + torch",
    "DataLoader",
    "OpenVINO demo",
    "Ray Data",
    "PyTorchVideo",
)
VALUES = {
    "videos": "100,1000,10000",
    "lengths_s": "5,60,600,10800",
    "classes": "2,10,50,101",
    "frames": "8,16,32,64",
    "windows_s": "5,60,600",
}
ONCE = {"videos": 10_000, "lengths_s": 10_800}  # and what is greater: in the first round only
MOST = {  # that a program is measured at
    ("PyTorchVideo", "lengths_s"): 60,  # it holds every frame of a video in memory: ten minutes do not fit
    **{(name, "videos"): 1_000 for name in ("notebook, OpenCV", "torchcodec + torch", "PyTorchVideo")},  # plain loops
}
Setting = Callable[[Peer], dict[str, Any]]


def write(folder: Path, clips: Path, architecture: str, hidden: int, classes: int, frames: int | None = None) -> Path:
    """Write and export a model that has learnt nothing: nobody looks at its labels."""
    write_learnt(folder, None, architecture=architecture, hidden=hidden, classes=classes, frames=frames)
    export(folder, [str(clips)], max_clips=2)
    return folder


def label(bundle: Path, videos: list[str], peer: Peer, *options: str) -> dict[str, Any]:
    """Label videos in a run of its own; return what a video takes once the model is loaded, the whole, peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "labels.jsonl"
        command = [*peer.command(bundle, videos, journal), *options]
        seen = watch(command, env=environment(), journal=journal if peer.own else None)
    if seen.status or len(seen.rows) != len(videos):
        raise SystemExit(
            f"{peer.name}, {len(seen.rows)} of {len(videos)} videos, ended with {seen.status}: {seen.said}"
        )
    begun_s = next(at for at, line in seen.lines if "label" not in line)
    ended_s = seen.rows[-1][0]
    return {"ms": 1e3 * (ended_s - begun_s) / len(videos), "whole_s": ended_s, "peak_mib": seen.peak_mib}


def settings(root: Path, clips: Path, videos: int, asked: dict[str, list[int]]) -> dict[str, dict[int, Setting]]:
    """Return what is measured: {kind: {value: its run}}."""
    paths = [str(path) for path in sorted(clips.glob("*.avi"))]
    found: dict[str, dict[int, Setting]] = {kind: {} for kind in asked}
    small = write(root / "small", clips, "lrcn", 64, 10)
    for count in asked["videos"]:
        found["videos"][count] = partial(label, small, small_videos(root, count))
    second = make_video(root / "source.mp4", frames=125, width=320, height=240, gop=250)
    for kind, how in (("lengths_s", ()), ("windows_s", ("--window", "4s", "--stride", "1s"))):
        for length_s in asked[kind]:
            video = repeat(second, root / f"{kind}{length_s}.mp4", length_s // 5)
            found[kind][length_s] = lambda peer, v=str(video), o=how: label(small, [v], peer, *o)  # type: ignore[misc]
    for count in asked["classes"]:
        found["classes"][count] = partial(label, write(root / f"{count}", clips, "lrcn", 64, count), paths[:videos])
    for frames in asked["frames"]:
        large = write(root / f"frames{frames}", clips, "resnet50_lstm", 512, 101, frames)
        found["frames"][frames] = partial(label, large, paths[:4])
    return found


def small_videos(root: Path, count: int) -> list[str]:
    """Make a folder of ``count`` small videos, and return their names."""
    sources = [make_video(root / f"source{n}.mp4", frames=50, seed=n) for n in range(10)]
    paths = [root / f"videos{count}" / f"{number:06d}.mp4" for number in range(count)]
    paths[0].parent.mkdir()
    for number, path in enumerate(paths):
        os.link(sources[number % len(sources)], path)
    return [str(path) for path in paths]


def fits(peer: Peer, kind: str, value: int, number: int) -> bool:
    """Tell whether a program is measured at a value in a round."""
    if kind == "windows_s" and not peer.own:
        return False
    if value > MOST.get((peer.name, kind), value):
        return False
    return number == 0 or value < ONCE.get(kind, value + 1)


def figures(value: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return median, lowest and highest of what was measured of one setting.

    whole_s: from the start of the program to its last label, its model's loading with it.
    """
    return {
        "value": value,
        "ms_a_video": {name: round(each, 2) for name, each in middle([row["ms"] for row in rows]).items()},
        "whole_s": {name: round(each, 2) for name, each in middle([row["whole_s"] for row in rows]).items()},
        "peak_mib": round(max(row["peak_mib"] for row in rows), 1),
        "every_round_ms": [round(row["ms"], 2) for row in rows],
    }


def main(
    rounds: Annotated[int, typer.Option(help="how often everything is measured")] = 3,
    only: Annotated[str, typer.Option(help="parts of the names of programs")] = "",
    kinds: Annotated[str, typer.Option(help="what grows; the others keep what the JSON has")] = ",".join(VALUES),
    clips_each: Annotated[int, typer.Option("--clips", help="clips in each run of a number of classes")] = 32,
    least: Annotated[bool, typer.Option("--least", help="the two least values of each kind only")] = False,
    folder: Annotated[Path, typer.Option(help="where the clips are kept")] = VIDEOS_FOLDER,
    out: Annotated[Path, typer.Option("--json", help="all figures")] = Path("benchmarks/results/growth.json"),
) -> None:
    console = Console()
    chosen = {
        kind: [int(value) for value in text.split(",")] if kind in kinds.split(",") else []
        for kind, text in VALUES.items()
    }
    asked = {kind: values[: 2 if least else None] for kind, values in chosen.items()}
    named = [peer for peer in PEERS if peer.name in NAMES]
    programs = [peer for peer in named if any(part in peer.name for part in only.split(","))]
    clips = make_clips(folder / "peers_clips", clips_each, console)
    measured: dict[str, dict[str, dict[int, list[dict[str, Any]]]]] = {}
    facts: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    facts |= {"machine": machine()}
    with tempfile.TemporaryDirectory(dir=folder) as root:
        found = settings(Path(root), clips, clips_each, asked)
        for number in range(rounds):
            console.print(f"round {number + 1} of {rounds}")
            runs = [(kind, value, run) for kind, values in found.items() for value, run in values.items()]
            for kind, value, run in runs:
                for peer in (peer for peer in programs if fits(peer, kind, value, number)):
                    row = run(peer)
                    measured.setdefault(kind, {}).setdefault(peer.name, {}).setdefault(value, []).append(row)
                    told = f"{row['ms']:.1f} ms, {row['whole_s']:.1f} s, {row['peak_mib']:.0f} MiB"
                    console.print(f"  {kind} {value:,}, {peer.name}: {told}")
                facts[kind] = {name: [figures(*each) for each in rows.items()] for name, rows in measured[kind].items()}
                with atomic_write(out) as file:
                    file.write(json.dumps(facts, indent=1).encode() + b"\n")


if __name__ == "__main__":
    typer.run(main)
