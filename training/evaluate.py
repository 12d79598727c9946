"""How good a recogniser is: accuracy with its interval, a table by class, how far scores can be trusted.

Labels come from a bundle's PyTorch weights, or from a journal that ``harec-deploy label`` wrote with the exported
model.
"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from harec_deploy.bundle import load
from harec_deploy.decode import choose
from harec_deploy.errors import UsageError
from harec_deploy.files import atomic_write
from harec_deploy.label.journal import read_header, read_rows
from harec_deploy.models import from_bundle
from harec_deploy.recognizer import softmax
from harec_deploy.sampling import whole
from training.calibration import Reliability, reliability
from training.datasets import Sample, read_manifest

FAILED = "(failed)"  # the label of a video that has none
# Views of a clip, in the order that --test-views takes them: shift in time as a share of a part, mirrored.
VIEWS = tuple((shift, mirror) for shift in (0.0, -1 / 3, 1 / 3) for mirror in (False, True))


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a video is and what it was taken for.

    uncalibrated: label and score at temperature 1, None where they are not known. The label may be another one where
    probabilities of several views were averaged.
    """

    path: Path
    truth: str
    label: str
    score: float
    uncalibrated: tuple[str, float] | None = None


@dataclass(frozen=True, slots=True)
class ClassScore:
    """Precision, recall and F1 of one class, each 0 where it is undefined; count: its videos."""

    name: str
    precision: float
    recall: float
    f1: float
    count: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Predictions summed up. confusion: int64 (C, C), rows are the truth, columns the label."""

    classes: list[str]
    predictions: list[Prediction]
    confusion: NDArray[np.int64]

    @property
    def correct(self) -> int:
        """Videos whose label is the truth."""
        return int(np.trace(self.confusion))

    @property
    def accuracy(self) -> float:
        """Share of videos whose label is the truth."""
        return self.correct / len(self.predictions)

    def reliability(self, *, calibrated: bool = True) -> Reliability | None:
        """Return how often labels are right by their score, or by that at temperature 1.

        Videos that failed have no score and do not count. None where no score is known.
        """
        answers = [
            (p.truth, (p.label, p.score) if calibrated else p.uncalibrated)
            for p in self.predictions
            if p.label != FAILED
        ]
        known = [(answer[1], answer[0] == truth) for truth, answer in answers if answer is not None]
        return reliability(*zip(*known, strict=True)) if known else None

    def by_class(self) -> list[ClassScore]:
        """Return the scores of every class."""
        scores = []
        for index, name in enumerate(self.classes):
            hits, count, taken = (
                float(self.confusion[index, index]),
                int(self.confusion[index].sum()),
                int(self.confusion[:, index].sum()),
            )
            precision, recall = hits / taken if taken else 0.0, hits / count if count else 0.0
            f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
            scores.append(ClassScore(name, precision, recall, f1, count))
        return scores


def run_folders(named: Sequence[Path]) -> list[Path]:
    """Return the runs among ``named`` folders, the folds of a run with folds one by one.

    Raises:
        UsageError: a folder holds no finished run.
    """
    runs = []
    for folder in named:
        folds = sorted(folder.glob("fold-*"), key=lambda path: int(path.name.removeprefix("fold-")))
        for run in folds or [folder]:
            if not (run / "bundle").is_dir():
                raise UsageError(f"{run}: no finished run; make it with python -m training fit")
            runs.append(run)
    return runs


def scored(
    run: Path, split: str, *, views: int, journal: Path | None, progress: Callable[[int, int], None]
) -> Evaluation:
    """Evaluate a run on a split of its manifest, or on the labels of a journal.

    Raises:
        UsageError: no such split, or a journal of other videos.
    """
    bundle = run / "bundle"
    samples = read_manifest(run / "manifest.csv").only(split).samples
    if journal is None:
        predictions = predict(bundle, samples, views=views, progress=progress)
    else:
        predictions = from_journal(journal, samples)
    return summed_up(load(bundle).spec.classes, predictions)


def summed_up(classes: Sequence[str], predictions: Sequence[Prediction]) -> Evaluation:
    """Count predictions into an Evaluation.

    Raises:
        UsageError: there are none.
    """
    if not predictions:
        raise UsageError("nothing to evaluate: no videos in this split")
    names = sorted({*classes, *(p.truth for p in predictions), *(p.label for p in predictions)})
    confusion = np.zeros((len(names), len(names)), dtype=np.int64)
    for p in predictions:
        confusion[names.index(p.truth), names.index(p.label)] += 1
    return Evaluation(names, list(predictions), confusion)


def wilson(correct: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share (Wilson 1927), which holds for few samples and near 0 and 1."""
    share, spread = correct / count, z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (share * (1 - share) / count + spread / (4 * count)) ** 0.5
    return max(centre - half, 0.0), min(centre + half, 1.0)


