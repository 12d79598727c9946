"""The sections of gpu_check that take videos: decoders alone, and whole runs beside the notebook's loop."""

import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.gpu_check import Row, Setup
from benchmarks.gpu_machine import nvidia_smi
from benchmarks.gpu_videos import LEARNT, bundle_of, kinds, many, videos
from harec_deploy.bundle import Bundle
from harec_deploy.decode import DECODERS, Size
from harec_deploy.discover import VideoFile
from harec_deploy.errors import HarecError
from harec_deploy.label.child import Plan
from harec_deploy.label.journal import read_rows
from harec_deploy.label.options import Options
from harec_deploy.label.run import label
from harec_deploy.label.workers import decode_ahead
from harec_deploy.machine import cores
from harec_deploy.recognizer import PART_FRAMES
from harec_deploy.sampling import ClipSampling

ROUTES = {"pyav": "CPU cores", "dali": "NVDEC", "both": "NVDEC and CPU cores"}
WARM_UP = 64  # videos with a decoder that takes many at a time
MAX_LOAD_S = 15.0  # of a way that whole runs use
SLOW = 8  # videos that the notebook's loop labels
# H.264 frames of 1920x1080 that one NVDEC gives a second, and the video clock in MHz that this holds at, by compute
# capability: NVDEC Application Note, Video Codec SDK 13.0. Data centre Ampere and Hopper are "same as Turing".
NVDEC_FPS = {(7, 5): (771, 1860), (8, 0): (771, 1860), (8, 6): (748, 1665), (8, 9): (903, 2160), (9, 0): (771, 1860)}
NVDEC_FPS |= dict.fromkeys([(10, 0), (10, 3), (12, 0)], (2172, 2362))


def decode(setup: Setup) -> Iterator[Row]:
    """Yield videos and frames a second of the decoding children of a run alone: CPU cores, NVDEC, and both."""
    routes = [route for route in ROUTES if not unavailable(route)]
    yield from ({"route": route, "not_run": why} for route in ROUTES if (why := unavailable(route)))
    steps = [(kind, route) for kind in kinds(setup) if videos(setup, kind) for route in routes]
    for number, (kind, route) in enumerate(steps):
        name = {"videos": kind, "route": ROUTES[route]}
        if setup.left_s < 1:
            yield {**name, "not_run": "no time left"}
            continue
        seconds = _seconds(setup, setup.left_s / (len(steps) - number) / 1.5)  # the children's start is not counted
        try:
            rate, facts = decode_alone(plan_of(setup, route), videos(setup, kind), seconds)
        except HarecError as error:
            yield {**name, "failed": str(error)}
            continue
        frames_per_s = rate * kinds(setup)[kind].clip.frames  # of the videos, whether they had to be decoded or not
        speeds = {"videos_per_s": round(rate, 2), "frames_per_s": round(frames_per_s, 1)}
        on_gpu = frames_per_s * (1 - facts["refused"] / facts["count"]) if route != "pyav" else 0.0
        yield {**name, **speeds, **facts, **bound(setup, kind, on_gpu)}
    if clocks := nvidia_smi():
        yield {"clocks_after": clocks.get("clocks", {})}


def end_to_end(setup: Setup) -> Iterator[Row]:
    """Yield videos a second from file to label: the notebook's loop, then whole runs, whose labels are held to its."""
    bundle, best = bundle_of(setup), best_way(setup)
    if bundle is None or best is None:
        yield {"not_run": "there is no model, or nothing here runs it: see prepare and engine"}
        return
    own = videos(setup, LEARNT)
    wanted: dict[str, str] = {}
    for half in (False,) if setup.device == "cpu" else (False, True):
        row, labels = _notebook(setup, bundle, own[: 2 if setup.tiny else SLOW], half=half)
        wanted = wanted or labels
        agreed = {"same_labels": _agreement(labels, wanted)} if labels else {}
        yield {"way": f"notebook {'fp16' if half else 'fp32'}", **agreed, **row}
    yield {"way": "engine alone", "videos_per_s": best["clips_per_s"], **_named(best)}
    routes = [route for route in ROUTES if not unavailable(route)]
    for number, route in enumerate(routes):
        share_s = setup.left_s / (len(routes) - number)
        try:
            decoding, facts = decode_alone(plan_of(setup, route), own, _seconds(setup, share_s / 5))
        except HarecError as error:
            yield {"way": f"decode alone, {ROUTES[route]}", "failed": str(error)}
            continue
        yield {"way": f"decode alone, {ROUTES[route]}", "videos_per_s": decoding, **facts}
        count = max(4, min(int(decoding * _seconds(setup, share_s / 2)), 8192))
        row = _run(setup, bundle, many(setup, LEARNT, count), best, route, wanted)
        yield {"way": f"label, decoder {route}", "count": count, **_named(best), **row, **_shares(row, decoding, best)}


