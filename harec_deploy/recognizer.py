"""A bundle made executable: frames, features, clips and videos in, probabilities and labels out.

frames (N, H, W, 3) uint8 -> encode -> features (N, D) -> (B, T, D) -> classify -> probabilities (B, C)
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harec_deploy.bundle import Bundle
from harec_deploy.decode import Frames, VideoInfo, choose
from harec_deploy.discover import VideoFile
from harec_deploy.errors import BundleError, HarecError, UsageError, VideoError
from harec_deploy.runners import Execution, Graph
from harec_deploy.runners.gpu_clock import Clocked, GpuClock
from harec_deploy.sampling import Window, Windowing
from harec_deploy.segments import Segment, label_of, merge
from harec_deploy.spec import BundleSpec
from harec_deploy.windows import Track

_PIXELS = np.dtype(np.uint8)
PART_FRAMES = 16  # of a long video that are decoded at a time
BATCH_CLIPS = 64  # clips of features to the head at a time
CHECK_TOLERANCE = 1e-3  # how far fp32 probabilities may move between machines


@dataclass(frozen=True, slots=True)
class VideoResult:
    """The label of one video, or why it has none.

    path: as it was given.
    top: (class, probability), most probable first; empty when the video failed. Of several windows, their mean.
    segments: of a video that was looked at in windows.
    info: None when the video could not be opened.
    min_score: below it the label is "unknown".
    """

    path: str
    top: tuple[tuple[str, float], ...] = ()
    segments: tuple[Segment, ...] = ()
    info: VideoInfo | None = None
    bad_packets: int = 0
    error: VideoError | None = None
    min_score: float = 0.0

    @property
    def label(self) -> str | None:
        """The most probable class, or "unknown"."""
        return label_of(*self.top[0], self.min_score) if self.top else None

    @property
    def score(self) -> float | None:
        """The probability of the most probable class."""
        return self.top[0][1] if self.top else None

    @property
    def status(self) -> str:
        """Return "ok", "partial" where packets are missing or were refused, or "failed"."""
        if self.error or not self.info:
            return "failed"
        return "ok" if self.info.complete and not self.bad_packets else "partial"


class Recognizer:
    """Runs a bundle's graphs; make one with ``harec_deploy.load``.

    Threads may share it, and take turns; processes may not, each loads its own.

    reason: why it runs in the way that it does, in words. refused: ways that were tried before it and do not run.
    """

    def __init__(self, bundle: Bundle, execution: Execution, *, threads: int | None = None, check: bool = True) -> None:
        """Load the graphs of ``execution`` and, with ``check``, test them on the bundle's check clips.

        Raises:
            BundleError: a graph cannot be loaded or is of another model, or the check clips' labels come out wrong.
        """
        self._process, self._turn = os.getpid(), Lock()
        self.bundle = bundle
        self.spec: BundleSpec = bundle.spec
        self.execution = execution
        self.reason = "the only way that was asked for and is proved"
        self.refused: list[HarecError] = []
        self._graphs: dict[str, Graph] = {
            **execution.runner.load(bundle, execution.variant, precision=execution.precision, threads=threads)
        }
        self._notes = execution.runner.notes
        self._try(check=check)

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the features of frames: uint8 (N, H, W, 3) -> float32 (N, D).

        Raises:
            UsageError: frames of another shape or type; a clip-wise model, which has no features of single frames.
        """
        if not self.framewise:
            raise UsageError("this model takes whole clips, not frames: use predict")
        self._expect(frames, (self.spec.size.height, self.spec.size.width, 3), "frames (N, H, W, 3)")
        if not len(frames):
            return np.zeros((0, self.spec.feature_dim), dtype=np.float32)
        return self._run("encoder", frames)

    def classify(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the probabilities of clips by their features: float32 (B, T, D) -> float32 (B, C)."""
        return softmax(self.logits(features) / self.spec.temperature)

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the head gives for clips' features: float32 (B, T, D) -> float32 (B, C).

        Raises:
            UsageError: features of another shape or type; a clip-wise model, which has none.
        """
        if not self.framewise:
            raise UsageError("this model takes whole clips, and has no features of frames: use predict")
        wanted = (self.spec.sampling.frames, self.spec.feature_dim)
        self._expect(features, wanted, "features (B, T, D)", np.dtype(np.float32))
        if not len(features):
            return np.zeros((0, len(self.spec.classes)), dtype=np.float32)
        return self._run("head", features)

    def _run(self, graph: str, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Run a graph, for one thread at a time: graphs have buffers of their own."""
        if os.getpid() != self._process:
            raise UsageError(
                "this recogniser was loaded in another process, and a fork has no threads of it: load one here"
            )
        with self._turn:
            return self._graphs[graph](np.ascontiguousarray(batch))

    def predict(self, clips: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the probabilities of clips: uint8 (B, T, H, W, 3) -> float32 (B, C).

        Raises:
            UsageError: clips of another shape or type than the model takes.
        """
        size, count = self.spec.size, self.spec.sampling.frames
        self._expect(clips, (count, size.height, size.width, 3), "clips (B, T, H, W, 3)")
        if not len(clips):
            return np.zeros((0, len(self.spec.classes)), dtype=np.float32)
        if not self.framewise:
            return softmax(self._run("model", clips) / self.spec.temperature)
        features = self.encode(clips.reshape(-1, size.height, size.width, 3))
        return self.classify(features.reshape(len(clips), count, -1))

    @property
    def framewise(self) -> bool:
        """Frames have features of their own: encoder and head, as against one model of whole clips."""
        return "encoder" in self._graphs

    @property
    def clocks(self) -> list[GpuClock[Any]]:
        """The GPU's clocks of its graphs; none on a CPU, and of a runtime whose stream nobody else may use."""
        return [graph.clock for graph in self._graphs.values() if isinstance(graph, Clocked)]

    @property
    def batch_frames(self) -> int:
        """How many frames the encoder takes at a time."""
        return self.execution.runner.batch_frames

    @property
    def batch_clips(self) -> int:
        """How many clips are classified at a time: of features, or of pixels for as many frames as the encoder's."""
        return BATCH_CLIPS if self.framewise else max(self.batch_frames // self.spec.sampling.frames, 1)

    @property
    def part_frames(self) -> int:
        """How many frames of a video are decoded at a time."""
        return max(self.spec.sampling.frames, PART_FRAMES)

    def keep(self, frames: NDArray[np.uint8]) -> NDArray[Any]:
        """Return what is kept of frames until their clips are whole: features, or the frames of a clip-wise model."""
        return self.encode(frames) if self.framewise else frames

    def gather(self, parts: Sequence[tuple[Track, Frames]]) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
        """Return the next frames of several videos in one batch, without those that reuse another's features.

        Also which of each part's frames those are. What ``keep`` makes of the batch, ``share`` gives to the parts.
        """
        fresh = [track.reuse.fresh(frames) for track, frames in parts]
        taken = [  # without a copy where all are
            frames.pixels if own.all() else frames.pixels[own] for (_, frames), own in zip(parts, fresh, strict=True)
        ]
        return taken[0] if len(taken) == 1 else np.concatenate(taken), fresh

    def share(
        self, parts: Sequence[tuple[Track, Frames]], fresh: Sequence[NDArray[np.bool_]], kept: NDArray[Any]
    ) -> list[NDArray[Any]]:
        """Return of each part what is kept of all its frames, those that were reused among them."""
        ends = np.cumsum([own.sum() for own in fresh])[:-1]
        each = zip(parts, fresh, np.split(kept, ends), strict=True)
        return [track.reuse.filled(own, features) for (track, _), own, features in each]

    def feed(
        self, track: Track, parts: Iterable[Frames], keep: Callable[[NDArray[np.uint8]], NDArray[Any]] | None = None
    ) -> None:
        """Put the probabilities of every window of a video into its track; parts: its frames, some at a time.

        keep: called in the place of ``keep``, by who wants to know what that takes.
        """
        keep = keep or self.keep
        for frames in parts:
            pixels, fresh = self.gather([(track, frames)])
            (kept,) = self.share([(track, frames)], fresh, keep(pixels))
            for clips in track.add(frames, kept, self.batch_clips):
                track.probabilities.append(self.judge(clips))

    def judge(self, clips: NDArray[Any]) -> NDArray[np.float32]:
        """Return the probabilities of clips of what ``keep`` gave: (B, T, ...) -> float32 (B, C)."""
        return self.classify(clips) if self.framewise else self.predict(clips)

    def label(
        self,
        path: str | Path,
        *,
        windows: Windowing | Sequence[Window] | None = None,
        reuse_threshold: float | None = None,
    ) -> VideoResult:
        """Label one video: as a whole, or each window of it; then the label is that of their mean probability.

        windows: a Windowing gives segments that are smoothed and merged, a list of windows a segment for each.
        reuse_threshold: frames that are at most so many levels from an earlier one take its features, see ``reuse``.
        Never raises for the video: a VideoResult with ``error`` says why it has no label.

        Raises:
            UsageError: a threshold for a clip-wise model, whose frames have no features of their own.
        """
        if reuse_threshold is not None and not self.framewise:
            raise UsageError("reuse_threshold: this model takes whole clips and has no features of frames to reuse")
        track = Track(self.spec.sampling, windows, reuse_threshold)
        try:
            video = VideoFile.named(os.fspath(path))
            if video.error:
                raise video.error
            self.feed(track, choose().stream(video.path, track.timestamps_s, self.spec.size, self.part_frames))
        except VideoError as error:
            return VideoResult(str(path), error=error)
        return self.result(str(path), track)

    def label_many(self, paths: Iterable[str | Path], *, workers: int | None = None) -> Iterator[VideoResult]:
        """Label many videos, decoding ahead in ``workers`` processes; results come as they are done, not in order.

        Raises:
            UsageError: one path in the place of several, or fewer workers than one.
        """
        if isinstance(paths, str | bytes | os.PathLike):
            raise UsageError(f"label_many takes several paths, got {paths!r}: use label, or [path]")
        if workers is not None and workers < 1:
            raise UsageError(f"{workers} workers: allowed are 1 and more, None for one on each core")
        from harec_deploy.label.run import label_stream

        return label_stream(self, (os.fspath(path) for path in paths), workers=workers)

    def result(self, path: str, track: Track, min_score: float = 0.0) -> VideoResult:
        """Make a video's result of its windows and their probabilities."""
        probabilities = np.concatenate(track.probabilities)
        if not np.isfinite(probabilities).all():
            error = VideoError("bad_output", "the model's output is not finite: export the bundle again")
            return VideoResult(path, info=track.info, error=error)
        mean = probabilities.mean(0)
        order = np.argsort(-mean, kind="stable")
        return VideoResult(
            path,
            top=tuple((self.spec.classes[i], float(mean[i])) for i in order),
            segments=self._segments(track, probabilities, min_score),
            info=track.info,
            bad_packets=track.bad_packets,
            min_score=min_score,
        )

    def _segments(self, track: Track, probabilities: NDArray[np.float32], min_score: float) -> tuple[Segment, ...]:
        if track.wanted is None:
            return ()
        if isinstance(track.wanted, Windowing):
            how = track.wanted
            return merge(
                track.windows,
                probabilities,
                self.spec.classes,
                smooth=how.smooth,
                min_segment_s=how.min_segment_s,
                min_score=min_score,
            )
        best = probabilities.argmax(1)
        return tuple(
            Segment(*window, label_of(self.spec.classes[label], float(row[label]), min_score), float(row[label]))
            for window, row, label in zip(track.windows, probabilities, best, strict=True)
        )

    def _expect(self, array: NDArray[Any], shape: tuple[int, ...], what: str, kind: np.dtype[Any] = _PIXELS) -> None:
        if array.dtype != kind or array.shape[1:] != shape:
            got = f"{array.dtype} {array.shape}"
            raise UsageError(f"{what} must be {kind} with {shape} behind the first axis, got {got}")

    def _try(self, *, check: bool) -> None:
        """Run clips, to see that the graphs take and give what the bundle says: the check clips, else a black one.

        The check clips' outputs must be finite and near the reference, as near as the proof was.
        """
        spec, count = self.spec, self.spec.sampling.frames
        checked = self.bundle.check_clips() if check else None
        clips = checked[0] if checked else np.zeros((1, count, spec.size.height, spec.size.width, 3), dtype=np.uint8)
        told = f"expected {self.execution.variant} to take uint8 {clips.shape[1:]} for a clip"
        try:
            kept = self.keep(clips.reshape(-1, *clips.shape[2:])) if self.framewise else clips
            if self.framewise and kept.shape != (len(clips) * count, spec.feature_dim):
                wanted = (count, spec.feature_dim)
                raise BundleError(f"it gives features {(len(kept) // len(clips), *kept.shape[1:])}, not {wanted}")
            probabilities = self.judge(kept.reshape(len(clips), count, *kept.shape[1:]) if self.framewise else clips)
        except BundleError as error:
            raise BundleError(f"{told}, but {error}: export the bundle again") from None
        if probabilities.shape != (len(clips), len(spec.classes)):
            shape = f"{probabilities.shape[-1]} probabilities for {len(spec.classes)} classes"
            raise BundleError(f"{self.execution} gives {shape}: export the bundle again")
        if checked:
            self._compare(probabilities, checked[1])

    def _compare(self, got: NDArray[np.float32], logits: NDArray[np.float32]) -> None:
        """Hold the check clips' probabilities against the reference's logits. Raises BundleError."""
        execution = self.execution
        proof = self.spec.ways()[execution.variant].proof(
            execution.runner.name, execution.precision, execution.runner.device
        )
        allowed = max(CHECK_TOLERANCE, 2 * proof.max_abs_dp if proof else 0.0)
        difference = float(np.abs(got - softmax(logits / self.spec.temperature)).max())
        if not difference <= allowed:  # NaN is not
            raise BundleError(
                f"{execution} gives other probabilities here than where it was exported: they differ by "
                f"{difference:.2g}, allowed are {allowed:.2g}; export the bundle again on this machine"
            )


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return probabilities over the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True), dtype=np.float32)
