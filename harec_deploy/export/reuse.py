"""Proof that frames which take over the features of an earlier one leave labels as they are, and what that saves."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from harec_deploy.bundle import Bundle, alone, reread, save
from harec_deploy.decode import Frames, choose
from harec_deploy.discover import VideoFile
from harec_deploy.errors import ProofError, UsageError, VideoError
from harec_deploy.export.verify import MIN_AGREEMENT, REFERENCE, numeric, spread
from harec_deploy.intervals import ratio_interval, wilson
from harec_deploy.recognizer import Recognizer
from harec_deploy.sampling import Window, Windowing
from harec_deploy.spec import Flip, ReuseProof
from harec_deploy.windows import Track

Progress = Callable[[int, int], None]
NAMED = 5  # flipped windows in an error's one line


def prove_reuse(
    recognizer: Recognizer,
    inputs: Sequence[str],
    threshold: float,
    *,
    windowing: Windowing | None = None,
    max_clips: int = 100,
    progress: Progress = lambda done, total: None,
) -> ReuseProof:
    """Label videos with reuse and without, by the same recogniser, and compare window by window; ``store`` keeps it.

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


@alone
def store(bundle: Bundle, proof: ReuseProof) -> None:
    """Keep the proof in the bundle, in the place of an older one of this variant and threshold; ``label`` tells of it.

    Raises:
        ProofError: it did not pass; then the bundle stays as it was.
    """
    if not proof.passed:
        raise _failure(proof)
    spec, of = reread(bundle).spec, (proof.variant, proof.threshold)
    others = [each for each in spec.reuse if (each.variant, each.threshold) != of]
    save(bundle.folder, msgspec.structs.replace(spec, reuse=[*others, proof]))


def _failure(proof: ReuseProof) -> ProofError:
    if not proof.share_reused:
        told = f"at {proof.threshold:g} levels no frame of {proof.videos} videos takes over features"
        return ProofError(f"{told}, so they prove nothing of it: name videos of a fixed camera")
    named = ", ".join(map(str, proof.flips[:NAMED])) or "none"
    more = f" and {len(proof.flips) - NAMED} more" if len(proof.flips) > NAMED else ""
    return ProofError(
        f"features reused at {proof.threshold:g} levels do not leave labels as they are: {kept(proof)}, at least "
        f"{MIN_AGREEMENT:.0%} are wanted; flipped: {named}{more}; nothing was stored: take a lower --reuse-threshold"
    )


def kept(proof: ReuseProof) -> str:
    """Return in words how many labels stay, with the interval."""
    low, high = proof.top1_interval
    share = f"{proof.top1_agreement:.1%} of {proof.windows} windows keep their label"
    return f"{share} (95 % interval {low:.1%} to {high:.1%})"


def saved(proof: ReuseProof) -> str:
    """Return in words what reuse brings, with the intervals where there are any."""
    encoder, faster = proof.encoder_saved_interval, proof.times_faster_interval
    sure = [f" (95 % interval {encoder[0]:.1%} to {encoder[1]:.1%})" if encoder else ""]
    sure.append(f" ({faster[0]:.2f} to {faster[1]:.2f})" if faster else "")
    told = f"{proof.share_reused:.1%} of frames take over features, {proof.encoder_saved:.1%} of the encoder's time is"
    return f"{told} saved{sure[0]}; with comparing frames, and the head, {proof.times_faster:.2f} times faster{sure[1]}"


