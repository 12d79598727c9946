"""How good a recogniser is: accuracy with its interval, a table by class, how far scores can be trusted.

Labels come from a bundle's PyTorch weights, or from a journal that ``harec-deploy label`` wrote with the exported
model.
"""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from harec_deploy.bundle import Bundle, load
from harec_deploy.decode import VideoInfo, choose
from harec_deploy.errors import UsageError, VideoError
from harec_deploy.files import atomic_write
from harec_deploy.label.journal import read_header, read_rows
from harec_deploy.loading import load as load_recognizer
from harec_deploy.models import from_bundle
from harec_deploy.recognizer import Recognizer, softmax
from harec_deploy.sampling import whole
from harec_deploy.spec import BundleSpec
from training.datasets import Sample, read_manifest
from training.metrics import EXAMPLES, FAILED, TOP, Evaluation, Prediction, summed_up
from training.result import fold_folders

Progress = Callable[[int, int], None]
Probabilities = tuple[NDArray[np.float32], NDArray[np.float32] | None]
View = tuple[float, bool]  # of a clip: its shift in time, as a share of the time between two frames; mirrored
VIEWS: tuple[View, ...] = tuple((shift, mirror) for shift in (0.0, -1 / 3, 1 / 3) for mirror in (False, True))
MAX_CLIPS = 30  # of one video; SlowFast's tests (Feichtenhofer et al. 2019) average as many


def run_folders(named: Sequence[Path]) -> list[Path]:
    """Return the runs among ``named`` folders, the folds of a run with folds one by one.

    Raises:
        UsageError: a folder holds no finished run.
    """
    runs = []
    for folder in named:
        for run in fold_folders(folder) or [folder]:
            if not (run / "bundle").is_dir():
                raise UsageError(f"{run}: no finished run; make it with python -m training fit")
            runs.append(run)
    return runs


@dataclass(frozen=True, slots=True)
class Model:
    """What labels clips, and its name: takes one, uint8 (T, H, W, 3), gives probabilities float32 (C,).

    They are given calibrated and at temperature 1, None where those are not known.
    """

    spec: BundleSpec
    classify: Callable[[NDArray[np.uint8]], Probabilities]
    name: str


def from_weights(bundle: Bundle) -> Model:
    """Return a bundle's PyTorch model."""
    model, temperature = from_bundle(bundle), bundle.spec.temperature

    def classify(clip: NDArray[np.uint8]) -> Probabilities:
        with torch.inference_mode():
            logits = model(torch.from_numpy(clip[None])).numpy()[0]
        return softmax(logits / temperature), softmax(logits)

    return Model(bundle.spec, classify, "the PyTorch weights")


def deployed(recognizer: Recognizer) -> Model:
    """Return a model as it labels folders; its probabilities at temperature 1 are not known."""
    return Model(recognizer.spec, lambda clip: (recognizer.predict(clip[None])[0], None), str(recognizer.execution))


def model_of(bundle: Path, *, runner: str = "", precision: str = "auto", variant: str = "auto") -> Model:
    """Return a bundle's PyTorch model, or an exported variant if one of the arguments asks for it.

    runner, precision, variant: as for ``loading.load``.

    Raises:
        UsageError: no such way to run the bundle.
    """
    if (runner, precision, variant) == ("", "auto", "auto"):
        return from_weights(load(bundle))
    return deployed(load_recognizer(bundle, runner=runner or "auto", precision=precision, variant=variant))


def scored(
    run: Path,
    split: str,
    *,
    journal: Path | None = None,
    clips: int = 1,
    views: int = 1,
    progress: Progress,
    **way: str,
) -> Evaluation:
    """Evaluate a run's weights, or an exported variant, on a split of its manifest; or the labels of a journal.

    clips, views: see ``views_of``. way: see ``model_of``.

    Raises:
        UsageError: no such split, or a journal of other videos.
        VideoError: a video cannot be decoded.
    """
    samples = read_manifest(run / "manifest.csv").only(split).samples
    if journal is not None:
        found = summed_up(load(run / "bundle").spec.classes, from_journal(journal, samples))
        return replace(found, about=f"labels of {journal}")
    model = model_of(run / "bundle", **way)
    found = summed_up(model.spec.classes, labelled(model, samples, clips=clips, views=views, progress=progress))
    each = f", {clips} clips of each video" if clips > 1 else f", {views} views of each clip" if views > 1 else ""
    return replace(found, about=f"split {split} by {model.name}{each}")


def predict(
    bundle: Path, samples: Sequence[Sample], *, clips: int = 1, views: int = 1, progress: Progress, **way: str
) -> list[Prediction]:
    """Label samples by a bundle; see ``labelled``, and for ``way`` ``model_of``."""
    return labelled(model_of(bundle, **way), samples, clips=clips, views=views, progress=progress)


def views_of(clips: int, views: int, *, mirrored: bool) -> tuple[View, ...]:
    """Return the clips of a video to average over, of which one is the video's clip as it is labelled.

    clips: so many at different times: their frames lie evenly between each other's, as those of one clip with
    ``clips`` times the frames, of which each takes every ``clips``-th. Three are the shifts of VIEWS.
    views: or the first so many of VIEWS, of which those that are mirrored count only if ``mirrored``.

    Raises:
        UsageError: too many of either, or several of both.
    """
    if not 1 <= views <= len(VIEWS):
        raise UsageError(f"--test-views {views}: allowed are 1 to {len(VIEWS)}")
    if not 1 <= clips <= MAX_CLIPS:
        raise UsageError(f"--test-clips {clips}: allowed are 1 to {MAX_CLIPS}")
    if clips > 1 and views > 1:
        raise UsageError("--test-clips and --test-views both say which clips are averaged: give one of them")
    if clips > 1:
        return tuple(((place + 0.5) / clips - 0.5, False) for place in range(clips))
    return tuple(view for view in VIEWS if mirrored or not view[1])[:views]


