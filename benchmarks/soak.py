"""What a run holds while it works: memory, descriptors, children and time a video, as folders and videos grow.

    pip install -e '.[train,export]'
    PYTHONPATH=. python benchmarks/soak.py --json benchmarks/results/soak.json

Folders of small videos (names that are links to ten of them), from 100 to 20,000, and videos from ten minutes to three
hours, looked at in windows of 4 s every second, are labelled by the command line with a small model. Its process and
its children are looked at ten times a second. About five minutes.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from decode import machine
from rich.console import Console

from harec_deploy.export import export
from tests.conftest import write_bundle
from tests.media import make_video, repeat
from tests.test_workers import children

LOOK_EVERY_S = 0.1


@dataclass
class Held:
    """What a process held each time that it was looked at."""

    rows: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    rss_mib: list[float] = field(default_factory=list)
    child_rss_mib: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    children: list[int] = field(default_factory=list)

    def look(self, pid: int, rows: int) -> None:
        try:
            own = children(pid)
            looked = (
                rss_mib(pid),
                max((rss_mib(child) for child in own), default=0.0),
                len(list(Path(f"/proc/{pid}/fd").iterdir())),
                len(own),
            )
        except (OSError, IndexError):  # it has just ended
            return
        self.rows.append(rows)
        self.seconds.append(time.perf_counter())
        for values, value in zip(
            (self.rss_mib, self.child_rss_mib, self.descriptors, self.children), looked, strict=True
        ):
            values.append(value)  # type: ignore[attr-defined]


def rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def watch(command: list[str], count_rows: Callable[[], int]) -> tuple[Held, float]:
    """Run a command and look at it until it ends; return what it held and the seconds that it took."""
    held, start = Held(), time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, "PYTHONPATH": str(Path.cwd())})
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(LOOK_EVERY_S):
                held.look(process.pid, count_rows())

        watcher = threading.Thread(target=look)
        watcher.start()
        status = process.wait()
        ended.set()
        watcher.join()
        said.seek(0)
        if status:
            raise SystemExit(f"{' '.join(command)} exited with {status}: {said.read().decode()}")
    return held, time.perf_counter() - start


def label_command(bundle: Path, source: Path, out: Path, *more: str) -> list[str]:
    command = [sys.executable, "-m", "harec_deploy", "label", str(source), "-b", str(bundle), "-o", str(out)]
    return [*command, "--runner", "openvino", "--precision", "fp32", "-q", *more]


def folder_run(bundle: Path, sources: list[Path], count: int, root: Path) -> dict[str, Any]:
    """Label a folder of ``count`` names."""
    folder, out = root / f"videos{count}", root / f"rows{count}.jsonl"
    folder.mkdir()
    for number in range(count):
        os.link(sources[number % len(sources)], folder / f"{number:06d}.mp4")
    held, _ = watch(label_command(bundle, folder, out), lambda: out.read_bytes().count(b"\n") if out.exists() else 0)
    facts = json.loads(out.with_suffix(".summary.json").read_text())
    assert facts["statuses"] == {"ok": count}
    steady = [at for at, rows in enumerate(held.rows) if rows > 50 and held.children[at]]  # neither beginning nor end
    half = steady[len(steady) // 2 :]
    return {
        "videos": count,
        "ms_a_video": round(1e3 / facts["videos_per_s"], 2),
        "rss_mib": [round(held.rss_mib[steady[0]], 1), round(max(held.rss_mib[at] for at in half), 1)],
        "child_rss_mib": [
            round(held.child_rss_mib[steady[0]], 1),
            round(max(held.child_rss_mib[at] for at in half), 1),
        ],
        "descriptors": [held.descriptors[steady[0]], max(held.descriptors[at] for at in half)],
        "children": [min(held.children[at] for at in steady), max(held.children[at] for at in steady)],
    }


def length_run(bundle: Path, video: Path, root: Path) -> dict[str, Any]:
    """Label one long video in windows."""
    out = root / f"{video.stem}.jsonl"
    held, seconds = watch(label_command(bundle, video, out, "--window", "4s", "--stride", "1s"), lambda: 0)
    (row,) = (json.loads(line) for line in out.read_text().splitlines()[1:])
    assert row["status"] == "ok"
    half = len(held.rss_mib) // 2
    return {
        "duration_s": round(row["duration_s"]),
        "megabytes": round(video.stat().st_size / 1e6, 1),
        "segments": len(row["segments"]),
        "seconds": round(seconds, 1),
        "times_real_time": round(row["duration_s"] / seconds),
        "rss_mib": [round(statistics.median(held.rss_mib[:half]), 1), round(max(held.rss_mib[half:]), 1)],
        "child_rss_mib": round(max(held.child_rss_mib), 1),
    }


def main(
    counts: Annotated[str, typer.Option(help="videos in a folder")] = "100,1000,5000,20000",
    minutes: Annotated[str, typer.Option(help="lengths of one video")] = "10,60,180",
    out: Annotated[Path | None, typer.Option("--json", help="write all figures here")] = None,
) -> None:
    console = Console()
    facts: dict[str, Any] = {"machine": machine(), "folders": [], "lengths": []}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sources = [make_video(root / f"source{n}.mp4", frames=50, seed=n) for n in range(10)]
        write_bundle(root / "bundle", videos=root)
        export(root / "bundle", [str(root)])
        for count in map(int, counts.split(",")):
            facts["folders"].append(folder_run(root / "bundle", sources, count, root))
            console.print(facts["folders"][-1])
        minute = make_video(root / "minute.mp4", frames=1500, width=320, height=240, gop=250)
        for length in map(int, minutes.split(",")):
            video = repeat(minute, root / f"minutes{length}.mp4", length)
            facts["lengths"].append(length_run(root / "bundle", video, root))
            console.print(facts["lengths"][-1])
    if out:
        out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