@dataclass(slots=True)
class _Way:
    """What one way gave so far, and the seconds of its turns: of the encoder, and of all but decoding.

    probabilities: float32 (windows, C) of each video.
    """

    recognizer: Recognizer
    threshold: float | None
    probabilities: list[NDArray[np.float32]] = field(default_factory=list)
    encoder_s: list[float] = field(default_factory=list)
    all_s: list[float] = field(default_factory=list)

    def turn(self, track: Track, frames: Frames) -> None:
        """Take a video's next frames."""
        self.encoder_s.append(0.0)
        begun = time.perf_counter()
        self.recognizer.feed(track, [frames], self._keep)
        self.all_s.append(time.perf_counter() - begun)

    def _keep(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        begun = time.perf_counter()
        features = self.recognizer.keep(pixels)
        self.encoder_s[-1] += time.perf_counter() - begun
        return features

    def forget(self, turns: int) -> None:
        """Keep only the first of the turns."""
        del self.encoder_s[turns:], self.all_s[turns:]


class _Measured:
    """What both ways gave so far, each part of a video by one and then by the other."""

    def __init__(self, recognizer: Recognizer, threshold: float, windowing: Windowing | None) -> None:
        self.recognizer, self.threshold, self.windowing = recognizer, threshold, windowing
        self.anew, self.reused = _Way(recognizer, None), _Way(recognizer, threshold)
        self.names: list[str] = []
        self.flipped: list[str] = []
        self.flips: list[Flip] = []
        self.frames = self.frames_reused = 0

    def add(self, video: VideoFile) -> None:
        """Label a video both ways; one that cannot be decoded counts for nothing."""
        recognizer, before = self.recognizer, len(self.anew.all_s)
        ways = self.anew, self.reused
        tracks = [Track(recognizer.spec.sampling, self.windowing, way.threshold) for way in ways]
        try:
            parts = choose(REFERENCE).stream(
                video.path, tracks[0].timestamps_s, recognizer.spec.size, recognizer.part_frames
            )
            for frames in parts:
                turns = list(zip(ways, tracks, strict=True))
                for way, track in turns if len(self.anew.all_s) % 2 else reversed(turns):
                    way.turn(track, frames)
        except VideoError:
            for way in ways:
                way.forget(before)
            return
        for way, track in zip(ways, tracks, strict=True):
            way.probabilities.append(np.concatenate(track.probabilities))
        self.names.append(video.name)
        self.frames += tracks[1].reuse.compared
        self.frames_reused += tracks[1].reuse.reused
        self._compare(video.name, tracks[0].windows)

    def _compare(self, name: str, windows: Sequence[Window]) -> None:
        """Note the windows of the last video whose labels differ."""
        wanted, got, classes = self.anew.probabilities[-1], self.reused.probabilities[-1], self.recognizer.spec.classes
        labels = zip(windows, wanted.argmax(1), got.argmax(1), strict=True)
        flips = [
            Flip(
                clip=name if self.windowing is None else f"{name} at {window.start_s:g} s",
                wanted=classes[old],
                wanted_score=float(wanted[place, old]),
                got=classes[new],
                got_score=numeric(float(got[place, new]), 0.0),
            )
            for place, (window, old, new) in enumerate(labels)
            if old != new
        ]
        self.flips += flips
        self.flipped += [name] if flips else []

    def proof(self, tried: int) -> ReuseProof:
        if not self.names:
            raise UsageError(f"none of {tried} videos can be decoded: name others")
        wanted, got = (np.concatenate(way.probabilities) for way in (self.anew, self.reused))
        apart, same = np.abs(wanted - got), float((wanted.argmax(1) == got.argmax(1)).mean())
        mean_abs_dp, max_abs_dp = float(apart.mean()), float(apart.max())
        how = self.windowing
        # Two windows that share most of their frames are not two samples.
        alone = max(len(wanted) * (how.stride_s / how.window_s if how else 1.0), 1.0)
        left, sure = sum(self.reused.encoder_s) / sum(self.anew.encoder_s), self._intervals()
        execution = self.recognizer.execution
        return ReuseProof(
            threshold=self.threshold,
            variant=execution.variant,
            runner=execution.runner.name,
            precision=execution.precision,
            window_s=how.window_s if how else None,
            stride_s=how.stride_s if how else None,
            videos=len(self.names),
            windows=len(wanted),
            share_reused=self.frames_reused / self.frames,
            encoder_saved=1 - left,
            encoder_saved_interval=sure[0],
            times_faster=sum(self.anew.all_s) / sum(self.reused.all_s),
            times_faster_interval=sure[1],
            top1_agreement=same,
            top1_interval=wilson(same * alone, alone),
            mean_abs_dp=numeric(mean_abs_dp, 1.0),
            max_abs_dp=numeric(max_abs_dp, 1.0),
            flipped=self.flipped,
            flips=self.flips,
            # False for NaN too; where no frame was reused nothing was tried.
            passed=self.frames_reused > 0 and same >= MIN_AGREEMENT and max_abs_dp <= 1.0,
        )

    def _intervals(self) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
        """Return those of the share of the encoder's time that is saved, and of how many times faster all is."""
        left = ratio_interval(self.reused.encoder_s, self.anew.encoder_s)
        return (1 - left[1], 1 - left[0]) if left else None, ratio_interval(self.anew.all_s, self.reused.all_s)
