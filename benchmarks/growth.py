"""How the cost of a video grows: with the classes, with the frames of a clip, and with the length of a video.

    PYTHONPATH=. python benchmarks/growth.py --json benchmarks/results/growth.json

`harec-deploy label` in fp32 under OpenVINO. Classes and lengths with lrcn, a small model, so that growth is not hidden
behind the encoder; frames with ResNet-50 + LSTM(512), which hides nothing else. Lengths are looked at in windows of
4 s, one every second. Rounds are interleaved. Folders of 100 to 20,000 videos, and videos of up to three hours, are
soak.py's: its results are shown beside these. A bundle has two classes or more: one alone is refused.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from decode import VIDEOS_FOLDER, machine
from end_to_end import make_clips
from recognisers import write_learnt
from rich.console import Console

from benchmarks.measured import middle
from benchmarks.roster import Peer, environment
from benchmarks.watching import watch
from harec_deploy.export import export
from harec_deploy.files import atomic_write
from tests.media import make_video, repeat

OWN = Peer("harec-deploy fp32", "`harec-deploy label`")
CLASSES, FRAMES, LENGTHS_S = "2,10,50,101", "8,16,32,64", "5,60,600"
Setting = Callable[[], dict[str, Any]]


def write(folder: Path, clips: Path, architecture: str, hidden: int, classes: int, frames: int | None) -> Path:
    """Write and export a model that has learnt nothing: nobody looks at its labels."""
    write_learnt(folder, None, architecture=architecture, hidden=hidden, classes=classes, frames=frames)
    export(folder, [str(clips)], max_clips=2)
    return folder


def label(bundle: Path, videos: list[str], *options: str) -> dict[str, Any]:
    """Label videos in a run of its own; return milliseconds a video once the model is loaded, and peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "labels.jsonl"
        command = [*OWN.command(bundle, videos, journal), *options]
        seen = watch(command, env=environment(), journal=journal)
    if seen.status:
        raise SystemExit(f"{' '.join(command)} exited with {seen.status}: {seen.said}")
    begun_s = next(at for at, line in seen.lines if "label" not in line)
    ended_s = seen.rows[-1][0]
    return {"ms": 1e3 * (ended_s - begun_s) / len(videos), "peak_mib": seen.peak_mib}


def settings(root: Path, clips: Path, videos: int, asked: dict[str, list[int]]) -> dict[str, dict[int, Setting]]:
    """Return what is measured: {kind: {value: its run}}."""
    paths = [str(path) for path in sorted(clips.glob("*.avi"))]
    found: dict[str, dict[int, Setting]] = {"classes": {}, "frames": {}, "lengths_s": {}}
    for count in asked["classes"]:
        bundle = write(root / f"classes{count}", clips, "lrcn", 64, count, None)
        found["classes"][count] = lambda b=bundle: label(b, paths[:videos])  # type: ignore[misc]
    for frames in asked["frames"]:
        bundle = write(root / f"frames{frames}", clips, "resnet50_lstm", 512, 101, frames)
        found["frames"][frames] = lambda b=bundle: label(b, paths[:4])  # type: ignore[misc]
    if not asked["lengths_s"]:
        return found
    small = write(root / "small", clips, "lrcn", 64, 10, None)
    second = make_video(root / "source.mp4", frames=125, width=320, height=240, gop=250)
    how = ("--window", "4s", "--stride", "1s")
    for length_s in asked["lengths_s"]:
        video = repeat(second, root / f"seconds{length_s}.mp4", length_s // 5)
        found["lengths_s"][length_s] = lambda v=video: label(small, [str(v)], *how)  # type: ignore[misc]
    return found


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return median, lowest and highest of what was measured of one setting."""
    return {
        "ms_a_video": {name: round(value, 2) for name, value in middle([row["ms"] for row in rows]).items()},
        "peak_mib": round(max(row["peak_mib"] for row in rows), 1),
        "every_round_ms": [round(row["ms"], 2) for row in rows],
    }


def main(
    rounds: Annotated[int, typer.Option(help="how often everything is measured")] = 3,
    videos: Annotated[int, typer.Option(help="clips in each run of a number of classes")] = 32,
    classes: Annotated[str, typer.Option(help="numbers of classes; none to leave them out")] = CLASSES,
    frames: Annotated[str, typer.Option(help="frames of a clip")] = FRAMES,
    lengths: Annotated[str, typer.Option(help="seconds of one video, multiples of 5")] = LENGTHS_S,
    folder: Annotated[Path, typer.Option(help="where the clips are kept")] = VIDEOS_FOLDER,
    out: Annotated[Path, typer.Option("--json", help="all figures")] = Path("benchmarks/results/growth.json"),
) -> None:
    console = Console()
    texts = {"classes": classes, "frames": frames, "lengths_s": lengths}
    asked = {name: [int(value) for value in text.split(",") if value.strip()] for name, text in texts.items()}
    clips = make_clips(folder / "peers_clips", videos, console)
    measured: dict[str, dict[int, list[dict[str, Any]]]] = {}
    facts: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as root:
        found = settings(Path(root), clips, videos, asked)
        for number in range(rounds):
            console.print(f"round {number + 1} of {rounds}")
            for kind, runs in found.items():
                for value, run in runs.items():
                    measured.setdefault(kind, {}).setdefault(value, []).append(run())
                    console.print(f"  {kind} {value}: {measured[kind][value][-1]}")
            facts["rounds"] = number + 1
            for kind, rows in measured.items():
                facts[kind] = [{"value": value, **figures(each)} for value, each in rows.items()]
            with atomic_write(out) as file:
                file.write(json.dumps(facts, indent=1).encode() + b"\n")


if __name__ == "__main__":
    typer.run(main)
