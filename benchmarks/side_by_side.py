"""The peers side by side: labels compared first, then speed, memory and start-up, in interleaved rounds.

    make bench                    # everything, with its own environment; or, of what is installed:
    PYTHONPATH=. python benchmarks/side_by_side.py --json benchmarks/results/peers.json

Each of benchmarks/peers is a program as a user of that library would write it. All get the same ResNet-50 + LSTM and
the same clips as end_to_end.py, and are started anew for each round; everything is measured from outside. The
reference is PyTorch in fp32 on the frames of harec-deploy's decoder: every program's labels are held against it before
the first round and in each round. What was measured is written after each program, so a run that is cut is not lost.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from decode import VIDEOS_FOLDER, machine
from end_to_end import make_bundle, make_clips
from rich.console import Console

from benchmarks.measured import compare
from benchmarks.roster import ATTEMPTS, PEERS, PROGRAMS, Peer, environment
from benchmarks.watching import Watched, watch
from harec_deploy.bundle import load
from harec_deploy.export.verify import read_clips, reference_logits
from harec_deploy.files import atomic_write
from harec_deploy.machine import versions
from harec_deploy.models import from_bundle
from harec_deploy.recognizer import softmax

CLIPS = 32  # that the head knows, and that int8 is calibrated and proved on
CHECKED = 4  # before the first round
MMACTION = Path(sys.executable).parents[1] / "mmaction2"  # where the Makefile tries to put it


class Bench:
    """What is compared, and all that was measured of it."""

    def __init__(self, bundle: Path, videos: list[str], out: Path, console: Console) -> None:
        self.bundle, self.videos, self.out, self.console = bundle, videos, out, console
        loaded = load(bundle)
        self.spec = loaded.spec
        clips = read_clips(self.spec, videos, len(videos))
        self.wanted = softmax(reference_logits(from_bundle(loaded), clips))
        self.names = [Path(video).name for video in videos]
        self.facts: dict[str, Any] = {"machine": about_machine(), "videos": self.names}
        self.facts |= {"frames": self.spec.sampling.frames, "peers": {}, "not_run": {}}

    def save(self) -> None:
        with atomic_write(self.out) as file:
            file.write(json.dumps(self.facts, indent=1).encode() + b"\n")

    def run(self, peer: Peer, count: int) -> tuple[Watched, dict[str, Any]]:
        """Label the first ``count`` videos with a program; return what was seen and how right it was."""
        with tempfile.TemporaryDirectory() as folder:
            journal = Path(folder) / "labels.jsonl"
            command = peer.command(self.bundle, self.videos[:count], journal)
            seen = watch(command, env=environment(), journal=journal if peer.own else None)
        rows = [row for _, row in seen.rows]
        return seen, compare(rows, self.names[:count], self.spec.classes, self.wanted[:count])

    def check(self, peer: Peer) -> bool:
        """Compare labels and frames with the reference's, before anything is timed; False where it does not run."""
        seen, outputs = self.run(peer, min(CHECKED, len(self.videos)))
        if seen.status or not seen.rows:
            self.facts["not_run"][peer.name] = last_line(seen.said) or f"exit status {seen.status}"
            self.console.print(f"{peer.name}: does not run: {self.facts['not_run'][peer.name]}")
            return False
        frames = self.frames_right(peer)
        self.facts["peers"][peer.name] = {
            "about": peer.about,
            "precision": peer.precision,
            "program": peer.program,
            "options": list(peer.options),
            "lines": peer.lines,
            "frames": frames,
            "check": outputs,
            "rounds": [],
        }
        labels = "the reference's labels" if outputs["right"] else f"OTHER LABELS: {outputs}"
        told = f"{labels}, |dp| {outputs['max_abs_dp']}, frames {frames['right']} of {frames['of']}"
        self.console.print(f"{peer.name}: {told}")
        return True

    def frames_right(self, peer: Peer) -> dict[str, int]:
        arguments = [peer.program or "-", str(self.bundle), *self.videos[:CHECKED]]
        command = [sys.executable, str(PROGRAMS.parent / "peer_frames.py"), *arguments]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def time(self, peer: Peer, number: int) -> None:
        """Measure one round of a program."""
        load_before = round(os.getloadavg()[0], 2)
        seen, outputs = self.run(peer, len(self.videos))
        row = {"round": number, "load": load_before, **figures(seen, self.spec.sampling.frames), "outputs": outputs}
        if seen.status:
            row["failed"] = last_line(seen.said)
        self.facts["peers"][peer.name]["rounds"].append(row)
        self.console.print(f"  {peer.name}: {row.get('videos_per_s', 0):.2f} videos/s, {row['whole_s']:.1f} s in all")


