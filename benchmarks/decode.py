"""Decode 16 frames of a video to 224x224: harec-deploy's decoder beside a plain PyAV loop and others.

    python3 -m venv /tmp/benchenv
    /tmp/benchenv/bin/pip install av msgspec rich typer torch torchcodec decord opencv-python-headless
    PYTHONPATH=. /tmp/benchenv/bin/python benchmarks/decode.py --json benchmarks/results/decode.json

The videos are encoded on the first run (a few minutes, most of it 1080p) and kept in --videos. Each decoder gets one
thread and the same 16 times, the middles of 16 equal parts. Rounds are interleaved: all decoders once, then all again,
so that a busy machine slows all of them. torchcodec needs FFmpeg's shared libraries, the pipe its program. What is
not installed is left out.

"right" counts the frames that are the ones shown at these times. Libraries scale and convert colours a little
differently, so a frame is told by the nearest match, of brightness alone, among all frames of a sequential decode.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import av
import numpy as np
import typer
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Column, Table

from benchmarks.decoders import DECODERS, SIDE, Decode, scaled
from harec_deploy.machine import facts, versions
from harec_deploy.sampling import ClipSampling, Window
from tests.media import Clip, make_packed_avi, write_frames

VIDEOS_FOLDER = Path(tempfile.gettempdir()) / "harec_videos"
FRAMES = 16
PEERS = ("torchcodec", "decord", "opencv-python-headless")

LEAST_ROUNDS, MOST_ROUNDS = 5, 25
X264 = {"preset": "fast", "crf": "23"}
VIDEOS = {
    "xvid_240p_packed.avi": Clip(codec="mpeg4", width=320, height=240, frames=175, gop=250),
    "xvid_240p.avi": Clip(codec="mpeg4", width=320, height=240, frames=175, gop=250),
    "h264_240p_gop250.mp4": Clip(width=320, height=240, frames=175, gop=250, b_frames=3, options=X264),
    "h264_720p_gop250.mp4": Clip(width=1280, height=720, frames=250, gop=250, b_frames=3, options=X264),
    "h264_720p_gop12.mp4": Clip(width=1280, height=720, frames=250, gop=12, b_frames=3, options=X264),
    "h264_1080p_60s_gop250.mp4": Clip(width=1920, height=1080, frames=1500, gop=250, b_frames=3, options=X264),
    "h264_1080p_60s_gop12.mp4": Clip(width=1920, height=1080, frames=1500, gop=12, b_frames=3, options=X264),
}


@dataclass
class Video:
    """A video, its frames in small, and the times and places of the 16 that are wanted."""

    path: Path
    small: NDArray[np.float32]
    times: NDArray[np.float64]
    places: NDArray[np.int64]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    right: dict[str, int] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


def scene(clip: Clip, seed: int = 1) -> Iterator[VideoFrame]:
    """Yield a panning texture with objects that cross it and grain that is new in each frame."""
    random = np.random.default_rng(seed)
    height, width = clip.height, clip.width
    wide = np.zeros((height, 2 * width), np.float32)
    for cell in (64, 16, 4):  # detail of several sizes, as in photographs
        shape = (-(-height // cell), -(-2 * width // cell))
        layer = random.normal(0, 14 + cell / 4, shape).repeat(cell, 0).repeat(cell, 1)
        wide += layer[:height, : 2 * width].astype(np.float32)
    grain = [random.normal(0, 2, (height, width)).astype(np.float32) for _ in range(7)]
    for index in range(clip.frames):
        luma = np.roll(wide, -index * width // 400, axis=1)[:, :width] + grain[index % 7] + 120
        for item in range(6):
            side = height // (4 + item)
            x, y = (
                (index * (3 + 2 * item) + 97 * item) % (width - side),
                (index * (1 + item) + 61 * item) % (height - side),
            )
            luma[y : y + side, x : x + side] = wide[:side, item * side : (item + 1) * side][::-1] + 90 + 20 * item
        planes = np.full((height * 3 // 2, width), 128, np.uint8)
        planes[:height] = np.clip(luma, 16, 235)
        planes[height:] = np.roll(planes[: height // 2], index, axis=1) // 4 + 96
        yield VideoFrame.from_ndarray(planes, format="yuv420p")


def make_videos(folder: Path, console: Console) -> list[Path]:
    """Encode the videos that are not in ``folder`` yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, clip in VIDEOS.items():
        path = folder / name
        if path.exists():
            continue
        console.print(f"encoding {name}")
        unfinished = folder / f"unfinished_{name}"
        if "packed" in name:
            make_packed_avi(unfinished, clip, scene(clip))
        else:
            write_frames(unfinished, clip, scene(clip), thread_count=os.cpu_count() or 1)
        unfinished.rename(path)
    return [folder / name for name in VIDEOS]


