"""Decoders, and the whole way from file to label: what is measured on videos."""

import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harec_deploy.bench.measure import Budget, Work, interleave, timed
from harec_deploy.bench.noise import Watch
from harec_deploy.bench.result import Result, Row, made, rate, stated, times, unsure, way_row
from harec_deploy.bench.ways import find_ways, hits, load_ways
from harec_deploy.bundle import load as load_bundle
from harec_deploy.decode import DECODERS, Decoder, Refused, Size, VideoInfo, choose, has_dali
from harec_deploy.devices import resolve
from harec_deploy.discover import VideoFile, truth_of
from harec_deploy.errors import UsageError, VideoError
from harec_deploy.export.verify import REFERENCE, spread
from harec_deploy.label.options import Options
from harec_deploy.label.run import label as label_videos
from harec_deploy.label.summary import Summary
from harec_deploy.runners import Execution
from harec_deploy.sampling import ClipSampling, whole

IDLE = 0.5  # share of the time: a run in which no stage works more is bound by something else
SIZE = Size(width=224, height=224)  # of frames, where no bundle says another


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSettings:
    """What to measure on videos.

    compare: names for ways.find_ways, or of decoders; device: a name for devices.resolve.
    max_videos: spread evenly over all that are there. workers, decoder: as Options has them.
    """

    compare: Sequence[str] = ()
    device: str = "auto"
    max_videos: int = 100
    workers: int | None = None
    decoder: str = "auto"
    budget: Budget = field(default_factory=Budget)
    announce: Callable[[str], None] = lambda text: None
    progress: Callable[[int], None] = lambda rounds: None


@dataclass(slots=True)
class _Group:
    """Videos of one codec and size with their lengths in seconds, and which of them each decoder takes."""

    length_s: dict[VideoFile, float] = field(default_factory=dict)
    taken: dict[str, set[VideoFile]] = field(default_factory=lambda: defaultdict(set))

    def decoders(self) -> list[str]:
        """Return the decoders that take any of them."""
        return [name for name, videos in self.taken.items() if videos]

    def videos(self) -> list[VideoFile]:
        """Return the videos that all of these take, so that all are measured on the same."""
        return [video for video in self.length_s if all(video in self.taken[name] for name in self.decoders())]


def decode(inputs: Sequence[str], folder: Path | None, settings: VideoSettings) -> Result:
    """Measure each decoder that is here on the videos of each codec and size, one video after the other.

    It is this process that decodes, one thread a video, as far as the decoder has a say in it.

    folder: a bundle, whose frames are asked for; else 16 frames of a video in 224x224.

    Raises:
        UsageError: there is no such decoder, or no video that can be decoded.
    """
    spec = load_bundle(folder).spec if folder else None
    sampling, size = (spec.sampling, spec.size) if spec else (ClipSampling(), SIZE)
    decoders = {name: choose(name, _device(name, settings.device)) for name in _decoders(settings.compare)}
    files = spread(inputs, settings.max_videos)

    def clip(decoder: Decoder, video: VideoFile) -> VideoInfo:
        times_s = lambda info: sampling.timestamps_s(whole(info.duration_s)[0])  # noqa: E731 - too short for a def
        return decoder.frames(video.path, times_s, size).info

    with Watch() as watch:
        groups, failed = _groups(files, decoders, clip)
        works = {
            (*kind, name): _all_of(decoders[name], group.videos(), clip)
            for kind, group in groups.items()
            for name in group.decoders()
            if group.videos()
        }
        if not works:
            raise UsageError(f"none of {len(files)} videos can be decoded by {', '.join(decoders)}: name others")
        timings = interleave(works, settings.budget, progress=settings.progress)
    rows: list[Row] = []
    for (codec, shape, name), timing in timings.items():
        group = groups[codec, shape]
        videos = group.videos()
        rows.append(
            {
                "decoder": name,
                "version": decoders[name].version,
                "codec": codec,
                "size": shape,
                "videos": len(videos),
                "refused": len(group.length_s) - len(group.taken[name]),
                "ms_a_video": timing.median / len(videos) * 1e3,
                **rate(timing, len(videos)),
                "frames_per_s": sampling.frames * len(videos) / timing.median,
                "times_real_time": sum(group.length_s[video] for video in videos) / timing.median,
                **times(timings[codec, shape, group.decoders()[0]], timing),
            }
        )
    about = {
        "videos": len(files),
        "clip": f"{sampling.frames} frames of {size.width}x{size.height}",
        **stated(settings.budget),
    }
    notes = [f"{len(failed)} videos cannot be decoded, such as {failed[0]}"] if failed else []
    for (codec, shape), group in groups.items():
        idle = [name for name in decoders if name not in group.decoders()]
        notes += [f"{name} takes none of {len(group.length_s)} videos in {codec} of {shape}" for name in idle]
    return made("decode", about, rows, notes + unsure(timings.values(), settings.budget), watch)


def _decoders(names: Sequence[str]) -> list[str]:
    """Return the decoders that are asked for, else those that are installed, the reference first."""
    if unknown := [name for name in names if name not in DECODERS]:
        raise UsageError(f"--compare {unknown[0]}: no such decoder; there is {', '.join(DECODERS)}")
    return list(names) or [REFERENCE, *(["dali"] if has_dali() else [])]


