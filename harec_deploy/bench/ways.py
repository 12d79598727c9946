"""What is compared: ways to run a bundle, the clips that they get, and how often their labels are right."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harec_deploy.bundle import Bundle
from harec_deploy.discover import truth_of
from harec_deploy.errors import BundleError, DeviceError, UsageError
from harec_deploy.export.verify import read_clips
from harec_deploy.intervals import wilson
from harec_deploy.recognizer import Recognizer
from harec_deploy.runners import RUNNERS, Execution, executions
from harec_deploy.spec import BundleSpec

_WAY = re.compile(r"(?P<variant>\S+) on (?P<runner>\S+) in (?P<precision>\S+)(?: on \S+)?")


@dataclass(frozen=True, slots=True)
class Clips:
    """What the engine is fed: pixels uint8 (N, T, H, W, 3), where they are from, and their true labels if known.

    truths: a class or None for each clip; empty where nobody knows any.
    """

    pixels: NDArray[np.uint8]
    source: str
    truths: Sequence[str | None] = ()

    def batch(self, count: int) -> NDArray[np.uint8]:
        """Return ``count`` clips, again from the first where there are fewer: uint8 (count, T, H, W, 3)."""
        return np.ascontiguousarray(self.pixels[np.arange(count) % len(self.pixels)])


def find_ways(spec: BundleSpec, names: Sequence[str], device: str) -> list[Execution]:
    """Return the ways to run a bundle here, all of them or those of the given names.

    names: "onnx-int8", all ways of a variant; "openvino" or "openvino:bf16", a runner, in a precision; or one way in
    full, "onnx-fp32 on openvino in bf16".

    Raises:
        UsageError: a name fits nothing here; the message lists what there is.
        BundleError: the bundle has no variant yet.
    """
    every = [] if names and all(map(_runner, names)) else executions(spec, device=device)
    found: list[Execution] = []
    for name in names:
        found += _named(spec, name, device, every)
    return list({str(way): way for way in found or every}.values())


def _runner(name: str) -> str:
    """Return the runner that a name asks for, "" where it asks for a variant."""
    if match := _WAY.fullmatch(name):
        return match["runner"]
    runner = name.partition(":")[0]
    return runner if runner in RUNNERS else ""


def _named(spec: BundleSpec, name: str, device: str, every: Iterable[Execution]) -> list[Execution]:
    match, (runner, _, precision) = _WAY.fullmatch(name), name.partition(":")
    if match:
        known = match["variant"] in spec.ways()
        ways = executions(spec, match["runner"], match["precision"], device, match["variant"]) if known else []
    elif _runner(name):
        ways = executions(spec, runner, precision or "auto", device)
    else:
        ways = executions(spec, device=device, variant=name) if name in spec.ways() else []
    if not ways:
        there = ", ".join(map(str, every or executions(spec, device=device)))
        raise UsageError(f"--compare {name!r}: no such way to run the bundle; there is {there}")
    return ways


def load_ways(bundle: Bundle, ways: Iterable[Execution]) -> tuple[list[Recognizer], list[str]]:
    """Load each way, and say why the others do not run.

    Raises:
        BundleError, DeviceError: none runs.
    """
    ready, told, last = [], [], None
    for way in ways:
        try:
            ready.append(Recognizer(bundle, way))
        except (BundleError, DeviceError) as error:
            last = error
            told.append(f"{way} does not run: {error}")
    if not ready and last:
        raise last
    return ready, told


def find_clips(bundle: Bundle, inputs: Sequence[str], limit: int) -> Clips:
    """Return clips of the videos in ``inputs``, else the bundle's own check clips, else generated pixels.

    Raises:
        UsageError: none of the videos can be decoded.
    """
    spec = bundle.spec
    if inputs:
        read = read_clips(spec, inputs, limit)
        truths = [truth_of(video.path, spec.classes) for video in read.videos]
        return Clips(read.pixels, f"{len(truths)} real clips", truths if any(truths) else ())
    if check := bundle.check_clips():
        return Clips(check[0], f"the bundle's {len(check[0])} check clips")
    shape = (4, spec.sampling.frames, spec.size.height, spec.size.width, 3)
    return Clips(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), "generated noise")


def accuracy(recognizer: Recognizer, clips: Clips) -> dict[str, Any] | None:
    """Return how many of the clips whose class is known are labelled right; None where none is known."""
    if not clips.truths:
        return None
    best = np.concatenate([recognizer.predict(clip[None]) for clip in clips.pixels]).argmax(1)
    return hits(zip(clips.truths, (recognizer.spec.classes[label] for label in best), strict=True))


def hits(answers: Iterable[tuple[str | None, str | None]]) -> dict[str, Any] | None:
    """Return the accuracy of (truth, label) with its 95 % interval; a truth of None does not count."""
    right = [truth == label for truth, label in answers if truth is not None]
    if not right:
        return None
    correct, count = sum(right), len(right)
    return {"correct": correct, "clips": count, "accuracy": correct / count, "interval": wilson(correct, count)}
