"""How a labelling run is to go: what its command line says, checked before anything is loaded."""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from harec_deploy.bundle import Bundle
from harec_deploy.errors import OutputError, UsageError
from harec_deploy.files import lock_path
from harec_deploy.label import features, outputs
from harec_deploy.label.child import Limits
from harec_deploy.label.engine import Stages
from harec_deploy.label.journal import Row, features_path, summary_path
from harec_deploy.reuse import Reuse
from harec_deploy.sampling import Windowing
from harec_deploy.shard import Shard

MOST = 1e9  # of what is counted or timed; what is beyond has no meaning, and no room in what the system keeps


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is.

    done, total: rows that are there, and inputs; new, failed: rows of this run, and those of them that failed.
    row: the last one.
    """

    done: int
    total: int
    new: int
    failed: int
    row: Row
    stages: Stages

    @property
    def videos_per_s(self) -> float:
        """Videos of this run a second of wall time."""
        return self.new / self.stages.wall_s if self.stages.wall_s else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run.

    out: the journal, or a table of a suffix in outputs.WRITERS that is written beside a journal of the same name.
    limits: of memory and seconds for each video, or each part of a long one.
    runner, precision, variant: what executes the bundle; "auto" takes the fastest, or what the journal was begun with.
    device: where, as devices.resolve reads it; several devices have an engine each.
    decoder: a name of decoders.CHOICES; "auto" keeps what the journal was begun with.
    shard: of all videos, the part to label.
    window_s or fps: look at windows of so many seconds, or of the bundle's frames at so many a second; by default at
        each video as a whole. stride_s: from one window to the next; a quarter of a window by default.
    smooth, min_segment_s: how windows become segments; min_segment_s is half a window by default.
    min_score: below it a label is "unknown".
    reuse_threshold: frames that are at most so many levels from an earlier one of their video take over its features.
    rebuild: builds TensorRT plans again that were made for another TensorRT or GPU, called with the bundle, the
        variant and the device; without it they are refused.
    max_errors: stop when so many videos failed, or "5%" of all.
    features: a table of feature vectors to write when the run ends; vtt, annotate: folders for captions,
        and for copies of the videos with their labels drawn in.
    stop: set from outside, ends the run in good order.
    announce: called with a line of text when a choice was made; progress: after each row; annotating: with
        (copies done, copies in all).
    """

    out: Path
    runner: str = "auto"
    variant: str = "auto"
    device: str = "auto"
    decoder: str = "auto"
    precision: str = "auto"
    top_k: int = 5
    workers: int | None = None
    limits: Limits = field(default_factory=Limits)
    window_s: float | None = None
    stride_s: float | None = None
    fps: float | None = None
    smooth: int = 3
    min_segment_s: float | None = None
    min_score: float = 0.0
    reuse_threshold: float | None = None
    max_errors: str | None = None
    rebuild: Callable[[Bundle, str, str], object] | None = None
    all_files: bool = False
    follow_links: bool = False
    restart: bool = False
    retry_failed: bool = False
    features: Path | None = None
    vtt: Path | None = None
    annotate: Path | None = None
    shard: Shard | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    announce: Callable[[str], None] = lambda text: None
    progress: Callable[[Progress], None] = lambda progress: None
    annotating: Callable[[int, int], None] = lambda done, total: None

    @property
    def journal(self) -> Path:
        """Where the journal lies."""
        return self.out.with_suffix(".jsonl")

    def written(self) -> list[Path]:
        """Return every file and folder that the run writes."""
        beside = [summary_path(self.journal), features_path(self.journal), lock_path(self.journal)]
        asked = [path for path in (self.features, self.vtt, self.annotate) if path]
        return [self.out, self.journal, *beside, *asked]

    def check(self) -> None:
        """Raise UsageError, or OutputError, for options that cannot be met, before anything is loaded."""
        outputs.check(self.out, "--out", (".jsonl", *outputs.WRITERS))
        if self.features:
            outputs.check(self.features, "--features", features.SUFFIXES)
        if self.annotate:
            outputs.need("pillow", "annotate", "--annotate")
        if self.journal.exists() and not self.journal.is_file():
            raise OutputError(f"{self.journal} is no regular file: a journal is read again; name another --out")
        for name, path in (("--out", self.out), ("--features", self.features)):
            if path and not path.parent.is_dir():
                raise UsageError(f"{name} {path}: there is no folder {path.parent}")
        if self.features and self.features.resolve() == self.out.resolve():
            raise UsageError(f"--features {self.features} is --out too: name another file")
        for name, value in (("--top-k", self.top_k), ("--workers", self.workers), ("--timeout", self.limits.seconds)):
            if value is not None and not 1 <= value < MOST:
                raise UsageError(f"{name} {value:g}: allowed are 1 and more, below {MOST:g}")
        if not 0 <= self.min_score <= 1:
            raise UsageError(f"--min-score {self.min_score:g}: allowed are 0 to 1")
        if self.window_s and self.fps:
            raise UsageError("--window and --fps both give the length of a window: name one")
        if self.stride_s and not (self.window_s or self.fps):
            raise UsageError("--stride is between windows: give --window or --fps too")
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise UsageError(f"--fps {self.fps:g}: allowed are values above 0")
        if self.window_s:
            self.windowing(1)
        Reuse(self.reuse_threshold)
        self.error_limit(1)

    def windowing(self, frames: int) -> Windowing | None:
        """Return the windows of ``frames`` frames to look at, None for each video as a whole. Raises UsageError."""
        window_s = frames / self.fps if self.fps else self.window_s
        if window_s is None:
            return None
        return Windowing(
            window_s=window_s,
            stride_s=window_s / 4 if self.stride_s is None else self.stride_s,
            smooth=self.smooth,
            min_segment_s=window_s / 2 if self.min_segment_s is None else self.min_segment_s,
        )

    def error_limit(self, total: int) -> float:
        """Return how many failures stop a run of ``total`` videos."""
        if self.max_errors is None:
            return math.inf
        text = self.max_errors.strip()
        try:
            value = float(text.removesuffix("%"))
        except ValueError:
            value = math.nan
        if not 0 < value < math.inf:
            raise UsageError(f"--max-errors {self.max_errors}: allowed are a number of videos or a share: 20 or 5%")
        return max(value * total / 100 if text.endswith("%") else value, 1.0)