def _shares(row: Row, decoding: float, best: Row) -> Row:
    """Return how near a run comes to what its stages give alone: where they share cores, and where they do not."""
    if "videos_per_s" not in row:
        return {}
    speed, engine = row["videos_per_s"], best["clips_per_s"]
    shared, apart = 1 / (1 / decoding + 1 / engine), min(decoding, engine)
    return {"of_bound": round(speed / shared, 3), "of_slower_stage": round(speed / apart, 3)}


def best_way(setup: Setup) -> Row | None:
    """Return the fastest row of the engine section, of ways that do not take long to load, as each run does it anew."""
    rows = setup.rows("engine")
    quick = [_named(row) for row in rows if row.get("load_s", MAX_LOAD_S) < MAX_LOAD_S]
    timed = [row for row in rows if "clips_per_s" in row and _named(row) in quick]
    return max(timed, key=lambda row: float(row["clips_per_s"]), default=None)


def _named(way: Row) -> Row:
    return {name: way[name] for name in ("variant", "runner", "precision")}


def unavailable(route: str) -> str:
    """Say why videos cannot be decoded by a route here, "" where they can."""
    if route == "pyav":
        return ""
    if "dali" not in DECODERS or "decoder" not in Options.__dataclass_fields__:
        return "this version has no DALI decoder"
    if find_spec("nvidia") is None or find_spec("nvidia.dali") is None:
        return "DALI is not importable: pip install nvidia-dali-cuda130"
    return ""


def plan_of(setup: Setup, route: str) -> Plan:
    """Return what the children of a run are told to do by each route; where there is no model, as for a usual one."""
    bundle = bundle_of(setup)
    sampling, size = ClipSampling(frames=16), Size(width=224, height=224)
    if bundle:
        sampling, size = bundle.spec.sampling, bundle.spec.size
    plan = Plan(decoder=DECODERS["pyav"], sampling=sampling, size=size, count=max(sampling.frames, PART_FRAMES))
    if route == "pyav":
        return plan
    decoders = import_module("harec_deploy.label.decoders")
    return msgspec.structs.replace(plan, batch=decoders.choose_decoders(route, setup.device).batch_plan(plan.limits))


def decode_alone(plan: Plan, paths: Sequence[Path], seconds: float) -> tuple[float, Row]:
    """Return the videos a second that the children of a run give, and in what time and of how many this was seen.

    refused: videos that the GPU's decoder left to the CPU's cores.
    """
    workers = cores()
    warm = 2 * workers if getattr(plan, "batch", None) is None else WARM_UP  # videos before the clock counts
    ends, refused = [], 0
    for decoded in decode_ahead(_again(paths, 2 * warm, seconds), plan, workers):
        if decoded.error:
            raise decoded.error
        if decoded.last:
            ends.append(time.perf_counter())
            refused += bool(getattr(decoded, "refused", ""))
    elapsed = ends[-1] - ends[warm - 1]
    facts = {"count": len(ends), "refused": refused, "seconds": round(elapsed, 2)}
    return (len(ends) - warm) / elapsed, facts


def _again(paths: Sequence[Path], least: int, seconds: float) -> Iterator[VideoFile]:
    """Yield the videos again and again, ``least`` in all or as many as are taken in some seconds."""
    end = time.perf_counter() + seconds
    for number, path in enumerate(cycle(paths)):
        if number >= least and time.perf_counter() >= end:
            return
        yield VideoFile.at(path.name, path)


