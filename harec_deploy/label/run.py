"""The labelling run: discover, decode ahead, classify in shared batches, write a row a video, say what bounded it."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from harec_deploy import __version__
from harec_deploy.decode import choose
from harec_deploy.discover import VideoFile, discover
from harec_deploy.errors import UsageError
from harec_deploy.label.child import Limits
from harec_deploy.label.journal import Header, Journal, Row, make_row, read_header
from harec_deploy.label.outputs import write_csv
from harec_deploy.label.workers import Decoded, decode_ahead, default_workers
from harec_deploy.recognizer import Recognizer, VideoResult, load

SHARED_FRAMES = 64  # frames of several videos that are collected before they go to the encoder together


@dataclass(slots=True)
class Stages:
    """Seconds spent in each stage; decode is summed over the workers."""

    workers: int
    decode_s: float = 0.0
    engine_s: float = 0.0
    wall_s: float = 0.0

    def bound_by(self) -> str:
        """Say in words what the run waited for."""
        if not self.wall_s:
            return "nothing to do"
        engine = min(self.engine_s / self.wall_s, 1.0)
        decode = min(self.decode_s / (self.wall_s * self.workers), 1.0)
        first, second = ("engine", "decode") if engine >= decode else ("decode", "engine")
        high, low = max(engine, decode), min(engine, decode)
        return f"bound by {first} ({high:.0%} busy; {second} {low:.0%})"


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run did.

    rows: of every input, whether labelled now or before; done: how many were labelled now; media_s: their length.
    """

    rows: list[Row]
    done: int
    media_s: float
    stages: Stages
    ignored: Counter[str]

    @property
    def statuses(self) -> Counter[str]:
        """How many rows are ok, partial and failed."""
        return Counter(row.status for row in self.rows)

    @property
    def errors(self) -> Counter[str]:
        """How many rows have each error code."""
        return Counter(row.error["code"] for row in self.rows if row.error)

    @property
    def videos_per_s(self) -> float:
        """Videos of this run a second of wall time."""
        return self.done / self.stages.wall_s if self.stages.wall_s else 0.0

    @property
    def times_real_time(self) -> float:
        """Seconds of video a second of wall time."""
        return self.media_s / self.stages.wall_s if self.stages.wall_s else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run.

    out: the journal, or a .csv that is written beside a journal of the same name.
    limits: of memory and seconds for each video.
    runner, precision: what executes the bundle; "auto" takes the fastest, or what the journal was begun with.
    announce: called with a line of text when a choice was made; progress: with (rows done, rows in all, row).
    """

    out: Path
    runner: str = "auto"
    precision: str = "auto"
    top_k: int = 5
    workers: int | None = None
    limits: Limits = field(default_factory=Limits)
    all_files: bool = False
    restart: bool = False
    retry_failed: bool = False
    announce: Callable[[str], None] = lambda text: None
    progress: Callable[[int, int, Row], None] = lambda done, total, row: None

    @property
    def journal(self) -> Path:
        """Where the journal lies."""
        return self.out.with_suffix(".jsonl")

    def check(self) -> None:
        """Raise UsageError for options that cannot be met, before anything is loaded."""
        if self.out.suffix not in (".jsonl", ".csv"):
            raise UsageError(f"--out {self.out}: the suffix gives the form; allowed are .jsonl and .csv")
        if not self.out.parent.is_dir():
            raise UsageError(f"--out {self.out}: there is no folder {self.out.parent}")
        for name, value in (("--top-k", self.top_k), ("--workers", self.workers), ("--timeout", self.limits.seconds)):
            if value is not None and value < 1:
                raise UsageError(f"{name} {value:g}: allowed are 1 and more")


def label(bundle: Path, inputs: Sequence[str], options: Options) -> Summary:
    """Label every video of ``inputs`` that is not in the journal yet, and write the outputs.

    Raises:
        UsageError: an input does not exist, or there is no video in any.
        BundleError: the bundle is damaged.
        OutputError: the output cannot be written, or belongs to a run with other settings.
    """
    options.check()
    found = discover(inputs, all_files=options.all_files)
    if not found.videos:
        passed_over = ", ".join(f"{count} {what}" for what, count in found.ignored.items()) or "no files"
        raise UsageError(f"no videos in {', '.join(inputs)} ({passed_over} passed over; --all-files takes every file)")
    recognizer = _load(bundle, options)
    options.announce(f"{len(found.videos)} videos; {recognizer.execution} ({recognizer.reason})")
    header = make_header(recognizer, options.top_k)
    stages = Stages(options.workers or default_workers())
    start = time.perf_counter()
    with Journal(options.journal, header, restart=options.restart) as journal:
        todo = [video for video in found.videos if _is_due(journal.rows.get(video.key), retry=options.retry_failed)]
        skipped = len(found.videos) - len(todo)
        for done, (video, result) in enumerate(_label(recognizer, todo, stages, options.limits), 1):
            row = make_row(video, result, header)
            journal.append(row)
            options.progress(skipped + done, len(found.videos), row)
        rows = [journal.rows[video.key] for video in found.videos]
    if options.out.suffix == ".csv":
        write_csv(options.out, rows)
    stages.wall_s = time.perf_counter() - start
    mine = {video.key for video in todo}
    return Summary(
        rows=rows,
        done=len(todo),
        media_s=sum(row.duration_s or 0.0 for row in rows if row.key in mine),
        stages=stages,
        ignored=found.ignored,
    )


def _load(bundle: Path, options: Options) -> Recognizer:
    runner, precision = options.runner, options.precision
    begun = None if options.restart else read_header(options.journal)
    if begun and runner == "auto":
        runner = begun.runner
    if begun and precision == "auto":
        precision = begun.precision
    return load(bundle, runner=runner, precision=precision)


def make_header(recognizer: Recognizer, top_k: int) -> Header:
    """Return the header of a run with this recogniser."""
    execution = recognizer.execution
    return Header(
        bundle=recognizer.bundle.fingerprint(execution.variant),
        variant=execution.variant,
        runner=execution.runner.name,
        precision=execution.precision,
        decoder=choose().name,
        top_k=top_k,
        harec_deploy=__version__,
    )


def label_stream(
    recognizer: Recognizer, videos: Iterable[tuple[str, Path]], *, workers: int | None = None
) -> Iterator[VideoResult]:
    """Label (name, path) pairs and yield the results as they are done."""
    files = (VideoFile.at(name, path) for name, path in videos)
    for _, result in _label(recognizer, files, Stages(workers or default_workers()), Limits()):
        yield result


def _is_due(row: Row | None, *, retry: bool) -> bool:
    return row is None or (retry and row.status == "failed")


def _label(
    recognizer: Recognizer, videos: Iterable[VideoFile], stages: Stages, limits: Limits
) -> Iterator[tuple[VideoFile, VideoResult]]:
    """Decode ahead and classify; frames of many videos share the encoder's batches."""
    waiting: list[Decoded] = []
    for decoded in decode_ahead(videos, recognizer.spec, choose().name, stages.workers, limits):
        stages.decode_s += decoded.seconds
        if decoded.error:
            yield decoded.video, VideoResult(decoded.video.name, error=decoded.error)
            continue
        waiting.append(decoded)
        if len(waiting) * recognizer.spec.sampling.frames >= SHARED_FRAMES:
            yield from _classify(recognizer, waiting, stages)
            waiting = []
    yield from _classify(recognizer, waiting, stages)


def _classify(recognizer: Recognizer, batch: list[Decoded], stages: Stages) -> Iterator[tuple[VideoFile, VideoResult]]:
    if not batch:
        return
    clips = [recognizer.clips(item.frames) for item in batch if item.frames]
    start = time.perf_counter()
    probabilities = recognizer.predict(np.concatenate(clips))
    stages.engine_s += time.perf_counter() - start
    for item, each in zip(batch, np.split(probabilities, np.cumsum([len(c) for c in clips])[:-1]), strict=True):
        if item.frames:
            yield item.video, recognizer.result(item.video.name, item.frames, each)
