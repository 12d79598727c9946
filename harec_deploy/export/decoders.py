"""Proof that another decoder gives the reference decoder's frames, and the labels that come of them."""

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from harec_deploy.bundle import DecoderProof, save
from harec_deploy.decode import Decoder, Refused, choose
from harec_deploy.errors import UsageError, VideoError
from harec_deploy.export.verify import MIN_AGREEMENT, REFERENCE, clip_of, spread
from harec_deploy.recognizer import Recognizer

Progress = Callable[[int, int], None]


def prove_decoder(
    recognizer: Recognizer,
    inputs: Sequence[str],
    name: str,
    *,
    device: str = "cpu",
    max_clips: int = 100,
    progress: Progress = lambda done, total: None,
) -> DecoderProof:
    """Compare the pixels and labels of clips from a decoder with those from the reference decoder, and store it.

    device: "cpu" or "cuda:N", for a decoder that can use either.
    Clips that the reference decoder cannot give count for nothing; those that ``name`` refuses go to the reference in
    a run, and are counted.

    Raises:
        UsageError: no such decoder, or no video that both can decode.
    """
    reference, decoder = choose(REFERENCE), choose(name, device)
    videos = spread(inputs, max_clips)
    measured = _Measured()
    for done, video in enumerate(videos):
        progress(done, len(videos))
        try:
            wanted = clip_of(reference, video, recognizer.spec)
        except VideoError:
            continue
        try:
            got = clip_of(decoder, video, recognizer.spec)
        except (Refused, VideoError):
            measured.refused += 1
            continue
        measured.add(video.name, recognizer, wanted, got)
    progress(len(videos), len(videos))
    if not measured.names:
        raise UsageError(f"decoder {name} takes none of {len(videos)} videos: name others")
    proof = measured.proof(decoder, recognizer)
    _store(recognizer, proof)
    return proof


class _Measured:
    """What the clips of two decoders differ by."""

    def __init__(self) -> None:
        self.refused = 0
        self.names: list[str] = []
        self.flipped: list[str] = []
        self.mean_levels: list[float] = []
        self.max_level = 0
        self.max_abs_dp = 0.0

    def add(self, name: str, recognizer: Recognizer, wanted: NDArray[np.uint8], got: NDArray[np.uint8]) -> None:
        levels = np.abs(wanted.astype(np.int16) - got)
        here, there = recognizer.predict(np.stack([wanted, got]))
        self.names.append(name)
        self.mean_levels.append(float(levels.mean()))
        self.max_level = max(self.max_level, int(levels.max()))
        self.max_abs_dp = float(np.maximum(self.max_abs_dp, np.abs(here - there).max()))  # NaN stays
        if here.argmax() != there.argmax():
            self.flipped.append(name)

    def proof(self, decoder: Decoder, recognizer: Recognizer) -> DecoderProof:
        agreement = 1 - len(self.flipped) / len(self.names)
        runner = recognizer.execution.runner
        return DecoderProof(
            decoder=decoder.name,
            decoder_version=decoder.version,
            device=decoder.device.partition(":")[0],
            hardware=runner.hardware,
            clips=len(self.names),
            refused=self.refused,
            mean_level_difference=float(np.mean(self.mean_levels)),
            max_level_difference=self.max_level,
            top1_agreement=agreement,
            max_abs_dp=self.max_abs_dp,
            flipped=self.flipped,
            passed=agreement >= MIN_AGREEMENT and self.max_abs_dp <= 1.0,  # False for NaN too
        )


def _store(recognizer: Recognizer, proof: DecoderProof) -> None:
    spec = recognizer.bundle.spec
    others = [each for each in spec.decoders if (each.decoder, each.device) != (proof.decoder, proof.device)]
    save(recognizer.bundle.folder, msgspec.structs.replace(spec, decoders=[*others, proof]))
