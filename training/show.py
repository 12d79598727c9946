"""Pictures of a data set before anything is trained on it: what the classes look like, how many there are of what."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harec_deploy.decode import choose
from harec_deploy.errors import VideoError
from training.datasets import SPLITS, Manifest, Sample
from training.plots import THUMBNAIL, WRONG, save

COLOURS = {"train": "#2b6cb0", "val": "#d69e2e", "test": "#1b7f4d", "": "#888888"}
MAX_CLASSES = 60  # rows of one sheet
PER_CLASS = 6
MAX_SIZES = 8

Progress = Callable[[int, int], None]


def samples_sheet(manifest: Manifest, path: Path, progress: Progress = lambda done, total: None) -> int:
    """Draw the middle frame of up to PER_CLASS videos of each class, a row a class; return how many classes fit."""
    ordered = sorted(manifest.samples, key=lambda sample: (sample.label, str(sample.path)))
    rows = [(label, list(members)) for label, members in groupby(ordered, key=lambda sample: sample.label)]
    shown = rows[:MAX_CLASSES]
    figure = Figure(figsize=(1.4 * PER_CLASS + 0.4, 1.25 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), PER_CLASS, squeeze=False)
    for done, (axes, (label, members)) in enumerate(zip(grid, shown, strict=True)):
        progress(done, len(shown))
        for place, sample in zip(axes, _spread(members), strict=False):
            _thumbnail(place, sample)
        axes[0].set_title(f"{label} ({len(members)})", loc="left", fontsize=8, pad=2)
        for place in axes:
            place.set_axis_off()
    save(figure, path)
    progress(len(shown), len(shown))
    return len(shown)


def _spread(members: Sequence[Sample]) -> list[Sample]:
    count = min(PER_CLASS, len(members))
    return [members[place * len(members) // count] for place in range(count)]


def _thumbnail(axes: Axes, sample: Sample) -> None:
    try:
        frames = choose().frames(sample.path, lambda info: [info.duration_s / 2], THUMBNAIL)
    except VideoError as error:
        axes.text(0.0, 0.5, error.kind, color=WRONG, fontsize=7)
        return
    axes.imshow(frames.pixels[0])


def numbers(manifest: Manifest, path: Path) -> None:
    """Draw how many videos each class has on each side, how long videos are, and their picture sizes."""
    classes = manifest.classes
    figure = Figure(figsize=(11, max(3.6, 1.2 + 0.2 * len(classes))), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    _counts(figure.add_subplot(grid[:, 0]), manifest, classes)
    upper, lower = figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1])
    durations = [sample.duration_s for sample in manifest.samples]
    upper.hist(durations, bins=30, color=COLOURS["train"])
    upper.set(title=f"length in seconds, median {np.median(durations):.1f}", ylabel="videos")
    sizes = Counter(f"{s.width}x{s.height} {s.codec}" for s in manifest.samples).most_common()
    top = sizes[:MAX_SIZES]
    lower.barh([name for name, _ in top], [count for _, count in top], color=COLOURS["train"])
    more = f", {len(sizes) - MAX_SIZES} more not shown" if len(sizes) > MAX_SIZES else ""
    lower.set(title=f"picture and codec{more}", xlabel="videos")
    lower.invert_yaxis()
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    save(figure, path)


def _counts(axes: Axes, manifest: Manifest, classes: Sequence[str]) -> None:
    counts = Counter((sample.split, sample.label) for sample in manifest.samples)
    start = np.zeros(len(classes))
    for side in (*SPLITS, ""):
        widths = np.array([counts[side, label] for label in classes])
        if widths.any():
            axes.barh(classes, widths, left=start, color=COLOURS[side], label=f"{side or 'no split'} {widths.sum()}")
        start += widths
    axes.set(title=f"{len(manifest.samples)} videos of {len(classes)} classes", ylim=(len(classes) - 0.5, -0.5))
    axes.tick_params(axis="y", labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=4, fontsize=8, frameon=False)
