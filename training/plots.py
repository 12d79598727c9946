"""Pictures of a training run: its curves, confusion matrix and reliability, its videos with their labels.

And of several: their accuracy and speed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter, StrMethodFormatter

from harec_deploy.decode import Size, choose
from harec_deploy.errors import VideoError
from harec_deploy.files import atomic_write
from training.calibration import BINS, Reliability
from training.metrics import Evaluation, Prediction

if TYPE_CHECKING:
    from training.compare import Result

RIGHT, WRONG, INK = "#1b7f4d", "#c0392b", "#222222"
WRITTEN = 30  # classes whose counts are written into the confusion matrix
SHEET_VIDEOS = 16
SHEET_FRAMES = 6
LABEL_INCHES = 0.22  # a name of the speed-accuracy plot needs
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
    """Draw the confusion matrix: rows are the truth, the best recognised first; colours are shares of the row."""
    recalls = np.array([-score.recall for score in evaluation.by_class()])
    order = np.argsort(recalls, kind="stable")
    matrix, names = evaluation.confusion[np.ix_(order, order)], [evaluation.classes[place] for place in order]
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    few = len(names) <= WRITTEN
    cell, size = (0.5, 10) if few else (0.16, 7)
    side = 2.2 + cell * len(names)
    figure = Figure(figsize=(side + 1, side + (0 if few else 1.2)), layout="constrained")
    axes = figure.subplots()
    # The root shows one video of a hundred, too; shares near 0 and 1 are the ones that matter.
    image = axes.imshow(shares, cmap="Greens", norm=PowerNorm(0.5, vmin=0, vmax=1))
    bar = figure.colorbar(image, ax=axes, shrink=1 if few else 0.5, aspect=30, format=PercentFormatter(1))
    bar.set_ticks([0, 0.05, 0.2, 0.5, 1])
    bar.set_label("share of the row")
    turned = {"rotation": 45, "ha": "right"} if few else {"rotation": 90}
    axes.set_xticks(range(len(names)), names, fontsize=size, parse_math=False, **turned)
    axes.set_yticks(range(len(names)), names, fontsize=size, parse_math=False)
    if not few:
        axes.tick_params(top=True, labeltop=True)
        axes.grid(color=INK, alpha=0.08, linewidth=0.5)
    axes.set(xlabel="label", ylabel="truth")
    figure.suptitle(f"{evaluation.correct} of {len(evaluation.predictions)} right ({evaluation.accuracy:.1%})")
    if few:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            ink = "white" if shares[row, column] > 0.35 else INK
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


def speed_accuracy(results: "Sequence[Result]", path: Path) -> None:
    """Draw the accuracy of runs over their clips/s on the CPU, with both 95 % intervals and a name beside each."""
    figure = Figure(figsize=(9, max(4.5, 1.5 + LABEL_INCHES * len(results))), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    for place, result in enumerate(results):
        found = result.evaluation
        speed, colour = result.clips_per_s, f"C{place % 10}"
        axes.vlines(speed, *found.wilson(), color=colour, alpha=0.3, linewidth=6)
        if interval := found.interval():
            axes.vlines(speed, *interval, color=colour, linewidth=1.5)
        axes.plot(speed, found.accuracy, "o", color=colour)
    axes.set(xlabel="clips/s on the CPU", ylabel="accuracy")
    axes.set_title("bars: 95 % by Wilson (broad) and by drawing groups anew (narrow)", fontsize=10)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    speeds = [result.clips_per_s for result in results]
    axes.set_xlim(min(speeds) / 2, 2 * max(speeds))
    axes.grid(alpha=0.3)
    _names_beside(axes, results, figure.get_figheight())
    save(figure, path)


def _names_beside(axes: Axes, results: "Sequence[Result]", height_inches: float) -> None:
    """Write each name at the right edge, at the height of its point or as near as the other names let it."""
    low, high = axes.get_ylim()
    gap = (high - low) * LABEL_INCHES / (height_inches - 1.2)  # title and axis take the rest
    ranked = sorted(enumerate(results), key=lambda item: item[1].evaluation.accuracy)
    at = spread([result.evaluation.accuracy for _, result in ranked], gap, high)
    for (place, result), y in zip(ranked, at, strict=True):
        point = (result.clips_per_s, result.evaluation.accuracy)
        axes.annotate(
            f"{result.name}  {result.evaluation.accuracy:.1%}, {result.clips_per_s:.3g}/s",
            point,
            (1.02, y),
            textcoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
            parse_math=False,
            color=f"C{place % 10}",
            arrowprops={"arrowstyle": "-", "relpos": (0, 0.5), "color": f"C{place % 10}", "alpha": 0.4},
        )


def spread(wanted: Sequence[float], gap: float, top: float) -> list[float]:
    """Return ascending places moved as little as needed to be ``gap`` apart, the last no higher than ``top``."""
    places: list[float] = []
    for place in wanted:
        places.append(max(place, places[-1] + gap) if places else place)
    for number in reversed(range(len(places))):
        places[number] = min(places[number], top - gap * (len(places) - 1 - number))
    return places


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