def labelled(
    model: Model, samples: Sequence[Sample], *, clips: int = 1, views: int = 1, progress: Progress
) -> list[Prediction]:
    """Label samples by the mean of the probabilities of several clips of each video.

    clips, views: see ``views_of``.

    Raises:
        UsageError: more clips or views than are allowed.
        VideoError: a video cannot be decoded.
    """
    spec = model.spec
    # A mirrored clip shows another class to a model that was told to keep left and right apart.
    wanted = views_of(clips, views, mirrored=spec.training.get("flip", True))
    decoder, done = choose(), []
    shifts = sorted({shift for shift, _ in wanted})

    def times_s(info: VideoInfo) -> NDArray[np.float64]:
        return np.concatenate([spec.sampling.timestamps_s(whole(info.duration_s)[0], shift) for shift in shifts])

    for sample in samples:
        try:
            frames = decoder.frames(sample.path, times_s, spec.size).pixels
        except VideoError as error:
            raise VideoError(error.kind, f"{sample.path}: {error}") from None
        taken = dict(zip(shifts, frames.reshape(len(shifts), -1, *frames.shape[1:]), strict=True))
        answers = [
            model.classify(taken[shift][:, :, ::-1].copy() if mirror else taken[shift]) for shift, mirror in wanted
        ]
        done.append(_prediction(sample, answers, spec.classes))
        progress(len(done), len(samples))
    return done


def _prediction(sample: Sample, answers: Sequence[Probabilities], classes: Sequence[str]) -> Prediction:
    """Return what the mean over views says."""
    calibrated = np.mean([answer for answer, _ in answers], axis=0)
    raw = [answer for _, answer in answers if answer is not None]
    top = tuple(classes[place] for place in np.argsort(-calibrated, kind="stable")[:TOP])
    uncalibrated = None
    if raw:
        mean = np.mean(raw, axis=0)
        uncalibrated = classes[int(mean.argmax())], float(mean.max())
    score = float(calibrated.max())
    return Prediction(sample.path, sample.label, top[0], score, uncalibrated, top, sample.group)


def from_journal(journal: Path, samples: Sequence[Sample]) -> list[Prediction]:
    """Read the labels of a journal: those of the samples, or, where it has none of them, of all its videos.

    A video that is no sample has the name of its folder for its truth. A video that failed counts as a wrong label,
    FAILED. Scores at temperature 1 are not known.

    Raises:
        OutputError, UsageError: no journal there, or one that has only some of the samples.
    """
    if read_header(journal) is None:
        raise UsageError(f"{journal}: no such journal; make it with harec-deploy label")
    rows = {Path(name).resolve(): row for name, row in read_rows(journal).items()}
    known = {sample.path.resolve(): sample for sample in samples}
    missing = known.keys() - rows.keys()
    if len(missing) == len(known):
        known, missing = {path: Sample(path, path.parent.name) for path in rows}, set()
    if missing:
        told = f"{journal} has {len(known) - len(missing)} of the split's {len(known)} videos, not {min(missing)}"
        raise UsageError(f"{told}: label the rest first, with the command that made it")
    predictions = []
    for path, sample in known.items():
        row = rows[path]
        top = tuple(name for name, _ in row.top[:TOP])
        predictions.append(
            Prediction(path, sample.label, row.label or FAILED, row.score or 0.0, top=top, group=sample.group)
        )
    return predictions


def write(evaluation: Evaluation, folder: Path) -> None:
    """Write metrics.json, per_class.csv, per_group.csv, confused.csv and predictions.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    low, high = evaluation.wilson()
    after, before = evaluation.reliability(), evaluation.reliability(calibrated=False)
    facts = {
        "measured": evaluation.about,
        "videos": len(evaluation.predictions),
        "correct": evaluation.correct,
        "accuracy": evaluation.accuracy,
        "accuracy_95": [low, high],
        "accuracy_95_by_group": evaluation.interval(),
        "groups": len(evaluation.by_group()),
        "top_5": evaluation.top_5,
        "macro": evaluation.macro(),
        "weighted": evaluation.weighted(),
        "ece": after.ece if after else None,
        "ece_uncalibrated": before.ece if before else None,
        "classes": evaluation.by_class(),
    }
    with atomic_write(folder / "metrics.json") as stream:
        stream.write(msgspec.json.format(msgspec.json.encode(facts), indent=2))
    per_class = [[s.name, s.precision, s.recall, s.f1, s.count] for s in evaluation.by_class()]
    write_csv(folder / "per_class.csv", ["class", "precision", "recall", "f1", "videos"], per_class)
    per_group = [[g.name, g.correct / g.count, g.correct, g.count] for g in evaluation.by_group()]
    write_csv(folder / "per_group.csv", ["group", "accuracy", "correct", "videos"], per_group)
    confused = [
        [c.truth, c.label, c.count, c.share, *map(str, c.examples), *[""] * (EXAMPLES - len(c.examples))]
        for c in evaluation.most_confused()
    ]
    examples = [f"example_{place}" for place in range(1, EXAMPLES + 1)]
    write_csv(folder / "confused.csv", ["truth", "label", "videos", "share", *examples], confused)
    predictions = [[str(p.path), p.truth, p.label, round(p.score, 6)] for p in evaluation.predictions]
    write_csv(folder / "predictions.csv", ["path", "truth", "label", "score"], predictions)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table with names that are not Unicode as the file system has them."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    with atomic_write(path) as stream:
        stream.write(text.getvalue().encode("utf-8", "surrogateescape"))
