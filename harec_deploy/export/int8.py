"""The int8 form of a bundle's encoder: calibrated on real clips, with as few layers in float as its proof allows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harec_deploy.errors import UsageError
from harec_deploy.export.quantise import CALIBRATIONS, Quantiser, calibration_frames
from harec_deploy.export.verify import ProofClips, read_clips
from harec_deploy.spec import BundleSpec, Quantisation

CLIPS = 100  # that calibration takes frames of, at most
MAX_FLOAT_SHARE = 0.5  # of the layers; with more in float it would be int8 by name only


@dataclass(frozen=True, slots=True)
class Int8Options:
    """How int8 graphs are made.

    calibrate: videos, folders or lists; without any, the training clips that the bundle notes, else those of the proof.
    method: how ranges are chosen, a key of quantise.CALIBRATIONS.
    keep_float: layers that stay float: "none", their names with commas between, or "auto", which leaves out the most
    sensitive ones until the proof passes.

    Raises UsageError for a method that there is not.
    """

    calibrate: Sequence[str] = ()
    method: str = "minmax"
    keep_float: str = "auto"

    def __post_init__(self) -> None:
        if self.method not in CALIBRATIONS:
            raise UsageError(f"unknown calibration {self.method!r}; allowed are {', '.join(CALIBRATIONS)}")


def int8_forms(
    encoder: Path, spec: BundleSpec, proof: ProofClips, options: Int8Options, say: Callable[[str], None]
) -> Iterator[Quantisation]:
    """Write the encoder over itself in int8; with "auto" again for each further item, with more layers in float.

    proof: the clips that the result will be proved on, which calibration should not have seen.

    Raises:
        UsageError: no clips for calibration, or no such layer.
        MissingDependency: ONNX Runtime is not installed.
    """
    clips = _calibration_clips(spec, proof, options.calibrate, say)
    frames = calibration_frames(clips.pixels)
    say(f"calibrating by {options.method} on {len(frames)} frames of {len(clips.names)} clips")
    quantiser = Quantiser(encoder, frames, options.method)

    def written(kept_float: Sequence[str]) -> Quantisation:
        quantiser.write(encoder, kept_float)
        return Quantisation(
            method=options.method,
            clips=len(clips.names),
            frames=len(frames),
            layers=len(quantiser.layers),
            kept_float=list(kept_float),
        )

    if options.keep_float not in ("auto", "none"):
        yield written([name.strip() for name in options.keep_float.split(",")])
        return
    yield written([])
    if options.keep_float == "none":
        return
    say(f"too much changes with every layer in int8: measuring each of {len(quantiser.layers)} layers alone")
    worst_first = sorted(quantiser.errors(), key=lambda each: -each[1])
    count = 1
    while count <= MAX_FLOAT_SHARE * len(worst_first):
        kept = worst_first[:count]
        told = ", ".join(f"{name} ({error:.3f})" for name, error in kept[-3:])
        say(f"keeping {count} of {len(worst_first)} layers in float, the last of them by their error {told}")
        yield written([name for name, _ in kept])
        count *= 2


def _calibration_clips(
    spec: BundleSpec, proof: ProofClips, asked: Sequence[str], say: Callable[[str], None]
) -> ProofClips:
    inputs = asked or spec.training.get("calibration_clips", [])
    clips = read_clips(spec, inputs, CLIPS) if inputs else proof
    shared = {video.path for video in clips.videos} & {video.path for video in proof.videos}
    if shared:
        say(
            f"{len(shared)} of the proof's {len(proof.names)} clips calibrate too, so the proof is on clips that were "
            "seen: name others with --calibrate"
        )
    return clips
