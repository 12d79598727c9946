"""The videos and the model of gpu_check, made on the first run."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.decode import X264, scene
from benchmarks.gpu_check import Row, Setup
from harec_deploy.bundle import Bundle, load, save
from harec_deploy.decode import VideoInfo, choose
from harec_deploy.machine import cores
from harec_deploy.runners import RUNNERS
from harec_deploy.sampling import whole
from harec_deploy.spec import BundleSpec, Variant
from tests.media import Clip, make_packed_avi, write_frames


@dataclass(frozen=True)
class Kind:
    """Videos of one sort: how each is made, and how many different ones there are."""

    clip: Clip
    count: int
    suffix: str
    packed: bool = False


def _h264(width: int, height: int, frames: int) -> Clip:
    return Clip(width=width, height=height, frames=frames, gop=250, b_frames=3, options=X264)


_XVID = Clip(codec="mpeg4", width=320, height=240, frames=175, gop=250)
KINDS = {
    "xvid_240p_packed": Kind(_XVID, 32, ".avi", packed=True),  # as UCF-101's
    "xvid_240p": Kind(Clip(codec="mpeg4", width=320, height=240, frames=175, gop=250, b_frames=0), 16, ".avi"),
    "h264_240p": Kind(_h264(320, 240, 175), 16, ".mp4"),
    "h264_720p": Kind(_h264(1280, 720, 180), 8, ".mp4"),
    "h264_1080p": Kind(_h264(1920, 1080, 180), 8, ".mp4"),
}
TINY_KINDS = {
    "xvid_240p_packed": Kind(Clip(codec="mpeg4", width=320, height=240, frames=30), 4, ".avi", packed=True),
    "h264_240p": Kind(Clip(width=320, height=240, frames=30), 2, ".mp4"),
}
LEARNT = "xvid_240p_packed"  # the videos that the model knows by heart


def kinds(setup: Setup) -> dict[str, Kind]:
    return TINY_KINDS if setup.tiny else KINDS


def videos(setup: Setup, kind: str) -> list[Path]:
    """Return the videos of a kind that were made."""
    return sorted(_folder(setup, kind).glob(f"[0-9]*{kinds(setup)[kind].suffix}"))


def _folder(setup: Setup, kind: str) -> Path:
    return setup.work / ("tiny" if setup.tiny else "full") / kind


def many(setup: Setup, kind: str, count: int) -> Path:
    """Return a folder with ``count`` names of the videos of a kind."""
    folder = _folder(setup, kind) / f"names_{count}"
    folder.mkdir(exist_ok=True)
    sources = videos(setup, kind)
    for number in range(count):
        name = folder / f"{number:05d}_{sources[number % len(sources)].name}"
        if not name.exists():
            os.link(sources[number % len(sources)], name)
    return folder


def encode(path: Path, kind: Kind, seed: int) -> None:
    """Write a video; it has its name when it is whole."""
    unfinished = path.with_name(f"unfinished_{path.name}")
    if kind.packed:
        make_packed_avi(unfinished, kind.clip, scene(kind.clip, seed))
    else:
        write_frames(unfinished, kind.clip, scene(kind.clip, seed))
    unfinished.rename(path)


def prepare(setup: Setup) -> Iterator[Row]:
    """Encode the videos, small ones first, then make the model and its variants."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores(), mp_context=context) as pool:
        for name, kind in kinds(setup).items():
            start, folder = time.perf_counter(), _folder(setup, name)
            folder.mkdir(parents=True, exist_ok=True)
            paths = [folder / f"{number:03d}{kind.suffix}" for number in range(kind.count)]
            made = [pool.submit(encode, path, kind, n) for n, path in enumerate(paths) if not path.exists()]
            for each in made:
                each.result()
            yield {"videos": name, "count": kind.count, "made": len(made), "seconds": _since(start)}
            if name == LEARNT:
                yield from _model(setup)
    yield from _variants(setup)


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 2)


def read_clips(spec: BundleSpec, paths: Sequence[Path]) -> NDArray[np.uint8]:
    """Return the clip of each video by the reference decoder: uint8 (N, T, H, W, 3)."""

    def times(info: VideoInfo) -> NDArray[np.float64]:
        return spec.sampling.timestamps_s(whole(info.duration_s)[0])

    return np.stack([choose("pyav").frames(path, times, spec.size).pixels for path in paths])


def _model(setup: Setup) -> Iterator[Row]:
    """Make the model, unless it is there; it needs PyTorch, torchvision and safetensors."""
    if (setup.bundle / "bundle.json").exists():
        yield {"model": str(setup.bundle), "made": 0}
        return
    try:
        from benchmarks.recognisers import write_learnt
    except ModuleNotFoundError as error:
        yield {"model": "not made", "because": f"{error.name} is not importable"}
        return
    start = time.perf_counter()
    architecture, hidden, classes = ("lrcn", 16, 4) if setup.tiny else ("resnet50_lstm", 512, 101)
    bundle = write_learnt(
        setup.bundle,
        lambda spec: read_clips(spec, videos(setup, LEARNT)),
        architecture=architecture,
        hidden=hidden,
        classes=classes,
        device=setup.device,
    )
    if "torch" in RUNNERS:  # it executes the weights, of which there is no file beside them
        weights = Variant(precision="fp32", graphs={}, made_with={}, proofs=[])
        save(bundle.folder, msgspec.structs.replace(bundle.spec, variants={"torch": weights}))
    yield {"model": bundle.spec.architecture, "made": 1, "seconds": _since(start)}


# How each further form of the model is exported: what comes of it depends on what is installed here.
EXPORTS = {
    "onnx-fp32": (),
    "onnx-fp16": ("--precision", "fp16"),
    "tensorrt-fp32": ("--tensorrt", "--precision", "fp32"),
    "tensorrt-fp16": ("--tensorrt", "--precision", "fp16"),
    "tensorrt-bf16": ("--tensorrt", "--precision", "bf16"),
}


def _variants(setup: Setup) -> Iterator[Row]:
    """Export the model in every form that can be had here, by the command that people use."""
    if not (setup.bundle / "bundle.json").exists():
        return
    for name, options in EXPORTS.items():
        if any(name == each or each.startswith(f"{name}-") for each in load(setup.bundle).spec.variants):
            yield {"variant": name, "made": 0}
            continue
        if setup.device == "cpu" and (name != "onnx-fp32" or "torch" in RUNNERS):
            continue  # one form is enough to try the check
        if setup.left_s < 1:
            yield {"variant": name, "not_made": "no time left"}
            continue
        yield {"variant": name, **_export(setup, options)}


def _export(setup: Setup, options: Sequence[str]) -> Row:
    clips = [str(path) for path in videos(setup, LEARNT)[:4]]
    command = [sys.executable, "-m", "harec_deploy", "export", str(setup.bundle), "--max-clips", "4", *options]
    command += [word for clip in clips for word in ("--clips", clip)]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=setup.left_s)
    except subprocess.TimeoutExpired:
        return {"not_made": f"not done after {_since(start)} s"}
    if done.returncode == 0:
        return {"made": 1, "seconds": _since(start)}
    words = [line.strip(" │╭╮╰╯─") for line in done.stderr.splitlines()]
    return {"not_made": next((line for line in reversed(words) if line), "without a word")[:300]}


def bundle_of(setup: Setup) -> Bundle | None:
    """Return the model, or None where none could be made."""
    return load(setup.bundle) if (setup.bundle / "bundle.json").exists() else None
