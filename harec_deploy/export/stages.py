"""Where a difference comes from: each step from file to label, put alone into the reference's place.

    decode -> resize -> encoder -> head
    decode -> resize -> model                (of a clip-wise model)

What stands before and after a step is the reference's own: PyTorch's weights in fp32 on the reference decoder's frames.
"""

from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from harec_deploy.decode import Decoder, Frames, Refused, Size, VideoInfo
from harec_deploy.decode.picture import Scaler
from harec_deploy.decode.pyav import PyAVDecoder
from harec_deploy.discover import VideoFile
from harec_deploy.errors import VideoError
from harec_deploy.export.verify import frames_of
from harec_deploy.recognizer import Recognizer

NATIVE_BYTES = 512 << 20  # of a clip in the video's own size; what is larger is not looked at there
_TINY = np.finfo(np.float64).tiny
_SUMS: dict[str, Callable[[list[float]], Any]] = {"mean": np.mean, "max": np.max}


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """What one step changes, alone.

    clips: that it was measured on. flipped: labels that it turns.
    mean_abs_dp: over clips and classes; max_abs_dp: of any class on any clip.
    figures: of what the step gives, mean or max over clips: level_difference of pixels, 0 to 255, in the video's own
        size for "decode" and in the model's for "resize"; relative_error of a clip's features,
        |got - wanted| / |wanted|, and cosine_distance, 1 - cosine, between those of a frame; logit_difference.
    """

    name: str
    clips: int
    flipped: int
    mean_abs_dp: float
    max_abs_dp: float
    figures: dict[str, float]

    def told(self) -> str:
        """Return the figures in words."""
        return ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in self.figures.items())


class Tally:
    """Gathers what one step changes, clip by clip."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._flipped = 0
        self._dp: list[NDArray[np.float32]] = []
        self._figures: dict[str, list[float]] = defaultdict(list)

    def add(self, wanted: NDArray[np.float32], got: NDArray[np.float32], **figures: float) -> None:
        """Add a clip's probabilities without and with the step, float32 (C,), and its figures."""
        self._flipped += int(wanted.argmax() != got.argmax())
        self._dp.append(np.abs(wanted - got))
        for name, value in figures.items():
            self._figures[name].append(float(value))

    def stage(self) -> Stage | None:
        """Return what was gathered; None if no clip was."""
        if not self._dp:
            return None
        return Stage(
            name=self.name,
            clips=len(self._dp),
            flipped=self._flipped,
            mean_abs_dp=float(np.mean(self._dp)),
            max_abs_dp=float(np.max(self._dp)),
            figures={
                name: float(_SUMS[name.partition("_")[0]](values)) for name, values in sorted(self._figures.items())
            },
        )


