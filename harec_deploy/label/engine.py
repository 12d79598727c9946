"""The engine's side of a run: decoded frames in, results out; frames of many videos share the encoder's batches."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harec_deploy.decode import Frames
from harec_deploy.discover import VideoFile
from harec_deploy.label.child import PYAV, Plan
from harec_deploy.label.slots import Decoded
from harec_deploy.recognizer import Recognizer, VideoResult
from harec_deploy.sampling import Window, Windowing
from harec_deploy.windows import Track

SHARED_BATCHES = 4  # of frames of several videos that are collected before they go to the encoder together


@dataclass(slots=True)
class Stages:
    """Seconds spent in each stage: of decoding summed over the workers, and over the children of a second decoder.

    scale_s: the part of decode_s that went into sizes and colours, as far as the decoder tells.
    gather_s: copying frames into the engine's batches, and comparing them for reuse; a GPU's copies are in engine_s.
    write_s: the journal.
    engine_s: summed over the engines. videos: of several engines, how many each has labelled, by its name.
    batch_name, batch_children: the second decoder, "" and 0 where there is none. routes: videos that each decoder
    answered. compared, reused: frames that were looked at for reuse, and those of them that took over features.
    """

    workers: int
    decode_s: float = 0.0
    scale_s: float = 0.0
    gather_s: float = 0.0
    write_s: float = 0.0
    engine_s: float = 0.0
    wall_s: float = 0.0
    engines: int = 1
    videos: dict[str, int] = field(default_factory=dict)
    batch_name: str = ""
    batch_children: int = 0
    batch_s: float = 0.0
    routes: dict[str, int] = field(default_factory=dict)
    compared: int = 0
    reused: int = 0

    def plan(self, plan: Plan) -> None:
        """Take over what the plan says of a second decoder, which every engine has."""
        if plan.batch:
            self.batch_name, self.batch_children = plan.batch.name, plan.batch.children * self.engines

    def count(self, part: Decoded) -> None:
        """Count what decoding a video, or a part of one, took."""
        if part.route == PYAV:
            self.decode_s += part.seconds
        else:
            self.batch_s += part.seconds
        self.scale_s += part.frames.scaled_s if part.frames else 0.0
        self.batch_s += part.refused_s
        if part.last:
            self._route(part.route, 1)

    def add(self, other: "Stages") -> None:
        """Add what an engine of several spent; the wall's seconds are the run's own."""
        self.decode_s += other.decode_s
        self.scale_s += other.scale_s
        self.gather_s += other.gather_s
        self.engine_s += other.engine_s
        self.batch_s += other.batch_s
        self.compared += other.compared
        self.reused += other.reused
        for route, videos in other.routes.items():
            self._route(route, videos)

    def _route(self, route: str, videos: int) -> None:
        self.routes[route] = self.routes.get(route, 0) + videos

    @property
    def engine_busy(self) -> float:
        """Share of the engines' wall time that they worked."""
        return min(self.engine_s / (self.wall_s * max(self.engines, 1)), 1.0) if self.wall_s else 0.0

    @property
    def decode_busy(self) -> float:
        """Share of the workers' wall time that they decoded."""
        return min(self.decode_s / (self.wall_s * max(self.workers, 1)), 1.0) if self.wall_s else 0.0

    @property
    def batch_busy(self) -> float:
        """Share of the wall time of the second decoder's children that they decoded."""
        return min(self.batch_s / (self.wall_s * max(self.batch_children, 1)), 1.0) if self.wall_s else 0.0

    def routes_told(self) -> str:
        """Say in words how many videos each decoder answered and how busy it was; "" where there is one only."""
        if not self.batch_name:
            return ""
        shares = {PYAV: self.decode_busy, self.batch_name: self.batch_busy}
        return "; ".join(f"{name} {self.routes.get(name, 0)} videos, {busy:.0%} busy" for name, busy in shares.items())

    def reuse_told(self) -> str:
        """Say in words how many frames took over features; "" where none were looked at for that."""
        if not self.compared:
            return ""
        return f"{self.reused / self.compared:.0%} of {self.compared} frames took over features of an earlier one"

    def bound_by(self) -> str:
        """Say in words what the run waited for."""
        if not self.wall_s:
            return "nothing to do"
        engine, decode = (self.engine_busy, "engine"), (max(self.decode_busy, self.batch_busy), "decode")
        (high, first), (low, second) = (engine, decode) if engine[0] >= decode[0] else (decode, engine)
        return f"bound by {first} ({high:.0%} busy; {second} {low:.0%})"