def _seconds(setup: Setup, at_most: float) -> float:
    """Return for how long something is measured."""
    return min(at_most, 0.5 if setup.tiny else 10.0)


def _until(videos: Sequence[VideoFile], least: int, seconds: float) -> Iterator[VideoFile]:
    """Yield the videos again and again: ``least`` of them, and for as many seconds."""
    end = time.perf_counter() + seconds
    for number, video in enumerate(cycle(videos)):
        if number >= least and time.perf_counter() >= end:
            return
        yield video


def _run(setup: Setup, bundle: Bundle, folder: Path, way: Row, route: str, wanted: dict[str, str] | None = None) -> Row:
    """Label a folder by the function behind `harec-deploy label`, and compare with labels that are known by name."""
    decoder: dict[str, Any] = {"decoder": route} if "decoder" in Options.__dataclass_fields__ else {}
    with tempfile.TemporaryDirectory(dir=setup.work) as out:
        journal = Path(out) / "rows.jsonl"
        options = Options(out=journal, runner=way["runner"], precision=way["precision"], device=setup.device, **decoder)
        try:
            summary = label(bundle.folder, [str(folder)], options)
        except (HarecError, RuntimeError, OSError) as error:
            return {"failed": " ".join(str(error).split())[:300]}
        rows = read_rows(journal).values()
    facts = {
        "ok": sum(row.status == "ok" for row in rows),
        "videos_per_s": summary.videos_per_s,
        "bound_by": summary.stages.bound_by(),
    }
    if wanted:
        got = {source: row.label or "" for row in rows if (source := Path(row.path).name.split("_", 1)[1]) in wanted}
        facts = {"same_labels": _agreement(got, wanted), **facts}
    return facts


def _agreement(got: dict[str, str], wanted: dict[str, str]) -> float:
    return sum(got[name] == wanted[name] for name in got) / len(got) if got else 0.0


def _notebook(setup: Setup, bundle: Bundle, paths: Sequence[Path], *, half: bool) -> tuple[Row, dict[str, str]]:
    """Time the notebook's loop, after a video to warm up."""
    try:
        from benchmarks.recognisers import has_opencv, notebook

        run = notebook(bundle.folder, device=setup.device, half=half)
        run(paths[:1])
        start = time.perf_counter()
        labels = run(paths)
    except ModuleNotFoundError as error:
        return {"not_run": f"{error.name} is not importable"}, {}
    except (HarecError, RuntimeError) as error:  # RuntimeError: CUDA's, by way of torch
        return {"failed": " ".join(str(error).split())[:300]}, {}
    speed = len(paths) / (time.perf_counter() - start)
    return {"decoder": "OpenCV" if has_opencv() else "PyAV, as OpenCV is not importable", "videos_per_s": speed}, labels


def bound(setup: Setup, kind: str, frames_per_s: float) -> Row:
    """Return what all NVDEC of the GPU could give by NVIDIA's figures, and which share of it ``frames_per_s`` is.

    The figures are of H.264 in 1920x1080; for other sizes the bound goes by the count of pixels, and small pictures do
    not come near it. Nothing is returned where the driver tells neither clock nor count, or the GPU decoded nothing.
    """
    clip, rows = kinds(setup)[kind].clip, setup.rows("machine")
    facts = {row["name"]: row.get("facts") or {} for row in rows if "name" in row}
    device = next((gpu for gpu in facts.get("GPU", {}).get("devices", ()) if gpu["device"] == setup.device), None)
    count = ((facts.get("NVDEC", {}).get("devices", {}).get(setup.device) or {}).get("h264") or {}).get("nvdecs")
    smi = next((row["nvidia_smi"] for row in rows if isinstance(row.get("nvidia_smi"), dict)), {})
    clock = re.match(r"\d+", str(smi.get("max_clocks", {}).get("video")))
    if clip.codec != "libx264" or not (frames_per_s and device and count and clock):
        return {}
    fps, mhz = NVDEC_FPS.get(tuple(device["capability"]), (0, 1))
    frames = count * fps * int(clock[0]) / mhz * (1920 * 1080) / (clip.width * clip.height)
    return {"bound_frames_per_s": round(frames), "of_bound": round(frames_per_s / frames, 3)} if frames else {}