def _device(decoder: str, device: str) -> str:
    return "cpu" if decoder == REFERENCE else resolve(device)[0]


def _groups(
    files: Sequence[VideoFile], decoders: dict[str, Decoder], clip: Callable[[Decoder, VideoFile], VideoInfo]
) -> tuple[dict[tuple[str, str], _Group], list[str]]:
    """Return the videos by codec and size, and those that the reference cannot decode."""
    groups: dict[tuple[str, str], _Group] = defaultdict(_Group)
    failed: list[str] = []
    reference = choose(REFERENCE)
    for video in files:
        try:
            info = clip(reference, video)
        except VideoError as error:
            failed.append(f"{video.name} ({error.kind})")
            continue
        group = groups[info.codec, f"{info.width}x{info.height}"]
        group.length_s[video] = info.duration_s
        for name, decoder in decoders.items():
            if name == REFERENCE or _takes(decoder, video, clip):
                group.taken[name].add(video)
    return dict(sorted(groups.items())), failed


def _takes(decoder: Decoder, video: VideoFile, clip: Callable[[Decoder, VideoFile], VideoInfo]) -> bool:
    try:
        clip(decoder, video)
    except (Refused, VideoError):
        return False
    return True


def _all_of(decoder: Decoder, videos: Sequence[VideoFile], clip: Callable[[Decoder, VideoFile], Any]) -> Work:
    def run() -> None:
        for video in videos:
            clip(decoder, video)

    return timed(run)


def label(folder: Path, inputs: Sequence[str], settings: VideoSettings) -> Result:
    """Measure whole labelling runs, each way in turn: videos a second without loading, and what each stage took.

    Raises:
        HarecError: what label raises.
    """
    bundle = load_bundle(folder)
    asked = find_ways(bundle.spec, settings.compare, settings.device)
    ready, told = load_ways(bundle, asked)
    ways = [each.execution for each in ready]
    videos = [str(video.path) for video in spread(inputs, settings.max_videos)]
    settings.announce(f"{len(videos)} videos, {len(ways)} ways: {', '.join(map(str, ways))}")
    with tempfile.TemporaryDirectory(prefix="harec-bench-") as scratch, Watch() as watch:
        runs = {str(way): _Runs(folder, videos, way, Path(scratch), settings) for way in ways}
        timings = interleave(runs, settings.budget, progress=settings.progress)
    rows = [
        {**way_row(way), **runs[str(way)].row(), **rate(timing, 1), **times(timings[str(ways[0])], timing)}
        for way, timing in zip(ways, timings.values(), strict=True)
    ]
    about = {
        "bundle": str(folder),
        "architecture": bundle.spec.architecture,
        "videos": len(videos),
        **stated(settings.budget),
    }
    notes = told + unsure(timings.values(), settings.budget)
    if idle := [row["way"] for row in rows if max(row["busy"].values()) < IDLE]:
        notes.append(f"{', '.join(idle)}: nothing was busy, starting is most of so short a run: take more videos")
    return made("label", about, rows, notes, watch)


@dataclass(slots=True)
class _Runs:
    """The runs of one way over the same videos. What lies in the page cache after the first is read from there."""

    bundle: Path
    videos: list[str]
    way: Execution
    scratch: Path
    settings: VideoSettings
    stages: list[Row] = field(default_factory=list)
    last: Row = field(default_factory=dict)

    def __call__(self) -> tuple[float]:
        """Label all videos and return the seconds of one, without loading the model."""
        options = Options(
            out=self.scratch / "rows.jsonl",
            runner=self.way.runner.name,
            precision=self.way.precision,
            variant=self.way.variant,
            device=self.way.runner.device,
            decoder=self.settings.decoder,
            workers=self.settings.workers,
            restart=True,
        )
        summary = label_videos(self.bundle, self.videos, options)
        classes = load_bundle(self.bundle).spec.classes
        self.stages.append(_split(summary))
        self.last = {
            "videos": summary.done,
            "failed": summary.statuses["failed"],
            "times_real_time": summary.times_real_time,
            "workers": summary.stages.workers,
            "bound_by": summary.stages.bound_by(),
            "busy": {"decode": summary.stages.decode_busy, "engine": summary.stages.engine_busy},
            "accuracy": hits((truth_of(Path(row.path), classes), row.label) for row in summary.rows),
        }
        return (summary.stages.wall_s / summary.done,)

    def row(self) -> Row:
        """Return what all runs but the first, which warmed up, came to."""
        counted = self.stages[1:]
        stages = {name: statistics.median(each[name] for each in counted) for name in counted[0]}
        return {**self.last, "stages_ms_a_video": stages}


def _split(summary: Summary) -> Row:
    """Return the milliseconds of each stage for a video; stages of several workers and engines overlap."""
    stages, dali = summary.stages, summary.stages.batch_name
    seconds = {
        "decode": stages.decode_s - stages.scale_s,
        "preprocess": stages.scale_s,
        **({dali: stages.batch_s} if dali else {}),
        "transfer": stages.gather_s,
        "engine": stages.engine_s,
        "write": stages.write_s,
    }
    return {name: 1e3 * each / summary.done for name, each in seconds.items()}