def thumbnails(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return frames (T, 224, 224, 3) as 28x28 brightness, without mean and contrast: float32 (T, 784)."""
    blocks = pixels.astype(np.float32).mean(axis=3).reshape(len(pixels), 28, SIDE // 28, 28, SIDE // 28)
    flat = blocks.mean(axis=(2, 4)).reshape(len(pixels), -1)
    centred = flat - flat.mean(axis=1, keepdims=True)
    normed: NDArray[np.float32] = centred / np.linalg.norm(centred, axis=1, keepdims=True).clip(1e-6)
    return normed


def look_at(path: Path) -> Video:
    """Decode all of a video once, to know its frames."""
    small, starts, turn = [], [], 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate or 25)
        for packet in container.demux(stream):
            turn = turn + 1 if packet.dts is None else packet.dts
            for frame in packet.decode():
                small.append(thumbnails(scaled(frame)[None])[0])
                # The clock of an AVI counts chunks, of which each brings out a frame; times of packed ones are wrong.
                late = turn - int(stream.codec_context.has_b_frames)
                starts.append(late / fps if path.suffix == ".avi" or frame.time is None else frame.time)
    shown_s = np.array(starts) - (0 if path.suffix == ".avi" else starts[0])
    times = ClipSampling(frames=FRAMES).timestamps_s(Window(0.0, float(shown_s[-1]) + 1 / fps))
    return Video(path, np.stack(small), times, np.searchsorted(shown_s, times + 1e-6, side="right") - 1)


def count_right(video: Video, pixels: NDArray[np.uint8]) -> int:
    """Return how many frames are, of all frames of the video, nearest to the one that is shown at their time."""
    if len(pixels) != FRAMES:
        return 0
    likeness = thumbnails(np.asarray(pixels)) @ video.small.T  # (16, frames)
    return int((likeness[np.arange(FRAMES), video.places] >= likeness.max(axis=1) - 1e-6).sum())


def measure(video: Video, decoders: dict[str, Decode], budget_s: float) -> None:
    """Check each decoder once, which also warms it up, then time them in interleaved rounds."""
    begin = time.perf_counter()
    for name, decode in decoders.items():
        try:
            video.right[name] = count_right(video, decode(video.path, video.times, video.places))
            video.seconds[name] = []
        except Exception as error:  # noqa: BLE001 - a peer that fails on a file is a result
            video.errors[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    for _ in range(min(MOST_ROUNDS, max(LEAST_ROUNDS, int(budget_s / (time.perf_counter() - begin))))):
        for name, seconds in video.seconds.items():
            start = time.perf_counter()
            decoders[name](video.path, video.times, video.places)
            seconds.append(time.perf_counter() - start)


def report(video: Video) -> dict[str, Any]:
    base = statistics.median(video.seconds["PyAV sequential"])
    figures: dict[str, Any] = {}
    for name, seconds in video.seconds.items():
        median = statistics.median(seconds)
        figures[name] = {"median_ms": round(median * 1e3, 2), "lowest_ms": round(min(seconds) * 1e3, 2)}
        figures[name] |= {"ratio": round(median / base, 3), "right": video.right[name], "rounds": len(seconds)}
    figures |= {name: {"error": text} for name, text in video.errors.items()}
    about = {"video": video.path.name, "frames": len(video.small), "bytes": video.path.stat().st_size}
    return about | {"decoders": figures}


def machine() -> dict[str, Any]:
    about = facts()
    return {**about, "load": round(os.getloadavg()[0], 2), "versions": about["versions"] | versions(PEERS)}


def main(
    videos: Annotated[Path, typer.Option(help="where the encoded videos are kept")] = VIDEOS_FOLDER,
    folder: Annotated[Path | None, typer.Option(help="also measure the videos of this folder")] = None,
    out: Annotated[Path | None, typer.Option("--json", help="write all figures here")] = None,
    budget_s: Annotated[float, typer.Option(help=f"for the rounds of a video, {LEAST_ROUNDS} at least")] = 15.0,
) -> None:
    console = Console()
    decoders, missing = {}, {}
    for name, make in DECODERS.items():
        try:
            decoders[name] = make()
        except (ImportError, OSError, RuntimeError) as error:  # torchcodec without FFmpeg raises RuntimeError
            missing[name] = str(error).strip().splitlines()[0]
    extra = sorted(path for path in folder.rglob("*") if path.is_file()) if folder else []
    results: list[dict[str, Any]] = []
    table = Table(Column("video", overflow="fold"), "decoder", "ms", "ratio", "right of 16")
    for path in [*make_videos(videos, console), *extra]:
        video = look_at(path)
        measure(video, decoders, budget_s)
        results.append(report(video))
        table.add_section()
        for place, (name, row) in enumerate(results[-1]["decoders"].items()):
            cells = [row["error"]] if "error" in row else [str(row[key]) for key in ("median_ms", "ratio", "right")]
            table.add_row(path.name if place == 0 else "", name, *cells)
    console.print(table, *(f"{name}: not installed ({reason})" for name, reason in missing.items()), sep="\n")
    if out:
        content = {"machine": machine(), "not_installed": missing, "results": results}
        out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
