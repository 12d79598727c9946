"""How far a variant, its runner and a decoder are from the reference, on real clips.

The reference is the bundle's weights in PyTorch fp32 on the reference decoder's frames.
"""

from collections.abc import Sequence
from importlib.util import find_spec

import msgspec
import numpy as np
from numpy.typing import NDArray

from harec_deploy.decode import choose
from harec_deploy.discover import VideoFile, truth_of
from harec_deploy.errors import MissingDependency, ProofError
from harec_deploy.export.decoders import DecoderTally, Pairs, Progress, failure_of, store
from harec_deploy.export.stages import ModelStages, PixelStages, Stage
from harec_deploy.export.verify import MAX_ACCURACY_LOSS, MIN_AGREEMENT, REFERENCE, max_abs_dp_of
from harec_deploy.intervals import wilson
from harec_deploy.recognizer import Recognizer
from harec_deploy.runners import Execution, get
from harec_deploy.spec import WEIGHTS_VARIANT, DecoderProof, Flip

ROUNDING = 1e-4  # probabilities that differ by less are the same ones, added up in another order
NAMED = 5  # flipped clips in an error's one line


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """How many of how many, as a share with its 95 % interval by Wilson."""

    hits: int
    count: int
    share: float
    low: float
    high: float

    @classmethod
    def of(cls, hits: int, count: int) -> "Share":
        """Work out the share and its interval; ``count`` is at least 1."""
        low, high = wilson(hits, count)
        return cls(hits=hits, count=count, share=hits / count, low=low, high=high)

    def __str__(self) -> str:
        return f"{self.share:.1%} of {self.count} (95 % between {self.low:.1%} and {self.high:.1%})"


