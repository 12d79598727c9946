"""Pictures of a training run: its curves, confusion matrix and reliability, and its videos with their labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harec_deploy.decode import Size, choose
from harec_deploy.errors import VideoError
from harec_deploy.files import atomic_write
from training.calibration import BINS, Reliability
from training.metrics import Evaluation, Prediction

RIGHT, WRONG, INK = "#1b7f4d", "#c0392b", "#222222"
WRITTEN = 30  # classes whose counts are written into the confusion matrix
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
    save(figure, path)


def confusion(evaluation: Evaluation, path: Path) -> None:
    """Draw the confusion matrix: rows are the truth, the best recognised first; shares are of the row."""
    recalls = np.array([-score.recall for score in evaluation.by_class()])
    order = np.argsort(recalls, kind="stable")
    matrix, names = evaluation.confusion[np.ix_(order, order)], [evaluation.classes[place] for place in order]
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    cell, size = (0.5, 10) if len(names) <= WRITTEN else (0.16, 7)
    side = 2.2 + cell * len(names)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Greens", vmin=0, vmax=1)
    turned = {"rotation": 45, "ha": "right"} if len(names) <= WRITTEN else {"rotation": 90}
    axes.set_xticks(range(len(names)), names, fontsize=size, **turned)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set(xlabel="label", ylabel="truth")
    axes.set_title(f"{evaluation.correct} of {len(evaluation.predictions)} right ({evaluation.accuracy:.1%})")
    if len(names) <= WRITTEN:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            ink = "white" if shares[row, column] > 0.6 else INK
            axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=ink)
    save(figure, path)


def reliability(evaluation: Evaluation, path: Path) -> None:
    """Draw accuracy beside score, before calibration where that is known and after, and how many labels have a score.

    Nothing is drawn, and an old picture is removed, where no label has a score.
    """
    told = {
        "at temperature 1": evaluation.reliability(calibrated=False),
        "as labelled": evaluation.reliability(),
    }
    known = {name: facts for name, facts in told.items() if facts}
    if not known:
        path.unlink(missing_ok=True)
        return
    figure = Figure(figsize=(0.4 + 4 * len(known), 5), layout="constrained")
    axes = figure.subplots(2, len(known), squeeze=False, sharex=True, sharey="row", height_ratios=(3, 1))
    for column, (name, facts) in enumerate(known.items()):
        _reliability(axes[0, column], axes[1, column], facts)
        axes[0, column].set_title(f"{name}: expected calibration error {facts.ece:.1%}", fontsize=10)
    axes[0, 0].set(ylabel="share that is right")
    axes[1, 0].set(ylabel="videos")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    save(figure, path)


def _reliability(upper: Axes, lower: Axes, facts: Reliability) -> None:
    middles, width = (np.arange(BINS) + 0.5) / BINS, 0.9 / BINS
    filled = facts.count > 0
    upper.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1)
    upper.bar(middles[filled], facts.accuracy[filled], width, color=RIGHT, label="share that is right")
    gap = (facts.score - facts.accuracy)[filled]
    upper.bar(
        middles[filled],
        gap,
        width,
        facts.accuracy[filled],
        color="none",
        edgecolor=WRONG,
        hatch="//",
        label="gap to the mean score",
    )
    upper.set(xlim=(0, 1), ylim=(0, 1))
    lower.bar(middles, facts.count, width, color=INK)
    lower.set(xlabel="score")


def contact_sheet(predictions: Sequence[Prediction], path: Path) -> None:
    """Draw frames of up to SHEET_VIDEOS videos, spread over all, with label and score; wrong ones come first."""
    shown = _choice(predictions)
    rows = -(-len(shown) // 2)
    figure = Figure(figsize=(15, 1.25 * rows + 0.2), layout="constrained")
    for axes, prediction in zip(figure.subplots(rows, 2, squeeze=False).ravel(), shown, strict=False):
        _strip(axes, prediction)
    for axes in figure.axes:
        axes.set_axis_off()
    save(figure, path)


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


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    with atomic_write(path) as stream:
        figure.savefig(stream, format="png", dpi=110)
