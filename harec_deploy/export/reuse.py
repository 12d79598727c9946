"""Proof that frames which take over the features of an earlier one leave labels as they are, and what that saves."""

import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from harec_deploy.bundle import save
from harec_deploy.decode import Frames, choose
from harec_deploy.discover import VideoFile
from harec_deploy.errors import UsageError, VideoError
from harec_deploy.export.verify import MIN_AGREEMENT, REFERENCE, spread
from harec_deploy.recognizer import Recognizer
from harec_deploy.sampling import Windowing
from harec_deploy.spec import ReuseProof
from harec_deploy.windows import Track

Progress = Callable[[int, int], None]


def prove_reuse(
    recognizer: Recognizer,
    inputs: Sequence[str],
    threshold: float,
    *,
    windowing: Windowing | None = None,
    max_clips: int = 100,
    progress: Progress = lambda done, total: None,
) -> ReuseProof:
    """Label videos with reuse and without, by the same recogniser, and compare window by window; nothing is stored.

    inputs: videos, folders or lists, of which at most ``max_clips`` are taken, spread evenly over all.
    threshold: in levels, see ``reuse.difference``. windowing: by default each video is one window.

    Raises:
        UsageError: a clip-wise model, a threshold that is not of 0 to 255, or no video that can be decoded.
    """
    if not recognizer.framewise:
        raise UsageError("this model takes whole clips and has no features of frames to reuse")
    videos, measured = spread(inputs, max_clips), _Measured(recognizer, threshold, windowing)
    for done, video in enumerate(videos):
        progress(done, len(videos))
        measured.add(video)
    progress(len(videos), len(videos))
    return measured.proof(len(videos))


def store(recognizer: Recognizer, proof: ReuseProof) -> None:
    """Keep the proof in the bundle, in the place of an older one of the same threshold; ``label`` tells of it."""
    spec = recognizer.bundle.spec
    others = [each for each in spec.reuse if each.threshold != proof.threshold]
    save(recognizer.bundle.folder, msgspec.structs.replace(spec, reuse=[*others, proof]))


class _Measured:
    """What both ways gave so far, and how long each took."""

    def __init__(self, recognizer: Recognizer, threshold: float, windowing: Windowing | None) -> None:
        self.recognizer, self.threshold, self.windowing = recognizer, threshold, windowing
        self.names: list[str] = []
        self.flipped: list[str] = []
        self.wanted: list[NDArray[np.float32]] = []  # (windows, C) of each video
        self.got: list[NDArray[np.float32]] = []
        self.seconds = {"anew": 0.0, "reused": 0.0}
        self.compared = self.reused = 0

    def add(self, video: VideoFile) -> None:
        """Label a video both ways, in turn one and the other first; one that cannot be decoded counts for nothing."""
        tracks = {"anew": self._track(None), "reused": self._track(self.threshold)}
        spec = self.recognizer.spec
        try:
            stream = choose(REFERENCE).stream(
                video.path, tracks["anew"].timestamps_s, spec.size, self.recognizer.part_frames
            )
            parts = list(stream)
        except VideoError:
            return
        for way in sorted(tracks, reverse=len(self.names) % 2 == 1):
            self._feed(way, tracks[way], parts)
        wanted, got = (np.concatenate(track.probabilities) for track in tracks.values())
        self.names.append(video.name)
        self.wanted.append(wanted)
        self.got.append(got)
        if (wanted.argmax(1) != got.argmax(1)).any():
            self.flipped.append(video.name)
        self.compared += tracks["reused"].reuse.compared
        self.reused += tracks["reused"].reuse.reused

    def _track(self, threshold: float | None) -> Track:
        return Track(self.recognizer.spec.sampling, self.windowing, threshold)

    def _feed(self, way: str, track: Track, parts: list[Frames]) -> None:
        start = time.perf_counter()
        self.recognizer.feed(track, parts)
        self.seconds[way] += time.perf_counter() - start

    def proof(self, tried: int) -> ReuseProof:
        if not self.names:
            raise UsageError(f"none of {tried} videos can be decoded: name others")
        wanted, got = np.concatenate(self.wanted), np.concatenate(self.got)
        agreement = float((wanted.argmax(1) == got.argmax(1)).mean())
        max_abs_dp = float(np.abs(wanted - got).max())
        execution = self.recognizer.execution
        return ReuseProof(
            threshold=self.threshold,
            variant=execution.variant,
            runner=execution.runner.name,
            precision=execution.precision,
            videos=len(self.names),
            windows=len(wanted),
            share_reused=self.reused / self.compared,
            times_faster=self.seconds["anew"] / self.seconds["reused"],
            top1_agreement=agreement,
            max_abs_dp=max_abs_dp,
            flipped=self.flipped,
            passed=agreement >= MIN_AGREEMENT and max_abs_dp <= 1.0,  # False for NaN too
        )