class ClassRow(msgspec.Struct, frozen=True, kw_only=True):
    """One class: clips that the reference gives it and how many keep it; clips that truly are it, right by either."""

    name: str
    clips: int
    kept: int
    labelled: int
    reference_right: int
    right: int


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured.

    hardware: the GPU's name, or "". decoder, decoder_version: what gave the clips. torch: version of the reference.
    refused: clips that the decoder leaves to the reference one; undecodable: clips that not even that can give. Both
        count for nothing here.
    mean_abs_dp: over clips and classes; max_abs_dp: of any class on any clip.
    reference_accuracy, accuracy: on the clips whose folder is named after a class; None where there are none.
    stages: what each step changes alone, in their order. source: the step that changes most, None if nothing differs.
    passed: it keeps to the gate; failures: why it does not.
    decoder_proof: of a decoder that is not the reference.
    """

    variant: str
    runner: str
    runner_version: str
    precision: str
    device: str
    hardware: str
    decoder: str
    decoder_version: str
    torch: str
    refused: int
    undecodable: int
    agreement: Share
    mean_abs_dp: float
    max_abs_dp: float
    reference_accuracy: Share | None
    accuracy: Share | None
    flipped: list[Flip]
    classes: list[ClassRow]
    stages: list[Stage]
    source: str | None
    passed: bool
    failures: list[str]
    decoder_proof: DecoderProof | None

    @property
    def what(self) -> str:
        """Name what was held against the reference."""
        frames = "" if self.decoder == REFERENCE else f" with {self.decoder}'s frames"
        where = "" if self.device == "cpu" else f" on {self.device}"
        return f"{self.variant} on {self.runner} in {self.precision}{where}{frames}"

    def failure(self) -> ProofError:
        """Return the error that says why it does not pass."""
        named = ", ".join(map(str, self.flipped[:NAMED])) or "none"
        more = f" and {len(self.flipped) - NAMED} more" if len(self.flipped) > NAMED else ""
        source = f"most of it comes from: {self.source}; " if self.source else ""
        return ProofError(f"{self.what}: {'; '.join(self.failures)}; {source}flipped: {named}{more}")


def compare(
    recognizer: Recognizer,
    inputs: Sequence[str],
    *,
    decoder: str = REFERENCE,
    device: str = "cpu",
    max_clips: int = 100,
    progress: Progress = lambda done, total: None,
) -> Comparison:
    """Hold a recogniser, on a decoder's clips, against the reference; at most ``max_clips`` spread over all videos.

    The proof of a decoder that is not the reference is stored in the bundle.

    recognizer: best loaded ``on_trial``, so that one that is wrong can be measured.
    inputs: videos, folders or lists; a clip's true label is its folder's name where that is a class.
    device: "cpu" or "cuda:N", for a decoder that can use either.

    Raises:
        UsageError: no such decoder, or no video that it and the reference decoder can decode.
        BundleError: the weights do not fit the architecture, or are not those of the bundle's check clips.
        MissingDependency: PyTorch, or the decoder's package, is not installed.
    """
    if find_spec("torch") is None:
        raise MissingDependency("torch", "torch", "a comparison with PyTorch")
    reference = Recognizer(recognizer.bundle, Execution(WEIGHTS_VARIANT, get("torch"), "fp32"))
    pairs = Pairs(choose(decoder, device), recognizer.spec, inputs, max_clips, progress)
    model, pixels = ModelStages(reference, recognizer), PixelStages(reference, (pairs.reference, pairs.decoder))
    tally = DecoderTally()
    clips, same = _Clips(recognizer.spec.classes), []
    for video, frames, got in pairs:
        wanted, here = model.add(frames.pixels)
        same.append(int(wanted.argmax()) == int(here.argmax()))
        if decoder != REFERENCE:
            there = recognizer.predict(got[None])[0]
            tally.add(video.name, frames.pixels, got, here, there)
            pixels.add(video, frames, got, wanted)
            here = there
        clips.add(video, wanted, here)
    proof = None
    if decoder != REFERENCE:
        proof = tally.proof(pairs, recognizer)
        if np.mean(same) >= MIN_AGREEMENT:  # what labels otherwise than the model on the same frames proves nothing
            store(recognizer.bundle, proof)
    stages = [stage for each in (*pixels.tallies, *model.tallies) if (stage := each.stage())]
    return clips.comparison(reference, recognizer, pairs, proof, stages)


class _Clips:
    """The probabilities of clips by both sides."""

    def __init__(self, classes: list[str]) -> None:
        self._classes = classes
        self._names: list[str] = []
        self._truths: list[str | None] = []
        self._wanted: list[NDArray[np.float32]] = []
        self._got: list[NDArray[np.float32]] = []

    def add(self, video: VideoFile, wanted: NDArray[np.float32], got: NDArray[np.float32]) -> None:
        self._names.append(video.name)
        self._truths.append(truth_of(video.path, self._classes))
        self._wanted.append(wanted)
        self._got.append(got)

    def comparison(
        self,
        reference: Recognizer,
        recognizer: Recognizer,
        pairs: Pairs,
        proof: DecoderProof | None,
        stages: list[Stage],
    ) -> Comparison:
        apart = np.abs(np.stack(self._wanted) - np.stack(self._got))
        wanted, got = self._labels(self._wanted), self._labels(self._got)
        expected, accuracy = self._right(wanted), self._right(got)
        execution = recognizer.execution
        told = Comparison(
            variant=execution.variant,
            runner=execution.runner.name,
            runner_version=execution.runner.version,
            precision=execution.precision,
            device=execution.runner.device,
            hardware=execution.runner.hardware,
            decoder=pairs.decoder.name,
            decoder_version=pairs.decoder.version,
            torch=reference.execution.runner.version,
            refused=pairs.refused,
            undecodable=pairs.undecodable,
            agreement=Share.of(sum(a == b for a, b in zip(wanted, got, strict=True)), len(wanted)),
            mean_abs_dp=float(apart.mean()),
            max_abs_dp=float(apart.max()),
            reference_accuracy=expected,
            accuracy=accuracy,
            flipped=self._flips(wanted, got),
            classes=self._by_class(wanted, got),
            stages=stages,
            source=source_of(stages),
            passed=False,
            failures=[],
            decoder_proof=proof,
        )
        failures = failures_of(told)
        return msgspec.structs.replace(told, passed=not failures, failures=failures)

    def _labels(self, probabilities: list[NDArray[np.float32]]) -> list[str]:
        return [self._classes[each.argmax()] for each in probabilities]

    def _right(self, labels: list[str]) -> Share | None:
        known = [truth == label for truth, label in zip(self._truths, labels, strict=True) if truth is not None]
        return Share.of(sum(known), len(known)) if known else None

    def _flips(self, wanted: list[str], got: list[str]) -> list[Flip]:
        return [
            Flip(
                clip=self._names[place],
                truth=self._truths[place],
                wanted=label,
                wanted_score=float(self._wanted[place].max()),
                got=other,
                got_score=float(self._got[place].max()),
            )
            for place, (label, other) in enumerate(zip(wanted, got, strict=True))
            if label != other
        ]

    def _by_class(self, wanted: list[str], got: list[str]) -> list[ClassRow]:
        """Return a row for each class that any clip has, by its truth or by the reference."""
        rows = []
        for name in self._classes:
            given = [b for a, b in zip(wanted, got, strict=True) if a == name]
            true = [(a, b) for a, b, truth in zip(wanted, got, self._truths, strict=True) if truth == name]
            row = ClassRow(
                name=name,
                clips=len(given),
                kept=given.count(name),
                labelled=len(true),
                reference_right=sum(a == name for a, _ in true),
                right=sum(b == name for _, b in true),
            )
            if row.clips or row.labelled:
                rows.append(row)
        return rows


def source_of(stages: Sequence[Stage]) -> str | None:
    """Return the step that moves probabilities most, not a number most of all; None if none moves any."""
    most = max(stages, key=lambda stage: np.nan_to_num(stage.mean_abs_dp, nan=np.inf))
    return None if most.max_abs_dp <= ROUNDING else most.name


def failures_of(told: Comparison) -> list[str]:
    """Return in which points a comparison misses the gate, each with what was got and what is allowed."""
    failures = []
    limit = max_abs_dp_of(told.precision, told.decoder)
    if told.agreement.share < MIN_AGREEMENT:
        failures.append(f"labels kept: {told.agreement}, at least {MIN_AGREEMENT:.0%} are wanted")
    if not told.max_abs_dp <= limit:  # NaN is not
        failures.append(f"probabilities move by up to {told.max_abs_dp:.2g}, at most {limit:g} are allowed")
    if told.accuracy and told.reference_accuracy:
        loss = (told.reference_accuracy.hits - told.accuracy.hits) / told.accuracy.count
        if loss > MAX_ACCURACY_LOSS:
            failures.append(
                f"accuracy falls by {100 * loss:.1f} points, at most {100 * MAX_ACCURACY_LOSS:g} are allowed"
            )
    if told.decoder_proof and (why := failure_of(told.decoder_proof)):
        failures.append(why)
    return failures
