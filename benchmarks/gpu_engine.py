"""The engine section of gpu_check: throughput and latency of every way to run the model, after a look at its labels."""

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_check import Row, Setup
from benchmarks.gpu_machine import nvidia_smi
from benchmarks.gpu_videos import LEARNT, bundle_of, read_clips, videos
from harec_deploy.bench.gpu import gpu_times
from harec_deploy.bundle import Bundle, load, save
from harec_deploy.errors import HarecError
from harec_deploy.recognizer import Recognizer
from harec_deploy.runners import RUNNERS, Execution, get
from harec_deploy.spec import Proof

BATCHES, TINY_BATCHES = (1, 8, 32, 128), (1, 4)  # clips
WARM_UP = 3  # calls, in which kernels are chosen and graphs recorded
MAX_REPETITIONS = 300
MIN_REPETITIONS = 10
MIN_AGREEMENT = 0.99  # as export demands: the speed of a way that gives other labels is none


def engine(setup: Setup) -> Iterator[Row]:
    """Yield, of every runner, precision and batch here, clips a second and the time of a batch.

    A time is wall clock around ``predict``: uint8 frames in host memory in, probabilities in host memory out, so both
    copies are in it, and so is waiting for the GPU. gpu_ms is what the GPU works of it, where events can tell;
    host_bound: the call takes much longer than that.
    """
    bundle = bundle_of(setup)
    if bundle is None:
        yield {"not_run": "there is no model: see prepare"}
        return
    clips = read_clips(bundle.spec, videos(setup, LEARNT))
    ways, absent = executions(bundle, setup.device)
    if setup.tiny:  # compiling takes longer than all the rest
        ways = [way for way in ways if "compile" not in way.runner.name]
    yield from absent
    if not ways:
        yield {"not_run": "no runner here takes a variant of the model: see prepare"}
    wanted: NDArray[np.float32] | None = None
    for number, way in enumerate(ways):
        budget_s = setup.left_s / (len(ways) - number)  # what one leaves goes to those that follow
        name = {"variant": way.variant, "runner": way.runner.name, "precision": way.precision}
        if budget_s < 0.5:
            yield {**name, "not_run": "no time left"}
            continue
        try:
            start = time.perf_counter()
            recognizer = Recognizer(bundle, way)
            loaded_s = time.perf_counter() - start
            got = np.concatenate([recognizer.predict(clip[None]) for clip in clips])
            wanted = got if wanted is None else wanted
            same = compare(got, wanted)
            yield {**name, "version": way.runner.version, "load_s": round(loaded_s, 2), **same}
            if same["same_labels"] >= MIN_AGREEMENT:
                _note_proof(bundle, way, same, len(clips))
                yield from ({**name, **row} for row in _timed(recognizer, clips, setup, budget_s - loaded_s))
        except (HarecError, RuntimeError, MemoryError) as error:  # RuntimeError: CUDA's, by way of torch
            yield {**name, "failed": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    if clocks := nvidia_smi():
        yield {"clocks_after": clocks.get("clocks", {})}


def executions(bundle: Bundle, device: str) -> tuple[list[Execution], list[Row]]:
    """Return every way to run the bundle on a device, PyTorch in fp32 first, and why other runners are not there."""
    ways: list[Execution] = []
    absent: list[Row] = []
    for name, entry in RUNNERS.items():
        if device.partition(":")[0] not in entry.devices:
            continue
        try:
            runner = get(name, device)
        except (HarecError, ImportError, OSError, RuntimeError) as error:
            absent.append({"runner": name, "not_run": " ".join(str(error).split())[:300]})
            continue
        for variant, parts in bundle.spec.variants.items():
            ways += [Execution(variant, runner, precision) for precision in runner.precisions(parts)]
    # The reference first, and last what compiles, which may take all the time that is left.
    ways.sort(key=lambda way: ("compile" in way.runner.name, way.precision != "fp32", way.runner.name != "torch"))
    return ways, absent


def compare(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> Row:
    """Return the share of clips (N, C) with the same label, and how far probabilities are apart at most."""
    return {
        "same_labels": float((got.argmax(1) == wanted.argmax(1)).mean()),
        "max_abs_dp": float(np.abs(got - wanted).max()),
    }


def _note_proof(bundle: Bundle, way: Execution, same: Row, count: int) -> None:
    """Write into the bundle what was measured of a way that export knows nothing of: label uses no other."""
    spec = load(bundle.folder).spec
    variant = spec.variants[way.variant]
    if variant.proof(way.runner.name, way.precision, way.runner.device):
        return
    proof = Proof(
        runner=way.runner.name,
        runner_version=way.runner.version,
        precision=way.precision,
        device=way.runner.device.partition(":")[0],
        hardware=way.runner.hardware,
        clips=count,
        top1_agreement=same["same_labels"],
        max_abs_dp=same["max_abs_dp"],
        flipped=[],
        passed=True,
    )
    proved = msgspec.structs.replace(variant, proofs=[*variant.proofs, proof])
    save(bundle.folder, msgspec.structs.replace(spec, variants={**spec.variants, way.variant: proved}))


def _timed(recognizer: Recognizer, clips: NDArray[np.uint8], setup: Setup, budget_s: float) -> Iterator[Row]:
    """Yield the figures of each batch size."""
    batches = TINY_BATCHES if setup.tiny else BATCHES
    for number, batch in enumerate(batches):
        end = time.perf_counter() + min(budget_s / len(batches), 0.3 if setup.tiny else 10.0)
        pixels = np.ascontiguousarray(clips[np.arange(batch) % len(clips)])
        for _ in range(WARM_UP):
            recognizer.predict(pixels)
        seconds: list[float] = []
        while len(seconds) < MIN_REPETITIONS or (time.perf_counter() < end and len(seconds) < MAX_REPETITIONS):
            if setup.left_s < 0 and len(seconds) > 2:
                break
            start = time.perf_counter()
            recognizer.predict(pixels)
            seconds.append(time.perf_counter() - start)
        rate = batch * len(seconds) / sum(seconds)
        of_gpu = _of_gpu(recognizer, pixels) if setup.left_s > 0 else {}
        yield {"batch": batch, "clips_per_s": round(rate, 2), **latencies(seconds), **of_gpu}
        if setup.left_s < 0 and number + 1 < len(batches):
            yield {"not_run": f"batches {', '.join(map(str, batches[number + 1 :]))}: no time left"}
            return


def _of_gpu(recognizer: Recognizer, pixels: NDArray[np.uint8]) -> Row:
    """Return how long the GPU works in a call; nothing on a CPU."""
    found = gpu_times(recognizer, pixels, MIN_REPETITIONS)
    return {"gpu_ms": round(found.gpu_s * 1e3, 3), "host_bound": found.host_bound} if found else {}


def latencies(seconds: Sequence[float]) -> dict[str, Any]:
    """Return percentiles of times in seconds, in milliseconds; the 99th only of a hundred times or more."""
    return {
        "p50_ms": round(statistics.median(seconds) * 1e3, 3),
        "p90_ms": round(float(np.percentile(seconds, 90)) * 1e3, 3),
        "p99_ms": round(float(np.percentile(seconds, 99)) * 1e3, 3) if len(seconds) >= 100 else None,
        "repetitions": len(seconds),
    }
