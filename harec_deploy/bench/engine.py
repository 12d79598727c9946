"""Latency, throughput and the pick of a way: the engine alone, on clips that lie in memory."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harec_deploy.bench.gpu import GpuTimes, gpu_times
from harec_deploy.bench.measure import P99_CALLS, Budget, Timing, Work, interleave, timed
from harec_deploy.bench.noise import Watch
from harec_deploy.bench.result import Result, Row, made, rate, stated, times, unsure, way_row
from harec_deploy.bench.ways import Clips, accuracy, find_clips, find_ways, load_ways
from harec_deploy.bundle import Bundle
from harec_deploy.bundle import load as load_bundle
from harec_deploy.errors import UsageError
from harec_deploy.machine import cores
from harec_deploy.picks import Pick, store
from harec_deploy.recognizer import Recognizer
from harec_deploy.runners import RUNNERS, Execution
from harec_deploy.spec import WEIGHTS_VARIANT, BundleSpec

CALLS = 4  # of each stream in a round: enough to keep the others company nearly all the time
SATURATED = 0.03  # a batch of twice the size that brings less than this is no gain
MAX_BATCH_BYTES = 1 << 28  # of pixels

_Alone = tuple[int, int]  # the place of a way, and clips in a call


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to measure of the engine.

    compare: names for ways.find_ways; device: a name for devices.resolve. clips: videos, none for the bundle's own.
    batches: clips in a call. streams: recognisers that work side by side, each with its share of the cores.
    announce: called with a line of text; progress: with rounds that are done.
    """

    compare: Sequence[str] = ()
    device: str = "auto"
    clips: Sequence[str] = ()
    max_clips: int = 100
    batches: Sequence[int] = (1,)
    streams: Sequence[int] = (1,)
    budget: Budget = field(default_factory=Budget)
    announce: Callable[[str], None] = lambda text: None
    progress: Callable[[int], None] = lambda rounds: None


