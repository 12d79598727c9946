"""The proof: a variant's labels beside PyTorch's, on real clips, through the decoder that labelling uses."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from harec_deploy.decode import Decoder, Frames, Refused, Size, choose
from harec_deploy.discover import VideoFile, discover, truth_of
from harec_deploy.errors import ProofError, UsageError, VideoError
from harec_deploy.intervals import wilson
from harec_deploy.recognizer import Recognizer, softmax
from harec_deploy.runners import Execution
from harec_deploy.sampling import whole
from harec_deploy.spec import BundleSpec, Flip, Proof

if TYPE_CHECKING:
    from torch import nn

REFERENCE = "pyav"  # the decoder that defines what a frame is
MIN_AGREEMENT = 0.99  # of labels
MAX_ACCURACY_LOSS = 0.005  # half a point, where the true labels are known
ENOUGH_CLIPS = 100  # of fewer the interval is told
Check = tuple[NDArray[np.uint8], NDArray[np.float32]]  # a bundle's check clips and PyTorch's logits of them
MAX_ABS_DP = {"fp32": 1e-3}  # the same arithmetic must give the same probabilities; a coarser one may move them


@dataclass(frozen=True, slots=True)
class ProofClips:
    """Decoded clips: uint8 (N, T, H, W, 3), the names of their videos, those themselves, and what decoded them."""

    names: list[str]
    pixels: NDArray[np.uint8]
    videos: Sequence[VideoFile] = ()
    decoder: str = REFERENCE

    def truths(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """Return the place in ``classes`` of each clip's true class, -1 where nobody knows it: int64 (N,)."""
        places: dict[str | None, int] = {name: place for place, name in enumerate(classes)}
        truths = [truth_of(video.path, classes) for video in self.videos] or [None] * len(self.names)
        return np.array([places.get(truth, -1) for truth in truths], dtype=np.int64)


def read_clips(spec: BundleSpec, inputs: Sequence[str], limit: int) -> ProofClips:
    """Decode one clip of each video, at most ``limit`` videos spread evenly over all that are there.

    Raises:
        UsageError: no input, or no video in them that can be decoded.
    """
    if not inputs:
        raise UsageError("a proof needs real clips: name videos or folders with --clips")
    decoder, videos, clips = choose(REFERENCE), [], []
    chosen = spread(inputs, limit)
    for video in chosen:
        try:
            clips.append(frames_of(decoder, video, spec).pixels)
        except VideoError:
            continue  # a clip that cannot be decoded proves nothing; the count of those that can is in the proof
        videos.append(video)
    if not clips:
        raise UsageError(f"none of {len(chosen)} videos can be decoded: name others with --clips")
    return ProofClips([video.name for video in videos], np.stack(clips), videos)


def through(decoder: Decoder, clips: ProofClips, spec: BundleSpec) -> ProofClips:
    """Return the clips as another decoder gives them; those that it leaves to the reference stay as they are."""
    pixels = clips.pixels.copy()
    for place, video in enumerate(clips.videos):
        try:
            pixels[place] = frames_of(decoder, video, spec).pixels
        except (Refused, VideoError):
            continue  # in a run the reference takes it
    return replace(clips, pixels=pixels, decoder=decoder.name)


def spread(inputs: Sequence[str], limit: int) -> list[VideoFile]:
    """Return at most ``limit`` videos, spread evenly over all that are there."""
    videos = discover(inputs).videos
    step = max(len(videos) / limit, 1.0)
    return [videos[int(i * step)] for i in range(min(limit, len(videos)))]


def frames_of(decoder: Decoder, video: VideoFile, spec: BundleSpec, size: Size | None = None) -> Frames:
    """Return the clip of a whole video, of the bundle's size or another. Raises VideoError, and Refused."""
    return decoder.frames(
        video.path, lambda info: spec.sampling.timestamps_s(whole(info.duration_s)[0]), size or spec.size
    )


def reference_logits(model: "nn.Module", clips: ProofClips) -> NDArray[np.float32]:
    """Return PyTorch's logits of the clips: float32 (N, C)."""
    import torch  # a plan is proved on logits that a bundle has kept, without it

    with torch.inference_mode():
        parts = [model(torch.from_numpy(clip[None])).numpy() for clip in clips.pixels]
    return np.concatenate(parts)


