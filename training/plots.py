"""Pictures of a training run: its curves, its confusion matrix, and its videos with their labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harec_deploy.decode import Size, choose
from harec_deploy.errors import VideoError
from harec_deploy.files import atomic_write
from training.evaluate import Evaluation, Prediction

RIGHT, WRONG, INK = "#1b7f4d", "#c0392b", "#222222"
SHEET_VIDEOS = 16
SHEET_FRAMES = 6
THUMBNAIL = Size(width=128, height=96)


def curves(rows: Sequence[dict[str, float]], path: Path) -> None:
    """Draw loss and accuracy over epochs, of training and, where there is one, of the validation split."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for prefix, name in (("train", "training"), ("val", "validation")):
            points = [(row["epoch"], row[f"{prefix}_{metric}"]) for row in rows if f"{prefix}_{metric}" in row]
            if points:
                axes.plot(*zip(*points, strict=True), label=name)
        axes.set(xlabel="epoch", title=metric)
        axes.grid(alpha=0.3)
        axes.legend()
    _save(figure, path)


def confusion(evaluation: Evaluation, path: Path) -> None:
    """Draw the confusion matrix: rows are the truth, shares are of the row, numbers are videos."""
    matrix, names = evaluation.confusion, evaluation.classes
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = 2.2 + 0.5 * len(names)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Greens", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="label", ylabel="truth")
    axes.set_title(f"{evaluation.correct} of {len(evaluation.predictions)} right ({evaluation.accuracy:.1%})")
    if len(names) <= 30:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            ink = "white" if shares[row, column] > 0.6 else INK
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=ink)
    _save(figure, path)


def contact_sheet(predictions: Sequence[Prediction], path: Path) -> None:
    """Draw frames of up to SHEET_VIDEOS videos, spread over all, with label and score; wrong ones come first."""
    shown = _choice(predictions)
    rows = -(-len(shown) // 2)
    figure = Figure(figsize=(15, 1.25 * rows + 0.2), layout="constrained")
    for axes, prediction in zip(figure.subplots(rows, 2, squeeze=False).ravel(), shown, strict=False):
        _strip(axes, prediction)
    for axes in figure.axes:
        axes.set_axis_off()
    _save(figure, path)


def _choice(predictions: Sequence[Prediction]) -> list[Prediction]:
    ordered = sorted(predictions, key=lambda p: (p.truth, p.path))
    wrong = [p for p in ordered if p.label != p.truth][: SHEET_VIDEOS // 2]
    right = [p for p in ordered if p.label == p.truth]
    free = SHEET_VIDEOS - len(wrong)
    return wrong + [right[i * len(right) // free] for i in range(min(free, len(right)))]


def _strip(axes: Axes, prediction: Prediction) -> None:
    try:
        frames = choose().frames(
            prediction.path,
            lambda info: [(i + 0.5) / SHEET_FRAMES * info.duration_s for i in range(SHEET_FRAMES)],
            THUMBNAIL,
        )
    except VideoError as error:
        axes.text(0, 0.5, f"{prediction.path.name}: {error.kind}", color=WRONG)
        return
    axes.imshow(np.concatenate(list(frames.pixels), axis=1))
    right = prediction.label == prediction.truth
    told = f"{prediction.label}  {prediction.score:.2f}" + ("" if right else f"   (is {prediction.truth})")
    axes.set_title(told, loc="left", fontsize=10, pad=2, color=RIGHT if right else WRONG)


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as stream:
        figure.savefig(stream, format="png", dpi=110)