class ModelStages:
    """The steps of the model: encoder and head, or all of a clip-wise one."""

    def __init__(self, reference: Recognizer, subject: Recognizer) -> None:
        """Put parts of ``subject`` into the place of those of ``reference``."""
        self._reference, self._subject = reference, subject
        self.tallies = [Tally(name) for name in (("encoder", "head") if reference.framewise else ("model",))]

    def add(self, clip: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Measure a clip uint8 (T, H, W, 3); return its probabilities by reference and subject: float32 (C,) each."""
        reference, subject = self._reference, self._subject
        if not reference.framewise:
            wanted, got = reference.predict(clip[None])[0], subject.predict(clip[None])[0]
            self.tallies[0].add(wanted, got)
            return wanted, got
        encoder, head = self.tallies
        features, theirs = reference.encode(clip), subject.encode(clip)
        wanted = reference.classify(features[None])[0]
        encoder.add(wanted, reference.classify(theirs[None])[0], **_apart(features, theirs))
        logits = np.abs(reference.logits(features[None]) - subject.logits(features[None]))
        head.add(wanted, subject.classify(features[None])[0], max_logit_difference=logits.max())
        return wanted, subject.classify(theirs[None])[0]


def _apart(wanted: NDArray[np.float32], got: NDArray[np.float32]) -> dict[str, float]:
    """Return how far features (T, D) are from those that are wanted."""
    a, b = wanted.astype(np.float64), got.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(1) / np.maximum(lengths, _TINY)
    error = float(np.linalg.norm(b - a) / max(np.linalg.norm(a), _TINY))
    return {"mean_relative_error": error, "max_relative_error": error, "max_cosine_distance": (1 - cosines).max()}


class PixelStages:
    """The steps of a decoder: the pictures that it decodes, and how it scales them to the model's size.

    A decoder scales by itself, so its steps cannot be had one by one. But both decoders' pictures in the video's own
    size can, and scaled by one resize they differ by what decoding alone does at the model's size. The rest of what the
    clips differ by is the resize. Each part is added alone to the reference's clip.
    """

    def __init__(self, reference: Recognizer, decoders: tuple[Decoder, Decoder]) -> None:
        """Compare the second decoder with the first, which is the reference's."""
        self._reference, self._decoders = reference, decoders
        self.tallies = [Tally("decode"), Tally("resize")]

    def add(self, video: VideoFile, wanted: Frames, got: NDArray[np.uint8], probabilities: NDArray[np.float32]) -> None:
        """Measure the clip of a video; nothing is added where it cannot be had in the video's own size.

        wanted, got: the clip by either decoder. probabilities: the reference's for the first: float32 (C,).
        """
        spec = self._reference.spec
        native = native_size(wanted.info, spec.sampling.frames)
        if native is None:
            return
        try:
            ours, theirs = (frames_of(decoder, video, spec, native).pixels for decoder in self._decoders)
            aspect = _pixel_aspect(video, wanted.info) if spec.size.mode == "crop" else None
        except (Refused, VideoError):
            return
        decoded = scaled(theirs, spec.size, aspect) - scaled(ours, spec.size, aspect)
        resized = got.astype(np.int16) - wanted.pixels - decoded
        levels = (_levels(theirs, ours), _range(np.abs(resized).mean(), np.abs(resized).max()))
        for tally, part, figures in zip(self.tallies, (decoded, resized), levels, strict=True):
            clip = np.clip(wanted.pixels + part, 0, 255).astype(np.uint8)
            tally.add(probabilities, self._reference.predict(clip[None])[0], **figures)


def native_size(info: VideoInfo, count: int) -> Size | None:
    """Return the size of the video's own pictures; None where ``count`` of them are too much, or no Size at all."""
    if count * info.width * info.height * 3 > NATIVE_BYTES:
        return None
    try:
        return Size(width=info.width, height=info.height)
    except ValueError:
        return None


def scaled(pictures: NDArray[np.uint8], size: Size, pixel_aspect: Fraction | None = None) -> NDArray[np.int16]:
    """Scale pictures uint8 (T, h, w, 3) as the reference decoder does, but from RGB: int16 (T, H, W, 3)."""
    scaler = Scaler(size, pixel_aspect)
    frames = (VideoFrame.from_ndarray(picture, format="rgb24") for picture in pictures)
    return np.stack([scaler.picture(frame).pixels for frame in frames]).astype(np.int16)


def _pixel_aspect(video: VideoFile, info: VideoInfo) -> Fraction | None:
    """Return the width of the video's pixels by their height, as shown. Raises VideoError."""
    with PyAVDecoder().open(video.path) as opened:
        aspect: Fraction | None = opened.stream.codec_context.sample_aspect_ratio
    return 1 / aspect if aspect and info.rotation_degrees in (90, 270) else aspect


def _levels(got: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> dict[str, float]:
    """Return the differences of pictures (T, h, w, 3); one by one, because they may be large."""
    apart = [np.abs(a.astype(np.int16) - b) for a, b in zip(got, wanted, strict=True)]
    return _range(np.mean([each.mean() for each in apart]), max(each.max() for each in apart))


def _range(mean: Any, most: Any) -> dict[str, float]:
    return {"mean_level_difference": float(mean), "max_level_difference": float(most)}