def prove(recognizer: Recognizer, clips: ProofClips, logits: NDArray[np.float32], check: Check | None = None) -> Proof:
    """Measure how far the recogniser's labels and probabilities are from those of the reference.

    check: further clips of which only the difference counts: what the variant will be tested on wherever it is loaded.
    """
    wanted, got = _probabilities(recognizer, clips.pixels, logits)
    flips = _flips(clips.names, wanted, got, recognizer.spec.classes)
    max_abs_dp = float(np.abs(got - wanted).max())
    if check is not None:
        max_abs_dp = float(np.maximum(max_abs_dp, np.abs(np.subtract(*_probabilities(recognizer, *check))).max()))
    agreement = (len(clips.names) - len(flips)) / len(clips.names)
    truths = clips.truths(recognizer.spec.classes)
    accuracy, reference_accuracy = (_accuracy(each, truths) for each in (got, wanted))
    loss = 0.0 if accuracy is None or reference_accuracy is None else reference_accuracy - accuracy
    execution = recognizer.execution
    limit = max_abs_dp_of(execution.precision, clips.decoder)
    return Proof(
        runner=execution.runner.name,
        runner_version=execution.runner.version,
        precision=execution.precision,
        device=execution.runner.device.partition(":")[0],
        hardware=execution.runner.hardware,
        decoder=clips.decoder,
        clips=len(clips.names),
        top1_agreement=agreement,
        max_abs_dp=numeric(max_abs_dp, 1.0),  # the most that probabilities can be apart
        flipped=[flip.clip for flip in flips],
        flips=flips,
        labelled=int((truths >= 0).sum()),
        accuracy=accuracy,
        reference_accuracy=reference_accuracy,
        # False for NaN too
        passed=agreement >= MIN_AGREEMENT and max_abs_dp <= limit and loss <= MAX_ACCURACY_LOSS + 1e-9,
    )


def _flips(
    names: Sequence[str], wanted: NDArray[np.float32], got: NDArray[np.float32], classes: Sequence[str]
) -> list[Flip]:
    """Return the clips whose top class differs; wanted, got: probabilities float32 (N, C)."""
    labels = zip(wanted.argmax(1), got.argmax(1), strict=True)
    return [
        Flip(
            clip=names[clip],
            wanted=classes[old],
            wanted_score=float(wanted[clip, old]),
            got=classes[new],
            got_score=numeric(float(got[clip, new]), 0.0),
        )
        for clip, (old, new) in enumerate(labels)
        if old != new
    ]


def _accuracy(probabilities: NDArray[np.float32], truths: NDArray[np.int64]) -> float | None:
    """Return the share of clips with a known truth that are right, None without any."""
    known = truths >= 0
    return float((probabilities.argmax(1) == truths)[known].mean()) if known.any() else None


def measured(proof: Proof) -> str:
    """Return in words how a variant did beside the reference, with the interval where clips are few."""
    told = f"{proof.top1_agreement:.1%} of {proof.clips} clips keep their label"
    if proof.clips < ENOUGH_CLIPS:
        low, high = wilson(proof.clips - len(proof.flipped), proof.clips)
        told += f" (95 % interval {low:.1%} to {high:.1%})"
    if proof.accuracy is not None:
        told += f", {proof.accuracy:.1%} of {proof.labelled} right (PyTorch {proof.reference_accuracy:.1%})"
    return f"{told}, max |dp| {proof.max_abs_dp:.2g}"


def numeric(value: float, otherwise: float) -> float:
    """Return a figure as a bundle can keep it: JSON has no NaN."""
    return otherwise if np.isnan(value) else value


def max_abs_dp_of(precision: str, decoder: str) -> float:
    """Return how far probabilities may move: hardly, where neither the arithmetic nor the frames are others."""
    return MAX_ABS_DP.get(precision, 1.0) if decoder == REFERENCE else 1.0


def _probabilities(
    recognizer: Recognizer, clips: NDArray[np.uint8], logits: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the reference's probabilities of clips, and the recogniser's."""
    wanted = softmax(logits / recognizer.spec.temperature)
    return wanted, np.concatenate([recognizer.predict(clip[None]) for clip in clips])


def failure(execution: Execution, proof: Proof) -> ProofError:
    """Return the error that says how a proof failed."""
    limit = max_abs_dp_of(proof.precision, proof.decoder)
    return ProofError(
        f"{execution} is not the trained model: {measured(proof)}; needed are {MIN_AGREEMENT:.0%} of labels, "
        f"{MAX_ACCURACY_LOSS:.1%} of accuracy lost at most, and |dp| of {limit:g} at most; "
        f"flipped: {', '.join(map(str, proof.flips)) or 'none'}. {execution.variant} was not written"
    )
