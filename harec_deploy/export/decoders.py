"""Proof that another decoder gives the reference decoder's frames, and the labels that come of them."""

from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from harec_deploy.bundle import Bundle, alone, reread, save
from harec_deploy.decode import Decoder, Frames, Refused, choose
from harec_deploy.discover import VideoFile
from harec_deploy.errors import UsageError, VideoError
from harec_deploy.export.verify import MIN_AGREEMENT, REFERENCE, frames_of, numeric, spread
from harec_deploy.recognizer import Recognizer
from harec_deploy.spec import BundleSpec, DecoderProof

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

    device: "cpu" or "cuda:N", for a decoder that can use either. PyTorch is not needed: one recogniser labels both.

    Raises:
        UsageError: no such decoder, or no video that both can decode.
    """
    pairs = Pairs(choose(name, device), recognizer.spec, inputs, max_clips, progress)
    tally = DecoderTally()
    for video, wanted, got in pairs:
        tally.add(video.name, wanted.pixels, got, *recognizer.predict(np.stack([wanted.pixels, got])))
    proof = tally.proof(pairs, recognizer)
    store(recognizer.bundle, proof)
    return proof


class Pairs:
    """The clips of videos as the reference decoder gives them and as ``decoder`` does, which may be the same one.

    Clips that the reference decoder cannot give count for nothing; those that the other refuses go to the reference in
    a run, and are counted.
    """

    def __init__(
        self, decoder: Decoder, spec: BundleSpec, inputs: Sequence[str], max_clips: int, progress: Progress
    ) -> None:
        """Take at most ``max_clips`` videos, spread evenly over all that are there."""
        self.decoder = decoder
        self.reference = choose(REFERENCE)
        self.undecodable = 0
        self.refused = 0
        self._spec = spec
        self._videos = spread(inputs, max_clips)
        self._progress = progress

    def __iter__(self) -> Iterator[tuple[VideoFile, Frames, NDArray[np.uint8]]]:
        """Yield each video, the reference's frames and the other's pixels: uint8 (T, H, W, 3).

        Raises:
            UsageError: there is no video that both can decode.
        """
        total, taken = len(self._videos), 0
        for done, video in enumerate(self._videos):
            self._progress(done, total)
            try:
                wanted = frames_of(self.reference, video, self._spec)
            except VideoError:
                self.undecodable += 1
                continue
            try:
                got = wanted.pixels if self.decoder.name == REFERENCE else self._got(video)
            except (Refused, VideoError):
                self.refused += 1
                continue
            taken += 1
            yield video, wanted, got
        self._progress(total, total)
        if not taken:
            raise UsageError(f"decoder {self.decoder.name} takes none of {total} videos: name others")

    def _got(self, video: VideoFile) -> NDArray[np.uint8]:
        return frames_of(self.decoder, video, self._spec).pixels


class DecoderTally:
    """Gathers what the clips of two decoders differ by."""

    def __init__(self) -> None:
        self._clips = 0
        self._flipped: list[str] = []
        self._mean_levels: list[float] = []
        self._max_level = 0
        self._max_abs_dp = 0.0

    def add(
        self,
        name: str,
        wanted: NDArray[np.uint8],
        got: NDArray[np.uint8],
        here: NDArray[np.float32],
        there: NDArray[np.float32],
    ) -> None:
        """Add a clip as both decoders give it, uint8 (T, H, W, 3), and its probabilities by either, float32 (C,)."""
        levels = np.abs(wanted.astype(np.int16) - got)
        self._clips += 1
        self._mean_levels.append(float(levels.mean()))
        self._max_level = max(self._max_level, int(levels.max()))
        self._max_abs_dp = float(np.maximum(self._max_abs_dp, np.abs(here - there).max()))  # NaN stays
        if here.argmax() != there.argmax():
            self._flipped.append(name)

    def proof(self, pairs: Pairs, recognizer: Recognizer) -> DecoderProof:
        """Return what was gathered of these pairs, labelled by this recogniser."""
        agreement, decoder = 1 - len(self._flipped) / self._clips, pairs.decoder
        return DecoderProof(
            decoder=decoder.name,
            decoder_version=decoder.version,
            device=decoder.device.partition(":")[0],
            hardware=recognizer.execution.runner.hardware,
            clips=self._clips,
            refused=pairs.refused,
            mean_level_difference=float(np.mean(self._mean_levels)),
            max_level_difference=self._max_level,
            top1_agreement=agreement,
            max_abs_dp=numeric(self._max_abs_dp, 1.0),
            flipped=self._flipped,
            passed=agreement >= MIN_AGREEMENT and self._max_abs_dp <= 1.0,  # False for NaN too
        )


def failure_of(proof: DecoderProof) -> str | None:
    """Return why a decoder's proof does not pass; None if it does."""
    if proof.passed:
        return None
    kept = f"{proof.top1_agreement:.1%} of {proof.clips} are kept"
    return f"decoder {proof.decoder} does not give the labels of {REFERENCE}: {kept}"


@alone
def store(bundle: Bundle, proof: DecoderProof) -> None:
    """Write the proof into the bundle, in the place of the decoder's old one on that kind of device."""
    spec = reread(bundle).spec
    others = [each for each in spec.decoders if (each.decoder, each.device) != (proof.decoder, proof.device)]
    save(bundle.folder, msgspec.structs.replace(spec, decoders=[*others, proof]))