@dataclass(frozen=True, slots=True)
class Labelled:
    """A video that is done.

    vectors: float32 (k, D), of its k windows, where they were asked for and it has a label.
    route: the decoder that answered for it.
    """

    video: VideoFile
    result: VideoResult
    windows: Sequence[Window] = ()
    vectors: NDArray[np.float32] | None = None
    route: str = PYAV


class _Whole(NamedTuple):
    """Clips (k, T, ...) that are whole, and the lists that their probabilities and mean features go to."""

    clips: NDArray[Any]
    probabilities: list[NDArray[np.float32]]
    vectors: list[NDArray[np.float32]]


@dataclass(slots=True)
class Engine:
    """Classifies what the decoders give. The time that it takes is added to ``stages``."""

    recognizer: Recognizer
    stages: Stages
    windowing: Windowing | None = None
    min_score: float = 0.0
    features: bool = False
    reuse_threshold: float | None = None
    _tracks: dict[VideoFile, Track] = field(default_factory=dict)

    def label(self, decoded: Iterable[Decoded]) -> Iterator[Labelled]:
        """Yield each video of ``decoded`` when its last part was classified; one of which no last part comes, never."""
        waiting: list[Decoded] = []
        frames, batches = 0, 1  # a run begins with few, so that its first label comes soon
        for part in decoded:
            self.stages.count(part)
            if part.frames is None:
                waiting = [other for other in waiting if other.video is not part.video]
                self._tracks.pop(part.video, None)
                yield Labelled(part.video, VideoResult(part.video.name, error=part.error), route=part.route)
                continue
            waiting.append(part)
            frames += len(part.frames.pixels)
            if frames >= batches * self.recognizer.batch_frames:
                yield from self._classify(waiting)
                waiting, frames, batches = [], 0, min(2 * batches, SHARED_BATCHES)
        yield from self._classify(waiting)

    def _classify(self, parts: list[Decoded]) -> Iterator[Labelled]:
        if not parts:
            return
        begun = time.perf_counter()
        tracked = [(self._track(part.video), part.frames) for part in parts if part.frames]
        pixels, fresh = self.recognizer.gather(tracked)
        start = time.perf_counter()
        self.stages.gather_s += start - begun
        kept = self.recognizer.share(tracked, fresh, self.recognizer.keep(pixels))
        for group in _grouped(self._whole_clips(tracked, kept), self.recognizer.batch_clips):
            probabilities = self.recognizer.judge(np.concatenate([whole.clips for whole in group]))
            ends = np.cumsum([len(whole.clips) for whole in group])[:-1]
            for whole, rows in zip(group, np.split(probabilities, ends), strict=True):
                whole.probabilities.append(rows)
                if self.features:
                    whole.vectors.append(whole.clips.mean(1, dtype=np.float32))
        self.stages.engine_s += time.perf_counter() - start
        for part in parts:
            if part.last:
                track = self._tracks.pop(part.video)
                self.stages.compared += track.reuse.compared
                self.stages.reused += track.reuse.reused
                result = self.recognizer.result(part.video.name, track, self.min_score)
                vectors = np.concatenate(track.vectors) if self.features and not result.error else None
                yield Labelled(part.video, result, track.windows, vectors, part.route)

    def _whole_clips(self, tracked: list[tuple[Track, Frames]], kept: list[NDArray[Any]]) -> Iterator[_Whole]:
        """Give each part what is kept of its frames, and yield the clips that are whole with it."""
        for (track, frames), own in zip(tracked, kept, strict=True):
            for clips in track.add(frames, own, self.recognizer.batch_clips):
                yield _Whole(clips, track.probabilities, track.vectors)

    def _track(self, video: VideoFile) -> Track:
        if video not in self._tracks:
            sampling = self.recognizer.spec.sampling
            self._tracks[video] = Track(sampling, self.windowing, self.reuse_threshold)
        return self._tracks[video]


def _grouped(items: Iterable[_Whole], count: int) -> Iterator[list[_Whole]]:
    """Yield items together until they have ``count`` clips."""
    group: list[_Whole] = []
    clips = 0
    for item in items:
        group.append(item)
        clips += len(item.clips)
        if clips >= count:
            yield group
            group, clips = [], 0
    if group:
        yield group