def predict(
    bundle: Path, samples: Sequence[Sample], *, views: int = 1, progress: Callable[[int, int], None]
) -> list[Prediction]:
    """Label samples with a bundle's PyTorch weights, averaging probabilities over ``views`` views of each clip.

    Raises:
        UsageError: more views than there are; mirrored views of a model that was trained without.
        VideoError: a video cannot be decoded.
    """
    if not 1 <= views <= len(VIEWS):
        raise UsageError(f"--test-views {views}: allowed are 1 to {len(VIEWS)}")
    checked = load(bundle)
    spec, model, decoder = checked.spec, from_bundle(checked), choose()
    # A mirrored clip shows another class to a model that was told to keep left and right apart.
    usable = [view for view in VIEWS if spec.training.get("flip", True) or not view[1]][:views]
    done = []
    for sample in samples:
        logits: list[NDArray[np.float32]] = []
        for shift, mirror in usable:
            frames = decoder.frames(
                sample.path,
                lambda info, shift=shift: spec.sampling.timestamps_s(whole(info.duration_s)[0], shift),  # type: ignore[misc]
                spec.size,
            ).pixels
            clip = torch.from_numpy(frames[:, :, ::-1].copy() if mirror else frames)
            with torch.inference_mode():
                logits.append(model(clip[None]).numpy()[0])
        label, score = _best(np.stack(logits) / spec.temperature, spec.classes)
        raw = _best(np.stack(logits), spec.classes)
        done.append(Prediction(sample.path, sample.label, label, score, uncalibrated=raw))
        progress(len(done), len(samples))
    return done


def _best(logits: NDArray[np.float32], classes: Sequence[str]) -> tuple[str, float]:
    """Return the class with the highest mean probability over views, and that probability: logits (views, C)."""
    probabilities = softmax(logits).mean(0)
    best = int(probabilities.argmax())
    return classes[best], float(probabilities[best])


def from_journal(journal: Path, samples: Sequence[Sample]) -> list[Prediction]:
    """Read the labels of a journal; a video's truth is its sample's, or the name of the folder that it lies in.

    A video that failed counts as a wrong label, FAILED. Scores at temperature 1 are not known.

    Raises:
        OutputError, UsageError: no journal there.
    """
    if read_header(journal) is None:
        raise UsageError(f"{journal}: no such journal; make it with harec-deploy label")
    rows = read_rows(journal)
    truths = {sample.path.resolve(): sample.label for sample in samples}
    predictions = []
    for (name, _, _), row in rows.items():
        path = Path(name).resolve()
        truth = truths.get(path, path.parent.name)
        predictions.append(Prediction(path, truth, row.label or FAILED, row.score or 0.0))
    return predictions


def write(evaluation: Evaluation, folder: Path) -> None:
    """Write metrics.json, per_class.csv and predictions.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    low, high = wilson(evaluation.correct, len(evaluation.predictions))
    after, before = evaluation.reliability(), evaluation.reliability(calibrated=False)
    facts = {
        "videos": len(evaluation.predictions),
        "correct": evaluation.correct,
        "accuracy": evaluation.accuracy,
        "accuracy_95": [low, high],
        "ece": after.ece if after else None,
        "ece_uncalibrated": before.ece if before else None,
        "classes": evaluation.by_class(),
    }
    with atomic_write(folder / "metrics.json") as stream:
        stream.write(msgspec.json.format(msgspec.json.encode(facts), indent=2))
    per_class = [[s.name, s.precision, s.recall, s.f1, s.count] for s in evaluation.by_class()]
    _write_csv(folder / "per_class.csv", ["class", "precision", "recall", "f1", "videos"], per_class)
    predictions = [[str(p.path), p.truth, p.label, round(p.score, 6)] for p in evaluation.predictions]
    _write_csv(folder / "predictions.csv", ["path", "truth", "label", "score"], predictions)


def _write_csv(path: Path, columns: list[str], rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    with atomic_write(path) as stream:
        stream.write(text.getvalue().encode("utf-8", "surrogateescape"))