def figures(seen: Watched, frames: int) -> dict[str, Any]:
    """Return what is told of a run; ``videos_per_s`` counts from the model being loaded to the last label."""
    rows, begun = seen.rows, [at for at, line in seen.lines if "label" not in line]
    facts = {"whole_s": round(seen.whole_s, 3), "cpu_s": round(seen.cpu_s, 3), "peak_mib": round(seen.peak_mib, 1)}
    if rows and begun:
        steady = len(rows) / (rows[-1][0] - begun[0])
        facts |= {"ready_s": round(begun[0], 3), "first_label_s": round(rows[0][0], 3)}
        facts |= {"videos_per_s": round(steady, 4), "frames_per_s": round(steady * frames, 2)}
        facts |= {"whole_videos_per_s": round(len(rows) / seen.whole_s, 4)}
        facts |= {"cpu_s_per_video": round(seen.cpu_s / len(rows), 4)}
    return facts


def last_line(said: str) -> str:
    """Return the last line of what a program complained."""
    return (said.strip().splitlines() or [""])[-1][:300]


def about_machine() -> dict[str, Any]:
    about = machine()
    about["versions"] |= versions(("ray", "pytorchvideo", "mmaction2"))
    return about


def try_imports() -> dict[str, str]:
    """Return why libraries cannot be compared here, those of them that cannot."""
    reasons = {}
    paths = os.pathsep.join((str(PROGRAMS.parents[1]), str(MMACTION)))
    for name, code in ATTEMPTS.items():
        command = [sys.executable, "-W", "ignore", "-c", code]
        done = subprocess.run(command, env=environment(PYTHONPATH=paths), capture_output=True, text=True, check=False)
        if done.returncode:
            reasons[name] = f"`{code}`: {last_line(done.stderr)}"
    return reasons


def prepare(folder: Path, count: int, console: Console) -> tuple[Path, list[str]]:
    """Make clips and model; return the bundle and the clips to label."""
    clips = make_clips(folder / "peers_clips", max(CLIPS, count), console)
    bundle = make_bundle(folder / "peers_resnet50_lstm", clips)
    return bundle, [str(path) for path in sorted(clips.glob("*.avi"))[:count]]


def main(
    videos: Annotated[int, typer.Option(help="clips that each program labels in a round")] = 12,
    rounds: Annotated[int, typer.Option(help="how often each program is run")] = 5,
    only: Annotated[str, typer.Option(help="names or parts of names, with commas between")] = "",
    folder: Annotated[Path, typer.Option(help="where the clips and the model are kept")] = VIDEOS_FOLDER,
    out: Annotated[Path, typer.Option("--json", help="all figures")] = Path("benchmarks/results/peers.json"),
) -> None:
    console, start = Console(), time.monotonic()
    bundle, clips = prepare(folder, videos, console)
    bench = Bench(bundle, clips, out, console)
    words = [word.strip().lower() for word in only.split(",") if word.strip()]
    peers = [peer for peer in PEERS if not words or any(word in peer.name.lower() for word in words)]
    bench.facts["not_run"] |= try_imports()
    running = [peer for peer in peers if bench.check(peer)]
    for number in range(rounds):
        console.print(f"round {number + 1} of {rounds}, after {(time.monotonic() - start) / 60:.1f} minutes")
        for peer in running if number % 2 == 0 else reversed(running):  # so that a slow drift favours nobody
            bench.time(peer, number)
            bench.save()
    bench.facts["minutes"] = round((time.monotonic() - start) / 60, 1)
    bench.save()


if __name__ == "__main__":
    typer.run(main)