class Streams:
    """Recognisers of one way that work side by side, each called by a thread of its own."""

    def __init__(self, first: Recognizer, count: int, held: ExitStack) -> None:
        """Load ``count`` of them, with a share of the cores each. Raises BundleError, DeviceError."""
        self.count = count
        self._all = [first]
        if count > 1:
            threads = max(cores() // count, 1)
            self._all = [Recognizer(first.bundle, first.execution, threads=threads) for _ in range(count)]
            self._pool = held.enter_context(ThreadPoolExecutor(count))

    def calls(self, clips: NDArray[np.uint8]) -> Work:
        """Return a work that gives the seconds of each call; of several streams each makes CALLS in a row."""
        if self.count == 1:
            return _call(self._all[0], clips)
        work = [_call(each, clips) for each in self._all]

        def run() -> list[float]:
            lists = self._pool.map(lambda call: [call()[0] for _ in range(CALLS)], work)
            return [seconds for each in lists for seconds in each]

        return run

    def whole(self, clips: NDArray[np.uint8]) -> Work:
        """Return a work that gives the seconds in which every stream made a call, on average over a round."""
        calls = self.calls(clips)
        return calls if self.count == 1 else lambda: (timed(calls)()[0] / CALLS,)


def latency(folder: Path, settings: Settings) -> Result:
    """Measure the seconds of a call, for each way, batch and number of streams, all taking turns.

    Raises:
        HarecError: the bundle is damaged, a name fits nothing, no way runs.
    """
    bundle, clips, ready, notes = _begin(folder, settings)
    with ExitStack() as held, Watch() as watch:
        cases = {
            (place, batch, streams): Streams(recognizer, streams, held)
            for place, recognizer in enumerate(ready)
            for streams in settings.streams
            for batch in settings.batches
        }
        works = {case: streams.calls(clips.batch(case[1])) for case, streams in cases.items()}
        budget = replace(settings.budget, least_calls=P99_CALLS)
        timings = interleave(works, budget, progress=settings.progress)
    right = [accuracy(each, clips) for each in ready]
    gpu = _of_gpus(ready, clips, timings)
    rows = [
        {
            **way_row(ready[place].execution),
            "batch": batch,
            "streams": streams,
            **_latency(timing),
            **_gpu_row(gpu, place, streams, batch),
            "clips_per_s": batch * streams / timing.mean,
            **times(timings[0, batch, streams], timing),
            "accuracy": right[place],
        }
        for (place, batch, streams), timing in timings.items()
    ]
    notes += unsure(timings.values(), settings.budget) + _host_bound(ready, gpu)
    return made("latency", _about(bundle, clips, settings), rows, notes, watch)


def throughput(folder: Path, settings: Settings) -> Result:
    """Measure clips a second of each way and number of streams, with ever larger batches until that brings nothing.

    Raises:
        HarecError: as ``latency``.
    """
    bundle, clips, ready, notes = _begin(folder, settings)
    with ExitStack() as held, Watch() as watch:
        alive = {
            (place, streams): Streams(recognizer, streams, held)
            for place, recognizer in enumerate(ready)
            for streams in settings.streams
        }
        swept = _sweep(alive, clips, settings)
    gpu = _of_gpus(ready, clips, swept)
    right = [accuracy(each, clips) for each in ready]
    rows: list[Row] = []
    for place, batch, streams in sorted(swept, key=lambda case: (case[0], case[2], case[1])):
        timing, gain = swept[place, batch, streams]
        rows.append(
            {
                **way_row(ready[place].execution),
                "streams": streams,
                "batch": batch,
                **rate(timing, batch * streams),
                **_gpu_row(gpu, place, streams, batch),
                "gain": gain,
                "accuracy": right[place],
            }
        )
    for row in rows:
        row["best"] = row["per_s"] == max(other["per_s"] for other in rows if other["way"] == row["way"])
    notes += unsure([timing for timing, _ in swept.values()], settings.budget) + _host_bound(ready, gpu)
    return made("throughput", _about(bundle, clips, settings), rows, notes, watch)


def _sweep(
    alive: dict[tuple[int, int], Streams], clips: Clips, settings: Settings
) -> dict[tuple[int, int, int], tuple[Timing, float | None]]:
    """Return for each (way, batch, streams) its timing, and what it gained over the best before, if any was.

    alive: by (way, streams); what gains too little leaves it.
    """
    swept: dict[tuple[int, int, int], tuple[Timing, float | None]] = {}
    best, batch = dict.fromkeys(alive, 0.0), 1
    while alive and batch * clips.pixels[0].nbytes <= MAX_BATCH_BYTES:
        pixels = clips.batch(batch)
        works = {case: streams.whole(pixels) for case, streams in alive.items()}
        for (place, streams), timing in interleave(works, settings.budget, progress=settings.progress).items():
            per_s, before = batch * streams / timing.median, best[place, streams]
            gain = per_s / before - 1 if before else None
            swept[place, batch, streams] = timing, gain
            if gain is not None and gain < SATURATED:
                del alive[place, streams]
            best[place, streams] = max(before, per_s)
        settings.announce(f"batches of {batch} done; {len(alive)} of {len(best)} still gain")
        batch *= 2
    return swept


def pick(folder: Path, settings: Settings) -> Result:
    """Measure every way that passed its proof, and store the fastest as what ``auto`` takes on this machine.

    Raises:
        UsageError: no way has a proof that it passed.
        OutputError: the choice cannot be stored.
        HarecError: as ``latency``.
    """
    bundle, clips, ready, notes = _begin(folder, settings, only_proved=True)
    together = {each: max(each.batch_frames // each.spec.sampling.frames, 1) for each in ready}
    works = {each: _call(each, clips.batch(count)) for each, count in together.items()}
    with Watch() as watch:
        timings = interleave(works, settings.budget, progress=settings.progress)
    speeds = {each: rate(timing, together[each]) for each, timing in timings.items()}
    ready.sort(key=lambda each: speeds[each]["per_s"], reverse=True)
    path = store(Pick.of(bundle, ready[0].execution, {str(e.execution): speeds[e]["per_s"] for e in ready}))
    rows = [
        {
            **way_row(each.execution),
            "picked": each is ready[0],
            **speeds[each],
            "batch": together[each],
            "accuracy": accuracy(each, clips),
        }
        for each in ready
    ]
    notes += unsure(timings.values(), settings.budget) + _ties([timings[each] for each in ready], ready)
    about = {**_about(bundle, clips, settings), "picked": str(ready[0].execution), "stored_in": str(path)}
    return made("pick", about, rows, notes, watch)


def _begin(
    folder: Path, settings: Settings, *, only_proved: bool = False
) -> tuple[Bundle, Clips, list[Recognizer], list[str]]:
    """Return the bundle, the clips, the recognisers that are compared, and notes about those that are not."""
    bundle = load_bundle(folder)
    ways, notes = find_ways(bundle.spec, settings.compare, settings.device), []
    if only_proved:
        left_out = [way for way in ways if not is_proved(bundle.spec, way)]
        notes = [f"{way} is left out: it has no proof for {way.runner.device}" for way in left_out]
        for way in ways:
            if way not in left_out and way.runner.device.partition(":")[0] not in RUNNERS[way.runner.name].alone:
                left_out.append(way)
                notes.append(f"{way} is left out: --runner auto never takes it on {way.runner.device}")
        ways = [way for way in ways if way not in left_out]
        if not ways:
            raise UsageError(f"no way to run {folder} is proved on this kind of machine: harec-deploy export proves")
    ready, told = load_ways(bundle, ways)
    clips = find_clips(bundle, settings.clips, settings.max_clips)
    settings.announce(f"{len(ready)} ways on {clips.source}: {', '.join(str(each.execution) for each in ready)}")
    return bundle, clips, ready, notes + told


def is_proved(spec: BundleSpec, way: Execution) -> bool:
    """Tell whether a way passed its proof. The weights in fp32 are what others are proved against."""
    proof = spec.ways()[way.variant].proof(way.runner.name, way.precision, way.runner.device)
    return proof.passed if proof else (way.variant, way.precision) == (WEIGHTS_VARIANT, "fp32")


def _call(recognizer: Recognizer, pixels: NDArray[np.uint8]) -> Work:
    return timed(lambda: recognizer.predict(pixels))


def _about(bundle: Bundle, clips: Clips, settings: Settings) -> Row:
    size, frames = bundle.spec.size, bundle.spec.sampling.frames
    return {
        "bundle": str(bundle.folder),
        "architecture": bundle.spec.architecture,
        "clip": f"{frames} frames of {size.width}x{size.height}",
        "clips": clips.source,
        **stated(settings.budget),
    }


def _latency(timing: Timing) -> Row:
    counts, edges = timing.histogram()
    interval = timing.interval
    shares = {f"p{share}_ms": timing.percentile(share) for share in (50, 90, 99)}
    return {
        **{name: seconds * 1e3 if seconds is not None else None for name, seconds in shares.items()},
        "mean_ms": timing.mean * 1e3,
        "p50_ms_interval": (interval[0] * 1e3, interval[1] * 1e3) if interval else None,
        "within": timing.within if interval else None,
        "calls": len(timing.calls),
        "histogram": {"calls": counts, "edges_ms": [edge * 1e3 for edge in edges]},
    }


def _ties(timings: Sequence[Timing], ready: Sequence[Recognizer]) -> list[str]:
    """Name the ways that may be as fast as the first, as far as these rounds tell."""
    told = []
    for timing, each in zip(timings[1:], ready[1:], strict=True):
        sure = times(timings[0], timing)["times_first_interval"]
        if sure is None or sure[1] >= 1:
            told.append(f"{each.execution} may be as fast as the one that is picked")
    return told


def _of_gpus(
    ready: Sequence[Recognizer], clips: Clips, cases: Iterable[tuple[int, int, int]]
) -> dict[_Alone, GpuTimes]:
    """Return the GPU's times of the cases (way, batch, streams) in which one stream has it to itself."""
    alone = [(place, batch) for place, batch, streams in cases if streams == 1]
    found = {(place, batch): gpu_times(ready[place], clips.batch(batch)) for place, batch in alone}
    return {case: each for case, each in found.items() if each}


def _gpu_row(gpu: Mapping[_Alone, GpuTimes], place: int, streams: int, batch: int) -> Row:
    """Return the milliseconds of a call in which the GPU works; nothing where that is not known."""
    found = gpu.get((place, batch)) if streams == 1 else None
    return {"gpu_ms": found.gpu_s * 1e3} if found else {}


def _host_bound(ready: Sequence[Recognizer], gpu: Mapping[_Alone, GpuTimes]) -> list[str]:
    """Name the ways on a GPU whose calls take much longer than it works for them."""
    bound = {case: each for case, each in gpu.items() if each.host_bound}
    return [f"{ready[place].execution}, {batch} clips: {each.told()}" for (place, batch), each in bound.items()]
